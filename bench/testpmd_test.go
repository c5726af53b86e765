package bench

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/vnet"
	"github.com/shuntio/shunt/tools/lab/peer"
	"github.com/shuntio/shunt/tools/need"
)

// The first claim of all: 6 Mpps from guest to guest on one core, 64 bytes, DPDK's virtio-user as both guests, with a lookup and a judgement of each frame's
// source, while garbage collections are forced.
//
// How much a core of a shared machine does changes by a factor of three within seconds. So the same is done by turns with testpmd's own back-end, which
// moves frames between two vhost ports without looking at them: 8.2 Mpps where the claim was first made, of 5 Mpps then. Either the rate or that
// ratio must be reached.
const (
	leastMpps  = 6
	leastRatio = 5 / 8.2
)

func TestGuestToGuestVirtioUser(t *testing.T) {
	need.Time(t, "measures")
	need.Root(t)
	need.Program(t, "dpdk-testpmd")
	release, err := peer.ReserveHugePages(512)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := release(); err != nil {
			t.Error(err)
		}
	})
	t.Run("split", func(t *testing.T) { holdClaim(t, false) })
	t.Run("packed", func(t *testing.T) { holdClaim(t, true) })
}

func holdClaim(t *testing.T, packed bool) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	dir := t.TempDir()
	ours := newOurs(t, ctx, dir, packed)
	theirs := newTheirs(t, ctx, dir, packed)
	const turns = 30
	// How near two virtual CPUs are to each other changes by phases of up to a minute; with caches in common both are half as fast again.
	const phases = 200 * time.Second
	for began := time.Now(); ; {
		rate, ratio := compare(t, ctx, ours, theirs, turns)
		if rate >= leastMpps || ratio >= leastRatio {
			return
		}
		if time.Since(began) > phases {
			t.Fatalf("%.2f Mpps and %.2f of testpmd's rate; the claim is %d Mpps or %.2f", rate, ratio, leastMpps, leastRatio)
		}
	}
}

// compare lets both move frames by turns, and returns our rate in the best quarter of turns and the median ratio.
func compare(t *testing.T, ctx context.Context, ours, theirs *contender, turns int) (rate, ratio float64) {
	t.Helper()
	stop := collectUntil(250 * time.Millisecond) // one in each pair of turns
	var rates, others, ratios, busy []float64
	for range turns {
		x, y := ours.turn(t, ctx), theirs.turn(t, ctx)
		if x.mpps > 0 && y.mpps > 0 { // else one of them was not run at all
			rates, others, ratios = append(rates, x.mpps), append(others, y.mpps), append(ratios, x.mpps/y.mpps)
			busy = append(busy, x.busy)
		}
	}
	pauses := stop()
	if len(ratios) == 0 {
		t.Fatal("no turn in which both moved frames")
	}
	for _, s := range [][]float64{rates, others, ratios, busy} {
		slices.Sort(s)
	}
	middle := len(ratios) / 2
	t.Logf("shunt %.2f Mpps (best quarter %.2f, %.0f ns busy a frame), testpmd without lookup %.2f (%.2f); ratio %.2f; medians of %d turns; %v",
		rates[middle], quartile(rates), busy[middle], others[middle], quartile(others), ratios[middle], len(ratios), pauses)
	return quartile(rates), ratios[middle]
}

// contender moves frames between two virtio-user ports when its guests run.
type contender struct {
	guests []*peer.Testpmd // generator, and testpmd's back-end
	count  func() (frames, busyNanos uint64)
}

// sample is what a contender did in one turn.
type sample struct{ mpps, busy float64 }

func (c *contender) turn(t *testing.T, ctx context.Context) sample {
	t.Helper()
	for _, g := range c.guests {
		g.Pause(false)
	}
	defer func() {
		for _, g := range c.guests {
			g.Pause(true)
		}
	}()
	select { // caches
	case <-ctx.Done():
		t.Fatal(ctx.Err())
	case <-time.After(20 * time.Millisecond):
	}
	n, busy := c.count()
	began := time.Now()
	time.Sleep(100 * time.Millisecond)
	m, more := c.count()
	return sample{float64(m-n) / time.Since(began).Seconds() / 1e6, float64(more-busy) / max(1, float64(m-n))}
}

