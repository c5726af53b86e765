package dataplane

import (
	"errors"
	"slices"
	"sync/atomic"

	"github.com/shuntio/shunt/dataplane/frame"
)

// The way of a frame whose destination another worker owns:
//
//	Send ──▶ outbox ──▶ deliver: borrowed bodies copied ──▶ crossing (a ring) ──▶ arrive ──▶ the destination's out vector
//
// and of a note, which always arrives before every frame that was sent after it:
//
//	Tell ──▶ ring ──▶ hear ──▶ Listener
//
// There is one crossing for each ordered pair of workers: one producer, one consumer, no lock. It has a ring for the frames of links that can wait until there
// is room, and one for those that cannot, so that neither kind is in the way of the other:
//
//   - of patient links (Link.Patient) nothing is lost: one that leaves the ring more than half full is not polled before it is emptier;
//   - of the others a frame is dropped whose destination has as much of the ring already as there is left. A flood to one destination so takes half of
//     the ring, a second one to another as much as the first, and there always is room for those who are not flooded.

// Reasons for which frames are lost between workers.
var (
	DropQueueFull = NewReason("worker-queue-full", "the worker that owns the destination does not keep up with what other workers send it")
	DropNoCopy    = NewReason("no-free-frame-to-cross", "no frame was free to copy the rest of a frame to, whose destination another worker owns")
	DropGone      = NewReason("destination-gone", "the destination was removed while the frame was on its way there")
)

const (
	// patientSize and hastySize are how many frames may lie between two workers. Of each ring, half is what 64-byte frames at 5 Mpps bring in 200 us and 400 us:
	// the common pauses of a shared core, where what comes cannot wait.
	patientSize, hastySize = 2048, 4096
	// noteSize is how many notes may.
	noteSize = 1024
)

// Note is a few words from one worker to another; what they mean is the Listener's affair.
type Note [8]uint64

// Listener hears the notes of other workers, on its own.
type Listener interface {
	// Hear may not keep n. from is the Index of the worker that sent it.
	Hear(w *Worker, from int, n *Note)
}

// crossing is what one worker sends another.
type crossing struct {
	from   *Worker
	frames [2]ring[parcel] // by kind
	notes  ring[Note]
	shares shares
}

// kind of a link: what it brings can wait, or cannot.
type kind uint8

const (
	patient kind = iota
	hasty
)

type parcel struct {
	frame *frame.Frame
	to    *Link
}

// ring has one producer and one consumer.
type ring[T any] struct {
	slots []T
	mask  uint32

	_      [64]byte
	filled uint32        // the producer's: slots written
	seen   uint32        // the producer's: head when it looked last
	tail   atomic.Uint32 // slots to be read; written by the producer
	_      [64]byte
	head   atomic.Uint32 // slots read; written by the consumer
	_      [64]byte
}

func (r *ring[T]) make(n int) { r.slots, r.mask = make([]T, n), uint32(n-1) }

// slot is where the producer writes next; nil if the ring is full.
func (r *ring[T]) slot() *T {
	if r.filled-r.seen == uint32(len(r.slots)) {
		if r.seen = r.head.Load(); r.filled-r.seen == uint32(len(r.slots)) {
			return nil
		}
	}
	return &r.slots[r.filled&r.mask]
}

// share is how many frames a destination has in the ring of hasty ones, as the producer knows.
type share struct {
	n uint32
	_ [60]byte // each producer has one of a link, and shares no cache line for it
}

// shares tell whose frames lie in a ring. They are the producer's: it finds out what was taken from where the consumer's head is.
type shares struct {
	of   []*share // by slot
	head uint32   // the slots before it have been taken, and are accounted for
}

// admits tells whether a destination may have another frame in the ring, whose room is shared by dynamic thresholds (Choudhury and Hahne, 1998).
func (x *shares) admits(r *ring[parcel], s *share) bool {
	if s.n < r.free() {
		return true
	}
	r.seen = r.head.Load()
	for ; x.head != r.seen; x.head++ {
		x.of[x.head&r.mask].n--
	}
	return s.n < r.free()
}

