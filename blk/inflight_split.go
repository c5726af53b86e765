package blk

import (
	"cmp"
	"slices"

	"github.com/shuntio/shunt/dataplane/shm"
	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/virtq"
)

// splitInflight is that of a split ring. An entry is a head, so little can be wrong:
//
//	taken      counter, then inflight = 1
//	published  each of the batch: next = last_batch_head, last_batch_head = it
//	           used.idx                                                      ◀── from here on the driver has it
//	           inflight = 0, each
//	           used_idx = used.idx                                           ◀── from here on the area knows
//
// As long as the two indices differ, the first (used.idx - used_idx) of the list are chains that were given back and may still be marked.
type splitInflight struct {
	tables  virtq.Layout
	head    *vhostuser.SplitQueue
	entries []vhostuser.SplitEntry
	counter uint64
}

func openSplit(area *vhostuser.Inflight, queue int, l virtq.Layout, size int) (_ inflight, base uint16, resumed int, err error) {
	s := &splitInflight{tables: l, head: &vhostuser.SplitQueue{}, entries: nil}
	if area == nil {
		s.entries = make([]vhostuser.SplitEntry, size)
	} else if s.head, s.entries, err = area.Split(queue, size); err != nil {
		return nil, 0, 0, err
	}
	base = l.UsedIndex()
	if s.settle(base) {
		resumed, err = s.giveBack(base)
	}
	if err != nil {
		return nil, 0, 0, err
	}
	return s, base, resumed, nil
}

// settle ends the last batch of whoever had the area before. It reports false if the area has nothing to say of this ring: it is new, or the ring is.
func (s *splitInflight) settle(used uint16) bool {
	batch := used - shm.Load16(&s.head.UsedIdx)
	if !s.head.Adopted() || int(batch) > len(s.entries) {
		clear(s.entries)
		shm.Store16(&s.head.UsedIdx, used)
		s.head.Adopt(len(s.entries))
		return false
	}
	for head := shm.Load16(&s.head.LastBatchHead); batch > 0 && int(head) < len(s.entries); batch-- {
		e := &s.entries[head]
		e.Inflight = 0
		step()
		head = shm.Load16(&e.Next)
	}
	shm.Store16(&s.head.UsedIdx, used)
	step()
	return true
}

func (s *splitInflight) took(c *virtq.Chain, _ uint16) {
	e := &s.entries[c.Head]
	shm.Release64(&e.Counter, s.counter)
	s.counter++
	step()
	e.Inflight = 1
	step()
}

func (s *splitInflight) publish(ring *virtq.Device, heads []uint16) (call bool) {
	last := shm.Load16(&s.head.LastBatchHead)
	for _, head := range heads {
		shm.Store16(&s.entries[head].Next, last)
		step()
		shm.Store16(&s.head.LastBatchHead, head)
		step()
		last = head
	}
	call = ring.Publish()
	step()
	for _, head := range heads {
		s.entries[head].Inflight = 0
		step()
	}
	shm.Store16(&s.head.UsedIdx, ring.UsedBase())
	step()
	return call
}

// giveBack clears the marks from the last chain to the first, so that at any time those still marked are as many entries of the avail ring from
// used.idx on as are not to be read yet.
func (s *splitInflight) giveBack(used uint16) (n int, err error) {
	var heads []uint16
	for i := range s.entries {
		if s.entries[i].Inflight != 0 {
			heads = append(heads, uint16(i))
		}
	}
	if len(heads) > int(s.tables.AvailIndex()-used) {
		return 0, errInflight
	}
	slices.SortFunc(heads, func(a, b uint16) int { return cmp.Compare(s.entries[a].Counter, s.entries[b].Counter) })
	for i, head := range heads {
		s.tables.Offer(len(s.entries), used+uint16(i), head)
		step()
	}
	for _, head := range slices.Backward(heads) {
		s.entries[head].Inflight = 0
		step()
	}
	return len(heads), nil
}
