package wire

import (
	"encoding/binary"
	"math/bits"
)

// MaxTags bounds how many VLAN tags of a frame are looked through.
const MaxTags = 2

// Layers says where the headers of a frame lie, as far as its head shows them.
type Layers struct {
	// EtherType is that behind the tags; still a tag's if there are more than MaxTags. Tags is how many were passed.
	EtherType uint16
	Tags      uint8
	// Protocol is the transport protocol, if Network names an IP header.
	Protocol uint8
	// Network is the offset of the header behind the Ethernet header and tags; 0: the head ends before it.
	Network uint16
	// Transport is the offset of the transport header, of which nothing need be there; 0: not IP, a later fragment, or the IP
	// header with its extensions is malformed or not wholly in the head (then Broken is set).
	Transport uint16
	// Fragment tells that the packet is less than its datagram.
	Fragment bool
	// Broken tells that an IP header was announced that can't be judged: malformed, or longer than the head.
	Broken bool
}

// Locate walks the headers of a frame, from its first byte.
func Locate(head []byte) (l Layers) {
	if len(head) < EthernetLen {
		return l
	}
	at := EthernetLen
	l.EtherType = binary.BigEndian.Uint16(head[12:14])
	for l.EtherType == EtherTypeVLAN || l.EtherType == EtherTypeQinQ {
		if l.Tags == MaxTags || len(head) < at+VLANLen {
			return l
		}
		l.EtherType = binary.BigEndian.Uint16(head[at+2:])
		l.Tags++
		at += VLANLen
	}
	l.Network = uint16(at)
	switch l.EtherType {
	case EtherTypeIPv4:
		h, ok := ParseIPv4(head[at:])
		if !ok {
			l.Broken = true
			return l
		}
		l.Protocol, l.Fragment = h.Protocol(), h.IsFragment()
		if h.FragmentOffset() == 0 {
			l.Transport = uint16(at + h.HeaderLen())
		}
	case EtherTypeIPv6:
		h, ok := ParseIPv6(head[at:])
		if !ok {
			l.Broken = true
			return l
		}
		l.Protocol = h.NextHeader()
		if l.Protocol == ProtoTCP || l.Protocol == ProtoUDP {
			l.Transport = uint16(at + IPv6Len)
			return l
		}
		u, ok := h.Upper()
		l.Protocol, l.Fragment, l.Broken = u.Protocol, u.Fragment, !ok
		if ok && !u.Later {
			l.Transport = uint16(at + u.Offset)
		}
	}
	return l
}

// FlowHash tells flows apart by the frame's addresses, protocol and ports, or by its MAC addresses if it is not IP. All
// packets of a flow have the same hash; fragments go by their addresses alone, so that none is separated from the others
// of its datagram. It is never zero. The seed makes it unpredictable to whoever chooses the addresses.
func FlowHash(head []byte, seed uint64) uint32 {
	// The usual packet, without a walk: TCP or UDP in IPv4, no tags, no options, no fragment.
	if len(head) >= EthernetLen+IPv4MinLen+4 && binary.BigEndian.Uint16(head[12:]) == EtherTypeIPv4 && head[14] == 0x45 &&
		(head[23] == ProtoTCP || head[23] == ProtoUDP) && binary.BigEndian.Uint16(head[20:])&0x3fff == 0 && binary.BigEndian.Uint16(head[16:]) >= IPv4MinLen {
		return finish(binary.LittleEndian.Uint64(head[26:]), uint64(head[23])|uint64(binary.LittleEndian.Uint32(head[34:]))<<32, seed)
	}
	return FlowHashAt(head, Locate(head), seed)
}

// FlowHashAt is FlowHash for who has located the headers already.
func FlowHashAt(head []byte, l Layers, seed uint64) uint32 {
	var x, y uint64
	switch {
	case l.Broken || l.Network == 0:
		x, y = ethernetWords(head)
	case l.EtherType == EtherTypeIPv4:
		x = binary.LittleEndian.Uint64(head[l.Network+12:])
		y = uint64(l.Protocol)
	case l.EtherType == EtherTypeIPv6:
		b := head[l.Network:]
		x = mix(binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint64(b[16:])^seed)
		x ^= mix(binary.LittleEndian.Uint64(b[24:])^x, binary.LittleEndian.Uint64(b[32:])^^seed)
		y = uint64(l.Protocol)
	default:
		x, y = ethernetWords(head)
	}
	if at := int(l.Transport); at != 0 && !l.Fragment && len(head) >= at+4 {
		switch l.Protocol {
		case ProtoTCP, ProtoUDP, 33, 132, 136: // with DCCP, SCTP and UDP-Lite, whose ports lie at the same place
			y |= uint64(binary.LittleEndian.Uint32(head[at:])) << 32
		}
	}
	return finish(x, y, seed)
}

// finish makes the hash of what identifies a flow.
func finish(x, y, seed uint64) uint32 {
	h := mix(mix(x^seed, 0x9e37_79b9_7f4a_7c15)^y, 0xe703_7ed1_a0b4_28db)
	return uint32(h>>32^h) | 1
}

// ethernetWords are the MAC addresses and the EtherType.
func ethernetWords(head []byte) (x, y uint64) {
	if len(head) < EthernetLen {
		return 0, 0
	}
	return binary.LittleEndian.Uint64(head), uint64(binary.LittleEndian.Uint32(head[8:]))<<16 | uint64(head[12])<<8 | uint64(head[13])
}

// mix multiplies to 128 bits and folds: every bit of both numbers reaches every bit of the result.
func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}
