package uring

import (
	"errors"
	"time"
)

// Options configure a Ring.
type Options struct {
	// Entries is how many operations may be under way at once, rounded up to a power of two. Zero: 1024.
	Entries int
	// Files is how many files may be registered at once. Zero: 256.
	Files int
	// Vectors is how many vectors of up to 18 buffers there are; there are half as many of up to 130, and an eighth of up to 1024. Zero: Entries.
	Vectors int
	// IOWorkers is how many io-wq threads the ring may have for files, and how many for anything else. Zero: 8.
	IOWorkers int
	// Cores are where io-wq threads may run: not where the worker does. Empty: anywhere.
	Cores []int
}

// ErrThread says that a ring was used on another thread than the one that enabled it.
var ErrThread = errors.New("io_uring was used on a thread that did not enable it")

// Ring is an io_uring. It is a dataplane.Source of the worker that enabled it, and all its methods but Open, FD, InForce, Stats belong to
// that worker.
type Ring struct {
	timers wheel
}

// Modes are what this kernel gives a ring.
type Modes struct {
	// SingleIssuer: the kernel counts on there being one thread (6.0). DeferTaskrun: completions are posted only when we enter (6.1).
	// NoSQArray: without the indirection of the SQ (6.6). FixedVectors: vectors in registered memory (6.15).
	SingleIssuer, DeferTaskrun, NoSQArray, FixedVectors bool
}

// Open makes a ring, on any goroutine.
func Open(o Options) (*Ring, error) { return &Ring{}, nil }

// Enable makes the calling thread, a worker's, the ring's: once, before the first operation.
func (r *Ring) Enable() error { return nil }

// FD is the ring's file, readable while Poll has something to do. The worker watches it for POLLIN.
func (r *Ring) FD() int { return -1 }

// InForce tells which modes are in force.
func (r *Ring) InForce() Modes { return Modes{} }

// Stats may be read by anybody.
func (r *Ring) Stats() *Stats { return nil }

// Close cancels what is under way, waits for it, telling the handlers, and frees the ring with all its vectors and buffers. On the worker's thread
// after it has removed the ring, or anywhere once that thread is no more.
func (r *Ring) Close() error { return nil }

// Poll hands completions to their handlers, and calls the handlers of timers that are due.
func (r *Ring) Poll() int { return 0 }

// Flush hands the kernel what was pushed.
func (r *Ring) Flush() {}

// Arm tells how long the worker may sleep: until the next timer.
func (r *Ring) Arm() time.Duration { return forever }

// Pending tells whether Poll or Flush have something to do, timers aside.
func (r *Ring) Pending() bool { return false }

// Disarm has nothing to take back.
func (r *Ring) Disarm() {}
