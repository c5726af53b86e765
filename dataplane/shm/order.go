package shm

// Load16 loads with acquire order: no later load or store of this goroutine moves before it.
//
//go:noescape
func Load16(p *uint16) uint16

// Store16 stores with release order: no earlier load or store of this goroutine moves after it.
//
//go:noescape
func Store16(p *uint16, v uint16)

// Release32 stores with release order and nothing more; Store32 is a full exchange on amd64 and costs 20 cycles.
// Single-writer ring indices want this one.
//
//go:noescape
func Release32(p *uint32, v uint32)

// Release64 is Release32 for eight bytes, which are seen all or none.
//
//go:noescape
func Release64(p *uint64, v uint64)

// Fence orders every earlier load and store before every later one. Acquire and release do not order a store
// before a later load, which both sides of a ring need between publishing an index and reading whether
// the other side sleeps.
func Fence()

// Prefetch begins to bring the first two cache lines of b nearer, and does not wait. For a large enough batch the waiting that it
// saves is most of the cost of memory that another core wrote last.
//
//go:noescape
func Prefetch(b []byte)

// PrefetchWrite is Prefetch for memory that is written next: another core loses its copy of the lines now. After Prefetch, each
// first write to a line would wait for that.
//
//go:noescape
func PrefetchWrite(b []byte)
