// Package dataplane is the engine's core: workers that poll ports and move frames between them. It knows no protocol.
//
// The way of a frame, top to bottom in this file:
//
//	Worker.Round ──▶ Link.Poll ──▶ Port.Receive     a vector of frames enters
//	                          ├──▶ Forwarder.Forward  each is given to Send or Drop
//	                          │       Worker.Send ──▶ the out vector of its destination
//	                          ├──▶ Worker.flush ──▶ Port.Transmit of each destination
//	                          └──▶ Port.Release     what was borrowed goes back
//	             └─▶ Link.Flush                     once a round: syscalls, notifications
//
// One worker owns each link, so nothing on this way is shared, locked or allocated. Others talk to a worker by its mailbox
// (Do), which it empties between rounds: a call that returned is also a grace point, since no round that began before
// it is still under way.
package dataplane

import (
	"errors"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/shuntio/shunt/dataplane/frame"
	"golang.org/x/sys/unix"
)

// WorkerOptions configure a Worker. Pool must be set.
type WorkerOptions struct {
	// Pool holds the worker's frames.
	Pool *frame.Pool
	// Start runs on the worker's own thread before the first round, to pin it; nil: nothing.
	Start func() error
	// Idle says what to do when there is no work. Zero: Adaptive.
	Idle IdlePolicy
	// Spin is how long Adaptive goes on polling without work before it sleeps. Zero: 50 us.
	Spin time.Duration
}

// Worker is one polling thread and everything it owns.
type Worker struct {
	options WorkerOptions
	pool    *frame.Pool
	links   []*Link  // those of sources that are links, to find whose memory faulted
	sources []Source // polled in this order
	dirty   []*Link  // links with frames in their out vector
	batch   [Quantum]*frame.Frame

	epoch   time.Time
	now     int64 // ns since epoch, taken once a round
	busy    bool  // the last round found work
	mailbox mailbox
	wake    []unix.PollFd // what ends a sleep; the first is the mailbox's
	drain   []bool        // which of them are eventfds to be read
	timeout unix.Timespec // of the current sleep; here, so that it is not allocated
	stop    atomic.Bool
	free    int // as stats.Free has it
	stats   WorkerStats
}

// WorkerStats are counters of a worker, written by it and read by anybody.
type WorkerStats struct {
	// Rounds counts rounds; Busy those that found work; Work what they found (frames, for links).
	Rounds, Busy, Work atomic.Uint64
	// BusyNanos is the time spent in rounds that found work.
	BusyNanos atomic.Uint64
	// Sleeps counts sleeps; Timeouts those that no file ended; Late those of the timeouts after which there was work that nobody had
	// announced within the time allowed: a missed wakeup.
	Sleeps, Timeouts, Late atomic.Uint64
	// Faults counts rounds that touched memory its owner had taken away.
	Faults atomic.Uint64
	// Free is how many frames of the pool were free at the end of the last round.
	Free atomic.Int64
}

// NewWorker makes a worker; Run makes it work.
func NewWorker(o WorkerOptions) (*Worker, error) {
	if o.Pool == nil {
		return nil, errors.New("worker needs a frame pool")
	}
	if o.Spin == 0 {
		o.Spin = 50 * time.Microsecond
	}
	w := &Worker{options: o, pool: o.Pool, epoch: time.Now()}
	if err := w.mailbox.open(); err != nil {
		return nil, err
	}
	w.Watch(w.mailbox.event, unix.POLLIN, true)
	return w, nil
}

// Pool holds the worker's free frames; only the worker may touch it.
func (w *Worker) Pool() *frame.Pool { return w.pool }

// Now is the time in nanoseconds since some moment, as of the beginning of the round.
func (w *Worker) Now() int64 { return w.now }

// Stats may be read by anybody.
func (w *Worker) Stats() *WorkerStats { return &w.stats }

// Run works on the calling goroutine, which becomes and stays one thread, until Stop. It returns the error of
// WorkerOptions.Start, or nil.
func (w *Worker) Run() error {
	runtime.LockOSThread() // never unlocked: the thread is pinned, and dies with the goroutine
	if w.options.Start != nil {
		if err := w.options.Start(); err != nil {
			w.mailbox.leave(w)
			return err
		}
	}
	debug.SetPanicOnFault(true) // contain tells guests' faults from ours
	w.mailbox.enter()
	defer w.mailbox.leave(w)
	idle := idleState{policy: w.options.Idle, spin: int64(w.options.Spin)}
	for !w.stop.Load() {
		idle.after(w, w.Round())
	}
	return nil
}

