package lab

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/lab/daemon"
	"github.com/shuntio/shunt/tools/lab/guest"
	"github.com/shuntio/shunt/tools/lab/netlab"
	"github.com/shuntio/shunt/tools/lab/peer"
	"github.com/shuntio/shunt/tools/need"
)

// estate is a daemon with tenants of all kinds, who reach the kernel's VXLAN devices over IPv4 and IPv6. Their stacks leave checksums and long
// packets to their devices, as they do anywhere.
//
//	guest a eth0, eth1 ─ vhost-user ─┐
//	guest b eth0 ─────── vhost-user ─┤          host               far
//	pod eth0 ═══════════ veth pod0 ──┴─ shuntd ─ up4 ═══ IPv4 ═══ up4 ─ vx4    a eth0, b, pod
//	                                           └ up6 ═══ IPv6 ═══ up6 ─ vx6    a eth1
//
// The far stations are written down with their addresses, for which they are answered for.
type estate struct {
	host, far, pod *netlab.Namespace // pod: of newEstate's options only
	d              *daemon.Daemon
	dir            string
	a, b           *guest.Guest
}

// tenant is one of the estate's, in the network of up4.
type tenant struct{ mac, ip4, ip6 string }

var (
	tenantA   = tenant{over4.guestMAC, over4.guest4, over4.guest6}
	tenantB   = tenant{"52:54:00:00:04:0b", "10.4.0.11", "fd04::11"}
	tenantPod = tenant{"52:54:00:00:04:0c", "10.4.0.12", "fd04::12"}
)

const estateConfig = `
workers: {cpus: [1]}
uplinks:
  - {name: up4, interface: up4, address: 192.0.2.1}
  - {name: up6, interface: up6, address: "2001:db8::1"}
networks:
  - name: blue
    vni: 100
    uplink: up4
    flood: [192.0.2.2]
    entries: [{mac: "52:54:00:00:04:02", ip: 10.4.0.2, vtep: 192.0.2.2}, {mac: "52:54:00:00:04:02", ip: "fd04::2", vtep: 192.0.2.2}]
  - name: red
    vni: 11259375
    uplink: up6
    flood: ["2001:db8::2"]
    entries: [{mac: "52:54:00:00:06:02", ip: "fd06::2", vtep: "2001:db8::2"}]
ports:
`

// offered is what QEMU lets a guest's driver leave to its device.
const offered = "csum=on,guest_csum=on,host_tso4=on,host_tso6=on,host_ecn=on,guest_tso4=on,guest_tso6=on,guest_ecn=on,mrg_rxbuf=on"

