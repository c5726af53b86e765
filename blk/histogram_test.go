package blk_test

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk"
)

// Each time lies in the one bucket whose bounds hold it.
func TestHistogramBuckets(t *testing.T) {
	times := []int64{-5, 0, 1, 63, 64, 65, 511, 512, 513, 1023, 1024, 1e6, 1e9, 60e9, 137e9, 1e18, math.MaxInt64}
	for range 1000 {
		times = append(times, rand.Int64N(1<<rand.IntN(38)+1))
	}
	var h blk.Histogram
	top := len(h.Counts) - 1
	for _, n := range times {
		b := blk.BucketOf(n)
		if b < 0 || b > top {
			t.Fatalf("%d ns are in bucket %d", n, b)
		}
		if b < top && time.Duration(n) >= blk.Bound(b) || b > 0 && time.Duration(n) < blk.Bound(b-1) {
			t.Errorf("%d ns are in bucket %d, which ends at %v", n, b, blk.Bound(b))
		}
	}
	for b := range top {
		if blk.Bound(b) >= blk.Bound(b+1) {
			t.Fatalf("bucket %d ends at %v, the next one at %v", b, blk.Bound(b), blk.Bound(b+1))
		}
	}
}

func TestHistogramPercentiles(t *testing.T) {
	var h, a, b blk.Histogram
	if h.Percentile(50) != 0 {
		t.Error("an empty histogram has a median")
	}
	var times []int64
	for i := range 10_000 {
		n := int64(2000 * math.Exp(rand.NormFloat64()*2+3))
		times = append(times, n)
		if i%3 == 0 {
			a.Add(n)
		} else {
			b.Add(n)
		}
	}
	h.Merge(&a)
	h.Merge(&b)
	slices.Sort(times)
	for _, p := range []float64{0, 1, 50, 90, 99, 99.9, 100} {
		want := float64(times[min(int(p*100), len(times)-1)])
		if got := float64(h.Percentile(p)); math.Abs(got-want) > want*0.07+64 {
			t.Errorf("percentile %v is %v, want %v", p, time.Duration(got), time.Duration(want))
		}
	}
	if h.Count() != 10_000 {
		t.Errorf("%d were counted", h.Count())
	}
}
