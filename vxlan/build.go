package vxlan

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/shuntio/shunt/dataplane/wire"
)

// publish builds a snapshot of the configuration as it is and swaps it in. The caller holds mu.
func (s *Switch) publish() {
	s.stale = false
	s.vteps.configure(s.networks)
	next := &snapshot{
		ports:    make([]*port, s.slots.n),
		networks: make([]*network, s.netSlots.n),
		uplinks:  make([]*uplink, s.upSlots.n),
		vteps:    make([]*tunnel, len(s.vteps.records)),
	}
	uplinks := s.buildUplinks(next)
	s.buildTunnels(next, uplinks)
	networks := s.buildNetworks(next, uplinks)
	s.buildPorts(next, networks)
	s.current.Store(next)
	s.want()
}

func (s *Switch) buildUplinks(next *snapshot) map[string]*uplink {
	all := make(map[string]*uplink, len(s.uplinks))
	for name, r := range s.uplinks {
		local := r.local()
		u := &uplink{
			slot: r.slot, ways: s.newWays(r.out, false), mac: local.MAC, port: r.config.Port,
			is4: local.Address.Is4(), is6: local.Address.Is6(), trustChecksums: r.config.TrustChecksums, endpoints: endpoints{},
		}
		if local.Address.IsValid() {
			u.address = addressOf(local.Address)
		}
		for i, v := range s.vteps.records {
			if v.uplink == name && !v.leaving {
				u.endpoints[addressOf(v.address)] = i
			}
		}
		all[name], next.uplinks[r.slot] = u, u
	}
	return all
}

func (s *Switch) buildTunnels(next *snapshot, uplinks map[string]*uplink) {
	for i, v := range s.vteps.records {
		if v.uplink == "" || v.leaving {
			continue
		}
		r := s.uplinks[v.uplink]
		local := r.local()
		hop, ok := r.config.Resolver.NextHop(v.address)
		if !ok {
			hop = NextHop{}
		}
		if hop.Source == 0 {
			hop.Source = local.MAC
		}
		mtu := local.MTU
		if mtu == 0 {
			mtu = maxMTU
		}
		if hop.MTU != 0 {
			mtu = min(mtu, hop.MTU)
		}
		next.vteps[i] = newTunnel(tunnelTo{
			local: local.Address, vtep: v.address, hop: hop, mtu: mtu, port: r.config.Port, ttl: r.config.TTL,
			checksum: !r.config.ZeroChecksum6, uplink: uplinks[v.uplink], index: i,
		})
	}
}

func (s *Switch) buildNetworks(next *snapshot, uplinks map[string]*uplink) map[string]*network {
	all := make(map[string]*network, len(s.networks))
	onUplink := map[*uplink][]*network{}
	for name, r := range s.networks {
		if r.dirty {
			r.static, r.known = s.buildStatic(r), s.buildKnown(r)
			r.generation = s.serial()
			r.dirty = false
		}
		c := &r.config
		nw := &network{
			slot: r.slot, serial: r.serial, generation: r.generation, maxFrame: c.MTU + wire.EthernetLen, learning: c.Learning,
			dropTagged: c.DropTagged, flat: c.Flat, vni: c.VNI, tosMask: c.DSCP.mask(), static: r.static, known: r.known, noAnswer: c.NoAnswer, learned: r.learned,
			flows: r.flows,
		}
		if u := uplinks[c.Uplink]; u != nil {
			nw.uplink = u
			if c.Flat {
				u.flat = nw
			} else {
				onUplink[u] = append(onUplink[u], nw)
			}
		}
		for _, a := range c.Flood {
			nw.flood = append(nw.flood, next.vteps[s.vteps.index[vtepKey{c.Uplink, a}]])
		}
		all[name], next.networks[r.slot] = nw, nw
	}
	for u, networks := range onUplink {
		u.vnis = newVNITable(networks)
	}
	return all
}

// buildStatic enters a network's configured places. A port here wins over an entry that says its guest is elsewhere: the
// guest has come, and the entry is yet to follow.
func (s *Switch) buildStatic(r *networkRecord) table {
	var here []*portRecord
	for _, p := range s.ports {
		if p.config.Network == r.config.Name && p.config.MAC != 0 {
			here = append(here, p)
		}
	}
	t := newTable(len(here)+len(r.config.Entries), s.seed)
	for _, e := range r.config.Entries {
		at := atUplink
		if !r.config.Flat {
			at = atVTEP(s.vteps.index[vtepKey{r.config.Uplink, e.VTEP}])
		}
		t.put(e.MAC, at, 0)
	}
	for _, p := range here {
		t.put(p.config.MAC, atPort(p.slot), 0)
	}
	return t
}

func (s *Switch) buildPorts(next *snapshot, networks map[string]*network) {
	for _, name := range slices.Sorted(maps.Keys(s.ports)) { // sorted, so that floods have an order
		r := s.ports[name]
		nw := networks[r.config.Network]
		p := &port{
			slot: r.slot, serial: r.serial, ways: s.newWays(r.links, true), network: nw, mac: r.config.MAC,
			antiSpoof: r.config.AntiSpoof, rings: r.rings, flows: r.flows, filter: r.filter, pace: r.pace, floods: r.flood,
		}
		p.allow(r.config.IPs)
		next.ports[r.slot] = p
		nw.members = append(nw.members, p)
		if !p.antiSpoof {
			nw.strangers = append(nw.strangers, p)
		}
	}
}

// want tells each uplink's resolver which VTEPs' next hops the next snapshots need.
func (s *Switch) want() {
	all := make(map[string][]netip.Addr, len(s.uplinks))
	for _, v := range s.vteps.records {
		if v.uplink != "" && !v.leaving {
			all[v.uplink] = append(all[v.uplink], v.address)
		}
	}
	for name, r := range s.uplinks {
		wanted := all[name]
		slices.SortFunc(wanted, netip.Addr.Compare)
		if !slices.Equal(wanted, r.wanted) {
			r.wanted = wanted
			r.config.Resolver.Want(wanted)
		}
	}
}
