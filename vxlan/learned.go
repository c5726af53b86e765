package vxlan

import (
	"time"

	"github.com/shuntio/shunt/dataplane/wire"
)

// tickShift turns nanoseconds into ticks of 134 ms: what ageing counts in, without a division for each vector of frames.
const tickShift = 27

func ticks(d time.Duration) uint32 { return uint32(min(d>>tickShift, 1<<30)) + 1 }

// learned is what a worker has learned in one network, or was told by others (notes.go): addresses of frames' sources and the place they
// came from. Only the worker reads and writes it.
//
// Every entry has an owner, the port it is behind or the wire, and every owner has a ring that bounds its
// entries: to enter one more address than the ring has room for, it must give up one of its own. So a flood of
// invented sources pushes out nobody else's. The table is sized for the sum of the rings, so it never fills.
type learned struct {
	table
	age   uint32 // in ticks
	every int    // others are told that an address is alive each 1<<every ticks
	// wire is the ring of all VTEPs together; ports have theirs.
	wire *ring
}

// ring holds the keys of an owner's entries in the order they were entered. Each live entry of the owner has a position here; a
// position whose entry has moved to another owner or was removed is free again, though it is only found out when its
// turn comes.
type ring struct {
	keys []wire.MAC
	full []bool
	hand int
	// epoch changes when an entry of the owner goes, to another place or altogether: what was decided by it is to be decided again.
	epoch uint32
	// notes were told about the owner's entries in the tick noted.
	noted, notes uint32
}

func newRing(n int) *ring { return &ring{keys: make([]wire.MAC, n), full: make([]bool, n)} }

// mayTell bounds what one owner has others told in a tick, by as many notes as it may have entries: whoever invents addresses costs other
// workers no more than that.
func (r *ring) mayTell(tick uint32) bool {
	if r.noted != tick {
		r.noted, r.notes = tick, 0
	}
	r.notes++
	return r.notes <= uint32(len(r.keys))
}

// candidates is how many positions are looked at to find the oldest one to give up.
const candidates = 4

// over tells whether the time of what was seen at a tick is over. Another worker's clock may be a tick ahead of ours.
func (l *learned) over(seen, tick uint32) bool { return int32(tick-seen) > int32(l.age) }

// place looks an address up; nowhere if it is not there or its time is over.
func (l *learned) place(mac wire.MAC, tick uint32) place {
	if s, ok := l.find(mac); ok && !l.over(s.seen, tick) {
		return s.at
	}
	return nowhere
}

// learn notes that an address was seen at a place, whose owner's ring is given. It returns the place that the address left, or
// nowhere, and whether others are to be told.
func (l *learned) learn(mac wire.MAC, at place, tick uint32, owner *ring) (was place, news bool) {
	s, found := l.find(mac)
	if !found {
		l.admit(mac, at, tick, owner)
		l.put(mac, at, tick)
		return nowhere, true
	}
	if s.at == at {
		news = s.seen>>l.every != tick>>l.every
		if s.seen != tick { // not to dirty the cache line for every frame
			s.seen = tick
		}
		return nowhere, news
	}
	was = s.at
	if was.sameOwner(at) {
		s.at, s.seen = at, tick
		return was, true
	}
	l.admit(mac, at, tick, owner)
	l.put(mac, at, tick)
	return was, true
}

// untold has the next frame from an address tell others of it.
func (l *learned) untold(mac wire.MAC) {
	if s, ok := l.find(mac); ok {
		s.seen = s.seen>>l.every<<l.every - 1
	}
}

// hears tells whether another worker's news of an address is newer than what is known here.
func (l *learned) hears(mac wire.MAC, at place, seen uint32) bool {
	s, found := l.find(mac)
	return !found || int32(seen-s.seen) > 0 || seen == s.seen && s.at != at
}

// admit finds a position in the owner's ring for one more address, at the cost of an older one if there is no other way.
func (l *learned) admit(mac wire.MAC, at place, tick uint32, owner *ring) {
	victim, age := -1, uint32(0)
	for i := range min(candidates, len(owner.keys)) {
		position := (owner.hand + i) % len(owner.keys)
		if a := l.idle(owner, position, at, tick); victim < 0 || a > age {
			victim, age = position, a
		}
	}
	owner.hand = (owner.hand + 1) % len(owner.keys)
	if owner.full[victim] {
		if s, ok := l.find(owner.keys[victim]); ok && s.at.sameOwner(at) && owner.keys[victim] != mac {
			l.remove(owner.keys[victim])
			owner.epoch++
		}
	}
	owner.keys[victim], owner.full[victim] = mac, true
}

// idle is for how long the entry at a position of the ring of at's owner has seen no frame; the maximum if the position is free.
func (l *learned) idle(owner *ring, position int, at place, tick uint32) uint32 {
	if !owner.full[position] {
		return 1<<32 - 1
	}
	s, ok := l.find(owner.keys[position])
	if !ok || !s.at.sameOwner(at) || l.over(s.seen, tick) {
		return 1<<32 - 1
	}
	return uint32(max(0, int32(tick-s.seen)))
}

// forget removes every entry of an owner, before its port goes.
func (l *learned) forget(at place, owner *ring) {
	for i, mac := range owner.keys {
		if !owner.full[i] {
			continue
		}
		if s, ok := l.find(mac); ok && s.at.sameOwner(at) {
			l.remove(mac)
		}
		owner.full[i] = false
	}
	owner.epoch++
}

// grow moves everything into a larger table, which the control side allocated.
func (l *learned) grow(to table) {
	for _, s := range l.slots {
		if s.key != 0 {
			to.put(wire.MAC(s.key&^occupied), s.at, s.seen)
		}
	}
	l.table = to
}
