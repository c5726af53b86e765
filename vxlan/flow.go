package vxlan

import (
	"encoding/binary"
	"math"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/wire"
	"github.com/shuntio/shunt/vxlan/acl"
)

// flows are what one worker has decided of the flows of one port, or of those that come to one network from the wire: the flow cache. The second
// packet of a flow costs a comparison with what the first one showed, however many rules, addresses and entries there are.
//
//	frame ─▶ key: the words of the head that decisions are made by ─▶ the flow of the frame before? ─▶ the verdict
//	                                                                └▶ hash ─▶ a set of four, by tags ┴▶ decide, and keep
//
// A verdict is kept for one tick and no longer. So the first packet of a flow in each tick goes the whole way, where addresses and connections are noted as
// alive, and whatever depends on time needs no other rule. Within a tick a verdict stands as long as what it was made of:
//
//   - the configuration of the network and its ports: generation;
//   - the places of addresses that were learned: the epochs of the rings that hold them;
//   - what was denied, until a connection begins whose reply it might be.
//
// A connection that others push out of a port's table in the middle of a tick ends with the tick.
//
// Kept are unicast frames with a known destination: TCP and UDP without options, extensions and fragments, and what is no IP but for ARP. Not those
// that open or end a TCP connection at a port with a filter. An entry holds no pointer, and each port has entries of its own, so
// that a flood of flows evicts only flows of the port it comes from.
type flows struct {
	tags    []uint32 // hashes, four to a set
	entries []flow
	mask    uint32 // sets-1
	turn    uint32 // whose entry is evicted next
	last    uint32 // the entry used last
}

const flowWays = 4

// flow is an entry: one cache line for IPv4 and what is no IP, two with an IPv6 header anywhere.
type flow struct {
	key        [4]uint64
	outer      uint32 // the end of the VTEP's address
	generation uint32
	tick       uint32
	epochs     uint32
	hash       uint32
	to         place
	rules      ruling
	why        dataplane.Reason
	depends    depends
	_          uint16

	rest   [3]uint64 // of the addresses of IPv6
	outer6 address   // the VTEP's, over IPv6
	_      [24]byte
}

type depends uint8

// What a verdict depends on.
const (
	// byOut, byIn: a filter judged it, at the port it comes from or goes to.
	byOut depends = 1 << iota
	byIn
	// byDenial: it is dropped.
	byDenial
	// bySource, byDestination: its source or destination was learned.
	bySource
	byDestination

	// byEpoch: what it depends on may end in the middle of a tick.
	byEpoch = byDenial | bySource | byDestination
)

// flowKey is what the head of a frame shows of its flow.
type flowKey struct {
	words [4]uint64 // MAC addresses and EtherType; protocol and ports; addresses, or their beginning
	rest  [3]uint64 // of the addresses of IPv6
	is6   bool
	tcp   uint8 // flags; 0: not TCP
	ok    bool

	source address // the VTEP that it came from, with wide set if that is IPv6; zero: a guest
	wide   bool
}

func newFlows(n int) *flows {
	sets := 1
	for sets*flowWays < n {
		sets *= 2
	}
	return &flows{tags: make([]uint32, sets*flowWays), entries: make([]flow, sets*flowWays), mask: uint32(sets - 1)}
}

// Masks of the second word of a frame: MAC address, EtherType, and of IP what may not change the verdict taken out: DSCP, ECN, flow label.
const (
	wordEther = 0x0000_ffff_ffff_ffff
	wordIPv4  = 0x00ff_ffff_ffff_ffff
	wordIPv6  = 0x00f0_ffff_ffff_ffff
	typeIPv4  = 0x0008 // EtherTypes as they lie in the word
	typeIPv6  = 0xdd86
	typeARP   = 0x0608
	typeRARP  = 0x3580
	typeVLAN  = 0x0081
	typeQinQ  = 0xa888
)

// read fills in the key of a frame; not ok if its flow is not kept.
func (k *flowKey) read(head []byte) bool {
	k.ok = false
	if len(head) < 42 {
		return false
	}
	k.words[0] = binary.LittleEndian.Uint64(head)
	if k.words[0]&1 != 0 {
		return false // to a group
	}
	second := binary.LittleEndian.Uint64(head[8:])
	switch uint16(second >> 32) {
	case typeIPv4:
		return k.read4(head, second)
	case typeIPv6:
		return k.read6(head, second)
	case typeARP, typeRARP, typeVLAN, typeQinQ:
		return false
	}
	k.words[1], k.words[2], k.words[3] = second&wordEther, 0, 0
	k.is6, k.tcp, k.ok = false, 0, true
	return true
}

