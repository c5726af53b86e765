package frame

import "fmt"

// Memory is the daemon's frame memory: the chunks and, beside them, a Frame for each.
type Memory struct {
	bytes   []byte
	frames  []Frame
	spreads [][MaxBody][]byte // one to a frame; pages of it are only touched for frames whose body needs one
	pools   int               // how many were made
}

// NewMemory divides bytes, which stay the caller's mapping, into chunks.
func NewMemory(bytes []byte) (*Memory, error) {
	n := len(bytes) / ChunkSize
	if n == 0 || len(bytes)%ChunkSize != 0 {
		return nil, fmt.Errorf("frame memory of %d bytes: must be a multiple of %d", len(bytes), ChunkSize)
	}
	m := &Memory{bytes: bytes, frames: make([]Frame, n), spreads: make([][MaxBody][]byte, n)}
	for i := range m.frames {
		f := &m.frames[i]
		f.buf = bytes[i*ChunkSize : (i+1)*ChunkSize : (i+1)*ChunkSize]
		f.index = uint32(i)
		f.colour = Headroom + 64*uint16(i%colours)
		f.spread = &m.spreads[i]
		f.Reset()
	}
	return m, nil
}

// Bytes is the whole memory, to be registered as UMEM.
func (m *Memory) Bytes() []byte { return m.bytes }

// Len is the number of frames.
func (m *Memory) Len() int { return len(m.frames) }

// At returns the frame whose chunk holds the address (a byte offset into the memory), and where in that chunk the address
// lies; nil if it is outside. Completions and receive descriptors of the kernel come this way.
func (m *Memory) At(address uint64) (f *Frame, off uint32) {
	i := address / ChunkSize
	if i >= uint64(len(m.frames)) {
		return nil, 0
	}
	return &m.frames[i], uint32(address % ChunkSize)
}

// NewPool makes a pool that owns the n frames from number first on: it is their home.
func (m *Memory) NewPool(first, n int) (*Pool, error) {
	if first < 0 || n <= 0 || n > len(m.frames)-first {
		return nil, fmt.Errorf("pool of frames %d to %d: memory has %d", first, first+n, len(m.frames))
	}
	p := &Pool{memory: m, number: uint16(m.pools), size: n, free: make([]*Frame, n, len(m.frames))}
	m.pools++
	for i := range p.free {
		f := &m.frames[first+i]
		f.home = p.number
		p.free[i] = f
	}
	return p, nil
}

// Pool is one worker's stack of free frames; the last one put back is the first one out, while it is in the cache. Only its worker
// touches it, but for the lanes by which frames come home from other pools.
type Pool struct {
	memory *Memory
	number uint16
	size   int      // frames whose home it is
	free   []*Frame // capacity: every frame of the memory, so that Put never grows it
	// home has the lanes of this pool's frames, one from each other pool; away those of other pools' frames, by the number of the pool.
	// Pools that were not connected have none, and keep what they get.
	home, away []*lane
}

// Connect lets frames that are put into another pool than their own return home. Before the pools' workers run, once, with all pools of a memory.
func Connect(pools []*Pool) {
	for _, p := range pools {
		p.away = make([]*lane, p.memory.pools)
	}
	for _, to := range pools {
		to.home = nil
		for _, from := range pools {
			if from != to {
				l := newLane(to.size)
				to.home = append(to.home, l)
				from.away[to.number] = l
			}
		}
	}
}

// Connected tells whether frames can come home from other pools, which nothing announces.
func (p *Pool) Connected() bool { return len(p.home) > 0 }

// Memory is what the pool's frames lie in.
func (p *Pool) Memory() *Memory { return p.memory }

// Len is how many frames are free here.
func (p *Pool) Len() int { return len(p.free) }

// Get takes a frame, empty and with headroom; nil if there is none.
func (p *Pool) Get() *Frame {
	n := len(p.free) - 1
	if n < 0 {
		return nil
	}
	f := p.free[n]
	p.free = p.free[:n]
	f.Reset()
	return f
}

// Put gives a frame back, and what it owns with it. What it borrowed is forgotten.
func (p *Pool) Put(f *Frame) {
	if (f.far || f.home != p.number) && p.part(f) {
		return
	}
	p.free = append(p.free, f)
}

// part ends what a frame holds of others, and tells whether it went home to another pool.
func (p *Pool) part(f *Frame) bool {
	f.disown(p, nil)
	f.body, f.rest, f.borrowed, f.far = nil, 0, false, false
	return f.home != p.number && p.send(f)
}

// PutAll gives back every frame of the vector but the nil ones: those somebody kept.
func (p *Pool) PutAll(frames []*Frame) {
	for i, f := range frames {
		if f != nil {
			p.Put(f)
			frames[i] = nil
		}
	}
}
