package xsk

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/tools/need"
	"golang.org/x/sys/unix"
)

// sysfs mounts that of the end's namespace until the test ends.
func (e *end) sysfs(tb testing.TB) string {
	tb.Helper()
	dir := tb.TempDir()
	e.do(tb, func() error { return unix.Mount("sysfs", dir, "sysfs", unix.MS_NOSUID, "") })
	tb.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			tb.Error(err)
		}
	})
	return dir
}

// TestBusyPoll lets a model of a driver that works only when it is called deliver packets.
func TestBusyPoll(t *testing.T) {
	m, p, pool := modelPort(t, 64, 16, 0)
	p.s.busyPoll.Store(true)
	napi, asked := 7, 0
	p.s.napi = func(int) int { asked++; return napi }
	p.s.receive = func(int) unix.Errno {
		m.take(1)
		m.deliver(60, 60)
		return 0
	}
	*m.tx.flags = 0 // in zero copy nobody asks to be woken
	p.s.zeroCopy = true
	into := make([]*frame.Frame, 8)
	for range 20 {
		n := p.Receive(into, pool)
		if n != 1 {
			t.Fatalf("%d packets, want the one that the call brought", n)
		}
		transmit(p, pool, into[:n]...)
		p.Flush()
		m.complete(1)
	}
	if got := p.stats.Polls.Load(); got != 20 || asked != 1 || m.transmitted != 20 {
		t.Errorf("%d polls, asked %d times for whom they reach, %d transmitted", got, asked, m.transmitted)
	}
	m.take(2)
	m.deliver(60, 60)
	if p.Receive(into, pool); p.stats.Polls.Load() != 20 {
		t.Error("polled although a packet was there")
	}

	m, p, pool = modelPort(t, 64, 16, 0)
	p.s.busyPoll.Store(true)
	p.s.napi = func(int) int { return 0 }
	for range 3 {
		p.Receive(into, pool)
		m.take(1)
		m.deliver(60, 60)
		pool.PutAll(into[:p.Receive(into, pool)])
	}
	if got := p.stats.Polls.Load(); got != 1 || p.s.InForce().BusyPoll {
		t.Errorf("%d polls of a driver that cannot be polled; in force %v", got, p.s.InForce().BusyPoll)
	}
}

// TestBusyPollLive asks for it of a real driver. Where that cannot be polled (veth, in kernels that forgot to tell which queue a packet is from)
// everything goes on by interrupts, and the socket says so.
func TestBusyPollLive(t *testing.T) {
	need.Root(t)
	if err := BusyPolling.Check(); err != nil {
		if Masked(BusyPolling.Name) {
			t.Skip("masked")
		}
		need.Missing(t, "%v", err)
	}
	a, b := newPair(t, 1, 1500)
	a.redirect(t, 0)
	b.redirect(t, 0)
	ua, sending := newUMEM(t, 1024)
	ub, pool := newUMEM(t, 1024)
	small := SocketOptions{Rx: 64, Fill: 64, Tx: 64, Completion: 64}
	from := newPort(t, a.open(t, ua, small), sending)
	small.BusyPoll = BusyPollOn
	to := newPort(t, b.open(t, ub, small), pool)
	for option, want := range map[int]int{unix.SO_PREFER_BUSY_POLL: 1, unix.SO_BUSY_POLL: busyPollMicros} {
		if got, err := unix.GetsockoptInt(to.s.fd, unix.SOL_SOCKET, option); got != want {
			t.Errorf("option %d is %d, %v, want %d", option, got, err, want)
		}
	}
	into := make([]*frame.Frame, 8)
	for i := range uint64(50) {
		transmit(from, sending, numbered(sending, 100, i))
		from.Flush()
		from.Receive(nil, sending)
		until(t, "the packet", func() bool {
			n := to.Receive(into, pool)
			defer pool.PutAll(into[:n])
			return n > 0
		})
	}
	if got, id := to.s.InForce().BusyPoll, incomingNAPI(to.s.fd); got != (id != 0) || !to.s.settled {
		t.Errorf("busy polling %v with NAPI %d", got, id)
	}
	if n := testing.AllocsPerRun(100, func() { to.Receive(into, pool) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestDefer changes a device's settings and makes them what they were.
func TestDefer(t *testing.T) {
	b, _ := newPair(t, 1, 1500)
	sys := b.sysfs(t)
	read := func() (both string) {
		for _, name := range []string{"gro_flush_timeout", "napi_defer_hard_irqs"} {
			text, err := os.ReadFile(filepath.Join(sys, "class/net", b.Name, name))
			if err != nil {
				t.Fatal(err)
			}
			both += strings.TrimSpace(string(text)) + " "
		}
		return both
	}
	was := read()
	d, err := Defer(DeferOptions{Interface: b.Name, Sysfs: sys})
	if err != nil {
		t.Fatal(err)
	}
	if got := read(); got != "200000 2 " {
		t.Errorf("deferral is %s", got)
	}
	if err := errors.Join(d.Restore(), d.Restore()); err != nil {
		t.Error(err)
	}
	if got := read(); got != was {
		t.Errorf("restored to %s, it was %s", got, was)
	}
	if d, err = Defer(DeferOptions{Interface: b.Name, Sysfs: sys}); err != nil {
		t.Fatal(err)
	}
	b.run(t, "ip", "link", "del", b.Name)
	if err := d.Restore(); err != nil {
		t.Errorf("of a device that is gone: %v", err)
	}
	if _, err := Defer(DeferOptions{Interface: "nope0", Sysfs: sys}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nope0: %v", err)
	}
	if _, err := Defer(DeferOptions{Interface: "../" + b.Name, Sysfs: sys}); !errors.Is(err, ErrNoDevice) {
		t.Errorf("a path: %v", err)
	}
}

// TestBusyPollSettings: auto takes it for zero copy alone, on is an error where it can't be.
func TestBusyPollSettings(t *testing.T) {
	a, _ := newPair(t, 2, 1500)
	u, _ := newUMEM(t, 64)
	small := SocketOptions{Rx: 64, Fill: 64, Tx: 64, Completion: 64}
	for setting, want := range map[BusyPoll]bool{BusyPollOff: false, BusyPollAuto: false, BusyPollOn: true} {
		small.BusyPoll = setting
		s, err := a.tryOpen(u, small)
		if Masked(BusyPolling.Name) && setting == BusyPollOn {
			if !errors.Is(err, ErrNotSupported) {
				t.Errorf("%v, masked: %v", setting, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if got := s.InForce().BusyPoll; got != want {
			t.Errorf("%v in copy mode: %v", setting, got)
		}
		if setting == BusyPollOn {
			o := small
			o.Owner, o.Tx = s, -1
			if second, err := a.tryOpen(u, o); err == nil {
				second.Close()
				t.Error("a socket that owns no queue polls it")
			}
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Setenv("SHUNT_MASK", "xsk-busy-poll")
	small.BusyPoll = BusyPollOn
	if s, err := a.tryOpen(u, small); !errors.Is(err, ErrNotSupported) {
		t.Errorf("masked: %v, %v", s, err)
	}
	for setting, name := range map[BusyPoll]string{BusyPollOff: "off", BusyPollAuto: "auto", BusyPollOn: "on"} {
		if setting.String() != name {
			t.Errorf("%d is %v", setting, setting)
		}
	}
}
