package vnet

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/guestmem"
	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/virtq"
	"golang.org/x/sys/unix"
)

// The control side: a Port is the vhostuser.Device behind a guest's connection. Every method runs on the connection's
// goroutine, and changes what the worker sees only within Worker.Do.

var (
	_ vhostuser.Device    = (*Port)(nil)
	_ vhostuser.MTUSetter = (*Port)(nil)
)

// Offer implements vhostuser.Device.
func (p *Port) Offer() vhostuser.Offer {
	p.update(func(s *State) { *s = State{Connected: true} })
	return vhostuser.Offer{
		Features:         Features,
		ProtocolFeatures: vhostuser.DefaultProtocolFeatures | vhostuser.ProtocolNetMTU,
		Vrings:           2,
		QueueNum:         1,
	}
}

// SetFeatures implements vhostuser.Device.
func (p *Port) SetFeatures(features uint64) error {
	p.features = features
	p.update(func(s *State) { s.Features = features })
	p.worker.Do(func() { p.negotiated(features) })
	return nil
}

// negotiated sets what the features mean for the worker. A front-end that never tells any has a driver without.
func (p *Port) negotiated(features uint64) {
	p.merge = features&FeatureMrgRxbuf != 0
	p.csum = features&FeatureCsum != 0
	p.header = maxHeader
	if features&(FeatureVersion1|FeatureMrgRxbuf) == 0 {
		p.header = legacyHeader
	}
}

// SetMTU implements vhostuser.MTUSetter: the front-end tells what it has told its guest. The network drops what is longer than its
// own MTU, whatever the guest was told.
func (p *Port) SetMTU(mtu uint16) error {
	p.update(func(s *State) { s.MTU = mtu })
	return nil
}

// SetMemory implements vhostuser.Device.
func (p *Port) SetMemory(regions []vhostuser.Region) error {
	specs := make([]guestmem.Region, len(regions))
	for i, r := range regions {
		specs[i] = memoryRegion(r)
	}
	m, err := guestmem.Open(specs)
	if err != nil {
		return err
	}
	p.discard(p.swap(m))
	return nil
}

// AddMemory implements vhostuser.Device.
func (p *Port) AddMemory(r vhostuser.Region) error {
	m, err := p.memory.With(memoryRegion(r)) // only the control side writes p.memory, so it may read it
	if err != nil {
		return err
	}
	p.swap(m) // the old map shares its mappings with the new one
	return nil
}

// RemoveMemory implements vhostuser.Device.
func (p *Port) RemoveMemory(r vhostuser.Region) error {
	rest, removed, err := p.memory.Without(r.GuestAddr, r.UserAddr, r.Size)
	if err != nil {
		return err
	}
	p.swap(rest)
	p.discard(removed)
	return nil
}

func memoryRegion(r vhostuser.Region) guestmem.Region {
	return guestmem.Region{GuestAddr: r.GuestAddr, UserAddr: r.UserAddr, Size: r.Size, Offset: r.MmapOffset, FD: r.FD}
}

// swap gives the worker another map.
func (p *Port) swap(m *guestmem.Map) (old *guestmem.Map) {
	p.worker.Do(func() {
		old, p.memory = p.memory, m
		for _, q := range []*queue{&p.tx, &p.rx} {
			if q.ring != nil {
				q.ring.SetMemory(m)
			}
		}
	})
	return old
}

// discard gives memory back that the worker does not use any more. What another worker may still look at, faults. The device has moved on,
// so a mapping that the kernel would not take back stays where it is: out of reach, and a few addresses lost.
func (p *Port) discard(m *guestmem.Map) {
	if m == nil {
		return
	}
	revoked := m.Revoke()
	p.grace()
	if revoked == nil {
		_ = m.Free()
	}
}

// StartVring implements vhostuser.Device.
func (p *Port) StartVring(c vhostuser.VringConfig) (err error) {
	p.worker.Do(func() {
		defer p.unreadable(&err)
		err = p.start(c)
	})
	if err != nil {
		return fmt.Errorf("start ring %d: %w", c.Index, err)
	}
	p.update(func(s *State) { s.Running, s.Failed = true, nil })
	return nil
}

