package virtq

import (
	"errors"
	"fmt"

	"github.com/shuntio/shunt/dataplane/shm"
)

// Buffer is one buffer as a driver describes it: a guest-physical address and a length in bytes.
type Buffer struct {
	Addr uint64
	Len  uint32
}

// DriverOptions configure the driver's side of a queue.
type DriverOptions struct {
	// Layout is where the tables lie, Size the number of descriptors: a power of two in a split ring.
	Layout Layout
	Size   int
	// Packed, EventIdx and InOrder were negotiated (VIRTIO_F_RING_PACKED, VIRTIO_F_EVENT_IDX, VIRTIO_F_IN_ORDER).
	Packed, EventIdx, InOrder bool
}

// Driver is the driver's side of a virtqueue: the guest. Tests, load generators and peers are made of it.
//
//	Add ──▶ Publish ──▶ (kick) … Used ──▶ the chain's head and how many bytes were written
//
// Chains of one or several descriptors are freed when they are used, in whatever order the device returns them.
type Driver struct {
	rings            // split
	ring  driverSide // packed

	mask     uint16
	size     uint16
	packed   bool
	eventIdx bool
	inOrder  bool

	left   int       // free descriptors
	free   []uint16  // heads not under way, a stack; unused in order, where heads go around
	under  []sent    // by head
	newest uint16    // in order: the head of the next chain
	oldest uint16    // in order: the head of the chain that comes back next
	batch  usedBatch // in order

	// Of a split ring:
	availNext  uint16
	availShown uint16
	usedNext   uint16
	usedSeen   uint16
}

// sent is a chain under way.
type sent struct {
	slots uint16 // its descriptors; 0: not under way
	room  uint32 // bytes it has for the device to write; kept in order only
}

// usedBatch is one used element that stands for all chains up to head (VIRTIO_F_IN_ORDER).
type usedBatch struct {
	open bool
	head uint16
	n    uint32
}

var errNotUnderWay = errors.New("the device returns a chain that is not under way")

// NewDriver begins a fresh queue: the tables are set to zero.
func NewDriver(o DriverOptions) (_ *Driver, err error) {
	q := &Driver{size: uint16(o.Size), packed: o.Packed, eventIdx: o.EventIdx, inOrder: o.InOrder, left: o.Size}
	avail, used := EventBytes, EventBytes
	if o.Packed {
		q.ring, err = newDriverSide(o)
	} else {
		q.rings, err = newRings(o.Layout, o.Size)
		q.mask, avail, used = uint16(o.Size-1), AvailBytes(o.Size), UsedBytes(o.Size)
	}
	if err != nil {
		return nil, err
	}
	clear(o.Layout.Desc[:DescBytes(o.Size)])
	clear(o.Layout.Avail[:avail])
	clear(o.Layout.Used[:used])
	q.under, q.free = make([]sent, o.Size), make([]uint16, o.Size)
	for i := range q.free {
		q.free[i] = uint16(o.Size - 1 - i)
	}
	return q, nil
}

// Free is how many descriptors are free.
func (q *Driver) Free() int { return q.left }

// Add makes a chain of buffers, first those the device reads, then those it writes. It reports the chain's head, or false if
// there are not enough descriptors. The device sees it after Publish.
func (q *Driver) Add(readable, writable []Buffer) (head uint16, ok bool) {
	n := len(readable) + len(writable)
	if n == 0 || n > q.left {
		return 0, false
	}
	if q.packed {
		head = q.addPacked(readable, writable)
	} else {
		// Written from its end, so that each descriptor knows its next.
		more := uint16(0)
		for i := n - 1; i >= 0; i-- {
			b, flags := buffer(readable, writable, i)
			at := q.take(i)
			q.desc[at] = desc{addr: b.Addr, len: b.Len, flags: flags | more, next: head}
			head, more = at, descNext
		}
		q.enter(head)
	}
	q.account(head, n, writable)
	return head, true
}

// account notes that a chain is under way.
func (q *Driver) account(head uint16, slots int, writable []Buffer) {
	q.left -= slots
	s := sent{slots: uint16(slots)}
	if q.inOrder {
		q.newest = uint16((int(q.newest) + slots) % int(q.size))
		for _, b := range writable {
			s.room += b.Len
		}
	}
	q.under[head] = s
}

// buffer is the i-th of a chain, and its flag.
func buffer(readable, writable []Buffer, i int) (b Buffer, flags uint16) {
	if i < len(readable) {
		return readable[i], 0
	}
	return writable[i-len(readable)], descWrite
}

// take takes a free descriptor, the i-th of a chain: in order, those of a chain follow one another (virtio 1.2, 2.7.9).
func (q *Driver) take(i int) uint16 {
	if q.inOrder {
		return (q.newest + uint16(i)) & q.mask
	}
	at := q.free[len(q.free)-1]
	q.free = q.free[:len(q.free)-1]
	return at
}

