package frame

import "fmt"

// Memory is the daemon's frame memory: the chunks and, beside them, a Frame for each.
type Memory struct {
	bytes  []byte
	frames []Frame
}

// NewMemory divides bytes, which stay the caller's mapping, into chunks.
func NewMemory(bytes []byte) (*Memory, error) {
	n := len(bytes) / ChunkSize
	if n == 0 || len(bytes)%ChunkSize != 0 {
		return nil, fmt.Errorf("frame memory of %d bytes: must be a multiple of %d", len(bytes), ChunkSize)
	}
	m := &Memory{bytes: bytes, frames: make([]Frame, n)}
	for i := range m.frames {
		f := &m.frames[i]
		f.buf = bytes[i*ChunkSize : (i+1)*ChunkSize : (i+1)*ChunkSize]
		f.index = uint32(i)
		f.colour = Headroom + 64*uint32(i%colours)
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

// NewPool makes a pool that owns the n frames from number first on. Each frame belongs to one pool's worker at a time.
func (m *Memory) NewPool(first, n int) (*Pool, error) {
	if first < 0 || n <= 0 || n > len(m.frames)-first {
		return nil, fmt.Errorf("pool of frames %d to %d: memory has %d", first, first+n, len(m.frames))
	}
	p := &Pool{memory: m, free: make([]*Frame, n, len(m.frames))}
	for i := range p.free {
		p.free[i] = &m.frames[first+i]
	}
	return p, nil
}

// Pool is one worker's stack of free frames; the last one put back is the first one out, while it is in the cache.
// Only its worker touches it.
type Pool struct {
	memory *Memory
	free   []*Frame // capacity: every frame of the memory, so that Put never grows it
}

// Memory is what the pool's frames lie in.
func (p *Pool) Memory() *Memory { return p.memory }

// Len is how many frames are free.
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

// Put gives a frame back. What it borrowed is forgotten.
func (p *Pool) Put(f *Frame) {
	f.body, f.rest = nil, 0
	p.free = append(p.free, f)
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
