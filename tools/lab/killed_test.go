package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shuntio/shunt/dataplane/vnet/vnettest"
	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/lab/daemon"
	"github.com/shuntio/shunt/tools/lab/guest"
	"github.com/shuntio/shunt/tools/lab/netlab"
	"github.com/shuntio/shunt/tools/lab/peer"
	"github.com/shuntio/shunt/tools/need"
)

// A daemon is killed while traffic flows through it, and the next one takes over from front-ends that noticed: their rings go on where they stood, or
// begin anew, and nothing of the dead one stays.
//
// recovery is the traffic of one port: how much there was of it so far, and when it was seen to flow again.
type recovery struct {
	port      string
	count     func() uint64
	connected time.Time
	base      uint64
	waits     waits // until connected
	took      time.Duration
	waited    time.Duration // of that, for a CPU
	done      bool
}

// waits are how long each thread of some processes was ready to run and had to wait for a CPU so far, by process and thread.
type waits map[int]map[string]time.Duration

func waitsOf(pids []int) waits {
	w := waits{}
	for _, pid := range pids {
		w[pid] = map[string]time.Duration{}
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
		for _, file := range threads {
			var run, wait int64
			text, _ := os.ReadFile(file) // a thread that has just ended has none
			if n, _ := fmt.Sscan(string(text), &run, &wait); n == 2 {
				w[pid][file] = time.Duration(wait)
			}
		}
	}
	return w
}

// since is how long that was: of each process as long as the thread that waited longest, since what a packet passes through are processes one after the other.
func (w waits) since(before waits) (sum time.Duration) {
	for pid, threads := range w {
		most := time.Duration(0)
		for thread, wait := range threads {
			most = max(most, wait-before[pid][thread])
		}
		sum += most
	}
	return sum
}

// flowing is how many packets must have come back for traffic to flow, and recoverTime how long that may take after the front-end's reconnect.
const (
	flowing     = 20
	recoverTime = time.Second
	patience    = 40 * time.Second // of which a busy machine may take most
)

// recovered waits until the traffic of every port flows. What it took counts from when the port is connected, without what processes waited for a CPU.
func recovered(t *testing.T, ctx context.Context, d *daemon.Daemon, pids []int, flows []*recovery) (slowest time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("not within %v", patience))
	defer cancel()
	for missing := len(flows); missing > 0; time.Sleep(2 * time.Millisecond) {
		status, err := d.API().Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if ctx.Err() != nil {
			for _, f := range flows {
				if !f.done {
					t.Errorf("%v: no traffic of port %s, connected %v, %d packets then and %d now", context.Cause(ctx), f.port, f.connected, f.base, f.count())
				}
			}
			t.FailNow()
		}
		for _, f := range flows {
			i := slices.IndexFunc(status.Ports, func(p control.PortStatus) bool { return p.Name == f.port })
			if i < 0 {
				t.Fatalf("there is no port %s", f.port)
			}
			switch {
			case f.done:
			case f.connected.IsZero():
				if p := status.Ports[i]; p.State == control.StateConnected {
					f.connected, f.base, f.waits = time.Now(), f.count(), waitsOf(pids)
				} else if p.State == control.StateFailed {
					t.Fatalf("port %s: %s", f.port, p.Reason)
				}
			case f.count() >= f.base+flowing:
				f.took, f.waited, f.done = time.Since(f.connected), waitsOf(pids).since(f.waits), true
				slowest = max(slowest, f.took)
				missing--
			}
		}
	}
	for _, f := range flows {
		if f.took-f.waited > recoverTime {
			t.Errorf("port %s: traffic flows again %v after its front-end is back, of which %v were waiting for a CPU", f.port, f.took, f.waited)
		}
	}
	return slowest
}

// garbage is how much more memory a daemon may have than another, in KiB: API calls leave it, and it is collected when that is worth it.
const garbage = 64 << 10

// footprint is what a daemon uses of memory, in KiB, without what it shares with guests.
func footprint(t *testing.T, d *daemon.Daemon) (anonymous int) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.PID()))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if words := strings.Fields(line); len(words) > 1 && words[0] == "RssAnon:" {
			if _, err := fmt.Sscan(words[1], &anonymous); err != nil {
				t.Fatal(err)
			}
		}
	}
	return anonymous
}

// ringFiles are the files in which the daemon keeps where the rings of ports stand, by their sockets.
func ringFiles(dir string) (files []string) {
	for _, place := range []string{"/run/shunt/rings", "/dev/shm/shunt/rings"} {
		entries, err := os.ReadDir(place)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return []string{err.Error()}
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), url.PathEscape(dir+"/")) {
				files = append(files, filepath.Join(place, e.Name()))
			}
		}
	}
	return files
}

func parseMAC(t *testing.T, text string) [6]byte {
	t.Helper()
	mac, err := net.ParseMAC(text)
	if err != nil {
		t.Fatal(err)
	}
	return [6]byte(mac)
}

