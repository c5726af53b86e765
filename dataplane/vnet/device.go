package vnet

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/guestmem"
	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/virtq"
	"golang.org/x/sys/unix"
)

// Device is a virtio-net device: the vhostuser.Device behind a guest's connection. Its methods run on the connection's goroutine, Move and
// Close on others; what a worker sees they change only within Worker.Do.
type Device struct {
	pairs  []*Pair
	failed func(error)
	mtu    uint16
	file   *stateFile // nil: none
	state  atomic.Pointer[State]

	mu       sync.Mutex // held by control calls and by Move, never by a worker
	features uint64
	memory   vhostuser.Memory
	files    []memoryFile  // what memory's regions are mapped from
	given    *guestmem.Log // the front-end's; the pairs have it while it is wanted
}

var (
	_ vhostuser.Device     = (*Device)(nil)
	_ vhostuser.MTUSetter  = (*Device)(nil)
	_ vhostuser.RARPSender = (*Device)(nil)
)

// Pairs is how many queue pairs the device has.
func (d *Device) Pairs() int { return len(d.pairs) }

// State may be asked by anybody.
func (d *Device) State() State {
	s := *d.state.Load()
	for _, p := range d.pairs {
		bits := p.running.Load()
		if bits != 0 {
			s.Running = true
		}
		if bits == 1<<receiveq|1<<transmitq {
			s.Pairs++
		}
		if why := p.why.Load(); why != nil && s.Failed == nil {
			s.Failed = *why
		}
	}
	return s
}

// Calls is how many notifications were sent to the guest.
func (d *Device) Calls() (n uint64) {
	for _, p := range d.pairs {
		n += p.calls.Load()
	}
	return n
}

// Coalesced is how many packets for the guest were merged of TCP segments (Options.Coalesce), and how many segments went into another one's packet.
func (d *Device) Coalesced() (packets, absorbed uint64) {
	for _, p := range d.pairs {
		merged, into := p.coalescer.Counts()
		packets, absorbed = packets+merged, absorbed+into
	}
	return packets, absorbed
}

// update changes the published state. Control calls alone do, one after the other.
func (d *Device) update(change func(*State)) {
	s := *d.state.Load()
	change(&s)
	d.state.Store(&s)
}

// each runs fn for every pair, on its worker.
func (d *Device) each(fn func(*Pair)) {
	for _, p := range d.pairs {
		_ = p.on(func() error { fn(p); return nil })
	}
}

// Offer implements vhostuser.Device.
func (d *Device) Offer() vhostuser.Offer {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.update(func(s *State) { *s = State{Connected: true} })
	for _, p := range d.pairs {
		p.why.Store(nil)
	}
	features := uint64(Features)
	if len(d.pairs) > 1 {
		features |= FeatureMQ
	}
	return vhostuser.Offer{
		Features:         features,
		ProtocolFeatures: vhostuser.DefaultProtocolFeatures | vhostuser.ProtocolNetMTU,
		Vrings:           2 * len(d.pairs),
		QueueNum:         len(d.pairs), // a network device counts pairs
	}
}

// SetFeatures implements vhostuser.Device.
func (d *Device) SetFeatures(features uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.setFeatures(features)
	return nil
}

func (d *Device) setFeatures(features uint64) {
	d.features = features
	d.update(func(s *State) { s.Features = features })
	offers := offersOf(features)
	d.each(func(p *Pair) {
		p.offers = offers
		p.link.Offloads.Store(offers.takes)
	})
	d.relog()
}

// SetMTU implements vhostuser.MTUSetter: the front-end tells what it will tell its guest.
func (d *Device) SetMTU(mtu uint16) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.mtu != 0 && mtu > d.mtu {
		return fmt.Errorf("the network carries packets of %d bytes and the guest is to be told an MTU of %d: set the front-end's (host_mtu) to %d at most",
			d.mtu, mtu, d.mtu)
	}
	d.update(func(s *State) { s.MTU = mtu })
	return nil
}

// SetNetworkMTU changes Options.MTU, also while a front-end is connected. What that has told its guest stays: see State.MTU.
func (d *Device) SetNetworkMTU(mtu uint16) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mtu = mtu
}

// StartVring implements vhostuser.Device.
func (d *Device) StartVring(c vhostuser.VringConfig) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	p, err := d.pair(c.Index)
	if err == nil {
		err = p.on(func() error { return p.start(c) })
	}
	if err != nil {
		return fmt.Errorf("start ring %d: %w", c.Index, err)
	}
	return nil
}

// pair finds the pair a ring belongs to.
func (d *Device) pair(index int) (*Pair, error) {
	if index < 0 || index/2 >= len(d.pairs) {
		return nil, fmt.Errorf("there is no ring %d: the device has %d pairs", index, len(d.pairs))
	}
	return d.pairs[index/2], nil
}

