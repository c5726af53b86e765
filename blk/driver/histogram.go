package driver

import (
	"fmt"
	"math/bits"
	"time"
)

// Histogram counts latencies in buckets of one sixteenth of a power of two. One goroutine adds.
type Histogram struct {
	buckets [61 * 16]uint64
	count   uint64
	longest time.Duration
}

// Add counts one.
func (h *Histogram) Add(d time.Duration) {
	d = max(d, 0)
	h.buckets[bucket(uint64(d))]++
	h.count++
	h.longest = max(h.longest, d)
}

// bucket is where a value is counted: the place of its highest bit and the four bits below.
func bucket(v uint64) int {
	if v < 16 {
		return int(v)
	}
	exp := bits.Len64(v) - 5
	return (exp+1)*16 + int(v>>exp)&15
}

// floor is the smallest value of a bucket.
func floor(i int) uint64 {
	if i < 16 {
		return uint64(i)
	}
	return uint64(16+i%16) << (i/16 - 1)
}

// Merge adds what another counted.
func (h *Histogram) Merge(o *Histogram) {
	for i, n := range o.buckets {
		h.buckets[i] += n
	}
	h.count += o.count
	h.longest = max(h.longest, o.longest)
}

// Count is how many were added, Max the longest.
func (h *Histogram) Count() uint64 { return h.count }

// Max is the longest.
func (h *Histogram) Max() time.Duration { return h.longest }

// Quantile is what a share of 0 to 1 of them did not exceed, to a sixteenth.
func (h *Histogram) Quantile(share float64) time.Duration {
	rank, sum := uint64(share*float64(h.count)), uint64(0)
	for i, n := range h.buckets {
		if sum += n; sum > rank {
			return min(time.Duration(floor(i+1)-1), h.longest)
		}
	}
	return h.longest
}

// String is for people.
func (h *Histogram) String() string {
	return fmt.Sprintf("p50 %v p99 %v max %v", h.Quantile(.5), h.Quantile(.99), h.longest)
}