// unreadable is deferred around start, which reads and writes the rings, also of a port that its worker does not poll yet.
func (p *Port) unreadable(err *error) {
	r := recover()
	if r == nil {
		return
	}
	address, ok := dataplane.FaultAddress(r)
	if !ok || !p.Fault(address) {
		panic(r)
	}
	*err = p.State().Failed
}

// maxBuffers bounds a chain below the size of its queue: a guest could have us walk 64 chains of 32768 empty buffers a round. A
// driver whose frame lies in more, where maxPieces is as much as we take, is broken.
const maxBuffers = 256

// start runs on the worker.
func (p *Port) start(c vhostuser.VringConfig) error {
	q := p.queue(c.Index)
	if p.memory == nil {
		return errors.New("the guest has shared no memory")
	}
	size := int(c.Size)
	layout := virtq.Layout{
		Desc:  p.memory.User(c.DescAddr, virtq.DescBytes(size)),
		Avail: p.memory.User(c.AvailAddr, virtq.AvailBytes(size)),
		Used:  p.memory.User(c.UsedAddr, virtq.UsedBytes(size)),
	}
	if layout.Desc == nil || layout.Avail == nil || layout.Used == nil {
		return errors.New("its tables are outside the guest's memory")
	}
	ring, err := virtq.NewDevice(virtq.DeviceOptions{
		Layout: layout, Size: size, Memory: p.memory,
		// Chains are completed in avail order, so where the used ring stands is where to go on; after a crash of the
		// back-end the front-end's own idea of the base is older.
		Base:     binary.LittleEndian.Uint16(layout.Used[2:]),
		EventIdx: p.features&FeatureEventIdx != 0,
		Indirect: p.features&FeatureIndirect != 0,
	})
	if err != nil {
		return err
	}
	p.halt(q)
	// The first call is due at once: a back-end before us may have been killed between publishing used chains and telling of them.
	*q = queue{ring: ring, chain: virtq.NewChain(min(size, maxBuffers)), kick: -1, call: c.Call, want: true}
	p.watch(q, c)
	return nil
}

// watch lets kicks of the transmitq wake the worker. A kick sent before we looked is not lost: the ring is polled before the next sleep.
func (p *Port) watch(q *queue, c vhostuser.VringConfig) {
	if c.Index == transmitq && c.Kick >= 0 {
		q.kick = c.Kick
		p.worker.Watch(c.Kick, unix.POLLIN, true)
	}
}

// UpdateVring implements vhostuser.Device.
func (p *Port) UpdateVring(c vhostuser.VringConfig) error {
	p.worker.Do(func() {
		q := p.queue(c.Index)
		if q.ring == nil {
			return // the port has failed meanwhile
		}
		if q.kick >= 0 {
			p.worker.Unwatch(q.kick)
			q.kick = -1
		}
		q.call = c.Call
		q.want = true // a call that was due on the old one is not lost
		p.watch(q, c)
	})
	return nil
}

// StopVring implements vhostuser.Device.
func (p *Port) StopVring(index int) (base uint32, err error) {
	running := false
	p.worker.Do(func() {
		q := p.queue(index)
		if q.ring != nil {
			q.ring.Rewind() // in case of a Transmit that another guest's memory cut off
			base = uint32(q.ring.Base())
		}
		p.halt(q)
		running = p.tx.ring != nil || p.rx.ring != nil
	})
	p.update(func(s *State) { s.Running = running })
	return base, nil
}

func (p *Port) queue(index int) *queue {
	if index == transmitq {
		return &p.tx
	}
	return &p.rx
}

// Reset implements vhostuser.Device.
func (p *Port) Reset() error { return p.SetFeatures(0) }

// Disconnected implements vhostuser.Device.
func (p *Port) Disconnected() {
	_ = p.SetFeatures(0)
	p.update(func(s *State) { *s = State{Failed: s.Failed} })
	p.discard(p.swap(nil))
}
