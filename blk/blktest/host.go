package blktest

import (
	"runtime"
	"testing"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/dataplanetest"
	"github.com/shuntio/shunt/dataplane/uring"
	"golang.org/x/sys/unix"
)

// Run starts so many workers with a ring each, until the test ends. What the test adds to them it has removed by then (tb.Cleanup).
func Run(tb testing.TB, n int) []blk.Host {
	tb.Helper()
	var hosts []blk.Host
	for _, w := range dataplanetest.NewWorkers(tb, n, 16) {
		hosts = append(hosts, run(tb, w))
	}
	return hosts
}

func run(tb testing.TB, w *dataplane.Worker) blk.Host {
	tb.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := w.Run(); err != nil {
			tb.Error(err)
		}
	}()
	for w.Stats().Rounds.Load() == 0 { // until it runs, Do is the caller's thread
		runtime.Gosched()
	}
	ring, err := uring.Open(uring.Options{Entries: 256})
	if err != nil {
		tb.Fatal(err)
	}
	w.Do(func() {
		if err = ring.Enable(); err == nil {
			w.Watch(ring.FD(), unix.POLLIN, true)
			w.Add(ring)
		}
	})
	tb.Cleanup(func() {
		w.Do(func() {
			w.Remove(ring)
			w.Unwatch(ring.FD())
			if err := ring.Close(); err != nil {
				tb.Error(err)
			}
		})
		w.Stop()
		<-done
	})
	if err != nil {
		tb.Fatal(err)
	}
	return blk.Host{Worker: w, Ring: ring}
}
