package shm

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// View returns n elements of T that lie at b's start. T must hold no pointers and have the layout that the other
// side uses; its alignment is checked, because a guest chooses the address.
func View[T any](b []byte, n int) ([]T, error) {
	var t T
	size := int(unsafe.Sizeof(t))
	if n < 0 || n > len(b)/size {
		return nil, fmt.Errorf("%d elements of %d bytes do not fit %d bytes", n, size, len(b))
	}
	p := unsafe.Pointer(unsafe.SliceData(b))
	if uintptr(p)%unsafe.Alignof(t) != 0 {
		return nil, fmt.Errorf("address is not aligned to %d bytes", unsafe.Alignof(t))
	}
	return unsafe.Slice((*T)(p), n), nil
}

// Address is where b lies, to compare with the address that a fault reports.
func Address(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }

// Load32 loads with acquire order.
func Load32(p *uint32) uint32 { return atomic.LoadUint32(p) }

// Store32 stores with (at least) release order.
func Store32(p *uint32, v uint32) { atomic.StoreUint32(p, v) }

// Load64 loads with acquire order.
func Load64(p *uint64) uint64 { return atomic.LoadUint64(p) }

// Store64 stores with (at least) release order.
func Store64(p *uint64, v uint64) { atomic.StoreUint64(p, v) }

// revoke replaces the pages of b, at their place, by an inaccessible reservation.
func revoke(b []byte) error {
	_, err := unix.MmapPtr(-1, 0, unsafe.Pointer(unsafe.SliceData(b)), uintptr(len(b)),
		unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_FIXED|unix.MAP_NORESERVE)
	return err
}