// free is the room there was when the producer looked last.
func (r *ring[T]) free() uint32 { return uint32(len(r.slots)) - (r.filled - r.seen) }

// note enters the frame that is written to the next slot.
func (x *shares) note(r *ring[parcel], s *share) {
	s.n++
	x.of[r.filled&r.mask] = s
}

// outbox collects frames for one other worker until the end of the batch.
type outbox struct {
	worker  *Worker
	ring    *crossing
	parcels [Quantum]parcel
	n       int
}

// Connect lets frames and notes cross between the workers, whose Index is their place in the slice, and frames return to the pools they came
// from. Before any of them runs.
func Connect(workers []*Worker) error {
	pools := make([]*frame.Pool, len(workers))
	for i, w := range workers {
		if w.Index() != i {
			return errors.New("workers must be numbered in order")
		}
		pools[i] = w.pool
		w.boxes = make([]outbox, len(workers))
		for _, l := range w.links {
			l.share(len(workers))
		}
	}
	frame.Connect(pools)
	for _, from := range workers {
		for _, to := range workers {
			if from == to {
				continue
			}
			c := &crossing{from: from}
			c.frames[patient].make(patientSize)
			c.frames[hasty].make(hastySize)
			c.shares.of = make([]*share, hastySize)
			c.notes.make(noteSize)
			from.boxes[to.Index()] = outbox{worker: to, ring: c}
			to.crossings = append(to.crossings, c)
		}
	}
	return nil
}

// Listen sets who hears what other workers tell this one. Before Run.
func (w *Worker) Listen(l Listener) { w.listener = l }

// Tell sends a note to another worker, by its Index. It reports false if there is no room: try again later. Whatever frame this worker sends anywhere after
// it, that frame, and what it leads to, comes to the other worker after the note.
func (w *Worker) Tell(other int, n *Note) bool {
	c := w.boxes[other].ring
	s := c.notes.slot()
	if s == nil {
		if to := w.boxes[other].worker; to.mailbox.asleep.Load() {
			to.mailbox.ring()
		}
		return false
	}
	*s = *n
	c.notes.filled++
	c.notes.tail.Store(c.notes.filled)
	return true // nobody is woken: a note alone changes nothing for who has no frame
}

// hear reads all notes. It comes after frames are taken from anywhere and before they are looked at.
func (w *Worker) hear() {
	for _, c := range w.crossings {
		r := &c.notes
		head, tail := r.head.Load(), r.tail.Load()
		if head == tail {
			continue
		}
		for ; head != tail; head++ {
			if w.listener != nil {
				w.listener.Hear(w, c.from.Index(), &r.slots[head&r.mask])
			}
		}
		r.head.Store(head)
	}
}

// hand puts a frame on its way to another worker.
func (w *Worker) hand(owner *Worker, to *Link, f *frame.Frame) {
	if owner == nil || owner.Index() >= len(w.boxes) {
		w.Drop(to, f, DropGone)
		return
	}
	o := &w.boxes[owner.Index()]
	o.parcels[o.n] = parcel{f, to}
	if o.n++; o.n == Quantum {
		w.deliver(o)
	}
}

// deliver empties an outbox into its crossing. A frame stays in the outbox while its body is copied, which may fault.
func (w *Worker) deliver(o *outbox) {
	r := &o.ring.frames[w.kind]
	for i := range o.n {
		p := &o.parcels[i]
		s := w.room(o, p.to)
		if s == nil {
			w.Drop(p.to, p.frame, DropQueueFull)
			p.frame = nil
			continue
		}
		if p.frame.Borrowed() {
			w.stats.Copied.Store(w.stats.Copied.Load() + 1)
			if !p.frame.Own(w.pool) {
				w.Drop(p.to, p.frame, DropNoCopy)
				p.frame = nil
				continue
			}
		}
		if w.kind == hasty {
			o.ring.shares.note(r, &p.to.shares[w.Index()])
		}
		*s, p.frame = *p, nil
		r.filled++
	}
	o.n = 0
	if w.kind == patient && r.halfFull() {
		w.full |= o.bit()
	}
	w.depart(o)
}

