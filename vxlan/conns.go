package vxlan

import (
	"encoding/binary"
	"math/bits"
	"sync/atomic"
	"time"

	"github.com/shuntio/shunt/dataplane/wire"
	"github.com/shuntio/shunt/vxlan/acl"
)

// conns are the flows that a port's rules have allowed, so that what answers them passes, too. It is the one table that several workers write: a reply may
// be judged by another worker than the packet it answers, and must find it. A note could come to a full ring; this cannot.
//
// Nobody waits: an entry's words are atomic, guard says whether they belong together (a sequence lock whose readers and writers both
// go elsewhere when they meet), and what changes in a live entry is one word that is compared and swapped.
//
// A flow has one of the ways of a set, chosen by its hash. A new one takes the place of a dead one, else of one that nobody has answered, else of the one
// silent for longest: what floods a port with flows can end only flows of that port, and those in use last.
type conns struct {
	sets []connSet
	seed uint64
	// begun counts flows: what was denied before one began may be its reply.
	begun atomic.Uint32
}

const connWays = 8

type connSet [connWays]conn

// conn is one flow, in a cache line.
type conn struct {
	guard  atomic.Uint64    // a sequence number in 32 bits, even: stable; above it the key's vlans
	key    [5]atomic.Uint64 // as in connKey
	state  atomic.Uint64    // see connState
	judged atomic.Uint64    // version of the rules<<32 | rule - acl.Always
}

// connKey names a flow as its port sees it: the addresses here and there, and ports<<32 | ports<<16 here and there, protocol, connIP. An ICMP request
// has its identifier in place of the port of the side that asks, and its type in place of the other one.
type connKey struct {
	here, there acl.Address
	last        uint64
	vlans       vlans
}

// vlans are the VLANs that a frame's tags put it in, the outermost above, in 13 bits each: the VID, and whether it is a service tag's (IEEE 802.1ad). A guest may
// have the same addresses in several.
type vlans uint32

// vlansOf reads them. A tag that gives a priority alone (VID 0) puts its frame in none.
func vlansOf(head []byte, tags int) (all vlans) {
	for at := 12; tags > 0; at, tags = at+wire.VLANLen, tags-1 {
		id := vlans(binary.BigEndian.Uint16(head[at+2:]) & 0xfff)
		if id == 0 {
			continue
		}
		if binary.BigEndian.Uint16(head[at:]) == wire.EtherTypeQinQ {
			id |= 1 << 12
		}
		all = all<<13 | id
	}
	return all
}

const (
	connIPv4 = 1
	connIPv6 = 2
)

// connState is, from the top: the tick of the last packet seen, in 32 bits; 24 bits that differ each time the entry is taken; flags.
type connState uint64

const (
	// connIn: the first packet went in to the port.
	connIn connState = 1 << iota
	// connAnswered: a packet went the other way.
	connAnswered
	// connFinished and connFinishedBack: the side that began it, or the other one, has sent its last TCP segment.
	connFinished
	connFinishedBack
	// connReset: one side has broken a TCP connection off.
	connReset

	connFlags = 1<<8 - 1
	connTag   = 1<<24 - 1
)

func (s connState) seen() uint32 { return uint32(s >> 32) }

// How long a flow outlives its last packet.
var (
	idleOpening = ticks(time.Minute)       // nobody has answered
	idleClosing = ticks(time.Minute)       // TCP has ended
	idleTCP     = ticks(124 * time.Minute) // RFC 5382, REQ-5
	idleUDP     = ticks(3 * time.Minute)   // RFC 4787, REQ-5
	idleICMP    = ticks(time.Minute)       // RFC 5508, REQ-1
	idleOther   = ticks(10 * time.Minute)
)

// idle is how long the flow may be silent.
func (s connState) idle(protocol uint8) uint32 {
	const finished = connFinished | connFinishedBack
	switch {
	case s&connReset != 0 || s&finished == finished:
		return idleClosing
	case s&connAnswered == 0:
		return idleOpening
	}
	switch protocol {
	case wire.ProtoTCP:
		return idleTCP
	case wire.ProtoUDP:
		return idleUDP
	case wire.ProtoICMPv4, wire.ProtoICMPv6:
		return idleICMP
	}
	return idleOther
}

