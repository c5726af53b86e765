// Package virtq is the virtqueue of virtio 1.2: tables in a guest's memory by which a driver hands chains of buffers to a device and
// gets them back. It comes in two formats, split (section 2.7, split.go) and packed (section 2.8, packed.go), with one Device and one
// Driver for both:
//
//	driver:  Add ──▶ Publish ─────────────────────────────────▶ Used
//	                    │ kick?                                  ▲ call?
//	device:             ▼ Available ──▶ Next ──▶ Complete ──▶ Publish
//
// A Device is the device's side, a Driver the driver's: tests and load generators are drivers. Neither allocates after it was made.
//
// Whatever the other side can write is read once into a local, bounded, and only then used. A ring that breaks the
// rules of the specification yields an error, after which it is to be stopped.
package virtq

import "errors"

// MaxSize is the largest queue (virtio 1.2, 2.7 and 2.8).
const MaxSize = 32768

// Descriptor flags (virtio 1.2, 2.7.5 and 2.8).
const (
	descNext     = 1
	descWrite    = 2
	descIndirect = 4
)

// Errors that a Device finds in what a driver wrote.
var (
	// ErrIndex: more is available than the queue can hold: avail.idx jumped, or descriptors were offered that are still under way.
	ErrIndex = errors.New("avail index jumped")
	// ErrHead: an entry of the avail ring, a next field or a buffer id names no descriptor, or an id that is under way already.
	ErrHead = errors.New("descriptor number out of range")
	// ErrChain: a chain is longer than its table, does not end, or a readable descriptor follows a writable one.
	ErrChain = errors.New("malformed descriptor chain")
	// ErrAddress: a buffer is not within the guest's memory.
	ErrAddress = errors.New("buffer outside guest memory")
	// ErrIndirect: an indirect table is empty, nested, not negotiated, or no whole number of descriptors.
	ErrIndirect = errors.New("malformed indirect table")
)

// Layout is the memory of a queue's tables: slices of the lengths named below, or longer. A front-end calls the three addresses by the
// names of the split format, whatever the format is.
type Layout struct {
	// Desc is the descriptor table or descriptor ring: DescBytes.
	Desc []byte
	// Avail is the avail ring, AvailBytes, or the driver event suppression structure, EventBytes.
	Avail []byte
	// Used is the used ring, UsedBytes, or the device event suppression structure, EventBytes.
	Used []byte
}

// DescBytes is the size of the descriptor table or descriptor ring; its address is a multiple of 16.
func DescBytes(size int) int { return 16 * size }

// crossed tells whether moving an index from before to now passed event, so that the other side wants to be notified
// (virtio 1.2, 2.7.7.1: vring_need_event).
func crossed(event, now, before uint16) bool { return now-event-1 < now-before }
