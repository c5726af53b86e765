package blk

import (
	"slices"
	"testing"
	"time"

	"github.com/shuntio/shunt/dataplane/virtq"
)

// recorder is a store that does not answer, and notes when it was asked for its requests back.
type recorder struct {
	ram
	when time.Time
}

func (g *recorder) Withdraw() {
	if g.when.IsZero() {
		g.when = time.Now()
	}
	g.ram.Withdraw()
}

// many is a device whose rings all have a read at a store that does not answer.
type many struct {
	*bed
	gates []*recorder
}

func newMany(t *testing.T, queues int) many {
	t.Helper()
	m := many{bed: bare(t, modern, 4)}
	var all []*Queue
	for range queues {
		g := &recorder{ram: ram{disk: make([]byte, bedSize), hold: true, deaf: true}}
		m.gates = append(m.gates, g)
		all = append(all, &Queue{worker: m.worker, gate: g})
	}
	m.dev = newDevice(bedInfo, "a-disk", all...)
	m.dev.failed = func(error) {}
	m.connect()
	t.Cleanup(func() {
		for i := range all {
			_, _ = m.dev.StopVring(i)
		}
		m.dev.Disconnected()
	})
	for i := range all {
		const avail, used, tables = 0x40, 0x60, 0x100 // of each ring
		at := i * tables
		var err error
		m.driver, err = virtq.NewDriver(virtq.DriverOptions{
			Layout: virtq.Layout{Desc: m.memory[at:], Avail: m.memory[at+avail:], Used: m.memory[at+used:]}, Size: m.size,
		})
		m.must(err)
		c, place := m.vring(nil), bedUser+uint64(at)
		c.Index, c.DescAddr, c.AvailAddr, c.UsedAddr = i, place, place+avail, place+used
		m.must(m.dev.StartVring(c))
		request := m.buffers(16, 512)
		m.put(header(1, 0), request)
		m.add(request, m.buffers(1))
	}
	m.worker.Do(func() {
		for _, q := range all[1:] {
			m.worker.Add(q)
		}
	})
	m.run()
	m.await("requests at the store", func() bool {
		n := 0
		for _, g := range m.gates {
			n += len(g.waiting)
		}
		return n == queues
	})
	return m
}

// together wants all queues' requests to be called back without a wait in between, and has them end.
func (m many) together(what string) {
	m.Helper()
	var when []time.Time
	for i, g := range m.gates {
		if when = append(when, g.when); g.when.IsZero() {
			m.Fatalf("%s: nobody calls the requests of ring %d back", what, i)
		}
	}
	slices.SortFunc(when, time.Time.Compare)
	if apart := when[len(when)-1].Sub(when[0]); apart >= withdrawTime {
		m.Errorf("%s: the last ring's requests are called back %v after the first one's", what, apart)
	}
	m.endAll()
}

func (m many) endAll() {
	m.worker.Do(func() {
		for _, g := range m.gates {
			g.end(0, OK)
		}
	})
}

// next is a call that comes at once after the one before, however long the machine lets us wait.
func (m many) next() *Device {
	m.dev.mu.Lock()
	defer m.dev.mu.Unlock()
	m.dev.rested = time.Now()
	return m.dev
}

func (m many) stop(i int) {
	m.Helper()
	_, err := m.next().StopVring(i)
	m.must(err)
}

// TestRemoveMemoryOfMany: a front-end waits once for the store, however many queues have requests in the memory that it removes.
func TestRemoveMemoryOfMany(t *testing.T) {
	m := newMany(t, 3)
	m.must(m.dev.RemoveMemory(m.regions()[1]))
	m.together("RemoveMemory")
}

// TestStopOfMany: and however many rings stop at once.
func TestStopOfMany(t *testing.T) {
	m := newMany(t, 3)
	m.must(m.dev.StopVrings([]int{0, 1, 2}, make([]uint32, 3)))
	m.together("StopVrings")
}

// TestStopsInTurn: it waits no longer together where rings stop one after the other and then memory goes, as of that which one REM_MEM_REG may ask for.
func TestStopsInTurn(t *testing.T) {
	const most, rounds = drainTime + withdrawTime + 2*leastTime + 25*time.Millisecond, 5
	spent := time.Hour
	for range rounds { // until the machine does not pause meanwhile
		m := newMany(t, 3)
		m.dev.drain, m.dev.patience = drainTime, time.Hour
		m.stop(0)
		m.stop(1)
		m.must(m.next().RemoveMemory(m.regions()[1]))
		m.endAll()
		t.Logf("waited %v", m.dev.waited)
		if spent = min(spent, m.dev.waited); spent <= most {
			return
		}
	}
	t.Errorf("three calls waited %v for the store, more than %v", spent, most)
}

// TestStopsOfMany: a front-end that stops each ring by a call of its own waits for a store that does not answer twice, and not for each ring: by then all requests have been called back.
func TestStopsOfMany(t *testing.T) {
	m := newMany(t, MaxQueues)
	m.dev.drain, m.dev.patience = drainTime, time.Hour
	began := time.Now()
	m.stop(0)
	m.stop(1)
	for i, g := range m.gates {
		if g.when.IsZero() {
			t.Fatalf("two rings have stopped, and nobody has called the requests of ring %d back", i)
		}
	}
	called := m.dev.called
	for i := 2; i < MaxQueues; i++ {
		m.stop(i)
	}
	t.Logf("%d rings stop in %v", MaxQueues, time.Since(began))
	if m.dev.called != called {
		t.Error("requests were called back again")
	}
	m.endAll()
}

// TestStopsOfSome: rings that were thought to stop with others go on when they do not.
func TestStopsOfSome(t *testing.T) {
	m := newMany(t, 3)
	m.dev.drain = drainTime
	m.stop(0)
	m.stop(1)
	stays := m.gates[2]
	if stays.when.IsZero() {
		t.Fatal("the requests of a ring that may be about to stop are not called back")
	}
	m.worker.Do(func() { stays.end(0, Withdrawn) })
	m.await("the request at the store again", func() bool { return len(stays.waiting) == 1 })
	m.worker.Do(func() { stays.end(0, OK) })
	m.await("its answer", func() bool { return m.driver.Pending() })
	if n := m.dev.queues[2].stats.Again.Load(); n != 1 {
		t.Errorf("%d requests were given to the store once more", n)
	}
}
