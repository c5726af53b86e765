package lab

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shuntio/shunt/bpf"
	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/config"
	"github.com/shuntio/shunt/tools/lab/peer"
	"github.com/shuntio/shunt/tools/need"
)

// A container behind a veth pair, with the offloads that the kernel gives it, talks to a QEMU guest and to the kernel's VXLAN device, is held by
// its rules, limits and addresses, and goes on when its interface is made anew.
func TestContainer(t *testing.T) {
	t.Parallel() // beside others of which most is waiting for a guest
	ctx := within(t, 4*time.Minute)
	need.Program(t, "iperf3", "ping")
	e := newEstate(t, ctx, false, true)
	if s := e.port(t, "pod"); s.State != control.StateConnected || s.Interface != "pod0" || s.Ring != "af_xdp" {
		t.Fatalf("the pod's port: %+v", s)
	}
	t.Run("ping", func(t *testing.T) {
		for _, to := range []string{over4.guest4, over4.guest6, over4.peer4, over4.peer6} {
			pings(t, ctx, e.pod, to, 56, 1400, 8000)
		}
		for _, from := range []peer.Runner{e.a, e.far} {
			pings(t, ctx, from, tenantPod.ip4, 56, 8000)
			pings(t, ctx, from, tenantPod.ip6, 56, 8000)
		}
	})
	t.Run("TCP and UDP", func(t *testing.T) { e.podTraffic(t, ctx) })
	for who, r := range map[string]peer.Runner{"the pod": e.pod, "guest a": e.a, "the peer": e.far} {
		sound(t, ctx, who, r)
	}
	t.Run("addresses", func(t *testing.T) {
		run(t, e.pod, "ip", "addr", "add", "10.4.0.99/24", "dev", "eth0")
		since := e.since(t)
		if p, err := peer.Ping(ctx, podFrom{e.pod, "10.4.0.99"}, over4.guest4, peer.PingOptions{Count: 1, Wait: time.Second}); err != nil || p.Received > 0 {
			t.Errorf("%d answers to an address that is not the pod's (%v)", p.Received, err)
		}
		if n := since()["port pod spoofed-ip"]; n == 0 {
			t.Error("no packet was dropped as spoofed-ip")
		}
		run(t, e.pod, "ip", "addr", "del", "10.4.0.99/24", "dev", "eth0")
	})
	t.Run("rules", func(t *testing.T) { e.podRules(t, ctx) })
	t.Run("limits", func(t *testing.T) { e.podLimits(t, ctx) })
	t.Run("another interface", func(t *testing.T) { e.anotherPod(t, ctx) })
	t.Logf("dropped: %s", strings.Join(e.drops(t), "; "))
}

// podFrom pings from one of several addresses.
type podFrom struct {
	peer.Runner
	address string
}

func (p podFrom) Run(ctx context.Context, name string, args ...string) (string, error) {
	return p.Runner.Run(ctx, name, append([]string{"-I", p.address}, args...)...)
}

// podTraffic sends all kinds between the pod and its two peers. What the pod leaves to its device, checksums and long packets, is complete and cut when it gets
// to the peers; none of it is dropped.
func (e *estate) podTraffic(t *testing.T, ctx context.Context) {
	if xdpMode() == bpf.Generic { // such a program sees long packets before anybody cuts them, and drops them
		run(t, e.pod, "ethtool", "-K", "eth0", "tx", "off", "tso", "off", "gso", "off")
	}
	stop := captured(t, e.far, "up4")
	servers := map[string]peer.Runner{over4.guest4: e.a, over4.peer4: e.far}
	if need.Soak() {
		servers[over4.guest6], servers[over4.peer6] = e.a, e.far
	}
	for name, server := range servers {
		for _, reverse := range []bool{false, true} {
			r, n := e.tcp(t, ctx, server, e.pod, name, peer.IperfOptions{Rate: 30e6, Reverse: reverse})
			t.Logf("TCP with %s, reverse %v: %.0f Mbit/s, %d packets of %d bytes from the pod, %d of %d bytes to it", name, reverse,
				r.BitsPerSecond/1e6, n["port pod rx"], mean(n, "pod", "rx"), n["port pod tx"], mean(n, "pod", "tx"))
		}
	}
	for name, server := range map[string]peer.Runner{over4.guest6: e.a, over4.peer4: e.far} {
		for _, reverse := range []bool{false, true} {
			r := datagrams(t, ctx, server, e.pod, name, 100, peer.IperfOptions{UDP: true, Rate: 4e6, Length: 1200, Time: time.Second, Reverse: reverse})
			t.Logf("UDP with %s, reverse %v: %d datagrams, %d lost", name, reverse, r.Packets, r.Lost)
		}
	}
	goodPackets(t, ctx, stop())
	n := e.tally(t)
	if n["port pod xdp-redirect"] < 1000 || n["port pod xdp-drop-too-long"]+n["port pod port-unsegmented"] != 0 {
		t.Errorf("of the pod's packets %d were taken, %d were not segmented", n["port pod xdp-redirect"], n["port pod port-unsegmented"])
	}
}

