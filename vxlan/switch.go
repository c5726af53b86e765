package vxlan

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/shuntio/shunt/dataplane"
)

// Switch connects the links of one worker. Its methods are the control side, for any goroutine; the forwarders that it gives
// to links are the worker's side. Between them is the snapshot, which every change builds anew.
type Switch struct {
	worker  *dataplane.Worker
	options Options
	seed    uint64

	// current is written by the control side and read by the worker, once for each vector of frames.
	current atomic.Pointer[snapshot]
	// vtepSeen is when a VTEP last sent a frame whose source was learned, in ticks, by index: written by the worker, read by the
	// control side to find the VTEPs nothing refers to any more.
	vtepSeen []atomic.Uint32
	// discovered carries VTEPs that the worker met and nobody configured. The worker never waits: what finds no room is met again.
	discovered chan discovery
	changed    chan struct{} // a resolver has news
	stop, done chan struct{}

	mu       sync.Mutex
	uplinks  map[string]*uplinkRecord
	networks map[string]*networkRecord
	ports    map[string]*portRecord
	slots    slots // of ports
	upSlots  slots // of uplinks
	vteps    vtepRecords
}

// NewSwitch makes a switch for the links of a worker.
func NewSwitch(w *dataplane.Worker, o Options) *Switch {
	if o.MaxVTEPs == 0 {
		o.MaxVTEPs = 4096
	}
	if o.MaxLearnedVTEPs == 0 {
		o.MaxLearnedVTEPs = o.MaxVTEPs / 4
	}
	if o.Seed == 0 {
		var b [8]byte
		_, _ = rand.Read(b[:]) // never fails
		o.Seed = binary.LittleEndian.Uint64(b[:])
	}
	s := &Switch{
		worker: w, options: o, seed: o.Seed,
		vtepSeen:   make([]atomic.Uint32, o.MaxVTEPs),
		discovered: make(chan discovery, 64),
		changed:    make(chan struct{}, 1),
		stop:       make(chan struct{}),
		done:       make(chan struct{}),
		uplinks:    map[string]*uplinkRecord{},
		networks:   map[string]*networkRecord{},
		ports:      map[string]*portRecord{},
		vteps:      vtepRecords{index: map[vtepKey]int{}},
	}
	s.current.Store(new(snapshot))
	go s.follow()
	return s
}

// Close ends what the switch does by itself. Its links go on being forwarded as they are.
func (s *Switch) Close() {
	close(s.stop)
	<-s.done
}

// AddUplink makes the switch the forwarder of an uplink's link, which is then ready to be added to the worker.
func (s *Switch) AddUplink(link *dataplane.Link, u Uplink) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.uplinks[u.Name] != nil {
		return fmt.Errorf("uplink %s: %w", u.Name, ErrConflict)
	}
	if u.Name == "" || u.Resolver == nil {
		return fmt.Errorf("uplink %q: a name and a resolver are needed: %w", u.Name, ErrInvalid)
	}
	r := &uplinkRecord{config: u, link: link, slot: s.upSlots.take()}
	r.fill()
	s.uplinks[u.Name] = r
	link.Forwarder = &uplinkPort{sw: s, slot: r.slot}
	s.follows(u.Resolver)
	s.publish()
	return nil
}

// follows has a resolver's news make a new snapshot.
func (s *Switch) follows(r Resolver) {
	r.Notify(func() {
		select {
		case s.changed <- struct{}{}:
		default: // the one waiting will do
		}
	})
}

// SetUplink changes the configuration of an uplink; its link stays. It is refused if a network's frames would not fit any more.
func (s *Switch) SetUplink(u Uplink) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.uplinks[u.Name]
	if r == nil {
		return fmt.Errorf("uplink %s: %w", u.Name, ErrNotFound)
	}
	if u.Resolver == nil {
		return fmt.Errorf("uplink %s: a resolver is needed: %w", u.Name, ErrInvalid)
	}
	old := *r
	r.config = u
	r.fill()
	for _, n := range s.networks {
		if n.config.Uplink != u.Name {
			continue
		}
		if err := s.fits(&n.config); err != nil {
			*r = old
			return err
		}
	}
	if u.Resolver != old.config.Resolver {
		old.config.Resolver.Notify(func() {})
		s.follows(u.Resolver)
		r.wanted = nil
	}
	s.publish()
	if u.Resolver != old.config.Resolver {
		old.config.Resolver.Want(nil)
	}
	return nil
}

