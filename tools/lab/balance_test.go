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

	"github.com/shuntio/shunt/bpf"
	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/lab/daemon"
	"github.com/shuntio/shunt/tools/lab/netlab"
	"github.com/shuntio/shunt/tools/lab/peer"
	"github.com/shuntio/shunt/tools/need"
)

// scales is where packets are counted. Neighbours are written down and IPv6 is
// off, so nothing is on the wire that no test sent.
//
//	testpmd a ─ vhost-user ─┐            host          far
//	                        shuntd ─ up0 ═══════ up0 ─ vx0 ─ testpmd wire   or   up0 ─ AF_XDP ─ testpmd wire
//	testpmd b ─ vhost-user ─┘       192.0.2.1   192.0.2.2
//
// a and b are in a VXLAN network; f is in a flat one.
type scales struct {
	host, far *netlab.Namespace
	d         *daemon.Daemon
	dir       string
}

const (
	macF                 = "52:54:00:00:01:0c"
	macA, macB, macFar   = "52:54:00:00:01:0a", "52:54:00:00:01:0b", "52:54:00:00:01:0f"
	macUplink, macRemote = "02:00:00:00:01:01", "02:00:00:00:01:02"
)

func newScales(t *testing.T, ctx context.Context) *scales {
	t.Helper()
	return setUp(t, ctx, func(s *scales) string {
		return fmt.Sprintf(`
workers: {cpus: [1]}
uplinks: [{name: up0, interface: up0, address: 192.0.2.1}]
networks:
  - {name: blue, vni: 100, uplink: up0, learning: false, entries: [{mac: %q, vtep: 192.0.2.2}]}
  - {name: flat, uplink: up0}
ports:
  - {name: f, network: flat, socket: %q, mac: %q}
  - {name: a, network: blue, socket: %q, mac: %q}
  - {name: b, network: blue, socket: %q, mac: %q}
`, macFar, s.socket("f"), macF, s.socket("a"), macA, s.socket("b"), macB)
	})
}

// setUp makes the scales for a daemon with a configuration of its own.
func setUp(t *testing.T, ctx context.Context, config func(s *scales) string) *scales {
	t.Helper()
	need.Program(t, "dpdk-testpmd")
	s := &scales{host: namespace(t, "host"), far: namespace(t, "far"), dir: t.TempDir()}
	withoutIPv6(t, s.host)
	withoutIPv6(t, s.far)
	wire(t,
		netlab.End{Namespace: s.host, Name: "up0", MAC: macUplink, Addrs: []string{"192.0.2.1/24"}},
		netlab.End{Namespace: s.far, Name: "up0", MAC: macRemote, Addrs: []string{"192.0.2.2/24"}})
	known(t, s.host, "up0", "192.0.2.2", macRemote)
	known(t, s.far, "up0", "192.0.2.1", macUplink)
	err := peer.KernelVXLAN(ctx, s.far, peer.VXLAN{
		Name: "vx0", VNI: 100, Device: "up0", Local: "192.0.2.2", Remote: "192.0.2.1", MAC: macFar, MTU: 1450, Options: []string{"nolearning"},
	})
	if err != nil {
		t.Fatal(err)
	}
	s.d = start(t, s.host, "shuntd", config(s))
	return s
}

func (s *scales) socket(port string) string { return filepath.Join(s.dir, port+".sock") }

// withoutIPv6 keeps a namespace from sending what nobody asked for: router
// solicitations, multicast reports.
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

// guestPMD is a testpmd behind one of the daemon's ports.
func (s *scales) guestPMD(t *testing.T, port, mac string, notMergeable bool) *peer.Testpmd {
	t.Helper()
	front := peer.VirtioUser{Path: s.socket(port), MAC: mac, NotMergeable: notMergeable}
	return pmd(t, peer.TestpmdOptions{Name: port, Devices: []string{front.String()}, Mode: "rxonly", MemoryMiB: 64, Args: []string{"--txonly-multi-flow", "--total-num-mbufs=8192"}})
}

// tally is every counter there is, by name.
type tally map[string]uint64

