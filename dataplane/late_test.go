package dataplane_test

import (
	"sync"
	"testing"
	"time"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/shm"
	"golang.org/x/sys/unix"
)

// tardy is a source to which work comes after the worker's sleep has timed out and before the worker looks.
type tardy struct {
	event     int  // by which it is announced
	announces bool // it is
	looks     int  // since Arm: before the sleep, and behind it
	done      func()
}

func (s *tardy) Poll() int {
	if s.looks < 2 {
		return 0
	}
	s.done()
	return 1
}
func (s *tardy) Flush()             {}
func (s *tardy) Arm() time.Duration { s.looks = 0; return time.Millisecond }
func (s *tardy) Disarm()            {}

func (s *tardy) Pending() bool {
	if s.looks++; s.looks == 2 && s.announces {
		shm.Signal(s.event)
	}
	return s.looks == 2
}

// Only work that nobody announces is late: a worker that was given no CPU for a moment after its timeout has missed no wakeup.
func TestLateIsUnannounced(t *testing.T) {
	for _, announced := range []bool{true, false} {
		w := newWorker(t, dataplane.WorkerOptions{Idle: dataplane.Interrupt})
		event, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		if err != nil {
			t.Fatal(err)
		}
		found := make(chan struct{})
		s := &tardy{event: event, announces: announced, done: sync.OnceFunc(func() { close(found) })}
		w.Do(func() { w.Watch(event, unix.POLLIN, true); w.Add(s) })
		stop := run(t, w)
		within(t, func() { <-found })
		stop()
		if late := w.Stats().Late.Load(); (late == 0) != announced || w.Stats().Timeouts.Load() == 0 {
			t.Errorf("announced %v: %d of %d sleeps that timed out were late", announced, late, w.Stats().Timeouts.Load())
		}
		unix.Close(event)
	}
}
