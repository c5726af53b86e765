package vnet_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/dataplanetest"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/vnet"
	"github.com/shuntio/shunt/dataplane/vnet/vnettest"
)

// echo sends every frame back to where it came from.
type echo struct{}

func (echo) Forward(w *dataplane.Worker, from *dataplane.Link, frames []*frame.Frame) {
	for i, f := range frames {
		frames[i] = nil
		w.Send(from, f)
	}
}

// house is a guest with several pairs, whose device has several workers.
type house struct {
	workers []*dataplane.Worker
	links   []*dataplane.Link
	dev     *vnet.Device
	guest   *vnettest.Guest
	failed  atomic.Int32
}

func newHouse(t testing.TB, workers, pairs int, idle dataplane.IdlePolicy, o vnettest.Options) *house {
	t.Helper()
	h := &house{}
	const frames = 512
	memory, err := frame.NewMemory(make([]byte, workers*frames*frame.ChunkSize))
	if err != nil {
		t.Fatal(err)
	}
	for i := range workers {
		pool, err := memory.NewPool(i*frames, frames)
		if err != nil {
			t.Fatal(err)
		}
		w, err := dataplane.NewWorker(dataplane.WorkerOptions{Pool: pool, Index: i, Idle: idle})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { w.Close() })
		h.workers = append(h.workers, w)
	}
	if err := dataplane.Connect(h.workers); err != nil {
		t.Fatal(err)
	}
	var options []vnet.PairOptions
	for i := range pairs {
		l := &dataplane.Link{Name: fmt.Sprint("pair", i), Counters: &dataplane.Counters{}, Forwarder: echo{}}
		h.links = append(h.links, l)
		options = append(options, vnet.PairOptions{Worker: h.workers[i%workers], Link: l})
	}
	h.dev, err = vnet.New(vnet.Options{
		Pairs: options, StateFile: filepath.Join(stateDir(t), "state"), Failed: func(err error) { h.failed.Add(1); t.Log(err) },
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, l := range h.links {
		w := h.workers[i%workers]
		w.Do(func() { w.Add(l) })
	}
	o.Pairs = pairs
	if h.guest, err = vnettest.New(o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.guest.Close)
	return h
}

// run runs the workers until the end of the test.
func (h *house) run(t testing.TB) {
	var running sync.WaitGroup
	for _, w := range h.workers {
		running.Go(func() {
			if err := w.Run(); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() {
		for _, w := range h.workers {
			w.Stop()
		}
		running.Wait()
	})
}

// wait waits for a condition.
func wait(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !condition(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("timeout: ", what)
		}
	}
}

func TestOffer(t *testing.T) {
	for _, pairs := range []int{1, 4} {
		h := newHouse(t, 1, pairs, dataplane.Poll, vnettest.Options{})
		o := h.dev.Offer()
		if o.Vrings != 2*pairs || o.QueueNum != pairs || o.Features&vnet.FeatureMQ != 0 != (pairs > 1) {
			t.Errorf("%d pairs: %+v", pairs, o)
		}
		if h.dev.Pairs() != pairs {
			t.Errorf("%d pairs, want %d", h.dev.Pairs(), pairs)
		}
	}
	if _, ok := any((*vnet.Device)(nil)).(vhostuser.Logger); !ok {
		t.Error("no migration without a log")
	}
}

// Each pair is its worker's, and moves its own traffic only.
func TestPairsApart(t *testing.T) {
	const each = 2000
	for name, features := range formats {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t, 2, 4, dataplane.Interrupt, vnettest.Options{QueueSize: 64, Features: vnet.FeatureVersion1 | vnet.FeatureMrgRxbuf | vnet.FeatureMQ | vnet.FeatureEventIdx | features})
			h.run(t)
			if err := h.guest.Attach(h.dev); err != nil {
				t.Fatal(err)
			}
			if s := h.dev.State(); s.Pairs != 4 || !s.Running {
				t.Errorf("%+v", s)
			}
			for k, p := range h.guest.Pairs {
				bounce(t, p, k, each, func() {})
			}
			for k, l := range h.links {
				if in, out := l.Counters.RxPackets.Load(), l.Counters.TxPackets.Load(); in != each || out != each {
					t.Errorf("pair %d: %d in, %d out", k, in, out)
				}
				if n, b := l.Counters.RxBytes.Load(), l.Counters.TxBytes.Load(); n != 60*each || b != n {
					t.Errorf("pair %d: %d bytes in, %d out, want %d", k, n, b, 60*each)
				}
			}
			for q := range 8 {
				if _, err := h.dev.StopVring(q); err != nil {
					t.Fatal(err)
				}
			}
			if s := h.dev.State(); s.Pairs != 0 || s.Running {
				t.Errorf("stopped: %+v", s)
			}
		})
	}
}

