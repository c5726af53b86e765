package blktest

import (
	"runtime"
	"runtime/debug"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/dataplane/dataplanetest"
	"github.com/shuntio/shunt/dataplane/uring"
	"github.com/shuntio/shunt/tools/need"
	"golang.org/x/sys/unix"
)

// Rig is a worker that the test turns by hand, with a ring, and the other end of a lane's socket: no goroutine but the test's has a part in it.
type Rig struct {
	testing.TB
	blk.Host
	// Peer is the server's end of the socket; -1: there is none.
	Peer int
}

// NewRig makes one, until the end of the test. What has something under way on the ring is closed by a Cleanup that comes later.
func NewRig(tb testing.TB) *Rig {
	tb.Helper()
	runtime.LockOSThread()
	tb.Cleanup(runtime.UnlockOSThread)
	before := debug.SetPanicOnFault(true) // as a worker's goroutine has it
	tb.Cleanup(func() { debug.SetPanicOnFault(before) })
	r := &Rig{TB: tb, Host: blk.Host{Worker: dataplanetest.NewWorker(tb, 16)}, Peer: -1}
	ring, err := uring.Open(uring.Options{Entries: 64})
	if err != nil {
		need.Missing(tb, "io_uring: %v", err)
	}
	if err := ring.Enable(); err != nil {
		tb.Fatal(err)
	}
	r.Ring = ring
	r.Worker.Do(func() { r.Worker.Add(ring) })
	tb.Cleanup(func() {
		r.HangUp()
		if err := ring.Close(); err != nil {
			tb.Error(err)
		}
	})
	return r
}

// Memory is of n bytes, as a guest has it, until the end of the test.
func (r *Rig) Memory(n int) []byte {
	r.Helper()
	m, err := uring.NewMemory(n)
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { m.Free() })
	return m.Bytes()
}

// Pair makes another Peer, and returns the lane's end, on which sends wait soon where narrow.
func (r *Rig) Pair(narrow bool) (fd int) {
	r.Helper()
	r.HangUp()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		r.Fatal(err)
	}
	if narrow {
		unix.SetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_SNDBUF, 1)
	}
	r.Peer = fds[1]
	return fds[0]
}

// HangUp closes the Peer.
func (r *Rig) HangUp() {
	if r.Peer >= 0 {
		unix.Close(r.Peer)
	}
	r.Peer = -1
}

// Round has the worker look at everything once.
func (r *Rig) Round(l blk.Lane) {
	l.Flush()
	r.Worker.Round()
}

// Turn has it go round until a condition holds.
func (r *Rig) Turn(l blk.Lane, until func() bool) {
	r.Helper()
	for end := time.Now().Add(20 * time.Second); !until(); r.Round(l) {
		if time.Now().After(end) {
			r.Fatal("nothing comes of it within 20 s")
		}
	}
}
