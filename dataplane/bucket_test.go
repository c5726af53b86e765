package dataplane

import (
	"math"
	"testing"
	"time"
)

// In the time that a bucket counts by, its rate passes, and no more than its burst at once.
func TestBucket(t *testing.T) {
	for _, rate := range []uint64{1, 7, 1000, 14_880_952, 100_000_000_000, math.MaxUint64} {
		var b Bucket
		const burst = 2 * time.Millisecond
		b.Set(rate, burst)
		perSecond := float64(min(rate, maxRate))
		unit := int(max(1, perSecond/1e6)) // what passes at once: a frame's bits, at high rates
		pass := func(now int64) (n float64) {
			for b.Room(now, 1) > 0 {
				if b.Wait(now) > 0 {
					t.Fatalf("rate %d: there is room, and %v to wait", rate, b.Wait(now))
				}
				b.Take(now, unit)
				n += float64(unit)
			}
			if b.Wait(now) == 0 {
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
			now += int64(b.Wait(now))
			passed += pass(now)
		}
		want := perSecond * float64(now-began) / 1e9
		if math.Abs(passed-want) > want/1000+float64(unit) {
			t.Errorf("rate %d: %.0f passed, want %.0f", rate, passed, want)
		}
	}
}

// Two that reserve keep the rate together and get the same share, though one of them always asks first; each is told a time at which a unit may pass.
func TestBucketReserve(t *testing.T) {
	for _, rate := range []uint64{1, 1000, 1_000_000} {
		var b Bucket
		const burst = 5 * time.Millisecond
		b.Set(rate, burst)
		now := int64(time.Hour)
		var passed [2]int
		from := [2]int64{b.Reserve(now, 1), b.Reserve(now, 1)}
		for range 10_000 {
			now = max(now, min(from[0], from[1]))
			for i := range from {
				if from[i] <= now {
					passed[i]++
					from[i] = b.Reserve(now, 1)
				}
			}
		}
		want := float64(rate) * (float64(now-int64(time.Hour))/1e9 + burst.Seconds())
		if all := float64(passed[0] + passed[1]); math.Abs(all-want) > want/1000+2 {
			t.Errorf("rate %d: %.0f passed, want %.0f", rate, all, want)
		}
		if d := passed[0] - passed[1]; d < -1 || d > 1 {
			t.Errorf("rate %d: %v passed", rate, passed)
		}
	}
}

// However much was let pass at however low a rate, times do not wrap: what comes next waits.
func TestBucketDebt(t *testing.T) {
	var b Bucket
	b.Set(1, time.Second)
	now := int64(time.Hour)
	for range 10 {
		b.Take(now, 1<<27)
		if b.Room(now+int64(time.Hour), 1) != 0 || b.Reserve(now, 1) < now+int64(time.Hour) {
			t.Fatal("there is room after four years' worth have passed at once")
		}
	}
}
