package offload

import (
	"bytes"
	"encoding/binary"
	"sync/atomic"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/wire"
)

// Coalescer merges segments:
//
//	c.Merge(vector) ──▶ identify each frame: its flow, and whether a segment of its kind can be merged at all
//	                    ├─ it continues its flow ──▶ both checksums verified, payload attached to the first one's frame, slot emptied
//	                    ├─ it does not ──▶ the flow is finished; the frame may begin it anew
//	                    └─ nobody's, or not to be identified ──▶ it stays, and ends what it might overtake
//	finish ──▶ the first one's headers made those of the whole, GSO and Checksum set
//
// Nothing is held back for a later vector, so nothing waits. Frames of a flow keep their order: a merged frame takes the place of its first segment, and
// whatever else of the flow comes along ends it. The zero value is ready.
type Coalescer struct {
	flows [maxFlows]flow
	used  int
	evict int // the next to give way

	merged, absorbed uint64 // of this worker; published at the end of Merge
	stats            struct{ merged, absorbed atomic.Uint64 }
}

const (
	// maxFlows bounds the flows of one vector that are merged at a time; with more, one is finished early.
	maxFlows = 8
	// copyLen is up to how many bytes of payload are copied behind the first one's, whose chunk has room, rather than attached: that is as fast,
	// and the segment's own chunk is free at once.
	copyLen = 128
)

// flow is a frame that segments may be merged into.
type flow struct {
	key      uint64
	head     *frame.Frame
	segment         // the first one's
	next     uint32 // the sequence number that goes on
	id       uint16 // the IPv4 identification of the first
	count    uint16 // segments
	verified bool   // the first one's checksum
	push     bool
}

// Counts is how many frames were merged of segments, and how many segments have gone into another one's frame: so many frames less leave the port than were
// sent to it. Anybody may ask.
func (c *Coalescer) Counts() (merged, absorbed uint64) {
	return c.stats.merged.Load(), c.stats.absorbed.Load()
}

// Merge merges what it can of a vector that goes to one port, of which takes says which offloads it takes (dataplane's Offload bits). It returns how many frames are left, in front and in
// order; the slots behind them are nil. The pool gets those that are not needed any more.
//
// It reads bodies, to verify checksums, which may fault if they are borrowed: every frame is in its slot then, or belongs to one that is.
func (c *Coalescer) Merge(frames []*frame.Frame, pool *frame.Pool, takes uint32) int {
	const tso = dataplane.OffloadTSO4 | dataplane.OffloadTSO6
	if takes&dataplane.OffloadChecksum == 0 || takes&tso == 0 || len(frames) < 2 {
		return len(frames)
	}
	c.used, c.evict = 0, 0 // a fault may have ended the last call
	before := c.absorbed
	for i, f := range frames {
		if c.take(f, pool, takes) {
			frames[i] = nil
			c.absorbed++
		}
	}
	for i := range c.used {
		c.finish(&c.flows[i])
	}
	if c.absorbed == before {
		return len(frames)
	}
	c.stats.absorbed.Store(c.absorbed)
	c.stats.merged.Store(c.merged)
	n := 0
	for i, f := range frames {
		if f != nil {
			frames[i], frames[n] = nil, f
			n++
		}
	}
	return n
}

// take reports whether the frame has become part of another one.
func (c *Coalescer) take(f *frame.Frame, pool *frame.Pool, takes uint32) bool {
	var s segment
	switch s.identify(f, takes) {
	case foreign:
		return false
	case obscure:
		for c.used > 0 {
			c.end(0)
		}
		return false
	}
	key := s.key(f.Head())
	for i := range c.used {
		o := &c.flows[i]
		if o.key != key || !o.same(f.Head(), &s) {
			continue
		}
		if s.payload == 0 || !o.continued(f, &s) || !o.absorb(f, &s, pool) {
			c.end(i)
			break
		}
		if s.payload < o.payload || o.push {
			c.end(i) // the last of what was sent at once
		}
		return true
	}
	if s.payload >= MinSize && !s.push {
		c.begin(f, &s, key)
	}
	return false
}

// begin enters a flow.
func (c *Coalescer) begin(f *frame.Frame, s *segment, key uint64) {
	if c.used == maxFlows {
		c.finish(&c.flows[c.evict])
		c.flows[c.evict] = c.flows[c.used-1]
		c.used--
		c.evict = (c.evict + 1) % maxFlows
	}
	o := &c.flows[c.used]
	c.used++
	*o = flow{key: key, head: f, segment: *s, next: s.sequence + uint32(s.payload), count: 1}
	if !s.is6 {
		o.id = wire.IPv4(f.Head()[s.network:]).ID()
	}
}

