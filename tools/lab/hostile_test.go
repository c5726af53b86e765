package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/vnet"
	"github.com/shuntio/shunt/dataplane/vnet/vnettest"
	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/lab/daemon"
	"github.com/shuntio/shunt/tools/need"
)

// arena is a daemon of two workers with hostile guests and two neighbours in one network:
//
//	neighbour 1 ── worker 0 ─┐           ┌─ worker 1 ── neighbour 2      numbers to each other, and to everybody
//	                         ├─ shuntd ──┤
//	    villains ── both ────┘           └─ worker 1 ── witness          takes whatever it is sent
//
// Each attack has a port of its own, since the log lines of a port are limited.
type arena struct {
	d       *daemon.Daemon
	dir     string
	ports   int // given to attacks
	free    int
	pair    *bystanders
	witness *vnettest.Guest
}

const (
	arenaPorts = 90
	macWitness = "52:54:00:00:03:00"
)

func (a *arena) socket(port string) string { return filepath.Join(a.dir, port+".sock") }

func newArena(t *testing.T) *arena {
	t.Helper()
	a := &arena{dir: t.TempDir(), ports: arenaPorts}
	var config strings.Builder
	fmt.Fprintf(&config, `
workers: {cpus: [0, 1]}
networks: [{name: blue}]
ports:
  - {name: n1, network: blue, socket: %q, mac: %q, workers: [0]}
  - {name: n2, network: blue, socket: %q, mac: %q, workers: [1]}
  - {name: witness, network: blue, socket: %q, mac: %q, workers: [1], coalesce: false}
`, a.socket("n1"), macA, a.socket("n2"), macB, a.socket("witness"), macWitness)
	for i := range arenaPorts {
		fmt.Fprintf(&config, "  - {name: v%d, network: blue, socket: %q, mac: %q, queues: 2, workers: [%d, %d]}\n",
			i, a.socket(fmt.Sprintf("v%d", i)), villainMAC(i), i%2, (i+1)%2)
	}
	a.d = start(t, namespace(t, "host"), "shuntd", config.String())
	a.pair = startBystanders(t, [2]string{a.socket("n1"), a.socket("n2")}, [2]string{macA, macB})
	a.startWitness(t)
	return a
}

func villainMAC(i int) string { return fmt.Sprintf("52:54:00:00:04:%02x", i) }

// startWitness drains the port that hostile guests may send to.
func (a *arena) startWitness(t *testing.T) {
	t.Helper()
	a.witness = a.guest(t, vnettest.Options{QueueSize: 1024})
	f := a.join(t, "witness", a.witness)
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			if n, err := a.witness.Sink(1024); n == 0 || err != nil {
				select {
				case <-stop:
					return
				case <-time.After(200 * time.Microsecond):
				}
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-ended; f.Close() })
}

// guest makes one that is closed with the test.
func (a *arena) guest(t *testing.T, o vnettest.Options) *vnettest.Guest {
	t.Helper()
	g, err := vnettest.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Close)
	return g
}