// guests starts testpmd with two virtio-user ports, each of which sends what it gets to the other one.
func guests(t *testing.T, ctx context.Context, name string, paths []string, packed bool) *peer.Testpmd {
	t.Helper()
	var devices []string
	for i, path := range paths {
		devices = append(devices, peer.VirtioUser{
			Number: i, Path: path, MAC: stationMAC(i).String(), Packed: packed, InOrder: true,
		}.String())
	}
	p, err := peer.StartTestpmd(ctx, peer.TestpmdOptions{
		Name: name, Devices: devices, Mode: "mac", CPU: 1, MemoryMiB: 256, HugePages: true,
		Args: []string{"--eth-peer=0," + stationMAC(1).String(), "--eth-peer=1," + stationMAC(0).String(), "--burst=64"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Pause(false)
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// begin lets the first frames go, and stands still.
func begin(t *testing.T, ctx context.Context, p *peer.Testpmd) {
	t.Helper()
	if _, err := p.Command(ctx, "start tx_first 8"); err != nil {
		t.Fatal(err)
	}
	p.Pause(true)
}

// newOurs is the engine on CPU 0, its guests on CPU 1.
func newOurs(t *testing.T, ctx context.Context, dir string, packed bool) *contender {
	t.Helper()
	e, err := newEngine(0, dataplane.Adaptive) // so that it leaves the CPU to the other while its guests stand still
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.close)
	var links [2]*dataplane.Link
	var paths []string
	for i := range links {
		l := &dataplane.Link{Counters: &dataplane.Counters{}}
		device, err := vnet.New(vnet.Options{Pairs: []vnet.PairOptions{{Worker: e.worker, Link: l}}, Failed: func(err error) { t.Error(err) }})
		if err != nil {
			t.Fatal(err)
		}
		links[i] = l
		paths = append(paths, filepath.Join(dir, fmt.Sprintf("ours%d", i)))
		b, err := vhostuser.Listen(vhostuser.Options{Path: paths[i], Log: slog.New(slog.DiscardHandler)}, device)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = b.Close() })
	}
	fabric, err := e.network(links)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fabric.Close)
	for _, l := range links {
		e.add(l)
	}
	e.start()
	g := guests(t, ctx, "ours", paths, packed)
	begin(t, ctx, g)
	return &contender{[]*peer.Testpmd{g}, func() (uint64, uint64) {
		return links[0].Counters.TxPackets.Load() + links[1].Counters.TxPackets.Load(), e.worker.Stats().BusyNanos.Load()
	}}
}

// newTheirs is testpmd's vhost back-end on CPU 0, its guests on CPU 1.
func newTheirs(t *testing.T, ctx context.Context, dir string, packed bool) *contender {
	t.Helper()
	var devices, paths []string
	for i := range 2 {
		paths = append(paths, filepath.Join(dir, fmt.Sprintf("theirs%d", i)))
		devices = append(devices, fmt.Sprintf("net_vhost%d,iface=%s,queues=1", i, paths[i]))
	}
	back, err := peer.StartTestpmd(ctx, peer.TestpmdOptions{
		Name: "vhost", Devices: devices, Mode: "io", CPU: 0, MemoryMiB: 256, HugePages: true, Args: []string{"--burst=64"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		back.Pause(false)
		if err := back.Close(); err != nil {
			t.Error(err)
		}
	})
	if _, err := back.Command(ctx, "start"); err != nil {
		t.Fatal(err)
	}
	g := guests(t, ctx, "theirs", paths, packed)
	begin(t, ctx, g)
	back.Pause(true)
	t.Cleanup(func() { back.Pause(false) }) // before its guests close, who wait for its answer
	return &contender{[]*peer.Testpmd{back, g}, func() (frames, _ uint64) { return testpmdReceived(t, ctx, g), 0 }}
}

// testpmdReceived is how many frames arrived at both of its ports.
func testpmdReceived(t *testing.T, ctx context.Context, p *peer.Testpmd) (n uint64) {
	t.Helper()
	for port := range 2 {
		s, err := p.Stats(ctx, port)
		if err != nil {
			t.Fatal(err)
		}
		n += s.Received
	}
	return n
}

// collectUntil forces a garbage collection each period until stop is called, which tells of the pauses.
func collectUntil(period time.Duration) (stop func() Pauses) {
	quit, result := make(chan struct{}), make(chan Pauses)
	go func() {
		before := pauseHistogram()
		tick := time.NewTicker(period)
		defer tick.Stop()
		for n := 0; ; n++ {
			select {
			case <-quit:
				result <- pausesSince(before, n)
				return
			case <-tick.C:
				runtime.GC()
			}
		}
	}()
	return func() Pauses { close(quit); return <-result }
}
