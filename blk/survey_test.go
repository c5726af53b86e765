package blk_test

import (
	"runtime"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/blk/blktest"
)

// Who looks at counters waits for no worker that stands still, and gets what it had counted before, with what the others have counted since; and however often they look,
// one asks.
func TestStatsOfABusyWorker(t *testing.T) {
	v, _, sources := fleet(t, 2, 4, blktest.Options{}, blk.Policy{})
	done := func() uint64 { return v.Stats().Ops[blk.OpRead].Done + v.Stats().Ops[blk.OpWrite].Done }
	until(t, "counters move", func() bool { return done() > 100 })
	before := done()

	stands, goOn := make(chan struct{}), make(chan struct{})
	go blk.WorkerOf(sources[0].gate).Do(func() { close(stands); <-goOn })
	<-stands
	goroutines, begin := runtime.NumGoroutine(), time.Now()
	for range 3 {
		if now := done(); now < before {
			t.Errorf("%d requests were done, and now %d", before, now)
		}
	}
	if took := time.Since(begin); took > 6*time.Second {
		t.Errorf("six looks at counters have taken %v", took)
	}
	if n := runtime.NumGoroutine() - goroutines; n > 1 {
		t.Errorf("%d goroutines wait for the worker", n)
	}
	moving := done()
	until(t, "counters move", func() bool { return done() > moving }) // the other worker's
	close(goOn)
	last := done()
	for _, s := range sources {
		s.stop.Store(true)
	}
	until(t, "all has ended", func() bool { return sources[0].left.Load() == 0 && sources[1].left.Load() == 0 })
	until(t, "all is counted", func() bool { s := v.Stats(); return sum(sources, blk.OK) == all(s) })
	if done() < last {
		t.Error("counters go back")
	}
}

func all(s *blk.VolumeStats) (n uint64) {
	for i := range s.Ops {
		n += s.Ops[i].Done
	}
	return n
}
