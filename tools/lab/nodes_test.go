package lab

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/lab/daemon"
	"github.com/shuntio/shunt/tools/lab/guest"
	"github.com/shuntio/shunt/tools/lab/netlab"
	"github.com/shuntio/shunt/tools/lab/peer"
	"github.com/shuntio/shunt/tools/need"
)

// nodes are two hosts, each with shuntd, and two networks that span both:
//
//	     a                              b
//	QEMU one   eth0 ── blue ─┐
//	           eth1 ── red   │      ┌─ blue ── testpmd, answers ping
//	           eth2 ── red   ├═ up ═┤
//	QEMU two   eth0 ── blue ─┘      └─ red ─── testpmd, answers ping
//
// Both networks use the same addresses. Guest one is also the villain: eth1's
// port lets it send whatever it likes, eth2's port does not.
type nodes struct {
	a, b     *daemon.Daemon
	nsA, nsB *netlab.Namespace
	one, two *guest.Guest
}

const (
	macOne, macTwo      = "52:54:00:00:00:01", "52:54:00:00:00:02"
	macFree, macBound   = "52:54:00:00:00:11", "52:54:00:00:00:12"
	macBlueB, macRedB   = "52:54:00:00:00:21", "52:54:00:00:00:22"
	blueVNI, redVNI     = 100, 200
	addrOne, addrTwo    = "10.0.0.1", "10.0.0.2"
	addrFree            = "10.0.0.11"
	addrBound           = "10.0.1.12"
	echoAddr, echoAddr2 = "10.0.0.9", "10.0.1.9" // testpmd answers for any address
)

func newNodes(t *testing.T, ctx context.Context) *nodes {
	t.Helper()
	need.Root(t)
	need.Program(t, "dpdk-testpmd")
	n := &nodes{nsA: namespace(t, "a"), nsB: namespace(t, "b")}
	wire(t,
		netlab.End{Namespace: n.nsA, Name: "up", Addrs: []string{"192.0.2.1/24"}},
		netlab.End{Namespace: n.nsB, Name: "up", Addrs: []string{"192.0.2.2/24"}})
	dir := t.TempDir()
	config := func(vtep, remote, ports string) string {
		return fmt.Sprintf("workers: {cpus: [1]}\nuplinks: [{name: up, interface: up, address: %s}]\nnetworks:\n"+
			"  - {name: blue, vni: %d, uplink: up, flood: [%s]}\n  - {name: red, vni: %d, uplink: up, flood: [%s]}\nports:\n%s",
			vtep, blueVNI, remote, redVNI, remote, ports)
	}
	port := func(name, network, mac, more string) string {
		return fmt.Sprintf("  - {name: %s, network: %s, socket: %s/%s, mac: \"%s\"%s}\n", name, network, dir, name, mac, more)
	}
	n.a = start(t, n.nsA, "shuntd-a", config("192.0.2.1", "192.0.2.2",
		port("one", "blue", macOne, ", ips: ["+addrOne+"]")+port("two", "blue", macTwo, ", ips: ["+addrTwo+"]")+
			port("free", "red", macFree, ", anti-spoof: false")+port("bound", "red", macBound, ", ips: ["+addrBound+"]")))
	n.b = start(t, n.nsB, "shuntd-b", config("192.0.2.2", "192.0.2.1",
		port("blue-b", "blue", macBlueB, "")+port("red-b", "red", macRedB, "")))

	img := image(t)
	type result struct {
		g   *guest.Guest
		err error
	}
	second := make(chan result, 1) // boots beside the first
	go func() {
		g, err := guest.Start(ctx, guest.Options{Name: "two", Image: img, NICs: []guest.NIC{{Socket: dir + "/two", MAC: macTwo}}})
		second <- result{g, err}
	}()
	t.Cleanup(func() {
		if n.two != nil {
			_ = n.two.Close()
		}
	})
	n.one = boot(t, guest.Options{Name: "one", Image: img, NICs: []guest.NIC{
		{Socket: dir + "/one", MAC: macOne}, {Socket: dir + "/free", MAC: macFree}, {Socket: dir + "/bound", MAC: macBound},
	}})
	r := <-second
	if n.two = r.g; r.err != nil {
		t.Fatal(r.err)
	}
	quiet := "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6; echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6; "
	n.shell(t, ctx, n.one, quiet+`
		ip addr add 10.0.0.1/24 dev eth0; ip link set eth0 mtu 1450 up
		ip addr add 10.0.0.11/32 dev eth1; ip link set eth1 mtu 1450 up
		ip addr add 10.0.1.12/24 dev eth2; ip link set eth2 mtu 1450 up`)
	n.shell(t, ctx, n.two, quiet+"ip addr add 10.0.0.2/24 dev eth0; ip link set eth0 mtu 1450 up")
	// testpmd answers requests for every address, so the guests must not ask.
	// Nor is anything sent in blue then but what the test sends.
	n.shell(t, ctx, n.one, "ip neigh replace "+addrTwo+" lladdr "+macTwo+" dev eth0; ip neigh replace "+echoAddr+" lladdr "+macBlueB+" dev eth0")
	n.shell(t, ctx, n.two, "ip neigh replace "+addrOne+" lladdr "+macOne+" dev eth0; ip neigh replace "+echoAddr+" lladdr "+macBlueB+" dev eth0")
	for _, network := range []string{"blue", "red"} {
		echo := pmd(t, peer.TestpmdOptions{
			Name: network, Devices: []string{peer.VirtioUser{Path: filepath.Join(dir, network+"-b"), MAC: map[string]string{"blue": macBlueB, "red": macRedB}[network]}.String()},
			Mode: "icmpecho",
		})
		if err := echo.Start(ctx); err != nil {
			t.Fatal(err)
		}
	}
	for port, d := range map[string]*daemon.Daemon{"one": n.a, "two": n.a, "free": n.a, "bound": n.a, "blue-b": n.b, "red-b": n.b} {
		if err := d.WaitPort(ctx, port, control.StateConnected); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { n.tell(t) })
	return n
}