// queue is that of the pair's two which a ring is.
func (p *Pair) queue(index int) *queue {
	if index%2 == transmitq {
		return &p.tx
	}
	return &p.rx
}

// maxBuffers bounds a chain below the size of its queue: a guest could have us walk 64 chains of 32768 empty buffers a round. A
// driver whose frame lies in more, where maxPieces is as much as we take, is broken.
const maxBuffers = 256

// start runs on the worker.
func (p *Pair) start(c vhostuser.VringConfig) error {
	d := p.device
	if p.memory == nil {
		return errors.New("the guest has shared no memory")
	}
	packed := d.features&FeaturePacked != 0
	l, ok := c.Tables(p.memory, packed)
	if !ok {
		return errors.New("its tables are outside the guest's memory")
	}
	base, place, err := p.position(c, l, packed)
	if err != nil {
		return err
	}
	log, _ := p.memory.Guest(l.Used)
	ring, err := virtq.NewDevice(virtq.DeviceOptions{
		Layout: l, Size: int(c.Size), Memory: p.memory,
		Packed: packed, Base: base, UsedBase: base,
		EventIdx: d.features&FeatureEventIdx != 0,
		Indirect: d.features&FeatureIndirect != 0,
		InOrder:  d.features&FeatureInOrder != 0,
		Log:      p.log, UsedLog: log,
	})
	if err != nil {
		return err
	}
	q := p.queue(c.Index)
	p.halt(q)
	*q = queue{
		ring: ring, chain: virtq.NewChain(min(int(c.Size), maxBuffers)), place: place, kick: -1, call: c.Call, broken: c.Err,
		packed: packed, log: log,
		// The first call is due at once: a back-end before us may have been killed between publishing used chains and telling of them.
		want: true,
	}
	p.watch(q, c)
	p.why.Store(nil)
	p.tell()
	return nil
}

// watch lets kicks of the transmitq wake the worker. A kick sent before we looked is not lost: the ring is polled before the next sleep.
func (p *Pair) watch(q *queue, c vhostuser.VringConfig) {
	q.polled = c.Kick < 0
	if c.Index%2 == transmitq && c.Kick >= 0 {
		q.kick = c.Kick
		p.owner.Load().WatchFor(p.link, c.Kick, unix.POLLIN, true)
	}
}

// UpdateVring implements vhostuser.Device. Where the log of used rings lies we know ourselves.
func (d *Device) UpdateVring(c vhostuser.VringConfig) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	p, err := d.pair(c.Index)
	if err != nil {
		return err
	}
	return p.on(func() error {
		q := p.queue(c.Index)
		if q.ring == nil {
			return nil // the port has failed meanwhile
		}
		if q.kick >= 0 {
			p.owner.Load().Unwatch(q.kick)
			q.kick = -1
		}
		q.call, q.broken = c.Call, c.Err
		q.want = true // a call that was due on the old one is not lost
		p.watch(q, c)
		return nil
	})
}

// StopVring implements vhostuser.Device. A ring that has failed is where it was when it failed.
func (d *Device) StopVring(index int) (base uint32, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	p, err := d.pair(index)
	if err != nil {
		return 0, err
	}
	err = p.on(func() error {
		q := p.queue(index)
		p.halt(q)
		base = q.base
		return nil
	})
	return base, err
}

// Reset implements vhostuser.Device.
func (d *Device) Reset() error { return d.SetFeatures(0) }

// Disconnected implements vhostuser.Device.
func (d *Device) Disconnected() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.given = nil
	d.setFeatures(0)                          // no ring runs
	d.update(func(s *State) { *s = State{} }) // why a pair failed stays, until somebody connects again
	d.each(func(p *Pair) { p.announcing = 0 })
	d.memory.Clear()
	d.files = nil
}

// Move gives a pair and its Link to another worker while its rings run. What is under way in a ring, what wakes the worker, and calls that are due go
// along. One call at a time, for all devices whose pairs share workers: see Link.Move.
func (d *Device) Move(pair int, to *dataplane.Worker) {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.pairs[pair]
	from := p.owner.Load()
	if from == to {
		return
	}
	along := func() { // both workers stand still
		p.owner.Store(to)
		if p.tx.kick >= 0 {
			from.Unwatch(p.tx.kick)
			to.WatchFor(p.link, p.tx.kick, unix.POLLIN, true) // what a kick told of meanwhile is found before the next sleep
		}
	}
	if p.link.Owner() == from {
		p.link.Move(to, along)
	} else { // nobody polls it
		from.Do(func() { to.Do(along) })
	}
}

// Close gives up the state file, which stays where it is for the next device of the same name if it holds anything. No ring runs any more.
func (d *Device) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.each(func(p *Pair) {
		p.halt(&p.tx)
		p.halt(&p.rx)
	})
	f := d.file
	d.file = nil
	return f.close()
}
