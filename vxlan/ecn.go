package vxlan

import (
	"encoding/binary"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/wire"
)

// The tunnel and explicit congestion notification (RFC 6040): routers on the way mark the outer header, and what they say must reach the
// receiver, whose sender is to slow down.
//
//	guest ──▶ inner DSCP, ECN ──copied (normal mode, 4.1)──▶ outer ──▶ the wire
//	guest ◀── inner ECN ◀──combined with the outer's (4.2)── outer ◀── the wire
//
// The inner DSCP stays as it was. Frames that are no IP packets have nothing to say, and nothing is marked in them.

// DSCP is how the differentiated services of a network's packets are carried (RFC 2983).
type DSCP uint8

const (
	// DSCPCopy copies the packet's DSCP into the outer header: the uniform model. A guest chooses its class on the underlay.
	DSCPCopy DSCP = iota
	// DSCPZero sends all packets in the default class: the pipe model.
	DSCPZero
)

// The two bits of ECN (RFC 3168, 5).
const (
	notECT  = 0
	ect1    = 1
	ect0    = 2
	ce      = 3
	ecnMask = 3
)

// mask is what of a packet's DSCP and ECN is copied: ECN always.
func (d DSCP) mask() uint8 {
	if d == DSCPZero {
		return ecnMask
	}
	return 0xff
}

// ecnDecapsulate combines the ECN of the outer header with that of the inner one, whose DSCP it leaves (RFC 6040, figure 4). It reports
// drop where a router marked a packet whose sender does not know marks, and would be told of the congestion in no other way.
func ecnDecapsulate(outer, inner uint8) (tos uint8, drop bool) {
	switch outer & ecnMask {
	case ce:
		return inner | ce, inner&ecnMask == notECT
	case ect1:
		if inner&ecnMask == ect0 {
			return inner&^ecnMask | ect1, false
		}
	}
	return inner, false
}

// congestion brings what the outer header says of congestion into the packet of a frame just unpacked.
func congestion(f *frame.Frame, outer uint8) (dataplane.Reason, bool) {
	if outer&1 == 0 {
		return 0, true // not-ECT and ECT(0) change nothing
	}
	head := f.Head()
	at, inner := trafficClass(head)
	if at == 0 {
		return 0, true
	}
	tos, drop := ecnDecapsulate(outer, inner)
	if drop {
		return DropCongestion, false
	}
	if tos == inner {
		return 0, true
	}
	if head[at]>>4 == 4 {
		wire.IPv4(head[at:]).SetTOS(tos)
	} else {
		wire.IPv6(head[at:]).SetTrafficClass(tos)
	}
	return 0, true
}

// trafficClass finds the IP header of a frame, behind up to two tags, and its DSCP and ECN. at is 0 if there is none in the head.
func trafficClass(head []byte) (at int, tos uint8) {
	if len(head) >= wire.EthernetLen+wire.IPv4MinLen && binary.BigEndian.Uint32(head[12:])>>12 == wire.EtherTypeIPv4<<4|4 {
		return wire.EthernetLen, head[15] // the usual packet
	}
	return trafficClassSlow(head)
}

func trafficClassSlow(head []byte) (at int, tos uint8) {
	at = wire.EthernetLen
	if len(head) < at+wire.IPv4MinLen {
		return 0, 0
	}
	t := binary.BigEndian.Uint16(head[12:])
	for n := 0; n < wire.MaxTags && (t == wire.EtherTypeVLAN || t == wire.EtherTypeQinQ); n++ {
		t = binary.BigEndian.Uint16(head[at+2:])
		at += wire.VLANLen
	}
	switch {
	case t == wire.EtherTypeIPv4 && len(head) >= at+wire.IPv4MinLen && head[at]>>4 == 4:
		return at, head[at+1]
	case t == wire.EtherTypeIPv6 && len(head) >= at+wire.IPv6Len && head[at]>>4 == 6:
		return at, wire.IPv6(head[at:]).TrafficClass()
	}
	return 0, 0
}
