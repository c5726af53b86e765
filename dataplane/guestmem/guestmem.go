// Package guestmem is a guest's memory as its front-end shares it: regions of guest-physical addresses, each a mapping of a file
// that the guest and its VMM write at any time.
//
// A Map is an immutable snapshot, so a worker translates addresses without a lock:
//
//	control:  Open ─▶ new Map ─▶ swap it in on the worker (a grace point) ─▶ old.Revoke ─▶ grace point on all ─▶ old.Free
//	worker:   Map.View(address, length) ─▶ []byte, bounded by its region
//	          Log.Mark(address, length)    while the guest moves to another machine
//
// Addresses come in two kinds: descriptors carry guest-physical ones, vhost-user's ring addresses are the front-end's own
// virtual ones (vhost-user, "Memory region description").
package guestmem

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/shuntio/shunt/dataplane/shm"
)

// MaxRegions is how many regions a Map takes; vhost-user's CONFIGURE_MEM_SLOTS front-ends use at most 509.
const MaxRegions = 509

// maxMapped bounds what all guests together have mapped: half the addresses a process has (2^47 bytes). A file may be larger than all
// memory there is, and the Go runtime ends a process that can reserve no more addresses.
const maxMapped = 1 << 46

// maxMappings bounds how many mappings that may be. The kernel gives a process 65530 (vm.max_map_count), guests can have hundreds each, and the Go
// runtime ends a process that gets no more.
const maxMappings = 1 << 15

// mapped and mappings are how much of that is used.
var mapped, mappings atomic.Int64

// ErrRegion is wrapped by every refusal of a memory table.
var ErrRegion = errors.New("bad memory region")

// Region describes one region as vhost-user tells it.
type Region struct {
	// GuestAddr is its first guest-physical address, UserAddr the front-end's virtual one.
	GuestAddr, UserAddr uint64
	// Size in bytes.
	Size uint64
	// Offset is where the region begins in the file.
	Offset uint64
	// FD is the file; it must be memory (shm.CheckBacking). Stays the caller's.
	FD int
}

type region struct {
	Region
	bytes   []byte
	mapping *shm.Mapping
}

func (r *region) free() error {
	release(len(r.mapping.Bytes()))
	return r.mapping.Free()
}

// release takes one mapping of a length out of the sums.
func release(length int) {
	mapped.Add(-int64(length))
	mappings.Add(-1)
}

// Map is a guest's memory at one time.
type Map struct {
	regions []region // by GuestAddr
}

// Open maps the regions. It refuses overlapping, wrapping or empty ones and those longer than their file.
func Open(regions []Region) (_ *Map, err error) {
	if len(regions) > MaxRegions {
		return nil, fmt.Errorf("%w: %d regions, at most %d are possible", ErrRegion, len(regions), MaxRegions)
	}
	m := &Map{}
	defer func() {
		if err != nil {
			m.Free()
		}
	}()
	for _, r := range regions {
		opened, err := open(r)
		if err != nil {
			return nil, err
		}
		m.regions = append(m.regions, opened)
	}
	if err := m.sort(); err != nil {
		return nil, err
	}
	return m, nil
}

// sort brings the regions in order and refuses overlaps.
func (m *Map) sort() error {
	slices.SortFunc(m.regions, func(a, b region) int { return cmp.Compare(a.GuestAddr, b.GuestAddr) })
	for i := 1; i < len(m.regions); i++ {
		if a, b := &m.regions[i-1], &m.regions[i]; b.GuestAddr-a.GuestAddr < a.Size {
			return fmt.Errorf("%w: guest addresses %#x+%#x and %#x overlap", ErrRegion, a.GuestAddr, a.Size, b.GuestAddr)
		}
	}
	return nil
}

// With returns a map that has one region more. The others are shared with m, which is not to be freed any more once the new
// one is in use. A nil m has no regions.
func (m *Map) With(r Region) (*Map, error) {
	more := &Map{}
	if m != nil {
		more.regions = slices.Clone(m.regions)
	}
	if len(more.regions) == MaxRegions {
		return nil, fmt.Errorf("%w: there are %d already", ErrRegion, MaxRegions)
	}
	opened, err := open(r)
	if err != nil {
		return nil, err
	}
	more.regions = append(more.regions, opened)
	if err := more.sort(); err != nil {
		_ = opened.free()
		return nil, err
	}
	return more, nil
}

// Without returns a map that lacks the region at a guest address and user address, and that region as a map of its own, to be
// revoked and freed. The others are shared with m.
func (m *Map) Without(guestAddr, userAddr, size uint64) (rest, removed *Map, err error) {
	rest, removed = &Map{}, &Map{}
	if m != nil {
		for _, r := range m.regions {
			if r.GuestAddr == guestAddr && r.UserAddr == userAddr && r.Size == size {
				removed.regions = append(removed.regions, r)
			} else {
				rest.regions = append(rest.regions, r)
			}
		}
	}
	if len(removed.regions) == 0 {
		return nil, nil, fmt.Errorf("%w: there is none at guest address %#x of %#x bytes", ErrRegion, guestAddr, size)
	}
	return rest, removed, nil
}

