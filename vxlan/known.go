package vxlan

import (
	"encoding/binary"
	"math/bits"
	"net/netip"

	"github.com/shuntio/shunt/dataplane/wire"
)

// known are the IP addresses of a network whose MAC is configured, and the reverse: those of its ports and of its entries. It is part of a
// snapshot, built with it and not changed afterwards.
//
// An address that more than one MAC may use is not in it. Who has it at the moment (VRRP, CARP) only its users know.
type known struct {
	// slots by IP: open addressing, linear probing, at most half full.
	slots []knownSlot
	seed  uint64
	// stations by MAC: places in list.
	stations table
	list     []station
}

type knownSlot struct {
	ip  address  // IPv4 as IPv6 has it mapped (RFC 4291, 2.5.5.2)
	mac wire.MAC // 0: free
}

// station is what is known of a MAC: its first address of each IP version; the zero Addr: none.
type station struct{ ip4, ip6 netip.Addr }

// knownIP is an address as configured.
type knownIP struct {
	ip  netip.Addr
	mac wire.MAC
}

// newKnown makes the table of so many addresses, of which none is 0 or a group's.
func newKnown(all []knownIP, seed uint64) known {
	macs := make(map[netip.Addr]wire.MAC, len(all))
	for _, a := range all {
		if mac, ok := macs[a.ip]; ok && mac != a.mac {
			a.mac = 0 // disputed
		}
		macs[a.ip] = a.mac
	}
	n := 4
	for n < 2*len(macs) {
		n *= 2
	}
	k := known{slots: make([]knownSlot, n), seed: seed | 1, stations: newTable(len(all), seed)}
	for _, a := range all {
		if macs[a.ip] == 0 {
			continue
		}
		key := knownKey(a.ip)
		i := k.start(key)
		for k.slots[i].mac != 0 && k.slots[i].ip != key {
			i = (i + 1) % uint64(n)
		}
		k.slots[i] = knownSlot{key, a.mac}
		k.enter(a)
	}
	return k
}

// enter notes an address for its station.
func (k *known) enter(a knownIP) {
	at := k.stations.place(a.mac)
	if at == nowhere {
		at = place(len(k.list))
		k.list = append(k.list, station{})
		k.stations.put(a.mac, at, 0)
	}
	s := &k.list[at]
	switch {
	case a.ip.Is4() && !s.ip4.IsValid():
		s.ip4 = a.ip
	case a.ip.Is6() && !s.ip6.IsValid():
		s.ip6 = a.ip
	}
}

func knownKey(a netip.Addr) address {
	b := a.As16()
	return address6(b[:])
}

// known4 is the key of four bytes in a header.
func known4(b []byte) address { return address{0, 0xffff<<32 | uint64(binary.BigEndian.Uint32(b))} }

func (k *known) start(ip address) uint64 {
	hi, lo := bits.Mul64(ip.high^k.seed, ip.low^0x9e37_79b9_7f4a_7c15^k.seed<<1)
	hi, lo = bits.Mul64(hi^lo^ip.low, 0xe703_7ed1_a0b4_28db)
	return (hi ^ lo) & uint64(len(k.slots)-1)
}

// find returns the MAC of an address; 0 if it is not known.
func (k *known) find(ip address) wire.MAC {
	if len(k.slots) == 0 {
		return 0
	}
	i := k.start(ip)
	for range k.slots {
		s := &k.slots[i]
		if s.mac == 0 || s.ip == ip {
			return s.mac
		}
		i = (i + 1) & uint64(len(k.slots)-1)
	}
	return 0 // not reached: the table is at most half full
}

// station returns what is known of a MAC.
func (k *known) station(mac wire.MAC) station {
	if len(k.list) == 0 {
		return station{}
	}
	if at := k.stations.place(mac); at != nowhere {
		return k.list[at]
	}
	return station{}
}

// buildKnown enters the addresses of a network's ports and entries.
func (s *Switch) buildKnown(r *networkRecord) known {
	var all []knownIP
	for _, p := range s.ports {
		if p.config.Network == r.config.Name && p.config.MAC != 0 {
			for _, ip := range p.config.IPs {
				all = append(all, knownIP{ip, p.config.MAC})
			}
		}
	}
	for _, e := range r.config.Entries {
		if e.IP.IsValid() {
			all = append(all, knownIP{e.IP, e.MAC})
		}
	}
	return newKnown(all, s.seed)
}
