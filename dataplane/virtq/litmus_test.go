package virtq

import (
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shuntio/shunt/dataplane/shm"
)

// meeting lets two goroutines come to a point at the same time, as nearly as that can be.
type meeting [2]struct {
	round atomic.Uint32
	_     [60]byte
}

// meet waits for the other side, and then a little.
func (m *meeting) meet(me int, round, delay uint32) {
	m[me].round.Store(round)
	for spins := 0; m[1-me].round.Load() < round; spins++ {
		if spins > 1000 {
			runtime.Gosched()
		}
	}
	for range delay {
		m[1-me].round.Load()
	}
}

// One side publishes while the other goes to sleep: either it is told, or it sees what there is. Without the fence in one Publish, ten to
// two hundred thousand rounds show that neither happened; on two cores that are free they take half a second.
func TestPublishWhileArming(t *testing.T) {
	lasts := 500 * time.Millisecond
	if os.Getenv("SHUNT_SOAK") != "" {
		lasts = 20 * time.Second
	}
	for _, m := range []mode{{}, {eventIdx: true}, {packed: true}, {packed: true, eventIdx: true}} {
		t.Run(m.String(), func(t *testing.T) {
			p := newPair(t, 16, m.bases(16)[0], m)
			var at meeting
			var kicked, pending, called, returned atomic.Bool
			var over atomic.Bool
			one := []Buffer{{data, 8}}
			done := make(chan struct{})
			go func() { // the side that sleeps: first the device, then the driver
				defer close(done)
				for round := uint32(0); ; round += 4 {
					// Looked at by this side, what the other one writes takes its way, and that is longer than to the next load.
					p.device.Pending()
					at.meet(1, round+1, round/4%61)
					if over.Load() {
						return
					}
					p.device.Arm()
					shm.Fence()
					pending.Store(p.device.Pending())
					at.meet(1, round+2, 0)
					p.driver.Pending()
					at.meet(1, round+3, round/4%61)
					p.driver.Arm()
					shm.Fence()
					returned.Store(p.driver.Pending())
					at.meet(1, round+4, 0)
				}
			}()
			rounds := uint32(0)
			for until := time.Now().Add(lasts); time.Now().Before(until) && !t.Failed(); rounds++ {
				head, _ := p.driver.Add(nil, one)
				at.meet(0, 4*rounds+1, rounds/61%61)
				kicked.Store(p.driver.Publish())
				at.meet(0, 4*rounds+2, 0)
				if !kicked.Load() && !pending.Load() {
					t.Errorf("round %d: the device sleeps, and is not kicked", rounds)
				}
				p.device.Disarm()
				if err := p.device.Next(p.chain); err != nil {
					t.Fatal(err)
				}
				p.device.Complete(head, 8)
				at.meet(0, 4*rounds+3, rounds/61%61)
				called.Store(p.device.Publish())
				at.meet(0, 4*rounds+4, 0)
				if !called.Load() && !returned.Load() {
					t.Errorf("round %d: the driver sleeps, and is not called", rounds)
				}
				p.driver.Disarm()
				p.driver.Used()
			}
			over.Store(true)
			at.meet(0, 4*rounds+1, 0)
			<-done
			t.Logf("%d rounds", rounds)
		})
	}
}
