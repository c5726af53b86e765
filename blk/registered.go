package blk

import (
	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/guestmem"
	"github.com/shuntio/shunt/dataplane/shm"
)

// pin is what a ring has of the guest's memory, where that is registered: the kernel need not look up its pages for each request then. A map shares the mappings of
// regions that stay with the one before, so these stay registered.
type pin struct {
	worker  *dataplane.Worker
	ring    memoryRing
	regions [][]byte
}

// memoryRing is a uring.Ring.
type memoryRing interface {
	RegisterMemory(b []byte) error
	UnregisterMemory(b []byte) error
}

// pinsOf are those of all rings that the hosts have, each once.
func pinsOf(hosts []Host) (pins []*pin) {
	seen := map[memoryRing]bool{}
	for _, h := range hosts {
		if !seen[h.Ring] {
			seen[h.Ring] = true
			pins = append(pins, &pin{worker: h.Worker, ring: h.Ring})
		}
	}
	return pins
}

// register brings what the rings have up to date, before the memory that is gone goes away. What cannot be registered works all the same.
func (d *Device) register(m *guestmem.Map) {
	if d.pins == nil {
		return
	}
	var views [][]byte
	if m != nil {
		for _, r := range m.Regions() {
			views = append(views, m.User(r.UserAddr, int(r.Size)))
		}
	}
	least, why := ^uint64(0), error(nil)
	for _, p := range d.pins {
		p.worker.Do(func() {
			bytes, err := p.update(views)
			if least = min(least, bytes); err != nil {
				why = err
			}
		})
	}
	d.update(func(s *DeviceState) { s.Registered, s.Unregistered = least, why })
}

// update runs on the worker.
func (p *pin) update(views [][]byte) (bytes uint64, err error) {
	var have [][]byte
	for _, old := range p.regions {
		if index(views, old) >= 0 {
			have = append(have, old)
		} else if e := p.ring.UnregisterMemory(old); e != nil {
			err = e
		}
	}
	for _, v := range views {
		if index(have, v) >= 0 {
			continue
		}
		if e := p.ring.RegisterMemory(v); e != nil {
			err = e
			continue
		}
		have = append(have, v)
	}
	for _, v := range have {
		bytes += uint64(len(v))
	}
	p.regions = have
	return bytes, err
}

// index finds a view among others: the same memory, not the same bytes.
func index(views [][]byte, v []byte) int {
	for i, x := range views {
		if len(x) == len(v) && shm.Address(x) == shm.Address(v) {
			return i
		}
	}
	return -1
}
