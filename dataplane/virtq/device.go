package virtq

import (
	"fmt"

	"github.com/shuntio/shunt/dataplane/guestmem"
	"github.com/shuntio/shunt/dataplane/shm"
)

// DeviceOptions configure the device's side of a queue.
type DeviceOptions struct {
	// Layout is where the tables lie, Size the number of descriptors: a power of two in a split ring.
	Layout Layout
	Size   int
	// Memory translates buffer addresses.
	Memory *guestmem.Map
	// Packed was negotiated (VIRTIO_F_RING_PACKED): the format of the tables.
	Packed bool
	// Base is the avail index from which to go on: zero for a fresh split ring, PackedStart for a fresh packed one. A packed ring's
	// has the wrap counter in its highest bit.
	Base uint16
	// UsedBase is where a packed ring's used descriptors go on, in the same form. It is Base unless chains are under way (Resume). A split ring's
	// used index lies in the ring and is read from there.
	UsedBase uint16
	// EventIdx and Indirect were negotiated (VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC).
	EventIdx, Indirect bool
	// InOrder was negotiated (VIRTIO_F_IN_ORDER): chains are completed in the order in which they were taken, and the driver knows.
	InOrder bool
	// Log and UsedLog: see SetLog. A nil Log takes no marks.
	Log     *guestmem.Log
	UsedLog uint64
	// Lasting: chains may be under way while SetLog is called, so what the log wants to know of them is kept at all times.
	Lasting bool
	// Status: the last writable byte of each chain is written, whatever length Complete is told. So the log has all of a chain's buffers marked, and a packed ring's used descriptor
	// says that they were written to.
	Status bool
}

// Device is the device's side of a virtqueue:
//
//	Next ──▶ a Chain of buffers ──▶ Complete ──▶ Publish ──▶ the driver sees it
//
// One worker owns it.
type Device struct {
	packed   bool
	direct   bool // done is the used ring itself
	eventIdx bool
	indirect bool
	inOrder  bool
	size     uint16
	mask     uint16 // of done
	note     uint16 // not 0: Next leaves a note of each chain in chains or dirty. A descriptor flag, so that with a packed ring one look tells what takes longer

	availNext uint16 // the next entry of a split ring's avail ring to take
	availSeen uint16 // avail.idx when we looked last: the driver's cache line is touched once a batch
	hinted    uint16 // the entry of a split ring's avail ring behind the last one that Hint has seen
	usedNext  uint16 // the next element to complete
	usedShown uint16 // the first one that is not published
	last      uint16 // the chain taken last, where chains is kept

	memory *guestmem.Map
	done   []usedElem // completed, by index: the used ring where that is all there is to do; else Publish makes of it what is to be
	rings             // split
	ring   packedSide // packed
	chains []underWay // by head; of a packed ring, or one in order, or one whose writes are logged
	dirty  dirty
}

// underWay is what is kept of a chain from Next to Publish.
type underWay struct {
	slots  uint16 // descriptors of a packed ring; 0: not under way
	before uint16 // the chain that was taken before it
	reads  bool   // it has nothing to write
	_      [3]byte
}

// NewDevice takes over the device's side of a queue.
func NewDevice(o DeviceOptions) (_ *Device, err error) {
	q := &Device{size: uint16(o.Size), memory: o.Memory, packed: o.Packed, eventIdx: o.EventIdx, indirect: o.Indirect, inOrder: o.InOrder}
	if o.Packed {
		q.ring, err = newPackedSide(o)
	} else {
		q.rings, err = newRings(o.Layout, o.Size)
	}
	if err != nil {
		return nil, err
	}
	if !o.Packed {
		q.availNext, q.availSeen = o.Base, o.Base
		q.usedNext = shm.Load16(q.usedIdx)
		q.usedShown = q.usedNext
	}
	if o.Packed || o.InOrder {
		q.chains = make([]underWay, o.Size)
	}
	room := 1
	for room < o.Size {
		room *= 2
	}
	q.mask = uint16(room - 1)
	q.dirty = dirty{lasting: o.Lasting, status: o.Status, table: o.Layout.Desc[:DescBytes(o.Size)]}
	q.SetLog(o.Log, o.UsedLog)
	q.Disarm()
	return q, nil
}

// Base is the avail index from which another device would go on, in the form of DeviceOptions.Base. Chains taken and not
// completed are lost to it, unless it is told of them by Resume.
func (q *Device) Base() uint16 {
	if q.packed {
		return q.ring.avail.base()
	}
	return q.availNext
}

// UsedBase is where the used index stands as the driver sees it, in the same form.
func (q *Device) UsedBase() uint16 {
	if q.packed {
		return q.ring.used.base()
	}
	return q.usedShown
}

// Size is the number of descriptors.
func (q *Device) Size() int { return int(q.size) }

// Available tells how many chains wait, looking into the ring only if it knows of none. In a packed ring it looks no further than a batch.
func (q *Device) Available() (int, error) {
	if q.packed {
		return q.availablePacked()
	}
	if q.availNext == q.availSeen {
		seen := shm.Load16(q.availIdx) // acquire: the ring's entries and the descriptors are read after it
		if seen-q.availNext > q.size {
			return 0, fmt.Errorf("%w from %d to %d in a queue of %d", ErrIndex, q.availNext, seen, q.size)
		}
		q.availSeen = seen
	}
	return int(q.availSeen - q.availNext), nil
}

