package uring

import "golang.org/x/sys/unix"

// Memory is memory that the kernel may see: it neither moves nor goes away before Free.
type Memory struct{}

// NewMemory maps n bytes of zeroes, on any goroutine.
func NewMemory(n int) (*Memory, error) { return nil, nil }

// Bytes is all of it.
func (m *Memory) Bytes() []byte { return nil }

// Free gives it back. No operation may have it any more.
func (m *Memory) Free() error { return nil }

// Address is a socket's address.
type Address struct{}

// NewAddress takes an address of IPv4, IPv6 or a unix socket.
func NewAddress(a unix.Sockaddr) (*Address, error) { return nil, nil }

// Free gives its memory back.
func (a *Address) Free() error { return nil }

// RegisterMemory pins memory, such as a region of a guest's, for the fixed form of Readv and Writev, which is taken for vectors that lie in it. It takes
// long (every page is brought in), and memory punched out of its file afterwards (a balloon, discard) is silently not the one that is read and written
// here: only for guests that do neither.
func (r *Ring) RegisterMemory(b []byte) error { return nil }

// UnregisterMemory takes RegisterMemory back.
func (r *Ring) UnregisterMemory(b []byte) error { return nil }
