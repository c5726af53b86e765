package wire

import "encoding/binary"

// IP protocol numbers, IPv6 extension headers among them.
const (
	ProtoHopByHop    = 0
	ProtoICMPv4      = 1
	ProtoTCP         = 6
	ProtoUDP         = 17
	ProtoRouting     = 43
	ProtoFragment    = 44
	ProtoESP         = 50
	ProtoAH          = 51
	ProtoICMPv6      = 58
	ProtoNoNext      = 59
	ProtoDestOptions = 60
	ProtoMobility    = 135
	ProtoHIP         = 139
	ProtoShim6       = 140
)

const (
	// IPv4MinLen is the length of an IPv4 header without options.
	IPv4MinLen = 20
	// IPv6Len is the length of an IPv6 header without extension headers.
	IPv6Len = 40
	// MaxExtensions bounds how many extension headers of one packet are looked at.
	MaxExtensions = 8
)

// IPv4 is an IPv4 header, with what follows it (RFC 791).
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|Version|  IHL  |    DSCP   |ECN|          Total Length         |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|         Identification        |Flags|      Fragment Offset    |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|  Time to Live |    Protocol   |         Header Checksum       |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|                       Source Address                          |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|                    Destination Address                        |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|                    Options                    |    Padding    |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
type IPv4 []byte

// ParseIPv4 checks version and lengths: the header with its options is there, and the packet is not shorter than it.
func ParseIPv4(b []byte) (IPv4, bool) {
	if len(b) < IPv4MinLen {
		return nil, false
	}
	h := IPv4(b)
	n := h.HeaderLen()
	return h, b[0]>>4 == 4 && n >= IPv4MinLen && n <= len(b) && int(h.TotalLen()) >= n
}

// HeaderLen is the length of the header with its options.
func (h IPv4) HeaderLen() int { return int(h[0]&0x0f) * 4 }

// TOS is DSCP and ECN.
func (h IPv4) TOS() uint8 { return h[1] }

// SetTOS changes DSCP and ECN, and with them the header's checksum.
func (h IPv4) SetTOS(tos uint8) {
	from := binary.BigEndian.Uint16(h[0:2])
	h[1] = tos
	binary.BigEndian.PutUint16(h[10:12], Update(h.Checksum(), from, binary.BigEndian.Uint16(h[0:2])))
}

// TotalLen is the length of header and payload.
func (h IPv4) TotalLen() uint16 { return binary.BigEndian.Uint16(h[2:4]) }

// ID names the datagram that fragments belong to.
func (h IPv4) ID() uint16 { return binary.BigEndian.Uint16(h[4:6]) }

// DontFragment tells whether routers must not cut the packet.
func (h IPv4) DontFragment() bool { return h[6]&0x40 != 0 }

// MoreFragments tells whether other fragments follow.
func (h IPv4) MoreFragments() bool { return h[6]&0x20 != 0 }

// FragmentOffset is where in the datagram the payload belongs, in bytes.
func (h IPv4) FragmentOffset() int { return int(binary.BigEndian.Uint16(h[6:8])&0x1fff) * 8 }

// IsFragment tells whether the packet is less than its datagram.
func (h IPv4) IsFragment() bool { return binary.BigEndian.Uint16(h[6:8])&0x3fff != 0 }

// TTL is how many more routers may forward the packet.
func (h IPv4) TTL() uint8 { return h[8] }

// Protocol is the type of the payload.
func (h IPv4) Protocol() uint8 { return h[9] }

// Checksum is that of the header.
func (h IPv4) Checksum() uint16 { return binary.BigEndian.Uint16(h[10:12]) }

// Source is the sender's address, four bytes.
func (h IPv4) Source() []byte { return h[12:16] }

// Destination is the receiver's address, four bytes.
func (h IPv4) Destination() []byte { return h[16:20] }

// Payload is what is there of it.
func (h IPv4) Payload() []byte {
	return h[h.HeaderLen():min(len(h), max(int(h.TotalLen()), h.HeaderLen()))]
}

// ChecksumValid verifies the header's checksum.
func (h IPv4) ChecksumValid() bool {
	if h[0] == 0x45 {
		return sum20((*[IPv4MinLen]byte)(h)) == 0xffff
	}
	return Sum(0, h[:h.HeaderLen()]) == 0xffff
}

// SetChecksum computes the header's checksum over what is there and writes it.
func (h IPv4) SetChecksum() {
	h[10], h[11] = 0, 0
	binary.BigEndian.PutUint16(h[10:12], ^Sum(0, h[:h.HeaderLen()]))
}

// IPv4Fields are what Set writes; the rest of the header is fixed: no options, no fragment.
type IPv4Fields struct {
	TOS          uint8
	TotalLen     uint16
	ID           uint16
	DontFragment bool
	TTL          uint8
	Protocol     uint8
	Source       [4]byte
	Destination  [4]byte
}

