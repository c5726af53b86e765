package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shuntio/shunt/bpf"
	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/lab/daemon"
	"github.com/shuntio/shunt/tools/lab/guest"
	"github.com/shuntio/shunt/tools/lab/leftover"
	"github.com/shuntio/shunt/tools/lab/netlab"
	"github.com/shuntio/shunt/tools/lab/peer"
	"github.com/shuntio/shunt/tools/need"
)

// buildDir is where the programs are built, once a process.
var buildDir string

func TestMain(m *testing.M) {
	temporary := os.TempDir()
	status := leftover.Run(func() int {
		dir, err := os.MkdirTemp("", "built")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		buildDir = dir
		return m.Run()
	})
	daemon.SweepRings(temporary)
	os.Exit(status)
}

var buildDaemon = sync.OnceValues(func() (string, error) {
	return daemon.Build(context.Background(), buildDir)
})

// shuntd returns the daemon's binary. What runs it is not for the quick loop.
func shuntd(t *testing.T) string {
	t.Helper()
	need.Time(t, "is end to end")
	need.Root(t)
	need.Program(t, "ip", "bridge", "ethtool", "nsenter", "unshare")
	binary, err := buildDaemon()
	if err != nil {
		t.Fatal(err)
	}
	return binary
}

// within bounds a test, and leaves time to clean up before go test's own limit.
func within(t *testing.T, limit time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), limit, fmt.Errorf("the test did not end within %v", limit))
	t.Cleanup(cancel)
	return ctx
}

