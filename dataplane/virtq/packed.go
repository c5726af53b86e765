package virtq

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/shuntio/shunt/dataplane/shm"
)

// The packed format (virtio 1.2, section 2.8): one ring, which both sides write.
//
//	descriptor ring                                     driver event suppression (driver writes)
//	┌──────┬─────┬────┬───────┐                         device event suppression (device writes)
//	│ addr │ len │ id │ flags │ × size                  ┌─────────────────────┬───────┐
//	└──────┴─────┴────┴───────┘                         │ offset 15 │ wrap 1  │ flags │
//	                                                    └─────────────────────┴───────┘
//
// Whose turn a descriptor is, two bits of its flags tell, AVAIL and USED, together with how often the ring was gone around: each side
// keeps a cursor for each, a place in the ring and a wrap counter that turns over at the ring's end. The driver offers a chain in
// consecutive descriptors; the device takes it, and later writes one used descriptor with the chain's id over the oldest ones that it
// has taken, in the order in which chains are done, and skips as many as that chain had.
//
// Order: there is no index, so the flags of the first descriptor of a batch are one: they are written last, with release, then
// comes the fence, then the look whether the other side sleeps. Length, id and flags are eight bytes that are written and read at once, so
// nobody sees the flags of one descriptor with the length of another. The reader acquires them, and reads addr only then.

// EventBytes is the size of either event suppression structure; its address is a multiple of 4.
const EventBytes = 4

// PackedStart is where both cursors of a fresh packed ring stand, as Base and UsedBase tell it: place 0, wrap counter 1.
const PackedStart = 1 << 15

// weaklyOrdered: stores may be seen in another order than they were made. On amd64 they are not.
const weaklyOrdered = runtime.GOARCH != "amd64"

// packedDesc is one descriptor; rest is len, id and flags.
type packedDesc struct{ addr, rest uint64 }

func packRest(n uint32, id, flags uint16) uint64 {
	return uint64(n) | uint64(id)<<32 | uint64(flags)<<48
}

// unpack makes of a descriptor the same thing as one of a split ring, its id in place of next.
func unpack(addr, rest uint64) desc {
	return desc{addr: addr, len: uint32(rest), next: uint16(rest >> 32), flags: uint16(rest >> 48)}
}

// The flags that tell whose turn it is, where they lie in rest.
const (
	restAvail = 1 << (7 + 48)
	restUsed  = 1 << (15 + 48)
	restTurn  = restAvail | restUsed
)

// cursor is a place in the ring and the wrap counter of who goes there.
type cursor struct {
	at   uint16
	wrap uint16 // 0 or 1
}

// advance moves by n descriptors, at most once around.
func (c *cursor) advance(n, size uint16) {
	if n >= size-c.at {
		c.at, c.wrap = n-(size-c.at), c.wrap^1
	} else {
		c.at += n
	}
}

// retreat is the inverse of advance.
func (c *cursor) retreat(n, size uint16) {
	if n > c.at {
		c.at, c.wrap = size-(n-c.at), c.wrap^1
	} else {
		c.at -= n
	}
}

// available are the turn flags of a descriptor that the driver has offered: AVAIL as the wrap counter, USED the opposite.
func (c cursor) available() uint64 { return restUsed >> (8 * c.wrap & 15) }

// used are those of one that the device has used: both as the wrap counter.
func (c cursor) used() uint64 { return restTurn * uint64(c.wrap) }

// base is the form in which front-ends carry a cursor (vhost-user, "Vring descriptor indices for packed virtqueues").
func (c cursor) base() uint16 { return c.at | c.wrap<<15 }

func cursorOf(base uint16) cursor { return cursor{at: base &^ (1 << 15), wrap: base >> 15} }

// behind is how many descriptors c is behind ahead, which is at most one round in front of it; else ok is false.
func (c cursor) behind(ahead cursor, size uint16) (n uint16, ok bool) {
	switch {
	case c.wrap == ahead.wrap && c.at <= ahead.at:
		return ahead.at - c.at, true
	case c.wrap != ahead.wrap && ahead.at <= c.at:
		return size - c.at + ahead.at, true
	}
	return 0, false
}

// packedRing are views of the ring and the two event suppression structures.
type packedRing struct {
	desc        []packedDesc
	driverEvent *uint32 // driver writes: after which used descriptor it wants a call
	deviceEvent *uint32 // device writes: after which available descriptor it wants a kick
}

func newPackedRing(l Layout, size int) (r packedRing, err error) {
	if size <= 0 || size > MaxSize {
		return r, fmt.Errorf("packed queue size %d: must be 1 to %d", size, MaxSize)
	}
	if r.desc, err = shm.View[packedDesc](l.Desc, size); err != nil {
		return r, fmt.Errorf("descriptor ring: %w", err)
	}
	if shm.Address(l.Desc)%16 != 0 {
		return r, errors.New("descriptor ring: address is not aligned to 16 bytes")
	}
	driver, err := shm.View[uint32](l.Avail, 1)
	if err != nil {
		return r, fmt.Errorf("driver event suppression: %w", err)
	}
	device, err := shm.View[uint32](l.Used, 1)
	if err != nil {
		return r, fmt.Errorf("device event suppression: %w", err)
	}
	r.driverEvent, r.deviceEvent = &driver[0], &device[0]
	return r, nil
}

// Event suppression structure (virtio 1.2, 2.8.14): offset and wrap counter in the lower half, flags in the upper one.
const (
	eventsOn  = 0 << 16
	eventsOff = 1 << 16
	eventsAt  = 2 << 16 // only at the descriptor named; with VIRTIO_F_EVENT_IDX
)

// eventAt is what a side that waits writes: tell me of the next descriptor, which is at c.
func eventAt(c cursor, eventIdx bool) uint32 {
	if eventIdx {
		return eventsAt | uint32(c.base())
	}
	return eventsOn
}

// wanted tells whether the other side, whose structure is event, is to be told that descriptors before … now-1 were written; there is at
// least one. Flags that mean nothing are taken for a wish to be told.
func wanted(event uint32, eventIdx bool, now, before cursor, size uint16) bool {
	switch event & (3 << 16) {
	case eventsOff:
		return false
	case eventsAt:
		if eventIdx {
			// All three as places of the round that now is in; those of the round before are negative.
			at := cursorOf(uint16(event))
			if at.wrap != now.wrap {
				at.at -= size
			}
			from := before.at
			if now.at <= from {
				from -= size
			}
			return crossed(at.at, now.at, from)
		}
	}
	return true
}
