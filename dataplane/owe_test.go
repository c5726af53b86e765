package dataplane_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/shm"
	"golang.org/x/sys/unix"
)

// debtor gives work away and is told by a file when it is done.
type debtor struct {
	worker *dataplane.Worker
	give   atomic.Bool
	done   atomic.Uint32
	seen   uint32
}

func (d *debtor) Poll() int {
	if d.give.CompareAndSwap(true, false) {
		d.worker.Owe(1)
		return 1
	}
	if n := d.done.Load(); n != d.seen {
		d.seen = n
		d.worker.Owe(-1)
		return 1
	}
	return 0
}
func (d *debtor) Flush()             {}
func (d *debtor) Arm() time.Duration { return dataplane.Forever }
func (d *debtor) Pending() bool      { return d.give.Load() || d.done.Load() != d.seen }
func (d *debtor) Disarm()            {}

// A worker that would go on polling for an hour sleeps while others have its work, and polls again when they have given it back.
func TestOwedIsSleptFor(t *testing.T) {
	w := newWorker(t, dataplane.WorkerOptions{Spin: time.Hour})
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(event)
	d := &debtor{worker: w}
	w.Do(func() { w.Watch(event, unix.POLLIN, true); w.Add(d) })
	defer run(t, w)()
	polls := func() { // it does when rounds go on though nobody wakes it
		t.Helper()
		within(t, func() {
			for from := w.Stats().Rounds.Load(); w.Stats().Rounds.Load() < from+1000; {
				time.Sleep(time.Millisecond)
			}
		})
	}
	for range 10 {
		polls()
		slept := w.Stats().Sleeps.Load()
		d.give.Store(true)
		within(t, func() {
			for w.Stats().Sleeps.Load() == slept {
				time.Sleep(time.Millisecond)
			}
		})
		d.done.Add(1)
		shm.Signal(event)
	}
	polls()
}
