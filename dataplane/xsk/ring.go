package xsk

import (
	"fmt"

	"github.com/shuntio/shunt/dataplane/shm"
	"golang.org/x/sys/unix"
)

// Desc describes a frame in the rx and tx rings (struct xdp_desc). The fill and completion rings carry bare addresses.
type Desc = unix.XDPDesc

// Producer is our end of a ring that we write: fill or tx. Its verbs come in pairs: Reserve slots, Set each, Submit.
// One goroutine at a time.
type Producer[T any] struct {
	desc []T // shared with the kernel, which only reads it
	mask uint32

	// producer is written by us alone, read by the kernel.
	producer *uint32
	// consumer is written by the kernel alone.
	consumer *uint32
	// flags is written by the kernel alone: XDP_RING_NEED_WAKEUP.
	flags *uint32

	// next is what we last stored in *producer. It is cached so that the shared cell is never read here: whatever is written
	// there meanwhile can't confuse us.
	next uint32
	// seen is *consumer as last loaded. The kernel only moves it on, so the room it shows is there; loading again is a
	// cache miss each time the kernel wrote, and waits until the room seen is not enough.
	seen uint32
}

// Consumer is our end of a ring that the kernel writes: rx or completion. Its verbs come in pairs: Peek, At each, Release.
// One goroutine at a time.
type Consumer[T any] struct {
	desc []T // shared with the kernel, which writes it
	mask uint32

	// producer is written by the kernel alone.
	producer *uint32
	// consumer is written by us alone, read by the kernel.
	consumer *uint32

	// next is what we last stored in *consumer, cached for the reason given in Producer.
	next uint32
	// seen is *producer as last loaded: entries up to it are there. It is loaded again when they don't fill the
	// caller's batch.
	seen uint32
}

// newProducer finds the ring in its mapping.
func newProducer[T any](b []byte, off unix.XDPRingOffset, size int) (r Producer[T], err error) {
	r.producer, r.consumer, r.flags, err = cells(b, off)
	if err == nil {
		r.desc, err = entries[T](b, off, size)
	}
	if err != nil {
		return Producer[T]{}, err
	}
	r.mask = uint32(size - 1)
	r.next = shm.Load32(r.producer)
	r.seen = shm.Load32(r.consumer)
	return r, nil
}

// newConsumer finds the ring in its mapping.
func newConsumer[T any](b []byte, off unix.XDPRingOffset, size int) (r Consumer[T], err error) {
	r.producer, r.consumer, _, err = cells(b, off)
	if err == nil {
		r.desc, err = entries[T](b, off, size)
	}
	if err != nil {
		return Consumer[T]{}, err
	}
	r.mask = uint32(size - 1)
	r.next = shm.Load32(r.consumer)
	r.seen = r.next
	return r, nil
}

// cells finds the shared indices and flags.
func cells(b []byte, off unix.XDPRingOffset) (producer, consumer, flags *uint32, err error) {
	var p [3]*uint32
	for i, at := range [3]uint64{off.Producer, off.Consumer, off.Flags} {
		if at > uint64(len(b)) {
			return nil, nil, nil, fmt.Errorf("ring index at %d, the mapping has %d bytes", at, len(b))
		}
		v, err := shm.View[uint32](b[at:], 1)
		if err != nil {
			return nil, nil, nil, fmt.Errorf("ring index at %d: %w", at, err)
		}
		p[i] = &v[0]
	}
	return p[0], p[1], p[2], nil
}

// entries finds the ring's descriptors.
func entries[T any](b []byte, off unix.XDPRingOffset, size int) ([]T, error) {
	if size <= 0 || size&(size-1) != 0 {
		return nil, fmt.Errorf("ring of %d entries: must be a power of two", size)
	}
	if off.Desc > uint64(len(b)) {
		return nil, fmt.Errorf("ring entries at %d, the mapping has %d bytes", off.Desc, len(b))
	}
	return shm.View[T](b[off.Desc:], size)
}

// Len is the ring's size in entries; 0 if the socket has no such ring.
func (r *Producer[T]) Len() int { return len(r.desc) }

// Reserve returns how many slots may be Set now, at most n. Nothing is taken until Submit.
func (r *Producer[T]) Reserve(n int) int {
	free := uint32(len(r.desc)) - r.used()
	if free < uint32(n) && len(r.desc) != 0 {
		r.seen = shm.Load32(r.consumer) // acquire: the kernel has read the slots it gives back
		free = uint32(len(r.desc)) - r.used()
	}
	return int(min(free, uint32(n)))
}

// used is how many entries were unread when last seen; all of them if the kernel's index makes no sense.
func (r *Producer[T]) used() uint32 { return min(r.next-r.seen, uint32(len(r.desc))) }

// Set writes the i-th slot behind what was submitted. i is below what Reserve returned.
func (r *Producer[T]) Set(i int, v T) { r.desc[(r.next+uint32(i))&r.mask] = v }

// Submit hands the first n slots to the kernel. n is at most what Reserve returned.
func (r *Producer[T]) Submit(n int) {
	if n == 0 {
		return
	}
	r.next += uint32(n)
	shm.Release32(r.producer, r.next) // release: the slots are written before the kernel can see them
}

// Unread is how many submitted entries the kernel has not taken yet.
func (r *Producer[T]) Unread() int {
	if len(r.desc) == 0 {
		return 0
	}
	r.seen = shm.Load32(r.consumer)
	return int(r.used())
}

// NeedWakeup tells whether the kernel wants a system call to go on with this ring. The caller fences between
// Submit and NeedWakeup: the kernel sets the flag and then looks for entries, we store entries and then look at
// the flag, and without a full fence on each side both can miss the other.
func (r *Producer[T]) NeedWakeup() bool {
	return len(r.desc) != 0 && shm.Load32(r.flags)&unix.XDP_RING_NEED_WAKEUP != 0
}

// Len is the ring's size in entries; 0 if the socket has no such ring.
func (r *Consumer[T]) Len() int { return len(r.desc) }

// Peek returns how many entries can be read now, at most n. They stay in the ring until Release.
func (r *Consumer[T]) Peek(n int) int {
	ready := r.ready()
	if ready < uint32(n) && len(r.desc) != 0 {
		r.seen = shm.Load32(r.producer) // acquire: entries and the frames behind them are read after it
		ready = r.ready()
	}
	return int(min(ready, uint32(n)))
}

// ready is how many entries were there when last seen; none if the kernel's index makes no sense.
func (r *Consumer[T]) ready() uint32 {
	if n := r.seen - r.next; n <= uint32(len(r.desc)) {
		return n
	}
	return 0
}

// At reads the i-th entry. i is below what Peek returned.
func (r *Consumer[T]) At(i int) T { return r.desc[(r.next+uint32(i))&r.mask] }

// Release gives the first n entries' slots back to the kernel. n is at most what Peek returned.
func (r *Consumer[T]) Release(n int) {
	if n == 0 {
		return
	}
	r.next += uint32(n)
	shm.Release32(r.consumer, r.next) // release: the entries are read before the kernel can overwrite them
}
