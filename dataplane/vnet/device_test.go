package vnet_test

import (
	"errors"
	"runtime/debug"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/shm"
	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/virtq"
	"github.com/shuntio/shunt/dataplane/vnet"
	"github.com/shuntio/shunt/dataplane/vnet/vnettest"
)

// signalled tells whether an eventfd was written since the last look.
func signalled(t testing.TB, fd int) bool {
	t.Helper()
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	shm.Drain(fd)
	return n == 1
}

func TestNewRefuses(t *testing.T) {
	w, link := newWorker(t, 1), &dataplane.Link{Counters: &dataplane.Counters{}}
	for name, pairs := range map[string][]vnet.PairOptions{
		"no pairs":         nil,
		"without a worker": {{Link: link}},
		"without a link":   {{Worker: w}},
		"without counters": {{Worker: w, Link: &dataplane.Link{}}},
		"second is wrong":  {{Worker: w, Link: link}, {}},
		"too many":         make([]vnet.PairOptions, vnet.MaxPairs+1),
	} {
		if _, err := vnet.New(vnet.Options{Pairs: pairs}); err == nil {
			t.Errorf("a device %s", name)
		}
	}
	if link.Port != nil {
		t.Error("the link of a device that was refused has a port")
	}
}

func TestState(t *testing.T) {
	b := newBed(t, modern)
	if s := b.dev.State(); !s.Running || s.Features != modern || s.Failed != nil {
		t.Errorf("running: %+v", s)
	}
	b.dev.StopVring(0)
	if s := b.dev.State(); !s.Running {
		t.Errorf("one ring stopped: %+v", s)
	}
	b.dev.StopVring(1)
	if s := b.dev.State(); s.Running {
		t.Errorf("both stopped: %+v", s)
	}
	b.dev.Offer()
	if s := b.dev.State(); !s.Connected {
		t.Errorf("connected: %+v", s)
	}
	b.dev.Disconnected()
	if s := b.dev.State(); s.Connected || s.Running || s.Features != 0 {
		t.Errorf("disconnected: %+v", s)
	}
}

// After a reset the driver negotiates anew, or not at all; nothing of the last one's features stays.
func TestResetForgetsFeatures(t *testing.T) {
	for name, reset := range map[string]func(*vnet.Device){
		"reset":        func(d *vnet.Device) { d.Reset() },
		"disconnected": func(d *vnet.Device) { d.Disconnected() },
	} {
		b := newBed(t, modern)
		b.dev.StopVring(0)
		b.dev.StopVring(1)
		reset(b.dev)
		b.attach(0)
		before := b.drops()
		data := counting(60)
		if got, _, ok := b.send(b.pieces(append(make([]byte, 10), data...))); !ok || !same(got, data) {
			t.Errorf("%s: legacy header: %d bytes, %v", name, len(got), ok)
		}
		b.send(b.pieces(append(header(1, 0, 14, 2), data...)))
		b.wantDrop(before, vnet.DropBadHeader)
	}
}

func TestStartVringRefuses(t *testing.T) {
	b := newBed(t, modern)
	good := b.guest.Vring(0)
	for name, change := range map[string]func(c *vhostuser.VringConfig){
		"table outside":      func(c *vhostuser.VringConfig) { c.DescAddr = 1 },
		"avail ring outside": func(c *vhostuser.VringConfig) { c.AvailAddr = vnettest.UserBase + uint64(len(b.guest.Memory)) },
		"used ring outside":  func(c *vhostuser.VringConfig) { c.UsedAddr = vnettest.UserBase - 4 },
		"used ring over end": func(c *vhostuser.VringConfig) { c.UsedAddr = vnettest.UserBase + uint64(len(b.guest.Memory)) - 64 },
		"guest address":      func(c *vhostuser.VringConfig) { c.DescAddr = vnettest.GuestBase },
		"no power of two":    func(c *vhostuser.VringConfig) { c.Size = 48 },
		"no size":            func(c *vhostuser.VringConfig) { c.Size = 0 },
		"too large":          func(c *vhostuser.VringConfig) { c.Size = 65536 },
		"largest size":       func(c *vhostuser.VringConfig) { c.Size = 1 << 31 },
		"unaligned":          func(c *vhostuser.VringConfig) { c.DescAddr += 8 },
	} {
		c := good
		change(&c)
		if err := b.dev.StartVring(c); err == nil {
			t.Errorf("%s: started", name)
		}
	}
	b.dev.StopVring(0)
	b.dev.StopVring(1)
	b.dev.Disconnected()
	if err := b.dev.StartVring(good); err == nil || !strings.Contains(err.Error(), "memory") {
		t.Errorf("without memory: %v", err)
	}
}

