package underlay

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shuntio/shunt/dataplane/wire"
	"github.com/shuntio/shunt/tools/lab/netlab"
	"github.com/shuntio/shunt/tools/need"
)

const (
	hereMAC  wire.MAC = 0x0200_0000_0001
	thereMAC wire.MAC = 0x0200_0000_0002
	movedMAC wire.MAC = 0x0200_0000_0003
)

var (
	peer4, peer6 = netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")
	far4, far6   = netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("2001:db8:7::7")
)

// lab is two namespaces with a veth pair, and an Underlay in the first.
type lab struct {
	t           *testing.T
	here, there *netlab.Namespace
	u           *Underlay
	notified    atomic.Int32
}

func newLab(t *testing.T) *lab {
	t.Helper()
	need.Root(t)
	need.Program(t, "ip")
	l := &lab{t: t, here: namespace(t, "here"), there: namespace(t, "there")}
	l.veth()
	return l
}

func namespace(t *testing.T, name string) *netlab.Namespace {
	t.Helper()
	ns, err := netlab.NewNamespace(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ns.Close(); err != nil {
			t.Error(err)
		}
	})
	return ns
}

func (l *lab) veth() {
	l.t.Helper()
	err := netlab.Veth(
		netlab.End{Namespace: l.here, Name: "up0", MAC: hereMAC.String(), MTU: 1600, Addrs: []string{"192.0.2.1/24", "2001:db8::1/64"}},
		netlab.End{Namespace: l.there, Name: "peer0", MAC: thereMAC.String(), MTU: 1600, Addrs: []string{"192.0.2.2/24", "2001:db8::2/64"}}, 1)
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) start(o Options) {
	l.t.Helper()
	o.Interface, o.Log = "up0", slog.New(slog.NewTextHandler(io.Discard, nil))
	if err := l.here.Do(func() (err error) { l.u, err = New(o); return err }); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(l.u.Close)
	l.u.Notify(func() { l.notified.Add(1) })
}

func (l *lab) ip(ns *netlab.Namespace, args ...string) {
	l.t.Helper()
	if out, err := ns.Run(l.t.Context(), "ip", args...); err != nil {
		l.t.Fatalf("ip %v: %v\n%s", args, err, out)
	}
}

// wait until a condition holds; say is what went wrong if it never does.
func (l *lab) wait(say string, condition func() bool) {
	l.t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if condition() {
			return
		}
		if time.Now().After(end) {
			out, _ := l.here.Run(l.t.Context(), "ip", "neigh")
			l.t.Fatalf("%s; hops %+v, local %+v, up %v\n%s", say, l.u.Hops(), l.u.Local(), l.u.Up(), out)
		}
	}
}

func (l *lab) reaches(vtep netip.Addr, mac wire.MAC) {
	l.t.Helper()
	l.wait(fmt.Sprintf("%v is not behind %v", vtep, mac), func() bool {
		hop, ok := l.u.NextHop(vtep)
		return ok && hop.Destination == mac && hop.Source == hereMAC
	})
}

func (l *lab) loses(vtep netip.Addr) {
	l.t.Helper()
	l.wait(vtep.String()+" still has a next hop", func() bool { _, ok := l.u.NextHop(vtep); return !ok })
}

func TestNeighbourAppearsAndMoves(t *testing.T) {
	for _, peer := range []netip.Addr{peer4, peer6} {
		t.Run(peer.String(), func(t *testing.T) {
			l := newLab(t)
			l.start(Options{})
			if _, ok := l.u.NextHop(peer); ok {
				t.Fatal("a next hop nobody asked for")
			}
			l.u.Want([]netip.Addr{peer})
			l.reaches(peer, thereMAC) // the kernel was made to ask, and the peer's answered
			l.wait("nobody was told", func() bool { return l.notified.Load() > 0 })
			// Another MAC answers: the entry is confirmed because it is in use, and the probe finds the new one. To see it in
			// less than the kernel's 30 s, let the peer announce itself by a packet of its own.
			l.ip(l.there, "link", "set", "peer0", "address", movedMAC.String())
			l.ip(l.here, "neigh", "flush", "dev", "up0")
			l.reaches(peer, movedMAC)
			// Deleted entries in use come back by themselves.
			l.ip(l.here, "neigh", "flush", "dev", "up0")
			l.wait("the kernel has no entry again", func() bool {
				out, _ := l.here.Run(t.Context(), "ip", "neigh", "show", peer.String())
				return len(out) > 0
			})
			l.reaches(peer, movedMAC)
		})
	}
}

