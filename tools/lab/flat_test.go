package lab

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shuntio/shunt/bpf"
	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/api"
	"github.com/shuntio/shunt/tools/control/config"
	"github.com/shuntio/shunt/tools/lab/daemon"
	"github.com/shuntio/shunt/tools/lab/netlab"
	"github.com/shuntio/shunt/tools/lab/peer"
	"github.com/shuntio/shunt/tools/need"
)

// flat is a flat network and a VXLAN network on one uplink. The flat one's guest
// is a kernel's stack behind DPDK's virtio-user:
//
//	guest         vm                           host           far
//	eth0 ═══════ tap ─ testpmd ─ vhost-user ─ shuntd ─ up0 ═══ up0          192.0.2.0/24, 2001:db8::/64
//	.10                echo ──── vhost-user ──┘  │     .1      .2   └ vx0   10.0.0.0/24
//	                                           the host's own kernel
type flat struct {
	host, far, guest, vm *netlab.Namespace
	d                    *daemon.Daemon
	dir                  string
}

func newFlat(t *testing.T, ctx context.Context, queues int) *flat {
	t.Helper()
	need.Program(t, "dpdk-testpmd")
	f := &flat{host: namespace(t, "host"), far: namespace(t, "far"), guest: namespace(t, "guest"), vm: namespace(t, "vm"), dir: t.TempDir()}
	withoutIPv6(t, f.vm) // its end of the cable is no host
	host := netlab.End{Namespace: f.host, Name: "up0", MAC: macUplink, Addrs: []string{"192.0.2.1/24", "2001:db8::1/64"}}
	far := netlab.End{Namespace: f.far, Name: "up0", MAC: macRemote, Addrs: []string{"192.0.2.2/24", "2001:db8::2/64"}}
	if err := netlab.Veth(host, far, queues); err != nil {
		t.Fatal(err)
	}
	for _, ns := range []*netlab.Namespace{f.host, f.far} {
		run(t, ns, "ethtool", "-K", "up0", "tx", "off", "tso", "off", "gso", "off")
	}
	wire(t,
		netlab.End{Namespace: f.guest, Name: "eth0", MAC: macA, Addrs: []string{"192.0.2.10/24", "2001:db8::10/64"}},
		netlab.End{Namespace: f.vm, Name: "tap"})
	err := peer.KernelVXLAN(ctx, f.far, peer.VXLAN{
		Name: "vx0", VNI: 100, Device: "up0", Local: "192.0.2.2", Remote: "192.0.2.1", MAC: macFar, MTU: 1450, Addrs: []string{"10.0.0.2/24"},
	})
	if err != nil {
		t.Fatal(err)
	}
	f.d = start(t, f.host, "shuntd", fmt.Sprintf(`
workers: {cpus: [1]}
uplinks: [{name: up0, interface: up0, address: 192.0.2.1}]
networks:
  - {name: flat, uplink: up0}
  - {name: blue, vni: 100, uplink: up0, flood: [192.0.2.2]}
ports:
  - {name: a, network: flat, socket: %q, mac: %q}
  - {name: echo, network: blue, socket: %q, mac: %q}
`, f.socket("a"), macA, f.socket("echo"), macB))
	return f
}

func (f *flat) socket(port string) string { return filepath.Join(f.dir, port+".sock") }

// plug puts the guest's kernel behind port a.
func (f *flat) plug(t *testing.T, ctx context.Context) {
	t.Helper()
	p := pmd(t, peer.TestpmdOptions{
		Name: "vm", Namespace: f.vm, MemoryMiB: 64, Args: []string{"--total-num-mbufs=8192"},
		Devices: []string{peer.VirtioUser{Path: f.socket("a"), MAC: macA}.String(), "net_af_xdp0,iface=tap,busy_budget=0"},
	})

	if err := p.Start(ctx); err != nil {
		t.Fatal(err)
	}
}