// join connects a guest to a port as it should be done.
func (a *arena) join(t *testing.T, port string, g *vnettest.Guest) *vhostuser.Frontend {
	t.Helper()
	f, err := frontEnd(within(t, 20*time.Second), a.socket(port), g, vhostuser.DefaultProtocolFeatures)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// dial is join for those who want to be rude from the beginning.
func (a *arena) dial(t *testing.T, port string) *vhostuser.Frontend {
	t.Helper()
	f, err := vhostuser.DialWait(within(t, 20*time.Second), a.socket(port))
	if err != nil {
		t.Fatal(err)
	}
	f.Timeout = 20 * time.Second
	t.Cleanup(func() { f.Close() })
	return f
}

// next is a port that nobody has used.
func (a *arena) next(t *testing.T) (name string, i int) {
	t.Helper()
	if a.free == a.ports {
		t.Fatal("the arena has no more ports")
	}
	a.free++
	return fmt.Sprintf("v%d", a.free-1), a.free - 1
}

// names waits for a line of the log that has a port and a reason.
func (a *arena) names(t *testing.T, port, reason string) {
	t.Helper()
	for ctx := within(t, 20*time.Second); ; time.Sleep(2 * time.Millisecond) {
		for line := range strings.Lines(a.d.Log()) {
			if strings.Contains(line, "port="+port+" ") && strings.Contains(line, reason) {
				return
			}
		}
		if ctx.Err() != nil {
			t.Fatalf("the log has no line that names port %s and %q:\n%s", port, reason, a.of(port))
		}
	}
}

// of are the log's last lines about a port.
func (a *arena) of(port string) string {
	var lines []string
	for line := range strings.Lines(a.d.Log()) {
		if strings.Contains(line, "port="+port+" ") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines[max(0, len(lines)-12):], "")
}

// serves looks that a port's next guest is served.
func (a *arena) serves(t *testing.T, port string, i int) {
	t.Helper()
	g := a.guest(t, vnettest.Options{})
	f := a.join(t, port, g)
	frame := etherFrame(hardware(macWitness), hardware(villainMAC(i)), 0)
	ctx := within(t, 20*time.Second)
	for want := counters(t, a.d, control.KindPort, port).RxPackets + 1; ; time.Sleep(time.Millisecond) {
		if err := g.Send(frame); err != nil {
			t.Fatal(err)
		}
		if counters(t, a.d, control.KindPort, port).RxPackets >= want {
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("port %s does not serve its next guest:\n%s", port, a.of(port))
		}
	}
	f.Close()
	g.Close()
}

// unhurt looks how the neighbours and the daemon are.
func (a *arena) unhurt(t *testing.T) {
	t.Helper()
	if a.d.Died() {
		t.Fatalf("shuntd died:\n%s", tail(a.d.Log(), 60))
	}
	before := a.pair.exchanged.Load()
	for ctx := within(t, 20*time.Second); ; time.Sleep(time.Millisecond) {
		a.pair.whole(t)
		if a.pair.exchanged.Load() > before+outstanding {
			return
		}
		if ctx.Err() != nil {
			t.Fatal("the neighbours hear nothing any more")
		}
	}
}

func tail(log string, n int) string {
	lines := strings.SplitAfter(log, "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "")
}

// holdings are what the daemon has while nothing is under way.
type holdings struct {
	belongings
	shared int // KiB of guests' memory in its page tables
	anon   int // KiB of its own
}

func (a *arena) holdings(t *testing.T) (h holdings) {
	t.Helper()
	speak := a.pair.silence()
	defer speak()
	ctx := within(t, 20*time.Second)
	h.belongings = belongingsOf(t, ctx, a.d)
	status, err := a.d.API().Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	h.free = 0
	for _, w := range status.Workers {
		h.free += w.FreeFrames
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", a.d.PID()))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		_, _ = fmt.Sscanf(line, "RssShmem: %d kB", &h.shared)
		_, _ = fmt.Sscanf(line, "RssAnon: %d kB", &h.anon)
	}
	return h
}

// returned waits until the daemon has no more than it had. Its heap may be as large as the 256 MiB at which the collector runs under load.
func (a *arena) returned(t *testing.T, was holdings) {
	t.Helper()
	const slack, heap = 8 << 10, 320 << 10
	for ctx := within(t, 30*time.Second); ; time.Sleep(50 * time.Millisecond) {
		now := a.holdings(t)
		if now.free == was.free && slices.Equal(now.maps, was.maps) && slices.Equal(now.files, was.files) &&
			now.shared <= was.shared+slack && now.anon <= was.anon+heap {
			t.Logf("shuntd has %d free frames, %d mappings, %d files as before; %d KiB of frames and guests' memory, were %d; %d KiB of its own, were %d",
				now.free, len(now.maps), len(now.files), now.shared, was.shared, now.anon, was.anon)
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("shuntd does not come back to what it had: free frames %d, were %d; new mappings %q; new files %q; guests' memory %d KiB, were %d; own %d KiB, were %d",
				now.free, was.free, beside(now.maps, was.maps), beside(now.files, was.files), now.shared, was.shared, now.anon, was.anon)
		}
	}
}

// beside is what is in the one sorted list and not in the other.
func beside(now, was []string) (more []string) {
	count := map[string]int{}
	for _, s := range was {
		count[s]++
	}
	for _, s := range now {
		if count[s]--; count[s] < 0 {
			more = append(more, s)
		}
	}
	return more
}

// TestHostileFrontEnds attacks the daemon from its ports, and from its control socket. Neighbours lose nothing meanwhile; each attack is named
// in the log with its port; and in the end the daemon has what it had.
func TestHostileFrontEnds(t *testing.T) {
	a := newArena(t)
	a.unhurt(t)
	was := a.holdings(t)
	for _, attack := range []struct {
		name string
		run  func(*testing.T, *arena)
	}{
		{"rings", attackRings},
		{"long walks", attackWalks},
		{"headers", attackHeaders},
		{"truncated memory", attackTruncation},
		{"mixed batches", attackMixedBatch},
		{"memory regions", attackRegions},
		{"memory on FUSE", attackFUSE},
		{"descriptors", attackDescriptors},
		{"messages", attackMessages},
		{"dirty log", attackLog},
		{"places of rings", attackPlaces},
		{"slots under traffic", attackSlots},
		{"rings on two workers", attackRestarts},
		{"connects", attackConnects},
		{"control socket", attackControl},
	} {
		ok := t.Run(attack.name, func(t *testing.T) {
			began := time.Now()
			first, _ := a.pair.heard()
			attack.run(t, a)
			a.unhurt(t)
			last, stall := a.pair.heard()
			t.Logf("in %v the neighbours exchanged %d frames, waiting %v at the most", time.Since(began).Round(time.Millisecond), last-first, stall)
			if stall > 10*time.Second {
				t.Errorf("the neighbours heard nothing for %v", stall)
			}
		})
		if a.d.Died() {
			t.Fatalf("shuntd died of %s:\n%s", attack.name, tail(a.d.Log(), 80))
		}
		if !ok {
			a.pair.whole(t) // or all others would fail, too
		}
	}
	a.returned(t, was)
}

// times is a number of attempts: few in make test.
func times(few, many int) int {
	if need.Soak() {
		return many
	}
	return few
}

// kind is a form of rings.
type kind struct {
	name     string
	features uint64
}

const usual = uint64(vnet.FeatureVersion1 | vnet.FeatureMrgRxbuf | vnet.FeatureIndirect)

func kinds() []kind {
	return []kind{{"split", usual}, {"packed", usual | vnet.FeaturePacked}}
}

// said tells whether a line of a log names a port and two other things.
func said(log, port string, what ...string) bool {
	for line := range strings.Lines(log) {
		found := strings.Contains(line, "port="+port+" ")
		for _, w := range what {
			found = found && strings.Contains(line, w)
		}
		if found {
			return true
		}
	}
	return false
}
