package vxlan

import (
	"math/bits"

	"github.com/shuntio/shunt/dataplane/wire"
)

// place is where a MAC address is, in 32 bits: a port's slot, or a VTEP's index with the top bit set, or one of the values at
// the end.
type place uint32

const (
	vtepBit place = 1 << 31
	// atUplink: on the wire of a flat network.
	atUplink place = 1<<32 - 1
	// nowhere: unknown.
	nowhere place = 1<<32 - 2
	// everywhere: a group address.
	everywhere place = 1<<32 - 3
	// dropped: the frame has been judged and does not go anywhere.
	dropped place = 1<<32 - 4
)

func atPort(slot int) place  { return place(slot) }
func atVTEP(index int) place { return vtepBit | place(index) }
func (p place) isPort() bool { return p < vtepBit }
func (p place) isVTEP() bool { return p >= vtepBit && p < dropped }
func (p place) vtep() int    { return int(p &^ vtepBit) }
func (p place) sameOwner(q place) bool {
	return p == q || !p.isPort() && !q.isPort() // the wire is one owner, whatever the VTEP
}

// slot of a table, four to a cache line.
type slot struct {
	key  uint64 // the MAC address with occupied set; 0: free
	at   place
	seen uint32 // tick of the last frame, in learned tables
}

// occupied tells a key from a free slot: the address 00:00:00:00:00:00 is possible, too.
const occupied = 1 << 48

// table is a hash table of MAC addresses: open addressing, linear probing, never more than half full. So a lookup touches one
// cache line, seldom two, and always finds an end. The seed keeps those who choose MAC addresses from choosing where they collide.
type table struct {
	slots []slot
	mask  uint64 // len(slots)-1
	seed  uint64
	used  int
}

// newTable makes a table for so many addresses.
func newTable(entries int, seed uint64) table {
	n := 8
	for n < 2*entries {
		n *= 2
	}
	return table{slots: make([]slot, n), mask: uint64(n - 1), seed: seed | 1}
}

// start is where the probing for a key begins.
func (t *table) start(key uint64) uint64 {
	hi, lo := bits.Mul64(key^t.seed, 0x9e37_79b9_7f4a_7c15^t.seed<<1)
	return hi ^ lo
}

// find returns the position of an address; false: the free one where it would go.
func (t *table) find(mac wire.MAC) (*slot, bool) {
	key := uint64(mac) | occupied
	i := t.start(key)
	for range t.slots {
		s := &t.slots[i&t.mask]
		if s.key == key {
			return s, true
		}
		if s.key == 0 {
			return s, false
		}
		i++
	}
	return nil, false // not reached: the table is at most half full
}

// place looks an address up; nowhere if it is not there.
func (t *table) place(mac wire.MAC) place {
	key := uint64(mac) | occupied
	i := t.start(key)
	for range t.slots {
		s := &t.slots[i&t.mask]
		if s.key == key {
			return s.at
		}
		if s.key == 0 {
			break
		}
		i++
	}
	return nowhere
}

// put enters an address or changes its place. The caller sees to it that the table is at most half full.
func (t *table) put(mac wire.MAC, at place, seen uint32) {
	s, found := t.find(mac)
	if !found {
		t.used++
	}
	*s = slot{key: uint64(mac) | occupied, at: at, seen: seen}
}

// remove takes an address out and closes the gap, so that no probing ends early at it.
func (t *table) remove(mac wire.MAC) {
	key := uint64(mac) | occupied
	gap := t.start(key) & t.mask
	for range t.slots {
		if t.slots[gap].key == key {
			break
		}
		if t.slots[gap].key == 0 {
			return
		}
		gap = (gap + 1) & t.mask
	}
	t.used--
	for i := (gap + 1) & t.mask; t.slots[i].key != 0; i = (i + 1) & t.mask {
		// An entry may move into the gap if the gap is not before the place its own probing starts at.
		home := t.start(t.slots[i].key) & t.mask
		if (i-home)&t.mask >= (i-gap)&t.mask {
			t.slots[gap] = t.slots[i]
			gap = i
		}
	}
	t.slots[gap] = slot{}
}
