package config

import (
	"fmt"
	"net/netip"
	"time"
)

func (k *checker) networks() {
	names := map[string]string{}
	type segment struct {
		uplink string
		vni    uint32
	}
	segments := map[segment]string{}
	family := map[string]netip.Addr{} // per uplink: its address, else the first VTEP named
	for i, n := range k.c.Networks {
		at := fmt.Sprintf("networks[%d]", i)
		k.name(at+".name", n.Name, names)
		k.between(at+".vni", int(n.VNI), 1, MaxVNI)
		k.between(at+".mtu", n.MTU, 68, 65535)
		k.between(at+".learn-limit", n.LearnLimit, 1, MaxNetworkLearn)
		k.lasts(at+".age", n.Age, time.Second, 24*time.Hour)
		if n.Uplink == "" {
			k.local(at, n)
			continue
		}
		u, ok := k.uplinkNamed(n.Uplink)
		if !ok {
			k.fail(at+".uplink", "there is no uplink %s: name one that stands under uplinks", quote(n.Uplink))
			continue
		}
		if first, twice := segments[segment{n.Uplink, n.VNI}]; twice && n.VNI != 0 {
			k.fail(at+".vni", "%d is also that of %s on uplink %s: give each its own", n.VNI, first, n.Uplink)
		} else if twice {
			k.fail(at+".uplink", "%s carries the flat network of %s already: give this one a vni", n.Uplink, first)
		} else {
			segments[segment{n.Uplink, n.VNI}] = at
		}
		if u.Address.IsValid() {
			family[u.Name] = u.Address
		}
		if n.VNI != 0 && u.VhostUser != "" && !u.Address.IsValid() {
			k.fail(at+".vni", "uplink %s is a vhost-user connection without address: VXLAN needs one there", u.Name)
		}
		k.flood(at, n, u, family)
		k.entries(at, n, u, family)
	}
}

// local checks a network without uplink: nothing in it may lead off this host.
func (k *checker) local(at string, n Network) {
	if k.given(at + ".uplink") {
		k.fail(at+".uplink", "the name is empty: name an uplink, or remove the key")
	}
	if n.VNI != 0 {
		k.fail(at+".vni", "%d needs an uplink to be sent on: name one, or remove the vni to keep the network on this host", n.VNI)
	}
	if len(n.Flood) > 0 {
		k.fail(at+".flood", "the network has no uplink to flood: name one, or remove the list")
	}
	if len(n.Entries) > 0 {
		k.fail(at+".entries", "the network has no uplink to forward to: name one, or remove the list")
	}
}

func (k *checker) uplinkNamed(name string) (Uplink, bool) {
	for _, u := range k.c.Uplinks {
		if u.Name == name {
			return u, true
		}
	}
	return Uplink{}, false
}

// vtep checks a remote tunnel endpoint against its uplink.
func (k *checker) vtep(at string, a netip.Addr, u Uplink, family map[string]netip.Addr) {
	if !k.unicast(at, a) {
		return
	}
	like, ok := family[u.Name]
	switch {
	case !ok:
		family[u.Name] = a
	case a == u.Address:
		k.fail(at, "%s is this host's own address on uplink %s: name other hosts only", a, u.Name)
	case a.Is4() != like.Is4():
		k.fail(at, "%s and %s are of different IP versions: give addresses of one, as uplink %s carries one", a, like, u.Name)
	}
}

func (k *checker) flood(at string, n Network, u Uplink, family map[string]netip.Addr) {
	if n.VNI == 0 && len(n.Flood) > 0 {
		k.fail(at+".flood", "the network is flat, so the uplink floods by itself: remove the list, or give a vni")
		return
	}
	seen := map[netip.Addr]bool{}
	for i, a := range n.Flood {
		where := fmt.Sprintf("%s.flood[%d]", at, i)
		if seen[a] {
			k.fail(where, "%s is in the list before: keep one, or it gets each frame twice", a)
			continue
		}
		seen[a] = true
		k.vtep(where, a, u, family)
	}
}

func (k *checker) entries(at string, n Network, u Uplink, family map[string]netip.Addr) {
	vteps, ips := map[MAC]netip.Addr{}, map[netip.Addr]bool{}
	for i, e := range n.Entries {
		where := fmt.Sprintf("%s.entries[%d]", at, i)
		vtep, again := vteps[e.MAC]
		switch {
		case e.MAC.IsZero() && !k.given(where+".mac"):
			k.fail(where, "the entry has no mac: give the station's")
		case !k.mac(where+".mac", e.MAC):
		case again && (vtep != e.VTEP || !e.IP.IsValid()):
			k.fail(where+".mac", "%s has an entry before: keep one, or give both the same vtep and this one an ip of its own", e.MAC)
		}
		vteps[e.MAC] = e.VTEP
		if e.IP.IsValid() {
			if k.unicast(where+".ip", e.IP) && ips[e.IP] {
				k.fail(where+".ip", "%s has an entry before: keep one", e.IP)
			}
			ips[e.IP] = true
		}
		switch {
		case n.VNI == 0 && e.VTEP.IsValid():
			k.fail(where+".vtep", "the network is flat and has no tunnel: remove the key, or give a vni")
		case n.VNI != 0 && !e.VTEP.IsValid():
			k.fail(where, "the entry has no vtep: name the tunnel endpoint that %s is behind", e.MAC)
		case n.VNI != 0:
			k.vtep(where+".vtep", e.VTEP, u, family)
		}
	}
}
