package virtq

import (
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
	// Layout is where the tables lie, Size the number of descriptors: a power of two.
	Layout Layout
	Size   int
	// EventIdx was negotiated (VIRTIO_F_EVENT_IDX).
	EventIdx bool
}

// Driver is the driver's side of a split virtqueue: the guest. Tests, load generators and peers are made of it.
//
//	Add ──▶ Publish ──▶ (kick) … Used ──▶ the chain's head and how many bytes were written
//
// Chains of one or several descriptors are freed when they are used, in whatever order the device returns them.
type Driver struct {
	rings
	mask     uint16
	size     uint16
	eventIdx bool

	free       []uint16 // descriptors not in any chain; a stack
	length     []uint16 // of the chain that begins at a descriptor
	availNext  uint16
	availShown uint16
	usedNext   uint16
	usedSeen   uint16
}

// NewDriver begins a fresh queue: the tables are set to zero.
func NewDriver(o DriverOptions) (*Driver, error) {
	r, err := newRings(o.Layout, o.Size)
	if err != nil {
		return nil, err
	}
	clear(o.Layout.Desc[:DescBytes(o.Size)])
	clear(o.Layout.Avail[:AvailBytes(o.Size)])
	clear(o.Layout.Used[:UsedBytes(o.Size)])
	q := &Driver{rings: r, size: uint16(o.Size), mask: uint16(o.Size - 1), eventIdx: o.EventIdx,
		free: make([]uint16, o.Size), length: make([]uint16, o.Size)}
	for i := range q.free {
		q.free[i] = uint16(o.Size - 1 - i)
	}
	return q, nil
}

// Free is how many descriptors are free.
func (q *Driver) Free() int { return len(q.free) }

// Add makes a chain of buffers, first those the device reads, then those it writes. It reports the chain's head, or false if
// there are not enough descriptors. The device sees it after Publish.
func (q *Driver) Add(readable, writable []Buffer) (head uint16, ok bool) {
	n := len(readable) + len(writable)
	if n == 0 || n > len(q.free) {
		return 0, false
	}
	// Descriptors are taken from the stack's top; the chain is written from its end, so that each knows its next.
	next, flags := uint16(0), uint16(0)
	for i := n - 1; i >= 0; i-- {
		at := q.free[len(q.free)-1]
		q.free = q.free[:len(q.free)-1]
		if i >= len(readable) {
			b := writable[i-len(readable)]
			q.desc[at] = desc{addr: b.Addr, len: b.Len, flags: flags | descWrite, next: next}
		} else {
			q.desc[at] = desc{addr: readable[i].Addr, len: readable[i].Len, flags: flags, next: next}
		}
		next, flags = at, descNext
	}
	q.length[next] = uint16(n)
	q.avail[q.availNext&q.mask] = next
	q.availNext++
	return next, true
}

// Publish shows the device what was added, and reports whether it wants to be kicked.
func (q *Driver) Publish() (kick bool) {
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
	if q.usedNext == q.usedSeen {
		seen := shm.Load16(q.usedIdx) // acquire: elements and buffers are read after it
		if seen-q.usedNext > q.size {
			return 0, 0, false, fmt.Errorf("used index jumped from %d to %d in a queue of %d", q.usedNext, seen, q.size)
		}
		if q.usedSeen = seen; seen == q.usedNext {
			return 0, 0, false, nil
		}
	}
	e := q.used[q.usedNext&q.mask]
	if e.id >= uint32(len(q.length)) || q.length[e.id] == 0 {
		return 0, 0, false, fmt.Errorf("used ring returns chain %d, which is not under way", e.id)
	}
	q.usedNext++
	head = uint16(e.id)
	q.reclaim(head)
	return head, e.len, true, nil
}

// reclaim frees a chain's descriptors so that the next chain uses them in the same order.
func (q *Driver) reclaim(head uint16) {
	n := int(q.length[head])
	q.length[head] = 0
	at := len(q.free) + n
	q.free = q.free[:at]
	for i, d := 0, head; i < n; i++ {
		q.free[at-n+i] = d
		d = q.desc[d].next & q.mask
	}
}

// Arm asks the device to call when it has used the next chain. A fence must follow, then Pending.
func (q *Driver) Arm() {
	if q.eventIdx {
		shm.Store16(q.usedEvent, q.usedNext)
	} else {
		shm.Store16(q.availFlags, 0)
	}
}

// Pending tells whether used chains wait.
func (q *Driver) Pending() bool { return shm.Load16(q.usedIdx) != q.usedNext }

// Disarm asks the device not to call.
func (q *Driver) Disarm() {
	if q.eventIdx {
		shm.Store16(q.usedEvent, q.usedNext-1)
	} else {
		shm.Store16(q.availFlags, availNoInterrupt)
	}
}
