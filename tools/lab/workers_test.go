package lab

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/vnet/vnettest"
	headers "github.com/shuntio/shunt/dataplane/wire"
	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/lab/daemon"
	"github.com/shuntio/shunt/tools/lab/netlab"
	"github.com/shuntio/shunt/tools/lab/peer"
	"github.com/shuntio/shunt/tools/need"
)

// crew is a daemon with two workers, whose guests send flows of known length to the kernel behind the wire, and get such from there:
//
//	p0 ─ worker 0 ─┐          host               far
//	p1 ─ worker 1 ─┤ queues of up0 ════════ up0 ─ vx0  10.0.0.100
//	p2 ─ both ─────┘
//
// Addresses are written down everywhere, so that nothing passes but what a test sends.
type crew struct {
	host, far *netlab.Namespace
	d         *daemon.Daemon
	dir       string
	guests    []*hand
}

// hand is a guest of the crew.
type hand struct {
	*vnettest.Guest
	port  string
	mac   [6]byte
	ip    netip.Addr
	pairs int
}

const (
	farAddress  = "10.0.0.100"
	discardPort = 9 // where datagrams are counted
	echoPort    = 7 // where they are sent back
	ipAt        = headers.EthernetLen
	udpAt       = ipAt + 20
	textAt      = udpAt + 8
)

// newCrew starts the daemon on the given cores, with a wire of so many queues.
func newCrew(t *testing.T, ctx context.Context, queues int, workers string, ports ...string) *crew {
	t.Helper()
	c := &crew{host: namespace(t, "host"), far: namespace(t, "far"), dir: t.TempDir()}
	withoutIPv6(t, c.host)
	withoutIPv6(t, c.far)
	err := netlab.Veth(
		netlab.End{Namespace: c.host, Name: "up0", MAC: macUplink, Addrs: []string{"192.0.2.1/24"}},
		netlab.End{Namespace: c.far, Name: "up0", MAC: macRemote, Addrs: []string{"192.0.2.2/24"}}, queues)
	if err != nil {
		t.Fatal(err)
	}
	for _, ns := range []*netlab.Namespace{c.host, c.far} {
		run(t, ns, "ethtool", "-K", "up0", "tx", "off", "tso", "off", "gso", "off")
	}
	known(t, c.host, "up0", "192.0.2.2", macRemote)
	known(t, c.far, "up0", "192.0.2.1", macUplink)
	err = peer.KernelVXLAN(ctx, c.far, peer.VXLAN{
		Name: "vx0", VNI: 100, Device: "up0", Local: "192.0.2.2", Remote: "192.0.2.1", MAC: macFar, MTU: 1450, Options: []string{"nolearning"},
		Addrs: []string{farAddress + "/24"},
	})
	if err != nil {
		t.Fatal(err)
	}
	config := workers + fmt.Sprintf(`
uplinks: [{name: up0, interface: up0, address: 192.0.2.1}]
networks:
  - {name: blue, vni: 100, uplink: up0, learning: false, entries: [{mac: %q, vtep: 192.0.2.2}]}
ports:
`, macFar)
	for i, placed := range ports {
		g := &hand{port: fmt.Sprintf("p%d", i), mac: [6]byte{0x52, 0x54, 0, 0, 1, byte(i)}, ip: netip.AddrFrom4([4]byte{10, 0, 0, byte(10 + i)}),
			pairs: 1 + strings.Count(placed, ",")}
		c.guests = append(c.guests, g)
		known(t, c.far, "vx0", g.ip.String(), net.HardwareAddr(g.mac[:]).String())
		config += fmt.Sprintf("  - {name: %s, network: blue, socket: %q, mac: %q, queues: %d, workers: [%s]}\n",
			g.port, c.socket(g.port), net.HardwareAddr(g.mac[:]), g.pairs, placed)
	}
	c.d = start(t, c.host, "shuntd", config)
	for _, g := range c.guests {
		g.join(t, c.socket(g.port))
	}
	return c
}

func (c *crew) socket(port string) string { return filepath.Join(c.dir, port+".sock") }

