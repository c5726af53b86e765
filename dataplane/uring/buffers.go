package uring

// Buffers is a provided buffer ring: buffers that the kernel picks itself when data arrives.
type Buffers struct{}

// Provide makes count buffers, a power of two, of size bytes.
func (r *Ring) Provide(count, size int) (*Buffers, error) { return nil, nil }

// Bytes is what a completion brought: its first n bytes of the buffer that its flags name. They are valid until Return.
func (b *Buffers) Bytes(flags uint32, n int) []byte { return nil }

// Return gives the buffer that a completion's flags name back to the kernel; nothing if they name none.
func (b *Buffers) Return(flags uint32) {}

// Free ends it. No operation may use it any more.
func (b *Buffers) Free() error { return nil }
