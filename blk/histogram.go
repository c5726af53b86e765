package blk

import (
	"math/bits"
	"time"
)

// Histogram counts times in buckets that are an eighth of their power of two wide, from 64 ns to two minutes, so a percentile is right to 6 %. One worker
// writes it, plainly; readers are given copies, made between two rounds of that worker (Volume.Stats).
type Histogram struct {
	// Counts are by bucket; see Bound.
	Counts [histogramBuckets]uint64
	// Sum is of all times.
	Sum time.Duration
}

const (
	histogramUnit    = 6                      // the unit is 64 ns
	histogramSub     = 3                      // eight buckets each time the value doubles
	histogramTop     = 31                     // times of 2^31 units are 137 s
	histogramBuckets = (histogramTop - 2) * 8 // the first 8 hold a unit each, and then 8 for each of the bits 3 to 30
	histogramMax     = 1<<histogramTop - 1    // in units
)

// add counts one time.
func (h *Histogram) add(nanos int64) {
	h.Counts[bucketOf(nanos)]++
	h.Sum += time.Duration(nanos)
}

func bucketOf(nanos int64) int {
	v := uint64(min(max(nanos, 0)>>histogramUnit, histogramMax))
	if v < 1<<histogramSub {
		return int(v)
	}
	shift := bits.Len64(v) - 1 - histogramSub
	return shift<<histogramSub + int(v>>shift) // the leading bit counts for 8
}

// Bound is the upper end of a bucket.
func Bound(bucket int) time.Duration {
	if bucket < 1<<histogramSub {
		return time.Duration(bucket+1) << histogramUnit
	}
	shift := bucket>>histogramSub - 1
	return time.Duration(bucket&(1<<histogramSub-1)+1<<histogramSub+1) << (shift + histogramUnit)
}

// Merge adds what another histogram counted.
func (h *Histogram) Merge(other *Histogram) {
	for i, n := range other.Counts {
		h.Counts[i] += n
	}
	h.Sum += other.Sum
}

// Count is how many times were counted.
func (h *Histogram) Count() (n uint64) {
	for _, c := range h.Counts {
		n += c
	}
	return n
}

// Percentile is the time that so many percent did not exceed, to the middle of its bucket; 0 of an empty histogram.
func (h *Histogram) Percentile(percent float64) time.Duration {
	rank := uint64(float64(h.Count()) * percent / 100)
	var seen uint64
	last := -1
	for i, n := range h.Counts {
		if n == 0 {
			continue
		}
		if last, seen = i, seen+n; seen > rank {
			break
		}
	}
	switch {
	case last < 0:
		return 0
	case last == 0:
		return Bound(0) / 2
	}
	return (Bound(last-1) + Bound(last)) / 2
}
