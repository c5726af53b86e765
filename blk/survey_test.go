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
	done := func() uint64 { return all(v.Stats()) }
	until(t, "counters move", func() bool { return done() > 100 })
	before := done()

	stands, goOn := make(chan struct{}), make(chan struct{})
	go blk.WorkerOf(sources[0].gate).Do(func() { close(stands); <-goOn })
	<-stands
	goroutines, begin := runtime.NumGoroutine(), time.Now()
	for range 2 {
		if now := done(); now < before {
			t.Errorf("%d requests were done, and now %d", before, now)
		}
	}
	if took := time.Since(begin); took > 3*time.Second {
		t.Errorf("two looks at counters have taken %v", took)
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

// ended hears of a request.
type ended chan blk.Outcome

func (e ended) Done(_ *blk.Request, o blk.Outcome) { e <- o }

// What a gate had counted that is closed counts once, also while the worker does not come that both belonged to.
func TestStatsOfAClosedGate(t *testing.T) {
	h := blktest.Run(t, 1)[0]
	v, err := blk.OpenVolume(blk.VolumeOptions{Name: "disk", Open: func(blk.Watcher) (blk.Store, error) { return blktest.New(blktest.Options{Size: 1 << 20}), nil }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	var gates [2]*blk.Gate
	for i := range gates {
		if gates[i], err = v.NewGate(h); err != nil {
			t.Fatal(err)
		}
		done := make(ended, 1)
		h.Worker.Do(func() {
			gates[i].Submit(&blk.Request{Op: blk.OpRead, Length: 512, Buffers: [][]byte{make([]byte, 512)}, Handler: done})
			gates[i].Flush()
		})
		if o := <-done; o != blk.OK {
			t.Fatalf("outcome %d", o)
		}
	}
	defer gates[1].Close()
	if n := all(v.Stats()); n != 2 {
		t.Errorf("%d requests are counted", n)
	}
	gates[0].Close()
	stands, goOn := make(chan struct{}), make(chan struct{})
	go h.Worker.Do(func() { close(stands); <-goOn })
	<-stands
	defer close(goOn)
	if n := all(v.Stats()); n != 2 {
		t.Errorf("with one gate closed %d requests are counted", n)
	}
}
