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
// There is one crossing for each ordered pair of workers: one producer, one consumer, no lock.

// Reasons for which frames are lost between workers.
var (
	DropQueueFull = NewReason("worker-queue-full", "the worker that owns the destination does not keep up with what other workers send it")
	DropNoCopy    = NewReason("no-free-frame-to-cross", "no frame was free to copy the rest of a frame to, whose destination another worker owns")
	DropGone      = NewReason("destination-gone", "the destination was removed while the frame was on its way there")
)

const (
	// crossingSize is how many frames may lie between two workers: what 64-byte frames at 5 Mpps bring in 400 us, the common pauses of a shared core.
	crossingSize = 2048
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
	frames ring[parcel]
	notes  ring[Note]
}

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
	}
	frame.Connect(pools)
	for _, from := range workers {
		for _, to := range workers {
			if from == to {
				continue
			}
			c := &crossing{from: from}
			c.frames.make(crossingSize)
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
	r := &o.ring.frames
	for i := range o.n {
		p := &o.parcels[i]
		if p.frame.Borrowed() {
			w.stats.Copied.Store(w.stats.Copied.Load() + 1)
			if !p.frame.Own(w.pool) {
				w.Drop(p.to, p.frame, DropNoCopy)
				p.frame = nil
				continue
			}
		}
		s := r.slot()
		if s == nil {
			w.Drop(p.to, p.frame, DropQueueFull)
			p.frame = nil
			continue
		}
		*s, p.frame = *p, nil
		r.filled++
	}
	o.n = 0
	if r.halfFull() {
		w.full |= o.bit()
	}
	w.depart(o)
}

// Half of a crossing is for those who do not flood it. A link that leaves it more than half full is not polled before it is emptier, if what it would
// bring can wait (Link.Patient); so frames of the others find room.

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
		if o := &w.boxes[i]; o.ring != nil && l.crowds&o.bit() != 0 && o.ring.frames.halfFull() {
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
	r := &o.ring.frames
	if n := r.filled - r.tail.Load(); n > 0 {
		w.stats.Crossed.Store(w.stats.Crossed.Load() + uint64(n))
		r.tail.Store(r.filled) // sync/atomic orders it before the load below: see the sleep sequence
		if o.worker.mailbox.asleep.Load() {
			o.worker.mailbox.ring()
		}
	}
}

// arrive takes a quantum of frames from each other worker and puts them on the last part of their way.
func (w *Worker) arrive() (work int) {
	w.hear() // also when there are no frames: what waits unheard is in the way of what follows
	for _, c := range w.crossings {
		if n := c.frames.tail.Load() - c.frames.head.Load(); n > 0 {
			work += w.unload(&c.frames, min(n, Quantum))
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
		if c.frames.tail.Load() != c.frames.head.Load() {
			return true
		}
	}
	return false
}

// nowhere is the port of frames that come from another worker: their link has counters and nothing else.
type nowhere struct{ Port }

// Release implements Port.
func (nowhere) Release() {}
