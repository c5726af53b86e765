// Package virtq is the virtqueue of virtio 1.2 (section 2.7, split ring): three tables in a guest's memory by which a driver hands
// chains of buffers to a device and gets them back.
//
//	                   descriptor table (driver writes)
//	                  ┌──────┬─────┬───────┬──────┐
//	                  │ addr │ len │ flags │ next │ × size
//	                  └──────┴─────┴───────┴──────┘
//	avail ring (driver writes)             used ring (device writes)
//	┌───────┬─────┬────────┬────────────┐  ┌───────┬─────┬─────────────┬─────────────┐
//	│ flags │ idx │ ring[] │ used_event │  │ flags │ idx │ ring[]{id,  │ avail_event │
//	└───────┴─────┴────────┴────────────┘  └───────┴─────┴──────len}───┴─────────────┘
//
// A Device is the device's side, a Driver the driver's: tests and load generators are drivers. Neither allocates after it was made.
//
// Whatever the other side can write is read once into a local, bounded, and only then used. A ring that breaks the
// rules of the specification yields an error, after which it is to be stopped.
package virtq

import (
	"errors"
	"fmt"

	"github.com/shuntio/shunt/dataplane/shm"
)

// MaxSize is the largest split queue (virtio 1.2, 2.7).
const MaxSize = 32768

// Descriptor flags (virtio 1.2, 2.7.5).
const (
	descNext     = 1
	descWrite    = 2
	descIndirect = 4
)

// Flags in the avail and used rings (virtio 1.2, 2.7.6 and 2.7.8): the other side needs no notification.
const (
	availNoInterrupt = 1
	usedNoNotify     = 1
)

// Errors that a Device finds in what a driver wrote.
var (
	// ErrIndex: avail.idx runs more than the queue's size ahead.
	ErrIndex = errors.New("avail index jumped")
	// ErrHead: an entry of the avail ring, or a next field, names no descriptor.
	ErrHead = errors.New("descriptor number out of range")
	// ErrChain: a chain is longer than its table, or a readable descriptor follows a writable one.
	ErrChain = errors.New("malformed descriptor chain")
	// ErrAddress: a buffer is not within the guest's memory.
	ErrAddress = errors.New("buffer outside guest memory")
	// ErrIndirect: an indirect table is empty, nested, not negotiated, or no whole number of descriptors.
	ErrIndirect = errors.New("malformed indirect table")
)

// desc is one descriptor (virtio 1.2, 2.7.5).
type desc struct {
	addr  uint64
	len   uint32
	flags uint16
	next  uint16
}

// usedElem is one element of the used ring (virtio 1.2, 2.7.8).
type usedElem struct{ id, len uint32 }

// rings are views of the three tables. They end with the mapping they lie in.
type rings struct {
	desc []desc

	availFlags *uint16 // driver writes, device reads
	availIdx   *uint16 // driver writes, device reads
	avail      []uint16
	usedEvent  *uint16 // driver writes: the used index after which it wants a call

	usedFlags  *uint16 // device writes, driver reads
	usedIdx    *uint16 // device writes, driver reads
	used       []usedElem
	availEvent *uint16 // device writes: the avail index after which it wants a kick
}

// Layout is the memory of a queue's tables: slices of DescBytes, AvailBytes and UsedBytes, or longer.
type Layout struct {
	Desc, Avail, Used []byte
}

// DescBytes is the size of the descriptor table; its address is a multiple of 16 (virtio 1.2, 2.7).
func DescBytes(size int) int { return 16 * size }

// AvailBytes is the size of the avail ring with used_event; its address is a multiple of 2.
func AvailBytes(size int) int { return 4 + 2*size + 2 }

// UsedBytes is the size of the used ring with avail_event; its address is a multiple of 4.
func UsedBytes(size int) int { return 4 + 8*size + 2 }

func newRings(l Layout, size int) (r rings, err error) {
	if size <= 0 || size > MaxSize || size&(size-1) != 0 {
		return r, fmt.Errorf("queue size %d: must be a power of two up to %d", size, MaxSize)
	}
	if len(l.Avail) < AvailBytes(size) || len(l.Used) < UsedBytes(size) {
		return r, fmt.Errorf("queue of %d: avail ring of %d or used ring of %d bytes is too short", size, len(l.Avail), len(l.Used))
	}
	if r.desc, err = shm.View[desc](l.Desc, size); err != nil {
		return r, fmt.Errorf("descriptor table: %w", err)
	}
	if shm.Address(l.Desc)%16 != 0 {
		return r, errors.New("descriptor table: address is not aligned to 16 bytes")
	}
	avail, err := shm.View[uint16](l.Avail, size+3)
	if err != nil {
		return r, fmt.Errorf("avail ring: %w", err)
	}
	if r.used, err = shm.View[usedElem](l.Used[4:], size); err != nil {
		return r, fmt.Errorf("used ring: %w", err)
	}
	used, err := shm.View[uint16](l.Used, 2+4*size+1)
	if err != nil {
		return r, fmt.Errorf("used ring: %w", err)
	}
	r.availFlags, r.availIdx, r.avail, r.usedEvent = &avail[0], &avail[1], avail[2:2+size], &avail[2+size]
	r.usedFlags, r.usedIdx, r.availEvent = &used[0], &used[1], &used[2+4*size]
	return r, nil
}

// crossed tells whether moving an index from before to now passed event, so that the other side wants to be notified
// (virtio 1.2, 2.7.7.1: vring_need_event).
func crossed(event, now, before uint16) bool { return now-event-1 < now-before }
