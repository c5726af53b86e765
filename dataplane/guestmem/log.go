package guestmem

import (
	"fmt"
	"math/bits"
	"sync/atomic"

	"github.com/shuntio/shunt/dataplane/shm"
)

// LogPage is how much guest memory one bit of a Log stands for.
const LogPage = 4096

// maxLog bounds a log: the bits of 64 TiB of guest addresses.
const maxLog = 1 << 31

// LogOptions describe the file of a Log; all must be set.
type LogOptions struct {
	// FD is the file; it must be memory (shm.CheckBacking). Stays the caller's.
	FD int
	// Offset is where the bits begin in the file, a multiple of 8, and Size how many bytes of them there are.
	Offset, Size uint64
}

// Log is the dirty bitmap of a live migration (vhost-user, SET_LOG_BASE): one bit for each 4 KiB of guest-physical addresses.
//
//	worker:     write the guest's memory ─▶ Mark ─▶ make it visible (used.idx)
//	front-end:  take a word of bits and clear it, atomically ─▶ copy the pages to the destination
//
// The order is the point. A page marked before it is written could be copied between the two, and its new content would be lost; one
// made visible before it is marked could be read by a guest that moves before the page does. The front-end may swap bits away
// at any time, so they are only ever ORed in.
//
// The front-end owns the file and could truncate it. It is kept from that where the file allows it; where not, Mark faults, and Contains
// tells whose fault it is. All methods may be called from several workers at once; a nil Log takes no marks.
type Log struct {
	words   []uint64
	pages   uint64
	mapping *shm.Mapping
	event   atomic.Int32 // descriptor and one; 0: none
	missed  atomic.Uint64
}

// OpenLog maps a log.
func OpenLog(o LogOptions) (*Log, error) {
	fail := func(why string) (*Log, error) {
		return nil, fmt.Errorf("dirty log of %#x bytes at file offset %#x: %s", o.Size, o.Offset, why)
	}
	size, err := shm.CheckBacking(o.FD)
	switch {
	case err != nil:
		return nil, fmt.Errorf("dirty log: %w", err)
	case o.Size == 0 || o.Size > maxLog:
		return fail(fmt.Sprintf("its size must be between 1 and %#x", maxLog))
	case o.Offset%8 != 0:
		return fail("its offset must be a multiple of 8")
	case o.Offset > uint64(size) || o.Size > uint64(size)-o.Offset:
		return fail(fmt.Sprintf("the file has only %#x bytes", size))
	}
	shm.KeepSize(o.FD)
	page := uint64(shm.PageSize(o.FD))
	begin := o.Offset / page * page
	length := (o.Offset + o.Size - begin + page - 1) / page * page
	mapping, err := shm.Map(shm.MapOptions{FD: o.FD, Offset: int64(begin), Length: int(length)})
	if err != nil {
		return nil, fmt.Errorf("dirty log: %w", err)
	}
	// A last word that is cut short still lies in a mapped page; pages keeps its other bits from being touched.
	words, err := shm.View[uint64](mapping.Bytes()[o.Offset-begin:], int((o.Size+7)/8))
	if err != nil {
		_ = mapping.Free()
		return nil, fmt.Errorf("dirty log: %w", err)
	}
	return &Log{words: words, pages: o.Size * 8, mapping: mapping}, nil
}

// Mark says that n bytes from a guest-physical address were written. What the log has no bits for is counted and left out: the front-end
// did not ask for it.
func (l *Log) Mark(addr, n uint64) {
	if l == nil || n == 0 {
		return
	}
	first, last := addr/LogPage, (addr+n-1)/LogPage
	if last < first || last >= l.pages {
		l.missed.Add(1)
		if first >= l.pages {
			return
		}
		last = l.pages - 1
	}
	fresh := false
	for w := first / 64; w <= last/64; w++ {
		mask := ^uint64(0)
		if w == first/64 {
			mask <<= first % 64
		}
		if w == last/64 {
			mask &= ^uint64(0) >> (63 - last%64)
		}
		// Never skipped for bits that seem to be set: they can be swapped away while our write of the page is still on its way to
		// memory. The atomic OR orders it before the bits.
		fresh = atomic.OrUint64(&l.words[w], mask)&mask != mask || fresh
	}
	if fresh {
		l.notify()
	}
}

// Take is the front-end's side, for load generators and tests: it takes all marks away and visits each marked page by its number. What is copied in a
// visit may be older than the page's next mark, never than the one that was taken.
func (l *Log) Take(visit func(page uint64)) {
	for w := range l.words {
		for taken := atomic.SwapUint64(&l.words[w], 0); taken != 0; taken &= taken - 1 {
			visit(uint64(w)*64 + uint64(bits.TrailingZeros64(taken)))
		}
	}
}

// notify signals the front-end's eventfd, of those few that gave one.
func (l *Log) notify() {
	if fd := l.event.Load(); fd > 0 {
		shm.Signal(int(fd - 1))
	}
}

// SetEvent gives an eventfd that is signalled when a page becomes dirty; negative: none. The one before may be closed when every worker has ended
// the round it was in.
func (l *Log) SetEvent(fd int) { l.event.Store(int32(max(fd, -1) + 1)) }

// Missed is how many marks lay partly or wholly beyond the log.
func (l *Log) Missed() uint64 { return l.missed.Load() }

// Contains tells whether the address that a fault reported lies in the log.
func (l *Log) Contains(address uintptr) bool {
	if l == nil {
		return false
	}
	b := l.mapping.Bytes()
	return address-shm.Address(b) < uintptr(len(b))
}

// Free unmaps the log. No worker may use it any more.
func (l *Log) Free() error { return l.mapping.Free() }
