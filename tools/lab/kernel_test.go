package lab

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/lab/daemon"
	"github.com/shuntio/shunt/tools/lab/guest"
	"github.com/shuntio/shunt/tools/lab/netlab"
	"github.com/shuntio/shunt/tools/lab/peer"
)

// path is one way from the guest to the kernel's VXLAN device:
//
//	guest eth0 ─ vhost-user ─ shuntd ─ up4 ═══ IPv4 ═══ up4 ─ vx4    10.4.0.0/24
//	guest eth1 ─ vhost-user ─ shuntd ─ up6 ═══ IPv6 ═══ up6 ─ vx6    10.6.0.0/24
type path struct {
	name, guestDevice, uplink, vxlan string
	local, remote                    string // tunnel endpoints
	prefix                           int
	vni, mtu                         int // of the underlay 1500: less 50 and 70
	guestMAC, peerMAC                string
	guest4, peer4, guest6, peer6     string
}

var (
	over4 = path{
		name: "IPv4", guestDevice: "eth0", uplink: "up4", vxlan: "vx4", local: "192.0.2.1", remote: "192.0.2.2", prefix: 24,
		vni: 100, mtu: 1450, guestMAC: "52:54:00:00:04:01", peerMAC: "52:54:00:00:04:02",
		guest4: "10.4.0.1", peer4: "10.4.0.2", guest6: "fd04::1", peer6: "fd04::2",
	}
	over6 = path{
		name: "IPv6", guestDevice: "eth1", uplink: "up6", vxlan: "vx6", local: "2001:db8::1", remote: "2001:db8::2", prefix: 64,
		vni: 0xabcdef, mtu: 1430, guestMAC: "52:54:00:00:06:01", peerMAC: "52:54:00:00:06:02",
		guest4: "10.6.0.1", peer4: "10.6.0.2", guest6: "fd06::1", peer6: "fd06::2",
	}
)

// kernelConfig is shuntd's for the paths: one learns and floods, the other has its
// forwarding entry written down.
func kernelConfig(dir string, paths ...path) string {
	text := "workers: {cpus: [1], idle: adaptive}\nuplinks:\n"
	for _, p := range paths {
		text += fmt.Sprintf("  - {name: %s, interface: %s, address: \"%s\"}\n", p.uplink, p.uplink, p.local)
	}
	text += "networks:\n"
	for _, p := range paths {
		text += fmt.Sprintf("  - name: net-%s\n    vni: %d\n    uplink: %s\n    flood: [\"%s\"]\n", p.uplink, p.vni, p.uplink, p.remote)
		if p.prefix == 64 {
			text += fmt.Sprintf("    entries: [{mac: \"%s\", vtep: \"%s\"}]\n", p.peerMAC, p.remote)
		}
	}
	text += "ports:\n"
	for _, p := range paths {
		text += fmt.Sprintf("  - {name: port-%s, network: net-%s, socket: %s, mac: \"%s\", ips: [%s, \"%s\"], anti-spoof: false}\n",
			p.uplink, p.uplink, socket(dir, p), p.guestMAC, p.guest4, p.guest6)
	}
	return text
}

func socket(dir string, p path) string { return filepath.Join(dir, p.uplink+".sock") }

// join wires the underlay of a path and makes the kernel's VXLAN device.
func join(t *testing.T, ctx context.Context, host, far *netlab.Namespace, p path) {
	t.Helper()
	prefixed := func(addr string) []string { return []string{addr + "/" + strconv.Itoa(p.prefix)} }
	wire(t,
		netlab.End{Namespace: host, Name: p.uplink, Addrs: prefixed(p.local)},
		netlab.End{Namespace: far, Name: p.uplink, Addrs: prefixed(p.remote)})
	err := peer.KernelVXLAN(ctx, far, peer.VXLAN{
		Name: p.vxlan, VNI: p.vni, Device: p.uplink, Local: p.remote, Remote: p.local, MAC: p.peerMAC, MTU: p.mtu,
		Addrs: []string{p.peer4 + "/24", p.peer6 + "/64"}, Options: []string{"udpcsum"},
	})
	if err != nil {
		t.Fatal(err)
	}
}