// newConns makes room for so many flows.
func newConns(limit int, seed uint64) *conns {
	n := 1
	for n*connWays < limit {
		n *= 2
	}
	return &conns{sets: make([]connSet, n), seed: seed}
}

func (k *connKey) protocol() uint8 { return uint8(k.last >> 8) }

// set is where a flow would be. The seed keeps who chooses addresses from choosing sets.
func (c *conns) set(k *connKey) *connSet {
	h := fold(k.here.Hi^c.seed, k.here.Lo^0x9e37_79b9_7f4a_7c15)
	h = fold(h^k.there.Hi, k.there.Lo^c.seed)
	h = fold(h^k.last, c.seed^0xe703_7ed1_a0b4_28db^uint64(k.vlans))
	return &c.sets[h&uint64(len(c.sets)-1)]
}

func fold(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

// find returns the entry of a flow that lives, and its state.
func (c *conns) find(k *connKey, tick uint32) (*conn, connState) {
	set := c.set(k)
	for i := range set {
		e := &set[i]
		g := e.guard.Load()
		if vlans(g>>32) != k.vlans || e.key[4].Load() != k.last || e.key[3].Load() != k.there.Lo || e.key[1].Load() != k.here.Lo ||
			e.key[2].Load() != k.there.Hi || e.key[0].Load() != k.here.Hi {
			continue
		}
		s := connState(e.state.Load())
		if g&1 == 0 && e.guard.Load() == g && !s.over(k.protocol(), tick) {
			return e, s
		}
	}
	return nil, 0
}

func (s connState) over(protocol uint8, tick uint32) bool {
	return int32(tick-s.seen()) > int32(s.idle(protocol))
}

// touch notes a packet of a flow. If another worker was faster, or has given the entry to another flow, nothing happens.
func (e *conn) touch(s connState, flags connState, tick uint32) {
	if now := connState(tick)<<32 | s&(connTag<<8|connFlags) | flags; now != s {
		e.state.CompareAndSwap(uint64(s), uint64(now))
	}
}

// begin enters a flow.
func (c *conns) begin(k *connKey, flags connState, judged uint64, tick uint32) {
	set := c.set(k)
	for range connWays { // as often as others are at it
		if set.victim(tick).take(k, flags, judged, tick) {
			break
		}
	}
	c.begun.Add(1)
}

// victim is the entry that a new flow takes.
func (set *connSet) victim(tick uint32) *conn {
	best, worth := &set[0], uint64(1<<63)
	for i := range set {
		e := &set[i]
		s, last := connState(e.state.Load()), e.key[4].Load()
		if last == 0 || s.over(uint8(last>>8), tick) {
			return e
		}
		w := uint64(1<<32 - 1 - max(0, int64(int32(tick-s.seen()))))
		if s&connAnswered != 0 {
			w |= 1 << 32
		}
		if w < worth {
			best, worth = e, w
		}
	}
	return best
}

// take writes a flow into an entry; false if another worker writes to it.
func (e *conn) take(k *connKey, flags connState, judged uint64, tick uint32) bool {
	g := e.guard.Load()
	if g&1 != 0 || !e.guard.CompareAndSwap(g, g+1) {
		return false
	}
	e.key[0].Store(k.here.Hi)
	e.key[1].Store(k.here.Lo)
	e.key[2].Store(k.there.Hi)
	e.key[3].Store(k.there.Lo)
	e.key[4].Store(k.last)
	e.judged.Store(judged)
	e.state.Store(uint64(tick)<<32 | (g/2+1)&connTag<<8 | uint64(flags))
	e.guard.Store(uint64(k.vlans)<<32 | uint64(uint32(g)+2))
	return true
}

// end takes a flow out.
func (c *conns) end(k *connKey, tick uint32) {
	for range connWays {
		e, _ := c.find(k, tick)
		if e == nil {
			return
		}
		e.take(&connKey{}, 0, 0, tick)
	}
}