// Stop ends Run after its current round, from any goroutine.
func (w *Worker) Stop() {
	w.stop.Store(true)
	w.mailbox.ring()
}

// Close frees what the worker holds of the kernel, after Run returned (or was never called).
func (w *Worker) Close() error { return w.mailbox.close() }

// Round is one turn of the loop: mail, every source, flush. It returns how much work there was. Run calls it; tests that drive
// a worker by hand do, too.
func (w *Worker) Round() (work int) {
	began := w.now
	w.now = int64(time.Since(w.epoch))
	if w.busy {
		w.stats.BusyNanos.Add(uint64(w.now - began))
	}
	if w.mailbox.pending.Load() {
		w.mailbox.empty(w)
	}
	for _, s := range w.sources {
		work += s.Poll()
	}
	for _, s := range w.sources {
		s.Flush()
	}
	w.stats.Rounds.Store(w.stats.Rounds.Load() + 1)
	w.countFree()
	if w.busy = work > 0; w.busy {
		w.stats.Busy.Add(1)
		w.stats.Work.Add(uint64(work))
	}
	return work
}

// countFree tells how many frames are free, after what may have changed that.
func (w *Worker) countFree() {
	if n := w.pool.Len(); n != w.free {
		w.free = n
		w.stats.Free.Store(int64(n))
	}
}

// Add begins to poll a source. Only within Do.
func (w *Worker) Add(s Source) {
	if l, ok := s.(*Link); ok {
		l.worker = w
		w.links = append(w.links, l)
		w.dirty = append(make([]*Link, 0, len(w.links)), w.dirty...) // room for all, so that Send never grows it
	}
	w.sources = append(w.sources, s)
}

// Remove ends polling a source. Only within Do. Nothing of it is under way then.
func (w *Worker) Remove(s Source) {
	if l, ok := s.(*Link); ok {
		w.links = without(w.links, l)
	}
	w.sources = without(w.sources, s)
}

func without[T comparable](from []T, x T) []T {
	kept := make([]T, 0, len(from))
	for _, y := range from {
		if y != x {
			kept = append(kept, y)
		}
	}
	return kept
}

// Poll moves one quantum of frames from the link's port to where its forwarder wants them.
func (l *Link) Poll() (n int) {
	w := l.worker
	defer w.contain(l)
	n = l.Port.Receive(w.batch[:], w.pool)
	if n == 0 {
		return 0
	}
	l.Forwarder.Forward(w, l, w.batch[:n])
	w.flush()
	l.Port.Release()
	return n
}

// Flush ends the round for the link's port.
func (l *Link) Flush() {
	defer l.worker.contain(l)
	l.Port.Flush()
}

// Send puts a frame on its way to a link. The worker takes ownership.
func (w *Worker) Send(to *Link, f *frame.Frame) {
	to.out[to.nout] = f
	to.nout++
	if !to.dirty {
		to.dirty = true
		w.dirty = append(w.dirty, to)
	}
	if to.nout == Quantum {
		w.transmit(to)
	}
}

// Drop recycles a frame and counts it at the link it came from (or was meant for).
func (w *Worker) Drop(at *Link, f *frame.Frame, why Reason) {
	at.Counters.Drop(why, 1)
	w.pool.Put(f)
}

// Clone copies a frame for another destination; nil if no frame is free. The copy borrows the same body.
func (w *Worker) Clone(f *frame.Frame) *frame.Frame {
	g := w.pool.Get()
	if g != nil {
		g.CopyFrom(f)
	}
	return g
}

// flush empties every out vector: borrowed bodies do not outlive the batch that brought them.
func (w *Worker) flush() {
	for i, to := range w.dirty {
		if to.nout > 0 {
			w.transmit(to)
		}
		to.dirty = false
		w.dirty[i] = nil
	}
	w.dirty = w.dirty[:0]
}

// transmit hands the link's out vector to its port.
func (w *Worker) transmit(to *Link) {
	frames := to.out[:to.nout]
	to.Port.Transmit(frames, w.pool)
	w.pool.PutAll(frames)
	to.nout = 0
}
