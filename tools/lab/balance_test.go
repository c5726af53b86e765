package lab

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/lab/daemon"
	"github.com/shuntio/shunt/tools/lab/netlab"
	"github.com/shuntio/shunt/tools/lab/peer"
)

// bench is where packets are counted: no address of it sends anything by itself.
//
//	testpmd a ─ vhost-user ─┐            host          far
//	                        shuntd ─ up0 ═══════ up0 ─ vx0 ─ testpmd wire
//	testpmd b ─ vhost-user ─┘       192.0.2.1   192.0.2.2
type scales struct {
	host, far *netlab.Namespace
	d         *daemon.Daemon
	dir       string
}

const (
	scalesA, scalesB     = "52:54:00:00:01:0a", "52:54:00:00:01:0b"
	scalesFar            = "52:54:00:00:01:0f"
	scalesHost, scalesB2 = "02:00:00:00:01:01", "02:00:00:00:01:02"
)

// newScales makes the bench, with the kernel's VXLAN device behind the wire or nothing.
func newScales(t *testing.T, ctx context.Context, device bool) *scales {
	t.Helper()
	s := &scales{host: namespace(t, "host"), far: namespace(t, "far"), dir: t.TempDir()}
	for _, ns := range []*netlab.Namespace{s.host, s.far} {
		withoutIPv6(t, ns)
	}
	wire(t,
		netlab.End{Namespace: s.host, Name: "up0", MAC: scalesHost, Addrs: []string{"192.0.2.1/24"}},
		netlab.End{Namespace: s.far, Name: "up0", MAC: scalesB2, Addrs: []string{"192.0.2.2/24"}})
	known(t, s.host, "up0", "192.0.2.2", scalesB2)
	known(t, s.far, "up0", "192.0.2.1", scalesHost)
	if device {
		err := peer.KernelVXLAN(ctx, s.far, peer.VXLAN{
			Name: "vx0", VNI: 100, Device: "up0", Local: "192.0.2.2", Remote: "192.0.2.1", MAC: scalesFar, MTU: 1450, Options: []string{"nolearning"},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	s.d = start(t, s.host, "shuntd", fmt.Sprintf(`
workers: {cpus: [1]}
uplinks: [{name: up0, interface: up0, address: 192.0.2.1}]
networks:
  - {name: blue, vni: 100, uplink: up0, learning: false, entries: [{mac: %q, vtep: 192.0.2.2}]}
ports:
  - {name: a, network: blue, socket: %q, mac: %q}
  - {name: b, network: blue, socket: %q, mac: %q}
`, scalesFar, s.socket("a"), scalesA, s.socket("b"), scalesB))
	return s
}

func (s *scales) socket(port string) string { return filepath.Join(s.dir, port+".sock") }

// withoutIPv6 keeps a namespace from sending what nobody asked for: router solicitations, multicast reports.
func withoutIPv6(t *testing.T, ns *netlab.Namespace) {
	t.Helper()
	err := ns.Do(func() error {
		for _, conf := range []string{"all", "default"} {
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+conf+"/disable_ipv6", []byte("1"), 0); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// known writes a neighbour down, so that nobody has to ask.
func known(t *testing.T, ns *netlab.Namespace, device, address, mac string) {
	t.Helper()
	run(t, ns, "ip", "neigh", "replace", address, "lladdr", mac, "dev", device, "nud", "permanent")
}

// sheet holds every counter there is, by name.
type sheet map[string]uint64

func (s *scales) read(t *testing.T, ctx context.Context) sheet {
	t.Helper()
	c := sheet{}
	stats, err := s.d.API().Stats(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range stats.Objects {
		at := string(o.Kind) + " " + o.Name + " "
		c[at+"rx"], c[at+"tx"] = o.RxPackets, o.TxPackets
		for reason, n := range o.Drops {
			if stats.Reasons[reason] == "" {
				t.Errorf("%s: the reason %s has no meaning", at, reason)
			}
			c[at+"drop "+reason] = n
		}
		for event, n := range o.More {
			c[at+event] = n
		}
	}
	for _, dev := range []struct {
		ns   *netlab.Namespace
		name string
	}{{s.host, "up0"}, {s.far, "up0"}, {s.far, "vx0"}} {
		n, err := peer.NetdevStats(dev.ns, dev.name)
		if err != nil {
			continue // there is no vx0
		}
		at := "host "
		if dev.ns == s.far {
			at = "far "
		}
		at += dev.name + " "
		c[at+"rx"], c[at+"tx"] = n.RxPackets, n.TxPackets
		c[at+"rx_dropped"], c[at+"tx_dropped"], c[at+"rx_errors"], c[at+"tx_errors"] = n.RxDropped, n.TxDropped, n.RxErrors, n.TxErrors
	}
	for at, ns := range map[string]*netlab.Namespace{"host ": s.host, "far ": s.far} {
		counters, err := peer.Counters(ctx, ns)
		if err != nil {
			t.Fatal(err)
		}
		for name, n := range counters {
			c[at+name] = n
		}
	}
	return c
}

// since is what was counted between two readings.
func (c sheet) since(before sheet) sheet {
	d := sheet{}
	for name, n := range c {
		if n != before[name] {
			d[name] = n - before[name]
		}
	}
	return d
}

func (c sheet) String() string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(c)) {
		fmt.Fprintf(&b, "  %-44s %d\n", name, c[name])
	}
	return b.String()
}

func TestBalanceX(t *testing.T) {
	ctx := within(t, 3*time.Minute)
	s := newScales(t, ctx, true)
	begin := time.Now()
	lap := func(what string) {
		t.Logf("%v %s", time.Since(begin).Round(time.Millisecond), what)
		begin = time.Now()
	}
	a := pmd(t, peer.TestpmdOptions{Name: "a", Devices: []string{peer.VirtioUser{Path: s.socket("a"), MAC: scalesA}.String()}, Mode: "txonly", CPU: 0,
		Args: []string{"--txpkts=64", "--eth-peer=0," + scalesFar}})
	lap("a started")
	before := s.read(t, ctx)
	lap("read")
	if err := a.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := a.WaitStats(ctx, 0, func(p peer.PortStats) bool { return p.Sent >= 1e6 }); err != nil {
		t.Fatal(err)
	}
	lap("sent")
	sent, err := a.Stop(ctx)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond)
	t.Logf("sent %+v\n%v", sent[0], s.read(t, ctx).since(before))
	lap("x")
	w := pmd(t, peer.TestpmdOptions{Name: "wire", Namespace: s.far, Devices: []string{"net_af_packet0,iface=vx0"}, Mode: "txonly", CPU: 0,
		Args: []string{"--txpkts=64", "--eth-peer=0," + scalesA}})
	lap("wire started")
	if _, err := a.Command(ctx, "set fwd rxonly"); err != nil {
		t.Fatal(err)
	}
	if err := a.Start(ctx); err != nil {
		t.Fatal(err)
	}
	before = s.read(t, ctx)
	if err := w.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := w.WaitStats(ctx, 0, func(p peer.PortStats) bool { return p.Sent >= 1e6 }); err != nil {
		t.Fatal(err)
	}
	lap("sent")
	sent, err = w.Stop(ctx)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond)
	got, err := a.Stop(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("sent %+v\ngot %+v\n%v", sent[0], got[0], s.read(t, ctx).since(before))
	_ = control.KindPort
}