// end finishes a flow: the next segment begins another one.
func (c *Coalescer) end(i int) {
	c.finish(&c.flows[i])
	c.used--
	c.flows[i] = c.flows[c.used]
}

// same tells whether a segment is of the flow: one connection, between the same stations.
func (o *flow) same(b []byte, s *segment) bool {
	a := o.head.Head()
	if o.is6 != s.is6 || o.network != s.network || !bytes.Equal(a[:o.network], b[:s.network]) {
		return false
	}
	from, to := 12, 20
	if o.is6 {
		from, to = 8, 40
	}
	return bytes.Equal(a[o.network+from:o.network+to], b[s.network+from:s.network+to]) &&
		bytes.Equal(a[o.transport:o.transport+4], b[s.transport:s.transport+4])
}

// continued tells whether a segment says in its headers what the flow's first one said, and goes on where the flow ends: so that the headers of
// the whole will be lacking nothing.
func (o *flow) continued(f *frame.Frame, s *segment) bool {
	a, b := o.head.Head(), f.Head()
	switch {
	case !s.plain || s.sequence != o.next || s.payload > o.payload:
		return false
	case o.head.Len()-o.network+s.payload > maxPacket:
		return false
	}
	x, y := a[o.network:], b[s.network:]
	if o.is6 {
		if get32(x) != get32(y) || x[7] != y[7] { // version, traffic class, flow label; hop limit
			return false
		}
	} else {
		// TOS, the don't-fragment bit, TTL. The identification of a packet with that bit means nothing (RFC 6864, 4.1); of others, it counts.
		if x[1] != y[1] || x[6] != y[6] || x[8] != y[8] {
			return false
		}
		if x[6]&0x40 == 0 && get16(y[4:]) != o.id+o.count {
			return false
		}
	}
	x, y = a[o.transport:o.headers], b[s.transport:s.headers]
	return get32(x[8:]) == get32(y[8:]) && (x[13]^y[13])&^wire.TCPPsh == 0 && get16(x[14:]) == get16(y[14:]) && // acknowledgment, flags, window
		bytes.Equal(x[wire.TCPMinLen:], y[wire.TCPMinLen:])
}

// absorb puts a segment's payload behind the flow's.
func (o *flow) absorb(f *frame.Frame, s *segment, pool *frame.Pool) bool {
	if !o.verified {
		if !o.segment.verify(o.head) {
			return false
		}
		o.verified = true
	}
	if !s.verify(f) {
		return false
	}
	if s.payload <= copyLen && len(f.Body()) == 0 && len(o.head.Body()) == 0 && o.head.Room() >= s.payload {
		copy(o.head.Append(s.payload), f.Head()[s.headers:])
		pool.Put(f)
	} else if !o.head.Attach(f, s.headers) {
		return false
	}
	o.next += uint32(s.payload)
	o.count++
	o.push = s.push
	return true
}

// finish makes the headers of the flow's first segment those of what has been merged into it.
func (c *Coalescer) finish(o *flow) {
	if o.count == 1 {
		return
	}
	c.merged++
	f := o.head
	b := f.Head()
	ip, tcp := b[o.network:], b[o.transport:o.headers]
	length := f.Len() - o.network
	f.GSO = frame.GSO{Type: frame.GSOTCP4, Size: uint16(o.payload)}
	var pseudo uint16
	if o.is6 {
		f.GSO.Type = frame.GSOTCP6
		set16(ip[4:], uint16(length-wire.IPv6Len))
		pseudo = wire.SumPseudo(ip[8:24], ip[24:40], wire.ProtoTCP, uint32(f.Len()-o.transport))
	} else {
		set16(ip[10:], wire.Update(get16(ip[10:]), get16(ip[2:]), uint16(length)))
		set16(ip[2:], uint16(length))
		pseudo = wire.SumPseudo(ip[12:16], ip[16:20], wire.ProtoTCP, uint32(f.Len()-o.transport))
	}
	if o.push {
		tcp[13] |= wire.TCPPsh
	}
	set16(tcp[checksumOffset:], pseudo)
	f.Checksum = frame.Checksum{Needed: true, Start: uint16(o.transport), Offset: checksumOffset}
}

func get32(b []byte) uint32 { return binary.BigEndian.Uint32(b) }