// A ring goes on where the used ring says, not where a front-end that knows less does.
func TestStopAndStart(t *testing.T) {
	b := newBed(t, modern)
	b.offer(0, 500)
	b.offer(4096, 500)
	b.offer(8192, 500)
	b.transmit(counting(60), counting(60))
	base, err := b.dev.StopVring(0)
	if err != nil || base != 2 {
		t.Fatalf("base %d, %v, want 2", base, err)
	}
	c := b.guest.Vring(0)
	c.Base = 0
	if err := b.dev.StartVring(c); err != nil {
		t.Fatal(err)
	}
	b.transmit(counting(61))
	for _, want := range []uint32{72, 72, 73} {
		if _, n, ok := b.used(); !ok || n != want {
			t.Errorf("%d bytes, %v, want %d", n, ok, want)
		}
	}
}

// A front-end may send other eventfds while the ring runs. A call that was due on the old one comes on the new one.
func TestUpdateVring(t *testing.T) {
	b := newBed(t, modern)
	fresh, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fresh)
	b.offer(0, 500)
	b.transmit(counting(60))
	c := b.guest.Vring(0)
	c.Call = fresh
	if err := b.dev.UpdateVring(c); err != nil {
		t.Fatal(err)
	}
	b.port.Flush()
	if !signalled(t, fresh) || signalled(t, b.guest.CallFD(0)) {
		t.Error("the call went to the old eventfd, or nowhere")
	}
	// One that went to the old eventfd may have been seen by nobody: it is repeated.
	c.Call = b.guest.CallFD(0)
	if err := b.dev.UpdateVring(c); err != nil {
		t.Fatal(err)
	}
	b.port.Flush()
	if !signalled(t, b.guest.CallFD(0)) {
		t.Error("nobody is told of a new eventfd")
	}
	c.Call = -1
	if err := b.dev.UpdateVring(c); err != nil {
		t.Fatal(err)
	}
	b.port.Flush()
}