// HintEvery is how many chains are taken between two calls of Hint, and near how far ahead of their turn that looks. Much more at once, and a CPU comes
// to wait for the first while it asks for the last: it has a dozen or two cache lines on their way at a time.
const (
	HintEvery = 4
	near      = 8
)

// Hint begins to bring the first buffers of chains that are next into the cache, if as many as n are to be taken. It is called before the first of them
// and then every HintEvery chains. What it reads it reads ahead of time, so nothing is judged by it; Next reads again. Where no cache has the buffers, and
// another CPU does, it saves more than half of the time.
func (q *Device) Hint(n int) {
	if q.packed {
		q.hintPacked(n)
		return
	}
	if int16(q.hinted-q.availNext) < 0 {
		q.hinted = q.availNext
	}
	end := q.availNext + uint16(min(n, near, int(q.availSeen-q.availNext)))
	for ; int16(end-q.hinted) > 0; q.hinted++ {
		head := q.avail[q.hinted&q.mask]
		if int(head) >= len(q.desc) {
			return
		}
		d := &q.desc[head]
		if view := q.memory.View(d.addr, d.len); view != nil {
			prefetch(view, d.flags)
		}
	}
}

// prefetch begins to bring a buffer nearer for what a device does with it: read or write.
func prefetch(view []byte, flags uint16) {
	if flags&descWrite != 0 {
		shm.PrefetchWrite(view)
	} else {
		shm.Prefetch(view)
	}
}

// Next takes the next chain; Available must have said that there is one. After an error the queue is of no more use.
func (q *Device) Next(c *Chain) error {
	at := q.availNext & q.mask
	if int(at) >= len(q.avail) { // the bounds check, which costs nothing more, and the question: a packed queue has no avail ring
		return q.nextPacked(c)
	}
	head := q.avail[at]
	if int(head) >= len(q.desc) {
		return q.badHead(head)
	}
	q.availNext++
	c.Head = head
	d := q.desc[head] // read once: the driver may write it again at any time
	if d.flags&(descNext|descIndirect) == 0 {
		if view := q.memory.View(d.addr, d.len); view != nil {
			c.one(view, d.flags)
			if q.note != 0 {
				q.remember(c)
			}
			return nil
		}
	}
	return q.nextLong(c, d)
}

// Back returns the chain taken last, which is not completed, to the driver's side: the next call of Next takes it again. For a device that finds
// it cannot serve it now; of its writable buffers it has written no more than the first n bytes.
func (q *Device) Back(n uint32) {
	if q.packed || q.note != 0 {
		q.backNoted(n)
		return
	}
	q.availNext--
}

// Rewind takes back what was taken and not published, completed or not: the driver has seen nothing of it. It is
// for a device that completes in order and was interrupted between Next and Publish.
func (q *Device) Rewind() {
	if q.packed || q.note != 0 {
		q.rewindNoted()
	}
	q.availNext, q.usedNext = q.usedShown, q.usedShown
}

// Complete gives a chain back, n bytes of it written, from the first writable one on. The driver sees it after Publish. Chains may be completed in any order, unless InOrder was
// negotiated.
func (q *Device) Complete(head uint16, n uint32) {
	q.done[q.usedNext&q.mask] = usedElem{id: uint32(head), len: n}
	q.usedNext++
}

// Publish shows the driver what was completed, and reports whether it wants to be called.
func (q *Device) Publish() (call bool) {
	if q.usedNext == q.usedShown {
		return false
	}
	if q.packed {
		return q.publishPacked()
	}
	if !q.direct {
		q.fillUsed()
	}
	before := q.usedShown
	q.usedShown = q.usedNext
	shm.Store16(q.usedIdx, q.usedNext) // release: buffers and elements are seen before the index
	if q.dirty.log != nil {
		q.dirty.log.Mark(q.dirty.used+usedIdxAt, 2)
	}
	shm.Fence() // the index is seen before we look whether the driver sleeps
	if q.eventIdx {
		return crossed(shm.Load16(q.usedEvent), q.usedNext, before)
	}
	return shm.Load16(q.availFlags)&availNoInterrupt == 0
}

// Arm asks the driver to kick when it makes the next chain available. A fence must follow, then Pending.
func (q *Device) Arm() {
	switch {
	case q.packed:
		q.setEvent(eventAt(q.ring.avail, q.eventIdx))
	case q.eventIdx:
		q.setAvailEvent(q.availNext)
	default:
		q.setUsedFlags(0)
	}
}

// Pending tells whether chains wait. A broken index counts as work: Available finds it.
func (q *Device) Pending() bool {
	if q.packed {
		return q.ring.pending()
	}
	return shm.Load16(q.availIdx) != q.availNext
}

// Disarm asks the driver not to kick, while the queue is polled anyway.
func (q *Device) Disarm() {
	switch {
	case q.packed:
		q.setEvent(eventsOff)
	case q.eventIdx:
		q.setAvailEvent(q.availNext - 1) // an index just passed is reached again only after 65535 more chains
	default:
		q.setUsedFlags(usedNoNotify)
	}
}

// SetMemory replaces the map that buffer addresses are translated with. The tables stay where they are.
func (q *Device) SetMemory(m *guestmem.Map) { q.memory, q.ring.hinted = m, 0 }