// podRules lets the pod be asked by the guest alone.
func (e *estate) podRules(t *testing.T, ctx context.Context) {
	since := e.since(t)
	e.shuntctl(t, "acl", "set", "pod", "--rule", "allow in icmp from "+over4.guest4+" type 8", "--rule", "allow out tcp to "+over4.peer4)
	pings(t, ctx, e.a, tenantPod.ip4, 56, 8000)
	if e.pinged(t, ctx, e.far, tenantPod.ip4) || e.pinged(t, ctx, e.pod, over4.peer4) {
		t.Error("the pod and the peer can ping each other")
	}
	e.tcp(t, ctx, e.far, e.pod, over4.peer4, peer.IperfOptions{Rate: 10e6, Reverse: true})
	n := since()
	in, out := n["port pod acl-denied-in"], n["port pod acl-denied-out"]
	if in == 0 || out == 0 {
		t.Errorf("%d packets to the pod and %d of it were denied", in, out)
	}
	t.Logf("denied: %d in, %d out", in, out)
	e.shuntctl(t, "acl", "remove", "pod")
	pings(t, ctx, e.far, tenantPod.ip4, 56)
}

// podLimits limits both directions.
func (e *estate) podLimits(t *testing.T, ctx context.Context) {
	limit := func(bps uint64) {
		t.Helper()
		c, err := e.d.API().Config(ctx)
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(c.Ports, func(p config.Port) bool { return p.Name == "pod" })
		c.Ports[i].Limits.FromGuest.BPS, c.Ports[i].Limits.ToGuest.BPS = bps, bps
		if _, err := e.d.API().Apply(ctx, c); err != nil {
			t.Fatal(err)
		}
	}
	const limited, offered = 4e6, 16e6
	limit(limited)
	for _, c := range []struct {
		reverse bool
		counter string // of what passes
		dropped string
	}{{false, "port pod rx-bytes", "port pod port-receive-full"}, {true, "port pod tx-bytes", "port pod limit"}} {
		all := e.since(t)
		done := make(chan error, 1)
		go func() {
			o := peer.IperfOptions{UDP: true, Rate: offered, Length: 1200, Time: 3 * time.Second, Reverse: c.reverse}
			_, err := peer.Iperf(ctx, e.far, e.pod, over4.peer4, o)
			done <- err
		}()
		for all()[c.counter] < 200e3 { // the burst, and what lay in the ring, are over
			if ctx.Err() != nil {
				t.Fatal(context.Cause(ctx))
			}
			time.Sleep(time.Millisecond)
		}
		since, begin := e.since(t), time.Now()
		time.Sleep(time.Second)
		bps := float64(since()[c.counter]) * 8 / time.Since(begin).Seconds()
		err := <-done
		n := all()
		t.Logf("reverse %v: of %.0f Mbit/s %.2f passed a limit of %.0f; counted %s", c.reverse, offered/1e6, bps/1e6, limited/1e6, podDrops(n))
		if err != nil || bps > 1.2*limited || bps < limited/4 || n[c.dropped] == 0 {
			t.Errorf("reverse %v: %.0f bit/s passed a limit of %.0f, dropped by it %d (%v)", c.reverse, bps, limited, n[c.dropped], err)
		}
	}
	limit(0)
	iperf(t, ctx, e.far, e.pod, over4.peer4, 1.5*limited, peer.IperfOptions{Rate: offered, Reverse: true, Time: iperfTime()})
}

func podDrops(n tally) (list []string) {
	for name, count := range n {
		if rest, ok := strings.CutPrefix(name, "port pod "); ok && count > 0 {
			list = append(list, fmt.Sprintf("%s %d", rest, count))
		}
	}
	slices.Sort(list)
	return list
}

// anotherPod deletes the pod's interface and makes another one of the name.
func (e *estate) anotherPod(t *testing.T, ctx context.Context) {
	for range soak() {
		since := e.since(t)
		run(t, e.host, "ip", "link", "del", "pod0")
		if err := e.d.WaitPort(ctx, "pod", control.StateDown); err != nil {
			t.Fatal(err)
		}
		silence(t, ctx, e.a, tenantPod.ip4)
		n := since()
		if n["port pod port-no-interface"] == 0 {
			t.Errorf("what was sent to a port without interface is not counted: %v", podDrops(n))
		}
		begin := time.Now()
		e.joinPod(t, over4.mtu-50)
		if err := e.d.WaitPort(ctx, "pod", control.StateConnected); err != nil {
			t.Fatal(err)
		}
		t.Logf("in service again after %v; dropped meanwhile: port-no-interface %d", time.Since(begin).Round(time.Millisecond), n["port pod port-no-interface"])
		reach(t, ctx, e.a, tenantPod.ip4)
		e.longer(t, ctx)
		pings(t, ctx, e.pod, over4.peer4, 56, 8000)
		if after := since(); after["port pod rx"] > 1<<62 || after["port pod xdp-redirect"] == 0 || after["port pod xdp-redirect"] > 1<<62 {
			t.Errorf("counters went back: %v", podDrops(after))
		}
	}
}

// longer gives the pod's interface the MTU of its network, which is followed.
func (e *estate) longer(t *testing.T, ctx context.Context) {
	run(t, e.host, "ip", "link", "set", "pod0", "mtu", fmt.Sprint(over4.mtu))
	run(t, e.pod, "ip", "link", "set", "eth0", "mtu", fmt.Sprint(over4.mtu))
	for begin := time.Now(); ; {
		if p, err := peer.Ping(ctx, e.pod, over4.guest4, peer.PingOptions{Count: 1, Size: over4.mtu - 28, Wait: time.Second}); err == nil && p.Received == 1 {
			t.Logf("packets of %d bytes pass after %v", over4.mtu, time.Since(begin).Round(time.Millisecond))
			return
		}
		if ctx.Err() != nil || time.Since(begin) > 20*time.Second {
			t.Fatalf("packets of %d bytes do not pass", over4.mtu)
		}
	}
}
