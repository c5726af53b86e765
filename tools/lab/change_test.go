package lab

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/config"
	"github.com/shuntio/shunt/tools/lab/daemon"
	"github.com/shuntio/shunt/tools/lab/netlab"
	"github.com/shuntio/shunt/tools/lab/peer"
	"github.com/shuntio/shunt/tools/need"
)

// busySite is a daemon whose configuration changes while its neighbours talk:
//
//	testpmd a ─┐ circling frames             host           far
//	testpmd b ─┤                           ┌ up0 ═══════ up0 ─ vx0 (VNI 100), vx1 (VNI 200)
//	testpmd c ─┴─ vhost-user ─── shuntd ───┴ up1 ═══════ up1
//	           └ sends back what vx0's kernel asks
//
// a, b and c are in network blue, which stays.
type busySite struct {
	host, far *netlab.Namespace
	d         *daemon.Daemon
	dir       string
	a, b, c   *peer.Testpmd
}

const macC = "52:54:00:00:01:0c"

func newBusySite(t *testing.T, ctx context.Context) *busySite {
	t.Helper()
	need.Program(t, "dpdk-testpmd")
	s := &busySite{host: namespace(t, "host"), far: namespace(t, "far"), dir: t.TempDir()}
	withoutIPv6(t, s.far) // its multicasts would reach the guests, who send back whatever comes
	for i, device := range []string{"up0", "up1"} {
		wire(t,
			netlab.End{Namespace: s.host, Name: device, Addrs: []string{fmt.Sprintf("192.0.%d.1/24", 2+i)}},
			netlab.End{Namespace: s.far, Name: device, Addrs: []string{fmt.Sprintf("192.0.%d.2/24", 2+i)}})
	}
	for i, vni := range []int{100, 200} {
		name := fmt.Sprintf("vx%d", i)
		err := peer.KernelVXLAN(ctx, s.far, peer.VXLAN{
			Name: name, VNI: vni, Device: "up0", Local: "192.0.2.2", Remote: "192.0.2.1", MAC: macFar, MTU: 1450, Addrs: []string{fmt.Sprintf("10.0.%d.2/24", i)},
		})
		if err != nil {
			t.Fatal(err)
		}
		known(t, s.far, name, fmt.Sprintf("10.0.%d.1", i), macC)
	}
	s.d = start(t, s.host, "shuntd", fmt.Sprintf(`
workers: {cpus: [1]}
uplinks: [{name: up0, interface: up0, address: 192.0.2.1}]
networks: [{name: blue, vni: 100, uplink: up0, flood: [192.0.2.2]}]
ports:
  - {name: a, network: blue, socket: %q, mac: %q}
  - {name: b, network: blue, socket: %q, mac: %q}
  - {name: c, network: blue, socket: %q, mac: %q}
`, s.socket("a"), macA, s.socket("b"), macB, s.socket("c"), macC))
	s.a, s.b, s.c = s.pmd(t, "a", macA, "macswap"), s.pmd(t, "b", macB, "macswap"), s.pmd(t, "c", macC, "5tswap")
	for _, p := range []*peer.Testpmd{s.b, s.c} {
		if err := p.Start(ctx); err != nil {
			t.Fatal(err)
		}
	}
	for _, line := range []string{"set eth-peer 0 " + macB, "start tx_first 1"} { // 32 frames, which go round and round
		if _, err := s.a.Command(ctx, line); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func (s *busySite) socket(port string) string { return filepath.Join(s.dir, port+".sock") }

func (s *busySite) pmd(t *testing.T, port, mac, mode string) *peer.Testpmd {
	t.Helper()
	return pmd(t, peer.TestpmdOptions{
		Name: port, MemoryMiB: 64, Args: []string{"--total-num-mbufs=8192"}, Mode: mode,
		Devices: []string{peer.VirtioUser{Path: s.socket(port), MAC: mac}.String()},
	})
}

// talk has the far kernel ask guest c without pause, by way of one of its VXLAN
// devices; what c does not send back is lost.
type talk struct {
	stop  chan struct{}
	ended chan error
	sent  int
	lost  []uint32

	answered atomic.Int64
}

// talkRound is how many questions are under way at once, and answerTime how long
// one may take on a busy machine.
const (
	talkRound  = 16
	answerTime = 10 * time.Second
)

func (s *busySite) talk(t *testing.T, device int, patience time.Duration) *talk {
	t.Helper()
	k := &talk{stop: make(chan struct{}), ended: make(chan error, 1)}
	var conn *net.UDPConn
	err := s.far.Do(func() (err error) {
		conn, err = net.DialUDP("udp4", &net.UDPAddr{IP: net.IPv4(10, 0, byte(device), 2), Port: 7000}, &net.UDPAddr{IP: net.IPv4(10, 0, byte(device), 1), Port: 7})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer conn.Close()
		k.ended <- k.run(conn, patience)
	}()
	return k
}

func (k *talk) run(conn *net.UDPConn, patience time.Duration) error {
	question, answer := make([]byte, 100), make([]byte, 1500)
	for {
		select {
		case <-k.stop:
			return nil
		case <-time.After(time.Millisecond):
		}
		open := map[uint32]bool{}
		for range talkRound {
			binary.BigEndian.PutUint32(question, uint32(k.sent))
			if _, err := conn.Write(question); err != nil {
				return err
			}
			open[uint32(k.sent)] = true
			k.sent++
		}
		if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		for len(open) > 0 {
			n, err := conn.Read(answer)
			if err != nil {
				break
			}
			if n == len(question) {
				delete(open, binary.BigEndian.Uint32(answer))
				k.answered.Add(1)
			}
		}
		for n := range open {
			k.lost = append(k.lost, n)
		}
	}
}

// end stops asking and returns how much was asked and lost.
func (k *talk) end(t *testing.T) (sent, lost int) {
	t.Helper()
	close(k.stop)
	if err := <-k.ended; err != nil {
		t.Error(err)
	}
	return k.sent, len(k.lost)
}

// change applies a configuration that everything in it must accept.
func (s *busySite) change(t *testing.T, ctx context.Context, edit func(*config.Config)) []control.Change {
	t.Helper()
	c, err := s.d.API().Config(ctx)
	if err != nil {
		t.Fatal(err)
	}
	edit(c)
	changes, err := s.d.API().Apply(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	return changes
}

// circling reports whether a's and b's frames go round still, none of them lost.
func (s *busySite) circling(t *testing.T) {
	t.Helper()
	a, b := counters(t, s.d, control.KindPort, "a"), counters(t, s.d, control.KindPort, "b")
	for begin := time.Now(); counters(t, s.d, control.KindPort, "a").RxPackets == a.RxPackets; time.Sleep(time.Millisecond) {
		if time.Since(begin) > answerTime {
			t.Fatal("no frame circles between a and b any more")
		}
	}
	if a.Dropped()+b.Dropped() > 0 {
		t.Errorf("of the frames that circle between a and b some were dropped: %v, %v", a.Drops, b.Drops)
	}
}

// Everything changes while packets flow, and nobody whom the change does not
// concern loses one.
func TestChangesUnderTraffic(t *testing.T) {
	ctx := within(t, 3*time.Minute)
	s := newBusySite(t, ctx)
	before := belongingsOf(t, ctx, s.d)
	t.Run("add and remove", func(t *testing.T) { s.addAndRemove(t, ctx) })
	t.Run("flood list and entries", func(t *testing.T) { s.floodAndEntries(t, ctx) })
	t.Run("another VNI", func(t *testing.T) { s.anotherVNI(t, ctx) })
	t.Run("another uplink", func(t *testing.T) { s.anotherUplink(t, ctx) })
	t.Run("delete a port whose guest sends", func(t *testing.T) { s.deletePort(t, ctx) })
	for _, p := range []*peer.Testpmd{s.a, s.b, s.c} { // their frames are on the way still
		if _, err := p.Stop(ctx); err != nil {
			t.Error(err)
		}
	}
	back(t, ctx, s.d, before)
}

// addAndRemove lets everything come and go beside blue.
func (s *busySite) addAndRemove(t *testing.T, ctx context.Context) {
	k := s.talk(t, 0, answerTime)
	begin, rounds := time.Now(), 50*int(soak())
	port := func(name, network string, n int) config.Port {
		return config.Port{Name: name, Network: network, Socket: s.socket(name), MAC: config.MAC{0x52, 0x54, 0, 0, 2, byte(n)}, AntiSpoof: true}
	}
	for range rounds / 2 {
		s.change(t, ctx, func(c *config.Config) {
			c.Uplinks = append(c.Uplinks, config.Uplink{Name: "up1", Interface: "up1"})
			c.Networks = append(c.Networks,
				config.Network{Name: "red", VNI: 300, Uplink: "up1", Learning: true},
				config.Network{Name: "green", VNI: 400, Uplink: "up0", Learning: true},
				config.Network{Name: "flat", Uplink: "up0"})
			c.Ports = append(c.Ports, port("r", "red", 1), port("g", "green", 2), port("f", "flat", 3), port("x", "blue", 4))
		})
		s.change(t, ctx, func(c *config.Config) {
			c.Uplinks, c.Networks, c.Ports = c.Uplinks[:1], c.Networks[:1], c.Ports[:3]
		})
	}
	took := time.Since(begin)
	s.circling(t)
	sent, lost := k.end(t)
	t.Logf("%d configurations in %v; %d questions, %d lost; a circles %d frames", rounds, took.Round(time.Millisecond), sent, lost, counters(t, s.d, control.KindPort, "a").RxPackets)
	if lost > 0 || sent < rounds {
		t.Errorf("of %d questions %d got no answer: %v", sent, lost, k.lost)
	}
}

// floodAndEntries changes how blue finds the far kernel; each way is enough.
func (s *busySite) floodAndEntries(t *testing.T, ctx context.Context) {
	k := s.talk(t, 0, answerTime)
	mac, err := net.ParseMAC(macFar)
	if err != nil {
		t.Fatal(err)
	}
	status, err := s.d.API().Network(ctx, "blue")
	if err != nil {
		t.Fatal(err)
	}
	vtep := status.Config.Flood[0]
	entry := config.Entry{MAC: config.MAC(mac), VTEP: vtep}
	ways := []func(*config.Network){
		func(n *config.Network) { n.Entries = []config.Entry{entry} },
		func(n *config.Network) { n.Flood = nil },
		func(n *config.Network) { n.Learning = false },
		func(n *config.Network) { n.Flood = slices.Clone(status.Config.Flood) },
		func(n *config.Network) { n.Entries = nil },
		func(n *config.Network) { n.Learning = true },
		func(n *config.Network) { n.MTU = 1400 },
		func(n *config.Network) { n.MTU = 0 },
	}
	for i := range 20 * len(ways) * int(soak()) {
		s.change(t, ctx, func(c *config.Config) { ways[i%len(ways)](&c.Networks[0]) })
	}
	s.circling(t)
	if sent, lost := k.end(t); lost > 0 {
		t.Errorf("of %d questions %d got no answer", sent, lost)
	}
}

// anotherVNI moves blue to another VNI and back: its guests stay connected, and talk to whoever is there.
func (s *busySite) anotherVNI(t *testing.T, ctx context.Context) {
	for i := range 6 {
		vni, device := []uint32{200, 100}[i%2], 1-i%2
		s.change(t, ctx, func(c *config.Config) { c.Networks[0].VNI = vni })
		k := s.talk(t, device, answerTime)
		nobody := s.talk(t, 1-device, 100*time.Millisecond)
		time.Sleep(100 * time.Millisecond)
		if sent, lost := k.end(t); lost > 0 || sent == 0 {
			t.Errorf("in VNI %d: of %d questions %d got no answer", vni, sent, lost)
		}
		if sent, lost := nobody.end(t); lost < sent {
			t.Errorf("in the VNI left: of %d questions %d got an answer", sent, sent-lost)
		}
		s.circling(t)
	}
}

// anotherUplink changes the uplink itself, which goes and comes while c is asked: answers come again at once, and what circles on
// this host notices nothing.
func (s *busySite) anotherUplink(t *testing.T, ctx context.Context) {
	for _, mode := range []config.BindMode{config.BindCopy, config.BindAuto, config.BindCopy, config.BindAuto} {
		during := s.talk(t, 0, 100*time.Millisecond)
		begin := time.Now()
		s.change(t, ctx, func(c *config.Config) { c.Uplinks[0].Mode = mode })
		took := time.Since(begin)
		begin = time.Now()
		for n := during.answered.Load(); during.answered.Load() < n+2*talkRound; time.Sleep(time.Millisecond) {
			if time.Since(begin) > answerTime {
				t.Fatalf("no answer comes any more")
			}
		}
		sent, lost := during.end(t)
		t.Logf("%v to change, answers again %v later; %d of %d lost", took.Round(time.Millisecond), time.Since(begin).Round(time.Millisecond), lost, sent)
		s.circling(t)
	}
}

// deletePort takes away a port while its guest sends, and gives it back.
func (s *busySite) deletePort(t *testing.T, ctx context.Context) {
	k := s.talk(t, 0, answerTime)
	port := config.Port{Name: "x", Network: "blue", Socket: s.socket("x"), MAC: config.MAC{0x52, 0x54, 0, 0, 2, 4}, AntiSpoof: true}
	for range 3 {
		if _, err := s.d.API().PutPort(ctx, port); err != nil {
			t.Fatal(err)
		}
		x := s.pmd(t, "x", port.MAC.String(), "txonly")
		if _, err := x.Command(ctx, "set eth-peer 0 52:54:00:00:02:05"); err != nil { // nobody: it goes to the wire
			t.Fatal(err)
		}
		if err := x.Start(ctx); err != nil {
			t.Fatal(err)
		}
		for counters(t, s.d, control.KindPort, "x").RxPackets < 1000 {
			if ctx.Err() != nil {
				t.Fatal(context.Cause(ctx))
			}
			time.Sleep(time.Millisecond)
		}
		if _, err := s.d.API().Delete(ctx, control.KindPort, "x"); err != nil {
			t.Fatal(err)
		}
		x.Kill()
	}
	s.circling(t)
	sent, lost := k.end(t)
	t.Logf("%d questions, %d lost", sent, lost)
	c := counters(t, s.d, control.KindUplink, "up0")
	if room := c.Drops["uplink-ring-full"] + c.Drops["uplink-no-frame"]; lost > 0 && room == 0 {
		t.Errorf("of %d questions %d got no answer; the uplink dropped %v", sent, lost, c.Drops)
	}
}
