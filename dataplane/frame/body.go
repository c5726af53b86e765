package frame

// Borrow sets the body: pieces of n bytes in all, that stay the lender's.
func (f *Frame) Borrow(pieces [][]byte, n int) {
	f.body, f.rest, f.borrowed, f.far = pieces, uint32(n), true, true
}

// Borrowed tells whether some of the body is another's memory, to be copied before that one's Release.
func (f *Frame) Borrowed() bool { return f.borrowed }

// Gather copies the body behind the head, so that the frame is private as a whole. It reports false, and changes
// nothing, if the chunk has no room for it.
func (f *Frame) Gather() bool {
	if f.rest == 0 {
		return true
	}
	if f.rest > ChunkSize-f.end {
		return false
	}
	at := f.end
	for _, piece := range f.body {
		at += uint32(copy(f.buf[at:], piece))
	}
	f.end, f.body, f.rest, f.borrowed = at, nil, 0, false
	return true
}

// Own makes the frame independent of whom it borrowed its body from: copied behind the head if it fits there, else into chunks of the pool,
// which the frame owns from then on. It reports false, and the body is as it was, if the pool has not enough of them.
//
// The chunks belong to the frame before anything is copied, so a fault in the lender's memory loses none.
func (f *Frame) Own(p *Pool) bool {
	if !f.borrowed || f.Gather() {
		return true
	}
	before := f.owned
	f.far = true
	for room := uint32(0); room < f.rest; room += ChunkSize {
		g := p.Get()
		if g == nil {
			f.disown(p, before)
			return false
		}
		g.off, g.end = 0, 0 // nothing will be put in front
		g.next, f.owned = f.owned, g
	}
	n, g := 0, f.owned
	var pieces [MaxBody][]byte
	for _, piece := range f.body {
		for len(piece) > 0 {
			if g.end == ChunkSize {
				pieces[n] = g.buf
				n++
				g = g.next
			}
			c := copy(g.buf[g.end:], piece)
			g.end += uint32(c)
			piece = piece[c:]
		}
	}
	pieces[n] = g.buf[:g.end]
	n++
	copy(f.spread[:n], pieces[:n])
	f.body, f.borrowed = f.spread[:n], false
	return true
}

// Attach makes g's bytes from number skip of its head on the end of f's body. f owns g from then on. It reports false, and nothing
// has changed, if the pieces become too many or g has no such byte.
func (f *Frame) Attach(g *Frame, skip int) bool {
	if uint(skip) > uint(g.HeadLen()) || len(f.body)+1+len(g.body) > MaxBody {
		return false
	}
	n := len(f.body)
	if n > 0 && &f.body[0] != &f.spread[0] {
		copy(f.spread[:], f.body) // the array of the port it came from
	}
	if head := g.Head()[skip:]; len(head) > 0 {
		f.spread[n] = head
		n++
	}
	n += copy(f.spread[n:], g.body)
	f.body = f.spread[:n]
	f.rest += uint32(g.Len() - skip)
	f.borrowed, f.far = f.borrowed || g.borrowed, true
	g.body, g.rest, g.borrowed = nil, 0, false
	g.next, f.owned = f.owned, g
	return true
}

// disown puts back what the frame has come to own since.
func (f *Frame) disown(p *Pool, since *Frame) {
	for f.owned != since {
		g := f.owned
		f.owned, g.next = g.next, nil
		p.Put(g)
	}
}

// CopyFrom makes f a copy of g: its own head, the same metadata, and the same body, borrowed. If that is not another's memory but
// g's own, the copy must Own it before g is put back.
func (f *Frame) CopyFrom(g *Frame) {
	f.off, f.end = g.off, g.end
	copy(f.buf[f.off:f.end], g.buf[g.off:g.end])
	f.body, f.rest, f.borrowed, f.far = nil, g.rest, g.rest > 0, g.rest > 0
	if g.rest > 0 {
		f.body = g.body
	}
	if len(f.body) > 0 && &f.body[0] == &g.spread[0] {
		f.body = f.spread[:copy(f.spread[:], g.body)]
	}
	f.Checksum, f.GSO, f.Hash = g.Checksum, g.GSO, g.Hash
}

// Owns tells whether chunks of other frames belong to this one.
func (f *Frame) Owns() bool { return f.far && f.owned != nil }
