package vhostuser

import (
	"sync"

	"github.com/shuntio/shunt/dataplane/guestmem"
	"github.com/shuntio/shunt/dataplane/virtq"
)

// Memory is the guest's memory as a Device keeps it: what SetMemory, AddMemory and RemoveMemory are for every kind of device.
//
//	regions ─▶ mapped ─▶ Use: the workers have the new map, and no view of the old one
//	                       └─▶ what is gone: PROT_NONE ─▶ Grace ─▶ unmapped, unless held
//
// The goroutine that serves the connection calls it, or whoever else holds the device's lock; Hold and Release are for workers.
type Memory struct {
	// Use gives the device's workers another map, or nil. When it returns none of them has a view of the one before.
	Use func(*guestmem.Map)
	// Grace returns when every worker of the engine has ended the round it was in.
	Grace func()

	current *guestmem.Map

	mu   sync.Mutex // guards the rest
	held int
	gone []*guestmem.Map // to be unmapped when nothing is held
}

// Map is the memory there is; nil: none.
func (m *Memory) Map() *guestmem.Map { return m.current }

// Set replaces the whole table.
func (m *Memory) Set(regions []Region) error {
	specs := make([]guestmem.Region, len(regions))
	for i, r := range regions {
		specs[i] = memoryRegion(r)
	}
	next, err := guestmem.Open(specs)
	if err != nil {
		return err
	}
	m.discard(m.swap(next))
	return nil
}

// Add adds a region beside those there are.
func (m *Memory) Add(r Region) error {
	next, err := m.current.With(memoryRegion(r))
	if err != nil {
		return err
	}
	m.swap(next) // the old map shares its mappings with the new one
	return nil
}

// Remove takes a region back.
func (m *Memory) Remove(r Region) error {
	rest, removed, err := m.current.Without(r.GuestAddr, r.UserAddr, r.Size)
	if err != nil {
		return err
	}
	m.swap(rest)
	m.discard(removed)
	return nil
}

// Clear gives all memory up.
func (m *Memory) Clear() { m.discard(m.swap(nil)) }

func memoryRegion(r Region) guestmem.Region {
	return guestmem.Region{GuestAddr: r.GuestAddr, UserAddr: r.UserAddr, Size: r.Size, Offset: r.MmapOffset, FD: r.FD}
}

func (m *Memory) swap(next *guestmem.Map) (old *guestmem.Map) {
	old, m.current = m.current, next
	m.Use(next)
	return old
}

// discard gives memory back that the workers do not use any more. What another worker may still look at, faults. The device has moved on,
// so a mapping that the kernel would not take back stays where it is: out of reach, and a few addresses lost.
func (m *Memory) discard(old *guestmem.Map) {
	if old == nil {
		return
	}
	revoked := old.Revoke()
	m.Grace()
	if revoked != nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.held > 0 {
		m.gone = append(m.gone, old)
		return
	}
	_ = old.Free()
}

// Hold keeps addresses of memory that is given up from being used for anything else, until Release: the kernel has a request under way there which
// nobody can take back. What it still does there fails.
func (m *Memory) Hold() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.held++
}

// Release ends what Hold began. It does not wait.
func (m *Memory) Release() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.held--; m.held > 0 || len(m.gone) == 0 {
		return
	}
	gone := m.gone
	m.gone = nil
	go func() {
		for _, old := range gone {
			_ = old.Free()
		}
	}()
}

// Tables finds a ring's tables in the guest's memory; false if they are not there.
func (c *VringConfig) Tables(m *guestmem.Map, packed bool) (l virtq.Layout, ok bool) {
	avail, used := virtq.AvailBytes(int(c.Size)), virtq.UsedBytes(int(c.Size))
	if packed {
		avail, used = virtq.EventBytes, virtq.EventBytes
	}
	l.Desc = m.User(c.DescAddr, virtq.DescBytes(int(c.Size)))
	l.Avail = m.User(c.AvailAddr, avail)
	l.Used = m.User(c.UsedAddr, used)
	return l, l.Desc != nil && l.Avail != nil && l.Used != nil
}
