package wire

import "encoding/binary"

const (
	// UDPLen is the length of a UDP header.
	UDPLen = 8
	// TCPMinLen is the length of a TCP header without options.
	TCPMinLen = 20
	// ICMPLen is the length of the part that all ICMP messages share.
	ICMPLen = 8
)

// UDP is a UDP header, with what follows it (RFC 768).
//
//	 0                   1                   2                   3
//	+-------------------------------+-------------------------------+
//	|          Source Port          |        Destination Port       |
//	+-------------------------------+-------------------------------+
//	|            Length             |           Checksum            |
//	+-------------------------------+-------------------------------+
type UDP []byte

// ParseUDP checks that the header is there and that Length is not shorter than it.
func ParseUDP(b []byte) (UDP, bool) {
	return UDP(b), len(b) >= UDPLen && UDP(b).Length() >= UDPLen
}

// SourcePort is the sender's port.
func (h UDP) SourcePort() uint16 { return binary.BigEndian.Uint16(h[0:2]) }

// DestinationPort is the receiver's port.
func (h UDP) DestinationPort() uint16 { return binary.BigEndian.Uint16(h[2:4]) }

// Length is that of header and payload.
func (h UDP) Length() uint16 { return binary.BigEndian.Uint16(h[4:6]) }

// Checksum covers pseudo header, header and payload; 0: none.
func (h UDP) Checksum() uint16 { return binary.BigEndian.Uint16(h[6:8]) }

// Payload is what is there of it.
func (h UDP) Payload() []byte { return h[UDPLen:min(len(h), max(int(h.Length()), UDPLen))] }

// Set writes the whole header.
func (h UDP) Set(source, destination, length, checksum uint16) {
	binary.BigEndian.PutUint16(h[0:2], source)
	binary.BigEndian.PutUint16(h[2:4], destination)
	binary.BigEndian.PutUint16(h[4:6], length)
	binary.BigEndian.PutUint16(h[6:8], checksum)
}

// TCP flags.
const (
	TCPFin = 1 << iota
	TCPSyn
	TCPRst
	TCPPsh
	TCPAck
	TCPUrg
	TCPEce
	TCPCwr
)

// TCP is a TCP header, with what follows it (RFC 9293).
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|          Source Port          |       Destination Port        |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|                        Sequence Number                        |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|                    Acknowledgment Number                      |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	| Offset| Rsrvd |C|E|U|A|P|R|S|F|            Window             |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|           Checksum            |         Urgent Pointer        |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|                           [Options]                           |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
type TCP []byte

// ParseTCP checks that the header with its options is there.
func ParseTCP(b []byte) (TCP, bool) {
	if len(b) < TCPMinLen {
		return nil, false
	}
	h := TCP(b)
	return h, h.HeaderLen() >= TCPMinLen && h.HeaderLen() <= len(b)
}

// Sequence is the number of the first payload byte.
func (h TCP) Sequence() uint32 { return binary.BigEndian.Uint32(h[4:8]) }

// HeaderLen is the length of the header with its options.
func (h TCP) HeaderLen() int { return int(h[12]>>4) * 4 }

// Flags are TCPFin and its neighbours.
func (h TCP) Flags() uint8 { return h[13] }

// ICMP message types that shunt judges.
const (
	ICMPv4EchoReply   = 0
	ICMPv4Unreachable = 3
	ICMPv4Echo        = 8

	ICMPv6PacketTooBig          = 2
	ICMPv6EchoRequest           = 128
	ICMPv6EchoReply             = 129
	ICMPv6RouterSolicitation    = 133
	ICMPv6RouterAdvertisement   = 134
	ICMPv6NeighborSolicitation  = 135
	ICMPv6NeighborAdvertisement = 136
)

// ICMPv4 is an ICMP message (RFC 792). Its checksum covers the message alone.
//
//	 0                   1                   2                   3
//	+---------------+---------------+-------------------------------+
//	|     Type      |     Code      |           Checksum            |
//	+---------------+---------------+-------------------------------+
//	|                       Rest of the header                      |
//	+---------------------------------------------------------------+
type ICMPv4 []byte

// Payload is what follows the eight bytes all messages share.
func (h ICMPv4) Payload() []byte { return h[ICMPLen:] }

// ICMPv6 is an ICMPv6 message (RFC 4443). Its checksum covers a pseudo header and the message.
//
//	 0                   1                   2                   3
//	+---------------+---------------+-------------------------------+
//	|     Type      |     Code      |           Checksum            |
//	+---------------+---------------+-------------------------------+
//	|                         Message body                          |
//	+---------------------------------------------------------------+
type ICMPv6 []byte

// Type is ICMPv6EchoRequest or one of its neighbours.
func (h ICMPv6) Type() uint8 { return h[0] }

// Code refines Type.
func (h ICMPv6) Code() uint8 { return h[1] }

// Payload is what follows the eight bytes all messages have.
func (h ICMPv6) Payload() []byte { return h[ICMPLen:] }

// NeighborTarget is the address that a neighbour solicitation asks about or an advertisement binds (RFC 4861, 4.3
// and 4.4); false if the message is none or too short.
func (h ICMPv6) NeighborTarget() ([16]byte, bool) {
	if t := h.Type(); t != ICMPv6NeighborSolicitation && t != ICMPv6NeighborAdvertisement || len(h) < ICMPLen+16 {
		return [16]byte{}, false
	}
	return [16]byte(h[ICMPLen : ICMPLen+16]), true
}
