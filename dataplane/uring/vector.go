package uring

// Vector is a list of buffers, as iovecs where the kernel can see them. It belongs to an operation while that is under way.
type Vector struct{}

// MaxVector is the longest vector there is (UIO_MAXIOV).
const MaxVector = 1024

// Vector gives out an empty vector of at most n buffers; nil if none is free.
func (r *Ring) Vector(n int) *Vector { return nil }

// Free takes a vector back.
func (r *Ring) Free(v *Vector) {}

// Reset empties the vector.
func (v *Vector) Reset() {}

// Add appends a buffer, which must lie outside Go's memory; false if there is no room. An empty one takes none.
func (v *Vector) Add(b []byte) bool { return false }

// Advance takes n bytes away from the front, which were read or written.
func (v *Vector) Advance(n int) {}

// Len is how many bytes are left.
func (v *Vector) Len() int { return 0 }