// bounce sends frames through a pair that echoes and takes them back, all of them, in order.
func bounce(t testing.TB, p *vnettest.Pair, key, n int, now func()) {
	t.Helper()
	packet := func(i int) []byte {
		b := number(uint32(i))
		b[0] = byte(key)
		return b
	}
	sent, back := 0, 0
	wait(t, "frames do not come back", func() bool {
		now()
		for sent < n && sent-back < 32 && p.Send(packet(sent)) == nil {
			sent++
		}
		for {
			b, err := p.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if b == nil {
				break
			}
			if !bytes.Equal(b, packet(back)) {
				t.Fatalf("pair %d: frame %d is not what came back", key, back)
			}
			back++
		}
		return back == n
	})
}

// A guest may use fewer pairs than there are: Ready tells which take frames.
func TestReady(t *testing.T) {
	h := newHouse(t, 2, 3, dataplane.Poll, vnettest.Options{QueueSize: 64})
	ready := func() (all [3]bool) {
		for i, l := range h.links {
			all[i] = l.Ready.Load()
		}
		return all
	}
	if ready() != [3]bool{} {
		t.Error("ready without a guest")
	}
	if err := h.guest.Attach(h.dev); err != nil {
		t.Fatal(err)
	}
	if ready() != [3]bool{true, true, true} {
		t.Errorf("%v", ready())
	}
	if _, err := h.dev.StopVring(2); err != nil {
		t.Fatal(err)
	}
	if s := h.dev.State(); ready() != [3]bool{true, false, true} || s.Pairs != 2 || !s.Running {
		t.Errorf("%v, %+v", ready(), s)
	}
	h.guest.Layout(5).Avail[3] = 0x70 // an index that jumps
	for range 3 {
		for _, w := range h.workers {
			w.Round()
		}
	}
	if s := h.dev.State(); ready() != [3]bool{true, false, false} || s.Failed == nil || s.Pairs != 1 || h.failed.Load() != 1 {
		t.Errorf("%v, %+v, %d failed", ready(), s, h.failed.Load())
	}
	h.guest.Detach(h.dev)
	if ready() != [3]bool{} {
		t.Errorf("%v", ready())
	}
	for _, q := range []int{-1, 6} {
		c := h.guest.Vring(0)
		c.Index = q
		if h.dev.StartVring(c) == nil || h.dev.UpdateVring(c) == nil {
			t.Errorf("ring %d was started", q)
		}
		if _, err := h.dev.StopVring(q); err == nil {
			t.Errorf("ring %d was stopped", q)
		}
	}
}

// Pairs that move from worker to worker, under traffic and control calls, lose nothing, and their kicks still wake whoever has them.
func TestMoveUnderTraffic(t *testing.T) {
	for name, features := range formats {
		t.Run(name, func(t *testing.T) {
			n := 20_000
			if testing.Short() {
				n = 3_000
			}
			h := newHouse(t, 3, 2, dataplane.Interrupt, vnettest.Options{QueueSize: 64, Features: vnet.FeatureVersion1 | vnet.FeatureMrgRxbuf | features})
			h.run(t)
			if err := h.guest.Attach(h.dev); err != nil {
				t.Fatal(err)
			}
			var stop atomic.Bool
			var movers sync.WaitGroup
			moves := 0
			movers.Go(func() {
				for i := 0; !stop.Load(); i++ {
					h.dev.Move(i%2, h.workers[i/2%3])
					moves++
				}
			})
			movers.Go(func() {
				for i := 0; !stop.Load(); i++ {
					if err := h.dev.UpdateVring(h.guest.Vring(i % 4)); err != nil {
						t.Error(err)
					}
					time.Sleep(time.Millisecond)
				}
			})
			var guests sync.WaitGroup
			for k, p := range h.guest.Pairs {
				guests.Go(func() { bounce(t, p, k, n, func() {}) })
			}
			guests.Wait()
			stop.Store(true)
			movers.Wait()
			t.Log(moves, "moves")
			watched := 0
			for _, w := range h.workers {
				w.Do(func() { watched += w.Watched() })
			}
			if watched != 3+2 {
				t.Errorf("%d files are watched, want 3 mailboxes and 2 kicks", watched)
			}
			for k, l := range h.links {
				if in, out := l.Counters.RxPackets.Load(), l.Counters.TxPackets.Load(); in != uint64(n) || out != in {
					t.Errorf("pair %d: %d in, %d out, want %d", k, in, out, n)
				}
			}
		})
	}
}

