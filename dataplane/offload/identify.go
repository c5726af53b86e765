package offload

import (
	"encoding/binary"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/wire"
)

// segment is what the headers of a TCP segment say.
type segment struct {
	layout
	payload  int
	sequence uint32
	plain    bool // of the kind that is merged
	push     bool
}

// kind is what a frame is to the Coalescer.
type kind uint8

const (
	// foreign frames are not TCP, or not of an IP version that the port takes merged: they have no order with what is merged.
	foreign kind = iota
	// obscure ones may be of any flow: fragments, headers beyond the head.
	obscure
	// known ones belong to the flow that their headers name.
	known
)

// identify reads a frame's headers. payload is 0 unless it can be merged.
func (s *segment) identify(f *frame.Frame, takes uint32) kind {
	head := f.Head()
	at := wire.Locate(head)
	wanted := uint32(dataplane.OffloadTSO4)
	switch at.EtherType {
	case wire.EtherTypeIPv4:
	case wire.EtherTypeIPv6:
		wanted, s.is6 = dataplane.OffloadTSO6, true
	default:
		return foreign
	}
	switch {
	case takes&wanted == 0:
		return foreign
	case at.Broken:
		return obscure
	case at.Protocol != wire.ProtoTCP:
		return foreign
	case at.Fragment || int(at.Transport) > len(head):
		return obscure
	}
	tcp, ok := wire.ParseTCP(head[at.Transport:])
	if !ok {
		return obscure
	}
	s.network, s.transport = int(at.Network), int(at.Transport)
	s.headers = s.transport + tcp.HeaderLen()
	s.sequence, s.push = tcp.Sequence(), tcp.Flags()&wire.TCPPsh != 0
	if s.plain = f.GSO.Type == frame.GSONone && s.plainIP(head, f.Len()) && plainTCP(tcp) && trusted(f, at.Transport); s.plain {
		s.payload = f.Len() - s.headers
	}
	return known
}

// plainIP tells whether the IP header has no options or extensions, is right, and ends where the frame ends.
func (s *segment) plainIP(head []byte, length int) bool {
	if s.is6 {
		return s.transport == s.network+wire.IPv6Len && int(wire.IPv6(head[s.network:]).PayloadLen()) == length-s.transport
	}
	ip := wire.IPv4(head[s.network:])
	return s.transport == s.network+wire.IPv4MinLen && int(ip.TotalLen()) == length-s.network && ip.ChecksumValid()
}

// plainTCP tells whether the header says nothing but ACK, PSH and ECE: SYN, FIN and RST have a place in the sequence of their own, URG points to a
// byte, CWR is said once (RFC 3168, 6.1.2), and what the reserved bits mean nobody knows.
func plainTCP(h wire.TCP) bool {
	return h[12]&0x0f == 0 && h.Flags()&^(wire.TCPPsh|wire.TCPEce) == wire.TCPAck && get16(h[18:]) == 0
}

// trusted tells whether a checksum that is to be filled in is TCP's; one that is there will be verified.
func trusted(f *frame.Frame, transport uint16) bool {
	return !f.Checksum.Needed || f.Checksum.Start == transport && f.Checksum.Offset == checksumOffset
}

// key is the flow's addresses and ports in one number. Others may have the same.
func (s *segment) key(head []byte) uint64 {
	k := uint64(binary.LittleEndian.Uint32(head[s.transport:])) * 0x9e37_79b9_7f4a_7c15
	if !s.is6 {
		return k ^ binary.LittleEndian.Uint64(head[s.network+12:])
	}
	ip := head[s.network:]
	return k ^ binary.LittleEndian.Uint64(ip[16:]) ^ binary.LittleEndian.Uint64(ip[32:])
}

// verify tells whether a segment's checksum is right, or is not there yet since the segment never left this machine.
func (s *segment) verify(f *frame.Frame) bool {
	if f.Checksum.Valid || f.Checksum.Needed {
		return true
	}
	head := f.Head()
	addresses := head[s.network+12 : s.network+20]
	if s.is6 {
		addresses = head[s.network+8 : s.network+40]
	}
	sum := wire.SumPseudo(addresses, nil, wire.ProtoTCP, uint32(f.Len()-s.transport))
	f.Checksum.Valid = wire.SumPieces(sum, head[s.transport:], f.Body()) == 0xffff
	return f.Checksum.Valid
}