// Guests of ours with rings of either kind send to testpmds with rings of either kind, which send back: those that listen for the daemon and stay, and those that
// connect to it, which DPDK has begin anew.
//
//	own split  ─ fs ─┐        ┌─ ds, dp ─ testpmd, server=1
//	own packed ─ fp ─┴ shuntd ┴─ cs, cp ─ testpmd
func TestDaemonKilledUnderTraffic(t *testing.T) {
	need.Program(t, "dpdk-testpmd")
	rounds := 3
	if need.Soak() {
		rounds = 30
	}
	ctx := within(t, time.Minute+time.Duration(rounds)*10*time.Second)
	host := namespace(t, "host")
	dir, err := os.MkdirTemp("", "kill") // t.TempDir's path is too long for a socket's
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	names := []string{"fs", "fp", "ds", "dp", "cs", "cp"}
	// Huge pages are whoever's comes first on this machine: the next daemon must not have what this one did not get.
	config := "workers: {cpus: [1], huge-pages: off}\nnetworks: [{name: blue}]\nports:\n"
	macs, socket := map[string]string{}, func(port string) string { return filepath.Join(dir, port+".sock") }
	for i, name := range names {
		macs[name] = fmt.Sprintf("52:54:00:00:03:%02x", i+1)
		role := "server"
		if name[0] == 'd' {
			role = "client"
		}
		config += fmt.Sprintf("  - {name: %s, network: blue, socket: %q, mac: %q, role: %s}\n", name, socket(name), macs[name], role)
	}
	d := start(t, host, "shuntd", config)
	absent, idle := belongingsOf(t, ctx, d), footprint(t, d)

	device := func(number int, port string) string {
		return peer.VirtioUser{Number: number, Path: socket(port), MAC: macs[port], Packed: port[1] == 'p', Server: port[0] == 'd', QueueSize: 256}.String()
	}
	reflecting := func(name, split, packed string) *peer.Testpmd {
		p := pmd(t, peer.TestpmdOptions{
			Name: name, Mode: "macswap", MemoryMiB: 64, Devices: []string{device(0, split), device(1, packed)},
			Args: []string{"--port-topology=loop", "--total-num-mbufs=8192"},
		})
		if err := p.Start(ctx); err != nil {
			t.Fatal(err)
		}
		return p
	}
	stays, restarted := reflecting("stays", "ds", "dp"), reflecting("begins-anew", "cs", "cp")
	owns := map[string]*ownGuest{
		"fs": newOwnGuest(t, socket("fs"), macs["fs"], vnettest.Options{Features: splitRing}),
		"fp": newOwnGuest(t, socket("fp"), macs["fp"], vnettest.Options{Features: packedRing}),
	}
	var pumps []*echoes
	pump := map[string]func() uint64{}
	for _, kind := range []string{"s", "p"} {
		own := owns["f"+kind]
		if err := own.attach(ctx); err != nil {
			t.Fatal(err)
		}
		e := echo(t, own, 300, parseMAC(t, macs["d"+kind]), parseMAC(t, macs["c"+kind]))
		pumps = append(pumps, e)
		pump["d"+kind] = e.back[0].Load
		pump["c"+kind] = e.back[1].Load
		pump["f"+kind] = func() uint64 { return e.back[0].Load() + e.back[1].Load() }
	}
	flows := func(ports ...string) (all []*recovery) {
		for _, port := range ports {
			all = append(all, &recovery{port: port, count: pump[port]})
		}
		return all
	}
	pids := func() []int { return []int{os.Getpid(), d.PID(), stays.PID(), restarted.PID()} }
	recovered(t, ctx, d, pids(), flows(names...))
	busy, slowest := footprint(t, d), time.Duration(0)
	for range rounds {
		d.Kill()
		if err := d.Start(ctx); err != nil {
			t.Fatal(err)
		}
		for name, own := range owns {
			if err := own.attach(ctx); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		slowest = max(slowest, recovered(t, ctx, d, pids(), flows("fs", "fp", "ds", "dp")))
		restarted.Kill()
		restarted = reflecting("begins-anew", "cs", "cp")
		slowest = max(slowest, recovered(t, ctx, d, pids(), flows("cs", "cp")))
	}
	again := footprint(t, d)
	if again > busy+garbage {
		t.Errorf("under traffic the daemon that was killed used %d KiB of memory, its successor uses %d KiB", busy, again)
	}
	for _, e := range pumps {
		e.end(t)
	}
	if files := ringFiles(dir); len(files) != len(names) {
		t.Errorf("where rings stand is in %q, want a file for each of %d ports", files, len(names))
	}
	for _, own := range owns {
		own.hangUp()
	}
	stays.Kill()
	restarted.Kill()
	back(t, ctx, d, absent)
	if now := footprint(t, d); now > idle+garbage {
		t.Errorf("without front-ends the daemon used %d KiB of memory, its successor uses %d KiB", idle, now)
	}
	t.Logf("%d kills: traffic of 6 front-ends flows at most %v after the reconnect; memory under traffic %d MiB, before %d MiB; %d free frames, %d named mappings, %d files, as before",
		rounds, slowest.Round(time.Millisecond), again>>10, busy>>10, absent.free, len(absent.maps), len(absent.files))
}

// A virtual machine loses the daemon behind four devices: those that connect to it and those that wait for it, with rings of either kind, while the far
// kernel pings it through each.
//
//	              ┌ eth0 split,  eth1 packed: QEMU connects
//	far ══ shuntd ┤
//	              └ eth2 split,  eth3 packed: QEMU listens
func TestDaemonKilledUnderQEMU(t *testing.T) {
	rounds := 2
	if need.Soak() {
		rounds = 20
	}
	ctx := within(t, 3*time.Minute+time.Duration(rounds)*20*time.Second)
	img := image(t)
	host, far := namespace(t, "host"), namespace(t, "far")
	withoutIPv6(t, far)
	wire(t,
		netlab.End{Namespace: host, Name: "up0", Addrs: []string{"192.0.2.1/24"}},
		netlab.End{Namespace: far, Name: "far0", Addrs: []string{"192.0.2.2/24"}})
	dir, err := os.MkdirTemp("", "kill")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	config := "workers: {cpus: [1], huge-pages: off}\nuplinks: [{name: up0, interface: up0}]\nnetworks: [{name: blue, vni: 7, uplink: up0, flood: [192.0.2.2]}]\nports:\n"
	vx := peer.VXLAN{Name: "vx7", VNI: 7, Device: "far0", Local: "192.0.2.2", Remote: "192.0.2.1", MAC: macFar, MTU: 1450}
	var nics []guest.NIC
	for i := range 4 {
		nic := guest.NIC{Socket: fmt.Sprintf("%s/p%d.sock", dir, i), MAC: fmt.Sprintf("52:54:00:00:04:%02x", i), Reconnect: true}
		role := "server"
		if i >= 2 {
			role, nic.Server = "client", true
		}
		if i%2 == 1 {
			nic.Properties = "packed=on"
		}
		nics = append(nics, nic)
		config += fmt.Sprintf("  - {name: p%d, network: blue, socket: %q, mac: %q, role: %s}\n", i, nic.Socket, nic.MAC, role)
		vx.Addrs = append(vx.Addrs, fmt.Sprintf("10.0.%d.2/24", i))
	}
	if err := peer.KernelVXLAN(ctx, far, vx); err != nil {
		t.Fatal(err)
	}
	d := start(t, host, "shuntd", config)
	absent := belongingsOf(t, ctx, d)
	for i, file := range absent.files { // a link that the next daemon takes over from its pin has another name
		absent.files[i] = strings.Replace(file, "bpf_link", "bpf-link", 1)
	}
	slices.Sort(absent.files)
	vm := boot(t, guest.Options{Name: "vm", Image: img, NICs: nics})
	var flows []*recovery
	for i, nic := range nics {
		address(t, vm, fmt.Sprintf("eth%d", i), 1450, fmt.Sprintf("10.0.%d.1/24", i))
		run(t, vm, "ip", "neigh", "replace", fmt.Sprintf("10.0.%d.2", i), "lladdr", macFar, "dev", fmt.Sprintf("eth%d", i))
		known(t, far, "vx7", fmt.Sprintf("10.0.%d.1", i), nic.MAC)
		p, err := netlab.Start(far.Command(ctx, "ping", "-i", "0.02", "-s", "400", fmt.Sprintf("10.0.%d.1", i)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Kill)
		flows = append(flows, &recovery{port: fmt.Sprintf("p%d", i), count: func() uint64 { return uint64(strings.Count(p.Output(), " bytes from ")) }})
	}
	pids := func() []int { return []int{os.Getpid(), d.PID(), vm.PID()} }
	recovered(t, ctx, d, pids(), flows)
	for i := range 4 {
		port, err := d.API().Port(ctx, fmt.Sprintf("p%d", i))
		if want := []string{"split", "packed"}[i%2]; err != nil || port.Status.Ring != want {
			t.Errorf("the ring of port p%d is %q, want %q (%v)", i, port.Status.Ring, want, err)
		}
	}
	busy, slowest := footprint(t, d), time.Duration(0)
	for range rounds {
		d.Kill()
		if err := d.Start(ctx); err != nil {
			t.Fatal(err)
		}
		for _, f := range flows {
			*f = recovery{port: f.port, count: f.count}
		}
		slowest = max(slowest, recovered(t, ctx, d, pids(), flows))
	}
	again := footprint(t, d)
	if again > busy+garbage {
		t.Errorf("under traffic the daemon that was killed used %d KiB of memory, its successor uses %d KiB", busy, again)
	}
	goodChecksums(t, ctx, "the guest", vm)
	vm.Kill()
	back(t, ctx, d, absent)
	t.Logf("%d kills: traffic of 4 devices flows at most %v after QEMU's reconnect; memory under traffic %d MiB, before %d MiB",
		rounds, slowest.Round(time.Millisecond), again>>10, busy>>10)
}
