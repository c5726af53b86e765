package lab

import (
	"context"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/lab/daemon"
	"github.com/shuntio/shunt/tools/lab/netlab"
	"github.com/shuntio/shunt/tools/lab/peer"
	"github.com/shuntio/shunt/tools/need"
)

// ledger is what everybody on the way of a packet has counted:
//
//	testpmd ─ port ─ shuntd ─ uplink ─ host's netdev ═══ far netdev ─ VXLAN device
type ledger struct {
	port, uplink control.Counters
	host, far    netdev
	vxlan        netdev
}

type netdev struct{ rx, rxDropped, rxErrors, tx, txDropped, txErrors uint64 }

func (n netdev) less(m netdev) netdev {
	return netdev{n.rx - m.rx, n.rxDropped - m.rxDropped, n.rxErrors - m.rxErrors, n.tx - m.tx, n.txDropped - m.txDropped, n.txErrors - m.txErrors}
}

// balance is a laboratory whose underlay is silent but for the packets of the
// test: neighbours are written down and IPv6 is off, so counts are exact.
type balance struct {
	d         *daemon.Daemon
	host, far *netlab.Namespace
}

func (b *balance) read(t *testing.T) ledger {
	t.Helper()
	device := func(ns *netlab.Namespace, name string) netdev {
		s, err := peer.NetdevStats(ns, name)
		if err != nil {
			t.Fatal(err)
		}
		return netdev{s.RxPackets, s.RxDropped, s.RxErrors, s.TxPackets, s.TxDropped, s.TxErrors}
	}
	return ledger{
		counters(t, b.d, control.KindPort, "guest"), counters(t, b.d, control.KindUplink, "up"),
		device(b.host, "up"), device(b.far, "up"), device(b.far, "vx"),
	}
}

// settled reads the ledger until every packet has come to its end, and gives up
// when that takes so long that one must be lost; the test then says where.
func (b *balance) settled(t *testing.T, ended func(ledger) bool) ledger {
	t.Helper()
	const enough = 15 * time.Second
	for begin := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if l := b.read(t); ended(l) || time.Since(begin) > enough {
			return l
		}
	}
}

const (
	balanceGuest = "52:54:00:00:00:01"
	balancePeer  = "52:54:00:00:00:02"
)

func newBalance(t *testing.T, ctx context.Context, socket string) *balance {
	t.Helper()
	b := &balance{host: namespace(t, "host"), far: namespace(t, "far")}
	const hostMAC, farMAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
	for _, ns := range []*netlab.Namespace{b.host, b.far} {
		run(t, ns, "sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1", "net.ipv6.conf.all.disable_ipv6=1")
	}
	wire(t,
		netlab.End{Namespace: b.host, Name: "up", MAC: hostMAC, Addrs: []string{"192.0.2.1/24"}},
		netlab.End{Namespace: b.far, Name: "up", MAC: farMAC, Addrs: []string{"192.0.2.2/24"}})
	run(t, b.host, "ip", "neigh", "replace", "192.0.2.2", "lladdr", farMAC, "dev", "up", "nud", "permanent")
	run(t, b.far, "ip", "neigh", "replace", "192.0.2.1", "lladdr", hostMAC, "dev", "up", "nud", "permanent")
	err := peer.KernelVXLAN(ctx, b.far, peer.VXLAN{
		Name: "vx", VNI: 7, Device: "up", Local: "192.0.2.2", Remote: "192.0.2.1", MAC: balancePeer, Options: []string{"nolearning"},
	})
	if err != nil {
		t.Fatal(err)
	}
	b.d = start(t, b.host, "shuntd", `
workers: {cpus: [0]}
uplinks: [{name: up, interface: up, address: 192.0.2.1}]
networks:
  - {name: net, vni: 7, uplink: up, entries: [{mac: "`+balancePeer+`", vtep: 192.0.2.2}]}
ports: [{name: guest, network: net, socket: `+socket+`, mac: "`+balanceGuest+`"}]
`)
	return b
}

// A million packets each way, through every kind of ring: each one arrives, or
// somebody on the way says that it dropped it, and why.
func TestEveryPacketIsAccountedFor(t *testing.T) {
	need.Root(t)
	for name, front := range map[string]peer.VirtioUser{
		"mergeable":     {},
		"not mergeable": {NotMergeable: true},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := within(t, 3*time.Minute)
			packets := 1_000_000
			if testing.Short() {
				packets = 50_000
			}
			front.Path = filepath.Join(t.TempDir(), "guest.sock")
			front.MAC = balanceGuest
			b := newBalance(t, ctx, front.Path)
			guest := pmd(t, peer.TestpmdOptions{
				Name: "guest", Devices: []string{front.String()}, Mode: "txonly", CPU: 1,
				Args: []string{"--txpkts=64", "--eth-peer=0," + balancePeer},
			})
			if err := b.d.WaitPort(ctx, "guest", control.StateConnected); err != nil {
				t.Fatal(err)
			}
			t.Run("guest to wire", func(t *testing.T) { b.guestToWire(t, ctx, guest, packets) })
			t.Run("wire to guest", func(t *testing.T) { b.wireToGuest(t, ctx, guest, packets) })
		})
	}
}

