package vhostuser

import (
	"errors"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// wantAll is what a front-end accepts, features as protocol features, unless its guest is on the move.
const wantAll = ^FeatureLogAll

// modes are the three ways front-ends speak: with acknowledgements, without, and without protocol features at all.
var modes = []struct {
	name               string
	features, protocol uint64
}{
	{"acknowledged", wantAll, wantAll},
	{"classic", wantAll, wantAll &^ ProtocolReplyAck},
	{"old", wantAll &^ FeatureProtocol, 0},
}

// TestLifecycle walks a device through start, stop with a base, restart and the end.
func TestLifecycle(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) {
			d, g := newFake(t), newGuest(t)
			b := listenFake(t, d, Options{})
			f := dial(t, b)
			must(t, f.Negotiate(mode.features, mode.protocol))
			must(t, f.SetMemory(g.region()))
			for i := range 2 {
				must(t, f.StartVring(g.ring(i)))
			}
			must(t, f.Barrier())
			s := b.Status()
			if s.Session == nil || !s.Session.Vrings[1].Running || s.Session.MemoryBytes != guestSize {
				t.Fatalf("status %+v", s.Session)
			}
			d.set(func() { d.base = 777 })
			base, err := f.StopVring(1)
			must(t, err)
			if base != 777 {
				t.Fatalf("base %d", base)
			}
			again := g.ring(1)
			again.Base = base
			must(t, f.StartVring(again))
			must(t, f.Barrier())
			must(t, f.Close())
			eventually(t, "disconnected", func() bool { return d.disconnects() == 1 })
			want := []string{"features 0x130008000", "memory 1", "start 0 base 0", "start 1 base 0", "stop 1",
				"start 1 base 777", "stop 0", "stop 1", "disconnected"}
			if diff := cmp.Diff(want, d.seen()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestRingStartsWhenComplete gives a ring its parts in every order; the device gets it once, with the last.
func TestRingStartsWhenComplete(t *testing.T) {
	const features = FeatureProtocol | 1<<32
	steps := []func(*Frontend, *guest) error{
		func(f *Frontend, g *guest) error { return f.AcceptFeatures(features) },
		func(f *Frontend, g *guest) error { return f.Do(SetVringNum, appendState(nil, 0, 256)) },
		func(f *Frontend, g *guest) error { return f.Do(SetVringAddr, appendAddr(nil, g.ring(0))) },
		func(f *Frontend, g *guest) error { return f.SetKick(0, g.kick) },
		func(f *Frontend, g *guest) error { return f.Enable(0, true) },
		func(f *Frontend, g *guest) error { return f.SetMemory(g.region()) },
	}
	g := newGuest(t)
	permute(len(steps), func(order []int) {
		d := newFake(t)
		f := connected(t, d)
		defer f.Close()
		must(t, f.Do(SetProtocolFeatures, appendU64(nil, DefaultProtocolFeatures)))
		f.protocol = DefaultProtocolFeatures
		for n, step := range order {
			if _, ok := d.running(0); ok {
				t.Fatalf("order %v: running after %d steps", order, n)
			}
			must(t, steps[step](f, g))
		}
		if _, ok := d.running(0); !ok {
			t.Fatalf("order %v: not running", order)
		}
	})
}

// connected is a front-end with a session of its own, without a Backend.
func connected(t *testing.T, d *fakeDevice) *Frontend {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		file := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(file)
		must(t, err)
		must(t, file.Close())
		ends[i] = c.(*net.UnixConn)
	}
	go func() {
		_ = newSession(newSocket(ends[1]), d, newLogger(slog.New(slog.DiscardHandler), "pair")).run()
		ends[1].Close()
	}()
	return NewFrontend(ends[0])
}

// permute calls f with every order of 0..n-1.
func permute(n int, f func([]int)) {
	var walk func([]int)
	walk = func(order []int) {
		if len(order) == n {
			f(order)
		}
		for i := range n {
			if !slices.Contains(order, i) {
				walk(append(order[:len(order):len(order)], i))
			}
		}
	}
	walk(nil)
}

// started is a front-end with ring 0 running.
func started(t *testing.T, d *fakeDevice) (*Backend, *Frontend, *guest) {
	t.Helper()
	g := newGuest(t)
	b := listenFake(t, d, Options{})
	f := dial(t, b)
	must(t, f.Negotiate(wantAll, wantAll))
	must(t, f.SetMemory(g.region()))
	must(t, f.StartVring(g.ring(0)))
	return b, f, g
}

func TestCallReplacedWhileRunning(t *testing.T) {
	d := newFake(t)
	_, f, g := started(t, d)
	before, _ := d.running(0)
	must(t, f.SetCall(0, g.call2))
	after, _ := d.running(0)
	if after.Call == before.Call || CheckEventfd(after.Call) != nil {
		t.Errorf("call descriptor %d, before %d", after.Call, before.Call)
	}
	must(t, f.SetCall(0, -1))
	must(t, f.SetKick(0, -1))
	if c, ok := d.running(0); !ok || c.Call != -1 || c.Kick != -1 {
		t.Errorf("ring %+v should poll on both sides", c)
	}
	// The log may come and go while the ring runs; the ring itself cannot move.
	c := g.ring(0)
	c.Flags, c.LogAddr = VringLog, 0x5000
	must(t, f.Do(SetVringAddr, appendAddr(nil, c)))
	if c, _ := d.running(0); c.Flags != VringLog || c.LogAddr != 0x5000 {
		t.Errorf("ring %+v does not log", c)
	}
	c.DescAddr += 0x1000
	refused(t, f.Do(SetVringAddr, appendAddr(nil, c)))
	refused(t, f.Do(SetVringNum, appendState(nil, 0, 128)))
	refused(t, f.Do(SetVringBase, appendState(nil, 0, 1)))
	refused(t, f.AcceptFeatures(FeatureProtocol))
}

func TestDisabledRingRests(t *testing.T) {
	d := newFake(t)
	_, f, _ := started(t, d)
	d.set(func() { d.base = 9 })
	must(t, f.Enable(0, false))
	if _, ok := d.running(0); ok {
		t.Fatal("disabled ring runs")
	}
	must(t, f.Enable(0, true))
	if c, ok := d.running(0); !ok || c.Base != 9 {
		t.Fatalf("enabled ring %+v does not go on at 9", c)
	}
	must(t, f.Enable(0, false))
	if base, err := f.StopVring(0); err != nil || base != 9 {
		t.Fatalf("base %d, %v", base, err)
	}
	must(t, f.Enable(0, true))
	if _, ok := d.running(0); ok {
		t.Fatal("a stopped ring runs because it was enabled")
	}
}

func TestMemorySlots(t *testing.T) {
	d := newFake(t)
	_, f, g := started(t, d)
	if n, err := f.MaxMemSlots(); err != nil || n != MaxMemSlots {
		t.Fatalf("%d slots, %v", n, err)
	}
	second := g.region()
	second.GuestAddr, second.UserAddr = 2*guestPhys, 2*guestUser
	must(t, f.AddMemory(second))
	must(t, f.AddMemory(second)) // as QEMU 7.2 does for a second queue pair
	other := second
	other.FD = newGuest(t).fd
	refused(t, f.AddMemory(other))
	must(t, f.RemoveMemory(second))
	must(t, f.RemoveMemory(second))
	if _, ok := d.running(0); !ok {
		t.Fatal("ring stopped for a region it does not lie in")
	}
	must(t, f.RemoveMemory(g.region()))
	if _, ok := d.running(0); ok {
		t.Fatal("ring runs without memory")
	}
	must(t, f.AddMemory(g.region()))
	if _, ok := d.running(0); !ok {
		t.Fatal("ring does not run when its memory is back")
	}
	want := []string{"features 0x130008000", "memory 1", "start 0 base 0", "add 0x80000000", "remove 0x80000000",
		"stop 0", "remove 0x40000000", "add 0x40000000", "start 0 base 0"}
	if diff := cmp.Diff(want, d.seen()); diff != "" {
		t.Error(diff)
	}
}

func TestAllMemorySlots(t *testing.T) {
	d, g := newFake(t), newGuest(t)
	f := dial(t, listenFake(t, d, Options{}))
	must(t, f.Negotiate(wantAll, wantAll))
	slot := func(i int) Region {
		return Region{GuestAddr: uint64(i) * pageSize, UserAddr: 2 * uint64(i) * pageSize, Size: pageSize, FD: g.fd}
	}
	for round := range 2 {
		for i := range MaxMemSlots {
			must(t, f.AddMemory(slot(i)))
		}
		refused(t, f.AddMemory(slot(MaxMemSlots)))
		for i := range MaxMemSlots { // upwards, and then every third
			must(t, f.RemoveMemory(slot(i*(1+2*round)%MaxMemSlots)))
		}
	}
	d.set(func() {
		if len(d.memory) != 0 {
			t.Errorf("%d regions are left", len(d.memory))
		}
	})
}

// TestPackedRings: sizes that are no power of two, positions with their wrap counters, in what both kinds of front-ends send.
func TestPackedRings(t *testing.T) {
	d := newFake(t)
	d.offer.Features |= featurePacked | 1<<35 // IN_ORDER
	b, f, g := started(t, d)
	d.set(func() {
		if d.features&(featurePacked|1<<35) != featurePacked|1<<35 {
			t.Errorf("features %#x", d.features)
		}
	})
	_, err := f.StopVring(0)
	must(t, err)
	ring := g.ring(0)
	ring.Size = 100
	for _, c := range []struct {
		base        uint32
		avail, used uint16
	}{
		{0x8063_8063, 0x8063, 0x8063}, {0x0005_8002, 0x8002, 5}, {0x8002, 0x8002, 0x8002}, {0x8000_8000, 0x8000, 0x8000}, {0, 0, 0},
	} {
		ring.Base = c.base
		must(t, f.StartVring(ring))
		have, ok := d.running(0)
		if avail, used := have.PackedBase(); !ok || have.Size != 100 || avail != c.avail || used != c.used {
			t.Errorf("base %#x: %#x and %#x of %d", c.base, avail, used, have.Size)
		}
		if base, err := f.StopVring(0); err != nil || base != c.base {
			t.Errorf("base %#x came back as %#x, %v", c.base, base, err)
		}
	}
	for _, base := range []uint32{100, 0x8064, 100 << 16, 0x7fff} {
		ring.Base = base
		refused(t, f.StartVring(ring))
		if s := b.Status().Session; !strings.Contains(s.LastRefusal, "beyond its 100 descriptors") {
			t.Errorf("%#x: %s", base, s.LastRefusal)
		}
		_, err := f.StopVring(0)
		must(t, err)
	}
}

// TestMemoryReplacedWhileRunning: the device never sees a table change under a ring; one it refuses changes nothing.
func TestMemoryReplacedWhileRunning(t *testing.T) {
	d := newFake(t)
	_, f, g := started(t, d)
	must(t, f.SetMemory(g.region()))
	d.set(func() { d.fail = map[string]error{"memory": errors.New("out of address space")} })
	refused(t, f.SetMemory(g.region()))
	if _, ok := d.running(0); !ok {
		t.Error("ring does not go on with the memory it had")
	}
	d.set(func() { d.fail = nil })
	must(t, f.SetMemory()) // no memory at all: the ring waits
	if _, ok := d.running(0); ok {
		t.Error("ring runs without memory")
	}
	must(t, f.SetMemory(g.region()))
	if _, ok := d.running(0); !ok {
		t.Error("ring does not run when its memory is back")
	}
}

func TestResets(t *testing.T) {
	for name, reset := range map[string]func(*Frontend) error{
		"RESET_DEVICE": (*Frontend).Reset,
		"status 0":     func(f *Frontend) error { return f.SetStatus(0) },
	} {
		t.Run(name, func(t *testing.T) {
			d := newFake(t)
			_, f, g := started(t, d)
			must(t, f.SetStatus(15))
			d.set(func() { d.base = 5 })
			must(t, reset(f))
			if _, ok := d.running(0); ok {
				t.Fatal("ring runs after the reset")
			}
			if base, err := f.StopVring(0); err != nil || base != 5 {
				t.Fatalf("base %d, %v", base, err) // QEMU 7.2 writes status 0 first and asks then
			}
			if v, err := f.Status(); err != nil || v != 0 {
				t.Fatalf("status %d, %v", v, err)
			}
			must(t, f.AcceptFeatures(FeatureProtocol|1<<32)) // memory and call descriptor are still known
			must(t, f.SetKick(0, g.kick))
			must(t, f.Enable(0, true))
			if c, ok := d.running(0); !ok || c.Call == -1 {
				t.Fatalf("ring %+v does not start again", c)
			}
		})
	}
	t.Run("RESET_OWNER", func(t *testing.T) {
		d := newFake(t)
		_, f, _ := started(t, d)
		must(t, f.Do(ResetOwner, nil))
		if _, ok := d.running(0); ok || slices.Contains(d.seen(), "reset") {
			t.Fatal("RESET_OWNER disables the rings and does no more")
		}
	})
}

// TestStatusTellsOfBadFeatures: a driver learns through FEATURES_OK that its choice was refused.
func TestStatusTellsOfBadFeatures(t *testing.T) {
	f := dial(t, listenFake(t, newFake(t), Options{}))
	must(t, f.Negotiate(wantAll, wantAll))
	refused(t, f.AcceptFeatures(1<<63))
	must(t, f.SetStatus(statusFeaturesOK|3))
	if v, err := f.Status(); err != nil || v != 3 {
		t.Fatalf("status %d, %v", v, err)
	}
	must(t, f.AcceptFeatures(FeatureProtocol))
	must(t, f.SetStatus(statusFeaturesOK|3))
	if v, err := f.Status(); err != nil || v != 11 {
		t.Fatalf("status %d, %v", v, err)
	}
}

func TestConfigAndMTU(t *testing.T) {
	d := newFake(t)
	f := dial(t, listenFake(t, d, Options{}))
	must(t, f.Negotiate(wantAll, wantAll))
	must(t, f.SetConfig(4, []byte("shunt"), true))
	refused(t, f.SetConfig(4, []byte("guest"), false))
	if p, err := f.Config(2, 8); err != nil || string(p) != "\x00\x00shunt\x00" {
		t.Fatalf("%q, %v", p, err)
	}
	_, err := f.Config(0, 61)
	refused(t, err)
	_, err = f.Config(0, 256)
	refused(t, err)
	must(t, f.SetMTU(9000))
	refused(t, f.SetMTU(9001))
	refused(t, f.SetMTU(67))
	if n, err := f.QueueNum(); err != nil || n != 1 {
		t.Fatalf("%d queues, %v", n, err)
	}
	d.set(func() {
		if d.mtu != 9000 {
			t.Errorf("MTU %d", d.mtu)
		}
	})
}

// TestDeviceRefuses: what a device says no to is told to the front-end, and the ring is not the device's.
func TestDeviceRefuses(t *testing.T) {
	d := newFake(t)
	d.fail = map[string]error{"start": errors.New("no room")}
	g := newGuest(t)
	b := listenFake(t, d, Options{})
	f := dial(t, b)
	must(t, f.Negotiate(wantAll, wantAll))
	must(t, f.SetMemory(g.region()))
	refused(t, f.StartVring(g.ring(0)))
	if s := b.Status().Session; s.Refused != 1 || s.Vrings[0].Running {
		t.Errorf("%+v", s)
	}
	// An update that fails takes the ring back and ends the connection, with or without an acknowledgement.
	d.set(func() { d.fail = map[string]error{"update": errors.New("no")} })
	must(t, f.Enable(0, true))
	if err := f.SetCall(0, g.call2); err == nil || errors.Is(err, ErrRefused) {
		t.Errorf("connection goes on: %v", err)
	}
	eventually(t, "disconnected", func() bool { return d.disconnects() == 1 })
}

// haltingDevice stops rings all at once.
type haltingDevice struct {
	*fakeDevice
	calls [][]int
}

func (d *haltingDevice) StopVrings(indices []int, bases []uint32) (err error) {
	d.set(func() { d.calls = append(d.calls, slices.Clone(indices)) })
	for n, i := range indices {
		if bases[n], err = d.StopVring(i); err != nil {
			return err
		}
	}
	return nil
}

// TestStopsTogether: whatever stops several rings asks a device once that can stop them at once.
func TestStopsTogether(t *testing.T) {
	d := &haltingDevice{fakeDevice: newFake(t)}
	b := listenDevice(t, d, Options{})
	g := newGuest(t)
	f := dial(t, b)
	must(t, f.Negotiate(wantAll, wantAll))
	start := func() {
		t.Helper()
		must(t, f.SetMemory(g.region()))
		must(t, f.StartVring(g.ring(0)))
		must(t, f.StartVring(g.ring(1)))
		d.set(func() { d.calls = nil })
	}
	stopped := func(what string) {
		t.Helper()
		d.set(func() {
			if !slices.EqualFunc(d.calls, [][]int{{0, 1}}, slices.Equal) {
				t.Errorf("%s: stopped %v", what, d.calls)
			}
		})
	}
	for name, stop := range map[string]func(){
		"SET_MEM_TABLE": func() { must(t, f.SetMemory(g.region())) },
		"REM_MEM_REG":   func() { must(t, f.RemoveMemory(g.region())) },
		"RESET_OWNER":   func() { must(t, f.Do(ResetOwner, nil)) },
		"RESET_DEVICE":  func() { must(t, f.Reset()); must(t, f.AcceptFeatures(FeatureProtocol|1<<32)) },
		"status 0":      func() { must(t, f.SetStatus(0)); must(t, f.AcceptFeatures(FeatureProtocol|1<<32)) },
	} {
		start()
		stop()
		stopped(name)
		for i := range 2 {
			_, err := f.StopVring(i)
			must(t, err)
		}
	}
	start()
	must(t, f.Close())
	eventually(t, "disconnected", func() bool { return d.disconnects() == 1 })
	stopped("disconnect")
}

// TestStopIsQuick: the answer waits for the device and for nothing else, and Status for neither. The quickest of some answers tells, since the machine may stand still.
func TestStopIsQuick(t *testing.T) {
	d := newFake(t)
	b, f, g := started(t, d)
	quickest := time.Hour
	for range 5 {
		hold := make(chan struct{})
		d.set(func() { d.hold = hold })
		must(t, f.Send(GetVringBase, appendState(nil, 0, 0)))
		eventually(t, "device is asked", func() bool { _, ok := d.running(0); return !ok })
		if b.Status().Session == nil {
			t.Fatal("no session")
		}
		now := time.Now()
		close(hold)
		if _, err := f.Receive(GetVringBase); err != nil {
			t.Fatal(err)
		}
		quickest = min(quickest, time.Since(now))
		must(t, f.StartVring(g.ring(0)))
	}
	if quickest > 100*time.Millisecond {
		t.Errorf("the answer took %v after the device's", quickest)
	}
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// refused wants a failure that the connection survived.
func refused(tb testing.TB, err error) {
	tb.Helper()
	if !errors.Is(err, ErrRefused) {
		tb.Fatalf("not refused: %v", err)
	}
}
