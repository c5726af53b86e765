package xsk

import (
	"errors"
	"runtime"
	"testing"

	"github.com/shuntio/shunt/tools/need"
	"golang.org/x/sys/unix"
)

func TestOpenErrors(t *testing.T) {
	a, b := newPair(t, 1, 1500)
	u, _ := newUMEM(t, 64)
	small := SocketOptions{Rx: 64, Tx: 64, Fill: 64, Completion: 64, BusyWait: -1}
	b.open(t, u, small)
	other, _ := newUMEM(t, 64)
	for _, x := range []struct {
		name   string
		e      *end
		u      *UMEM
		change func(o *SocketOptions)
		want   error
	}{
		{"another UMEM on a taken queue", b, other, func(*SocketOptions) {}, ErrBusy},
		{"a taken queue", b, u, func(*SocketOptions) {}, ErrBusy},
		{"queue 1 of 1", a, u, func(o *SocketOptions) { o.Queue = 1 }, ErrQueue},
		{"queue -1", a, u, func(o *SocketOptions) { o.Queue = -1 }, ErrQueue},
		{"zero copy on veth", a, u, func(o *SocketOptions) { o.Mode = ModeZeroCopy }, ErrNoZeroCopy},
		{"ring of 100", a, u, func(o *SocketOptions) { o.Rx = 100 }, nil},
		{"budget below the least", a, u, func(o *SocketOptions) { o.Budget = 8 }, nil},
	} {
		o := small
		x.change(&o)
		s, err := x.e.tryOpen(x.u, o)
		if err == nil {
			s.Close()
			t.Errorf("%s: opened", x.name)
		} else if x.want != nil && !errors.Is(err, x.want) {
			t.Errorf("%s: %v, want %v", x.name, err, x.want)
		}
		t.Logf("%s: %v", x.name, err)
	}
	a.do(t, func() error {
		if _, err := LookupDevice("nope0"); !errors.Is(err, ErrNoDevice) {
			t.Errorf("nope0: %v", err)
		}
		if _, err := u.Open(SocketOptions{Device: Device{Name: "gone0", Index: 4711, Queues: 1}}); !errors.Is(err, ErrNoDevice) {
			t.Errorf("gone0: %v", err)
		}
		return nil
	})
	a.run(t, "ip", "link", "set", a.Name, "down")
	if _, err := a.tryOpen(u, small); !errors.Is(err, ErrDown) {
		t.Errorf("interface down: %v", err)
	}
	if n := len(u.sockets); n != 1 {
		t.Errorf("%d sockets are registered, want the one that is open", n)
	}
}

// TestOpenWithoutCapabilities opens sockets on threads that gave capabilities away.
// A socket whose device was in another namespace has none, though the device is back. That it was down in between is another matter.
func TestOrphaned(t *testing.T) {
	a, b := newPair(t, 1, 1500)
	u, _ := newUMEM(t, 64)
	s := a.open(t, u, SocketOptions{Rx: 64, Tx: 64, Fill: 64, Completion: 64})
	index := a.link(t).Attrs().Index
	a.run(t, "ip", "link", "set", a.Name, "down")
	a.run(t, "ip", "link", "set", a.Name, "up")
	if s.Orphaned() {
		t.Error("orphaned by a device that was down")
	}
	a.run(t, "ip", "link", "set", a.Name, "netns", b.Namespace.Name)
	b.run(t, "ip", "link", "set", a.Name, "netns", a.Namespace.Name)
	if !s.Orphaned() {
		t.Errorf("its device had index %d, was away, and has %d: not orphaned", index, a.link(t).Attrs().Index)
	}
}

func TestOpenWithoutCapabilities(t *testing.T) {
	a, _ := newPair(t, 1, 1500)
	u, _ := newUMEM(t, 4*RingSize)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		name string
		drop []uint
		want error
	}{
		{"CAP_NET_RAW", []uint{unix.CAP_NET_RAW}, ErrPermission},
		{"CAP_IPC_LOCK", []uint{unix.CAP_IPC_LOCK, unix.CAP_SYS_RESOURCE}, ErrMemoryLock},
	} {
		if x.want == ErrMemoryLock && limit.Max > uint64(len(u.memory.Bytes())) {
			t.Logf("%s: not tried, this shell may lock %d bytes", x.name, limit.Max)
			continue
		}
		err := withoutCapabilities(a.Namespace.Path(), x.drop, func() error {
			d, err := LookupDevice(a.Name)
			if err != nil {
				return err
			}
			s, err := u.Open(SocketOptions{Device: d})
			if err == nil {
				s.Close()
			}
			return err
		})
		if !errors.Is(err, x.want) {
			t.Errorf("without %s: %v, want %v", x.name, err, x.want)
		}
		t.Logf("without %s: %v", x.name, err)
	}
}

// withoutCapabilities runs fn in a network namespace, on a thread that lacks capabilities and ends with it.
func withoutCapabilities(namespace string, drop []uint, fn func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- func() error {
			fd, err := unix.Open(namespace, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
				return err
			}
			header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var data [2]unix.CapUserData
			if err := unix.Capget(&header, &data[0]); err != nil {
				return err
			}
			for _, c := range drop {
				data[c/32].Effective &^= 1 << (c % 32)
				data[c/32].Permitted &^= 1 << (c % 32)
			}
			if err := unix.Capset(&header, &data[0]); err != nil {
				return err
			}
			return fn()
		}()
	}()
	return <-done
}

func TestFeatures(t *testing.T) {
	need.Root(t)
	for _, x := range []struct {
		f            *Feature
		major, minor int
	}{{&MultiBuffer, 6, 6}, {&TxBudget, 6, 17}} {
		t.Run(x.f.Name, func(t *testing.T) {
			if Masked(x.f.Name) {
				t.Skip("masked")
			}
			need.Kernel(t, x.major, x.minor)
			if err := x.f.Check(); err != nil {
				t.Error(err)
			}
		})
	}
	if Masked(TxBudget.Name) || Masked(MultiBuffer.Name) || TxBudget.Check() != nil || MultiBuffer.Check() != nil {
		return
	}
	a, b := newPair(t, 1, 1500)
	b.sink(t)
	u, pool := newUMEM(t, 1024)
	p := newPort(t, a.open(t, u, SocketOptions{Budget: 64, MultiBuffer: true, Rx: 64, Fill: 64}), pool)
	for i := range 64 {
		transmit(p, pool, numbered(pool, 100, uint64(i)))
	}
	p.Flush()
	if n := p.stats.Kicks.Load(); n != 1 {
		t.Errorf("%d system calls for 64 frames with a budget of 64, want 1", n)
	}
}