// read4 wants a header of 20 bytes, no fragment, and TCP or UDP wholly in the packet.
func (k *flowKey) read4(head []byte, second uint64) bool {
	h := (*[28]byte)(head[14:])
	length := binary.BigEndian.Uint16(h[2:])
	if h[0] != 0x45 || binary.BigEndian.Uint16(h[6:])&0x3fff != 0 {
		return false
	}
	k.tcp = 0
	switch h[9] {
	case wire.ProtoUDP:
		if length < 28 {
			return false
		}
	case wire.ProtoTCP:
		if length < 40 || len(head) < 54 {
			return false
		}
		k.tcp = head[47]
	default:
		return false
	}
	k.words[1] = second & wordIPv4
	k.words[2] = uint64(h[9]) | uint64(binary.LittleEndian.Uint32(h[20:]))<<32
	k.words[3] = binary.LittleEndian.Uint64(h[12:])
	k.is6, k.ok = false, true
	return true
}

// read6 wants no extension headers.
func (k *flowKey) read6(head []byte, second uint64) bool {
	if len(head) < 62 {
		return false
	}
	h := (*[48]byte)(head[14:])
	length := binary.BigEndian.Uint16(h[4:])
	if h[0]>>4 != 6 {
		return false
	}
	k.tcp = 0
	switch h[6] {
	case wire.ProtoUDP:
		if length < 8 {
			return false
		}
	case wire.ProtoTCP:
		if length < 20 || len(head) < 74 {
			return false
		}
		k.tcp = head[67]
	default:
		return false
	}
	k.words[1] = second & wordIPv6
	k.words[2] = uint64(h[6]) | uint64(binary.LittleEndian.Uint32(h[40:]))<<32
	k.words[3] = binary.LittleEndian.Uint64(h[8:])
	k.rest[0] = binary.LittleEndian.Uint64(h[16:])
	k.rest[1] = binary.LittleEndian.Uint64(h[24:])
	k.rest[2] = binary.LittleEndian.Uint64(h[32:])
	k.is6, k.ok = true, true
	return true
}

// is tells whether an entry is of the key's flow, of this configuration and tick.
func (e *flow) is(k *flowKey, generation, tick uint32) bool {
	if e.key != k.words || e.tick != tick || e.generation != generation || e.outer != uint32(k.source.low) {
		return false
	}
	return !k.is6 && !k.wide || (!k.is6 || e.rest == k.rest) && (!k.wide || e.outer6 == k.source)
}

// find returns the entry of a frame's flow; nil if there is none of this configuration and tick. The frame has its hash then.
func (c *flows) find(l *lane, generation uint32, f *frame.Frame) *flow {
	k := &l.key
	if e := &c.entries[c.last]; e.is(k, generation, l.tick) {
		f.Hash = e.hash
		return e
	}
	f.Hash = wire.FlowHash(f.Head(), l.sw.seed)
	first := f.Hash & c.mask * flowWays
	for i, tag := range (*[flowWays]uint32)(c.tags[first:]) {
		if tag != f.Hash {
			continue
		}
		if e := &c.entries[first+uint32(i)]; e.is(k, generation, l.tick) {
			c.last = first + uint32(i)
			return e
		}
	}
	return nil
}

// recall returns what was decided of a frame's flow in this tick; nil if that is to be decided. p is nil for frames from the wire.
func (l *lane) recall(c *flows, nw *network, p *port, f *frame.Frame) *flow {
	if l.uncached || !l.key.read(f.Head()) || f.Len() > nw.maxFrame || f.GSO.Type != frame.GSONone {
		return nil
	}
	e := c.find(l, nw.generation, f)
	switch ends := l.key.tcp & tcpEnds; {
	case e == nil:
		return nil
	case e == l.same && ends == 0:
	case e.depends&byEpoch != 0 && e.epochs != l.epochs(e.depends, nw, p, e.to), e.rules != 0 && ends != 0:
		return nil
	default:
		if e.rules != l.rules || e.rules != 0 && e.to != l.ruled {
			l.turn(e, p)
		}
		l.same = e
	}
	l.run++
	return e
}

