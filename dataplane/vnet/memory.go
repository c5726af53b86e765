package vnet

import (
	"github.com/shuntio/shunt/dataplane/guestmem"
	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/virtq"
)

// The guest's memory, as the control side changes it: the new map is given to every pair's worker, and then the old one is taken away.

// SetMemory implements vhostuser.Device.
func (d *Device) SetMemory(regions []vhostuser.Region) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	specs := make([]guestmem.Region, len(regions))
	for i, r := range regions {
		specs[i] = memoryRegion(r)
	}
	m, err := guestmem.Open(specs)
	if err != nil {
		return err
	}
	d.discard(d.swap(m))
	d.files = d.files[:0]
	for _, r := range regions {
		d.files = append(d.files, fileOf(r))
	}
	return nil
}

// AddMemory implements vhostuser.Device.
func (d *Device) AddMemory(r vhostuser.Region) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	m, err := d.memory.With(memoryRegion(r))
	if err != nil {
		return err
	}
	d.swap(m) // the old map shares its mappings with the new one
	d.files = append(d.files, fileOf(r))
	return nil
}

// RemoveMemory implements vhostuser.Device.
func (d *Device) RemoveMemory(r vhostuser.Region) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	rest, removed, err := d.memory.Without(r.GuestAddr, r.UserAddr, r.Size)
	if err != nil {
		return err
	}
	d.swap(rest)
	d.discard(removed)
	for i, f := range d.files {
		if f.user == r.UserAddr && f.size == r.Size {
			d.files = append(d.files[:i], d.files[i+1:]...)
			break
		}
	}
	return nil
}

func memoryRegion(r vhostuser.Region) guestmem.Region {
	return guestmem.Region{GuestAddr: r.GuestAddr, UserAddr: r.UserAddr, Size: r.Size, Offset: r.MmapOffset, FD: r.FD}
}

// swap gives the workers another map.
func (d *Device) swap(m *guestmem.Map) (old *guestmem.Map) {
	old, d.memory = d.memory, m
	d.each(func(p *Pair) {
		p.memory = m
		for _, q := range []*queue{&p.tx, &p.rx} {
			if q.ring != nil {
				q.ring.SetMemory(m)
			}
		}
	})
	return old
}

// discard gives memory back that the workers do not use any more. What another worker may still look at, faults. The device has moved on,
// so a mapping that the kernel would not take back stays where it is: out of reach, and a few addresses lost.
func (d *Device) discard(m *guestmem.Map) {
	if m == nil {
		return
	}
	revoked := m.Revoke()
	d.grace()
	if revoked == nil {
		_ = m.Free()
	}
}

// layout finds the tables of a ring in the guest's memory; false if they are not there.
func layout(m *guestmem.Map, c vhostuser.VringConfig, packed bool) (l virtq.Layout, ok bool) {
	avail, used := virtq.AvailBytes(int(c.Size)), virtq.UsedBytes(int(c.Size))
	if packed {
		avail, used = virtq.EventBytes, virtq.EventBytes
	}
	l.Desc = m.User(c.DescAddr, virtq.DescBytes(int(c.Size)))
	l.Avail = m.User(c.AvailAddr, avail)
	l.Used = m.User(c.UsedAddr, used)
	return l, l.Desc != nil && l.Avail != nil && l.Used != nil
}