// join connects the guest until the end of the test.
func (g *hand) join(t *testing.T, socket string) {
	t.Helper()
	var err error
	if g.Guest, err = vnettest.New(vnettest.Options{Pairs: g.pairs, QueueSize: 1024}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Close)
	front, err := vhostuser.DialWait(within(t, 20*time.Second), socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { front.Close() })
	err = front.Negotiate(g.Features()|vhostuser.FeatureProtocol, vhostuser.DefaultProtocolFeatures)
	if err == nil {
		err = front.SetMemory(g.Region())
	}
	for q := 0; q < 2*g.pairs && err == nil; q++ {
		if err = front.StartVring(g.Vring(q)); err == nil {
			err = front.Enable(q, true)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

// datagram is one of the guest's; its text begins with a number.
func (g *hand) datagram(mac [6]byte, ip netip.Addr, from, to uint16, number uint64, length int) []byte {
	f := make([]byte, textAt+max(8, length))
	headers.Ethernet(f).Set(headers.MACFrom(mac), headers.MACFrom(g.mac), headers.EtherTypeIPv4)
	headers.IPv4(f[ipAt:]).Set(headers.IPv4Fields{
		TotalLen: uint16(len(f) - ipAt), TTL: 64, Protocol: headers.ProtoUDP, Source: g.ip.As4(), Destination: ip.As4(),
	})
	headers.UDP(f[udpAt:]).Set(from, to, uint16(len(f)-udpAt), 0)
	binary.BigEndian.PutUint64(f[textAt:], number)
	return f
}

// toFar is a datagram for the kernel behind the wire.
func (g *hand) toFar(from, to uint16, number uint64, length int) []byte {
	mac, _ := net.ParseMAC(macFar)
	return g.datagram([6]byte(mac), netip.MustParseAddr(farAddress), from, to, number, length)
}

// listen counts datagrams that come to a UDP port behind the wire, and with echo sends them back.
func (c *crew) listen(t *testing.T, port int, echo bool) *atomic.Uint64 {
	t.Helper()
	var socket *net.UDPConn
	err := c.far.Do(func() (err error) {
		socket, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP(farAddress), Port: port})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { socket.Close() })
	room, err := socket.SyscallConn()
	if err == nil { // for all of a test's, should this process get no CPU meanwhile
		err = room.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20) })
	}
	if err != nil {
		t.Fatal(err)
	}
	came := new(atomic.Uint64)
	go func() {
		for text := make([]byte, 2048); ; {
			n, from, err := socket.ReadFromUDPAddrPort(text)
			if err != nil {
				return
			}
			came.Add(1)
			if echo {
				_, _ = socket.WriteToUDPAddrPort(text[:n], from)
			}
		}
	}()
	return came
}

