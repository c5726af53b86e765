package virtq

import (
	"fmt"

	"github.com/shuntio/shunt/dataplane/shm"
)

// look is how many descriptors availablePacked looks at, at most: a batch. They lie in cache lines that the driver may be writing.
const look = 64

// packedSide is what a Device keeps of a packed ring:
//
//	used                      avail
//	──┼── completed, under way ──┼── the driver's: offered, then free
//	  └────────── out ───────────┘
//
// Nothing is written there before Publish, so a device that was interrupted finds the descriptors as the driver wrote them.
type packedSide struct {
	packedRing
	avail cursor // the next descriptor to take
	used  cursor // where the next used descriptor is written

	out   uint16 // descriptors between the two
	lost  uint16 // of them, those taken by a device before us and not yet told by Resume
	known int    // chains that wait, as far as we looked

	// What was read of the descriptors from avail on, when we looked. Each is read this once: where the driver is on another CPU, its cache lines are
	// what a packed ring costs, and chains must end where those that were counted did.
	ahead  [look]desc
	views  [look][]byte // their buffers, as far as Hint has translated them; nil: not in one region
	next   int          // of ahead, the one at avail
	read   int          // of ahead, behind the last one that was read
	hinted int          // views from next to here hold
}

func newPackedSide(o DeviceOptions) (p packedSide, err error) {
	if p.packedRing, err = newPackedRing(o.Layout, o.Size); err != nil {
		return p, err
	}
	size := uint16(o.Size)
	p.avail, p.used = cursorOf(o.Base), cursorOf(o.UsedBase)
	out, ok := p.used.behind(p.avail, size)
	if p.avail.at >= size || p.used.at >= size || !ok {
		return p, fmt.Errorf("packed queue of %d cannot go on with base %#x and used base %#x", size, o.Base, o.UsedBase)
	}
	p.out, p.lost = out, out
	return p, nil
}

// pending tells whether the next descriptor is the driver's offer.
func (p *packedSide) pending() bool {
	return shm.Load64(&p.desc[p.avail.at].rest)&restTurn == p.avail.available()
}

// availablePacked counts the chains that wait. What it reads, Next judges.
func (q *Device) availablePacked() (int, error) {
	p := &q.ring
	if p.known > 0 {
		return p.known, nil
	}
	p.next, p.hinted, p.read = 0, 0, 0
	if !p.pending() {
		return 0, nil
	}
	if p.out == q.size {
		return 0, fmt.Errorf("%w: all %d descriptors of the ring are under way, and another is available", ErrIndex, q.size)
	}
	at, turn, known, more := int(p.avail.at), p.avail.available(), 0, uint64(0)
	for i := range p.ahead[:min(int(q.size-p.out), look)] {
		d := &p.desc[at]
		rest := shm.Load64(&d.rest) // acquire: addr, the descriptors behind and the buffers are read after it
		if rest&restTurn != turn {
			break
		}
		p.ahead[i] = unpack(d.addr, rest)
		p.read = i + 1
		more = rest >> 48 & descNext
		known += int(more ^ descNext)
		if at++; at == len(p.desc) {
			at, turn = 0, turn^restTurn
		}
	}
	// A chain that has not ended yet counts, too. If it has no end, Next says so.
	p.known = known + int(more)
	return p.known, nil
}

// hintPacked is Hint, for as many descriptors as it is to be for chains, of those that Available has read.
func (q *Device) hintPacked(n int) {
	p := &q.ring
	end := p.next + min(n, near, p.read-p.next)
	for i := max(p.next, p.hinted); i < end; i++ {
		d := &p.ahead[i]
		view := q.memory.View(d.addr, d.len)
		if p.views[i] = view; view != nil {
			prefetch(view, d.flags)
		}
	}
	p.hinted = max(p.hinted, end)
}

func (q *Device) nextPacked(c *Chain) error {
	p := &q.ring
	if p.known == 0 {
		if n, err := q.availablePacked(); n == 0 {
			return q.notAvailable(err)
		}
	}
	at := p.next
	d := p.ahead[at]
	if (d.flags|q.note)&(descNext|descIndirect) != 0 || !q.idle(d.next) {
		return q.nextPackedLong(c, d)
	}
	q.take(c, d.next, 1, d.flags&descWrite == 0)
	var view []byte
	if at < p.hinted {
		view = p.views[at]
	} else {
		view = q.memory.View(d.addr, d.len)
	}
	if view != nil {
		c.one(view, d.flags)
		return nil
	}
	c.begin()
	err := c.add(q.memory, d)
	c.end()
	return err
}

