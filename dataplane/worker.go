// Package dataplane is the engine's core: workers that poll ports and move frames between them. It knows no protocol.
//
// The way of a frame, top to bottom in this file:
//
//	Worker.Round ──▶ Link.Poll ──▶ Port.Receive     a vector of frames enters
//	                          ├──▶ Forwarder.Forward  each is given to Send or Drop
//	                          │       Worker.Send ──▶ the out vector of its destination
//	                          ├──▶ Worker.flush ──▶ Port.Transmit of each destination
//	                          └──▶ Port.Release     what was borrowed goes back
//	             ├─▶ arrive                         frames that other workers send (crossing.go)
//	             └─▶ Link.Flush                     once a round: syscalls, notifications
//
// One worker owns each link, so nothing on this way is locked or allocated, and what crosses from one worker to another crosses by rings of one
// producer and one consumer. The control side talks to a worker by its mailbox (Do), which it empties between rounds: a call that
// returned is also a grace point, since no round that began before it is still under way.
package dataplane

import (
	"errors"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/shm"
	"golang.org/x/sys/unix"
)

// WorkerOptions configure a Worker. Pool must be set.
type WorkerOptions struct {
	// Pool holds the worker's frames.
	Pool *frame.Pool
	// Index is the worker's number among those it is connected with, from 0.
	Index int
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
	sources []Source // polled in this order, from first on and around
	first   int
	dirty   []*Link // links with frames in their out vector
	batch   [Quantum]*frame.Frame

	now     int64 // ns since epoch, taken once a round
	carried int64 // when frames came last
	owed    int   // see Owe

	// To and from other workers; see crossing.go.
	boxes     []outbox // by the other's Index
	kind      kind     // of the link whose frames are under way
	full      uint64   // the other workers, by bits, to which too little room was left
	through   *Link    // the last one that had to wait for room to cross and found it
	crossings []*crossing
	parcels   [Quantum]parcel // being unloaded
	arrived   Link            // where they come from
	listener  Listener

	busy    bool // the last round found work
	mailbox mailbox
	watches []watch       // what ends a sleep; the first is the mailbox's
	poller  *shm.Poller   // of those that are eventfds
	deaf    int           // files that could not be put into it
	files   []unix.PollFd // the poller, and the other files
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
	// Crossed counts frames given to other workers; Copied those of them whose borrowed body had to be copied for that.
	Crossed, Copied atomic.Uint64
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
	w := &Worker{options: o, pool: o.Pool, carried: -1 << 62, arrived: Link{Name: "other workers", Port: nowhere{}, Counters: &Counters{}}}
	if err := w.mailbox.open(); err != nil {
		return nil, err
	}
	var err error
	if w.poller, err = shm.NewPoller(); err != nil {
		return nil, errors.Join(err, w.mailbox.close())
	}
	w.files = []unix.PollFd{{Fd: int32(w.poller.FD()), Events: unix.POLLIN}}
	w.Watch(w.mailbox.event, unix.POLLIN, true)
	return w, nil
}

// Index is the worker's number among those it is connected with.
func (w *Worker) Index() int { return w.options.Index }

// Pool holds the worker's free frames; only the worker may touch it.
func (w *Worker) Pool() *frame.Pool { return w.pool }

// epoch is what all workers count from, so that they can compare times.
var epoch = time.Now()

// Clock is the time by which Worker.Now counts, read at this moment.
func Clock() int64 { return int64(time.Since(epoch)) }

// Now is the time in nanoseconds since a moment that all workers share, as of the beginning of the round.
func (w *Worker) Now() int64 { return w.now }

// Stats may be read by anybody.
func (w *Worker) Stats() *WorkerStats { return &w.stats }

// Run works on the calling goroutine, which becomes and stays one thread, until Stop. It returns the error of
// WorkerOptions.Start, or nil.
func (w *Worker) Run() error {
	runtime.LockOSThread()      // never unlocked: the thread is pinned, and dies with the goroutine
	debug.SetPanicOnFault(true) // contain tells guests' faults from ours
	w.mailbox.enter()
	defer w.mailbox.leave(w)
	if w.options.Start != nil {
		if err := w.options.Start(); err != nil {
			return err
		}
	}
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
func (w *Worker) Close() error { return errors.Join(w.mailbox.close(), w.poller.Close()) }

// Round is one turn of the loop: mail, every source, flush. It returns how much work there was. Run calls it; tests that drive
// a worker by hand do, too.
func (w *Worker) Round() (work int) {
	began := w.now
	w.now = Clock()
	if w.busy {
		w.stats.BusyNanos.Add(uint64(w.now - began))
	}
	if w.mailbox.pending.Load() {
		w.mailbox.empty(w)
	}
	if w.through != nil {
		w.giveWay()
	}
	for _, s := range w.sources[w.first:] {
		work += s.Poll()
	}
	for _, s := range w.sources[:w.first] {
		work += s.Poll()
	}
	if len(w.crossings) > 0 {
		if n := w.arrive(); n > 0 {
			work += n
			w.carried = w.now
		}
	}
	for _, s := range w.sources {
		s.Flush()
	}
	w.pool.Exchange()
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
		l.share(len(w.boxes))
		l.owner.Store(w)
		l.crowds = 0
		w.links = append(w.links, l)
		w.dirty = append(make([]*Link, 0, len(w.links)), w.dirty...) // room for all, so that Send never grows it
	}
	w.sources = append(w.sources, s)
}