func (b *balance) guestToWire(t *testing.T, ctx context.Context, guest *peer.Testpmd, packets int) {
	before := b.read(t)
	if err := guest.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := guest.WaitStats(ctx, 0, func(s peer.PortStats) bool { return s.Sent >= uint64(packets) }); err != nil {
		t.Fatal(err)
	}
	stats, err := guest.Stop(ctx)
	if err != nil {
		t.Fatal(err)
	}
	sent := stats[0].Sent
	after := b.settled(t, func(l ledger) bool {
		taken := l.port.RxPackets - before.port.RxPackets
		left := l.uplink.TxPackets - before.uplink.TxPackets
		return taken == sent && left+l.port.Dropped()+l.uplink.Dropped() >= taken+before.port.Dropped()+before.uplink.Dropped() &&
			l.vxlan.rx-before.vxlan.rx >= left
	})
	received := after.port.RxPackets - before.port.RxPackets
	transmitted := after.uplink.TxPackets - before.uplink.TxPackets
	dropped := after.port.Dropped() - before.port.Dropped() + after.uplink.Dropped() - before.uplink.Dropped()
	refused := after.uplink.Drops["uplink-busy"] - before.uplink.Drops["uplink-busy"] // among the transmitted
	host, far, vxlan := after.host.less(before.host), after.far.less(before.far), after.vxlan.less(before.vxlan)
	t.Logf("sent %d; port received %d; uplink transmitted %d; dropped %d: %v %v", sent, received, transmitted, dropped, after.port.Drops, after.uplink.Drops)
	t.Logf("netdevs: host %+v, far %+v, VXLAN %+v", host, far, vxlan)

	equal(t, "packets the guest sent, and the port received", sent, received)
	equal(t, "packets the port received, and those transmitted or dropped", received, transmitted+dropped-refused)
	equal(t, "packets the uplink transmitted, and those the host's device sent or refused", transmitted, host.tx+refused)
	equal(t, "packets the host's device sent, and those that came to the far one", host.tx, far.rx)
	equal(t, "packets that came to the far device, and to its VXLAN device", far.rx, vxlan.rx+vxlan.rxDropped+vxlan.rxErrors+far.rxDropped)
	if transmitted < sent/2 {
		t.Errorf("of %d packets only %d left", sent, transmitted)
	}
}

func (b *balance) wireToGuest(t *testing.T, ctx context.Context, guest *peer.Testpmd, packets int) {
	if _, err := guest.Command(ctx, "set fwd rxonly"); err != nil {
		t.Fatal(err)
	}
	before := b.read(t)
	if err := guest.Start(ctx); err != nil {
		t.Fatal(err)
	}
	done := func(l ledger) uint64 {
		return l.port.TxPackets - before.port.TxPackets + l.port.Dropped() - before.port.Dropped() + l.uplink.Dropped() - before.uplink.Dropped()
	}
	// Most frames are sent as the engine takes them, with no more under way than
	// its rings hold; the rest as fast as the kernel can, so that some are lost.
	pace := func(n int) {
		const window = 512
		for n%window == 0 && n < packets/10*9 && done(b.read(t)) < uint64(n) && ctx.Err() == nil {
			runtime.Gosched()
		}
	}
	sent, err := sendFrames(ctx, b.far, "vx", packets, flows(testFrame(balancePeer, balanceGuest, 64)), pace)
	if err != nil {
		t.Fatal(err)
	}
	after := b.settled(t, func(l ledger) bool {
		came := l.uplink.RxPackets - before.uplink.RxPackets
		return came == l.host.rx-before.host.rx && l.vxlan.tx-before.vxlan.tx >= uint64(sent) && done(l) >= came
	})
	transmitted := after.port.TxPackets - before.port.TxPackets
	// What lies in the guest's ring waits for testpmd's thread.
	if _, err := guest.WaitStats(ctx, 0, func(s peer.PortStats) bool { return s.Received >= transmitted }); err != nil {
		t.Error(err)
	}
	stats, err := guest.Stop(ctx)
	if err != nil {
		t.Fatal(err)
	}
	received := after.uplink.RxPackets - before.uplink.RxPackets
	dropped := after.port.Dropped() - before.port.Dropped() + after.uplink.Dropped() - before.uplink.Dropped()
	// What the kernel dropped for want of a frame or of room in a ring, the
	// uplink counts as received and dropped.
	kernel := func(c control.Counters) uint64 { return c.Drops["uplink-no-frame"] + c.Drops["uplink-receive-full"] }
	host, far, vxlan := after.host.less(before.host), after.far.less(before.far), after.vxlan.less(before.vxlan)
	t.Logf("sent %d; uplink received %d; port transmitted %d; testpmd received %d; dropped %d: %v %v",
		sent, received, transmitted, stats[0].Received, dropped, after.port.Drops, after.uplink.Drops)
	t.Logf("netdevs: host %+v, far %+v, VXLAN %+v", host, far, vxlan)

	equal(t, "frames sent, and those the VXLAN device sent or dropped", uint64(sent), vxlan.tx+vxlan.txDropped+vxlan.txErrors)
	equal(t, "packets the VXLAN device sent, and those its underlay sent or dropped", vxlan.tx, far.tx+far.txDropped)
	equal(t, "packets the far device sent, and those that came to the host's", far.tx, host.rx)
	equal(t, "packets that came to the host's device, and those the uplink received", host.rx, received)
	equal(t, "packets the host's device dropped, and those the uplink says so of", host.rxDropped, kernel(after.uplink)-kernel(before.uplink))
	equal(t, "packets the uplink received, and those transmitted to the guest or dropped", received, transmitted+dropped)
	equal(t, "packets transmitted to the guest, and those it received", transmitted, stats[0].Received)
	if transmitted < uint64(sent)/10 { // the rest is a matter of who gets the CPU
		t.Errorf("of %d packets only %d arrived", sent, transmitted)
	}
}

func equal(t *testing.T, what string, a, b uint64) {
	t.Helper()
	if a != b {
		t.Errorf("%s: %d and %d, %+d", what, a, b, int64(a-b))
	}
}