// newEstate boots guest a, and b and the pod if they are asked for.
func newEstate(t *testing.T, ctx context.Context, withB, withPod bool) *estate {
	t.Helper()
	e := &estate{host: namespace(t, "host"), far: namespace(t, "far"), dir: t.TempDir()}
	for _, p := range []path{over4, over6} {
		join(t, ctx, e.host, e.far, p)
	}
	run(t, e.far, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/tcp_ecn")
	config := estateConfig + e.guestPort("a", "blue", tenantA, true) + e.guestPort("a6", "red", tenant{over6.guestMAC, over6.guest4, over6.guest6}, true)
	guests := []guest.Options{{Name: "a", Image: image(t), NICs: []guest.NIC{e.nic("a", tenantA.mac, ""), e.nic("a6", over6.guestMAC, "")}}}
	if withB {
		config += e.guestPort("b", "blue", tenantB, false)
		guests = append(guests, guest.Options{Name: "b", Image: image(t), NICs: []guest.NIC{e.nic("b", tenantB.mac, ",host_mtu=1450")}})
	}
	if withPod {
		e.pod = namespace(t, "pod")
		e.joinPod(t, over4.mtu)
		config += fmt.Sprintf("  - {name: pod, network: blue, interface: pod0, mac: %q, ips: [%s, %q]}\n", tenantPod.mac, tenantPod.ip4, tenantPod.ip6)
	}
	e.d = start(t, e.host, "shuntd", config)
	all := bootAll(t, guests)
	e.a = all[0]
	address(t, e.a, "eth0", over4.mtu, over4.guest4+"/24", over4.guest6+"/64")
	address(t, e.a, "eth1", over6.mtu, over6.guest4+"/24", over6.guest6+"/64")
	if withB {
		e.b = all[1]
		address(t, e.b, "eth0", over4.mtu, tenantB.ip4+"/24", tenantB.ip6+"/64")
	}
	for _, g := range all {
		if _, err := g.Shell(ctx, "echo 1 >/proc/sys/net/ipv4/tcp_ecn"); err != nil {
			t.Fatal(err)
		}
	}
	return e
}

func (e *estate) socket(port string) string { return filepath.Join(e.dir, port+".sock") }

func (e *estate) guestPort(name, network string, of tenant, coalesce bool) string {
	return fmt.Sprintf("  - {name: %s, network: %s, socket: %q, mac: %q, ips: [%s, %q], coalesce: %v}\n",
		name, network, e.socket(name), of.mac, of.ip4, of.ip6, coalesce)
}

func (e *estate) nic(port, mac, properties string) guest.NIC {
	return guest.NIC{Socket: e.socket(port), MAC: mac, Reconnect: true, Properties: offered + properties}
}

// joinPod makes the pod's veth pair, whose two ends have all the offloads that the kernel gives them.
func (e *estate) joinPod(t *testing.T, mtu int) {
	t.Helper()
	err := netlab.Veth(
		netlab.End{Namespace: e.host, Name: "pod0", MTU: mtu},
		netlab.End{Namespace: e.pod, Name: "eth0", MTU: mtu, MAC: tenantPod.mac, Addrs: []string{tenantPod.ip4 + "/24", tenantPod.ip6 + "/64"}}, 1)
	if err != nil {
		t.Fatal(err)
	}
}

// bootAll is boot for several guests at the same time.
func bootAll(t *testing.T, all []guest.Options) []*guest.Guest {
	t.Helper()
	guests, errs := make([]*guest.Guest, len(all)), make([]error, len(all))
	var group sync.WaitGroup
	for i, o := range all {
		group.Go(func() { guests[i], errs[i] = guest.Start(t.Context(), o) })
	}
	group.Wait()
	for i, g := range guests {
		if errs[i] != nil {
			t.Error(errs[i])
			continue
		}
		t.Cleanup(func() {
			if t.Failed() {
				t.Logf("console of %s:\n%s", all[i].Name, g.Console())
			}
			if err := g.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	if t.Failed() {
		t.FailNow()
	}
	return guests
}

// since is what every counter has grown by when it is called again, by "KIND NAME COUNTER".
func (e *estate) since(t *testing.T) func() tally {
	t.Helper()
	before := e.tally(t)
	return func() tally {
		t.Helper()
		after := e.tally(t)
		for name := range after {
			after[name] -= before[name]
		}
		return after
	}
}

func (e *estate) tally(t *testing.T) tally {
	t.Helper()
	stats, err := e.d.API().Stats(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	all := tally{}
	for _, o := range stats.Objects {
		of := string(o.Kind) + " " + o.Name + " "
		all[of+"rx"], all[of+"rx-bytes"], all[of+"tx"], all[of+"tx-bytes"] = o.RxPackets, o.RxBytes, o.TxPackets, o.TxBytes
		for _, more := range []map[string]uint64{o.Drops, o.More} {
			for name, n := range more {
				all[of+name] = n
			}
		}
	}
	return all
}

// drops lists what of the reasons for drops has been counted, but for those that are told.
func (e *estate) drops(t *testing.T, but ...string) (list []string) {
	t.Helper()
	drops, err := e.d.API().Drops(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range drops {
		if !slices.Contains(but, d.Reason) {
			list = append(list, fmt.Sprintf("%s %s %s: %d", d.Kind, d.Name, d.Reason, d.Packets))
		}
	}
	return list
}

// sound reports what a stack refused of what it received.
func sound(t *testing.T, ctx context.Context, who string, r peer.Runner) {
	t.Helper()
	goodChecksums(t, ctx, who, r)
	c, err := peer.Counters(ctx, r)
	if err != nil || c["Tcp.InSegs"] == 0 || c["Tcp.InErrs"] != 0 {
		t.Errorf("%s received %d TCP segments and refused %d of them (%v)", who, c["Tcp.InSegs"], c["Tcp.InErrs"], err)
	}
}

// port is the state of a port.
func (e *estate) port(t *testing.T, name string) control.PortStatus {
	t.Helper()
	p, err := e.d.API().Port(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return *p.Status
}

var buildCtl = sync.OnceValues(func() (string, error) {
	binary := filepath.Join(buildDir, "shuntctl")
	out, err := exec.Command("go", "build", "-o", binary, "github.com/shuntio/shunt/tools/shuntctl").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build shuntctl: %w\n%s", err, out)
	}
	return binary, nil
})

// shuntctl runs the program.
func (e *estate) shuntctl(t *testing.T, args ...string) string {
	t.Helper()
	need.Root(t)
	binary, err := buildCtl()
	if err != nil {
		t.Fatal(err)
	}
	args = append([]string{"--socket", e.d.Socket()}, args...)
	out, err := exec.CommandContext(t.Context(), binary, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("shuntctl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}