// TestNeighbourIsKeptFresh lets an entry become stale: since it is in use, it is confirmed again, though no packet of the kernel's goes
// there.
func TestNeighbourIsKeptFresh(t *testing.T) {
	l := newLab(t)
	if out, err := l.here.Run(t.Context(), "sh", "-c", "echo 1 > /proc/sys/net/ipv4/neigh/up0/delay_first_probe_time"); err != nil {
		t.Fatal(err, out)
	}
	l.start(Options{})
	l.u.Want([]netip.Addr{peer4})
	l.reaches(peer4, thereMAC)
	is := func(state string) func() bool {
		return func() bool {
			out, _ := l.here.Run(t.Context(), "ip", "neigh", "show", peer4.String())
			return strings.Contains(out, state)
		}
	}
	l.wait("not resolved", is("REACHABLE"))
	l.ip(l.here, "neigh", "change", peer4.String(), "lladdr", thereMAC.String(), "dev", "up0", "nud", "stale")
	l.wait("not confirmed", is("REACHABLE"))
	l.reaches(peer4, thereMAC)

	// What somebody has fixed stays so.
	l.ip(l.here, "neigh", "replace", peer4.String(), "lladdr", movedMAC.String(), "dev", "up0", "nud", "permanent")
	l.reaches(peer4, movedMAC)
	l.ip(l.here, "link", "set", "up0", "mtu", "1400")
	l.wait("MTU", func() bool { return l.u.Local().MTU == 1400 })
	if !is("PERMANENT")() {
		t.Error("a permanent entry is permanent no more")
	}
}

func TestNeighbourThatNeverAnswers(t *testing.T) {
	l := newLab(t)
	l.start(Options{})
	absent := netip.MustParseAddr("192.0.2.77")
	l.u.Want([]netip.Addr{absent, peer4})
	l.reaches(peer4, thereMAC)
	l.wait("no problem reported", func() bool { return l.u.Hops()[absent].Problem != "" })
	// It comes later than the kernel has given up (3 s): it is tried again.
	l.wait("the kernel has not given up", func() bool {
		out, _ := l.here.Run(t.Context(), "ip", "neigh", "show", absent.String())
		return strings.Contains(out, "FAILED")
	})
	l.ip(l.there, "address", "add", absent.String()+"/24", "dev", "peer0")
	l.reaches(absent, thereMAC)
}

func TestRouteChanges(t *testing.T) {
	for _, c := range []struct {
		far, gateway, other netip.Addr
		family, prefix      string
	}{
		{far4, peer4, netip.MustParseAddr("192.0.2.3"), "-4", "198.51.100.0/24"},
		{far6, peer6, netip.MustParseAddr("2001:db8::3"), "-6", "2001:db8:7::/64"},
	} {
		t.Run(c.family, func(t *testing.T) {
			l := newLab(t)
			l.start(Options{})
			l.u.Want([]netip.Addr{c.far})
			l.wait("there is a way already", func() bool { return l.u.Hops()[c.far].Problem != "" })
			l.ip(l.here, c.family, "route", "add", c.prefix, "via", c.gateway.String(), "mtu", "1480")
			l.reaches(c.far, thereMAC)
			if hop, _ := l.u.NextHop(c.far); hop.MTU != 1480 || l.u.Hops()[c.far].Gateway != c.gateway {
				t.Errorf("%+v", l.u.Hops()[c.far])
			}
			// Another gateway, with another MAC.
			l.ip(l.here, "neigh", "replace", c.other.String(), "lladdr", movedMAC.String(), "dev", "up0", "nud", "permanent")
			l.ip(l.here, c.family, "route", "replace", c.prefix, "via", c.other.String())
			l.reaches(c.far, movedMAC)
			// And a neighbour's MAC that is changed by hand.
			l.ip(l.here, "neigh", "replace", c.other.String(), "lladdr", thereMAC.String(), "dev", "up0", "nud", "permanent")
			l.reaches(c.far, thereMAC)
			l.ip(l.here, c.family, "route", "delete", c.prefix)
			l.wait("the way is still there", func() bool { return l.u.Hops()[c.far].Problem != "" })
		})
	}
}

