package vxlan

import (
	"encoding/binary"
	"net/netip"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/wire"
)

// spoofed tells whether the frame claims to be from an address that is not the port's, and how. The source MAC has been
// compared already. A frame is judged by the protocol behind up to two VLAN tags. What passes:
//
//   - IPv4 and IPv6 from one of the port's addresses;
//   - IPv6 from the link-local address made of the port's MAC (RFC 4291, appendix A); others only if they are among the port's;
//   - what hosts send before they have an address: DHCP and IGMP from 0.0.0.0, ARP probes (RFC 5227), IPv6 from :: (RFC 4862);
//   - ARP and neighbour advertisements that bind the port's addresses to the port's MAC;
//   - other protocols, which claim no IP address.
//
// Without addresses in the configuration, only MAC addresses are judged, those in ARP too.
func (p *port) spoofed(head []byte, whole bool) (dataplane.Reason, bool) {
	switch wire.Ethernet(head).EtherType() {
	case wire.EtherTypeIPv4:
		if !p.checkIP || len(head) >= 34 && head[14] == 0x45 && p.has4(binary.BigEndian.Uint32(head[26:])) {
			return 0, false
		}
	case wire.EtherTypeIPv6:
		if !p.checkIP || len(head) >= 54 && head[14]>>4 == 6 && (head[20] == wire.ProtoTCP || head[20] == wire.ProtoUDP) && p.has6([16]byte(head[22:38])) {
			return 0, false
		}
	}
	return p.spoofedSlow(head, whole) // tags, ARP, IPv4 options, IPv6 extensions, ICMPv6, and what is spoofed
}

func (p *port) spoofedSlow(head []byte, whole bool) (dataplane.Reason, bool) {
	l := wire.Locate(head)
	unjudged := DropHeadTooShort
	if whole {
		unjudged = DropMalformed
	}
	if l.Network == 0 { // more tags than we look through, or a head that ends in them
		return unjudged, true
	}
	b := head[l.Network:]
	switch l.EtherType {
	case wire.EtherTypeARP, wire.EtherTypeRARP:
		h, ok := wire.ParseARP(b)
		if !ok {
			return unjudged, true
		}
		if h.SenderMAC() != p.mac {
			return DropSpoofedMAC, true
		}
		ip := h.SenderIP()
		n := binary.BigEndian.Uint32(ip[:])
		return DropSpoofedIP, p.checkIP && n != 0 && !p.has4(n)
	case wire.EtherTypeIPv4:
		if !p.checkIP {
			return 0, false
		}
		if l.Broken {
			return unjudged, true
		}
		return DropSpoofedIP, !p.owns4(wire.IPv4(b), head, l)
	case wire.EtherTypeIPv6:
		if !p.checkIP {
			return 0, false
		}
		if l.Broken {
			return unjudged, true
		}
		return p.spoofed6(wire.IPv6(b), head, l, unjudged)
	}
	return 0, false
}

func (p *port) has4(ip uint32) bool {
	for _, own := range p.ip4 {
		if own == ip {
			return true
		}
	}
	return false
}

func (p *port) has6(ip [16]byte) bool {
	for i := range p.ip6 {
		if p.ip6[i] == ip {
			return true
		}
	}
	return false
}

// owns4 judges an IPv4 source.
func (p *port) owns4(h wire.IPv4, head []byte, l wire.Layers) bool {
	ip := binary.BigEndian.Uint32(h.Source())
	if ip != 0 {
		return p.has4(ip)
	}
	const igmp, bootpc, bootps = 2, 68, 67
	if l.Protocol == igmp {
		return true
	}
	if l.Protocol != wire.ProtoUDP || l.Fragment || len(head) < int(l.Transport)+wire.UDPLen {
		return false
	}
	u := wire.UDP(head[l.Transport:])
	return u.SourcePort() == bootpc && u.DestinationPort() == bootps
}

// spoofed6 judges an IPv6 source, and what a neighbour advertisement binds: it takes an address over just as an ARP
// reply does.
func (p *port) spoofed6(h wire.IPv6, head []byte, l wire.Layers, unjudged dataplane.Reason) (dataplane.Reason, bool) {
	source := [16]byte(h.Source())
	if source != ([16]byte{}) && !p.has6(source) {
		return DropSpoofedIP, true
	}
	if l.Protocol != wire.ProtoICMPv6 || l.Fragment { // hosts ignore fragmented neighbour discovery (RFC 6980)
		return 0, false
	}
	if len(head) < int(l.Transport)+wire.ICMPLen {
		return unjudged, true
	}
	m := wire.ICMPv6(head[l.Transport:])
	if m.Type() != wire.ICMPv6NeighborAdvertisement {
		return 0, false
	}
	target, ok := m.NeighborTarget()
	if !ok {
		return unjudged, true
	}
	return DropSpoofedIP, !p.has6(target)
}

// allow enters the addresses that the port's frames may be from.
func (p *port) allow(ips []netip.Addr) {
	p.checkIP = len(ips) > 0
	for _, ip := range ips {
		if ip.Is4() {
			b := ip.As4()
			p.ip4 = append(p.ip4, binary.BigEndian.Uint32(b[:]))
		} else {
			p.ip6 = append(p.ip6, ip.As16())
		}
	}
	p.ip6 = append(p.ip6, linkLocal(p.mac))
}

// linkLocal is the IPv6 link-local address made of a MAC.
func linkLocal(mac wire.MAC) [16]byte {
	m := mac.Bytes()
	return [16]byte{0: 0xfe, 1: 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]}
}
