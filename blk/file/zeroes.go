package file

import (
	"sync"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/dataplane/uring"
	"golang.org/x/sys/unix"
)

// Giving blocks back, and making them zero, in the order in which ways are tried:
//
//	discard       a file:   punch a hole                          ─▶ unsupported
//	              a device: discard, which need not zero          ─▶ the same as a fallocate ─▶ punch (zero without writing) ─▶ unsupported
//	write zeroes  unmap:    punch a hole                          ─▶ zero the range ─▶ write
//	              else:     zero the range, which stays allocated ─▶ write
//
// For a device the kernel makes the same calls its own (blkdev_fallocate). To discard there was a flag among them, which 6.12 has replaced by a command of io_uring: many a disk can discard,
// and cannot zero without writing.

const (
	// fallocatePart bounds one operation: it cannot be cancelled once a thread of io-wq is at it.
	fallocatePart = 1 << 30

	// zeroChunk is how much memory is zero, zeroVector how many times it is written at once: 4 MiB.
	zeroChunk  = 256 << 10
	zeroVector = 16
)

// zeroMemory is what all stores write zeroes from. The kernel only reads it, for longer than a store lasts where a file hangs; it is kept for good.
var zeroMemory = sync.OnceValues(func() (*uring.Memory, error) { return uring.NewMemory(zeroChunk) })

// discards is how a device is asked to discard.
func (s *Store) discards() stage {
	switch {
	case !s.noDiscard.Load():
		return discarding
	case !s.noFree.Load():
		return freeing
	}
	return punching
}

// fallocate gives blocks back or makes them zero.
func (l *lane) fallocate(s *slot) bool {
	offset, mode := int64(s.r.Offset+s.done), uint32(unix.FALLOC_FL_KEEP_SIZE)
	s.length = min(s.r.Length-s.done, fallocatePart)
	switch s.stage {
	case discarding:
		return l.ring.Discard(&s.op, l.file, offset, int64(s.length))
	case punching:
		mode |= unix.FALLOC_FL_PUNCH_HOLE
	case freeing:
		mode |= unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_NO_HIDE_STALE
	case ranging:
		mode |= unix.FALLOC_FL_ZERO_RANGE
	}
	return l.ring.Fallocate(&s.op, l.file, mode, offset, int64(s.length))
}

// fallBack takes the next way, and remembers that this one does not exist; false: there is none.
func (l *lane) fallBack(s *slot) bool {
	switch {
	case s.stage == discarding:
		l.store.noDiscard.Store(true)
		s.stage = l.store.discards()
	case s.stage == freeing:
		l.store.noFree.Store(true)
		s.stage = punching
	case s.stage == punching && s.r.Op == blk.OpWriteZeroes:
		l.store.noPunch.Store(true)
		s.stage = ranging
		if l.store.noRange.Load() {
			s.stage = writingZeroes
		}
	case s.stage == ranging:
		l.store.noRange.Store(true)
		s.stage = writingZeroes
	default:
		return false
	}
	return true
}

// writeZeroes writes them.
func (l *lane) writeZeroes(s *slot) bool {
	if s.vector == nil {
		if s.vector = l.ring.Vector(zeroVector); s.vector == nil {
			return false
		}
	}
	s.vector.Reset()
	zeroes := l.store.zeroes.Bytes()
	for left := s.r.Length - s.done; left > 0 && s.vector.Len() < zeroVector*zeroChunk; {
		n := min(left, uint64(len(zeroes)))
		s.vector.Add(zeroes[:n])
		left -= n
	}
	return l.write(s, s.r.Offset+s.done)
}