// A guest in a flat network is a machine on the uplink's own segment like any
// other, and the host's kernel stays one, too.
func TestFlat(t *testing.T) {
	ctx := within(t, 2*time.Minute)
	f := newFlat(t, ctx, 1)
	undisturbed(t, f.far, f.host, "192.0.2.1")
	f.plug(t, ctx)
	reach(t, ctx, f.far, "192.0.2.10")
	iperf(t, ctx, f.far, f.guest, "192.0.2.2", 1e6, peer.IperfOptions{Time: time.Second})
	onWire := captured(t, f.far, "up0")
	atGuest := captured(t, f.guest, "eth0")

	// Each pair of kernels finds the other by ARP and neighbour discovery: broadcasts and multicasts, which the host must see as well.
	for _, way := range []struct {
		from *netlab.Namespace
		to   []string
	}{
		{f.far, []string{"192.0.2.10", "2001:db8::10"}},
		{f.guest, []string{"192.0.2.2", "2001:db8::2"}},
		{f.far, []string{"192.0.2.1", "2001:db8::1"}},
		{f.host, []string{"192.0.2.2", "2001:db8::2"}},
	} {
		run(t, way.from, "ip", "neigh", "flush", "all")
		for _, to := range way.to {
			pings(t, ctx, way.from, to, 56, 1400, 8000)
		}
	}
	for who, ns := range map[string]*netlab.Namespace{"guest": f.guest, "far": f.far, "host": f.host} {
		goodChecksums(t, ctx, who, ns)
	}

	t.Run("beside VXLAN", func(t *testing.T) {
		p := pmd(t, peer.TestpmdOptions{
			Name: "echo", MemoryMiB: 64, Args: []string{"--total-num-mbufs=8192"}, Mode: "icmpecho",
			Devices: []string{peer.VirtioUser{Path: f.socket("echo"), MAC: macB}.String()},
		})
		if err := p.Start(ctx); err != nil {
			t.Fatal(err)
		}
		pings(t, ctx, f.far, "10.0.0.1", 56, 1400)
		pings(t, ctx, f.far, "192.0.2.10", 56, 1400)
		run(t, f.guest, "ip", "route", "add", "10.0.0.0/24", "dev", "eth0")
		silence(t, ctx, f.guest, "10.0.0.1")
	})
	t.Run("not for the guest", func(t *testing.T) { f.foreign(t, ctx, atGuest) })
	t.Run("on the wire", func(t *testing.T) {
		path := onWire()
		goodPackets(t, ctx, path)
		for filter, want := range map[string]bool{
			"eth.src == " + macA + " && !vlan && !vxlan && icmp":   true,
			"eth.src == " + macA + " && !vlan && !vxlan && icmpv6": true,
			"eth.src == " + macA + " && (vlan || vxlan)":           false,
			"vxlan && eth.src == " + macUplink:                     true,
		} {
			rows, err := peer.Decode(ctx, path, filter, "frame.number")
			if err != nil {
				t.Error(err)
			} else if len(rows) > 0 != want {
				t.Errorf("%d frames on the wire are %s", len(rows), filter)
			}
		}
	})
	t.Run("in the filter", func(t *testing.T) { // a NIC would not let a guest's frames in otherwise
		if out := run(t, f.host, "bridge", "fdb", "show", "dev", "up0"); !strings.Contains(out, macA) || strings.Contains(out, macB) {
			t.Errorf("the uplink listens to %s", out)
		}
	})
	t.Run("a station on the wire", func(t *testing.T) {
		n, err := f.d.API().Network(ctx, "flat")
		if err != nil {
			t.Fatal(err)
		}
		n.Config.Entries = []config.Entry{{MAC: config.MAC{0x02, 0, 0, 0, 1, 2}}} // macRemote
		if _, err := f.d.API().PutNetwork(ctx, n.Config); err != nil {
			t.Fatal(err)
		}
		pings(t, ctx, f.guest, "192.0.2.2", 56)
		fdb, err := f.d.API().FDB(ctx, "flat")
		if err != nil || !slices.ContainsFunc(fdb, func(e control.FDBEntry) bool { return e.MAC.String() == macRemote && e.Origin == control.FDBStatic }) {
			t.Errorf("the entry is not in the table: %v (%v)", fdb, err)
		}
	})
	t.Run("a port without mac", func(t *testing.T) {
		_, err := f.d.API().PutPort(ctx, config.Port{Name: "nobody", Network: "flat", Socket: f.socket("nobody")})
		var refused *api.Error
		if !errors.As(err, &refused) || refused.Code != api.CodeInvalid || !strings.Contains(err.Error(), "needs its mac") {
			t.Errorf("it is accepted, or refused without a reason: %v", err)
		}
	})
	if drops, err := f.d.API().Drops(ctx); err != nil {
		t.Error(err)
	} else {
		t.Logf("dropped: %v", drops)
	}
}