// sendKnown is send for a frame whose flow is known. The usual one lacks nothing, and goes to a port or into a tunnel over IPv4.
func (l *lane) sendKnown(from *dataplane.Link, in **frame.Frame, nw *network, source *port, e *flow) {
	f := *in
	if !f.Checksum.Needed && e.depends&byDenial == 0 {
		if e.to.isPort() {
			*in = nil
			l.worker.Send(l.now.ports[e.to].ways[l.number].pick(l, f), f)
			return
		}
		if t := l.tunnel(e.to); t != nil && t.ready && !t.is6 && f.Len() <= t.maxFrame && f.Front() >= overhead4 {
			*in = nil
			t.encapsulate(f, nw.vni, nw.tosMask, 0)
			l.worker.Send(nw.uplink.ways[l.number].pick(l, f), f)
			return
		}
	}
	l.send(from, in, nw, source, verdict{to: e.to, why: e.why, depends: e.depends})
}

// tunnel is that to a VTEP; nil if the place is none, or has left.
func (l *lane) tunnel(to place) *tunnel {
	if !to.isVTEP() {
		return nil
	}
	return l.now.vteps[to.vtep()]
}

// What a verdict depends on is looked at once for frames of one flow that come one after the other, and its rules count once for frames that the same
// ones decided about. So many rules cost a frame as much as none.

// ruling names the rules that decided about a flow, at both ends: those of the port it comes from above, of the one it goes to below; 0: none.
type ruling uint32

// ruledOut and ruledIn take a rule as Judge returned it.
func ruledOut(rule int) ruling { return ruling(rule-acl.Always+1) << 16 }
func ruledIn(rule int) ruling  { return ruling(rule - acl.Always + 1) }

// maxRule is the last one that a ruling can name.
const maxRule = math.MaxUint16 + acl.Always - 1

// count counts frames that were decided about.
func (r ruling) count(out, in *acl.Compiled, worker, frames int) {
	if r>>16 != 0 {
		out.Count(worker, int(r>>16)+acl.Always-1, frames)
	}
	if r&math.MaxUint16 != 0 {
		in.Count(worker, int(r&math.MaxUint16)+acl.Always-1, frames)
	}
}

// turn begins to count for other rules.
func (l *lane) turn(e *flow, p *port) {
	l.over()
	l.rules, l.ruled = e.rules, e.to
	if e.depends&byOut != 0 {
		l.outRules = p.filter.rules
	}
	if e.depends&byIn != 0 {
		l.inRules = l.now.ports[e.to].filter.rules
	}
}

// over shows what was counted.
func (l *lane) over() {
	if l.run > 0 {
		l.rules.count(l.outRules, l.inRules, l.number, l.run)
		l.recalled += l.run
	}
	l.run, l.rules, l.same = 0, 0, nil
}

// epochs is a sum that changes with what a verdict depends on: each of its parts only grows.
func (l *lane) epochs(d depends, nw *network, p *port, to place) (sum uint32) {
	if d&bySource != 0 {
		sum = l.ring(nw, p).epoch
	}
	if d&byDestination != 0 {
		var q *port
		if to.isPort() {
			q = l.now.ports[to]
		}
		sum += l.ring(nw, q).epoch
	}
	if d&byDenial != 0 {
		if d&byOut != 0 {
			sum += p.filter.conns.begun.Load()
		}
		if d&byIn != 0 {
			sum += l.now.ports[to].filter.conns.begun.Load()
		}
	}
	return sum
}

// ring is that of a port, or of the wire.
func (l *lane) ring(nw *network, p *port) *ring {
	if p == nil {
		return nw.learned[l.number].wire
	}
	return p.rings[l.number]
}

// keep enters the verdict about the frame that was not recalled last.
func (l *lane) keep(c *flows, nw *network, p *port, f *frame.Frame, v verdict) {
	k := &l.key
	if !v.keep || !k.ok || v.depends&(byOut|byIn) != 0 && k.tcp&tcpEnds != 0 {
		return
	}
	hash := l.hash(f)
	i := c.place(hash, l.tick)
	c.tags[i], c.last = hash, i
	e := &c.entries[i]
	e.key, e.outer, e.generation, e.tick = k.words, uint32(k.source.low), nw.generation, l.tick
	e.hash, e.to, e.why, e.depends, e.rules = hash, v.to, v.why, v.depends, v.rules
	e.epochs = l.epochs(v.depends, nw, p, v.to)
	if k.is6 {
		e.rest = k.rest
	}
	if k.wide {
		e.outer6 = k.source
	}
}

// place is where a flow is entered: over one of the same hash, or one whose tick is over, or the next in turn.
func (c *flows) place(hash, tick uint32) uint32 {
	first := hash & c.mask * flowWays
	for i := range uint32(flowWays) {
		if c.tags[first+i] == hash {
			return first + i
		}
	}
	for i := range uint32(flowWays) {
		if c.entries[first+i].tick != tick {
			return first + i
		}
	}
	c.turn++
	return first + c.turn%flowWays
}
