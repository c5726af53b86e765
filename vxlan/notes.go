package vxlan

import (
	"math/bits"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/wire"
)

// What one worker learns it tells the others, so that each finds in its own tables where an address is:
//
//	learn: a new address, or one that moved, or one still alive a quarter of its age after it was told ──▶ tell ──▶ Tell to each other worker
//	Hear: into the own tables and the owner's ring, as if the frame had been seen here ──▶ not told on
//
// A note names networks and ports by slot and serial number, VTEPs by address: one that comes late, when the slot or the index means
// another one, changes nothing. A note that found no room is told with the next frame from the address.

// Words of a note about an address.
const (
	noteNetwork = iota // slot<<32 | serial of its tables
	noteMAC
	noteSeen // tick
	notePort // (slot+1)<<32 | serial; 0: behind the VTEP
	noteVTEP // its address, two words
)

// tell tells the other workers where an address is. It reports false if one of them has no room.
func (l *lane) tell(nw *network, mac wire.MAC, at place) bool {
	var n dataplane.Note
	n[noteNetwork] = uint64(nw.slot)<<32 | uint64(nw.serial)
	n[noteMAC], n[noteSeen] = uint64(mac), uint64(l.tick)
	if at.isPort() {
		n[notePort] = (uint64(at)+1)<<32 | uint64(l.now.ports[at].serial)
	} else {
		a := l.now.vteps[at.vtep()].address
		n[noteVTEP], n[noteVTEP+1] = a.high, a.low
	}
	told := true
	for i := range l.sw.lanes {
		if i != l.number {
			told = l.worker.Tell(i, &n) && told
		}
	}
	return told
}

// Hear implements dataplane.Listener.
func (l *lane) Hear(_ *dataplane.Worker, _ int, n *dataplane.Note) {
	now := l.sw.current.Load()
	slot, serial := int(n[noteNetwork]>>32), uint32(n[noteNetwork])
	if slot >= len(now.networks) || now.networks[slot] == nil || now.networks[slot].serial != serial {
		return // it was removed, or forgot what it had learned
	}
	nw := now.networks[slot]
	mac, seen, learned := wire.MAC(n[noteMAC]), uint32(n[noteSeen]), nw.learned[l.number]
	at, owner := nw.placeIn(now, l.number, n)
	if owner == nil || nw.static.place(mac) != nowhere || !learned.hears(mac, at, seen) {
		return
	}
	was, _ := learned.learn(mac, at, seen, owner)
	nw.left(now, l.number, was)
}

// left notes that an address is not where it was any more.
func (nw *network) left(now *snapshot, lane int, was place) {
	switch {
	case was == nowhere:
	case !was.isPort():
		nw.learned[lane].wire.epoch++
	default:
		if p := now.ports[was]; p != nil && p.network == nw && p.rings != nil {
			p.rings[lane].epoch++
		}
	}
}

// placeIn finds the place that a note speaks of and the ring of its owner; nil if it is gone.
func (nw *network) placeIn(now *snapshot, lane int, n *dataplane.Note) (place, *ring) {
	if n[notePort] == 0 {
		if nw.uplink == nil {
			return nowhere, nil
		}
		i, ok := nw.uplink.endpoints[address{n[noteVTEP], n[noteVTEP+1]}]
		if !ok {
			return nowhere, nil
		}
		return atVTEP(i), nw.learned[lane].wire
	}
	slot, serial := n[notePort]>>32-1, uint32(n[notePort])
	if slot >= uint64(len(now.ports)) {
		return nowhere, nil
	}
	p := now.ports[slot]
	if p == nil || p.serial != serial || p.network != nw || p.rings == nil {
		return nowhere, nil
	}
	return atPort(p.slot), p.rings[lane]
}

// tellEvery is how often the others are told that an address is still alive, as a power of two of ticks: at most a quarter of its age, so that none
// grows old where its frames are not seen.
func tellEvery(age uint32) int { return max(0, bits.Len32(age/4)-1) }
