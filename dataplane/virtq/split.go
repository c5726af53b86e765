package virtq

import (
	"errors"
	"fmt"

	"github.com/shuntio/shunt/dataplane/shm"
)

// The split format (virtio 1.2, section 2.7): each table has one writer.
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
// Order: a side writes entries and what they name, releases idx, fences, and reads whether the other side sleeps; the other side
// acquires idx, and reads the entries behind it.

// Flags in the avail and used rings (virtio 1.2, 2.7.6 and 2.7.8): the other side needs no notification.
const (
	availNoInterrupt = 1
	usedNoNotify     = 1
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

// Where the device's fields lie in the used ring.
const (
	usedIdxAt  = 2
	usedRingAt = 4
)

// AvailBytes is the size of the avail ring with used_event; its address is a multiple of 2.
func AvailBytes(size int) int { return 4 + 2*size + 2 }

// UsedBytes is the size of the used ring with avail_event; its address is a multiple of 4.
func UsedBytes(size int) int { return usedRingAt + 8*size + 2 }

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
	if r.used, err = shm.View[usedElem](l.Used[usedRingAt:], size); err != nil {
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
