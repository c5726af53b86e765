package blk

import (
	"cmp"
	"slices"

	"github.com/shuntio/shunt/dataplane/shm"
	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/virtq"
)

// packedInflight is that of a packed ring. Used descriptors are written over those of chains that are still under way, so every descriptor is copied when it
// is taken, into entries that are linked in a list of free ones:
//
//	taken      copies of the descriptors; counter, num, last; inflight = 1
//	           free_head and old_free_head go on behind them, in one store   ◀── from here on it is taken
//	published  its entries go in front of the free ones; free_head; used_idx with its wrap counter
//	           the ring's used descriptors, the first one last               ◀── from here on the driver has it
//	           inflight = 0, each
//	           old_free_head; old_used_idx with its wrap counter             ◀── from here on the area knows
//
// Between the last two, the descriptor at old_used_idx is no longer available, which tells that the batch was published. What is marked and in the list of
// free ones, whose beginning is old_free_head, is not under way.
//
// The used descriptors of a batch that was not shown may lie behind its first one already, and would be taken for used as soon as that is. Giving chains
// back writes over all of them.
//
// The links are kept here a second time: what lies in the area, the front-end can change.
type packedInflight struct {
	ring    virtq.Descriptors
	head    *vhostuser.PackedQueue
	entries []vhostuser.PackedEntry
	counter uint64
	used    uint16 // place of the next used descriptor
	free    uint16 // first free entry; none: len(entries)
	next    []uint16
	chains  []noted // by id
}

// noted is a chain under way.
type noted struct{ first, last, slots uint16 }

func openPacked(area *vhostuser.Inflight, queue int, l virtq.Layout, size int, told uint16) (_ inflight, base uint16, resumed int, err error) {
	p := &packedInflight{head: &vhostuser.PackedQueue{}, next: make([]uint16, size), chains: make([]noted, size), used: told}
	if p.ring, err = l.Descriptors(size); err != nil {
		return nil, 0, 0, err
	}
	if area == nil {
		p.entries = make([]vhostuser.PackedEntry, size)
	} else if p.head, p.entries, err = area.Packed(queue, size); err != nil {
		return nil, 0, 0, err
	}
	if !p.head.Adopted() {
		p.begin()
		return p, p.used, 0, nil
	}
	if err = p.settle(); err == nil {
		resumed, err = p.giveBack(p.used)
	}
	if err != nil {
		return nil, 0, 0, err
	}
	if !p.linked() { // nothing is under way any more, so nothing is lost
		p.begin()
	}
	return p, p.used, resumed, nil
}

// begin makes all entries free.
func (p *packedInflight) begin() {
	shm.Store16(&p.head.Version, 0)
	clear(p.entries)
	for i := range p.entries {
		p.link(uint16(i), uint16(i+1))
	}
	p.setFree(0, 0)
	p.setUsed(p.used, p.used)
	p.head.Adopt(len(p.entries))
	p.free = 0
}

func (p *packedInflight) link(entry, next uint16) {
	p.next[entry] = next
	shm.Store16(&p.entries[entry].Next, next)
}

func (p *packedInflight) setFree(head, old uint16) {
	shm.Release32(&p.head.Free, uint32(head)|uint32(old)<<16)
	step()
}

// setUsed takes places with the wrap counter in the highest bit.
func (p *packedInflight) setUsed(used, old uint16) {
	const at = 1<<15 - 1
	shm.Release64(&p.head.Used, uint64(used&at)|uint64(old&at)<<16|uint64(used>>15)<<32|uint64(old>>15)<<40)
	step()
}

// settle ends the last batch of whoever had the area before.
func (p *packedInflight) settle() error {
	free, word := shm.Load32(&p.head.Free), shm.Load64(&p.head.Used)
	used := uint16(word)&^(1<<15) | uint16(word>>32)<<15
	old := uint16(word>>16)&^(1<<15) | uint16(word>>40)<<15
	if size := len(p.entries); int(used&^(1<<15)) >= size || int(old&^(1<<15)) >= size {
		return errInflight
	}
	if p.free = uint16(free >> 16); used != old && !p.ring.Offered(old) {
		p.free, old = uint16(free), used // it was shown
	}
	p.used = old
	p.setFree(p.free, p.free)
	p.setUsed(old, old)
	at := p.free
	for range p.entries {
		if int(at) >= len(p.entries) {
			break
		}
		p.entries[at].Inflight = 0
		step()
		at = shm.Load16(&p.entries[at].Next)
	}
	return p.recall()
}

