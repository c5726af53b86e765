package config

import (
	"fmt"
	"net/netip"
	"slices"
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
	macs, ips := map[MAC]bool{}, map[netip.Addr]bool{}
	for i, e := range n.Entries {
		where := fmt.Sprintf("%s.entries[%d]", at, i)
		switch {
		case e.MAC.IsZero() && !k.given(where+".mac"):
			k.fail(where, "the entry has no mac: give the station's")
		case !k.mac(where+".mac", e.MAC):
		case macs[e.MAC]:
			k.fail(where+".mac", "%s has an entry before: keep one", e.MAC)
		}
		macs[e.MAC] = true
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

func (k *checker) ports() {
	names := map[string]string{}
	type station struct {
		network string
		mac     MAC
	}
	stations := map[station]string{}
	networks := map[string]Network{}
	for i, n := range k.c.Networks {
		networks[n.Name] = n
		for j, e := range n.Entries {
			stations[station{n.Name, e.MAC}] = fmt.Sprintf("networks[%d].entries[%d]", i, j)
		}
	}
	for i, p := range k.c.Ports {
		at := fmt.Sprintf("ports[%d]", i)
		k.name(at+".name", p.Name, names)
		k.port(at, p)
		switch _, known := networks[p.Network]; {
		case p.Network == "":
			k.fail(at+".network", "the network is missing: name the one that the port is in")
		case !known:
			k.fail(at+".network", "there is no network %s: name one that stands under networks", quote(p.Network))
		}
		if n := networks[p.Network]; n.Uplink != "" && n.VNI == 0 && p.MAC.IsZero() && !k.given(at+".mac") {
			k.fail(at, "a port of a flat network needs its mac, by which its frames are found on the uplink: give it")
		}
		if !p.MAC.IsZero() {
			if first, twice := stations[station{p.Network, p.MAC}]; twice {
				k.fail(at+".mac", "%s is also that of %s in network %s: give each its own", p.MAC, first, p.Network)
			}
			stations[station{p.Network, p.MAC}] = at
		}
		for j, ip := range p.IPs { // ports may share one, as routers with a virtual address do
			where := fmt.Sprintf("%s.ips[%d]", at, j)
			if k.unicast(where, ip) && slices.Contains(p.IPs[:j], ip) {
				k.fail(where, "%s is in the list before: keep one", ip)
			}
		}
	}
}

// port checks what a port says about itself alone.
func (k *checker) port(at string, p Port) {
	if p.Socket == "" && !k.given(at+".socket") {
		k.fail(at+".socket", "the socket is missing: give the path of the port's vhost-user socket")
	} else {
		k.socket(at+".socket", p.Socket)
	}
	if p.Role == RoleClient {
		k.fail(at+".role", "client is not supported: this version listens on the socket, let the guest's VMM connect to it")
	}
	if k.given(at+".mode") && p.Mode == 0 {
		k.fail(at+".mode", "0000 lets nobody connect: 0660 lets owner and group")
	}
	if (p.Queues != 0 || k.given(at+".queues")) && p.Queues != 1 {
		k.fail(at+".queues", "%d queue pairs are not supported by this version: give 1, or remove the key", p.Queues)
	}
	if !p.MAC.IsZero() || k.given(at+".mac") {
		k.mac(at+".mac", p.MAC)
	} else if p.AntiSpoof {
		k.fail(at+".anti-spoof", "this needs to know the port's address: give its mac, or set anti-spoof: false to let the guest choose")
	}
	k.limits(at+".limits", p.Limits)
}