// nextPackedLong is nextPacked for what is not one buffer in one piece, or is to be noted, or is wrong.
func (q *Device) nextPackedLong(c *Chain, d desc) error {
	slots, id, err := q.walkPacked(c, d)
	if err != nil {
		return err
	}
	if !q.idle(id) {
		return fmt.Errorf("%w: buffer id %d in a queue of %d, or one under way already", ErrHead, id, q.size)
	}
	q.take(c, id, slots, len(c.Writable) == 0)
	if q.dirty.first != nil {
		q.dirty.remember(c, q.memory)
	}
	return nil
}

func (q *Device) notAvailable(err error) error {
	if err != nil {
		return err
	}
	return fmt.Errorf("%w: descriptor %d is not available any more", ErrIndex, q.ring.avail.at)
}

// idle tells whether an id names a chain that may be taken.
func (q *Device) idle(id uint16) bool { return int(id) < len(q.chains) && q.chains[id].slots == 0 }

// take takes account of a chain.
func (q *Device) take(c *Chain, id, slots uint16, reads bool) {
	p := &q.ring
	c.Head, c.Slots = id, slots
	q.chains[id] = underWay{slots: slots, before: q.last, reads: reads}
	q.last = id
	p.out += slots
	p.avail.advance(slots, q.size)
	p.next += int(slots)
	p.known--
}

func (q *Device) backPacked() {
	p := &q.ring
	chain := &q.chains[q.last]
	if chain.slots == 0 {
		return // nothing was taken, or it is published
	}
	q.last = chain.before
	p.out -= chain.slots
	p.avail.retreat(chain.slots, q.size)
	p.known = 0 // look again: what is ahead begins behind it
	chain.slots = 0
}

func (q *Device) rewindPacked() {
	p := &q.ring
	clear(q.chains)
	p.avail, p.out, p.lost, p.known = p.used, 0, 0, 0
}

// Resume tells of a chain that a device before this one took from a packed ring and did not complete; slots is what its Chain said. It is for
// a device that goes on from a Base before its UsedBase, and must come before Next. A split ring needs it not.
func (q *Device) Resume(head, slots uint16) error {
	if !q.packed {
		return nil
	}
	p := &q.ring
	if head >= q.size || q.chains[head].slots != 0 || slots == 0 || slots > p.lost {
		return fmt.Errorf("%w: chain %d of %d descriptors cannot be under way: %d are", ErrHead, head, slots, p.lost)
	}
	q.chains[head] = underWay{slots: slots}
	p.lost -= slots
	return nil
}

// publishPacked writes the used descriptors, the first of them last: the driver looks at no other before it has seen that.
func (q *Device) publishPacked() (call bool) {
	p := &q.ring
	if q.dirty.first != nil {
		q.markDone()
	}
	if weaklyOrdered && q.usedNext-q.usedShown > 1 {
		shm.Fence() // for drivers that look at several at once: buffers are seen before any of them
	}
	begin := p.used
	first := q.writeUsed()
	if p.used == begin {
		return false
	}
	if q.dirty.log != nil {
		n, _ := begin.behind(p.used, q.size)
		q.markRange(q.dirty.desc, 16, begin.at, n)
	}
	shm.Release64(&p.desc[begin.at].rest, first) // release: buffers and the other descriptors are seen before it
	if q.dirty.log != nil {
		q.markRange(q.dirty.desc, 16, begin.at, 1)
	}
	shm.Fence() // the descriptor is seen before we look whether the driver sleeps
	return wanted(shm.Load32(p.driverEvent), q.eventIdx, p.used, begin, q.size)
}

// writeUsed writes all used descriptors but the first, which it returns. With a driver that knows the order, what comes behind chains that
// have nothing to write takes their place, and stands for all (virtio 1.2, 2.8.8). What was completed twice or never taken is passed over.
func (q *Device) writeUsed() (first uint64) {
	p := &q.ring
	used, out, chains, size := p.used, p.out, q.chains, q.size // in registers
	at, rest, open := used, uint64(0), false
	for i := q.usedShown; i != q.usedNext; i++ {
		e := q.done[i&q.mask]
		if e.id >= uint32(len(chains)) || chains[e.id].slots == 0 {
			continue
		}
		if !open {
			at = used
		}
		rest = packRest(e.len, uint16(e.id), 0) | at.used()
		if e.len > 0 || q.dirty.status {
			rest |= descWrite << 48
		}
		chain := &chains[e.id]
		if open = q.inOrder && chain.reads; at == p.used {
			first = rest
		} else if !open {
			p.desc[at.at].rest = rest
		}
		used.advance(chain.slots, size)
		out -= chain.slots
		chain.slots = 0
	}
	if open && at != p.used {
		p.desc[at.at].rest = rest
	}
	p.used, p.out, q.usedShown = used, out, q.usedNext
	return first
}

// setEvent writes the device event suppression structure, offset and flags at once.
func (q *Device) setEvent(event uint32) {
	shm.Release32(q.ring.deviceEvent, event)
	q.dirty.log.Mark(q.dirty.used, EventBytes)
}
