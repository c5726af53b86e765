package offload

import (
	"encoding/binary"
	"sync/atomic"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/wire"
)

// Segmenter cuts one frame after the other:
//
//	s.Start(f) ──▶ the headers judged; their sums, less what differs from segment to segment
//	s.Next(pool) ──▶ a frame filled while it is still the pool's:  headers │ payload, copied and summed
//	                 lengths, identification, sequence, flags, checksums set ──▶ taken from the pool, the caller's
//
// The frame must stay where the worker finds it (in its slot of the vector) until the last segment is made: its body may be the memory of a guest,
// and reading it may fault. Then the frame is dropped by the worker, no segment is half made, and the next Start forgets the rest.
// The zero value is ready.
type Segmenter struct {
	head    []byte   // of the frame
	payload []byte   // what is left of the piece being copied
	body    [][]byte // the pieces after it
	layout
	size, rest, left int // payload of a segment; payload and segments still to come

	// Sums over the headers without what is set in each segment.
	tcp, ip uint16
	// Of the next segment.
	sequence uint32
	id       uint16
	flags    uint16 // with the data offset
	urgent   uint32 // how far its urgent data reaches; 0: none

	hash uint32
	made uint64 // segments, as segments will have it when the frame is done
	// Written by the worker, read by anybody.
	frames, segments atomic.Uint64
}

// Cut is how many frames were cut into how many segments, the ones under way not counted. Anybody may ask.
func (s *Segmenter) Cut() (frames, segments uint64) { return s.frames.Load(), s.segments.Load() }

// Start begins to cut a frame. It reports false, and why, if the frame is not to be had in segments; see Check.
func (s *Segmenter) Start(f *frame.Frame) (why dataplane.Reason, ok bool) {
	s.left = 0
	if s.layout, why, ok = examine(f); !ok {
		return why, false
	}
	s.head = f.Head()
	s.payload, s.body = s.head[s.headers:], f.Body()
	s.size, s.rest, s.hash = int(f.GSO.Size), f.Len()-s.headers, f.Hash
	s.left = max(1, (s.rest+s.size-1)/s.size)
	s.startTCP(f.Len() - s.transport)
	if !s.is6 {
		ip := wire.IPv4(s.head[s.network:])
		s.id = ip.ID()
		s.ip = wire.Sum(^ip.TotalLen(), ip[:ip.HeaderLen()])
		s.ip = wire.Add(wire.Add(s.ip, ^ip.ID()), ^ip.Checksum())
	}
	s.frames.Store(s.frames.Load() + 1)
	return 0, true
}

// startTCP takes what differs out of the TCP header's sum. The field of the checksum has that of the pseudo header, with the length of it all.
func (s *Segmenter) startTCP(length int) {
	tcp := wire.TCP(s.head[s.transport:s.headers])
	s.sequence, s.flags, s.urgent = tcp.Sequence(), get16(tcp[12:]), 0
	sum := wire.Add(wire.Sum(0, tcp), ^get16(tcp[4:]))
	sum = wire.Add(wire.Add(sum, ^get16(tcp[6:])), ^s.flags)
	if s.flags&wire.TCPUrg != 0 {
		s.urgent = uint32(get16(tcp[18:]))
	}
	sum = wire.Add(sum, ^get16(tcp[18:]))
	s.tcp = wire.Add(sum, ^wire.SumPseudo(nil, nil, 0, uint32(length)))
}

// Left is how many segments are still to come: after Next has failed, those that are not made for want of frames, to be counted under
// DropNoSegment.
func (s *Segmenter) Left() int { return s.left }

// Next returns the next segment, complete, of which the caller becomes the owner; false when there is none left, or the pool has no frame.
func (s *Segmenter) Next(pool *frame.Pool) (*frame.Frame, bool) {
	g := pool.Peek(0)
	if s.left == 0 || g == nil {
		s.segments.Store(s.made)
		return nil, false
	}
	n := min(s.size, s.rest)
	b := g.Append(s.headers + n)
	if b == nil {
		return s.nextLong(pool, n)
	}
	copy(b, s.head[:s.headers])
	payload := b[s.headers:]
	s.read(payload)
	s.write(b, n, wire.Sum(0, payload))
	g = pool.Get()
	g.Append(len(b))
	return s.emit(g, n), true
}