// foreign sends frames that are not for the guest, and then some that are.
func (f *flat) foreign(t *testing.T, ctx context.Context, captured func() string) {
	send := func(mac string, n int) {
		if err := spray(f.far, "up0", macRemote, mac, n, func(int) error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	const stranger = "52:54:00:00:77:77"
	was := counters(t, f.d, control.KindUplink, "up0")
	send(stranger, 200)
	send(macB, 200) // of another network
	send(macA, 100)
	for {
		now := counters(t, f.d, control.KindUplink, "up0")
		if now.More["xdp-redirect-flat"] >= was.More["xdp-redirect-flat"]+100 {
			break
		}
		if ctx.Err() != nil {
			t.Fatal(context.Cause(ctx))
		}
		time.Sleep(10 * time.Millisecond)
	}
	pings(t, ctx, f.far, "192.0.2.10", 56) // behind all of them
	path := captured()
	for mac, want := range map[string]int{stranger: 0, macB: 0, macA: 100} {
		rows, err := peer.Decode(ctx, path, "udp.dstport == 9 && eth.dst == "+mac, "frame.number")
		if err != nil || len(rows) != want {
			t.Errorf("%d frames to %s came to the guest, want %d (%v)", len(rows), mac, want, err)
		}
	}
}

// Frames that arrive on every queue of an uplink are received, those of a flat
// network and tunnelled ones; and however many queues there are, frames are left
// for what guests send.
func TestFlatQueues(t *testing.T) {
	for _, queues := range []int{4, 32} {
		t.Run(strconv.Itoa(queues), func(t *testing.T) { flatQueues(t, within(t, time.Minute), queues) })
	}
}

func flatQueues(t *testing.T, ctx context.Context, queues int) {
	const each = 832
	f := newFlat(t, ctx, queues)
	status, err := f.d.API().Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if n := status.Uplinks[0].Queues; n != queues {
		t.Fatalf("shuntd serves %d queues of %d", n, queues)
	}
	for _, way := range []struct{ port, mac, device, from string }{{"a", macA, "up0", macRemote}, {"echo", macB, "vx0", macFar}} {
		p := pmd(t, peer.TestpmdOptions{
			Name: way.port, MemoryMiB: 64, Args: []string{"--total-num-mbufs=8192"}, Mode: "rxonly",
			Devices: []string{peer.VirtioUser{Path: f.socket(way.port), MAC: way.mac}.String()},
		})
		if err := p.Start(ctx); err != nil {
			t.Fatal(err)
		}
		before := byQueue(t, f.host, "up0", queues)
		was, err := p.Stats(ctx, 0)
		if err != nil {
			t.Fatal(err)
		}
		// The guest's ring has room for 64 at a time, as soon as it has taken those before.
		arrived := func(n int) error {
			if n%64 != 0 {
				return nil
			}
			_, err := p.WaitStats(ctx, 0, func(s peer.PortStats) bool { return s.Received >= was.Received+uint64(n) })
			return err
		}
		if err := errors.Join(spray(f.far, way.device, way.from, way.mac, each, arrived), arrived(each)); err != nil {
			t.Fatalf("%s: %v\n%+v\n%+v", way.port, err, counters(t, f.d, control.KindPort, way.port), counters(t, f.d, control.KindUplink, "up0"))
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if xdpMode() == bpf.Generic {
			continue // the device does not count what its program did not see
		}
		for q, n := range byQueue(t, f.host, "up0", queues) {
			if n -= before[q]; n < each/queues/4 {
				t.Errorf("%s: %d of %d packets came on queue %d", way.port, n, each, q)
			}
		}
	}
	f.plug(t, ctx)
	pings(t, ctx, f.guest, "192.0.2.2", 56, 1400)
	if c := counters(t, f.d, control.KindUplink, "up0"); c.Dropped() > 0 {
		t.Errorf("the uplink dropped %v", c.Drops)
	}
}

// byQueue counts the packets that a veth device's XDP program redirected, by queue.
func byQueue(t *testing.T, ns *netlab.Namespace, device string, queues int) []int {
	t.Helper()
	counts := make([]int, queues)
	for line := range strings.Lines(run(t, ns, "ethtool", "-S", device)) {
		var queue, n int
		if _, err := fmt.Sscanf(strings.TrimSpace(line), "rx_queue_%d_xdp_redirect: %d", &queue, &n); err == nil && queue < queues {
			counts[queue] = n
		}
	}
	return counts
}
