package vxlan

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/shuntio/shunt/dataplane/wire"
)

// Kinds of FDBEntry.
const (
	// KindLocal is a port's own address.
	KindLocal = "local"
	// KindStatic was configured.
	KindStatic = "static"
	// KindLearned was seen as a source.
	KindLearned = "learned"
)

// FDBEntry is where a MAC address is.
type FDBEntry struct {
	// Network is the name of the network that it is in.
	Network string
	// MAC is the address.
	MAC wire.MAC
	// IP is its guest's, if it was configured.
	IP netip.Addr
	// Port is the name of the port that it is behind, or VTEP the address of the other machine.
	Port string
	// VTEP is the other machine's tunnel endpoint.
	VTEP netip.Addr
	// Kind is how we know.
	Kind string
	// Age is the time since its last frame, of a learned one.
	Age time.Duration
}

// FDB returns the forwarding tables of some networks, or of all if none is named, sorted by network and address.
func (s *Switch) FDB(networks ...string) []FDBEntry {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settle()
	asked := func(network string) bool { return len(networks) == 0 || slices.Contains(networks, network) }
	var all []FDBEntry
	names := make(map[int]string, len(s.ports))
	for _, p := range s.ports {
		names[p.slot] = p.config.Name
		if p.config.MAC != 0 && asked(p.config.Network) {
			e := FDBEntry{Network: p.config.Network, MAC: p.config.MAC, Port: p.config.Name, Kind: KindLocal}
			if len(p.config.IPs) > 0 {
				e.IP = p.config.IPs[0]
			}
			all = append(all, e)
		}
	}
	for _, n := range s.networks {
		if !asked(n.config.Name) {
			continue
		}
		for _, e := range n.config.Entries {
			if at := n.static.place(e.MAC); !at.isPort() {
				all = append(all, FDBEntry{Network: n.config.Name, MAC: e.MAC, IP: e.IP, VTEP: e.VTEP, Kind: KindStatic})
			}
		}
		all = append(all, s.learnedIn(n, names)...)
	}
	slices.SortFunc(all, func(a, b FDBEntry) int {
		return cmp.Or(cmp.Compare(a.Network, b.Network), cmp.Compare(a.MAC, b.MAC), a.IP.Compare(b.IP))
	})
	return all
}

// learnedIn reads what the workers have learned in a network. What several know is given once, as the one knows it that saw it last.
func (s *Switch) learnedIn(n *networkRecord, ports map[int]string) []FDBEntry {
	newest := map[wire.MAC]FDBEntry{}
	for i := range s.lanes {
		for _, e := range s.learnedBy(i, n, ports) {
			if other, ok := newest[e.MAC]; !ok || e.Age < other.Age {
				newest[e.MAC] = e
			}
		}
	}
	return slices.Collect(maps.Values(newest))
}

// learnedBy reads what one worker has learned in a network: it is copied on the worker into memory allocated here. ports are the names by slot.
func (s *Switch) learnedBy(lane int, n *networkRecord, ports map[int]string) []FDBEntry {
	w, learned := s.lanes[lane].worker, n.learned[lane]
	var tick uint32
	copied := make([]slot, len(learned.slots)) // only the control side makes it another length
	w.Do(func() {
		tick = s.tickOf(w)
		copy(copied, learned.slots)
	})
	var all []FDBEntry
	for _, l := range copied {
		mac := wire.MAC(l.key &^ occupied)
		if l.key == 0 || learned.over(l.seen, tick) || n.static.place(mac) != nowhere {
			continue
		}
		idle := max(0, int32(tick-l.seen))
		e := FDBEntry{Network: n.config.Name, MAC: mac, Kind: KindLearned, Age: time.Duration(idle) << tickShift}
		if l.at.isPort() {
			e.Port = ports[int(l.at)]
		} else {
			e.VTEP = s.vteps.records[l.at.vtep()].address
		}
		all = append(all, e)
	}
	return all
}

// VTEP is the state of the way to another machine.
type VTEP struct {
	// Uplink is the name of the uplink that it is on.
	Uplink string
	// Address is the tunnel endpoint's.
	Address netip.Addr
	// Configured: a network names it; else frames came from it.
	Configured bool
	// Resolved: the next hop is known.
	Resolved bool
	// NextHop is the MAC that packets go to.
	NextHop wire.MAC
	// MTU is the longest frame, without its Ethernet header, that the way takes.
	MTU int
}

// VTEPs returns the state of the ways to all other machines, sorted by uplink and address.
func (s *Switch) VTEPs() []VTEP {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settle()
	now := s.current.Load()
	var all []VTEP
	for i, r := range s.vteps.records {
		if r.uplink == "" || i >= len(now.vteps) || now.vteps[i] == nil {
			continue
		}
		v := VTEP{Uplink: r.uplink, Address: r.address, Configured: r.configured, Resolved: now.vteps[i].ready}
		if v.Resolved {
			v.NextHop = wire.Ethernet(now.vteps[i].header[:]).Destination()
			v.MTU = now.vteps[i].maxFrame - wire.EthernetLen
		}
		all = append(all, v)
	}
	slices.SortFunc(all, func(a, b VTEP) int { return cmp.Or(cmp.Compare(a.Uplink, b.Uplink), a.Address.Compare(b.Address)) })
	return all
}
