package nvmetcp

import (
	"context"
	"runtime"
	"runtime/debug"
	"testing"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/dataplanetest"
	"github.com/shuntio/shunt/dataplane/uring"
	"golang.org/x/sys/unix"
)

// rig is a lane on a worker that the test turns by hand, and the other end of its socket: no goroutine but the test's has a part in it.
type rig struct {
	t      testing.TB
	worker *dataplane.Worker
	ring   *uring.Ring
	lane   *lane
	peer   int
	memory []byte // the guest's

	ups, downs int
	why        error
	ended      int
	last       blk.Outcome
}

func (r *rig) Up(bool)                            { r.ups++ }
func (r *rig) Down(why error)                     { r.downs, r.why = r.downs+1, why }
func (r *rig) Room()                              {}
func (r *rig) Done(_ *blk.Request, o blk.Outcome) { r.ended, r.last = r.ended+1, o }

// rigLimits are of a controller that takes 8 KiB in capsules.
func rigLimits() limits {
	return limits{terms: terms{align: 4, maxH2CData: 128 << 10}, nsid: 1, shift: 9, depth: 31, inCapsule: 8 << 10, most: 128 << 10, mostZeroes: 32 << 20, mostDiscard: 1 << 40,
		timeout: 1 << 40, can: [blk.Ops]bool{true, true, true, true, true}}
}

func newRig(t testing.TB, dataDigest bool) *rig {
	t.Helper()
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	before := debug.SetPanicOnFault(true)
	t.Cleanup(func() { debug.SetPanicOnFault(before) })
	r := &rig{t: t, worker: dataplanetest.NewWorker(t, 64)}
	var err error
	if r.ring, err = uring.Open(uring.Options{Entries: 64}); err == nil {
		err = r.ring.Enable()
	}
	if err != nil {
		t.Fatal(err)
	}
	r.worker.Do(func() { r.worker.Add(r.ring) })
	m, err := uring.NewMemory(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	r.memory = m.Bytes()
	s := &Store{o: Options{QueueDepth: 32, DataDigest: dataDigest}, lanes: make([]*lane, 1)}
	if r.lane, err = newLane(s, blk.Host{Worker: r.worker, Ring: r.ring}, r); err != nil {
		t.Fatal(err)
	}
	r.lane.qid, s.lanes[0] = 1, r.lane
	t.Cleanup(func() {
		r.lane.Close()
		if err := r.ring.Close(); err != nil {
			t.Error(err)
		}
		if r.lane.memory != nil {
			t.Error("the lane has kept its memory")
		}
		m.Free()
	})
	return r
}

func newAssociation() *association {
	a := &association{o: &Options{}, aborts: make(chan abort, 64), ana: make(chan struct{}, 1)}
	a.ctx, a.stop = context.WithCancelCause(context.Background())
	return a
}

// connect gives the lane a socket.
func (r *rig) connect(l limits) {
	r.t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	r.peer = fds[1]
	r.t.Cleanup(func() { unix.Close(fds[1]) })
	r.lane.quiet = make(chan struct{})
	if err := r.lane.attach(newAssociation(), fds[0], l, true, true); err != nil {
		r.t.Fatal(err)
	}
}

// turn lets the worker go round until a condition holds.
func (r *rig) turn(until func() bool) {
	for i := 0; !until(); i++ {
		if i > 1e6 {
			r.t.Fatal("nothing comes of it")
		}
		r.lane.Flush()
		r.worker.Round()
	}
}

// read takes n bytes that the lane has sent.
func (r *rig) read(b []byte) {
	for got := 0; got < len(b); {
		r.lane.Flush()
		r.worker.Round()
		n, err := unix.Read(r.peer, b[got:])
		if err != nil || n == 0 {
			r.t.Fatalf("read what the lane sent: %d, %v", n, err)
		}
		got += n
	}
}

func (r *rig) write(b []byte) {
	for len(b) > 0 {
		n, err := unix.Write(r.peer, b)
		if err != nil {
			r.t.Fatal(err)
		}
		b = b[n:]
		r.worker.Round()
	}
}
