package virtq

import (
	"fmt"

	"github.com/shuntio/shunt/dataplane/shm"
)

// What a Device does less often than the rest, most of it with a split ring: chains of several buffers, and queues of which notes are kept.

func (q *Device) badHead(head uint16) error {
	return fmt.Errorf("%w: avail ring names %d in a queue of %d", ErrHead, head, q.size)
}

// nextLong is Next for what is not one buffer in one piece.
func (q *Device) nextLong(c *Chain, d desc) error {
	if err := q.walk(c, d); err != nil {
		return err
	}
	if q.note != 0 {
		q.remember(c)
	}
	return nil
}

// remember leaves a note of the chain just taken from a split ring.
func (q *Device) remember(c *Chain) {
	q.chains[c.Head] = underWay{before: q.last, reads: len(c.Writable) == 0}
	q.last = c.Head
	if q.dirty.first != nil {
		q.dirty.remember(c, q.memory)
	}
}

func (q *Device) backNoted(n uint32) {
	q.dirty.mark(q.last, n)
	if q.packed {
		q.backPacked()
		return
	}
	q.availNext--
	q.last = q.chains[q.last].before
}

func (q *Device) rewindNoted() {
	if q.packed {
		if q.ring.out == 0 {
			return
		}
		q.rewindPacked()
	} else if q.availNext == q.usedShown {
		return
	}
	q.dirty.markAll()
}

// fillUsed writes the elements of a split ring in order, or of one whose writes are logged. A driver that knows the order reads one element for a
// chain and those before it that had nothing to write; it lies where that of the first of them would (virtio 1.2, 2.7.9).
func (q *Device) fillUsed() {
	if q.dirty.first != nil {
		q.markDone()
	}
	begun, open := q.usedShown, false
	for i := q.usedShown; i != q.usedNext; i++ {
		e := q.done[i&q.mask]
		if !open {
			begun = i
		}
		q.used[begun&q.mask] = e
		open = q.inOrder && q.chains[uint16(e.id)&q.mask].reads
	}
	if q.dirty.log != nil {
		q.markRange(q.dirty.used+usedRingAt, 8, q.usedShown&q.mask, q.usedNext-q.usedShown)
	}
}

func (q *Device) setAvailEvent(index uint16) {
	shm.Store16(q.availEvent, index)
	q.dirty.log.Mark(q.dirty.used+usedRingAt+8*uint64(q.size), 2)
}

func (q *Device) setUsedFlags(flags uint16) {
	shm.Store16(q.usedFlags, flags)
	q.dirty.log.Mark(q.dirty.used, 2)
}