// RemoveUplink takes an uplink out of the configuration. When it returns, the worker does not use the link any more.
func (s *Switch) RemoveUplink(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.uplinks[name]
	if r == nil {
		return fmt.Errorf("uplink %s: %w", name, ErrNotFound)
	}
	for _, n := range s.networks {
		if n.config.Uplink == name {
			return fmt.Errorf("uplink %s: %w by network %s", name, ErrInUse, n.config.Name)
		}
	}
	r.config.Resolver.Notify(func() {})
	delete(s.uplinks, name)
	s.vteps.dropUplink(name)
	s.publish()
	r.config.Resolver.Want(nil)
	s.worker.Do(func() {}) // the grace point: no round uses the link any more
	s.upSlots.give(r.slot)
	return nil
}

// SetNetwork enters a network or changes it. What was learned stays, unless it is another network on the wire now.
func (s *Switch) SetNetwork(n Network) error {
	n.Flood, n.Entries = slices.Clone(n.Flood), slices.Clone(n.Entries)
	if err := n.validate(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.fits(&n); err != nil {
		return err
	}
	old := s.networks[n.Name]
	r := &networkRecord{config: n, dirty: true}
	if old != nil && old.teaches(&n) {
		r.learned = old.learned
	} else {
		r.learned = newLearned(&n, s.room(n.Name, n.LearnLimit), s.seed)
		for _, p := range s.ports {
			if p.config.Network == n.Name && p.ring != nil {
				p.ring = newRing(p.config.LearnLimit) // the old one speaks of the old table
			}
		}
	}
	s.networks[n.Name] = r
	s.publish()
	return nil
}

// fits checks a network against the uplinks and the other networks, and sets its MTU if it has none.
func (s *Switch) fits(n *Network) error {
	if n.Uplink == "" {
		if n.MTU == 0 {
			n.MTU = 1500
		}
		return nil
	}
	u := s.uplinks[n.Uplink]
	if u == nil {
		return fmt.Errorf("network %s: uplink %s: %w", n.Name, n.Uplink, ErrNotFound)
	}
	local := u.local()
	overhead := 0
	if !n.Flat {
		overhead = Overhead(local.Address)
	}
	if n.MTU == 0 {
		n.MTU = 1500 - overhead
	}
	if local.MTU != 0 && n.MTU+overhead > local.MTU {
		return fmt.Errorf("network %s: MTU %d with %d bytes of encapsulation %w uplink %s of MTU %d: set the network's to %d or less",
			n.Name, n.MTU, overhead, ErrMTU, n.Uplink, local.MTU, local.MTU-overhead)
	}
	for _, other := range s.networks {
		switch o := &other.config; {
		case o.Name == n.Name || o.Uplink != n.Uplink || o.Flat != n.Flat:
		case n.Flat:
			return fmt.Errorf("network %s: uplink %s: %w by the flat network %s", n.Name, n.Uplink, ErrConflict, o.Name)
		case o.VNI == n.VNI:
			return fmt.Errorf("network %s: VNI %d: %w by network %s", n.Name, n.VNI, ErrConflict, o.Name)
		}
	}
	return s.vtepsFit(n, local.Address)
}

// vtepsFit checks a network's VTEPs: the right family, not ourselves, not too many.
func (s *Switch) vtepsFit(n *Network, local netip.Addr) error {
	more := 0
	for _, a := range n.vteps() {
		if a == local {
			return fmt.Errorf("network %s: VTEP %v: %w, it is this machine's own address; name other machines only", n.Name, a, ErrInvalid)
		}
		if local.IsValid() && a.Is4() != local.Is4() {
			return fmt.Errorf("network %s: VTEP %v: %w, the uplink's address %v is of the other IP version; name VTEPs of that one", n.Name, a, ErrInvalid, local)
		}
		if _, ok := s.vteps.index[vtepKey{n.Uplink, a}]; !ok {
			more++
		}
	}
	if s.vteps.used()+more > s.options.MaxVTEPs {
		return fmt.Errorf("network %s: more than %d VTEPs in all: %w", n.Name, s.options.MaxVTEPs, ErrInvalid)
	}
	return nil
}

// RemoveNetwork takes a network without ports out of the configuration.
func (s *Switch) RemoveNetwork(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.networks[name] == nil {
		return fmt.Errorf("network %s: %w", name, ErrNotFound)
	}
	for _, p := range s.ports {
		if p.config.Network == name {
			return fmt.Errorf("network %s: %w by port %s", name, ErrInUse, p.config.Name)
		}
	}
	delete(s.networks, name)
	s.publish()
	s.worker.Do(func() {})
	return nil
}

// AttachPort makes the switch the forwarder of a guest's link, which is then ready to be added to the worker.
func (s *Switch) AttachPort(link *dataplane.Link, p Port) error {
	p.IPs = slices.Clone(p.IPs)
	if err := p.validate(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ports[p.Name] != nil {
		return fmt.Errorf("port %s: %w", p.Name, ErrConflict)
	}
	if err := s.portFits(&p); err != nil {
		return err
	}
	r := &portRecord{config: p, link: link, slot: s.slots.take()}
	s.ports[p.Name] = r
	s.admit(r)
	link.Forwarder = &guestPort{sw: s, slot: r.slot}
	s.publish()
	return nil
}

// SetPort changes the configuration of an attached port, its network included.
func (s *Switch) SetPort(p Port) error {
	p.IPs = slices.Clone(p.IPs)
	if err := p.validate(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.ports[p.Name]
	if r == nil {
		return fmt.Errorf("port %s: %w", p.Name, ErrNotFound)
	}
	if err := s.portFits(&p); err != nil {
		return err
	}
	old := *r
	again := p.Network != old.config.Network || p.AntiSpoof != old.config.AntiSpoof || p.LearnLimit != old.config.LearnLimit
	r.config = p
	if again {
		s.networks[old.config.Network].dirty = true
		s.admit(r)
	}
	s.networks[p.Network].dirty = true
	s.publish()
	if again {
		s.forget(&old)
	}
	return nil
}

// DetachPort takes a port out of its network. When it returns, the worker does not send to the link any more.
func (s *Switch) DetachPort(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.ports[name]
	if r == nil {
		return fmt.Errorf("port %s: %w", name, ErrNotFound)
	}
	delete(s.ports, name)
	s.networks[r.config.Network].dirty = true
	s.publish()
	s.forget(r)
	s.slots.give(r.slot)
	return nil
}

func (s *Switch) portFits(p *Port) error {
	if s.networks[p.Network] == nil {
		return fmt.Errorf("port %s: network %s: %w", p.Name, p.Network, ErrNotFound)
	}
	for _, other := range s.ports {
		if o := &other.config; o.Name != p.Name && o.Network == p.Network && o.MAC == p.MAC && p.MAC != 0 {
			return fmt.Errorf("port %s: MAC %v: %w by port %s of the same network", p.Name, p.MAC, ErrConflict, o.Name)
		}
	}
	return nil
}

// admit makes room for what a port may teach its network. The port's network is looked at again when the snapshot is built.
func (s *Switch) admit(r *portRecord) {
	n := s.networks[r.config.Network]
	n.dirty = true
	r.ring = nil
	if r.config.AntiSpoof {
		return // only its own address, which is configured
	}
	r.ring = newRing(r.config.LearnLimit)
	if room := s.room(r.config.Network, n.config.LearnLimit); 2*room > len(n.learned.slots) { // the worker alone replaces slots, and only here
		to := newTable(2*room, s.seed)
		s.worker.Do(func() { n.learned.grow(to) })
	}
}

// room is how many addresses may be learned in a network.
func (s *Switch) room(network string, fromWire int) int {
	for _, p := range s.ports {
		if p.config.Network == network && !p.config.AntiSpoof {
			fromWire += p.config.LearnLimit
		}
	}
	return fromWire
}

// forget removes what a port has taught its network, on the worker: afterwards nothing leads to the port's slot.
func (s *Switch) forget(r *portRecord) {
	n := s.networks[r.config.Network]
	s.worker.Do(func() {
		if r.ring != nil {
			n.learned.forget(atPort(r.slot), r.ring)
		}
	})
}
