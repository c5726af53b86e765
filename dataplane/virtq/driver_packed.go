package virtq

import "github.com/shuntio/shunt/dataplane/shm"

// driverSide is what a Driver keeps of a packed ring.
type driverSide struct {
	packedRing
	avail cursor // where the next chain is written
	shown cursor // avail, as published
	used  cursor // where the next used descriptor will be
	held  uint64 // what makes the descriptor at shown available, and so all that was written behind it
}

func newDriverSide(o DriverOptions) (p driverSide, err error) {
	p.packedRing, err = newPackedRing(o.Layout, o.Size)
	p.avail = cursorOf(PackedStart)
	p.shown, p.used = p.avail, p.avail
	return p, err
}

// addPacked is Add in a packed ring.
func (q *Driver) addPacked(readable, writable []Buffer) (id uint16) {
	id = q.nextID()
	n := len(readable) + len(writable)
	for i := range n {
		b, flags := buffer(readable, writable, i)
		if i < n-1 {
			flags |= descNext
		}
		q.offer(b, flags, id)
	}
	return id
}

// nextID is the id of the next chain. In order it is the place of its first descriptor.
func (q *Driver) nextID() uint16 {
	if q.inOrder {
		return q.newest
	}
	id := q.free[len(q.free)-1]
	q.free = q.free[:len(q.free)-1]
	return id
}

// offer writes the next descriptor. The device does not come to it before the one at shown is available.
func (q *Driver) offer(b Buffer, flags, id uint16) {
	p := &q.ring
	d := &p.desc[p.avail.at]
	d.addr = b.Addr
	rest := packRest(b.Len, id, flags) | p.avail.available()
	if p.avail == p.shown {
		p.held = rest
	} else {
		d.rest = rest
	}
	p.avail.advance(1, q.size)
}

func (q *Driver) publishPacked() (kick bool) {
	p := &q.ring
	if p.avail == p.shown {
		return false
	}
	before := p.shown
	shm.Release64(&p.desc[before.at].rest, p.held) // release: all other descriptors and the buffers are seen before it
	p.shown = p.avail
	shm.Fence() // the descriptor is seen before we look whether the device sleeps
	return wanted(shm.Load32(p.deviceEvent), q.eventIdx, p.shown, before, q.size)
}

// pending tells whether the descriptor where the next used one will be is that.
func (p *driverSide) pending() bool {
	return shm.Load64(&p.desc[p.used.at].rest)&restTurn == p.used.used()
}

// returnedPacked looks for the next used descriptor.
func (q *Driver) returnedPacked() (id uint16, n uint32, ok bool) {
	p := &q.ring
	rest := shm.Load64(&p.desc[p.used.at].rest) // acquire: the buffers are read after it
	if rest&restTurn != p.used.used() {
		return 0, 0, false
	}
	if d := unpack(0, rest); d.flags&descWrite != 0 {
		n = d.len
	}
	return uint16(rest >> 32), n, true
}