func open(r Region) (region, error) {
	fail := func(why string) (region, error) {
		return region{}, fmt.Errorf("%w: guest address %#x, size %#x, file offset %#x: %s", ErrRegion, r.GuestAddr, r.Size, r.Offset, why)
	}
	size, err := shm.CheckBacking(r.FD)
	switch {
	case err != nil:
		return region{}, fmt.Errorf("%w: guest address %#x: %w", ErrRegion, r.GuestAddr, err)
	case r.Size == 0:
		return fail("it is empty")
	case r.Size > 1<<46:
		return fail("it is larger than an address space")
	case r.Offset > 1<<46:
		return fail("its offset is larger than an address space")
	case r.GuestAddr+r.Size < r.GuestAddr || r.UserAddr+r.Size < r.UserAddr || r.Offset+r.Size < r.Offset:
		return fail("it wraps around")
	case r.Offset+r.Size > uint64(size):
		return fail(fmt.Sprintf("the file has only %#x bytes", size))
	}
	// Whole pages are mapped, which are huge ones on hugetlbfs; the region may begin and end within one.
	page := uint64(shm.PageSize(r.FD))
	begin := r.Offset / page * page
	length := (r.Offset + r.Size - begin + page - 1) / page * page
	all, count := mapped.Add(int64(length)), mappings.Add(1)
	switch {
	case all > maxMapped:
		release(int(length))
		return fail(fmt.Sprintf("%#x bytes of guests' memory are mapped already, at most %#x are possible", all-int64(length), maxMapped))
	case count > maxMappings:
		release(int(length))
		return fail(fmt.Sprintf("all guests together have %d regions already, the most that is possible: give guests fewer and larger ones", maxMappings))
	}
	mapping, err := shm.Map(shm.MapOptions{FD: r.FD, Offset: int64(begin), Length: int(length)})
	if err != nil {
		release(int(length))
		return region{}, fmt.Errorf("%w: %w", ErrRegion, err)
	}
	return region{Region: r, bytes: mapping.Bytes()[r.Offset-begin:][:r.Size], mapping: mapping}, nil
}

// scanned is how many regions are looked through one by one. Most guests have two or three; only hotplug in small steps makes hundreds.
const scanned = 8

// near returns the regions among which addr lies, if in any: all of few, one of many.
func (m *Map) near(addr uint64) []region {
	if len(m.regions) <= scanned {
		return m.regions
	}
	return m.search(addr)
}

// search finds the last region that begins at or below addr.
func (m *Map) search(addr uint64) []region {
	low, high := 0, len(m.regions) // all below low begin at or below addr, all from high on above it
	for low < high {
		if mid := int(uint(low+high) / 2); m.regions[mid].GuestAddr <= addr {
			low = mid + 1
		} else {
			high = mid
		}
	}
	return m.regions[max(low, 1)-1 : max(low, 1)]
}

// View returns n bytes from a guest-physical address; nil unless all of them lie in one region. It is valid until the worker that
// asked passes a grace point after the map was swapped out.
func (m *Map) View(addr uint64, n uint32) []byte {
	regions := m.near(addr)
	for i := range regions {
		r := &regions[i]
		// One comparison each, none of which can wrap: off is huge below the region's start.
		if off := addr - r.GuestAddr; off < r.Size && uint64(n) <= r.Size-off {
			return r.bytes[off : off+uint64(n) : off+uint64(n)]
		}
	}
	return nil
}

// Prefix returns as many of the n bytes from addr on as lie in its region: the slow way, for buffers that cross from one region into the next.
func (m *Map) Prefix(addr uint64, n uint32) []byte {
	regions := m.near(addr)
	for i := range regions {
		r := &regions[i]
		if off := addr - r.GuestAddr; off < r.Size {
			fits := min(uint64(n), r.Size-off)
			return r.bytes[off : off+fits : off+fits]
		}
	}
	return nil
}

// User returns n bytes from one of the front-end's virtual addresses; nil unless all of them lie in one region.
func (m *Map) User(addr uint64, n int) []byte {
	for i := range m.regions {
		r := &m.regions[i]
		if off := addr - r.UserAddr; off < r.Size && uint64(n) <= r.Size-off {
			return r.bytes[off : off+uint64(n) : off+uint64(n)]
		}
	}
	return nil
}

// Guest returns the guest-physical address of a view of this map, for the dirty log; false for memory that is not the guest's.
func (m *Map) Guest(view []byte) (addr uint64, ok bool) {
	at := shm.Address(view)
	for i := range m.regions {
		r := &m.regions[i]
		if off := uint64(at - shm.Address(r.bytes)); off < r.Size && uint64(len(view)) <= r.Size-off {
			return r.GuestAddr + off, true
		}
	}
	return 0, false
}

// Regions returns what the map was made of, by guest address.
func (m *Map) Regions() []Region {
	all := make([]Region, len(m.regions))
	for i := range m.regions {
		all[i] = m.regions[i].Region
	}
	return all
}

// Contains tells whether the address that a fault reported lies in this guest's memory.
func (m *Map) Contains(address uintptr) bool {
	for i := range m.regions {
		b := m.regions[i].mapping.Bytes()
		if address-shm.Address(b) < uintptr(len(b)) {
			return true
		}
	}
	return false
}

// Revoke takes the memory away, keeping its addresses reserved: stale views fault from now on.
func (m *Map) Revoke() error {
	var errs []error
	for i := range m.regions {
		errs = append(errs, m.regions[i].mapping.Revoke())
	}
	return errors.Join(errs...)
}

// Free gives the addresses back. No worker may hold a view any more.
func (m *Map) Free() error {
	var errs []error
	for i := range m.regions {
		errs = append(errs, m.regions[i].free())
	}
	m.regions = nil
	return errors.Join(errs...)
}