// recall reads which chains are under way, and believes it only if no two of them have an entry in common.
func (p *packedInflight) recall() error {
	taken := make([]bool, len(p.entries))
	for i := range p.entries {
		if p.entries[i].Inflight == 0 {
			continue
		}
		c := noted{first: uint16(i), slots: shm.Load16(&p.entries[i].Num)}
		if c.slots == 0 || int(c.slots) > len(p.entries) {
			return errInflight
		}
		at := c.first
		for range c.slots {
			if int(at) >= len(taken) || taken[at] {
				return errInflight
			}
			taken[at], c.last = true, at
			p.next[at] = shm.Load16(&p.entries[at].Next)
			at = p.next[at]
		}
		id := p.entries[c.last].ID
		if int(id) >= len(p.chains) || p.chains[id].slots != 0 {
			return errInflight
		}
		p.chains[id] = c
	}
	return nil
}

// linked reads the list of free entries, and tells whether all are in it.
func (p *packedInflight) linked() bool {
	seen := make([]bool, len(p.entries))
	at := p.free
	for range p.entries {
		if int(at) >= len(seen) || seen[at] {
			return false
		}
		seen[at] = true
		p.next[at] = shm.Load16(&p.entries[at].Next)
		at = p.next[at]
	}
	return true
}

func (p *packedInflight) took(c *virtq.Chain, at uint16) {
	first, last, entry := p.free, p.free, p.free
	for range c.Slots { // of which there are no more than there are free entries
		e, d := &p.entries[entry], p.ring.At(at)
		e.Addr, e.Len, e.Flags, e.ID = d.Addr, d.Len, d.Flags, d.ID
		step()
		last, entry = entry, p.next[entry]
		at = p.ring.Behind(at, 1)
	}
	p.entries[last].ID = c.Head
	head := &p.entries[first]
	head.Num, head.Last, head.Counter = c.Slots, last, p.counter
	p.counter++
	step()
	head.Inflight = 1
	step()
	p.setFree(entry, entry)
	p.free = entry
	p.chains[c.Head] = noted{first: first, last: last, slots: c.Slots}
}

func (p *packedInflight) publish(ring *virtq.Device, heads []uint16) (call bool) {
	free, slots := p.free, uint16(0)
	for _, head := range heads {
		c := &p.chains[head]
		p.link(c.last, free)
		step()
		free = c.first
		slots += c.slots
	}
	used := p.ring.Behind(p.used, slots)
	p.setFree(free, p.free)
	p.setUsed(used, p.used)
	call = ring.Publish()
	step()
	for _, head := range heads {
		p.entries[p.chains[head].first].Inflight = 0
		step()
		p.chains[head].slots = 0
	}
	p.setFree(free, free)
	p.setUsed(used, used)
	p.free, p.used = free, used
	return call
}

func (p *packedInflight) giveBack(used uint16) (n int, err error) {
	var chains []noted
	slots := 0
	for _, c := range p.chains {
		if c.slots != 0 {
			chains = append(chains, c)
			slots += int(c.slots)
		}
	}
	if slots > len(p.entries) {
		return 0, errInflight
	}
	slices.SortFunc(chains, func(a, b noted) int { return cmp.Compare(p.entries[a.first].Counter, p.entries[b.first].Counter) })
	for _, c := range chains {
		entry := c.first
		for range c.slots {
			e := &p.entries[entry]
			p.ring.Offer(used, virtq.Descriptor{Addr: e.Addr, Len: e.Len, ID: e.ID, Flags: e.Flags})
			step()
			entry, used = p.next[entry], p.ring.Behind(used, 1)
		}
	}
	for _, c := range slices.Backward(chains) { // so that those still marked are at any time the first ones in the ring
		p.link(c.last, p.free)
		step()
		p.setFree(c.first, c.first)
		p.entries[c.first].Inflight = 0
		step()
		p.free = c.first
	}
	clear(p.chains)
	return len(chains), nil
}
