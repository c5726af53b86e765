package vxlan

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/vxlan/acl"
)

// Switch connects the links of workers. Its methods are the control side, for any goroutine; the forwarders that it gives
// to links are the workers' side. Between them is the snapshot, which every change builds anew.
type Switch struct {
	lanes   []*lane // the workers' side, by worker
	options Options
	seed    uint64

	// current is written by the control side and read by the workers, once for each vector of frames.
	current atomic.Pointer[snapshot]
	// vtepSeen is when a VTEP last sent a frame whose source was learned, in ticks, by index: written by the workers, read by the
	// control side to find the VTEPs nothing refers to any more.
	vtepSeen []atomic.Uint32
	// discovered carries VTEPs that a worker met and nobody configured. No worker ever waits: what finds no room is met again.
	discovered chan discovery
	changed    chan struct{} // a resolver has news
	stop, done chan struct{}

	mu       sync.Mutex
	uplinks  map[string]*uplinkRecord
	networks map[string]*networkRecord
	ports    map[string]*portRecord
	slots    slots  // of ports
	upSlots  slots  // of uplinks
	netSlots slots  // of networks
	serials  uint32 // the last number given to a port, or to what a network learns
	vteps    vtepRecords
	held     bool // snapshots wait for Release
	stale    bool // one does
}

// NewSwitch makes a switch for the links of workers, none of which runs yet. Their Index is their place in the slice; several are connected.
func NewSwitch(workers []*dataplane.Worker, o Options) *Switch {
	if o.MaxVTEPs == 0 {
		o.MaxVTEPs = 4096
	}
	if o.MaxLearnedVTEPs == 0 {
		o.MaxLearnedVTEPs = o.MaxVTEPs / 4
	}
	if o.Flows == 0 {
		o.Flows = 2048
	}
	if o.Seed == 0 {
		var b [8]byte
		_, _ = rand.Read(b[:]) // never fails
		o.Seed = binary.LittleEndian.Uint64(b[:])
	}
	s := &Switch{
		options: o, seed: o.Seed,
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
	s.makeLanes(workers)
	go s.follow()
	return s
}

// Close ends what the switch does by itself. Its links go on being forwarded as they are.
func (s *Switch) Close() {
	close(s.stop)
	<-s.done
}

// Hold has networks and ports that are entered or changed come into force together, at Release: a snapshot takes as long as there are ports. Whatever has to be in
// force when its call returns takes all before it along. The frames of a new port are dropped until then.
func (s *Switch) Hold() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = true
}

// Release ends Hold.
func (s *Switch) Release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = false
	s.settle()
}

// change publishes, now or at Release.
func (s *Switch) change() {
	if s.stale = true; !s.held {
		s.publish()
	}
}

// settle publishes what waits for Release.
func (s *Switch) settle() {
	if s.stale {
		s.publish()
	}
}

// AddUplink makes the switch the forwarder of an uplink's links, which are then ready to be added to their workers. Frames from the wire come
// in by the links in, of every queue on every worker; out are those of them by which frames can leave.
func (s *Switch) AddUplink(u Uplink, in, out []*dataplane.Link) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.uplinks[u.Name] != nil {
		return fmt.Errorf("uplink %s: %w", u.Name, ErrConflict)
	}
	if u.Name == "" || u.Resolver == nil {
		return fmt.Errorf("uplink %q: a name and a resolver are needed: %w", u.Name, ErrInvalid)
	}
	if len(out) == 0 {
		return fmt.Errorf("uplink %s: a link by which frames leave is needed: %w", u.Name, ErrInvalid)
	}
	r := &uplinkRecord{config: u, out: slices.Clone(out), slot: s.upSlots.take()}
	r.fill()
	s.uplinks[u.Name] = r
	for _, link := range in {
		link.Forwarder = &uplinkPort{sw: s, slot: r.slot}
	}
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

// RemoveUplink takes an uplink out of the configuration. When it returns, no worker uses its links any more.
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
	s.grace() // no round uses the links any more
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
	if old != nil {
		r.slot, r.learned, r.serial, r.flows = old.slot, old.learned, old.serial, old.flows
	} else {
		r.slot = s.netSlots.take()
	}
	if r.flows == nil && n.Uplink != "" {
		r.flows = s.newFlows()
	}
	if old == nil || !old.teaches(&n) {
		r.learned, r.serial = s.newLearned(&n), s.serial()
		for _, p := range s.ports {
			if p.config.Network == n.Name && p.rings != nil {
				p.rings = s.newRings(p.config.LearnLimit) // the old ones speak of the old tables
			}
		}
	}
	s.networks[n.Name] = r
	for _, a := range n.vteps() {
		s.vteps.add(vtepKey{n.Uplink, a}, true) // at once, since the next network is checked against how many there are
	}
	s.change()
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
	n := s.networks[name]
	if n == nil {
		return fmt.Errorf("network %s: %w", name, ErrNotFound)
	}
	for _, p := range s.ports {
		if p.config.Network == name {
			return fmt.Errorf("network %s: %w by port %s", name, ErrInUse, p.config.Name)
		}
	}
	delete(s.networks, name)
	s.publish()
	s.grace()
	s.netSlots.give(n.slot)
	return nil
}

