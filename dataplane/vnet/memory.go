package vnet

import (
	"slices"

	"github.com/shuntio/shunt/dataplane/guestmem"
	"github.com/shuntio/shunt/dataplane/vhostuser"
)

// The guest's memory, as the control side changes it: the new map is given to every pair's worker, and then the old one is taken away.

// SetMemory implements vhostuser.Device.
func (d *Device) SetMemory(regions []vhostuser.Region) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.memory.Set(regions); err != nil {
		return err
	}
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
	if err := d.memory.Add(r); err != nil {
		return err
	}
	d.files = append(d.files, fileOf(r))
	return nil
}

// RemoveMemory implements vhostuser.Device.
func (d *Device) RemoveMemory(r vhostuser.Region) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.memory.Remove(r); err != nil {
		return err
	}
	if i := slices.IndexFunc(d.files, func(f memoryFile) bool { return f.user == r.UserAddr && f.size == r.Size }); i >= 0 {
		d.files = slices.Delete(d.files, i, i+1)
	}
	return nil
}

// useMemory gives the workers another map.
func (d *Device) useMemory(m *guestmem.Map) {
	d.each(func(p *Pair) {
		p.memory = m
		for _, q := range []*queue{&p.tx, &p.rx} {
			if q.ring != nil {
				q.ring.SetMemory(m)
			}
		}
	})
}
