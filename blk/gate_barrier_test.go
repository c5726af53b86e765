package blk_test

import (
	"context"
	"testing"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/blk/blktest"
	"github.com/shuntio/shunt/dataplane/dataplanetest"
)

// A gate's own flush is a request, too: as long as the lane has it, the lane is not to be closed.
func TestBusyWithItsFlush(t *testing.T) {
	r := newRig(t, 1, blktest.Options{NoFUA: true}, blk.Policy{Durability: blk.DurabilityFUA})
	w := r.submit(0, blk.OpWrite, 0, sectors(1, 1))
	r.workers[0].Round() // it is written
	r.gates[0].Flush()   // and its flush on its way,
	r.store.Silence(true)
	r.store.Deafen(true) // from where nobody calls it back
	r.gates[0].Withdraw()
	r.ended(w, blk.Withdrawn)
	r.rounds(2)
	if n := r.gates[0].Busy(); n != 1 {
		t.Errorf("%d requests are under way, and the lane has one", n)
	}
	r.store.Silence(false)
	r.rounds(2)
	if n := r.gates[0].Busy(); n != 0 {
		t.Errorf("%d requests are under way, and the lane has none", n)
	}
}

// late is a store that forgets what was written and not flushed when it is lost, and a lane whose answers still come when it is said to be down: like a controller
// that does not reach its namespace any more, and ends what it has.
type late struct {
	events blk.Events
	up     bool
	has    []*blk.Request
	cache  map[uint64]bool // what was written, by offset: true is stable
}

func (s *late) Info() blk.Info                            { return blk.Info{Size: 1 << 20, BlockSize: 512, Flush: true} }
func (s *late) Refresh(context.Context) (blk.Info, error) { return s.Info(), nil }
func (s *late) State() blk.State                          { return blk.State{} }
func (s *late) Flush()                                    {}
func (s *late) Withdraw(*blk.Request)                     {}
func (s *late) Open(_ blk.Host, e blk.Events) (blk.Lane, error) {
	s.events = e
	return lateLane{s}, nil
}
func (s *late) Close() error { return nil }

// lateLane is the same without the store's Close.
type lateLane struct{ *late }

func (l lateLane) Close() {}

func (s *late) Submit(r *blk.Request) bool {
	if s.up {
		s.has = append(s.has, r)
	}
	return s.up
}

// answer ends the oldest request.
func (s *late) answer() {
	r := s.has[0]
	s.has = s.has[1:]
	switch r.Op {
	case blk.OpWrite:
		s.cache[r.Offset] = false
	case blk.OpFlush:
		for at := range s.cache {
			s.cache[at] = true
		}
	}
	r.Handler.Done(r, blk.OK)
}

// newLate opens a volume on one that is not up yet, with a gate.
func newLate(t *testing.T, p blk.Policy) (*late, *rig) {
	store := &late{cache: map[uint64]bool{}}
	r := &rig{TB: t, watch: newWatch(), workers: dataplanetest.NewWorkers(t, 1, 16)}
	var err error
	r.volume, err = blk.OpenVolume(blk.VolumeOptions{Name: "disk", Policy: p, Open: func(blk.Watcher) (blk.Store, error) { return store, nil }})
	check(t, err)
	g, err := r.volume.NewGateAt(blk.Host{Worker: r.workers[0]}, r.watch, r.watch.clock)
	check(t, err)
	r.gates = append(r.gates, g)
	return store, r
}

// Who does not wait for a store waits for a lane that is just being opened, and no longer when it turns out that there is none.
func TestNeverUp(t *testing.T) {
	store, r := newLate(t, blk.Policy{OnError: blk.Fail})
	early := r.submit(0, blk.OpRead, 0, sectors(1, 0))
	r.gates[0].Flush()
	r.open(early)
	store.events.Down(errCable)
	r.ended(early, blk.Failed)
	a := r.submit(0, blk.OpRead, 0, sectors(1, 0))
	r.gates[0].Flush()
	r.ended(a, blk.Failed)
}

// A write that is done when its lane is down already waits for a flush. If the store comes back without what it had in its cache, it is written again.
func TestWrittenWhileDown(t *testing.T) {
	store, r := newLate(t, blk.Policy{Durability: blk.DurabilityFUA})
	g := r.gates[0]
	store.up = true
	store.events.Up(true)

	w := r.submit(0, blk.OpWrite, 4096, sectors(1, 1))
	g.Flush()
	store.up = false
	store.events.Down(errCable)
	store.answer() // after all
	g.Flush()
	r.open(w)
	clear(store.cache) // it is restarted
	store.up = true
	store.events.Up(false)
	for range 4 {
		g.Flush()
		for len(store.has) > 0 {
			store.answer()
		}
	}
	if r.ended(w, blk.OK); !store.cache[4096] {
		t.Error("the write is acknowledged as stable, and the store does not have it")
	}
	g.Close()
	check(t, r.volume.Close())
}
