package verify

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk/driver"
	"github.com/shuntio/shunt/blk/driver/drivertest"
	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/virtq"
	"github.com/shuntio/shunt/tools/need"
)

// busyBound is what a front-end gets that is promised 100 ms, where the CPUs have much else to do. One wait for each of eight rings takes 440 ms.
const busyBound = 250 * time.Millisecond

// TestSilentStore: whatever stops all rings of a disk is answered in the time that one takes, with a store that neither answers nor lets go.
func TestSilentStore(t *testing.T) {
	shapes := []struct{ queues, workers int }{{8, 1}, {16, 2}, {16, 4}}
	rounds := 3
	if testing.Short() {
		shapes, rounds = shapes[1:2], 2
	}
	if need.Soak() {
		rounds = 30
	}
	for _, s := range shapes {
		t.Run(fmt.Sprint("queues=", s.queues, " workers=", s.workers), func(t *testing.T) {
			e := engine(t, drivertest.EngineOptions{Socket: socket(t), Size: 1 << 20, Queues: s.queues, Workers: s.workers})
			t.Cleanup(func() { e.Store.Deafen(false); e.Store.Silence(false) })
			for name, act := range map[string]func(*silence){
				"SET_MEM_TABLE": func(b *silence) {
					must(t, b.disk.Frontend(func(f *vhostuser.Frontend) error { return f.SetMemory(b.disk.Regions()...) }))
				},
				"reset": func(b *silence) {
					must(t, b.disk.Frontend(func(f *vhostuser.Frontend) error { return f.SetStatus(0) }))
				},
				"disconnect": func(b *silence) {
					must(t, b.disk.Close())
					b.disk = nil
					for e.Device.State().Connected {
						time.Sleep(100 * time.Microsecond)
					}
				},
				"GET_VRING_BASE of each": func(b *silence) { must(t, b.disk.Stop()) },
			} {
				b := &silence{TB: t, engine: e, socket: e.Socket(), queues: s.queues}
				var took []time.Duration
				for range rounds {
					b.begin()
					began := time.Now()
					act(b)
					took = append(took, time.Since(began))
					b.end()
				}
				slices.Sort(took)
				t.Logf("%s: median %v, longest %v", name, took[len(took)/2], took[len(took)-1])
				if took[0] > busyBound {
					t.Errorf("%s took %v at best", name, took[0])
				}
			}
		})
	}
}

// silence is a disk whose store has a write of each queue and says nothing.
type silence struct {
	testing.TB
	engine *drivertest.Engine
	socket string
	queues int
	disk   *driver.Disk
}

func (b *silence) begin() {
	b.Helper()
	b.disk = dial(b, b.socket, b.queues)
	b.engine.Store.Silence(true)
	b.engine.Store.Deafen(true)
	for i := range b.queues {
		at, err := b.disk.Alloc(4096)
		must(b, err)
		must(b, b.disk.Queue(i).Submit(&driver.Request{Op: driver.Out, Sector: uint64(8 * i), Data: []virtq.Buffer{at.Segment(0, 4096)}}))
		b.disk.Queue(i).Kick()
	}
	b.await(b.queues)
}

func (b *silence) end() {
	b.Helper()
	if b.disk != nil {
		must(b, b.disk.Close())
	}
	b.engine.Store.Deafen(false)
	b.engine.Store.Silence(false)
	b.await(0)
}

// await waits until the store has so many requests.
func (b *silence) await(n int) {
	b.Helper()
	for end := time.Now().Add(20 * time.Second); b.engine.Volume.Stats().InFlight != n; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			b.Fatalf("the store has %d requests, not %d", b.engine.Volume.Stats().InFlight, n)
		}
	}
}