// AttachPort makes the switch the forwarder of a guest's links, one for each queue pair, which are then ready to be added to their workers.
func (s *Switch) AttachPort(p Port, links []*dataplane.Link) error {
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
	if len(links) == 0 {
		return fmt.Errorf("port %s: a link is needed: %w", p.Name, ErrInvalid)
	}
	r := &portRecord{config: p, links: slices.Clone(links), slot: s.slots.take(), serial: s.serial(), flows: s.newFlows(), pace: new(pace),
		flood: dataplane.NewLimit(p.Flood)}
	s.filter(r, nil)
	s.ports[p.Name] = r
	s.admit(r)
	for _, link := range links {
		link.Forwarder = &guestPort{sw: s, slot: r.slot}
	}
	s.change()
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
	if p.Flood != old.config.Flood {
		r.flood = dataplane.NewLimit(p.Flood)
	}
	s.filter(r, old.config.ACL)
	if p.Network != old.config.Network && r.filter != nil {
		r.filter = r.filter.anew(s, p.FlowLimit)
	}
	if again {
		s.networks[old.config.Network].dirty = true
		r.serial = s.serial()
		s.admit(r)
	}
	s.networks[p.Network].dirty = true
	if !again {
		s.change()
		return nil
	}
	s.publish()
	s.grace()
	s.forget(&old)
	return nil
}

// Refresh is called after links changed their owners: each worker prefers those it owns. Until then frames take a longer way.
func (s *Switch) Refresh() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.change()
}

// DetachPorts takes ports out of their networks. When it returns, no worker sends to their links any more.
func (s *Switch) DetachPorts(names ...string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	var gone []*portRecord
	for _, name := range names {
		r := s.ports[name]
		if r == nil {
			errs = append(errs, fmt.Errorf("port %s: %w", name, ErrNotFound))
			continue
		}
		delete(s.ports, name)
		s.networks[r.config.Network].dirty = true
		gone = append(gone, r)
	}
	if len(gone) > 0 {
		s.publish()
		s.grace()
	}
	for _, r := range gone {
		s.forget(r)
		s.slots.give(r.slot)
	}
	return errors.Join(errs...)
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
	r.rings = nil
	if r.config.AntiSpoof {
		return // only its own address, which is configured
	}
	r.rings = s.newRings(r.config.LearnLimit)
	room := s.room(r.config.Network, n.config.LearnLimit)
	for i, l := range s.lanes {
		if learned := n.learned[i]; 2*room > len(learned.slots) { // the worker alone replaces slots, and only here
			to := newTable(2*room, s.seed)
			l.worker.Do(func() { learned.grow(to) })
		}
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

// forget removes what a port has taught its network, on each worker: afterwards nothing leads to the port's slot. Notes about it that are still
// on their way name a port that is not in the snapshot any more.
func (s *Switch) forget(r *portRecord) {
	if r.rings == nil {
		return
	}
	n := s.networks[r.config.Network]
	for i, l := range s.lanes {
		l.worker.Do(func() {
			n.learned[i].forget(atPort(r.slot), r.rings[i])
			if now := s.ports[r.config.Name]; now != nil && now.rings != nil {
				now.rings[i].epoch++ // it may have been decided by what was forgotten
			}
		})
	}
}

// serial numbers what notes may speak of after it is gone.
func (s *Switch) serial() uint32 {
	s.serials++
	return s.serials
}

// newRings makes a ring for each worker.
func (s *Switch) newRings(limit int) []*ring {
	rings := make([]*ring, len(s.lanes))
	for i := range rings {
		rings[i] = newRing(limit)
	}
	return rings
}

// newFlows makes each worker's cache for the flows of a port, or of a network from the wire.
func (s *Switch) newFlows() []*flows {
	all := make([]*flows, len(s.lanes))
	for i := range all {
		all[i] = newFlows(s.options.Flows)
	}
	return all
}

// filter makes a port's filter by its configuration. What was allowed by other rules goes on, and is judged again.
func (s *Switch) filter(r *portRecord, was *acl.Policy) {
	policy, old := r.config.ACL, r.filter
	switch {
	case policy == nil:
		r.filter = nil
		return
	case policy == was && old != nil:
		return
	}
	next := &filter{version: s.serial()}
	o := acl.Options{Workers: len(s.lanes)}
	if old != nil {
		o.Previous, next.conns, next.fragments = old.rules, old.conns, old.fragments
	} else {
		next = next.anew(s, r.config.FlowLimit)
	}
	next.rules = acl.Compile(*policy, o)
	r.filter = next
}

// anew is a filter of the same rules that has allowed nothing yet. A port takes it along to another network, where the same addresses are others'.
func (x *filter) anew(s *Switch, flows int) *filter {
	next := &filter{rules: x.rules, version: x.version, conns: newConns(flows, s.seed)}
	for range s.lanes {
		next.fragments = append(next.fragments, new(fragments))
	}
	return next
}

// newLearned makes each worker's tables for what it learns in a network.
func (s *Switch) newLearned(n *Network) []*learned {
	all := make([]*learned, len(s.lanes))
	for i := range all {
		age := ticks(n.Age)
		all[i] = &learned{table: newTable(s.room(n.Name, n.LearnLimit), s.seed), age: age, every: tellEvery(age), wire: newRing(n.LearnLimit)}
	}
	return all
}