// The main job: a guest with Debian's stock kernel and a kernel's VXLAN device
// talk, over IPv4 and IPv6, with every size and protocol, and nobody finds a
// wrong checksum. The guest is then reset, shuntd killed, stopped, and each
// time traffic flows again; the kernel's own session goes on all the while.
func TestGuestAndKernel(t *testing.T) {
	ctx := within(t, 10*time.Minute)
	host, far := namespace(t, "host"), namespace(t, "far")
	dir := t.TempDir()
	paths := []path{over4, over6}
	for _, p := range paths {
		join(t, ctx, host, far, p)
	}
	undisturbed(t, far, host, over4.local)
	d := start(t, host, "shuntd", kernelConfig(dir, paths...))
	var nics []guest.NIC
	for _, p := range paths {
		nics = append(nics, guest.NIC{Socket: socket(dir, p), MAC: p.guestMAC, Reconnect: true})
	}
	g := boot(t, guest.Options{Name: "guest", Image: image(t), NICs: nics})
	addresses := func() {
		for _, p := range paths {
			address(t, g, p.guestDevice, p.mtu, p.guest4+"/24", p.guest6+"/64")
		}
	}
	addresses()

	for _, p := range paths {
		t.Run("over "+p.name, func(t *testing.T) { overPath(t, ctx, d, host, far, g, p) })
	}
	t.Run("guest reset", func(t *testing.T) {
		if err := g.Reset(ctx); err != nil {
			t.Fatal(err)
		}
		addresses()
		for _, p := range paths {
			reach(t, ctx, g, p.peer4)
			pings(t, ctx, far, p.guest6, 56)
		}
	})
	for _, end := range []struct {
		name string
		of   func() error
	}{
		{"shuntd killed", func() error { d.Kill(); return nil }},
		{"shuntd stopped", func() error { return d.Stop(ctx) }},
	} {
		t.Run(end.name, func(t *testing.T) {
			if err := end.of(); err != nil {
				t.Fatal(err)
			}
			silence(t, ctx, g, over4.peer4)
			if err := d.Start(ctx); err != nil {
				t.Fatal(err)
			}
			for _, p := range paths {
				reach(t, ctx, g, p.peer4)
				pings(t, ctx, far, p.guest4, 56, 1400)
			}
		})
	}
	t.Run("shuntd killed under load", func(t *testing.T) {
		// A TCP connection through the tunnel lives through it.
		done := make(chan error, 1)
		go func() {
			_, err := peer.Iperf(ctx, far, g, over4.peer4, peer.IperfOptions{Rate: 10e6, Time: 10 * time.Second})
			done <- err
		}()
		for begin := counters(t, d, control.KindUplink, "up4").TxPackets; counters(t, d, control.KindUplink, "up4").TxPackets < begin+500; {
			if ctx.Err() != nil {
				t.Fatal(context.Cause(ctx))
			}
		}
		d.Kill()
		if left, err := d.Leftovers(); err != nil || len(left) == 0 {
			t.Errorf("a killed daemon left no program to take over: %v", err)
		}
		if err := d.Start(ctx); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	goodChecksums(t, ctx, "the guest", g)
	goodChecksums(t, ctx, "the peer", far)
	goodChecksums(t, ctx, "the host", host)
}

// overPath sends everything over one path and looks at it from all sides.
func overPath(t *testing.T, ctx context.Context, d *daemon.Daemon, host, far *netlab.Namespace, g *guest.Guest, p path) {
	stop := captured(t, far, p.uplink)
	reach(t, ctx, g, p.peer4)
	t.Run("ping", func(t *testing.T) {
		// 8000 bytes are fragments of the network's MTU.
		pings(t, ctx, g, p.peer4, 56, 1400, 8000)
		pings(t, ctx, g, p.peer6, 56, 1400, 8000)
		pings(t, ctx, far, p.guest4, 56, 1400, 8000)
		pings(t, ctx, far, p.guest6, 56, 1400, 8000)
	})
	t.Run("iperf3", func(t *testing.T) {
		for _, o := range []peer.IperfOptions{{}, {UDP: true, Length: 1200}} {
			for _, o.Reverse = range []bool{false, true} {
				o.Rate, o.Time = 5e6, time.Second // less than the guest can take
				for _, address := range []string{p.peer4, p.peer6} {
					before := lost(t, ctx, d, far, g, p)
					r, err := peer.Iperf(ctx, far, g, address, o)
					if err != nil || r.BitsPerSecond < 1e6 || o.UDP && r.Packets == 0 {
						t.Errorf("%s %+v: %+v, %v", address, o, r, err)
					}
					if counted := lost(t, ctx, d, far, g, p) - before; r.Lost > counted {
						t.Errorf("%s %+v: %d of %d datagrams were lost, %d counted", address, o, r.Lost, r.Packets, counted)
					}
				}
			}
		}
	})
	for who, r := range map[string]peer.Runner{"the guest": g, "the peer": far, "the host": host} {
		goodChecksums(t, ctx, who, r)
	}
	wire := stop()
	goodPackets(t, ctx, wire)
	t.Run("full speed", func(t *testing.T) {
		for _, o := range []peer.IperfOptions{{Time: time.Second}, {Time: time.Second, Reverse: true}} {
			r, err := peer.Iperf(ctx, far, g, p.peer4, o)
			if err != nil || r.BitsPerSecond < 5e6 {
				t.Errorf("%+v: %+v, %v", o, r, err)
			}
			t.Logf("reverse=%v: %.0f Mbit/s, %d retransmits", o.Reverse, r.BitsPerSecond/1e6, r.Retransmits)
		}
	})
	t.Run("outer headers", func(t *testing.T) { outerHeaders(t, ctx, wire, p) })
	for _, o := range []struct {
		kind control.Kind
		name string
	}{{control.KindPort, "port-" + p.uplink}, {control.KindUplink, p.uplink}} {
		c := counters(t, d, o.kind, o.name)
		if c.RxPackets < 100 || c.TxPackets < 100 {
			t.Errorf("%s %s counted %d received and %d transmitted packets", o.kind, o.name, c.RxPackets, c.TxPackets)
		}
		t.Logf("%s %s: %d received, %d transmitted, dropped %v", o.kind, o.name, c.RxPackets, c.TxPackets, c.Drops)
	}
}

// lost sums all counters of packets lost between the guest's and the peer's
// sockets, theirs included: a busy machine may leave a guest too little time.
func lost(t *testing.T, ctx context.Context, d *daemon.Daemon, far *netlab.Namespace, g *guest.Guest, p path) int {
	t.Helper()
	port, uplink := counters(t, d, control.KindPort, "port-"+p.uplink), counters(t, d, control.KindUplink, p.uplink)
	sum := port.Dropped() + uplink.Dropped()
	for _, r := range []peer.Runner{far, g} {
		c, err := peer.Counters(ctx, r)
		if err != nil {
			t.Fatal(err)
		}
		sum += c["Udp.RcvbufErrors"] + c["Udp6RcvbufErrors"] + c["Udp.SndbufErrors"] + c["Udp6SndbufErrors"]
	}
	for _, device := range []string{p.uplink, p.vxlan} {
		stats, err := peer.NetdevStats(far, device)
		if err != nil {
			t.Fatal(err)
		}
		sum += stats.RxDropped + stats.TxDropped
	}
	return int(sum)
}

// outerHeaders judges what shuntd put around the guest's frames, as tshark
// reads it.
func outerHeaders(t *testing.T, ctx context.Context, wire string, p path) {
	ip, fields := "ip", []string{"ip.src", "ip.dst", "ip.ttl", "ip.flags.df", "ip.frag_offset"}
	if p.prefix == 64 {
		ip, fields = "ipv6", []string{"ipv6.src", "ipv6.dst", "ipv6.hlim", "ipv6.version", "ipv6.version"}
	}
	fields = append(fields, "udp.srcport", "udp.dstport", "udp.checksum", "vxlan.flags", "vxlan.vni", "tcp.srcport", "tcp.dstport", "eth.dst")
	rows, err := peer.Decode(ctx, wire, fmt.Sprintf("vxlan && %s.src == %s", ip, p.local), fields...)
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) < 100 {
		t.Fatalf("tshark finds %d VXLAN packets from %s", len(rows), p.local)
	}
	ports := map[string]int{}
	flows := map[string]map[string]bool{} // of TCP -> outer source ports
	for _, row := range rows {
		if len(row) != len(fields) {
			t.Fatalf("tshark's line has %d fields: %v", len(row), row)
		}
		dst, ttl, df := row[1], row[2], row[3]
		source, destination, checksum, flags, vni, flow := row[5], row[6], row[7], row[8], row[9], row[10]+">"+row[11]
		ports[source]++
		if row[10] != "" {
			if flows[flow] == nil {
				flows[flow] = map[string]bool{}
			}
			flows[flow][source] = true
		}
		port, err := strconv.Atoi(source)
		wrong := err != nil || port < 49152 || dst != p.remote || destination != "4789" || ttl != "64" || vni != strconv.Itoa(p.vni) || flags != "0x0800"
		if ip == "ip" {
			wrong = wrong || df != "1" && df != "True" || row[4] != "0"
		} else {
			// A tunnel over IPv6 has a checksum unless both ends agreed otherwise (RFC 6935).
			wrong = wrong || checksum == "0x0000"
		}
		if wrong {
			t.Fatalf("outer header: %v\nof %v", row, fields)
		}
	}
	for flow, sources := range flows {
		if len(sources) != 1 {
			t.Errorf("the TCP flow %s has outer source ports %v, want one", flow, slices.Collect(maps.Keys(sources)))
		}
	}
	// Of n flows some may share a port; that all do is a chance of 2^-14 each.
	if len(flows) < 3 || len(ports) < 3 {
		t.Errorf("%d flows have %d outer source ports: %v", len(flows), len(ports), ports)
	}
	t.Logf("%d packets, %d TCP flows, %d outer source ports", len(rows), len(flows), len(ports))
}
