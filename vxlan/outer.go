package vxlan

import (
	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/wire"
)

// outer is what the outer headers of a packet say.
type outer struct {
	network *network
	inner   int     // where the inner frame begins
	source  address // the sender's tunnel endpoint
	tos     uint8   // DSCP and ECN
}

// minInner is how much must follow the outer UDP header: VXLAN's and the inner Ethernet header.
const minInner = wire.VXLANLen + wire.EthernetLen

// parse reads the outer headers of a packet that carries the uplink's MAC, and cuts what follows the UDP datagram off
// the frame: Ethernet pads short packets (RFC 894). What o said before does not matter. A VXLAN packet whose headers are not wholly in the head has been made so.
func (u *uplink) parse(f *frame.Frame, o *outer) (why dataplane.Reason, ok bool) {
	head := f.Head()
	at, end, why, ok := u.parseIP(head, f.Len(), o)
	if !ok {
		return why, false
	}
	if len(head) < at+wire.UDPLen {
		return DropOuterUDP, false
	}
	udp := wire.UDP(head[at:])
	if udp.DestinationPort() != u.port {
		return DropNotOurs, false
	}
	length := int(udp.Length())
	switch {
	case length < wire.UDPLen || at+length > end:
		return DropOuterUDP, false
	case length < wire.UDPLen+minInner:
		return DropOuterVXLAN, false
	case len(head) < at+wire.UDPLen+minInner:
		return DropHeadTooShort, false
	}
	if f.Len() > at+length && !(f.Gather() && f.Truncate(at+length)) {
		return DropOuterIP, false
	}
	if !u.checksumValid(f, udp, at) {
		return DropOuterUDP, false
	}
	header := wire.VXLAN(udp[wire.UDPLen:])
	if !header.HasVNI() {
		return DropOuterVXLAN, false
	}
	o.network = u.vnis.find(header.VNI())
	o.inner = at + wire.UDPLen + wire.VXLANLen
	return DropUnknownVNI, o.network != nil
}

// parseIP reads the outer IP header: where its payload begins and ends.
func (u *uplink) parseIP(head []byte, length int, o *outer) (at, end int, why dataplane.Reason, ok bool) {
	b := head[wire.EthernetLen:]
	switch t := wire.Ethernet(head).EtherType(); {
	case t == wire.EtherTypeIPv4 && u.is4:
		h, ok := wire.ParseIPv4(b)
		if !ok || wire.EthernetLen+int(h.TotalLen()) > length || !h.ChecksumValid() {
			return 0, 0, DropOuterIP, false
		}
		if address4(h.Destination()) != u.address || h.Protocol() != wire.ProtoUDP {
			return 0, 0, DropNotOurs, false
		}
		if h.IsFragment() {
			return 0, 0, DropOuterFragment, false
		}
		o.source, o.tos = address4(h.Source()), h.TOS()
		return wire.EthernetLen + h.HeaderLen(), wire.EthernetLen + int(h.TotalLen()), 0, true
	case t == wire.EtherTypeIPv6 && u.is6:
		h, ok := wire.ParseIPv6(b)
		end := wire.EthernetLen + wire.IPv6Len
		if !ok || end+int(h.PayloadLen()) > length {
			return 0, 0, DropOuterIP, false
		}
		end += int(h.PayloadLen())
		if address6(h.Destination()) != u.address {
			return 0, 0, DropNotOurs, false
		}
		upper, ok := h.Upper()
		if !ok {
			return 0, 0, DropOuterIP, false
		}
		if upper.Fragment {
			return 0, 0, DropOuterFragment, false
		}
		if upper.Protocol != wire.ProtoUDP {
			return 0, 0, DropNotOurs, false
		}
		o.source, o.tos = address6(h.Source()), h.TrafficClass()
		return wire.EthernetLen + upper.Offset, end, 0, true
	}
	return 0, 0, DropNotOurs, false
}

// checksumValid verifies the outer UDP checksum, if there is one: over IPv4 zero says that there is none, and over IPv6 it does for
// tunnels (RFC 6935). The datagram is the frame's end.
func (u *uplink) checksumValid(f *frame.Frame, udp wire.UDP, at int) bool {
	if u.trustChecksums || udp.Checksum() == 0 {
		return true
	}
	addresses := f.Head()[wire.EthernetLen+12 : wire.EthernetLen+20] // source and destination lie side by side
	if u.is6 {
		addresses = f.Head()[wire.EthernetLen+8 : wire.EthernetLen+40]
	}
	pseudo := wire.SumPseudo(addresses, nil, wire.ProtoUDP, uint32(udp.Length()))
	return wire.SumPieces(pseudo, f.Head()[at:], f.Body()) == 0xffff
}