// A pair nobody polls can move, too.
func TestMoveAtRest(t *testing.T) {
	h := newHouse(t, 2, 1, dataplane.Poll, vnettest.Options{QueueSize: 64})
	a, b := h.workers[0], h.workers[1]
	if err := h.guest.Attach(h.dev); err != nil {
		t.Fatal(err)
	}
	a.Remove(h.links[0])
	h.dev.Move(0, b)
	h.dev.Move(0, b)
	if a.Watched() != 1 || b.Watched() != 2 {
		t.Errorf("%d and %d files watched, want the mailboxes and the kick at the second", a.Watched(), b.Watched())
	}
	if _, err := h.dev.StopVring(1); err != nil || b.Watched() != 1 {
		t.Errorf("%v, %d files watched", err, b.Watched())
	}
}

// The guest's memory is that of all its pairs: when it goes away, those of the worker that notices all end at once, so it notices once.
func TestFaultOfSeveralPairs(t *testing.T) {
	h := newHouse(t, 1, 3, dataplane.Poll, vnettest.Options{QueueSize: 64})
	if err := h.guest.Attach(h.dev); err != nil {
		t.Fatal(err)
	}
	for _, p := range h.guest.Pairs {
		if err := p.Send(number(1)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Ftruncate(h.guest.FD, 0); err != nil {
		t.Fatal(err)
	}
	h.run(t)
	wait(t, "the device does not fail", func() bool { return h.workers[0].Stats().Faults.Load() > 0 })
	rounds := h.workers[0].Stats().Rounds.Load()
	wait(t, "the worker stands still", func() bool { return h.workers[0].Stats().Rounds.Load() > rounds+5 })
	if s := h.dev.State(); s.Running || s.Failed == nil || h.workers[0].Stats().Faults.Load() != 1 || h.failed.Load() != 1 {
		t.Errorf("%+v, %d faults, told %d times", s, h.workers[0].Stats().Faults.Load(), h.failed.Load())
	}
}

// A driver that gives no kick descriptor is looked at all the same, and not all the time.
func TestPolledRing(t *testing.T) {
	h := newHouse(t, 1, 1, dataplane.Interrupt, vnettest.Options{QueueSize: 64, Polled: true})
	if err := h.guest.Attach(h.dev); err != nil {
		t.Fatal(err)
	}
	if limit := h.links[0].Port.Arm(); limit < 100*time.Microsecond || limit > time.Millisecond {
		t.Errorf("the worker may sleep for %v", limit)
	}
	h.links[0].Port.Disarm()
	h.run(t)
	bounce(t, h.guest.Pair, 0, 50, func() {})
	sleeps := h.workers[0].Stats().Sleeps.Load()
	wait(t, "the worker does not sleep", func() bool { return h.workers[0].Stats().Sleeps.Load() > sleeps+5 })
	if err := h.dev.UpdateVring(func() vhostuser.VringConfig {
		c := h.guest.Vring(1)
		c.Kick = h.guest.KickFD(1)
		return c
	}()); err != nil {
		t.Fatal(err)
	}
	h.workers[0].Do(func() {
		if limit := h.links[0].Port.Arm(); limit != dataplane.Forever {
			t.Errorf("with kicks the worker may sleep for %v", limit)
		}
		h.links[0].Port.Disarm()
	})
}

// A failed ring says so on its error descriptor, and where it stood when it is taken back: the front-end can begin there again.
func TestFailedRing(t *testing.T) {
	for name, features := range formats {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, modern|features)
			for i := range 2 {
				b.offer(i*1024, 500)
			}
			b.transmit(counting(60), counting(60))
			for range 4 {
				b.tx.Add(b.pieces(make([]byte, 100)), nil)
			}
			b.tx.Publish()
			b.port.Receive(b.vector[:], b.pool)
			b.pool.PutAll(b.vector[:])
			b.port.Release()
			if signalled(t, b.guest.ErrFD(0)) || signalled(t, b.guest.ErrFD(1)) {
				t.Error("an error of rings that work")
			}
			for range 3 { // taken, and never published
				b.tx.Add(b.pieces(make([]byte, 100)), nil)
			}
			b.tx.Publish()
			b.port.Receive(b.vector[:], b.pool)
			b.pool.PutAll(b.vector[:])
			for i := range 4 {
				b.offer((2+i)*1024, 500)
			}
			binary.LittleEndian.PutUint64(b.guest.Layout(0).Desc[16*2:], 1<<60) // beyond its memory
			b.transmit(counting(60))
			if b.dev.State().Failed == nil {
				t.Fatal("the port goes on")
			}
			if !signalled(t, b.guest.ErrFD(0)) || !signalled(t, b.guest.ErrFD(1)) {
				t.Error("the front-end is not told")
			}
			for q, want := range []uint32{2, 4} {
				if features&vnet.FeaturePacked != 0 {
					want |= 1 << 15
					want |= want << 16
				}
				if base, err := b.dev.StopVring(q); err != nil || base != want {
					t.Errorf("ring %d: base %#x, %v, want %#x", q, base, err, want)
				}
			}
		})
	}
}