// Remove ends polling a source. Only within Do. Nothing of it is under way then.
func (w *Worker) Remove(s Source) {
	if l, ok := s.(*Link); ok {
		w.links = without(w.links, l)
		l.owner.Store(nil)
	}
	w.sources, w.first = without(w.sources, s), 0
}

// Move gives a link to another worker, from any goroutine that is no worker's. also runs while both stand still between two rounds, to take along what else
// belongs to the link: the files of its port. What other workers sent meanwhile follows.
//
// One call at a time: the worker that gives waits for the one that takes.
func (l *Link) Move(to *Worker, also func()) {
	from := l.owner.Load()
	if from == to {
		return
	}
	from.Do(func() {
		from.links, from.sources, from.first = without(from.links, l), without(from.sources, Source(l)), 0
		to.Do(func() {
			to.Add(l)
			also()
		})
	})
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
	w := l.owner.Load()
	if l.crowds != 0 {
		if w.crowded(l) {
			return 0
		}
		w.through = l
	}
	most := l.quantum.turn()
	if limit := l.Limits[In].Load(); limit != nil {
		most = limit.frames(w.now, most)
	}
	if most == 0 {
		return 0
	}
	defer w.contain(l)
	before := l.Counters.RxBytes.Load()
	n = l.Port.Receive(w.batch[:most], w.pool)
	if n == 0 {
		return 0
	}
	w.carried = w.now
	bytes := l.Counters.RxBytes.Load() - before
	l.quantum.took(n, bytes)
	if limit := l.Limits[In].Load(); limit != nil {
		limit.took(w.now, w.batch[:n], bytes)
	}
	if len(w.crossings) > 0 {
		w.hear()
	}
	if tap := l.Tap.Load(); tap != nil {
		tap.Frames(w.Index(), In, w.batch[:n])
	}
	w.full, w.kind = 0, l.kind()
	l.Forwarder.Forward(w, l, w.batch[:n])
	w.flush()
	l.crowds = w.full
	l.Port.Release()
	return n
}

// Flush ends the round for the link's port.
func (l *Link) Flush() {
	defer l.owner.Load().contain(l)
	l.Port.Flush()
}

// Send puts a frame on its way to a link, whichever worker owns that. The worker takes ownership of the frame.
func (w *Worker) Send(to *Link, f *frame.Frame) {
	if owner := to.owner.Load(); owner != w {
		w.hand(owner, to, f)
		return
	}
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

// Drop recycles a frame and counts it at a link: the one it came from, unless it is the one it was meant for that does not take it.
func (w *Worker) Drop(at *Link, f *frame.Frame, why Reason) {
	w.Refuse(at, f, why)
	w.pool.Put(f)
}

// Refuse counts a frame as Drop does, and leaves it to the caller: others get it, or it is dropped at several links.
func (w *Worker) Refuse(at *Link, f *frame.Frame, why Reason) {
	at.Counters.Drop(why, 1)
	if tap := at.Tap.Load(); tap != nil {
		tap.Dropped(w.Index(), f, why)
	}
}

// Clone copies a frame for another destination; nil if no frame is free. The copy borrows the same body, but what f owns is copied.
func (w *Worker) Clone(f *frame.Frame) *frame.Frame {
	g := w.pool.Get()
	if g == nil {
		return nil
	}
	g.CopyFrom(f)
	if f.Owns() && !g.Own(w.pool) {
		w.pool.Put(g)
		return nil
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
	for i := range w.boxes {
		if w.boxes[i].n > 0 {
			w.deliver(&w.boxes[i])
		}
	}
}

// transmit hands the link's out vector to its port.
func (w *Worker) transmit(to *Link) {
	frames := to.out[:to.nout]
	if limit := to.Limits[Out].Load(); limit != nil {
		frames = frames[:limit.police(w, to, frames)]
	}
	tap := to.Tap.Load()
	if tap != nil {
		tap.Frames(w.Index(), Out, frames)
	}
	w.give(to, frames)
	if tap != nil {
		w.lost(tap, frames)
	}
	w.pool.PutAll(frames)
	to.nout = 0
}

// give lets a port transmit. Where that finds its own guest's memory gone, its frames are lost, and the rest of the batch is not.
func (w *Worker) give(to *Link, frames []*frame.Frame) {
	defer w.spare(to, frames)
	to.Port.Transmit(frames, w.pool)
}

// lost shows a tap which of the frames the port has dropped.
func (w *Worker) lost(tap *Tap, frames []*frame.Frame) {
	for _, f := range frames {
		if f != nil && f.Dropped != 0 {
			tap.Dropped(w.Index(), f, Reason(f.Dropped-1))
		}
	}
}
