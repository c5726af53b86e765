package vnet

import (
	"fmt"

	"github.com/shuntio/shunt/dataplane/shm"
	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/virtq"
)

// Where does a ring go on? A front-end knows where it was started or stopped last; when the process was killed under it, that is too long ago. We use chains
// in the order in which we take them, so there is one place to know: all before it is used, nothing behind it is.
//
// A split ring has it in the guest's memory, used.idx. A packed ring has only flags, which tell whose turn a descriptor is if one knows how often
// the ring was gone around, and its used descriptors are written over available ones. So the worker keeps two things of each packed ring in a file
// (statefile.go), before it publishes a batch:
//
//	undo[i]  length, id and flags of each descriptor of the batch, as the driver wrote them
//	span     from which place to which the batch goes, in one store
//
// Publish then writes the used descriptors, the first one's flags last, in one store: until then the driver has seen nothing. A killed thread stops between two
// instructions, with all before done and nothing after (what other CPUs may see out of order is no question here), so the next process finds one of these:
//
//	killed before          span    the first descriptor of span
//	span was stored        old     is used: go on at the end of the old batch. Nothing of the new one was shown, nor written
//	the batch was shown    new     is still available: some behind it may be overwritten. Undo, go on at its beginning
//	the next span          new     is used, or available again a round later: go on at its end
//
// Frames of a batch that was received and not published come a second time; frames of one that was not shown to the guest are lost. Both is what a
// network may do; a ring that stands still for ever, or a buffer used twice, is not.

// Turn flags of a packed descriptor (virtio 1.2, 2.8.1), in the word of length, id and flags.
const (
	turnAvail = 1 << (7 + 48)
	turnUsed  = 1 << (15 + 48)
	turnBits  = turnAvail | turnUsed
	bufferID  = 0xffff << 32
)

// cursor is a place in a packed ring, its wrap counter in bit 15: the form that virtq and front-ends have.
type cursor uint16

func (c cursor) at() int { return int(c &^ (1 << 15)) }

// next is the place behind c in a ring of that size.
func (c cursor) next(size int) cursor {
	if c.at()+1 == size {
		return c&(1<<15) ^ 1<<15
	}
	return c + 1
}

// available and used are the turn flags of a descriptor that is so in c's round.
func (c cursor) available() uint64 {
	if c>>15 == 1 {
		return turnAvail
	}
	return turnUsed
}

func (c cursor) used() uint64 {
	if c>>15 == 1 {
		return turnBits
	}
	return 0
}

// place keeps where one packed ring stands.
type place struct {
	record *record  // in the file
	undo   []uint64 // in the file, by descriptor
	ring   []uint64 // the guest's: two words for each descriptor
	event  *uint32  // the guest's: what we tell its driver about kicks
}

// note is told before all that was taken and completed is published.
func (s *place) note(ring *virtq.Device) {
	from, to := cursor(ring.UsedBase()), cursor(ring.Base())
	if from == to {
		return
	}
	for c := from; ; {
		at := c.at()
		s.undo[at] = s.ring[2*at+1]
		if c = c.next(len(s.undo)); c == to {
			break
		}
	}
	s.record.set(from, to)
}

// turn are the turn flags at a place.
func (s *place) turn(c cursor) uint64 { return shm.Load64(&s.ring[2*c.at()+1]) & turnBits }

// find tells where the ring stands if what the file says and what lies in the ring agree. It brings the ring in order.
func (s *place) find(inOrder bool) (cursor, bool) {
	from, to, ok := s.record.get()
	size := len(s.undo)
	if !ok || from.at() >= size || to.at() >= size || s.fresh(inOrder) {
		return 0, false
	}
	if s.turn(from) != from.available() {
		return to, s.turn(to) != to.used()
	}
	for c := from; c != to; c = c.next(size) {
		if s.turn(c) == c.used() && s.undo[c.at()]&turnBits != c.available() {
			return 0, false
		}
	}
	for c := from; c != to; c = c.next(size) {
		if s.turn(c) == c.used() {
			shm.Release64(&s.ring[2*c.at()+1], s.undo[c.at()])
		}
	}
	return from, true
}

// fresh tells whether no device has used anything of the ring, so that the file speaks of an earlier life. A driver that begins anew sets its ring to zero (it
// must: it looks for used descriptors in it) and offers descriptors from the first one on, with wrap counter 1; DPDK's gives them ids before. A ring in use
// is never such a row of offered descriptors with nothing but zeros and ids behind:
//
//	first round     its first descriptor is used, or offered again with wrap counter 0
//	later rounds    nothing is all zeros; were all offered with wrap counter 1, none could be used and free, but those before the device's place are
//
// One exception: with VIRTIO_F_IN_ORDER those between the first and the last of a batch are not marked as used. Where that could be, our own word about
// kicks decides, which a driver that begins anew has cleared.
func (s *place) fresh(inOrder bool) bool {
	i := 0
	for ; i < len(s.undo); i++ {
		if shm.Load64(&s.ring[2*i+1])&turnBits != turnAvail {
			break
		}
	}
	if i == len(s.undo) {
		return !inOrder || shm.Load32(s.event) == 0
	}
	for ; i < len(s.undo); i++ {
		if s.ring[2*i] != 0 || s.ring[2*i+1]&^bufferID != 0 {
			return false
		}
	}
	return true
}

// position is where a ring goes on, and where that is to be kept. On the worker.
func (p *Pair) position(c vhostuser.VringConfig, l virtq.Layout, packed bool) (base uint16, s *place, err error) {
	d := p.device
	if !packed {
		d.file.forget(c.Index)
		return l.UsedIndex(), nil, nil
	}
	_, used := c.PackedBase()
	told := cursor(used)
	if told.at() >= int(c.Size) {
		return 0, nil, fmt.Errorf("the front-end has it begin at %d of %d descriptors", told.at(), c.Size)
	}
	if d.file == nil {
		return uint16(told), nil, nil
	}
	who := identity{desc: c.DescAddr, driver: c.AvailAddr, device: c.UsedAddr, size: c.Size}
	for _, f := range d.files {
		if c.DescAddr-f.user < f.size {
			who.dev, who.ino = f.dev, f.ino
		}
	}
	if s, err = d.file.place(c.Index, l, int(c.Size)); err != nil {
		return 0, nil, err
	}
	at, ok := told, false
	if s.record.identity == who {
		at, ok = s.find(d.features&FeatureInOrder != 0)
	}
	if ok {
		p.markRing(l.Desc)
	} else {
		at = told
		s.record.forget()
		s.record.identity = who
	}
	s.record.set(at, at)
	return uint16(at), s, nil
}
