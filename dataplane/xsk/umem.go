package xsk

import (
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"

	"github.com/shuntio/shunt/dataplane/frame"
	"golang.org/x/sys/unix"
)

// UMEM is a frame memory as AF_XDP sockets use it: one for the daemon, however many sockets, queues and devices.
type UMEM struct {
	memory *frame.Memory

	// holders is the ledger: for each frame the mark of who holds it in the kernel, or ours. An entry is written by the
	// worker that owns the frame at the moment it gives it to the kernel, and by the one that takes it back: always the same
	// for what was transmitted, any of those that share the queue for what was received. The rings order the two. Marks
	// are a port's own, so whoever finds another's, at any time, knows that the frame is not his.
	holders []mark

	mu      sync.Mutex // guards what follows; never taken on the data path
	sockets []*Socket  // open ones
	queues  mark       // marks handed out
}

// mark names one of the two directions in which a port's frames are with the kernel.
type mark = uint32

// ours marks a frame that the kernel does not hold.
const ours mark = 0

// NewUMEM makes a memory ready for sockets. The kernel is told of it, and pins its pages, when the first one is opened.
func NewUMEM(memory *frame.Memory) *UMEM {
	return &UMEM{memory: memory, holders: make([]mark, memory.Len())}
}

// Memory is what frames lie in.
func (u *UMEM) Memory() *frame.Memory { return u.memory }

// marks returns two that no other port has.
func (u *UMEM) marks() (fill, tx mark, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.queues > math.MaxUint32-2 {
		return 0, 0, errors.New("more than two thousand million AF_XDP ports were made of one UMEM")
	}
	u.queues += 2
	return u.queues - 1, u.queues, nil
}

// give marks a frame as the kernel's.
func (u *UMEM) give(f *frame.Frame, to mark) { store(&u.holders[f.Address()/frame.ChunkSize], to) }

// take returns the frame that an address from a ring lies in, if it was given to that ring's counterpart and has not been
// taken back since; else nil. off is where in its chunk the address lies. Where several workers take what one gave (shared), an address
// that comes up in the rings of two is believed once.
func (u *UMEM) take(address uint64, from mark, shared bool) (f *frame.Frame, off uint32) {
	f, off = u.memory.At(address)
	if f == nil {
		return nil, 0
	}
	holder := &u.holders[address/frame.ChunkSize]
	switch {
	case shared:
		if !atomic.CompareAndSwapUint32(holder, from, ours) {
			return nil, 0
		}
	case load(holder) != from:
		return nil, 0
	default:
		store(holder, ours)
	}
	return f, off
}

// reclaim gives the pool every frame that bears one of the marks, and returns how many those were.
func (u *UMEM) reclaim(pool *frame.Pool, fill, tx mark) (n int) {
	for i := range u.holders {
		if m := load(&u.holders[i]); m == fill || m == tx {
			f, _ := u.memory.At(uint64(i) * frame.ChunkSize)
			store(&u.holders[i], ours)
			pool.Put(f)
			n++
		}
	}
	return n
}

// owned tells whether an open socket owns the queue. The caller holds mu.
func (u *UMEM) owned(d *Device, queue int) bool {
	for _, s := range u.sockets {
		if s.o.Owner == nil && s.o.Device.is(d) && s.o.Queue == queue {
			return true
		}
	}
	return false
}

// donor finds an open socket that the new one may share its registration with. The kernel makes zero-copy a property of the
// registration: who shares gets the first one's mode, whatever his own device could do. So sockets share if they ask for the
// same mode by name or are on the same device; the others register the same memory once more, which pins no further pages but
// is charged to RLIMIT_MEMLOCK again. The caller holds mu.
func (u *UMEM) donor(o *SocketOptions) *Socket {
	for _, s := range u.sockets {
		if s.o.Mode == o.Mode && s.o.MultiBuffer == o.MultiBuffer &&
			(o.Mode != ModeAuto || s.o.Device.is(&o.Device)) {
			return s
		}
	}
	return nil
}

// register brings the memory along with fd's socket.
func (u *UMEM) register(fd int) error {
	b := u.memory.Bytes()
	err := registerUMEM(fd, b, frame.ChunkSize)
	if errors.Is(err, unix.ENOBUFS) && raiseMemoryLock(uint64(len(b))) == nil {
		err = registerUMEM(fd, b, frame.ChunkSize)
	}
	switch {
	case errors.Is(err, unix.ENOBUFS):
		return fmt.Errorf("%w of %d KiB; grant CAP_IPC_LOCK, or raise it (LimitMEMLOCK= of the unit, ulimit -l)",
			ErrMemoryLock, len(b)>>10)
	case err != nil:
		return fmt.Errorf("register a UMEM of %d bytes: %w", len(b), err)
	}
	return nil
}

// raiseMemoryLock allows this process n more locked bytes than now.
func raiseMemoryLock(n uint64) error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
		return err
	}
	if limit.Cur > ^uint64(0)-n {
		return nil
	}
	limit.Cur += n
	limit.Max = max(limit.Max, limit.Cur)
	return unix.Setrlimit(unix.RLIMIT_MEMLOCK, &limit)
}

func (u *UMEM) forget(s *Socket) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for i, t := range u.sockets {
		if s == t {
			u.sockets = append(u.sockets[:i], u.sockets[i+1:]...)
			return
		}
	}
}
