package vhostuser

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"runtime/debug"

	"github.com/shuntio/shunt/dataplane/shm"
)

// The area in which a device writes down what it has taken from its rings and not given back (vhost-user, "Inflight I/O
// tracking"). The front-end keeps the file while back-ends come and go:
//
//	┌────────────────┬────────────────┬─────┐
//	│ queue 0 region │ queue 1 region │ ... │   one file, regions of equal size
//	└────────────────┴────────────────┴─────┘
//	┌──────────────────────────┬───────────────┬───────────────┬─────┬─────┐
//	│ SplitQueue / PackedQueue │ entry 0       │ entry 1       │ ... │ own │   one entry a descriptor; own: see Own
//	└──────────────────────────┴───────────────┴───────────────┴─────┴─────┘
//
// What a killed back-end leaves behind is as good as the order of its stores. Those of shm are made in the order they are written down.

// inflightVersion is the version of both layouts; 0 says that nobody has used the region yet.
const inflightVersion = 1

// inflightAlign is a cache line: regions share none.
const inflightAlign = 64

// SplitQueue is the head of a split ring's region. All of it can be changed by the front-end at any time.
type SplitQueue struct {
	Features uint64
	Version  uint16
	// DescNum is the number of entries, the ring's size.
	DescNum uint16
	// LastBatchHead begins the list of those that were given back in the last batch, UsedIdx is the used ring's index before or after it.
	LastBatchHead, UsedIdx uint16
}

// SplitEntry is the state of the chain whose head the descriptor is.
type SplitEntry struct {
	Inflight uint8
	_        [5]uint8
	// Next goes on with the list of the last batch.
	Next uint16
	// Counter orders the chains as they were taken.
	Counter uint64
}

// PackedQueue is the head of a packed ring's region. All of it can be changed by the front-end at any time. What the specification has as several small
// fields is one here where all of them change in one store.
type PackedQueue struct {
	Features uint64
	Version  uint16
	// DescNum is the number of entries, the ring's size.
	DescNum uint16
	// Free begins the list of entries that are free: free_head in the lower half; old_free_head, which was the head before the last batch, in the upper one.
	Free uint32
	// Used is the device's position in the ring, used_idx in bits 0 to 15 and used_wrap_counter in 32 to 39; and before the last batch, old_used_idx in
	// 16 to 31 and old_used_wrap_counter in 40 to 47.
	Used uint64
	_    uint64
}

// PackedEntry is a copy of one descriptor, and for the head of a chain the chain's state.
type PackedEntry struct {
	Inflight uint8
	_        uint8
	// Next free entry, Last entry of the chain, and its Num of entries.
	Next, Last, Num uint16
	// Counter orders the chains as they were taken.
	Counter uint64
	// ID, Flags, Len and Addr are the descriptor's.
	ID, Flags uint16
	Len       uint32
	Addr      uint64
}

// Sizes of these, as the specification's C has them.
const (
	splitQueueBytes, splitEntryBytes   = 16, 16
	packedQueueBytes, packedEntryBytes = 32, 32
)

// Inflight is such an area, mapped.
type Inflight struct {
	// Queues is how many regions there are, Size for how many descriptors each has entries.
	Queues, Size int

	bytes   []byte
	stride  int
	mapping *shm.Mapping
}

// inflightStride is how long a region must be for a layout. One that is long enough for both can be made before the features are known.
func inflightStride(size int, packed bool) int {
	n := splitQueueBytes + splitEntryBytes*size
	if packed {
		n = packedQueueBytes + packedEntryBytes*size
	}
	return (n + inflightAlign - 1) &^ (inflightAlign - 1)
}

// NewInflight makes an area, zeroed, and the file to give to the front-end, which the caller closes. Its size is sealed, so it cannot be taken away under us.
func NewInflight(queues, size int, packed bool) (a *Inflight, fd int, err error) {
	bytes := int64(queues) * int64(inflightStride(size, packed)+OwnBytes)
	fd, err = shm.NewMemFD("shunt-inflight", bytes)
	if err != nil {
		return nil, -1, err
	}
	if a, err = mapInflight(fd, 0, uint64(bytes), queues, size); err != nil {
		closeFD(fd)
		return nil, -1, err
	}
	return a, fd, nil
}

// mapInflight maps an area that this or an earlier back-end made.
func mapInflight(fd int, offset, bytes uint64, queues, size int) (*Inflight, error) {
	_, file, err := checkMemory(fd)
	page := uint64(shm.PageSize(fd))
	switch {
	case err != nil:
		return nil, fmt.Errorf("inflight area: %w", err)
	case offset%page != 0:
		return nil, fmt.Errorf("inflight area: its offset %#x in the file is not a multiple of %d", offset, page)
	case offset > file || bytes > file-offset || bytes > math.MaxInt32:
		return nil, fmt.Errorf("inflight area: %#x bytes at offset %#x of a file of %#x", bytes, offset, file)
	}
	stride := int(bytes) / queues &^ (splitEntryBytes - 1)
	if need := inflightStride(size, false); stride < need {
		return nil, fmt.Errorf("inflight area: %#x bytes are too few for %d rings of %d descriptors", bytes, queues, size)
	}
	shm.KeepSize(fd)
	length := (bytes + page - 1) / page * page
	mapping, err := shm.Map(shm.MapOptions{FD: fd, Offset: int64(offset), Length: int(length)})
	if err != nil {
		return nil, fmt.Errorf("inflight area: %w", err)
	}
	return &Inflight{Queues: queues, Size: size, bytes: mapping.Bytes()[:bytes], stride: stride, mapping: mapping}, nil
}

// OwnBytes is how long the part of a region is that a device has to itself.
const OwnBytes = inflightAlign