func (s *scales) read(t *testing.T, ctx context.Context) tally {
	t.Helper()
	c := tally{}
	stats, err := s.d.API().Stats(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range stats.Objects {
		at := string(o.Kind) + " " + o.Name + " "
		c[at+"rx"], c[at+"tx"] = o.RxPackets, o.TxPackets
		for reason, n := range o.Drops {
			if stats.Reasons[reason] == "" {
				t.Errorf("%s: nobody says what the reason %s means", at, reason)
			}
			c[at+"drop "+reason] = n
		}
		for event, n := range o.More {
			c[at+"event "+event] = n
		}
	}
	for _, dev := range []struct {
		where string
		ns    *netlab.Namespace
		name  string
	}{{"host", s.host, "up0"}, {"far", s.far, "up0"}, {"far", s.far, "vx0"}} {
		n, err := peer.NetdevStats(dev.ns, dev.name)
		if err != nil {
			t.Fatal(err)
		}
		at := dev.where + " " + dev.name + " "
		c[at+"rx"], c[at+"tx"] = n.RxPackets, n.TxPackets
		c[at+"rx_dropped"], c[at+"tx_dropped"], c[at+"rx_errors"], c[at+"tx_errors"] = n.RxDropped, n.TxDropped, n.RxErrors, n.TxErrors
	}
	udp, err := peer.Counters(ctx, s.far)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"Ip.InHdrErrors", "Ip.InDiscards", "Ip.OutDiscards", "Udp.InErrors", "Udp.NoPorts"} {
		c["far "+name] = udp[name]
	}
	return c
}

// since is what was counted between two readings.
func (c tally) since(before tally) tally {
	d := tally{}
	for name, n := range c {
		if n != before[name] {
			d[name] = n - before[name]
		}
	}
	return d
}

// sum adds up the counters whose names begin with one of the words.
func (c tally) sum(names ...string) (n uint64) {
	for name, v := range c {
		for _, prefix := range names {
			if strings.HasPrefix(name, prefix) {
				n += v
			}
		}
	}
	return n
}

// workers adds up what all workers count of an event.
func (c tally) workers(event string) (n uint64) {
	for name, v := range c {
		if strings.HasPrefix(name, "worker ") && strings.HasSuffix(name, " event "+event) {
			n += v
		}
	}
	return n
}

func (c tally) String() string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(c)) {
		if !strings.HasPrefix(name, "worker") {
			fmt.Fprintf(&b, "  %-44s %d\n", name, c[name])
		}
	}
	return b.String()
}

// stage is one step of a packet's way: what came there either went on or was
// dropped and counted.
type stage struct {
	name string
	came uint64
	went []uint64
}

// settle waits until every stage of a way balances, and stays so.
func settle(t *testing.T, ctx context.Context, read func() (tally, []stage)) tally {
	t.Helper()
	const calm, patience = 50 * time.Millisecond, 20 * time.Second
	deadline := time.Now().Add(patience)
	good := 0
	for {
		c, stages := read()
		wrong := ""
		for _, s := range stages {
			var sum uint64
			for _, n := range s.went {
				sum += n
			}
			if s.came != sum {
				wrong += fmt.Sprintf("%s: %d came, %d went on or were counted as dropped (%d)\n", s.name, s.came, sum, s.went)
			}
		}
		if good++; wrong != "" {
			good = 0
		}
		if good == 2 {
			return c
		}
		if wrong != "" && time.Now().After(deadline) || ctx.Err() != nil {
			t.Fatalf("packets are missing:\n%s%v", wrong, c)
		}
		time.Sleep(calm)
	}
}

