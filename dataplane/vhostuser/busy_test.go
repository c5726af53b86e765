package vhostuser

import (
	"slices"
	"testing"
	"time"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/dataplanetest"
	"github.com/shuntio/shunt/dataplane/guestmem"
	"github.com/shuntio/shunt/dataplane/virtq"
)

// answerTime is how long a front-end may wait for us under its big lock.
const answerTime = 100 * time.Millisecond

// busyDevice is a fakeDevice whose rings are a worker's, which never sleeps and whose every round is long: it maps memory, exchanges it and the rings between
// two rounds, and gives it back after another, as a device of life does.
type busyDevice struct {
	*fakeDevice
	worker *dataplane.Worker
	memory *guestmem.Map
	rings  [2][]byte
	waits  int // for the worker, by the connection's goroutine
}

// do waits for the end of the worker's round.
func (d *busyDevice) do(fn func()) {
	d.set(func() { d.waits++ })
	d.worker.Do(fn)
}

// newBusy runs a worker that has 2 ms of work a round, as much as a worker of many ports in trouble.
func newBusy(t *testing.T) *busyDevice {
	d := &busyDevice{fakeDevice: newFake(t), worker: dataplanetest.NewWorker(t, 64)}
	done := make(chan error)
	d.worker.Do(func() { d.worker.Add(d) })
	go func() { done <- d.worker.Run() }()
	t.Cleanup(func() {
		d.worker.Stop()
		must(t, <-done)
	})
	return d
}

// Poll reads the rings for as long as a round lasts.
func (d *busyDevice) Poll() int {
	for end := time.Now().Add(2 * time.Millisecond); time.Now().Before(end); {
		for _, r := range d.rings {
			if r != nil {
				_ = r[2]
			}
		}
	}
	return 1
}

func (d *busyDevice) Flush()             {}
func (d *busyDevice) Arm() time.Duration { return dataplane.Forever }
func (d *busyDevice) Pending() bool      { return true }
func (d *busyDevice) Disarm()            {}

func (d *busyDevice) StartVring(c VringConfig) error {
	var ring []byte
	d.do(func() {
		ring = d.memory.User(c.AvailAddr, virtq.AvailBytes(int(c.Size)))
		d.rings[c.Index] = ring
	})
	if ring == nil {
		d.complain("ring %d is in no memory", c.Index)
	}
	return d.fakeDevice.StartVring(c)
}

func (d *busyDevice) StopVring(i int) (uint32, error) {
	d.do(func() { d.rings[i] = nil })
	return d.fakeDevice.StopVring(i)
}

func (d *busyDevice) SetFeatures(features uint64) error {
	d.do(func() {})
	return d.fakeDevice.SetFeatures(features)
}

func (d *busyDevice) SetMemory(regions []Region) error {
	var table []guestmem.Region
	for _, r := range regions {
		table = append(table, mapped(r))
	}
	m, err := guestmem.Open(table)
	if err != nil {
		return err
	}
	d.discard(d.swap(m))
	return d.fakeDevice.SetMemory(regions)
}

func mapped(r Region) guestmem.Region {
	return guestmem.Region{GuestAddr: r.GuestAddr, UserAddr: r.UserAddr, Size: r.Size, Offset: r.MmapOffset, FD: r.FD}
}

func (d *busyDevice) AddMemory(r Region) error {
	m, err := d.memory.With(mapped(r))
	if err != nil {
		return err
	}
	d.swap(m)
	return d.fakeDevice.AddMemory(r)
}

func (d *busyDevice) RemoveMemory(r Region) error {
	rest, removed, err := d.memory.Without(r.GuestAddr, r.UserAddr, r.Size)
	if err != nil {
		return err
	}
	d.swap(rest)
	d.discard(removed)
	return d.fakeDevice.RemoveMemory(r)
}

func (d *busyDevice) Disconnected() {
	d.discard(d.swap(nil))
	d.fakeDevice.Disconnected()
}

func (d *busyDevice) swap(m *guestmem.Map) (old *guestmem.Map) {
	d.do(func() { old, d.memory = d.memory, m })
	return old
}

func (d *busyDevice) discard(m *guestmem.Map) {
	if m != nil {
		_ = m.Revoke()
		d.do(func() {})
		_ = m.Free()
	}
}

// TestAnswersInTime: what a front-end waits for under its big lock is answered within 100 ms by a device that is busy, with all memory slots in use
// and neighbours that connect all day: each answer waits for the end of three rounds at most, one for each ring that stops and two for
// memory. How long that takes on a machine that stands still now and then, the median tells. Where others have the CPUs, one round and one message by themselves
// take more than the usual 3 ms, and the answers up to ten times that.
func TestAnswersInTime(t *testing.T) {
	const slots, rounds, control = MaxMemSlots, 20, "(a round)"
	d, g := newBusy(t), newGuest(t)
	b := listenDevice(t, d, Options{})
	f := dial(t, b)
	must(t, f.Negotiate(wantAll, wantAll))
	must(t, f.AddMemory(g.region()))
	began := time.Now()
	slot := func(i int) Region {
		return Region{GuestAddr: 2*guestPhys + uint64(i)*pageSize, UserAddr: 2*guestUser + uint64(i)*pageSize, Size: pageSize, FD: g.fd}
	}
	for i := 1; i < slots; i++ {
		must(t, f.AddMemory(slot(i)))
	}
	t.Logf("%d slots in %v", slots, time.Since(began))
	stop := make(chan struct{})
	defer close(stop)
	go func() { // somebody who is turned away, and always back
		for {
			select {
			case <-stop:
				return
			default:
			}
			if f, err := Dial(b.path); err == nil {
				f.Close()
			}
		}
	}()
	took := map[string][]time.Duration{}
	waits := func() (n int) {
		d.set(func() { n = d.waits })
		return n
	}
	timed := func(what string, ask func() error) {
		t.Helper()
		before, now := waits(), time.Now()
		must(t, ask())
		took[what] = append(took[what], time.Since(now))
		if n := waits() - before; n > 3 {
			t.Errorf("%s waited for %d rounds", what, n)
		}
	}
	for i := range rounds {
		must(t, f.AcceptFeatures(FeatureProtocol|1<<32))
		for j := range 2 {
			must(t, f.StartVring(g.ring(j)))
		}
		timed("REM_MEM_REG", func() error { return f.RemoveMemory(slot(1 + i)) })
		timed("ADD_MEM_REG", func() error { return f.AddMemory(slot(1 + i)) })
		timed("GET_VRING_BASE", func() error { _, err := f.StopVring(i % 2); return err })
		timed("RESET_DEVICE", f.Reset)
		timed(control, func() error { d.worker.Do(func() {}); return f.Barrier() })
	}
	for _, all := range took {
		slices.Sort(all)
	}
	most := max(answerTime, 10*took[control][rounds/2])
	for what, all := range took {
		if median := all[len(all)/2]; median > most {
			t.Errorf("%s takes %v", what, median)
		}
		t.Logf("%-14s median %v, most %v", what, all[len(all)/2], all[len(all)-1])
	}
}