// tell says of a test that failed how far frames came, station by station.
func (n *nodes) tell(t *testing.T) {
	if !t.Failed() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for name, g := range map[string]*guest.Guest{"one": n.one, "two": n.two} {
		out, err := g.Shell(ctx, "uptime; dmesg | grep -i tsc; cat /proc/net/dev; ip neigh; grep virtio /proc/interrupts")
		t.Logf("guest %s (%v):\n%s", name, err, out)
	}
	for name, d := range map[string]*daemon.Daemon{"a": n.a, "b": n.b} {
		status, err := d.API().Status(ctx)
		t.Logf("shuntd-%s (%v):\n%+v", name, err, status)
		for _, port := range status.Ports {
			c, err := d.Counters(ctx, control.KindPort, port.Name)
			t.Logf("port %s: %+v %v", port.Name, c, err)
		}
		c, err := d.Counters(ctx, control.KindUplink, "up")
		t.Logf("uplink: %+v %v", c, err)
	}
}

func (n *nodes) shell(t *testing.T, ctx context.Context, g *guest.Guest, script string) string {
	t.Helper()
	out, err := g.Shell(ctx, script)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestTwoNodes(t *testing.T) {
	t.Parallel() // beside others of which most is waiting for a guest
	ctx := within(t, 5*time.Minute)
	n := newNodes(t, ctx)
	undisturbed(t, n.nsA, n.nsB, "192.0.2.2")

	t.Run("guests on two hosts", func(t *testing.T) {
		reach(t, ctx, n.one, echoAddr)
		pings(t, ctx, n.one, echoAddr, 56, 1400)
		pings(t, ctx, n.two, echoAddr, 56, 1400)
	})
	t.Run("guests on one host", func(t *testing.T) {
		pings(t, ctx, n.one, addrTwo, 56, 1400, 8000)
		pings(t, ctx, n.two, addrOne, 56, 1400, 8000)
		uplink := counters(t, n.a, control.KindUplink, "up")
		for _, o := range []peer.IperfOptions{{Time: time.Second}, {Time: time.Second, Reverse: true}, {Time: time.Second, UDP: true, Rate: 5e6, Length: 1200}} {
			r := iperf(t, ctx, n.two, n.one, addrTwo, 1e6, o)
			t.Logf("%+v: %.0f Mbit/s", o, r.BitsPerSecond/1e6)
		}
		goodChecksums(t, ctx, "guest one", n.one)
		goodChecksums(t, ctx, "guest two", n.two)
		if sent := counters(t, n.a, control.KindUplink, "up").TxPackets - uplink.TxPackets; sent > 100 {
			t.Errorf("%d packets between guests of one host left it", sent)
		}
	})
	t.Run("two networks", func(t *testing.T) { n.isolation(t, ctx) })
	t.Run("spoofed source", func(t *testing.T) {
		// eth2's port knows the guest's addresses: what is sent with others is dropped, and says so.
		n.shell(t, ctx, n.one, "ip neigh replace "+echoAddr2+" lladdr "+macRedB+" dev eth2")
		pings(t, ctx, n.one, echoAddr2, 56)
		for what, change := range map[string]string{
			"MAC address": "ip link set eth2 address " + macTwo,
			"IP address":  "ip addr add 10.0.1.77/24 dev eth2; ip route replace " + echoAddr2 + " dev eth2 src 10.0.1.77",
		} {
			before := counters(t, n.a, control.KindPort, "bound")
			n.shell(t, ctx, n.one, change+"; ip neigh replace "+echoAddr2+" lladdr "+macRedB+" dev eth2")
			silence(t, ctx, n.one, echoAddr2)
			after := counters(t, n.a, control.KindPort, "bound")
			if after.Dropped() < before.Dropped()+2 {
				t.Errorf("of frames with another's %s, %d were dropped: %v", what, after.Dropped()-before.Dropped(), after.Drops)
			}
			n.shell(t, ctx, n.one, "ip link set eth2 address "+macBound+"; ip addr del 10.0.1.77/24 dev eth2 2>/dev/null; ip route replace "+
				echoAddr2+" dev eth2 src "+addrBound+"; ip neigh replace "+echoAddr2+" lladdr "+macRedB+" dev eth2")
			pings(t, ctx, n.one, echoAddr2, 56)
		}
	})
}

// isolation lets the villain in network red send everything it can think of
// toward network blue, whose members must not get a single frame.
func (n *nodes) isolation(t *testing.T, ctx context.Context) {
	blue := func() string {
		var counts []string
		for port, d := range map[string]*daemon.Daemon{"two": n.a, "blue-b": n.b} {
			counts = append(counts, fmt.Sprintf("%s got %d", port, counters(t, d, control.KindPort, port).TxPackets))
		}
		if counts[0] > counts[1] {
			counts[0], counts[1] = counts[1], counts[0]
		}
		counts = append(counts, "two's eth0 received "+strings.TrimSpace(n.shell(t, ctx, n.two, "cat /sys/class/net/eth0/statistics/rx_packets")))
		return strings.Join(counts, ", ")
	}
	// forge sends with eth1, which the VRF-less guest binds its ping to.
	forge := func(what, script string) {
		t.Run(what, func(t *testing.T) {
			before, sent := blue(), counters(t, n.a, control.KindPort, "free").RxPackets
			out, err := n.one.Shell(ctx, script)
			var exit *guest.ExitError
			if err != nil && !asExit(err, &exit) {
				t.Fatal(err)
			}
			if forged := counters(t, n.a, control.KindPort, "free").RxPackets - sent; forged < 3 {
				t.Fatalf("only %d forged frames were sent:\n%s", forged, out)
			}
			if after := blue(); after != before {
				t.Errorf("network blue noticed: %s; before: %s", after, before)
			}
		})
	}
	const ping = "ping -c 3 -i 0.2 -W 1 -I "
	n.shell(t, ctx, n.one, "ip route add 198.51.100.0/24 dev eth1 src "+addrFree)

	// The way works at all: the neighbour in red answers.
	n.shell(t, ctx, n.one, "ip neigh replace 198.51.100.1 lladdr "+macRedB+" dev eth1; "+ping+"eth1 198.51.100.1")
	for name, mac := range map[string]string{"two": macTwo, "blue's on b": macBlueB, "nobody": "52:54:00:00:00:99", "everybody": "ff:ff:ff:ff:ff:ff"} {
		forge("to the MAC of "+name, "ip neigh replace 198.51.100.2 lladdr "+mac+" dev eth1; "+ping+"eth1 198.51.100.2")
	}
	for vid := range map[int]bool{1: true, blueVNI: true, 4094: true} {
		forge(fmt.Sprintf("in VLAN %d", vid), fmt.Sprintf(`
			ip link add link eth1 name tagged type vlan id %d && ip link set tagged up && ip addr add 198.51.100.65/26 dev tagged
			ip neigh replace 198.51.100.66 lladdr %s dev tagged
			%s tagged 198.51.100.66; ip link del tagged`, vid, macTwo, ping))
	}
	for name, vtep := range map[string]string{"a": "192.0.2.1", "b": "192.0.2.2"} {
		for _, mac := range []string{macTwo, macRedB} {
			forge("VXLAN to the endpoint on "+name+" by way of "+mac, fmt.Sprintf(`
				ip route replace %s dev eth1 src %s; ip neigh replace %s lladdr %s dev eth1
				ip link add forged type vxlan id %d dstport 4789 remote %s dev eth1 noudpcsum && ip link set forged up
				ip addr add 198.51.100.129/26 dev forged; ip neigh replace 198.51.100.130 lladdr %s dev forged
				%s forged 198.51.100.130; ip link del forged; ip route del %s`, vtep, addrFree, vtep, mac, blueVNI, vtep, macTwo, ping, vtep))
		}
	}
	forge("with two's MAC as its own", "ip link set eth1 down; ip link set eth1 address "+macTwo+"; ip link set eth1 up; ip route replace 198.51.100.0/24 dev eth1 src "+addrFree+
		"; ip neigh replace 198.51.100.1 lladdr "+macRedB+" dev eth1; "+ping+"eth1 198.51.100.1")
	// Who heard of two's MAC in red still finds two in blue.
	pings(t, ctx, n.one, addrTwo, 56)
	pings(t, ctx, n.two, echoAddr, 56)
	n.shell(t, ctx, n.one, "ip link set eth1 down; ip link set eth1 address "+macFree+"; ip link set eth1 up")
}
