package blk_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/blk/blktest"
	"github.com/shuntio/shunt/dataplane"
)

// source stands for a queue: what ends begins anew.
type source struct {
	gate  *blk.Gate
	asks  []*again
	stop  atomic.Bool
	count [5]atomic.Uint64 // by outcome
	left  atomic.Int64
}

// again is a request that is submitted again and again.
type again struct {
	blk.Request
	source *source
	due    bool
}

func (a *again) Done(_ *blk.Request, o blk.Outcome) {
	a.source.count[o].Add(1)
	a.source.left.Add(-1)
	a.due = !a.source.stop.Load()
}

func (s *source) Poll() (n int) {
	for _, a := range s.asks {
		if a.due && !s.stop.Load() {
			a.due = false
			a.FUA = false
			s.left.Add(1)
			s.gate.Submit(&a.Request)
			n++
		}
	}
	return n
}

func (s *source) Flush()             { s.gate.Flush() }
func (s *source) Arm() time.Duration { return dataplane.Forever }
func (s *source) Disarm()            {}

func (s *source) Pending() bool {
	for _, a := range s.asks {
		if a.due && !s.stop.Load() {
			return true
		}
	}
	return false
}

// fleet is a volume in use on running workers.
func fleet(t testing.TB, queues, depth int, s blktest.Options, p blk.Policy) (*blk.Volume, *blktest.Store, []*source) {
	t.Helper()
	hosts := blktest.Run(t, 2)
	var store *blktest.Store
	v, err := blk.OpenVolume(blk.VolumeOptions{Name: "disk", Policy: p, Open: func(w blk.Watcher) (blk.Store, error) {
		s.Size, s.Watcher = 1<<20, w
		store = blktest.New(s)
		return store, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	})
	var sources []*source
	for i := range queues {
		h := hosts[i%2]
		g, err := v.NewGate(h)
		if err != nil {
			t.Fatal(err)
		}
		q := &source{gate: g}
		for j := range depth {
			a := &again{source: q, due: true, Request: blk.Request{Op: blk.Op(j % 2), Offset: uint64(j * 4096), Length: 4096, Buffers: [][]byte{make([]byte, 4096)}}}
			if j%8 == 7 {
				a.Request = blk.Request{Op: blk.OpFlush}
			}
			a.Handler = a
			q.asks = append(q.asks, a)
		}
		h.Worker.Do(func() { h.Worker.Add(q) })
		sources = append(sources, q)
		t.Cleanup(func() {
			q.stop.Store(true)
			h.Worker.Do(g.Withdraw)
			until(t, "all requests are done", func() bool { return q.left.Load() == 0 })
			h.Worker.Do(func() { h.Worker.Remove(q) })
			g.Close()
		})
	}
	return v, store, sources
}

func until(t testing.TB, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !is(); time.Sleep(100 * time.Microsecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 seconds: %s", what)
		}
	}
}

func sum(sources []*source, o blk.Outcome) (n uint64) {
	for _, s := range sources {
		n += s.count[o].Load()
	}
	return n
}

// Two workers, four queues; a store that comes and goes; a control side that looks on and changes its mind.
func TestGatesOnWorkers(t *testing.T) {
	v, store, sources := fleet(t, 4, 16, blktest.Options{Jitter: 100 * time.Microsecond, Depth: 24}, blk.Policy{})
	for i := range 10 {
		before := sum(sources, blk.OK)
		until(t, "requests are done", func() bool { return sum(sources, blk.OK) > before+100 })
		store.Break(errCable)
		if s := v.State(); s.Up || s.Why == nil {
			t.Errorf("the volume's state is %+v", s)
		}
		p := blk.Policy{Durability: blk.Durability(i % 2)}
		if i%3 == 0 {
			p.Limits.IOPS = 100_000
		}
		v.SetPolicy(p)
		store.Restore(i%4 == 0)
		if s := v.Stats(); s.InFlight+s.Waiting > 64 {
			t.Errorf("%d requests are under way, and %d wait", s.InFlight, s.Waiting)
		}
	}
	before := sum(sources, blk.OK)
	until(t, "requests are done", func() bool { return sum(sources, blk.OK) > before+100 })
	s := v.Stats()
	if s.Reconnects != 20 || s.Retries == 0 {
		t.Errorf("%d reconnects, %d retries", s.Reconnects, s.Retries)
	}
	if failed := sum(sources, blk.Failed); failed != s.LossesTold {
		t.Errorf("%d requests failed, %d of them to tell of losses", failed, s.LossesTold)
	}
}

// The ring's timer ends what a store does not answer, while the worker sleeps.
func TestTimeoutOnWorker(t *testing.T) {
	v, store, sources := fleet(t, 1, 8, blktest.Options{}, blk.Policy{Timeout: 30 * time.Millisecond})
	store.Silence(true)
	until(t, "requests have failed", func() bool { return sum(sources, blk.Failed) >= 8 })
	store.Silence(false)
	if s := v.Stats(); s.Timeouts < 8 {
		t.Errorf("%d timeouts", s.Timeouts)
	}
}