// weigh lets from send at least n packets of a size to a MAC address until each
// of them is accounted for.
func (s *scales) weigh(t *testing.T, ctx context.Context, from, to *peer.Testpmd, mac string, size int, n uint64, way func(c tally, sent, received uint64) []stage) {
	t.Helper()
	begin := time.Now()
	command := func(p *peer.Testpmd, lines ...string) {
		for _, line := range lines {
			if _, err := p.Command(ctx, line); err != nil {
				t.Fatal(err)
			}
		}
	}
	command(from, "set fwd txonly", fmt.Sprintf("set txpkts %d", size), "set eth-peer 0 "+mac)
	var had peer.PortStats
	if to != nil {
		command(to, "set fwd rxonly", "start")
		had = portStats(t, ctx, to)
	}
	first := portStats(t, ctx, from).Sent
	pids := []int{s.d.PID(), from.PID()}
	if to != nil {
		pids = append(pids, to.PID())
	}
	before, hungry := s.read(t, ctx), starved(pids...)
	command(from, "start")
	s.progress(t, ctx, from, first+n)
	stopped, err := from.Stop(ctx)
	if err != nil {
		t.Fatal(err)
	}
	sent, received := stopped[0].Sent, uint64(0)
	c := settle(t, ctx, func() (tally, []stage) {
		if to != nil {
			now := portStats(t, ctx, to)
			received = now.Received - had.Received
		}
		c := s.read(t, ctx).since(before)
		return c, way(c, sent, received)
	})
	if to != nil {
		end, err := to.Stop(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if end[0].Received != received {
			t.Errorf("testpmd counted %d packets and says now that it received %d", received, end[0].Received)
		}
		if received == 0 {
			t.Error("no packet arrived")
		}
	}
	t.Logf("%d bytes: %d packets sent in %v, while the threads involved waited %v for a CPU; workers slept %d times, %d until they looked by themselves, %d of them too long\n%v",
		size, sent, time.Since(begin).Round(time.Millisecond), (starved(pids...) - hungry).Round(time.Millisecond),
		c.workers("sleeps"), c.workers("timeouts"), c.workers("late"), c)
}

// progress waits until a testpmd has sent so many packets. When it sends none any more, the test says what the workers do meanwhile: one that sleeps
// has missed a wakeup, one that goes round without work has lost its frames.
func (s *scales) progress(t *testing.T, ctx context.Context, p *peer.Testpmd, sent uint64) {
	t.Helper()
	const patience = 20 * time.Second
	last, at, hungry := uint64(0), time.Now(), time.Duration(0)
	for {
		now := portStats(t, ctx, p).Sent
		switch {
		case now >= sent:
			return
		case now != last:
			last, at, hungry = now, time.Now(), starved(p.PID(), s.d.PID())
		case time.Since(at) > patience || ctx.Err() != nil:
			before, waited := s.read(t, ctx), starved(p.PID(), s.d.PID())-hungry
			time.Sleep(time.Second)
			status, err := s.d.API().Status(ctx)
			t.Fatalf("%d packets of %d were sent, and none for %v, of which %v were waiting for a CPU. Since a second ago:\n%#v\nworkers %+v (%v)",
				now, sent, time.Since(at), waited, s.read(t, ctx).since(before), status.Workers, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func portStats(t *testing.T, ctx context.Context, p *peer.Testpmd) peer.PortStats {
	t.Helper()
	stats, err := p.Stats(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	return stats
}

// The ways, as stages. What the engine cannot send for want of room counts at
// the uplink, and so does what the device refuses, which is among its TX.

func guestToWire(port string) func(tally, uint64, uint64) []stage {
	return func(c tally, sent, _ uint64) []stage {
		busy := c["uplink up0 drop uplink-busy"]
		return []stage{
			{"from the guest to its port", sent, []uint64{c["port "+port+" rx"]}},
			{"from the port to the uplink", c["port "+port+" rx"],
				[]uint64{c["uplink up0 tx"], c.sum("port "+port+" drop", "uplink up0 drop") - busy}},
			{"from the uplink to the device", c["uplink up0 tx"], []uint64{c["host up0 tx"], busy}},
			{"over the wire", c["host up0 tx"], []uint64{c["far up0 rx"], c["far up0 rx_dropped"]}},
			{"to the kernel's VXLAN device", c["far up0 rx"], []uint64{
				c["far vx0 rx"], c["far vx0 rx_errors"], c.sum("far Ip.In", "far Udp.")}},
			{"out of the kernel's VXLAN device", 0, []uint64{c["far vx0 rx_dropped"]}},
		}
	}
}

func wireToGuest(port string) func(tally, uint64, uint64) []stage {
	return func(c tally, sent, received uint64) []stage {
		lost := c["uplink up0 drop uplink-no-frame"] + c["uplink up0 drop uplink-receive-full"]
		return []stage{
			{"into the kernel's VXLAN device", sent, []uint64{c["far vx0 tx"], c["far vx0 tx_dropped"], c["far vx0 tx_errors"]}},
			{"to the wire", sent, []uint64{c["far up0 tx"], c["far up0 tx_dropped"]}},
			{"over the wire", c["far up0 tx"], []uint64{c["host up0 rx"]}},
			{"to the XDP program", c["host up0 rx"], []uint64{c.sum("uplink up0 event xdp-")}},
			{"to the uplink", c["uplink up0 event xdp-redirect"] + c["uplink up0 event xdp-redirect-station"], []uint64{c["uplink up0 rx"]}},
			untaken(c, lost),
			{"from the uplink to the port", c["uplink up0 rx"], []uint64{c["port "+port+" tx"], c.sum("uplink up0 drop", "port "+port+" drop")}},
			{"from the port to its guest", c["port "+port+" tx"], []uint64{received}},
		}
	}
}

// guestToXDP and xdpToGuest end and begin at an AF_XDP socket. The device counts what its program could not redirect as received and dropped.

func guestToXDP(port string) func(tally, uint64, uint64) []stage {
	return func(c tally, sent, received uint64) []stage {
		busy := c["uplink up0 drop uplink-busy"]
		return []stage{
			{"from the guest to its port", sent, []uint64{c["port "+port+" rx"]}},
			{"from the port to the uplink", c["port "+port+" rx"],
				[]uint64{c["uplink up0 tx"], c.sum("port "+port+" drop", "uplink up0 drop") - busy}},
			{"from the uplink to the device", c["uplink up0 tx"], []uint64{c["host up0 tx"], busy}},
			{"over the wire", c["host up0 tx"], []uint64{c["far up0 rx"]}},
			{"to the socket behind the wire", c["far up0 rx"], []uint64{received, c["far up0 rx_dropped"]}},
		}
	}
}

func xdpToGuest(port string) func(tally, uint64, uint64) []stage {
	return func(c tally, sent, received uint64) []stage {
		lost := c["uplink up0 drop uplink-no-frame"] + c["uplink up0 drop uplink-receive-full"]
		return []stage{
			{"from the socket behind the wire to its device", sent, []uint64{c["far up0 tx"], c["far up0 tx_dropped"]}},
			{"over the wire", c["far up0 tx"], []uint64{c["host up0 rx"]}},
			{"to the XDP program", c["host up0 rx"], []uint64{c.sum("uplink up0 event xdp-")}},
			{"to the uplink", c["uplink up0 event xdp-redirect-flat"], []uint64{c["uplink up0 rx"]}},
			untaken(c, lost),
			{"from the uplink to the port", c["uplink up0 rx"], []uint64{c["port "+port+" tx"], c.sum("uplink up0 drop", "port "+port+" drop")}},
			{"from the port to its guest", c["port "+port+" tx"], []uint64{received}},
		}
	}
}

// untaken are the frames that the socket did not take: lost, as it says itself. A device counts them where the program is its own;
// a generic one's are dropped behind its back.
func untaken(c tally, lost uint64) stage {
	came := c["host up0 rx_dropped"]
	if xdpMode() == bpf.Generic {
		came += lost
	}
	return stage{"what the device says the socket did not take", came, []uint64{lost}}
}

func guestToGuest(from, to string) func(tally, uint64, uint64) []stage {
	return func(c tally, sent, received uint64) []stage {
		return []stage{
			{"from the guest to its port", sent, []uint64{c["port "+from+" rx"]}},
			{"from port to port", c["port "+from+" rx"], []uint64{c["port "+to+" tx"], c.sum("port "+from+" drop", "port "+to+" drop")}},
			{"from the port to its guest", c["port "+to+" tx"], []uint64{received}},
		}
	}
}

// soak is how much more is done under SHUNT_SOAK=1.
func soak() uint64 {
	if os.Getenv("SHUNT_SOAK") == "1" {
		return 10
	}
	return 1
}

// A million packets each way, and of others fewer: every single one arrives or
// is counted under a reason, by us or by the device or protocol of the kernel
// that dropped it.
func TestBalance(t *testing.T) {
	ctx := within(t, 5*time.Minute*time.Duration(soak()))
	s := newScales(t, ctx)
	far := pmd(t, peer.TestpmdOptions{Name: "wire", Namespace: s.far, Devices: []string{"net_af_packet0,iface=vx0"}, MemoryMiB: 64,
		Args: []string{"--txonly-multi-flow", "--total-num-mbufs=8192"}})
	for _, mergeable := range []bool{true, false} {
		name := "mergeable"
		if !mergeable {
			name = "not mergeable"
		}
		t.Run(name, func(t *testing.T) {
			a, b := s.guestPMD(t, "a", macA, !mergeable), s.guestPMD(t, "b", macB, !mergeable)
			for _, load := range []struct {
				size int
				n    uint64
			}{{64, 1_000_000}, {1400, 100_000}} {
				n := load.n * soak()
				t.Run(fmt.Sprintf("guest to wire, %d bytes", load.size), func(t *testing.T) {
					s.weigh(t, ctx, a, nil, macFar, load.size, n, guestToWire("a"))
				})
				t.Run(fmt.Sprintf("wire to guest, %d bytes", load.size), func(t *testing.T) {
					s.weigh(t, ctx, far, a, macA, load.size, n, wireToGuest("a"))
				})
				t.Run(fmt.Sprintf("guest to guest, %d bytes", load.size), func(t *testing.T) {
					s.weigh(t, ctx, a, b, macB, load.size, n, guestToGuest("a", "b"))
				})
			}
			for _, p := range []*peer.Testpmd{a, b} {
				if err := p.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// The same with another AF_XDP socket behind the wire, which is not ours: tunnelled frames to it, and a flat network's from it.
func TestBalanceAFXDP(t *testing.T) {
	ctx := within(t, 2*time.Minute*time.Duration(soak()))
	s := newScales(t, ctx)
	far := pmd(t, peer.TestpmdOptions{Name: "wire", Namespace: s.far, Devices: []string{"net_af_xdp0,iface=up0,busy_budget=0"},
		Args: []string{"--txonly-multi-flow", "--total-num-mbufs=16384"}})
	a, f := s.guestPMD(t, "a", macA, false), s.guestPMD(t, "f", macF, false)
	for _, load := range []struct {
		size int
		n    uint64
	}{{64, 200_000}, {1400, 50_000}} {
		n := load.n * soak()
		t.Run(fmt.Sprintf("guest to wire, %d bytes", load.size), func(t *testing.T) {
			s.weigh(t, ctx, a, far, macFar, load.size, n, guestToXDP("a"))
		})
		t.Run(fmt.Sprintf("wire to guest, %d bytes", load.size), func(t *testing.T) {
			s.weigh(t, ctx, far, f, macF, load.size, n, xdpToGuest("f"))
		})
	}
}

// belongings are what a daemon has of the kernel that a front-end's end must give back.
type belongings struct {
	free  int      // frames
	maps  []string // what is mapped and has a name
	files []string // kinds of open files
}

func belongingsOf(t *testing.T, ctx context.Context, d *daemon.Daemon) (b belongings) {
	t.Helper()
	status, err := d.API().Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	b.free = status.Workers[0].FreeFrames
	proc := fmt.Sprintf("/proc/%d/", d.PID())
	text, err := os.ReadFile(proc + "maps")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if words := strings.Fields(line); len(words) > 5 && strings.HasPrefix(words[5], "/") {
			b.maps = append(b.maps, words[1]+" "+strings.Join(words[5:], " "))
		}
	}
	entries, err := os.ReadDir(proc + "fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if to, err := os.Readlink(proc + "fd/" + e.Name()); err == nil {
			kind, _, _ := strings.Cut(to, "[")
			b.files = append(b.files, kind)
		}
	}
	slices.Sort(b.maps)
	slices.Sort(b.files)
	return b
}

// back waits until a daemon has no more than it had.
func back(t *testing.T, ctx context.Context, d *daemon.Daemon, was belongings) {
	t.Helper()
	const patience = 20 * time.Second
	deadline := time.Now().Add(patience)
	for {
		now := belongingsOf(t, ctx, d)
		if now.free == was.free && slices.Equal(now.maps, was.maps) && slices.Equal(now.files, was.files) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("shuntd does not come back to what it had:\nfree frames %d, were %d\nmaps %q\nwere %q\nfiles %q\nwere %q",
				now.free, was.free, now.maps, was.maps, now.files, was.files)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// starved is how long the threads of processes were ready to run and had to
// wait for a CPU so far.
func starved(pids ...int) (sum time.Duration) {
	for _, pid := range pids {
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
		for _, file := range threads {
			var run, wait int64
			text, _ := os.ReadFile(file) // a thread that has just ended has none
			if n, _ := fmt.Sscan(string(text), &run, &wait); n == 2 {
				sum += time.Duration(wait)
			}
		}
	}
	return sum
}

// A front-end is killed in the middle of a burst, the one that sends and the
// one that receives by turns. shuntd gives back all that was the dead one's,
// and traffic flows again when it returns.
func TestFrontEndKilled(t *testing.T) {
	ctx := within(t, 3*time.Minute*time.Duration(soak()))
	s := newScales(t, ctx)
	begin := func(port string) *peer.Testpmd {
		mac, mode, to := macA, "txonly", macB
		if port == "b" {
			mac, mode, to = macB, "rxonly", macA
		}
		p := s.guestPMD(t, port, mac, false)
		for _, line := range []string{"set fwd " + mode, "set txpkts 256,200", "set eth-peer 0 " + to, "start"} {
			if _, err := p.Command(ctx, line); err != nil {
				t.Fatal(err)
			}
		}
		return p
	}
	guests, slowest := map[string]*peer.Testpmd{}, time.Duration(0)
	pids := func() []int { return []int{s.d.PID(), guests["a"].PID(), guests["b"].PID()} }
	flows := func() {
		t.Helper()
		began, hungry, first := time.Now(), starved(pids()...), counters(t, s.d, control.KindPort, "b").TxPackets
		for counters(t, s.d, control.KindPort, "b").TxPackets < first+1000 {
			if ctx.Err() != nil {
				t.Fatal(context.Cause(ctx))
			}
			time.Sleep(time.Millisecond)
		}
		took, waited := time.Since(began), starved(pids()...)-hungry
		slowest = max(slowest, took)
		if took-waited > time.Second {
			t.Errorf("traffic flows again after %v, of which %v were waiting for a CPU", took, waited)
		}
	}
	absent := belongingsOf(t, ctx, s.d)
	guests["a"], guests["b"] = begin("a"), begin("b")
	flows()
	rounds := 10 * int(soak())
	if need.Soak() {
		rounds *= 2
	}
	for i := range rounds {
		victim := []string{"a", "b"}[i%2]
		guests[victim].Kill()
		if err := s.d.WaitPort(ctx, victim, control.StateDisconnected); err != nil {
			t.Fatal(err)
		}
		guests[victim] = begin(victim)
		flows()
	}
	for port, p := range guests {
		p.Kill()
		if err := s.d.WaitPort(ctx, port, control.StateDisconnected); err != nil {
			t.Fatal(err)
		}
	}
	back(t, ctx, s.d, absent)
	t.Logf("%d front-ends were killed; traffic flowed again after %v at most; shuntd has %d free frames, %d named mappings, %d files, as before",
		rounds+2, slowest, absent.free, len(absent.maps), len(absent.files))
}
