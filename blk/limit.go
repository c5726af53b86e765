package blk

import (
	"time"

	"github.com/shuntio/shunt/dataplane"
)

// LimitOptions say how much a volume, or a group of them, may ask of its store. Zero values do not limit.
type LimitOptions struct {
	// IOPS is in requests a second, whatever they are. BPS is in bytes a second that are read and written.
	IOPS, BPS uint64
	// Burst is how much may pass at once after a pause, as time at the limit. Zero: 100 ms.
	Burst time.Duration
}

// Limit bounds requests and bytes a second. Volumes that share a Limit share the bound, whatever workers their queues are on, and get their turns one
// after the other. What comes beyond the limit waits, and costs no time while it does.
type Limit struct{ requests, bytes dataplane.Bucket }

// NewLimit makes a limit that has its whole burst to give; nil if nothing is limited.
func NewLimit(o LimitOptions) *Limit {
	if o.IOPS == 0 && o.BPS == 0 {
		return nil
	}
	if o.Burst == 0 {
		o.Burst = 100 * time.Millisecond
	}
	l := new(Limit)
	l.requests.Set(o.IOPS, o.Burst)
	l.bytes.Set(o.BPS, o.Burst)
	return l
}

// reserve takes what the request needs and returns when it may go. A request longer than the burst goes as if it were short; the next ones wait for it.
func (l *Limit) reserve(now int64, r *Request) (from int64) {
	if l == nil {
		return now
	}
	from = l.requests.Reserve(now, 1)
	if r.Op <= OpWrite {
		from = max(from, l.bytes.Reserve(now, int(min(r.Length, maxCounted))))
		for rest := r.Length; rest > maxCounted; {
			rest -= maxCounted
			l.bytes.Take(now, int(min(rest, maxCounted)))
		}
	}
	return from
}

// maxCounted is how much is counted at once, so that no product wraps.
const maxCounted = 1 << 27

// bounds are the limits that hold for a volume: its own and its group's.
type bounds struct{ own, group *Limit }

func (b *bounds) reserve(now int64, r *Request) (from int64) {
	return max(b.own.reserve(now, r), b.group.reserve(now, r))
}
