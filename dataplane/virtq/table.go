package virtq

import (
	"encoding/binary"

	"github.com/shuntio/shunt/dataplane/shm"
)

// A device that must let go of chains it has not completed can make them the driver's offer again, so that whoever has the ring next takes them, in
// the same order, as if they had never been taken:
//
//	split    avail ring   … │ completed, in any order │ under way │ …      Layout.Offer writes their heads over the entries between
//	         used.idx ──────────────────────────────┘                     used.idx and where the device has come to
//	packed   descriptors … │ completed: used │ under way │ …              Descriptors.Offer writes them over what lies between
//	                                         └ used       └ avail         the two cursors
//
// A driver looks at neither: what it offered it keeps a note of, and waits for the used ring. It is what a device may only do while nobody else is one.

// AvailIndex is how many chains a split ring's driver has made available.
func (l Layout) AvailIndex() uint16 { return binary.LittleEndian.Uint16(l.Avail[2:]) }

// UsedIndex is where a split ring stands: how many chains were used, as its driver knows.
func (l Layout) UsedIndex() uint16 { return binary.LittleEndian.Uint16(l.Used[usedIdxAt:]) }

// Offer makes a head the entry of a split ring's avail ring at an index.
func (l Layout) Offer(size int, index, head uint16) {
	binary.LittleEndian.PutUint16(l.Avail[4+2*(int(index)&(size-1)):], head)
}

// Descriptor is one of a packed ring, without whose turn it is.
type Descriptor struct {
	Addr      uint64
	Len       uint32
	ID, Flags uint16
}

// Descriptors are those of a packed ring.
type Descriptors []packedDesc

// Descriptors views a packed ring's.
func (l Layout) Descriptors(size int) (Descriptors, error) { return shm.View[packedDesc](l.Desc, size) }

// At reads a descriptor. Places are as in DeviceOptions.Base: with the wrap counter in the highest bit.
func (t Descriptors) At(place uint16) Descriptor {
	p := &t[cursorOf(place).at]
	d := unpack(p.addr, shm.Load64(&p.rest))
	return Descriptor{Addr: d.addr, Len: d.len, ID: d.next, Flags: d.flags &^ (restTurn >> 48)}
}

// Offer makes a descriptor available at a place.
func (t Descriptors) Offer(place uint16, d Descriptor) {
	c := cursorOf(place)
	p := &t[c.at]
	p.addr = d.Addr
	shm.Release64(&p.rest, packRest(d.Len, d.ID, d.Flags&^(restTurn>>48))|c.available())
}

// Offered tells whether the descriptor at a place is available to a device that has come there.
func (t Descriptors) Offered(place uint16) bool {
	c := cursorOf(place)
	return shm.Load64(&t[c.at].rest)&restTurn == c.available()
}

// Behind is the place n descriptors behind another, at most once around.
func (t Descriptors) Behind(place, n uint16) uint16 {
	c := cursorOf(place)
	c.advance(n, uint16(len(t)))
	return c.base()
}