// Set writes a header without options, checksum included.
func (h IPv4) Set(f IPv4Fields) {
	h[0], h[1] = 0x45, f.TOS
	binary.BigEndian.PutUint16(h[2:4], f.TotalLen)
	binary.BigEndian.PutUint16(h[4:6], f.ID)
	h[6], h[7] = 0, 0
	if f.DontFragment {
		h[6] = 0x40
	}
	h[8], h[9] = f.TTL, f.Protocol
	copy(h[12:16], f.Source[:])
	copy(h[16:20], f.Destination[:])
	h.SetChecksum()
}

// IPv6 is an IPv6 header, with what follows it (RFC 8200).
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|Version| Traffic Class |           Flow Label                  |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|         Payload Length        |  Next Header  |   Hop Limit   |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|                                                               |
//	+                                                               +
//	|                                                               |
//	+                         Source Address                        +
//	|                                                               |
//	+                                                               +
//	|                                                               |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|                                                               |
//	+                                                               +
//	|                                                               |
//	+                      Destination Address                      +
//	|                                                               |
//	+                                                               +
//	|                                                               |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
type IPv6 []byte

// ParseIPv6 checks version and length.
func ParseIPv6(b []byte) (IPv6, bool) {
	return IPv6(b), len(b) >= IPv6Len && b[0]>>4 == 6
}

// TrafficClass is DSCP and ECN.
func (h IPv6) TrafficClass() uint8 { return uint8(binary.BigEndian.Uint16(h[0:2]) >> 4) }

// SetTrafficClass changes DSCP and ECN.
func (h IPv6) SetTrafficClass(class uint8) {
	h[0], h[1] = h[0]&0xf0|class>>4, h[1]&0x0f|class<<4
}

// FlowLabel is 20 bits that are the same for all packets of a flow.
func (h IPv6) FlowLabel() uint32 { return binary.BigEndian.Uint32(h[0:4]) & 0xf_ffff }

// PayloadLen is the length of what follows the header, extension headers included.
func (h IPv6) PayloadLen() uint16 { return binary.BigEndian.Uint16(h[4:6]) }

// NextHeader is the type of the payload, or of the first extension header.
func (h IPv6) NextHeader() uint8 { return h[6] }

// HopLimit is how many more routers may forward the packet.
func (h IPv6) HopLimit() uint8 { return h[7] }

// Source is the sender's address, 16 bytes.
func (h IPv6) Source() []byte { return h[8:24] }

// Destination is the receiver's address, 16 bytes.
func (h IPv6) Destination() []byte { return h[24:40] }

// Payload is what is there of it.
func (h IPv6) Payload() []byte { return h[IPv6Len:min(len(h), IPv6Len+int(h.PayloadLen()))] }

// IPv6Fields are what Set writes.
type IPv6Fields struct {
	TrafficClass uint8
	FlowLabel    uint32
	PayloadLen   uint16
	NextHeader   uint8
	HopLimit     uint8
	Source       [16]byte
	Destination  [16]byte
}

// Set writes the whole header.
func (h IPv6) Set(f IPv6Fields) {
	binary.BigEndian.PutUint32(h[0:4], 6<<28|uint32(f.TrafficClass)<<20|f.FlowLabel&0xf_ffff)
	binary.BigEndian.PutUint16(h[4:6], f.PayloadLen)
	h[6], h[7] = f.NextHeader, f.HopLimit
	copy(h[8:24], f.Source[:])
	copy(h[24:40], f.Destination[:])
}

// Upper is where the extension headers of an IPv6 packet end.
type Upper struct {
	// Protocol is that of the header at Offset, counted from the IPv6 header.
	Protocol uint8
	Offset   int
	// Fragment tells that the packet is less than its datagram, Later that it is not its first fragment: what lies at
	// Offset is then no header.
	Fragment, Later bool
}

// Upper walks the extension headers (RFC 8200, 4). It reports false if they do not end within the bytes that are there, or
// are more than MaxExtensions. It stops at what can't be walked: a later fragment, ESP, no next header.
func (h IPv6) Upper() (Upper, bool) {
	u := Upper{Protocol: h.NextHeader(), Offset: IPv6Len}
	for range MaxExtensions + 1 {
		n := 8
		switch u.Protocol {
		case ProtoHopByHop, ProtoRouting, ProtoDestOptions, ProtoMobility, ProtoHIP, ProtoShim6:
			if len(h) < u.Offset+8 {
				return u, false
			}
			n = (int(h[u.Offset+1]) + 1) * 8
		case ProtoAH: // counts in 4 bytes, less 2 (RFC 4302, 2.2)
			if len(h) < u.Offset+8 {
				return u, false
			}
			n = (int(h[u.Offset+1]) + 2) * 4
		case ProtoFragment:
			if len(h) < u.Offset+8 {
				return u, false
			}
			field := binary.BigEndian.Uint16(h[u.Offset+2:])
			u.Fragment = u.Fragment || field&0xfff9 != 0
			if field&0xfff8 != 0 {
				u.Later = true
				u.Protocol = h[u.Offset]
				u.Offset += 8
				return u, true
			}
		default:
			return u, true
		}
		u.Protocol = h[u.Offset]
		u.Offset += n
	}
	return u, false
}
