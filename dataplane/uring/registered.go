package uring

import (
	"errors"
	"fmt"

	"github.com/shuntio/shunt/dataplane/shm"
	"golang.org/x/sys/unix"
)

// maxBuffers is how many pieces of memory may be registered: 256 GiB of one guest, or several guests'.
const maxBuffers = 256

// registered is memory that the kernel has pinned, in pieces of at most 1 GiB: it refuses longer ones.
type registered struct {
	pieces []piece // by slot of the kernel's table
	n      int     // in use
}

type piece struct{ begin, end uint64 }

// ErrBuffers says that no more memory can be registered.
var ErrBuffers = errors.New("no more memory can be registered with the io_uring")

// RegisterMemory pins memory, such as a region of a guest's, for the fixed form of Readv and Writev, which is taken for vectors that lie in one GiB of
// it. The worker stands still while every page is brought in. Memory that is punched out of its file afterwards (by a balloon, or discard) is silently
// no longer what is read and written here: only for guests that do neither.
func (r *Ring) RegisterMemory(b []byte) error {
	for rest := b; len(rest) > 0; {
		one := rest[:min(len(rest), maxBuffer)]
		if err := r.registerPiece(one); err != nil {
			_ = r.UnregisterMemory(b)
			return fmt.Errorf("register %d bytes of memory: %w", len(b), err)
		}
		rest = rest[len(one):]
	}
	return nil
}

func (r *Ring) registerPiece(b []byte) error {
	at := 0
	for at < len(r.memory.pieces) && r.memory.pieces[at].end != 0 {
		at++
	}
	if at == maxBuffers {
		return fmt.Errorf("%w: there are %d pieces already", ErrBuffers, maxBuffers)
	}
	switch err := updateBuffer(r.fd, uint32(at), b); {
	case errors.Is(err, unix.EEXIST):
		return ErrThread
	case errors.Is(err, unix.ENOMEM):
		return fmt.Errorf("%w: raise the limit of locked memory (LimitMEMLOCK)", err)
	case err != nil:
		return err
	}
	if at == len(r.memory.pieces) {
		r.memory.pieces = append(r.memory.pieces, piece{})
	}
	begin := uint64(shm.Address(b))
	r.memory.pieces[at] = piece{begin, begin + uint64(len(b))}
	r.memory.n++
	return nil
}

// UnregisterMemory takes RegisterMemory back. What is under way goes on; the pages are let go when it has ended.
func (r *Ring) UnregisterMemory(b []byte) error {
	for range len(r.sqes) { // what was pushed knows the memory by its number
		if r.unsent() {
			r.enter()
		}
	}
	begin := uint64(shm.Address(b))
	var errs []error
	for i, p := range r.memory.pieces {
		if p.end == 0 || p.begin < begin || p.end > begin+uint64(len(b)) {
			continue
		}
		errs = append(errs, updateBuffer(r.fd, uint32(i), nil))
		r.memory.pieces[i] = piece{}
		r.memory.n--
	}
	return errors.Join(errs...)
}

// holds finds the piece that all of a vector lies in. In the fixed form the kernel refuses a vector that is too much for it.
func (m *registered) holds(v *Vector) (uint16, bool) {
	if m.n == 0 || v.first == v.last || v.bytes > maxTransfer {
		return 0, false
	}
	low, high := ^uint64(0), uint64(0)
	for i := v.first; i < v.last; i++ {
		low, high = min(low, v.iovecs[i].base), max(high, v.iovecs[i].base+v.iovecs[i].len)
	}
	for i := range m.pieces {
		if p := &m.pieces[i]; p.begin <= low && high <= p.end {
			return uint16(i), true
		}
	}
	return 0, false
}
