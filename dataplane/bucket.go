package dataplane

import (
	"sync/atomic"
	"time"
)

// Bucket lets so many units a second pass, whatever workers they pass on. It keeps the one number of the generic cell rate algorithm (ITU-T I.371): the
// time at which all that has passed would have passed at that rate.
//
// Who can drop asks Room and then says Take. Who makes others wait in their turn says Reserve: then nobody who asks again later is overtaken for ever.
type Bucket struct {
	rate  int64 // 0: no bound
	burst int64 // in 1/64 ns
	full  atomic.Int64
}

const (
	bucketShift = 6 // times in 1/64 ns fit 63 bits for four years, and 134 million units are not too many for one multiplication
	second      = int64(time.Second) << bucketShift
	maxRate     = 1 << 40
	maxDebt     = 1 << 60 // half a year, far from where sums of times wrap
)

// Set says how many units may pass a second (0: any number), and for how long a pause they may be made up for at once. Before the bucket is used.
func (b *Bucket) Set(rate uint64, burst time.Duration) {
	b.rate = int64(min(rate, maxRate))
	b.burst = int64(min(burst, time.Hour)) << bucketShift
	if b.rate > 0 {
		b.burst = max(b.burst, b.cost(1)) // else nothing would ever pass
	}
}

func (b *Bucket) cost(units int) int64 { return int64(units) * second / b.rate }

// Room is how many units may pass now, at most as many as asked for. Times are those of Worker.Now and Clock.
func (b *Bucket) Room(now int64, most int) int {
	if b.rate == 0 {
		return most
	}
	now <<= bucketShift
	free := now + b.burst - max(b.full.Load(), now)
	if b.cost(most) <= free {
		return most
	}
	return int(max(0, free/max(1, b.cost(1))))
}

// Take lets units pass, more than there is room for if need be: the next ones wait longer.
func (b *Bucket) Take(now int64, units int) {
	if b.rate != 0 {
		b.push(now, units)
	}
}

// Reserve takes units that pass later: not before the time it returns, which is now or earlier if there is room for the first of them. Reservations
// follow each other in the order they were made.
func (b *Bucket) Reserve(now int64, units int) (from int64) {
	if b.rate == 0 {
		return now
	}
	return b.open(b.push(now, units))
}

// push moves full on by the cost of the units, and returns where it was, or now where that is later.
func (b *Bucket) push(now int64, units int) (before int64) {
	now <<= bucketShift
	cost := min(b.cost(units), maxDebt)
	for {
		old := b.full.Load()
		before = max(old, now)
		if b.full.CompareAndSwap(old, min(before+cost, now+maxDebt)) {
			return before
		}
	}
}

// open is when a unit may pass that comes behind what fills the bucket up to full, rounded up.
func (b *Bucket) open(full int64) int64 {
	const up = 1<<bucketShift - 1
	return (full + b.cost(1) - b.burst + up) >> bucketShift
}

// Wait is how long nothing may pass; 0: something may.
func (b *Bucket) Wait(now int64) time.Duration {
	if b.rate == 0 {
		return 0
	}
	return time.Duration(max(0, b.open(b.full.Load())-now))
}