func namespace(t *testing.T, name string) *netlab.Namespace {
	t.Helper()
	need.Root(t)
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

// wire joins two namespaces, and makes the second one's kernel complete the
// checksums and segments of what it sends, as a wire would have them.
func wire(t *testing.T, a, b netlab.End) {
	t.Helper()
	if err := netlab.Veth(a, b, 1); err != nil {
		t.Fatal(err)
	}
	for _, end := range []netlab.End{a, b} {
		run(t, end.Namespace, "ethtool", "-K", end.Name, "tx", "off", "tso", "off", "gso", "off")
	}
}

// xdpMode is in which mode XDP programs run on devices that have both.
func xdpMode() bpf.Mode {
	if mask := os.Getenv("SHUNT_MASK"); strings.Contains(mask, "all") || strings.Contains(mask, "xdp-native") {
		return bpf.Generic
	}
	return bpf.Native
}

// run runs a program that must succeed.
func run(t *testing.T, r peer.Runner, name string, args ...string) string {
	t.Helper()
	out, err := r.Run(t.Context(), name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// start runs a daemon until the end of the test, and then looks for what it
// left behind.
func start(t *testing.T, ns *netlab.Namespace, name, config string) *daemon.Daemon {
	t.Helper()
	d := prepare(t, ns, name, config)
	if err := d.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return d
}

// prepare is start without starting.
func prepare(t *testing.T, ns *netlab.Namespace, name, config string) *daemon.Daemon {
	t.Helper()
	d := daemon.New(daemon.Options{Name: name, Binary: shuntd(t), Namespace: ns, Dir: t.TempDir(), Config: config})
	t.Cleanup(func() {
		if t.Failed() && d.Running() {
			drops, err := d.API().Drops(context.Background())
			t.Logf("%s dropped %v (%v)", name, drops, err)
		}
		if d.Running() || d.Died() {
			if err := d.Stop(context.Background()); err != nil {
				t.Error(err)
			}
			if left, err := d.Leftovers(); err != nil || len(left) > 0 {
				t.Errorf("%s left behind: %s (%v)", name, strings.Join(left, ", "), err)
			}
		}
		if t.Failed() {
			t.Logf("log of %s:\n%s", name, d.Log())
		}
	})
	return d
}

// image is the guests' base image.
func image(t *testing.T) guest.Image {
	t.Helper()
	need.Time(t, "boots a guest")
	need.Program(t, "qemu-system-x86_64", "apt-get", "dpkg-deb")
	img, err := guest.Build(t.Context(), guest.Recipe{Progress: func(s string) { t.Log(s) }})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// boot starts a guest that is closed with the test.
func boot(t *testing.T, o guest.Options) *guest.Guest {
	t.Helper()
	g, err := guest.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("console of %s:\n%s", o.Name, g.Console())
		}
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

// address gives a device in a guest its MTU and addresses and sets it up.
func address(t *testing.T, g *guest.Guest, device string, mtu int, addrs ...string) {
	t.Helper()
	script := fmt.Sprintf("echo 0 >/proc/sys/net/ipv6/conf/%s/accept_dad; ip link set %s mtu %d up", device, device, mtu)
	for _, addr := range addrs {
		script += fmt.Sprintf(" && ip addr add %s dev %s", addr, device)
	}
	if out, err := g.Shell(t.Context(), script); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// pmd starts a testpmd that is closed with the test.
func pmd(t *testing.T, o peer.TestpmdOptions) *peer.Testpmd {
	t.Helper()
	need.Program(t, "dpdk-testpmd")
	p, err := peer.StartTestpmd(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("terminal of testpmd %s:\n%s", o.Name, p.Output())
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// pings sends echo requests and reports those that were not answered, or too late: within the time for which one of the test's processes after the other had no CPU more than
// that is the machine's.
func pings(t *testing.T, ctx context.Context, from peer.Runner, to string, sizes ...int) {
	t.Helper()
	const soon, patience = 5 * time.Second, 20 * time.Second
	for _, size := range sizes {
		pids := append(leftover.PIDs(os.Getpid()), os.Getpid())
		before := waitsOf(pids)
		p, err := peer.Ping(ctx, from, to, peer.PingOptions{Size: size, Wait: patience})
		if err != nil || p.Received != p.Sent {
			t.Errorf("ping %s with %d bytes: %d of %d came back (%v)\n%s", to, size, p.Received, p.Sent, err, p.Lost)
		}
		if waited := waitsOf(pids).since(before); p.Max-waited > soon {
			t.Errorf("ping %s with %d bytes: an answer came back after %v, of which %v were waiting for a CPU", to, size, p.Max, waited)
		}
	}
}

// iperf measures a connection or a flow that must reach a rate, in bit/s. On a busy machine it has several tries: one alone may find a guest that nobody
// runs, and what cannot reach the rate never does.
func iperf(t *testing.T, ctx context.Context, server, client peer.Runner, address string, least float64, o peer.IperfOptions) peer.Iperfed {
	t.Helper()
	const tries = 5
	for n := 1; ; n++ {
		r, err := peer.Iperf(ctx, server, client, address, o)
		if err != nil || r.BitsPerSecond < least && n == tries {
			t.Errorf("%s %+v: %+v, want %.0f bit/s (%v)", address, o, r, least, err)
		}
		if err != nil || r.BitsPerSecond >= least || n == tries {
			return r
		}
		t.Logf("%s %+v: %.0f bit/s, once more", address, o, r.BitsPerSecond)
	}
}

// datagrams measures a flow of which at least so many datagrams must arrive, with as many tries as iperf has, and for the same reason.
func datagrams(t *testing.T, ctx context.Context, server, client peer.Runner, address string, least int, o peer.IperfOptions) peer.Iperfed {
	t.Helper()
	const tries = 5
	for n := 1; ; n++ {
		r, err := peer.Iperf(ctx, server, client, address, o)
		came := r.Packets - r.Lost
		if err != nil || came < least && n == tries {
			t.Errorf("%s %+v: %+v, want %d datagrams (%v)", address, o, r, least, err)
		}
		if err != nil || came >= least || n == tries {
			return r
		}
		t.Logf("%s %+v: %d datagrams of %d, once more", address, o, came, r.Packets)
	}
}

// silence sends echo requests and reports any that was answered.
func silence(t *testing.T, ctx context.Context, from peer.Runner, to string) {
	t.Helper()
	p, err := peer.Ping(ctx, from, to, peer.PingOptions{Count: 2, Wait: time.Second})
	if err != nil || p.Received != 0 {
		t.Errorf("ping %s: %d of %d came back, want none (%v)", to, p.Received, p.Sent, err)
	}
}

// reach waits until an echo request is answered, which is how long traffic
// takes to flow again after something broke it.
func reach(t *testing.T, ctx context.Context, from peer.Runner, to string) {
	t.Helper()
	begin := time.Now()
	for {
		p, err := peer.Ping(ctx, from, to, peer.PingOptions{Count: 1, Wait: time.Second})
		if err == nil && p.Received == 1 {
			t.Logf("%s answers after %v", to, time.Since(begin).Round(time.Millisecond))
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("%s does not answer: %v, %v", to, context.Cause(ctx), err)
		}
	}
}

// captured captures on a device until the test ends or stop is called.
func captured(t *testing.T, ns *netlab.Namespace, device string) (stop func() string) {
	t.Helper()
	need.Program(t, "tshark")
	c, err := peer.StartCapture(ns, device, filepath.Join(t.TempDir(), device+".pcap"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Stop() })
	return func() string {
		t.Helper()
		if err := c.Stop(); err != nil {
			t.Fatal(err)
		}
		return c.Path()
	}
}

// counters of one of a daemon's objects.
func counters(t *testing.T, d *daemon.Daemon, kind control.Kind, name string) control.Counters {
	t.Helper()
	c, err := d.Counters(t.Context(), kind, name)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// goodChecksums reports packets that a stack refused for their checksum.
func goodChecksums(t *testing.T, ctx context.Context, who string, r peer.Runner) {
	t.Helper()
	if n, err := peer.ChecksumErrors(ctx, r); err != nil || n != 0 {
		t.Errorf("%s refused %d packets for their checksum (%v)", who, n, err)
	}
}

// goodPackets reports packets of a capture that are not as their protocols
// want them.
func goodPackets(t *testing.T, ctx context.Context, path string) {
	t.Helper()
	bad, err := peer.BadPackets(ctx, path)
	if err != nil {
		t.Error(err)
	}
	if len(bad) > 0 {
		t.Errorf("%d packets are wrong on the wire, the first: %s", len(bad), bad[0])
		if keep := os.Getenv("SHUNT_KEEP"); keep != "" {
			out, err := exec.Command("cp", path, keep).CombinedOutput()
			t.Logf("kept in %s: %s %v", keep, out, err)
		}
	}
}

// asExit says whether a program ran in a guest and ended with another status
// than 0, as ping does when nothing came back.
func asExit(err error, exit **guest.ExitError) bool { return errors.As(err, exit) }
