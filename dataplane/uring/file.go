package uring

// File is a slot of the ring's registered files.
type File int32

// Register gives the ring a file. The kernel keeps a reference of its own, so that fd may be closed at once.
func (r *Ring) Register(fd int) (File, error) { return -1, nil }

// Unregister takes a file back. What is under way on it goes on, and the file is closed when that has ended, with older kernels when all that was under
// way on the ring has.
func (r *Ring) Unregister(f File) error { return nil }