// flow sends n datagrams from one socket behind the wire to a guest.
func (c *crew) flow(t *testing.T, to *hand, n int) {
	t.Helper()
	var socket net.Conn
	err := c.far.Do(func() (err error) {
		socket, err = net.Dial("udp4", net.JoinHostPort(to.ip.String(), strconv.Itoa(discardPort)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	for range n {
		if _, err := socket.Write(make([]byte, 400)); err != nil {
			t.Fatal(err)
		}
	}
}

// take empties the guest's receiveqs and tells how many frames each had.
func (g *hand) take(t *testing.T) (n []int) {
	t.Helper()
	for _, p := range g.Pairs {
		had := 0
		for {
			f, err := p.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if f == nil {
				break
			}
			had++
		}
		n = append(n, had)
	}
	return n
}

// count is what `shuntctl stats -o json` says, of each worker: packets that came in by the uplink's sockets of that worker, that left by them, and that a
// port's queues of that worker had.
type count struct {
	upRx, upTx       [2]uint64
	portRx, portTx   map[string][2]uint64
	crossed, dropped uint64
	queues           map[int]bool // of the uplink, that have received anything
}

func (c *crew) count(t *testing.T, ctx context.Context) count {
	t.Helper()
	var stats control.Stats
	text := c.shuntctl(t, ctx, "stats", "-o", "json")
	if err := json.Unmarshal([]byte(text), &stats); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	n := count{portRx: map[string][2]uint64{}, portTx: map[string][2]uint64{}, queues: map[int]bool{}}
	for _, o := range stats.Objects {
		n.dropped += o.Dropped()
		switch o.Kind {
		case control.KindWorker:
			n.crossed += o.More["crossed"]
		case control.KindUplink:
			for _, q := range o.Queues {
				n.upRx[q.Worker] += q.RxPackets
				n.upTx[q.Worker] += q.TxPackets
				if q.RxPackets > 0 {
					n.queues[q.Queue] = true
				}
			}
		case control.KindPort:
			rx, tx := [2]uint64{}, [2]uint64{}
			for _, q := range o.Queues {
				rx[q.Worker] += q.RxPackets
				tx[q.Worker] += q.TxPackets
			}
			n.portRx[o.Name], n.portTx[o.Name] = rx, tx
		}
	}
	return n
}

func (c *crew) shuntctl(t *testing.T, ctx context.Context, args ...string) string {
	t.Helper()
	shuntctl, err := buildShuntctl()
	if err != nil {
		t.Fatal(err, shuntctl)
	}
	out, err := exec.CommandContext(ctx, shuntctl, append([]string{"--socket", c.d.Socket()}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("shuntctl %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// less is what was counted since.
func (n count) less(before count) count {
	minus := func(a, b [2]uint64) [2]uint64 { return [2]uint64{a[0] - b[0], a[1] - b[1]} }
	d := count{portRx: map[string][2]uint64{}, portTx: map[string][2]uint64{}, queues: n.queues, crossed: n.crossed - before.crossed, dropped: n.dropped - before.dropped}
	d.upRx, d.upTx = minus(n.upRx, before.upRx), minus(n.upTx, before.upTx)
	for name := range n.portRx {
		d.portRx[name], d.portTx[name] = minus(n.portRx[name], before.portRx[name]), minus(n.portTx[name], before.portTx[name])
	}
	return d
}

// counted waits until the counters have changed as wanted.
func (c *crew) counted(t *testing.T, ctx context.Context, before count, what string, as func(count) bool) count {
	t.Helper()
	const patience = 20 * time.Second
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		now := c.count(t, ctx).less(before)
		if as(now) {
			return now
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			t.Fatalf("%s: %+v", what, now)
		}
	}
}

// only is n packets at one worker.
func only(worker int, n uint64) (at [2]uint64) {
	at[worker] = n
	return at
}

// Each flow is served by the worker that has its port, from the socket that its packets come in by to the queue of its guest, and back; with more ports
// and more queues than workers, and with fewer queues. What has to cross is counted, and nothing else crosses.
func TestFlowsOnWorkers(t *testing.T) {
	for _, queues := range []int{1, 4} {
		t.Run(fmt.Sprintf("%d queues", queues), func(t *testing.T) {
			ctx := within(t, 2*time.Minute)
			c := newCrew(t, ctx, queues, "workers: {cpus: [0, 1]}", "0", "1", "0, 1")
			arrived := c.listen(t, discardPort, false)
			c.fromWire(t, ctx, queues)
			c.toWire(t, ctx, queues, arrived)
			c.between(t, ctx)
			if n := c.count(t, ctx); n.dropped != 0 {
				t.Errorf("%d packets were dropped:\n%s", n.dropped, c.shuntctl(t, ctx, "drops"))
			}
		})
	}
}

// flowLength is how many packets a flow has. No ring on the way is so short that they do not fit, whoever is late.
const flowLength = 50

// fromWire sends flows from the kernel to the guests.
func (c *crew) fromWire(t *testing.T, ctx context.Context, queues int) {
	t.Helper()
	for _, g := range c.guests[:2] {
		worker := int(g.mac[5])
		before := c.count(t, ctx)
		for range 8 {
			c.flow(t, g, flowLength)
		}
		const n = 8 * flowLength
		got := c.counted(t, ctx, before, "packets from the wire do not come to "+g.port, func(d count) bool { return d.portTx[g.port] == only(worker, n) })
		if got.upRx != only(worker, n) || got.crossed != 0 {
			t.Errorf("%d packets from the wire to %s, of worker %d: workers received %d, %d crossed", n, g.port, worker, got.upRx, got.crossed)
		}
		if took := g.take(t); took[0] != n {
			t.Errorf("the guest of %s got %d packets of %d", g.port, took[0], n)
		}
	}
	g, flows, had := c.guests[2], 16, [2]int{}
	for range flows {
		before := c.count(t, ctx)
		c.flow(t, g, flowLength)
		got := c.counted(t, ctx, before, "packets from the wire do not come to "+g.port, func(d count) bool {
			return d.portTx[g.port][0]+d.portTx[g.port][1] == flowLength
		})
		worker := 0
		if got.upRx[1] > 0 {
			worker = 1
		}
		if got.upRx != only(worker, flowLength) || got.portTx[g.port] != only(worker, flowLength) || got.crossed != 0 {
			t.Errorf("a flow from the wire to both workers: they received %d, gave the guest %d, %d crossed", got.upRx, got.portTx[g.port], got.crossed)
		}
		had[worker]++
	}
	if took := g.take(t); took[0] != had[0]*flowLength || took[1] != had[1]*flowLength {
		t.Errorf("the guest of %s got %d by its pairs, which the workers had %d flows for", g.port, took, had)
	}
	used := len(c.count(t, ctx).queues)
	if had[0] == 0 || had[1] == 0 || used > queues || queues > 1 && used == 1 {
		t.Errorf("of %d flows the workers had %d, and %d of %d queues were used", flows, had, used, queues)
	}
	t.Logf("from the wire: %d flows to one worker each, none crossed; of %d to both, each had %d; %d of %d queues were used", 16, flows, had, used, queues)
}

// toWire sends flows from the guests to the kernel. A worker that has a queue of the uplink uses that; the other's packets cross.
func (c *crew) toWire(t *testing.T, ctx context.Context, queues int, arrived *atomic.Uint64) {
	t.Helper()
	for _, g := range c.guests {
		for i, p := range g.Pairs {
			worker := (int(g.mac[5]) + i) % 2
			before, came := c.count(t, ctx), arrived.Load()
			const n = 8 * flowLength
			for k := range n {
				if err := p.Send(g.toFar(uint16(2000+k%8), discardPort, uint64(k), 400)); err != nil {
					t.Fatal(err)
				}
			}
			way, crossed := worker, uint64(0)
			if queues == 1 && worker == 1 {
				way, crossed = 0, n
			}
			got := c.counted(t, ctx, before, fmt.Sprintf("packets of pair %d of %s do not come to the wire", i, g.port), func(d count) bool {
				return d.upTx[0]+d.upTx[1] == n && arrived.Load()-came == n
			})
			if got.portRx[g.port] != only(worker, n) || got.upTx != only(way, n) || got.crossed != crossed {
				t.Errorf("%d packets of pair %d of %s: workers took %d, sent %d, %d crossed; want all at %d, sent at %d, %d to cross",
					n, i, g.port, got.portRx[g.port], got.upTx, got.crossed, worker, way, crossed)
			}
		}
	}
	t.Logf("to the wire: every packet of 4 queue pairs at its worker")
}

// between sends from guest to guest.
func (c *crew) between(t *testing.T, ctx context.Context) {
	t.Helper()
	const n = 8 * flowLength
	for _, way := range [][2]int{{0, 1}, {1, 0}, {0, 2}, {1, 2}} {
		from, to := c.guests[way[0]], c.guests[way[1]]
		before := c.count(t, ctx)
		for k := range n {
			if err := from.Send(from.datagram(to.mac, to.ip, uint16(2000+k%8), discardPort, uint64(k), 400)); err != nil {
				t.Fatal(err)
			}
		}
		worker, crossed := way[1], uint64(n)
		if way[1] == 2 { // which has a pair there
			worker, crossed = way[0], 0
		}
		got := c.counted(t, ctx, before, "packets do not come from guest to guest", func(d count) bool { return d.portTx[to.port] == only(worker, n) })
		if got.portRx[from.port] != only(way[0], n) || got.crossed != crossed {
			t.Errorf("from %s to %s: taken at %d, %d crossed, want %d", from.port, to.port, got.portRx[from.port], got.crossed, crossed)
		}
		to.take(t)
	}
	t.Logf("from guest to guest: %d packets each way crossed where the workers differ, none else", n)
}

// conversation keeps a few questions of a guest's on their way to the kernel's echo, until n were answered. All are numbered, and one that is answered twice
// or never fails the test.
func (g *hand) conversation(t *testing.T, ctx context.Context, n uint64) {
	t.Helper()
	const patience, window = 20 * time.Second, 64
	seen := make([]bool, n)
	sent, answered := uint64(0), uint64(0)
	for quiet := time.Now(); answered < n; {
		for sent < n && sent < answered+window {
			if err := g.Pairs[sent%uint64(g.pairs)].Send(g.toFar(uint16(3000+sent%16), echoPort, sent, 200)); err != nil {
				t.Fatal(err)
			}
			sent++
		}
		before := answered
		for _, p := range g.Pairs {
			for {
				f, err := p.Recv()
				if err != nil {
					t.Fatal(err)
				}
				if f == nil {
					break
				}
				if len(f) < textAt+8 || binary.BigEndian.Uint16(f[udpAt:]) != echoPort {
					t.Fatalf("an answer of %d bytes: %x", len(f), f)
				}
				number := binary.BigEndian.Uint64(f[textAt:])
				if number >= sent || seen[number] {
					t.Fatalf("the answer to question %d of %d comes again", number, sent)
				}
				seen[number] = true
				answered++
			}
		}
		switch {
		case answered > before:
			quiet = time.Now()
		case time.Since(quiet) > patience || ctx.Err() != nil:
			t.Fatalf("%d questions were sent, %d answered, and none for %v", sent, answered, time.Since(quiet))
		default:
			time.Sleep(50 * time.Microsecond)
		}
	}
}

// wander moves a port from workers to workers, over and over, until it is stopped, and then tells how often.
func (c *crew) wander(t *testing.T, ctx context.Context, port string, to [][]int) (stop func() (moves int)) {
	t.Helper()
	quit, ended := make(chan struct{}), make(chan error, 1)
	moves := 0
	go func() {
		for {
			select {
			case <-quit:
				ended <- nil
				return
			case <-time.After(time.Millisecond):
			}
			if _, err := c.d.API().Move(ctx, port, to[moves%len(to)]); err != nil {
				ended <- err
				return
			}
			moves++
		}
	}()
	return func() int {
		t.Helper()
		close(quit)
		if err := <-ended; err != nil {
			t.Error(err)
		}
		return moves
	}
}

// A port moves between workers while its guest talks with the kernel behind the wire. No packet is lost, none comes twice, and what comes after a move is
// served by the other worker.
func TestPortMoves(t *testing.T) {
	for _, queues := range []int{1, 4} {
		t.Run(fmt.Sprintf("%d queues", queues), func(t *testing.T) {
			ctx := within(t, 3*time.Minute)
			n := uint64(20_000)
			if need.Soak() {
				n = 1_000_000
			}
			c := newCrew(t, ctx, queues, "workers: {cpus: [0, 1]}", "0", "1", "0, 1")
			t.Cleanup(func() {
				if t.Failed() {
					ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
					defer cancel()
					t.Logf("the end:\n%s%s", c.shuntctl(t, ctx, "stats"), c.shuntctl(t, ctx, "drops"))
				}
			})
			c.listen(t, echoPort, true)
			for _, way := range []struct {
				guest int
				to    [][]int
			}{{0, [][]int{{1}, {0}}}, {2, [][]int{{1, 0}, {0}, {1}, {0, 1}}}} {
				g, start := c.guests[way.guest], c.count(t, ctx)
				stop := c.wander(t, ctx, g.port, way.to)
				g.conversation(t, ctx, n)
				moves := stop()
				d := c.counted(t, ctx, start, "not as many came and went as were asked and answered", func(d count) bool {
					return sum(d.portRx[g.port]) == n && sum(d.portTx[g.port]) == n
				})
				if d.dropped != 0 || moves < 10 {
					t.Errorf("%d questions of %s, moved %d times, and %d packets were dropped:\n%s", n, g.port, moves, d.dropped, c.shuntctl(t, ctx, "drops"))
				}
				t.Logf("%d questions and answers of %s, moved %d times: none was lost, none came twice, %d crossed", n, g.port, moves, d.crossed)
			}
			c.shuntctl(t, ctx, "move", "p0", "1")
			before := c.count(t, ctx)
			c.guests[0].conversation(t, ctx, 500)
			if d := c.count(t, ctx).less(before); d.portRx["p0"] != only(1, 500) || d.portTx["p0"] != only(1, 500) || d.upRx != only(1, 500) {
				t.Errorf("of 500 questions since the port is worker 1's, the workers took %d, and of the answers %d from the wire, and gave its guest %d",
					d.portRx["p0"], d.upRx, d.portTx["p0"])
			}
		})
	}
}

func sum(n [2]uint64) uint64 { return n[0] + n[1] }
