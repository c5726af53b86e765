package lab

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shuntio/shunt/tools/control"
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
	shuntd(t) // a need
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
	options := guest.Options{Name: "guest", Image: image(t), NICs: nics}
	g := boot(t, options)
	addresses := func() {
		for _, p := range paths {
			address(t, g, p.guestDevice, p.mtu, p.guest4+"/24", p.guest6+"/64")
		}
	}
	addresses()

	for _, p := range paths {
		t.Run("over "+p.name, func(t *testing.T) { overPath(t, ctx, d, host, far, g, p) })
	}
	t.Run("reload", func(t *testing.T) {
		// What is as before is not touched: the guest stays connected.
		good := kernelConfig(dir, paths...)
		connections := strings.Count(d.Log(), "front-end connected")
		more := strings.Replace(good, "ports:\n", "  - {name: more, vni: 5, uplink: up4}\nports:\n", 1)
		for _, step := range []struct {
			config   string
			networks int
		}{{more, 3}, {good, 2}} {
			d.SetConfig(step.config)
			if err := d.Reload(); err != nil {
				t.Fatal(err)
			}
			for {
				status, err := d.API().Status(ctx)
				if err != nil {
					t.Fatal(err)
				}
				if len(status.Networks) == step.networks {
					break
				}
			}
			pings(t, ctx, g, over4.peer4, 56)
		}
		d.SetConfig("nonsense: true\n" + good)
		if err := d.Reload(); err != nil {
			t.Fatal(err)
		}
		for !strings.Contains(d.Log(), "nonsense") {
			if ctx.Err() != nil {
				t.Fatal("a wrong configuration was not reported")
			}
		}
		pings(t, ctx, g, over4.peer4, 56)
		if n := strings.Count(d.Log(), "front-end connected"); n != connections {
			t.Errorf("the guest connected %d times, want %d", n, connections)
		}
		d.SetConfig(good)
	})
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
			_, err := peer.Iperf(ctx, far, g, over4.peer4, peer.IperfOptions{Rate: 10e6, Time: 6 * time.Second})
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
	t.Run("guest killed", func(t *testing.T) {
		g.Kill()
		for _, p := range paths {
			if err := d.WaitPort(ctx, "port-"+p.uplink, control.StateDisconnected); err != nil {
				t.Fatal(err)
			}
		}
		next, err := guest.Start(ctx, options)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = next.Close() })
		g = next
		addresses()
		for _, p := range paths {
			reach(t, ctx, g, p.peer4)
			pings(t, ctx, far, p.guest6, 56, 1400)
		}
		goodChecksums(t, ctx, "the next guest", g)
	})
	goodChecksums(t, ctx, "the peer", far)
	goodChecksums(t, ctx, "the host", host)
}