// nextLong is Next for a segment that does not fit into a chunk: what follows the first one's lies in others, which the frame owns.
func (s *Segmenter) nextLong(pool *frame.Pool, n int) (*frame.Frame, bool) {
	g := pool.Peek(0)
	first := g.Room() &^ 1 // what follows begins at an even byte, so its sum can be added as it is
	chunks := (s.headers + n - first + frame.ChunkSize - 1) / frame.ChunkSize
	if pool.Peek(chunks) == nil {
		s.segments.Store(s.made)
		return nil, false
	}
	head := g.Append(first)
	copy(head, s.head[:s.headers])
	s.read(head[s.headers:])
	sum := wire.Sum(0, head[s.headers:])
	end := s.headers + n
	for i, at := 1, first; at < end; i, at = i+1, at+frame.ChunkSize {
		h := pool.Peek(i)
		h.SetHead(0, uint32(min(end-at, frame.ChunkSize)))
		s.read(h.Head())
		sum = wire.Sum(sum, h.Head())
	}
	s.write(head, n, sum)
	g = pool.Get()
	g.Append(first)
	for at := first; at < end; at += frame.ChunkSize {
		h := pool.Get()
		h.SetHead(0, uint32(min(end-at, frame.ChunkSize)))
		g.Attach(h, 0) // at most 17 pieces
	}
	return s.emit(g, n), true
}

// read copies the next bytes of the payload. It may fault.
func (s *Segmenter) read(to []byte) {
	for {
		n := copy(to, s.payload)
		to, s.payload = to[n:], s.payload[n:]
		if len(to) == 0 || len(s.body) == 0 {
			return
		}
		s.payload, s.body = s.body[0], s.body[1:]
	}
}

// write makes the headers those of the next segment, which has n bytes of payload and sum over them.
func (s *Segmenter) write(b []byte, n int, sum uint16) {
	flags := s.flags
	if s.left > 1 {
		flags &^= wire.TCPFin | wire.TCPPsh
	}
	urgent := uint16(s.urgent)
	if s.urgent == 0 {
		flags &^= wire.TCPUrg // passed; or there was none
	}
	tcp := b[s.transport:]
	sum = wire.Add(wire.Add(sum, s.tcp), uint16(s.headers-s.transport+n))
	sum = wire.Add(wire.Add(sum, uint16(s.sequence>>16)), uint16(s.sequence))
	sum = wire.Add(wire.Add(sum, flags), urgent)
	if sum == 0xffff {
		sum = 0 // as wire.Complete has it: the two mean the same
	}
	binary.BigEndian.PutUint32(tcp[4:], s.sequence)
	set16(tcp[12:], flags)
	set16(tcp[checksumOffset:], ^sum)
	set16(tcp[18:], urgent)

	ip := b[s.network:]
	length := uint16(s.headers - s.network + n)
	if s.is6 {
		set16(ip[4:], length-wire.IPv6Len)
		return
	}
	set16(ip[2:], length)
	set16(ip[4:], s.id)
	set16(ip[10:], ^wire.Add(wire.Add(s.ip, length), s.id))
}

// emit goes on to the next segment.
func (s *Segmenter) emit(g *frame.Frame, n int) *frame.Frame {
	g.Hash, g.Checksum.Valid = s.hash, true
	s.left--
	s.rest -= n
	s.sequence += uint32(n)
	s.urgent -= min(s.urgent, uint32(n)) // it counts from the segment's first byte (RFC 9293, 3.8.5)
	s.id++                               // a datagram of its own; those who reassemble must not take it for another's fragment (RFC 6864, 4.2)
	s.flags &^= wire.TCPCwr              // says once that the window was halved (RFC 3168, 6.1.2)
	s.made++
	if s.left == 0 {
		s.segments.Store(s.made)
		s.head, s.payload, s.body = nil, nil, nil // what was borrowed is not looked at any more
	}
	return g
}
