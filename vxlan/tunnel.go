package vxlan

import (
	"encoding/binary"
	"net/netip"

	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/wire"
)

// tunnel is the way to one VTEP: the outer headers ready to be copied in front of a frame, and what is to be patched in
// them. It is part of a snapshot; when a next hop changes there is a new one.
//
//	Ethernet 14 │ IPv4 20: TOS, total length, checksum │ UDP 8: source port, length           │ VXLAN 8: VNI │ frame
//	Ethernet 14 │ IPv6 40: traffic class, payload length │ UDP 8: source port, length, checksum │ VXLAN 8: VNI │ frame
type tunnel struct {
	header   [overhead6]byte
	uplink   *uplink
	ready    bool // there is a next hop
	is6      bool
	checksum bool // the UDP checksum is computed, over IPv6
	// partial is the IPv4 header's sum without TOS and total length, or that of IPv6's pseudo header without the length.
	partial uint16
	// maxFrame is the longest inner frame that the way takes.
	maxFrame int
	index    int
	address  address
}

// tunnelTo says what a tunnel is built from.
type tunnelTo struct {
	local, vtep netip.Addr
	hop         NextHop
	mtu         int
	port        uint16
	ttl         uint8
	checksum    bool
	uplink      *uplink
	index       int
}

// newTunnel writes the headers that all packets to a VTEP share.
func newTunnel(o tunnelTo) *tunnel {
	t := &tunnel{uplink: o.uplink, index: o.index, is6: o.vtep.Is6(), address: addressOf(o.vtep)}
	if !o.local.IsValid() || o.local.Is6() != o.vtep.Is6() || o.hop.Destination == 0 {
		return t
	}
	t.ready = true
	h := t.header[:]
	if !t.is6 {
		t.maxFrame = o.mtu - overhead4 + wire.EthernetLen
		wire.Ethernet(h).Set(o.hop.Destination, o.hop.Source, wire.EtherTypeIPv4)
		// DF: routers must say that a packet is too long rather than cut it, since a VTEP may discard fragments (RFC 7348,
		// 4.3), and ours does. And with DF the identification means nothing (RFC 6864, 4.1), so it is left zero.
		wire.IPv4(h[14:]).Set(wire.IPv4Fields{DontFragment: true, TTL: o.ttl, Protocol: wire.ProtoUDP, Source: o.local.As4(), Destination: o.vtep.As4()})
		t.partial = ^wire.IPv4(h[14:]).Checksum()
		wire.UDP(h[34:]).Set(0, o.port, 0, 0)
		wire.VXLAN(h[42:]).Set(0)
		return t
	}
	t.maxFrame = o.mtu - overhead6 + wire.EthernetLen
	t.checksum = o.checksum
	wire.Ethernet(h).Set(o.hop.Destination, o.hop.Source, wire.EtherTypeIPv6)
	source, destination := o.local.As16(), o.vtep.As16()
	wire.IPv6(h[14:]).Set(wire.IPv6Fields{NextHeader: wire.ProtoUDP, HopLimit: o.ttl, Source: source, Destination: destination})
	t.partial = wire.SumPseudo(source[:], destination[:], wire.ProtoUDP, 0)
	wire.UDP(h[54:]).Set(0, o.port, 0, 0)
	wire.VXLAN(h[62:]).Set(0)
	return t
}

// sourcePort spreads flows over the dynamic ports (RFC 7348, 5; RFC 6335), so that routers and NICs on the way can tell them apart.
func sourcePort(hash uint32) uint16 { return 49152 | uint16(hash>>18) }

// encapsulate writes the outer headers in front of the frame. It reports false, and leaves the frame as it was, if there is no room. The
// caller has seen to it that the tunnel is ready, that the frame fits, that its Hash is there; sum is that of the frame's
// bytes, for a tunnel with checksum. tosMask is the network's.
func (t *tunnel) encapsulate(f *frame.Frame, vni uint32, tosMask uint8, sum uint16) bool {
	if t.is6 {
		return t.encapsulate6(f, vni, tosMask, sum)
	}
	_, tos := trafficClass(f.Head())
	tos &= tosMask
	n := f.Len()
	b := f.Prepend(overhead4)
	if len(b) < overhead4 {
		return false
	}
	h := (*[overhead4]byte)(b)
	*h = [overhead4]byte(t.header[:overhead4])
	total := uint16(n + overhead4 - wire.EthernetLen)
	h[15] = tos
	binary.BigEndian.PutUint16(h[16:], total)
	binary.BigEndian.PutUint16(h[24:], ^wire.Add(wire.Add(t.partial, uint16(tos)), total))
	binary.BigEndian.PutUint16(h[34:], sourcePort(f.Hash))
	binary.BigEndian.PutUint16(h[38:], total-wire.IPv4MinLen)
	binary.BigEndian.PutUint32(h[46:], vni<<8)
	f.Checksum = frame.Checksum{}
	return true
}

func (t *tunnel) encapsulate6(f *frame.Frame, vni uint32, tosMask uint8, sum uint16) bool {
	_, tos := trafficClass(f.Head())
	tos &= tosMask
	n := f.Len()
	b := f.Prepend(overhead6)
	if len(b) < overhead6 {
		return false
	}
	h := (*[overhead6]byte)(b)
	*h = t.header
	wire.IPv6(h[wire.EthernetLen:]).SetTrafficClass(tos)
	length := uint16(n + wire.UDPLen + wire.VXLANLen)
	binary.BigEndian.PutUint16(h[18:], length)
	binary.BigEndian.PutUint16(h[54:], sourcePort(f.Hash))
	binary.BigEndian.PutUint16(h[58:], length)
	binary.BigEndian.PutUint32(h[66:], vni<<8)
	f.Checksum = frame.Checksum{}
	if t.checksum {
		// Pseudo header, its length, the 16 bytes of UDP and VXLAN, and the frame, which begins at an even offset.
		sum = ^wire.Add(wire.Add(wire.Sum(t.partial, h[54:]), length), sum)
		if sum == 0 {
			sum = 0xffff
		}
		binary.BigEndian.PutUint16(h[60:], sum)
	}
	return true
}
