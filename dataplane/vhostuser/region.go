package vhostuser

import (
	"errors"
	"fmt"
)

// ErrRegion says that a memory region, or the table it would belong to, cannot be right.
var ErrRegion = errors.New("bad memory region")

// pageSize is the granularity of guest memory: the smallest page of every Linux machine, and a page of the dirty log.
const pageSize = 4096

// Region is a piece of guest memory, mapped from FD at MmapOffset. GuestAddr is where the guest sees it (descriptors hold such
// addresses), UserAddr where the front-end has it mapped (rings are told in those).
type Region struct {
	GuestAddr, Size, UserAddr, MmapOffset uint64
	FD                                    int
}

// same tells whether both are one piece of memory to the protocol, which names a region to remove by these three.
func (r Region) same(o Region) bool {
	return r.GuestAddr == o.GuestAddr && r.UserAddr == o.UserAddr && r.Size == o.Size
}

// holdsUser tells whether [addr, addr+size) of the front-end's addresses lies inside. r was checked: its end does not wrap.
func (r Region) holdsUser(addr, size uint64) bool {
	return addr >= r.UserAddr && addr-r.UserAddr <= r.Size && size <= r.Size-(addr-r.UserAddr)
}

func (r Region) String() string {
	return fmt.Sprintf("guest %#x size %#x user %#x offset %#x", r.GuestAddr, r.Size, r.UserAddr, r.MmapOffset)
}

// regionTable is what a front-end has mapped here, as numbers: the device holds the mappings.
type regionTable []tableEntry

type tableEntry struct {
	Region // FD is meaningless: it was closed when the device had mapped it
	file   fileID
}

// checkRegion judges a region and its file by themselves.
func checkRegion(r Region) (tableEntry, error) {
	for _, v := range [...]uint64{r.GuestAddr, r.Size, r.UserAddr, r.MmapOffset} {
		if v%pageSize != 0 {
			return tableEntry{}, fmt.Errorf("%w: %v: every number must be a multiple of %d", ErrRegion, r, pageSize)
		}
	}
	switch {
	case r.Size == 0:
		return tableEntry{}, fmt.Errorf("%w: %v: it is empty", ErrRegion, r)
	case r.GuestAddr+r.Size < r.GuestAddr, r.UserAddr+r.Size < r.UserAddr, r.MmapOffset+r.Size < r.MmapOffset:
		return tableEntry{}, fmt.Errorf("%w: %v: its end is beyond 64 bits", ErrRegion, r)
	}
	file, size, err := checkMemory(r.FD)
	if err != nil {
		return tableEntry{}, fmt.Errorf("%w: %v: %w", ErrRegion, r, err)
	}
	if r.MmapOffset+r.Size > size {
		return tableEntry{}, fmt.Errorf("%w: %v: its file has only %#x bytes", ErrRegion, r, size)
	}
	return tableEntry{r, file}, nil
}

// add returns the table with e beside what is there. Overlaps are refused in both address spaces: an
// address must mean one place. The receiver is not changed.
func (t regionTable) add(e tableEntry) (regionTable, error) {
	for _, o := range t {
		if e.GuestAddr < o.GuestAddr+o.Size && o.GuestAddr < e.GuestAddr+e.Size {
			return nil, fmt.Errorf("%w: %v overlaps %v in the guest's addresses", ErrRegion, e.Region, o.Region)
		}
		if e.UserAddr < o.UserAddr+o.Size && o.UserAddr < e.UserAddr+e.Size {
			return nil, fmt.Errorf("%w: %v overlaps %v in the front-end's addresses", ErrRegion, e.Region, o.Region)
		}
	}
	return append(t[:len(t):len(t)], e), nil
}

// find returns the index of the entry that r names, or -1.
func (t regionTable) find(r Region) int {
	for i := range t {
		if t[i].same(r) {
			return i
		}
	}
	return -1
}

// without returns the table with entry i left out. The receiver is not changed.
func (t regionTable) without(i int) regionTable {
	return append(append(make(regionTable, 0, len(t)-1), t[:i]...), t[i+1:]...)
}

// holdsUser tells whether the range lies inside one region.
func (t regionTable) holdsUser(addr, size uint64) bool {
	for i := range t {
		if t[i].holdsUser(addr, size) {
			return true
		}
	}
	return false
}

// bytes is the sum of all sizes. It saturates.
func (t regionTable) bytes() (sum uint64) {
	for i := range t {
		if sum += t[i].Size; sum < t[i].Size {
			return ^uint64(0)
		}
	}
	return sum
}