func TestLinkDownUp(t *testing.T) {
	l := newLab(t)
	l.start(Options{})
	l.u.Want([]netip.Addr{peer4})
	l.reaches(peer4, thereMAC)
	if got := l.u.Local(); got.MAC != hereMAC || got.MTU != 1600 || got.Address != netip.MustParseAddr("192.0.2.1") {
		t.Errorf("%+v", got)
	}
	l.ip(l.here, "link", "set", "up0", "down")
	l.loses(peer4)
	l.ip(l.here, "link", "set", "up0", "up")
	l.reaches(peer4, thereMAC)
	l.ip(l.there, "link", "set", "peer0", "down") // no carrier
	l.loses(peer4)
	l.ip(l.there, "link", "set", "peer0", "up")
	l.reaches(peer4, thereMAC)

	before := l.notified.Load()
	l.ip(l.here, "link", "set", "up0", "mtu", "1500")
	l.wait("the MTU was not followed", func() bool { return l.u.Local().MTU == 1500 })
	l.wait("nobody was told of the MTU", func() bool { return l.notified.Load() > before })
	l.ip(l.here, "link", "set", "up0", "address", movedMAC.String())
	l.wait("the MAC was not followed", func() bool {
		hop, ok := l.u.NextHop(peer4)
		return l.u.Local().MAC == movedMAC && ok && hop.Source == movedMAC
	})
}

func TestInterfaceGoesAndComes(t *testing.T) {
	l := newLab(t)
	l.start(Options{})
	l.u.Want([]netip.Addr{peer4})
	l.reaches(peer4, thereMAC)
	first := l.u.Presence()
	if first.Index == 0 || first.Came != 1 {
		t.Errorf("%+v", first)
	}
	l.ip(l.here, "link", "delete", "up0")
	l.loses(peer4)
	if p := l.u.Presence(); p.Index != 0 || p.Came != 1 {
		t.Errorf("%+v", p)
	}
	l.veth()
	l.reaches(peer4, thereMAC)
	if p := l.u.Presence(); p.Index == 0 || p.Came != 2 {
		t.Errorf("%+v", p)
	}
}

// TestInterfaceVisitsAnotherNamespace has it come back with the index that it had, and perhaps before anybody looked.
func TestInterfaceVisitsAnotherNamespace(t *testing.T) {
	l := newLab(t)
	l.start(Options{})
	before := l.u.Presence()
	l.ip(l.here, "link", "set", "up0", "netns", l.there.Path())
	l.ip(l.there, "link", "set", "up0", "netns", l.here.Path())
	l.wait("it did not come back", func() bool { return l.u.Presence().Came == 2 })
	if p := l.u.Presence(); p.Index != before.Index {
		t.Logf("it has another index: %+v, had %+v", p, before)
	}
}

func TestAddress(t *testing.T) {
	l := newLab(t)
	l.start(Options{})
	address := func(want string) {
		t.Helper()
		l.wait("address is not "+want, func() bool { return l.u.Local().Address.String() == want })
	}
	address("192.0.2.1")
	l.ip(l.here, "address", "delete", "192.0.2.1/24", "dev", "up0")
	address("2001:db8::1") // the IPv6 one is left
	l.ip(l.here, "address", "delete", "2001:db8::1/64", "dev", "up0")
	address("invalid IP")
	l.ip(l.here, "address", "add", "192.0.2.9/24", "dev", "up0")
	address("192.0.2.9")

	m := newLab(t)
	m.start(Options{Address: netip.MustParseAddr("2001:db8::1")})
	if got := m.u.Local().Address; got != netip.MustParseAddr("2001:db8::1") {
		t.Errorf("%v, want the configured address", got)
	}
}

// TestManyChanges floods the socket with routes, and loses nothing that matters.
func TestManyChanges(t *testing.T) {
	l := newLab(t)
	l.start(Options{})
	l.u.Want([]netip.Addr{far4})
	// 20000 routes that do not matter come and go; the one that does is among them.
	l.ip(l.here, "-batch", batch(t, func(line func(string, ...any)) {
		for i := range 10000 {
			line("route add 10.%d.%d.0/24 via 192.0.2.2", i/250, i%250)
		}
		line("route add 198.51.100.0/24 via 192.0.2.2")
		for i := range 10000 {
			line("route del 10.%d.%d.0/24", i/250, i%250)
		}
	}))
	l.reaches(far4, thereMAC)
}

func TestNoSuchInterface(t *testing.T) {
	if _, err := New(Options{Interface: "shunt-none"}); !errors.Is(err, ErrNoInterface) {
		t.Errorf("%v, want ErrNoInterface", err)
	}
}

// batch writes a file for ip -batch.
func batch(t *testing.T, write func(line func(string, ...any))) string {
	t.Helper()
	var b strings.Builder
	write(func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) })
	path := filepath.Join(t.TempDir(), "batch")
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
