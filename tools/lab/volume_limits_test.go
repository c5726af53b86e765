package lab

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk/driver"
)

// TestVolumeLimits: disks that ask for more than they may have get what they may, within a tenth: in requests, in bytes, and two of a group together.
func TestVolumeLimits(t *testing.T) {
	ctx := within(t, time.Minute)
	s := newShelf(t, "[0, 1]")
	const iops, bps, bytes = 2000, 64 << 20, 64 << 10
	s.file(t, "iops", fmt.Sprintf(", direct: false, limits: {iops: %d, burst: 100ms}", iops))
	s.file(t, "bps", fmt.Sprintf(", direct: false, limits: {bps: %d, burst: 100ms}", bps))
	for i := range 2 {
		s.file(t, fmt.Sprintf("group-%d", i), fmt.Sprintf(", direct: false, volume-group: gold, workers: [%d]", i))
	}
	fmt.Fprintf(&s.config, "volume-groups: [{name: gold, limits: {iops: %d, burst: 100ms}}]\n", iops)
	start(t, namespace(t, "host"), "shuntd", s.config.String())

	var stop atomic.Bool
	var all sync.WaitGroup
	loads := make(map[string]*driver.Load)
	for name, size := range map[string]int{"iops": 4096, "bps": bytes, "group-0": 4096, "group-1": 4096} {
		l, err := driver.NewLoad(driver.LoadOptions{Disk: s.dial(t, name, driver.Options{EventIdx: true}), Op: driver.In, Bytes: size, Depth: 40})
		must(t, err)
		loads[name] = l
		all.Go(func() {
			if _, err := l.Run(&stop, time.Hour); err != nil {
				t.Errorf("volume %s: %v", name, err)
			}
		})
	}
	t.Cleanup(all.Wait)
	t.Cleanup(func() { stop.Store(true) })
	for _, l := range loads { // what may pass at once has passed
		for l.Answered() < 200 {
			must(t, ctx.Err())
			time.Sleep(time.Millisecond)
		}
	}
	// More than it may have no disk ever gets. Less each does while the machine has no CPU for it, so each has several tries to get what it may.
	missing := map[string]bool{"requests of one": true, "bytes of one": true, "requests of a group": true, "each of a group": true}
	for n := 0; len(missing) > 0 && n < 8; n++ {
		rate := answerRates(loads, 2*time.Second)
		for what, r := range map[string][2]float64{
			"requests of one":     {rate["iops"], iops},
			"bytes of one":        {rate["bps"] * bytes, bps},
			"requests of a group": {rate["group-0"] + rate["group-1"], iops},
		} {
			t.Logf("%s: %.0f a second of %.0f", what, r[0], r[1])
			if r[0] > 1.1*r[1] {
				t.Errorf("%s: %.0f a second, want %.0f", what, r[0], r[1])
			}
			if r[0] >= 0.9*r[1] {
				delete(missing, what)
			}
		}
		if rate["group-0"] >= iops/4 && rate["group-1"] >= iops/4 {
			delete(missing, "each of a group")
		}
		t.Logf("of a group one disk has %.0f requests a second, the other %.0f", rate["group-0"], rate["group-1"])
	}
	for what := range missing {
		t.Errorf("%s never were as many as they may be", what)
	}
}

// answerRates are those a second of each load over a while.
func answerRates(loads map[string]*driver.Load, while time.Duration) map[string]float64 {
	before, began := make(map[string]uint64), time.Now()
	for name, l := range loads {
		before[name] = l.Answered()
	}
	time.Sleep(while) // what is measured
	rate := make(map[string]float64)
	for name, l := range loads {
		rate[name] = float64(l.Answered()-before[name]) / time.Since(began).Seconds()
	}
	return rate
}