// SEND_RARP: a frame as if the guest had sent it, in front of what it has sent.
func TestAnnouncement(t *testing.T) {
	b := newBed(t, modern)
	mac := [6]byte{0x52, 0x54, 0, 1, 2, 3}
	if b.port.Pending() {
		t.Error("pending without a reason")
	}
	if err := b.dev.SendRARP(mac); err != nil {
		t.Fatal(err)
	}
	if !b.port.Pending() {
		t.Error("the worker would sleep")
	}
	b.tx.Add(b.pieces(make([]byte, 100)), nil)
	b.tx.Publish()
	n := b.port.Receive(b.vector[:], b.pool)
	if n != 2 || b.vector[1].Len() != 88 {
		t.Fatalf("%d frames", n)
	}
	want := "ffffffffffff" + "525400010203" + "8035" + // Ethernet
		"0001" + "0800" + "06" + "04" + "0003" + // RFC 903
		"525400010203" + "00000000" + "525400010203" + "00000000" + fmt.Sprintf("%036x", 0)
	if got := fmt.Sprintf("%x", b.vector[0].Head()); got != want {
		t.Errorf("%s, want\n%s", got, want)
	}
	b.pool.PutAll(b.vector[:])
	b.port.Release()
	if b.counters.RxPackets.Load() != 2 || b.counters.RxBytes.Load() != 148 {
		t.Errorf("%d frames of %d bytes counted", b.counters.RxPackets.Load(), b.counters.RxBytes.Load())
	}
	// More than wait at a time: the newest stay. With few frames free, or a short vector, the others wait.
	for i := range byte(9) {
		if err := b.dev.SendRARP([6]byte{2, 0, 0, 0, 0, i}); err != nil {
			t.Fatal(err)
		}
	}
	var got []byte
	for range 4 {
		if n := b.port.Receive(b.vector[:1], b.pool); n != 1 {
			t.Fatalf("%d frames", n)
		}
		got = append(got, b.vector[0].Head()[11])
		b.pool.PutAll(b.vector[:])
		b.port.Release()
	}
	if !bytes.Equal(got, []byte{5, 6, 7, 8}) || b.port.Pending() {
		t.Errorf("announced: %v", got)
	}
	// Also while no ring runs, and not when the guest is gone.
	for q := range 2 {
		if _, err := b.dev.StopVring(q); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.dev.SendRARP(mac); err != nil {
		t.Fatal(err)
	}
	if n := b.port.Receive(b.vector[:], b.pool); n != 1 {
		t.Errorf("%d frames while no ring runs", n)
	}
	b.pool.PutAll(b.vector[:])
	b.port.Release()
	if err := b.dev.SendRARP(mac); err != nil {
		t.Fatal(err)
	}
	b.dev.Disconnected()
	if n := b.port.Receive(b.vector[:], b.pool); n != 0 {
		t.Errorf("%d frames of a guest that is gone", n)
	}
	b.checkPool()
}

func TestMTU(t *testing.T) {
	link := &dataplane.Link{Counters: &dataplane.Counters{}}
	d, err := vnet.New(vnet.Options{Pairs: []vnet.PairOptions{{Worker: dataplanetest.NewWorker(t, 1), Link: link}}, MTU: 1450})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.SetMTU(1450); err != nil || d.State().MTU != 1450 {
		t.Errorf("%v, %+v", err, d.State())
	}
	d.SetNetworkMTU(1400)
	if err := d.SetMTU(1401); err == nil || d.State().MTU != 1450 {
		t.Errorf("the network's MTU is 1400 now and 1401 is accepted")
	}
	d.SetNetworkMTU(1450)
	if err := d.SetMTU(1451); err == nil || d.State().MTU != 1450 {
		t.Errorf("a guest was told more than the network carries: %+v", d.State())
	}
}
