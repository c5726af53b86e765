package blk_test

import (
	"testing"
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/blk/blktest"
	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/dataplanetest"
	"github.com/shuntio/shunt/dataplane/uring"
)

// watch is time that a test lets pass, and the timers that wait for it.
type watch struct {
	now     int64
	running map[*uring.Timer]int64
}

func newWatch() *watch { return &watch{now: int64(time.Hour), running: map[*uring.Timer]int64{}} }

func (w *watch) clock() int64 { return w.now }

func (w *watch) Start(t *uring.Timer, d time.Duration) { w.running[t] = w.now + int64(d) }

func (w *watch) Stop(t *uring.Timer) { delete(w.running, t) }

// next is when the next timer expires; false: none runs.
func (w *watch) next() (at int64, ok bool) {
	for _, x := range w.running {
		if !ok || x < at {
			at, ok = x, true
		}
	}
	return at, ok
}

func (w *watch) expire() {
	for t, at := range w.running {
		if at <= w.now {
			delete(w.running, t)
			t.Handler.Expired(t)
		}
	}
}

// rig is a volume on a store in memory, with gates on workers that the test drives.
type rig struct {
	testing.TB
	watch   *watch
	store   *blktest.Store
	volume  *blk.Volume
	workers []*dataplane.Worker
	gates   []*blk.Gate
}

// ask is one request of a test.
type ask struct {
	blk.Request
	rig  *rig
	done int // times
	o    blk.Outcome
	then func(*ask)
}

func (a *ask) Done(r *blk.Request, o blk.Outcome) {
	if r != &a.Request || r.Handler != blk.Handler(a) {
		a.rig.Errorf("another request is done than was submitted, or it has another handler")
	}
	a.done++
	a.o = o
	if a.then != nil {
		a.then(a)
	}
}

func newRig(tb testing.TB, gates int, s blktest.Options, p blk.Policy) *rig {
	tb.Helper()
	r := openRig(tb, dataplanetest.NewWorkers(tb, 2, 16), gates, s, p)
	tb.Cleanup(r.close)
	return r
}

// openRig makes one for those who close it.
func openRig(tb testing.TB, workers []*dataplane.Worker, gates int, s blktest.Options, p blk.Policy) *rig {
	tb.Helper()
	r := &rig{TB: tb, watch: newWatch(), workers: workers}
	if s.Size == 0 {
		s.Size = 64 << 10
	}
	s.Clock = r.watch.clock
	var err error
	r.volume, err = blk.OpenVolume(blk.VolumeOptions{Name: "disk", Policy: p, Open: func(w blk.Watcher) (blk.Store, error) {
		s.Watcher = w
		r.store = blktest.New(s)
		return r.store, nil
	}})
	if err != nil {
		tb.Fatal(err)
	}
	for i := range gates {
		g, err := r.volume.NewGateAt(blk.Host{Worker: r.workers[i%2]}, r.watch, r.watch.clock)
		if err != nil {
			tb.Fatal(err)
		}
		r.gates = append(r.gates, g)
	}
	return r
}

func (r *rig) close() {
	r.store.Silence(false)
	r.store.Deafen(false)
	for _, g := range r.gates {
		g.Withdraw()
	}
	r.rounds(3)
	r.pass(time.Hour)
	for _, g := range r.gates {
		if n := g.Busy(); n != 0 {
			r.Errorf("%d requests were never done", n)
		}
		g.Close()
	}
	if err := r.volume.Close(); err != nil {
		r.Error(err)
	}
}

// rounds is what the workers do, without any time passing.
func (r *rig) rounds(n int) {
	for range n {
		for _, w := range r.workers {
			w.Round()
		}
		for _, g := range r.gates {
			g.Flush()
		}
	}
}

// pass lets time pass, in steps at which something happens.
func (r *rig) pass(d time.Duration) {
	for end := r.watch.now + int64(d); r.watch.now < end; {
		step := end
		if at, ok := r.watch.next(); ok {
			step = min(step, max(at, r.watch.now))
		}
		r.watch.now = max(min(step, r.watch.now+int64(d)/64+1), r.watch.now)
		r.watch.expire()
		r.rounds(2)
	}
}

// submit sends a request to a gate.
func (r *rig) submit(gate int, op blk.Op, offset int, data []byte) *ask {
	a := &ask{rig: r, Request: blk.Request{Op: op, Offset: uint64(offset), Length: uint64(len(data))}}
	if op <= blk.OpWrite {
		a.Buffers = [][]byte{data}
	}
	r.send(gate, a)
	return a
}

func (r *rig) send(gate int, a *ask) {
	a.rig, a.Handler = r, a
	before := a.done
	r.gates[gate].Submit(&a.Request)
	if a.done != before {
		r.Error("a request was done within Submit")
	}
}

// ended wants a request to be done, so.
func (r *rig) ended(a *ask, o blk.Outcome) {
	r.Helper()
	if a.done != 1 || a.o != o {
		r.Errorf("a request of kind %v is done %d times, with outcome %d, want %d", a.Op, a.done, a.o, o)
	}
}

// open wants a request not to be done.
func (r *rig) open(a *ask) {
	r.Helper()
	if a.done != 0 {
		r.Errorf("a request of kind %v is done with outcome %d, and should wait", a.Op, a.o)
	}
}

func sectors(n int, with byte) []byte {
	b := make([]byte, 512*n)
	for i := range b {
		b[i] = with
	}
	return b
}
