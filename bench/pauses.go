package bench

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"runtime/metrics"
	"slices"
	"time"
)

// Pauses are what the garbage collector made the program wait, from the decision to stop to the restart.
type Pauses struct {
	// Collections is how many were forced; each stops the world twice.
	Collections int
	// Median and Max of the stops.
	Median, Max time.Duration
}

// String is for people.
func (p Pauses) String() string {
	return fmt.Sprintf("%d collections, median stop %v, longest %v", p.Collections, p.Median, p.Max)
}

const pauseMetric = "/sched/pauses/total/gc:seconds"

// window is how often a rate is sampled: short enough that neighbours on a shared machine spoil some windows and not all.
const window = 100 * time.Millisecond

// rates samples a counter once a window until stop is called, which returns the rates in millions per second, sorted.
func rates(count func() uint64) (stop func() []float64) {
	quit, result := make(chan struct{}), make(chan []float64)
	go func() {
		var all []float64
		tick := time.NewTicker(window)
		defer tick.Stop()
		for last, at := count(), time.Now(); ; {
			select {
			case <-quit:
				slices.Sort(all)
				result <- all
				return
			case <-tick.C:
			}
			n, now := count(), time.Now()
			all = append(all, float64(n-last)/now.Sub(at).Seconds()/1e6)
			last, at = n, now
		}
	}()
	return func() []float64 { close(quit); return <-result }
}

// quartile is the value that the best quarter of a sorted list reaches; 0 of an empty one.
func quartile(sorted []float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[len(sorted)*3/4]
}

// collectMeanwhile lets a duration pass and forces n collections in it.
func collectMeanwhile(ctx context.Context, n int, d time.Duration) Pauses {
	before := pauseHistogram()
	tick := time.NewTicker(max(d/time.Duration(n+1), time.Millisecond))
	defer tick.Stop()
	end := time.After(d)
	for forced := 0; ; {
		select {
		case <-ctx.Done():
			return Pauses{}
		case <-tick.C:
			if forced < n {
				runtime.GC()
				forced++
			}
		case <-end:
			for ; forced < n; forced++ {
				runtime.GC()
			}
			return pausesSince(before, n)
		}
	}
}

func pauseHistogram() *metrics.Float64Histogram {
	s := []metrics.Sample{{Name: pauseMetric}}
	metrics.Read(s)
	h := s[0].Value.Float64Histogram()
	return &metrics.Float64Histogram{Counts: append([]uint64(nil), h.Counts...), Buckets: h.Buckets}
}

// pausesSince takes each pause at its bucket's upper end.
func pausesSince(before *metrics.Float64Histogram, n int) Pauses {
	after := pauseHistogram()
	p := Pauses{Collections: n}
	total := uint64(0)
	for i := range after.Counts {
		after.Counts[i] -= before.Counts[i]
		total += after.Counts[i]
	}
	seen := uint64(0)
	for i, c := range after.Counts {
		if c == 0 {
			continue
		}
		upper := after.Buckets[i+1]
		if math.IsInf(upper, 1) {
			upper = after.Buckets[i]
		}
		p.Max = time.Duration(upper * 1e9)
		if seen < (total+1)/2 && seen+c >= (total+1)/2 {
			p.Median = p.Max
		}
		seen += c
	}
	return p
}