// enter makes a chain the next entry of the avail ring.
func (q *Driver) enter(head uint16) {
	q.avail[q.availNext&q.mask] = head
	q.availNext++
}

// Publish shows the device what was added, and reports whether it wants to be kicked.
func (q *Driver) Publish() (kick bool) {
	if q.packed {
		return q.publishPacked()
	}
	if q.availNext == q.availShown {
		return false
	}
	before := q.availShown
	q.availShown = q.availNext
	shm.Store16(q.availIdx, q.availNext) // release: descriptors and entries are seen before the index
	shm.Fence()                          // the index is seen before we look whether the device sleeps
	if q.eventIdx {
		return crossed(shm.Load16(q.availEvent), q.availNext, before)
	}
	return shm.Load16(q.usedFlags)&usedNoNotify == 0
}

// Used takes back one chain that the device has used: its head and how many bytes were written. ok is false if there is
// none. A device that returns what it was not given is an error.
func (q *Driver) Used() (head uint16, n uint32, ok bool, err error) {
	switch {
	case q.batch.open:
		return q.usedBatched()
	case q.packed:
		if head, n, ok = q.returnedPacked(); !ok {
			return 0, 0, false, nil
		}
	default:
		if q.usedNext == q.usedSeen {
			if err = q.see(); err != nil || q.usedNext == q.usedSeen {
				return 0, 0, false, err
			}
		}
		e := q.used[q.usedNext&q.mask]
		if e.id >= uint32(q.size) {
			return 0, 0, false, fmt.Errorf("%w: %d", errNotUnderWay, e.id)
		}
		head, n = uint16(e.id), e.len
	}
	if int(head) >= len(q.under) || q.under[head].slots == 0 {
		return 0, 0, false, fmt.Errorf("%w: %d", errNotUnderWay, head)
	}
	if q.inOrder {
		q.batch = usedBatch{open: true, head: head, n: n}
		return q.usedBatched()
	}
	slots := q.end(head)
	if q.packed {
		q.ring.used.advance(slots, q.size)
		q.free = append(q.free, head)
	} else {
		q.reclaim(head, int(slots))
	}
	return head, n, true, nil
}

// see looks at the used index of a split ring.
func (q *Driver) see() error {
	seen := shm.Load16(q.usedIdx) // acquire: elements and buffers are read after it
	if seen-q.usedNext > q.size {
		return fmt.Errorf("used index jumped from %d to %d in a queue of %d", q.usedNext, seen, q.size)
	}
	q.usedSeen = seen
	return nil
}

// usedBatched returns the oldest chain of those that the device returned at once. What it passed over, it has filled (virtio 1.2, 2.7.9).
func (q *Driver) usedBatched() (head uint16, n uint32, ok bool, err error) {
	head = q.oldest
	if !q.packed && q.usedNext == q.usedSeen {
		return 0, 0, false, fmt.Errorf("%w: chain %d, of which the used index tells nothing yet", errNotUnderWay, q.batch.head)
	}
	if n = q.under[head].room; head == q.batch.head {
		n, q.batch.open = q.batch.n, false
	}
	slots := q.end(head)
	q.oldest = uint16((int(head) + int(slots)) % int(q.size))
	q.ring.used.advance(slots, q.size)
	return head, n, true, nil
}

// end takes a chain from those under way.
func (q *Driver) end(head uint16) (slots uint16) {
	slots = q.under[head].slots
	q.under[head].slots = 0
	q.left += int(slots)
	q.usedNext++
	return slots
}

// reclaim frees a chain's descriptors in a split ring, so that the next chain uses them in the same order.
func (q *Driver) reclaim(head uint16, slots int) {
	at := len(q.free)
	q.free = q.free[:at+slots]
	for d := head; at < len(q.free); at++ {
		q.free[at] = d
		d = q.desc[d].next & q.mask
	}
}

// Arm asks the device to call when it has used the next chain. A fence must follow, then Pending.
func (q *Driver) Arm() {
	switch {
	case q.packed:
		shm.Release32(q.ring.driverEvent, eventAt(q.ring.used, q.eventIdx))
	case q.eventIdx:
		shm.Store16(q.usedEvent, q.usedNext)
	default:
		shm.Store16(q.availFlags, 0)
	}
}

// Pending tells whether used chains wait.
func (q *Driver) Pending() bool {
	if q.packed {
		return q.batch.open || q.ring.pending()
	}
	return shm.Load16(q.usedIdx) != q.usedNext
}

// Disarm asks the device not to call.
func (q *Driver) Disarm() {
	switch {
	case q.packed:
		shm.Release32(q.ring.driverEvent, eventsOff)
	case q.eventIdx:
		shm.Store16(q.usedEvent, q.usedNext-1)
	default:
		shm.Store16(q.availFlags, availNoInterrupt)
	}
}
