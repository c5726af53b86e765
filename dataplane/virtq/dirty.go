package virtq

import (
	"math"

	"github.com/shuntio/shunt/dataplane/guestmem"
)

// While a guest moves to another machine, its memory is copied there as it runs, and pages that change meanwhile are copied again. What
// we change, nobody but us can tell, so each write is marked in a Log after it was made and before the driver is shown it:
//
//	buffers written ─▶ Publish: mark them ─▶ write used elements ─▶ mark them ─▶ write the index ─▶ mark it
//
// By then a chain's descriptors may say anything, or be overwritten, so the guest addresses of writable buffers are kept from Next on.

// dirty is what a Device knows for the log.
type dirty struct {
	log     *guestmem.Log // nil: nobody moves
	used    uint64        // guest address of the used ring or the device event suppression structure
	desc    uint64        // guest address of a packed ring's descriptors
	table   []byte        // where those are in our memory
	lasting bool
	status  bool

	first   []uint32 // by head: the place in extents of the chain's first one; 0: none. Nil: nothing is kept
	extents []extent // those of chains under way, and free ones; 0 is none
	free    uint32   // the first free one; 0: none
}

// extent is a writable buffer, or the part of it that lies in one memory region.
type extent struct {
	addr uint64
	len  uint32
	next uint32 // place in extents; 0: the last
}

// nowhere is an address that no log has bits for: it counts what is marked there as missed.
const nowhere = 1 << 63

// SetLog has everything the device writes marked in a log from now on; nil: no more. used is the guest address of the used ring, or of
// the device event suppression structure. It may be called while the queue runs, between two rounds, and allocates. Of chains that are under way the log
// learns nothing, unless the queue is Lasting.
func (q *Device) SetLog(log *guestmem.Log, used uint64) {
	d := &q.dirty
	switch keep := log != nil || d.lasting; {
	case keep && d.first == nil:
		if q.chains == nil {
			q.chains = make([]underWay, q.size)
		}
		// Indirect tables can make it grow, up to what a Chain holds for each descriptor.
		d.first, d.extents = make([]uint32, q.size), make([]extent, 1, 1+int(q.size))
	case !keep:
		d.first, d.extents, d.free = nil, nil, 0
	}
	d.log, d.used = log, used
	if q.packed && log != nil {
		// The front-end tells no address of the descriptors, because those of a split ring are not written by a device.
		ok := false
		if d.desc, ok = q.memory.Guest(d.table); !ok {
			d.desc = nowhere
		}
	}
	if q.note = 0; d.first != nil || q.inOrder && !q.packed {
		q.note = descNext
	}
	direct := !q.packed && !q.inOrder && d.first == nil
	if q.done == nil || direct != q.direct {
		done := q.rings.used
		if !direct {
			done = make([]usedElem, int(q.mask)+1)
		}
		copy(done, q.done) // what was completed and not published
		q.done, q.direct = done, direct
	}
}

// LoseLog ends marking in a log that cannot be written any more. It touches no memory but ours.
func (q *Device) LoseLog() { q.dirty.log = nil }

// remember keeps where the device may write in a chain.
func (d *dirty) remember(c *Chain, m *guestmem.Map) {
	d.forget(c.Head) // a chain that went back, or a driver's that offers a head twice
	for i := len(c.Writable) - 1; i >= 0; i-- {
		addr, ok := m.Guest(c.Writable[i])
		if !ok {
			addr = nowhere
		}
		at := d.free
		if at != 0 {
			d.free = d.extents[at].next
		} else {
			at = uint32(len(d.extents))
			d.extents = append(d.extents, extent{})
		}
		d.extents[at] = extent{addr: addr, len: uint32(len(c.Writable[i])), next: d.first[c.Head]}
		d.first[c.Head] = at
	}
}

// markDone marks the buffers of what is completed.
func (q *Device) markDone() {
	for i := q.usedShown; i != q.usedNext; i++ {
		e := q.done[i&q.mask]
		n := e.len
		if q.dirty.status {
			n = math.MaxUint32
		}
		q.dirty.mark(uint16(e.id), n)
	}
}

// mark marks the first n bytes of a chain's writable buffers.
func (d *dirty) mark(head uint16, n uint32) {
	if int(head) >= len(d.first) {
		return
	}
	for at := d.first[head]; at != 0 && n > 0; at = d.extents[at].next {
		e := &d.extents[at]
		written := min(e.len, n)
		d.log.Mark(e.addr, uint64(written))
		n -= written
	}
	d.forget(head)
}

// markAll marks what chains that go back may hold by now: a driver sees nothing of it, but it was written.
func (d *dirty) markAll() {
	for head := range d.first {
		d.mark(uint16(head), math.MaxUint32)
	}
}

// forget gives a chain's extents back.
func (d *dirty) forget(head uint16) {
	at := d.first[head]
	d.first[head] = 0
	for at != 0 {
		e := &d.extents[at]
		at, e.next, d.free = e.next, d.free, at
	}
}

// markRange marks n pieces of a ring from the first on, and around its end.
func (q *Device) markRange(ring, piece uint64, first, n uint16) {
	before := min(n, q.size-first)
	q.dirty.log.Mark(ring+piece*uint64(first), piece*uint64(before))
	q.dirty.log.Mark(ring, piece*uint64(min(n, q.size)-before))
}
