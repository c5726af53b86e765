package dataplane

import (
	"math"
	"testing"
	"time"
)

// In the time that a bucket counts by, its rate passes, and no more than its burst at once.
func TestBucket(t *testing.T) {
	for _, rate := range []uint64{1, 7, 1000, 14_880_952, 100_000_000_000, math.MaxUint64} {
		var b bucket
		const burst = 2 * time.Millisecond
		b.set(rate, burst)
		perSecond := float64(min(rate, maxRate))
		unit := int(max(1, perSecond/1e6)) // what passes at once: a frame's bits, at high rates
		pass := func(now int64) (n float64) {
			for b.room(now, 1) > 0 {
				if b.wait(now) > 0 {
					t.Fatalf("rate %d: there is room, and %v to wait", rate, b.wait(now))
				}
				b.take(now, unit)
				n += float64(unit)
			}
			if b.wait(now) == 0 {
				t.Fatalf("rate %d: there is no room, and nothing to wait for", rate)
			}
			return n
		}
		now := int64(time.Hour)
		if n := pass(now); n > perSecond*burst.Seconds()+float64(unit) {
			t.Errorf("rate %d: %.0f pass after a pause", rate, n)
		}
		passed, began := 0.0, now
		for range 100_000 {
			now += int64(b.wait(now))
			passed += pass(now)
		}
		want := perSecond * float64(now-began) / 1e9
		if math.Abs(passed-want) > want/1000+float64(unit) {
			t.Errorf("rate %d: %.0f passed, want %.0f", rate, passed, want)
		}
	}
}