// room is where the next frame for a destination goes; nil if there is none for it.
func (w *Worker) room(o *outbox, to *Link) *parcel {
	c := o.ring
	if w.kind == hasty && !c.shares.admits(&c.frames[hasty], &to.shares[w.Index()]) {
		return nil
	}
	return c.frames[w.kind].slot()
}

// halfFull is the producer's.
func (r *ring[T]) halfFull() bool {
	half := uint32(len(r.slots)) / 2
	if r.filled-r.seen <= half {
		return false
	}
	r.seen = r.head.Load()
	return r.filled-r.seen > half
}

// bit stands for the outbox in a set. Of more than 64 workers, those beyond have none.
func (o *outbox) bit() uint64 { return 1 << o.worker.Index() }

// crowded tells whether a link has to wait for another worker.
func (w *Worker) crowded(l *Link) bool {
	for i := range w.boxes {
		if o := &w.boxes[i]; o.ring != nil && l.crowds&o.bit() != 0 && o.ring.frames[patient].halfFull() {
			return true
		}
	}
	l.crowds = 0
	return false
}

// giveWay has the next round begin behind the link that came through last, so that links which wait for the same room take turns.
func (w *Worker) giveWay() {
	w.first = slices.Index(w.sources, Source(w.through)) + 1 // it may be gone: then with the first one
	w.through = nil
}

// depart shows the other worker what lies in the crossing.
func (w *Worker) depart(o *outbox) {
	departed := false
	for k := range o.ring.frames {
		r := &o.ring.frames[k]
		if n := r.filled - r.tail.Load(); n > 0 {
			w.stats.Crossed.Store(w.stats.Crossed.Load() + uint64(n))
			r.tail.Store(r.filled) // sync/atomic orders it before the load below: see the sleep sequence
			departed = true
		}
	}
	if departed && o.worker.mailbox.asleep.Load() {
		o.worker.mailbox.ring()
	}
}

// arrive takes a quantum of frames of each kind from each other worker and puts them on the last part of their way.
func (w *Worker) arrive() (work int) {
	w.hear() // also when there are no frames: what waits unheard is in the way of what follows
	for _, c := range w.crossings {
		for k := range c.frames {
			r := &c.frames[k]
			if n := r.tail.Load() - r.head.Load(); n > 0 {
				w.kind = kind(k)
				work += w.unload(r, min(n, Quantum))
			}
		}
	}
	return work
}

// unload moves n frames of a crossing to their destinations.
func (w *Worker) unload(r *ring[parcel], n uint32) int {
	defer w.contain(&w.arrived)
	w.hear()
	head := r.head.Load()
	for i := range n {
		p := &r.slots[(head+i)&r.mask]
		w.parcels[i] = *p
		*p = parcel{}
	}
	r.head.Store(head + n)
	for i := range n {
		p := w.parcels[i]
		w.parcels[i] = parcel{}
		w.Send(p.to, p.frame) // which may have moved to yet another worker
	}
	w.flush()
	return int(n)
}

// arriving tells whether frames wait to be taken.
func (w *Worker) arriving() bool {
	for _, c := range w.crossings {
		for k := range c.frames {
			if r := &c.frames[k]; r.tail.Load() != r.head.Load() {
				return true
			}
		}
	}
	return false
}

// nowhere is the port of frames that come from another worker: their link has counters and nothing else.
type nowhere struct{ Port }

// Release implements Port.
func (nowhere) Release() {}
