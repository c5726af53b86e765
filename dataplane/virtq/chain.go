package virtq

import (
	"fmt"

	"github.com/shuntio/shunt/dataplane/guestmem"
	"github.com/shuntio/shunt/dataplane/shm"
)

// Chain is one request of the driver: the buffers it filled, then the buffers it wants filled.
// Its slices are views of guest memory, reused by the next call of Next.
type Chain struct {
	// Head names the chain to Complete: its first descriptor, or the buffer id of a packed ring.
	Head uint16
	// Slots is how many descriptors of a packed ring it takes up; for Resume.
	Slots uint16
	// Readable are the driver's bytes, Writable where the device's go.
	Readable, Writable [][]byte
	views              [][]byte
	readable           int  // of views, while walking
	writing            bool // a writable descriptor came
}

// NewChain makes a chain with room for the longest one a queue of this size can hold without indirect tables; longer ones
// are ErrChain.
func NewChain(size int) *Chain { return &Chain{views: make([][]byte, 0, max(size, 64))} }

// Clear lets go of all views, also those of chains before: their memory may be going to be unmapped.
func (c *Chain) Clear() {
	clear(c.views[:cap(c.views)])
	c.views, c.Readable, c.Writable = c.views[:0], nil, nil
}

// one makes it a chain of a single buffer, the common case.
func (c *Chain) one(view []byte, flags uint16) {
	c.views = append(c.views[:0], view)
	if flags&descWrite == 0 {
		c.Readable, c.Writable = c.views, nil
	} else {
		c.Readable, c.Writable = nil, c.views
	}
}

func (c *Chain) begin() { c.views, c.readable, c.writing = c.views[:0], 0, false }

func (c *Chain) end() { c.Readable, c.Writable = c.views[:c.readable], c.views[c.readable:] }

// add appends the buffer of one descriptor; more than one view if it crosses from one memory region into the next.
func (c *Chain) add(m *guestmem.Map, d desc) error {
	write := d.flags&descWrite != 0
	if c.writing && !write {
		return fmt.Errorf("%w: readable buffer behind a writable one", ErrChain)
	}
	for addr, left := d.addr, d.len; ; {
		if len(c.views) == cap(c.views) {
			return fmt.Errorf("%w: more than %d buffers", ErrChain, cap(c.views))
		}
		view := m.Prefix(addr, left)
		if view == nil || len(view) == 0 && left != 0 {
			return fmt.Errorf("%w: %#x+%d", ErrAddress, d.addr, d.len)
		}
		if len(view) > 0 {
			c.views = append(c.views, view)
		}
		left -= uint32(len(view))
		addr += uint64(len(view))
		if left == 0 {
			break
		}
	}
	if write {
		c.writing = true
	} else {
		c.readable = len(c.views)
	}
	return nil
}

// walk follows a chain of a split ring from its first descriptor: descriptors of the queue's table, of which the last may stand for an
// indirect table (virtio 1.2, 2.7.5.3.2). It ends, whatever the driver wrote, because each step counts against the length of the table it
// walks in, and soon, because it counts against the room of c, too: an indirect table may be long, and full of empty buffers.
func (q *Device) walk(c *Chain, d desc) (err error) {
	c.begin()
	table, left, inside := q.desc, min(len(q.desc), cap(c.views)), false
	for {
		if d.flags&descIndirect != 0 {
			if inside {
				return fmt.Errorf("%w: it holds another one", ErrIndirect)
			}
			if table, err = indirectTable[desc](q, d); err != nil {
				return err
			}
			d, left, inside = table[0], min(len(table), cap(c.views)), true
			continue
		}
		if err := c.add(q.memory, d); err != nil {
			return err
		}
		if d.flags&descNext == 0 {
			break
		}
		if left--; left == 0 {
			return fmt.Errorf("%w: longer than its table of %d, or than %d buffers", ErrChain, len(table), cap(c.views))
		}
		if int(d.next) >= len(table) {
			return fmt.Errorf("%w: next is %d in a table of %d", ErrHead, d.next, len(table))
		}
		d = table[d.next]
	}
	c.end()
	return nil
}

// walkPacked follows a chain of a packed ring from its first descriptor: consecutive ones, each available and those that Available has read as it read them, or a
// single one that stands for an indirect table, which is a chain from its first to its last (virtio 1.2, 2.8.7). It reports how many descriptors of the
// ring that were, and the chain's id, which the last one has.
func (q *Device) walkPacked(c *Chain, d desc) (slots, id uint16, err error) {
	c.begin()
	p := &q.ring
	at, left := p.avail, min(int(q.size-p.out), cap(c.views))
	for slots = 1; d.flags&descIndirect == 0; slots++ {
		if err := c.add(q.memory, d); err != nil {
			return 0, 0, err
		}
		if d.flags&descNext == 0 {
			c.end()
			return slots, d.next, nil
		}
		if int(slots) >= left {
			return 0, 0, fmt.Errorf("%w: longer than the %d descriptors not under way, or than %d buffers", ErrChain, q.size-p.out, cap(c.views))
		}
		at.advance(1, q.size)
		if i := p.next + int(slots); i < p.read {
			d = p.ahead[i]
			continue
		}
		rest := shm.Load64(&p.desc[at.at].rest)
		if rest&restTurn != at.available() {
			return 0, 0, fmt.Errorf("%w: its descriptor %d is not available", ErrChain, at.at)
		}
		d = unpack(p.desc[at.at].addr, rest)
	}
	if slots > 1 {
		return 0, 0, fmt.Errorf("%w: behind other descriptors", ErrIndirect)
	}
	table, err := indirectTable[packedDesc](q, d)
	if err != nil {
		return 0, 0, err
	}
	if len(table) > cap(c.views) {
		return 0, 0, fmt.Errorf("%w: indirect table of %d, at most %d buffers are taken", ErrChain, len(table), cap(c.views))
	}
	for i := range table {
		if err := c.add(q.memory, unpack(table[i].addr, table[i].rest)); err != nil {
			return 0, 0, err
		}
	}
	c.end()
	return 1, d.next, nil
}

// indirectTable is the table a descriptor points to (virtio 1.2, 2.7.5.3 and 2.8.7).
func indirectTable[D desc | packedDesc](q *Device, d desc) ([]D, error) {
	switch {
	case !q.indirect:
		return nil, fmt.Errorf("%w: not negotiated", ErrIndirect)
	case d.flags&descNext != 0:
		return nil, fmt.Errorf("%w: both indirect and next", ErrIndirect)
	case d.len == 0 || d.len%16 != 0 || d.len > 16*MaxSize:
		return nil, fmt.Errorf("%w: %d bytes", ErrIndirect, d.len)
	}
	view := q.memory.View(d.addr, d.len)
	if view == nil {
		return nil, fmt.Errorf("%w: indirect table at %#x", ErrAddress, d.addr)
	}
	table, err := shm.View[D](view, int(d.len/16))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrIndirect, err)
	}
	return table, nil
}