// Own is the end of a ring's region, behind all entries: what else a device wants its successor to know. The specification leaves the length of regions to the
// back-end, and its layouts do not reach there. It is zero at first, and Forget leaves it as it is. Nil: the area is one of a back-end that left no room.
func (a *Inflight) Own(queue int, packed bool) []byte {
	b, err := a.region(queue)
	if err != nil || len(b) < inflightStride(a.Size, packed)+OwnBytes {
		return nil
	}
	return b[len(b)-OwnBytes:]
}

// Free unmaps the area. No device may have it any more.
func (a *Inflight) Free() {
	if a != nil {
		_ = a.mapping.Free()
	}
}

// region is the part of one ring.
func (a *Inflight) region(queue int) ([]byte, error) {
	if queue < 0 || queue >= a.Queues {
		return nil, fmt.Errorf("inflight area: there is no ring %d of %d", queue, a.Queues)
	}
	return a.bytes[queue*a.stride:][:a.stride], nil
}

// errInflight refuses what somebody else wrote.
var errInflight = errors.New("inflight area: of another version, or for rings of another size")

// Split views the region of a split ring. One that nobody has used is all zeros, and to be adopted; one that was used for another size is refused.
func (a *Inflight) Split(queue, size int) (*SplitQueue, []SplitEntry, error) {
	b, err := a.region(queue)
	if err != nil {
		return nil, nil, err
	}
	heads, err := shm.View[SplitQueue](b, 1)
	if err != nil {
		return nil, nil, err
	}
	entries, err := shm.View[SplitEntry](b[splitQueueBytes:], size)
	if err != nil {
		return nil, nil, fmt.Errorf("inflight area: ring %d: %w", queue, err)
	}
	q := &heads[0]
	return q, entries, recognize(&q.Version, &q.DescNum, size)
}

// Packed views the region of a packed ring, as Split does that of a split one.
func (a *Inflight) Packed(queue, size int) (*PackedQueue, []PackedEntry, error) {
	b, err := a.region(queue)
	if err != nil {
		return nil, nil, err
	}
	heads, err := shm.View[PackedQueue](b, 1)
	if err != nil {
		return nil, nil, err
	}
	entries, err := shm.View[PackedEntry](b[packedQueueBytes:], size)
	if err != nil {
		return nil, nil, fmt.Errorf("inflight area: ring %d: %w", queue, err)
	}
	q := &heads[0]
	return q, entries, recognize(&q.Version, &q.DescNum, size)
}

// recognize judges what somebody else wrote.
func recognize(version, entries *uint16, size int) error {
	if v := shm.Load16(version); v != 0 && (v != inflightVersion || int(shm.Load16(entries)) != size) {
		return errInflight
	}
	return nil
}

// Adopt makes an unused region one of so many entries; all else that is to be in it is there by then. Adopted tells whether it is used.
func (q *SplitQueue) Adopt(size int) { adopt(&q.Version, &q.DescNum, size) }

// Adopt is as for a split ring.
func (q *PackedQueue) Adopt(size int) { adopt(&q.Version, &q.DescNum, size) }

func adopt(version, entries *uint16, size int) {
	shm.Store16(entries, uint16(size))
	shm.Store16(version, inflightVersion) // last: it says that the rest is there
}

// Adopted tells whether somebody has adopted the region.
func (q *SplitQueue) Adopted() bool { return shm.Load16(&q.Version) != 0 }

// Adopted is as for a split ring.
func (q *PackedQueue) Adopted() bool { return shm.Load16(&q.Version) != 0 }

// Forget makes the region of a ring one that nobody has used.
func (a *Inflight) Forget(queue int) {
	b, err := a.region(queue)
	if err != nil {
		return
	}
	if len(b) >= inflightStride(a.Size, false)+OwnBytes {
		b = b[:len(b)-OwnBytes]
	}
	a.touch(func() {
		if heads, err := shm.View[SplitQueue](b, 1); err == nil { // both layouts begin alike
			shm.Store16(&heads[0].Version, 0)
			clear(b)
		}
	})
}

// touch runs fn, which the front-end may have end early: it can truncate a file whose size could not be sealed. What is to be said of that, a ring that has the
// area says. For goroutines that are no worker's.
func (a *Inflight) touch(fn func()) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		r := recover()
		if r == nil {
			return
		}
		fault, ok := r.(interface {
			runtime.Error
			Addr() uintptr
		})
		if !ok || !a.Contains(fault.Addr()) {
			panic(r)
		}
	}()
	fn()
}

// Fresh tells whether nobody has used the region of a ring yet.
func (a *Inflight) Fresh(queue int) bool {
	b, err := a.region(queue)
	if err != nil {
		return true
	}
	fresh := true
	a.touch(func() {
		heads, err := shm.View[SplitQueue](b, 1) // both layouts begin alike
		fresh = err != nil || shm.Load16(&heads[0].Version) == 0
	})
	return fresh
}

// Contains tells whether the address that a fault reported lies in the area.
func (a *Inflight) Contains(address uintptr) bool {
	return a != nil && address-shm.Address(a.mapping.Bytes()) < uintptr(len(a.mapping.Bytes()))
}

// Features are bits that a back-end keeps with the area, which has no use for them (its feature flags, of which none is defined); those of the first ring stand
// for all.
func (a *Inflight) Features() (bits uint64) {
	a.touch(func() {
		if heads, err := shm.View[SplitQueue](a.bytes, 1); err == nil {
			bits = shm.Load64(&heads[0].Features)
		}
	})
	return bits
}

// SetFeatures replaces them.
func (a *Inflight) SetFeatures(bits uint64) {
	a.touch(func() {
		if heads, err := shm.View[SplitQueue](a.bytes, 1); err == nil {
			shm.Release64(&heads[0].Features, bits)
		}
	})
}
