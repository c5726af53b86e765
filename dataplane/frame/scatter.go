package frame

// Scatter takes a frame apart whose body it owns: into gets the frames that hold the body, in order, each with its piece as its head and nothing
// else, and f keeps its own head alone. Together they are what f was, and each is the caller's, to be put back by itself. It returns how many there
// are; -1, and nothing has changed, if some of the body is borrowed.
//
// It is for who hands chunks to the kernel, which gives them back one by one.
func (f *Frame) Scatter(into *[MaxBody]*Frame) int {
	if f.borrowed {
		return -1
	}
	f.flatten()
	for i, piece := range f.body {
		if into[i] = f.release(piece); into[i] == nil {
			for _, g := range into[:i] {
				g.next, f.owned = f.owned, g
			}
			return -1
		}
	}
	for i, piece := range f.body {
		off := uint32(ChunkSize - cap(piece)) // a chunk's slice ends where the chunk does
		into[i].SetHead(off, uint32(len(piece)))
	}
	n := len(f.body)
	f.body, f.rest = nil, 0
	return n
}

// Shed puts back the frames that f owns although its body lies in none of them any more, after Gather.
func (f *Frame) Shed(p *Pool) {
	if f.far && f.rest == 0 {
		f.disown(p, nil)
	}
}

// flatten makes f the owner of what is owned by frames that it owns.
func (f *Frame) flatten() {
	for g := f.owned; g != nil; g = g.next {
		if g.owned == nil {
			continue
		}
		last := g.owned
		for last.next != nil {
			last = last.next
		}
		g.next, last.next, g.owned = g.owned, g.next, nil
	}
}

// release ends owning the frame whose chunk holds the piece; nil if there is none.
func (f *Frame) release(piece []byte) *Frame {
	if cap(piece) == 0 || cap(piece) > ChunkSize {
		return nil
	}
	end := &piece[:cap(piece)][cap(piece)-1]
	for link := &f.owned; *link != nil; link = &(*link).next {
		if g := *link; &g.buf[ChunkSize-1] == end {
			*link, g.next = g.next, nil
			return g
		}
	}
	return nil
}