// Kick eventfds are numbers that the next connection may get again.
func TestKickNumbersAreReused(t *testing.T) {
	b := newBed(t, modern)
	for range 3 {
		for q := range 2 {
			if err := b.dev.StartVring(b.guest.Vring(q)); err != nil { // without a stop in between
				t.Fatal(err)
			}
			if err := b.dev.UpdateVring(b.guest.Vring(q)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := b.worker.Watched(); n != 2 { // the mailbox and the transmitq's kick
		t.Errorf("the worker watches %d files, want 2", n)
	}
	b.dev.StopVring(1)
	b.dev.StopVring(1)
	b.dev.StopVring(0)
	if n := b.worker.Watched(); n != 1 {
		t.Errorf("the worker watches %d files, want its mailbox alone", n)
	}
	// A failed port is not woken any more, whatever its front-end says.
	b.attach(modern)
	b.guest.Layout(1).Avail[3] = 0x70
	b.port.Receive(b.vector[:], b.pool)
	if err := b.dev.UpdateVring(b.guest.Vring(1)); err != nil {
		t.Fatal(err)
	}
	if n := b.worker.Watched(); n != 1 {
		t.Errorf("with a failed port the worker watches %d files, want its mailbox alone", n)
	}
}

// Memory comes and goes in slots while the rings run.
func TestMemorySlots(t *testing.T) {
	b := newBed(t, modern)
	fd, err := shm.NewMemFD("slot", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	slot := vhostuser.Region{GuestAddr: 0x9000_0000, UserAddr: 0x1000_0000, Size: 1 << 20, FD: fd}
	if err := b.dev.AddMemory(slot); err != nil {
		t.Fatal(err)
	}
	if err := b.dev.AddMemory(slot); err == nil {
		t.Error("the same slot twice")
	}
	there := []virtq.Buffer{{Addr: 0x9000_0000 + 5000, Len: 100}}
	if got, _, ok := b.send(there); !ok || len(got) != 88 {
		t.Errorf("a frame in the new slot: %v, %d bytes", ok, len(got))
	}
	wrong := slot
	wrong.Size = 4096
	if err := b.dev.RemoveMemory(wrong); err == nil {
		t.Error("a slot that is not there was removed")
	}
	if err := b.dev.RemoveMemory(slot); err != nil {
		t.Fatal(err)
	}
	if got, _, ok := b.send(b.pieces(make([]byte, 50))); !ok || len(got) != 38 {
		t.Errorf("a frame in what stays: %v, %d bytes", ok, len(got))
	}
	b.tx.Add(there, nil)
	b.tx.Publish()
	if n := b.port.Receive(b.vector[:], b.pool); n != 0 || b.dev.State().Failed == nil {
		t.Errorf("%d frames out of memory that is gone, %+v", n, b.dev.State())
	}
	if err := b.dev.SetMemory([]vhostuser.Region{{Size: 4096, FD: -1}}); err == nil {
		t.Error("memory without a file")
	}
}

// Memory may be gone before the rings in it are started, and before the worker polls the port.
func TestStartVringFaults(t *testing.T) {
	b := newBed(t, modern)
	b.dev.StopVring(0)
	b.dev.StopVring(1)
	if err := unix.Ftruncate(b.guest.FD, 0); err != nil {
		t.Fatal(err)
	}
	for q := range 2 {
		err := b.dev.StartVring(b.guest.Vring(q))
		if err == nil || !strings.Contains(err.Error(), "went away") {
			t.Errorf("ring %d: %v", q, err)
		}
	}
	if s := b.dev.State(); s.Failed == nil || s.Running || len(b.failed) != 2 {
		t.Errorf("state %+v, told %v", s, b.failed)
	}
	if n := b.worker.Watched(); n != 1 {
		t.Errorf("the worker watches %d files, want its mailbox alone", n)
	}
}

func TestNothingAllocated(t *testing.T) {
	const packed = vnet.FeaturePacked
	for name, c := range map[string]struct {
		features uint64
		length   int
		cuts     []int
		rx       []int
		gso      uint16
		extra    func(b *bed)
	}{
		"small":            {features: modern, length: 60, rx: []int{2048}},
		"event index":      {features: modern | vnet.FeatureEventIdx, length: 60, rx: []int{2048}},
		"packed":           {features: modern | packed, length: 60, rx: []int{2048}},
		"in order":         {features: modern | vnet.FeatureInOrder, length: 60, rx: []int{2048}},
		"packed, in order": {features: modern | packed | vnet.FeatureInOrder, length: 9000, rx: []int{2048}},
		"packed, kept":     {features: modern | packed, length: 60, rx: []int{2048}, extra: func(b *bed) { b.anew(vnet.Options{StateFile: stateDir(b) + "/state"}) }},
		"large":            {features: modern, length: 9000, rx: []int{2048}},
		"header apart":     {features: modern, length: 1400, cuts: []int{12, 100, 300}, rx: []int{12, 4000}},
		"legacy":           {features: vnet.FeatureCsum, length: 1400, rx: []int{4000}},
		"does not fit":     {features: vnet.FeatureVersion1, length: 1400, rx: []int{500}},
		"dropped header":   {features: modern, rx: []int{500}},
		"to be cut":        {features: allOffloads, length: 60000, rx: []int{2048}, gso: 1448},
		"checksum":         {features: allOffloads, length: 1400, rx: []int{2048}, gso: 1},
		"not taken":        {features: allOffloads &^ vnet.FeatureGuestCsum, length: 1400, rx: []int{2048}, gso: 1},
		"merged":           {features: allOffloads, length: 1400, rx: []int{2048}, extra: func(b *bed) { b.anew(vnet.Options{Coalesce: true}) }},
		"logged": {features: modern | packed, length: 1400, rx: []int{2048}, extra: func(b *bed) {
			if err := errors.Join(b.dev.SetLog(newBitmap(b, b.guest).log), b.dev.SetFeatures(modern|packed|vhostuser.FeatureLogAll)); err != nil {
				b.Fatal(err)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
			b := newBed(t, c.features)
			if c.extra != nil {
				c.extra(b)
			}
			h := header(0, 0, 0, 0)
			if c.features&vnet.FeatureVersion1 == 0 {
				h = h[:10]
			}
			data := make([]byte, c.length)
			switch {
			case c.length == 0:
				h = h[:9]
			case c.length == 1400:
				data = segments(1, 1400-54)[0]
			}
			if c.gso == 1 {
				h = asks(1, 0, 0, 34, 16)
			} else if c.gso > 1 {
				data, _ = build(kind{protocol: 6, payload: c.length})
				h = asks(1, 1, c.gso, 34, 16)
			}
			tx := b.pieces(append(h, data...), c.cuts...)
			var rx []virtq.Buffer
			_, base := b.scratch()
			for _, n := range c.rx {
				rx = append(rx, virtq.Buffer{Addr: base + 1<<17, Len: uint32(n)})
			}
			moved := 0
			if n := testing.AllocsPerRun(200, func() {
				for range 4 {
					b.tx.Add(tx, nil)
				}
				b.tx.Publish()
				for {
					if _, ok := b.rx.Add(nil, rx); !ok {
						break
					}
				}
				b.rx.Publish()
				n := b.port.Receive(b.vector[:], b.pool)
				b.port.Transmit(b.vector[:n], b.pool)
				b.pool.PutAll(b.vector[:n])
				b.port.Release()
				b.port.Flush()
				b.port.Arm()
				b.port.Pending()
				b.port.Disarm()
				for {
					if _, _, ok, _ := b.tx.Used(); !ok {
						break
					}
				}
				for {
					if _, _, ok, _ := b.rx.Used(); !ok {
						break
					}
				}
				moved += n
			}); n != 0 {
				t.Errorf("%v allocations", n)
			}
			if (moved == 0) != (c.length == 0) {
				t.Errorf("%d frames", moved)
			}
			if sent := b.counters.TxPackets.Load(); sent == 0 && c.length > 0 && name != "does not fit" && name != "not taken" {
				t.Errorf("none of %d frames was sent: %v", moved, b.drops())
			}
			checkPool(t, b.pool, bedFrames)
		})
	}
}
