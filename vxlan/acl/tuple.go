package acl

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// EtherTypes that are treated in a way of their own.
const (
	etherIPv4 = 0x0800
	etherARP  = 0x0806
	etherRARP = 0x8035
	etherIPv6 = 0x86dd
)

// Address is an IPv6 address as two big-endian numbers. An IPv4 address is the lower 32 bits of Lo.
type Address struct{ Hi, Lo uint64 }

// Address4 makes one of an IPv4 address as it stands in a packet.
func Address4(b []byte) Address { return Address{Lo: uint64(binary.BigEndian.Uint32(b))} }

// Address6 makes one of an IPv6 address as it stands in a packet.
func Address6(b []byte) Address {
	return Address{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])}
}

// addressOf is Address4 or Address6, as the address is.
func addressOf(a netip.Addr) Address {
	if a.Is4() {
		b := a.As4()
		return Address4(b[:])
	}
	b := a.As16()
	return Address6(b[:])
}

func (a Address) less(b Address) bool { return a.Hi < b.Hi || a.Hi == b.Hi && a.Lo < b.Lo }

// Tuple is what a packet is judged by. Whoever fills it reads the packet's private head, behind up to two VLAN tags, and has refused what is
// malformed. Fields that a packet does not have are zero.
type Tuple struct {
	Source, Destination         Address
	SourcePort, DestinationPort uint16 // of TCP, UDP, DCCP, SCTP, UDP-Lite
	EtherType                   uint16 // IPv4 and IPv6 have the fields around; others are judged by this alone
	Protocol                    uint8
	Type, Code                  uint8 // of ICMP and ICMPv6
	// Bare says that the packet has no transport header: it is a later fragment. Ports, Type and Code mean nothing then.
	Bare bool
}

func (t *Tuple) isIP() bool { return t.EtherType == etherIPv4 || t.EtherType == etherIPv6 }

// always reports whether no policy judges the packet.
func (t *Tuple) always() bool {
	switch t.EtherType {
	case etherARP, etherRARP:
		return true
	case etherIPv6:
		return t.Protocol == protoICMPv6 && !t.Bare && (t.Type == neighbourSolicitation || t.Type == neighbourAdvertisement)
	}
	return false
}

// question says which ICMP message a reply answers. Other messages answer nothing.
func (t *Tuple) question() (uint8, bool) {
	switch {
	case t.EtherType == etherIPv4 && t.Protocol == protoICMP:
		switch t.Type {
		case 0: // echo, RFC 792
			return 8, true
		case 14: // timestamp
			return 13, true
		}
	case t.EtherType == etherIPv6 && t.Protocol == protoICMPv6:
		if t.Type == 129 { // echo, RFC 4443
			return 128, true
		}
	}
	return 0, false
}

// Answers returns the packet that t may be the reply to, which goes the other way: addresses and ports change places, an echo reply becomes its
// request. It is false for what answers nothing, as an echo request, or a packet that is not IP.
func (t *Tuple) Answers() (Tuple, bool) {
	if !t.isIP() {
		return Tuple{}, false
	}
	asked := *t
	asked.Source, asked.Destination = t.Destination, t.Source
	asked.SourcePort, asked.DestinationPort = t.DestinationPort, t.SourcePort
	if t.Bare || t.Protocol != protoICMP && t.Protocol != protoICMPv6 {
		return asked, true
	}
	var ok bool
	asked.Type, ok = t.question()
	asked.Code = 0
	return asked, ok
}

// IsError reports whether t is an ICMP message about a packet, which it quotes: too big, unreachable, time exceeded, bad parameter. If that
// packet is of a flow that was allowed, the message belongs to it; path MTU discovery lives by that. Redirects and source quenches are not
// among them.
func (t *Tuple) IsError() bool {
	switch {
	case t.Bare:
	case t.EtherType == etherIPv4 && t.Protocol == protoICMP:
		return t.Type == 3 || t.Type == 11 || t.Type == 12 // RFC 792
	case t.EtherType == etherIPv6 && t.Protocol == protoICMPv6:
		return t.Type >= 1 && t.Type <= 4 // RFC 4443
	}
	return false
}

func (t *Tuple) source() netip.Addr      { return t.address(t.Source) }
func (t *Tuple) destination() netip.Addr { return t.address(t.Destination) }

func (t *Tuple) address(a Address) netip.Addr {
	if t.EtherType == etherIPv4 {
		return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, uint32(a.Lo))))
	}
	return netip.AddrFrom16([16]byte(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, a.Hi), a.Lo)))
}

// String writes the packet as ParseTuple reads it.
func (t Tuple) String() string {
	switch {
	case t.EtherType == etherARP:
		return "arp"
	case t.EtherType == etherRARP:
		return "rarp"
	case !t.isIP():
		return fmt.Sprintf("ether 0x%04x", t.EtherType)
	}
	name := protocolName(uint16(t.Protocol))
	from, to := t.source(), t.destination()
	icmp := t.Protocol == protoICMP && t.EtherType == etherIPv4 || t.Protocol == protoICMPv6 && t.EtherType == etherIPv6
	switch {
	case t.Bare:
		return fmt.Sprintf("%s %s > %s fragment", name, from, to)
	case hasPorts(uint16(t.Protocol)):
		return fmt.Sprintf("%s %s > %s", name, netip.AddrPortFrom(from, t.SourcePort), netip.AddrPortFrom(to, t.DestinationPort))
	case icmp:
		return fmt.Sprintf("%s %s > %s type %d code %d", name, from, to, t.Type, t.Code)
	}
	return fmt.Sprintf("%s %s > %s", name, from, to)
}
