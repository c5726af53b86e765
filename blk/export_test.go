package blk

import (
	"time"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/uring"
)

// Timers is what a gate needs of a ring.
type Timers interface {
	Start(t *uring.Timer, d time.Duration)
	Stop(t *uring.Timer)
}

// NewGateAt makes a gate whose time a test lets pass.
func (v *Volume) NewGateAt(h Host, t Timers, clock func() int64) (*Gate, error) {
	return v.newGate(h, t, clock)
}

// BucketOf is the bucket of a time.
func BucketOf(nanos int64) int { return bucketOf(nanos) }

// Add counts a time.
func (h *Histogram) Add(nanos int64) { h.add(nanos) }

// WorkerOf is the worker that a gate belongs to.
func WorkerOf(g *Gate) *dataplane.Worker { return g.worker }

// ForgetUnended makes this process another one, as far as it knows what volumes have left.
func ForgetUnended() {
	unended.mu.Lock()
	defer unended.mu.Unlock()
	clear(unended.names)
}

// Doubts tells whether a write came back to a volume that may not have ended.
func Doubts(v *Volume) bool { return v.doubt.Load() != 0 }
