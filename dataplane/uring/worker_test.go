package uring_test

import (
	"testing"
	"time"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/dataplanetest"
	"github.com/shuntio/shunt/dataplane/uring"
	"golang.org/x/sys/unix"
)

// waiter tells a goroutine of the test what came.
type waiter struct {
	op    uring.Op
	timer uring.Timer
	came  chan int32
}

func newWaiter() *waiter {
	w := &waiter{came: make(chan int32, 16)}
	w.op.Handler, w.timer.Handler = w, w
	return w
}

func (w *waiter) Completed(_ *uring.Op, res int32, _ uint32) { w.came <- res }
func (w *waiter) Expired(*uring.Timer)                       { w.came <- -1 }

// A worker that sleeps on its ring is woken by completions of every kind, and by timers, and costs nothing in between.
func TestWorkerSleeps(t *testing.T) {
	for _, mask := range []string{"", "all"} {
		t.Setenv("SHUNT_MASK", mask)
		worker := dataplanetest.NewWorker(t, 64)
		ended := make(chan error)
		go func() { ended <- worker.Run() }()
		for worker.Stats().Rounds.Load() == 0 { // until it runs, Do is the caller's thread
			time.Sleep(time.Millisecond)
		}
		ring, err := uring.Open(uring.Options{})
		if err != nil {
			t.Fatal(err)
		}
		worker.Do(func() {
			if err = ring.Enable(); err == nil {
				worker.Watch(ring.FD(), unix.POLLIN, true)
				worker.Add(ring)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		memory, err := uring.NewMemory(4096)
		if err != nil {
			t.Fatal(err)
		}
		w := newWaiter()
		var f uring.File
		var v *uring.Vector
		worker.Do(func() {
			v = ring.Vector(1)
			f, err = ring.Register(fds[0])
		})
		if err != nil {
			t.Fatal(err)
		}
		asleep := func() uint64 { return worker.Stats().Sleeps.Load() }
		await := func(want int32) {
			t.Helper()
			select {
			case res := <-w.came:
				if res != want {
					t.Errorf("result %d, want %d", res, want)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("the worker sleeps on")
			}
		}
		sleeps := func(before uint64) {
			for end := time.Now().Add(10 * time.Second); asleep() == before && time.Now().Before(end); {
				time.Sleep(time.Millisecond)
			}
		}
		for range 20 {
			before := asleep()
			worker.Do(func() {
				v.Reset()
				v.Add(memory.Bytes())
				ring.Recv(&w.op, f, v, 0)
			})
			sleeps(before)
			if _, err := unix.Write(fds[1], []byte("awake")); err != nil {
				t.Fatal(err)
			}
			await(5)
		}
		began := time.Now()
		worker.Do(func() { ring.Start(&w.timer, 30*time.Millisecond) })
		await(-1)
		if d := time.Since(began); d < 30*time.Millisecond {
			t.Errorf("a timer of 30 ms expired after %v", d)
		}
		// Under way, and nothing happens: the worker sleeps.
		before := asleep()
		worker.Do(func() { ring.Recv(&w.op, f, v, 0) })
		sleeps(before)
		rounds := worker.Stats().Rounds.Load()
		time.Sleep(200 * time.Millisecond)
		if n := worker.Stats().Rounds.Load() - rounds; n > 2000 { // spinning is a million
			t.Errorf("%d rounds while nothing happened", n)
		}
		worker.Do(func() { ring.Cancel(&w.op) })
		await(-int32(unix.ECANCELED))
		worker.Do(func() {
			worker.Remove(ring)
			worker.Unwatch(ring.FD())
			err = ring.Close()
		})
		if err != nil {
			t.Error(err)
		}
		if n := worker.Stats().Late.Load(); n != 0 {
			t.Errorf("%d missed wakeups", n)
		}
		worker.Stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		memory.Free()
		unix.Close(fds[0])
		unix.Close(fds[1])
	}
}

var _ dataplane.Source = (*uring.Ring)(nil)
