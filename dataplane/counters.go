package dataplane

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/shuntio/shunt/dataplane/frame"
)

// Reason says why a frame was dropped. Packages name theirs with NewReason, in variables of their own.
type Reason uint8

// MaxReasons bounds the reasons of the whole program.
const MaxReasons = 128

var reasons struct {
	sync.Mutex
	names, help []string
}

// NewReason registers a reason: a name for counters and captures, and one sentence for people. It is called from
// variable declarations only, and panics on a name that is taken.
func NewReason(name, help string) Reason {
	reasons.Lock()
	defer reasons.Unlock()
	for _, n := range reasons.names {
		if n == name {
			panic("dataplane: drop reason " + name + " is registered twice")
		}
	}
	if len(reasons.names) == MaxReasons {
		panic("dataplane: too many drop reasons")
	}
	reasons.names = append(reasons.names, name)
	reasons.help = append(reasons.help, help)
	return Reason(len(reasons.names) - 1)
}

// String is the reason's name.
func (r Reason) String() string {
	reasons.Lock()
	defer reasons.Unlock()
	if int(r) < len(reasons.names) {
		return reasons.names[r]
	}
	return fmt.Sprintf("reason-%d", uint8(r))
}

// Help is one sentence about the reason.
func (r Reason) Help() string {
	reasons.Lock()
	defer reasons.Unlock()
	if int(r) < len(reasons.help) {
		return reasons.help[r]
	}
	return ""
}

// Reasons returns all reasons registered so far.
func Reasons() []Reason {
	reasons.Lock()
	defer reasons.Unlock()
	all := make([]Reason, len(reasons.names))
	for i := range all {
		all[i] = Reason(i)
	}
	return all
}

// Reasons that the worker itself has.
var (
	// DropFault is for frames in flight when a guest took its memory away.
	DropFault = NewReason("memory-fault", "the guest's memory went away while the frame was being moved")
)

// Mark notes on a frame why it was dropped, for who sees it afterwards.
func (r Reason) Mark(f *frame.Frame) { f.Dropped = uint8(r) + 1 }

// Counters of one link. Directions are the engine's: received is what entered it (from the guest, from the wire), sent is what
// left it toward the port. The worker that owns the link writes them, the busy ones once per batch, so readers see them at
// most a batch old.
type Counters struct {
	// RxPackets and RxBytes count frames the port brought in; a dropped one is counted here and under its reason.
	RxPackets, RxBytes atomic.Uint64
	// TxPackets and TxBytes count frames the port took.
	TxPackets, TxBytes atomic.Uint64
	drops              [MaxReasons]atomic.Uint64
}

// Drop counts n frames dropped for a reason.
func (c *Counters) Drop(r Reason, n int) { c.drops[r%MaxReasons].Add(uint64(n)) }

// Drops returns how many frames were dropped for a reason.
func (c *Counters) Drops(r Reason) uint64 { return c.drops[r%MaxReasons].Load() }
