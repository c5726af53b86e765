package config

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/shuntio/shunt/vxlan/acl"
)

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
	switch {
	case p.Socket == "" && p.Interface == "" && !k.given(at+".socket") && !k.given(at+".interface"):
		k.fail(at, "the port leads nowhere: give the path of its vhost-user socket, or an interface")
	case p.Interface != "" || k.given(at+".interface"):
		k.portInterface(at, p)
	default:
		k.portSocket(at, p)
	}
	k.between(at+".queues", p.Queues, 1, MaxQueues)
	k.between(at+".learn-limit", p.LearnLimit, 1, MaxPortLearn)
	k.portWorkers(at+".workers", p.Workers, max(p.Queues, DefaultQueues))
	if !p.MAC.IsZero() || k.given(at+".mac") {
		k.mac(at+".mac", p.MAC)
	} else if p.AntiSpoof {
		k.fail(at+".anti-spoof", "this needs to know the port's address: give its mac, or set anti-spoof: false to let the guest choose")
	}
	k.limits(at+".limits", p.Limits)
	if p.ACL != nil {
		k.acl(at+".acl", *p.ACL)
	}
}

// only refuses the keys of a file that shuntd makes, where it makes none.
func (k *checker) only(at string, p Port, why string) {
	if p.Mode != 0 || k.given(at+".mode") {
		k.fail(at+".mode", "%s: remove it", why)
	}
	if p.Owner != "" {
		k.fail(at+".owner", "%s: remove it", why)
	}
	if p.Group != "" {
		k.fail(at+".group", "%s: remove it", why)
	}
}

func (k *checker) portSocket(at string, p Port) {
	k.socket(at+".socket", p.Socket)
	if p.Role == RoleClient {
		k.only(at, p, "this is for a socket that shuntd makes, and as client it finds one")
	} else if k.given(at+".mode") && p.Mode == 0 {
		k.fail(at+".mode", "0000 lets nobody connect: 0660 lets owner and group")
	}
}

func (k *checker) portInterface(at string, p Port) {
	if p.Socket != "" || k.given(at+".socket") {
		k.fail(at+".interface", "the port has a socket too: keep one of them")
		return
	}
	k.device(at, p.Interface)
	if p.Role != "" {
		k.fail(at+".role", "this is for a socket, and the port has an interface: remove it")
	}
	k.only(at, p, "this is for a socket, and the port has an interface")
}

// portWorkers checks which workers a port names. How many there are is known only where the configuration names their cores.
func (k *checker) portWorkers(at string, workers []int, queues int) {
	cores := len(k.c.Workers.CPUs)
	for i, w := range workers {
		where := fmt.Sprintf("%s[%d]", at, i)
		switch {
		case w < 0 || w >= MaxWorkers:
			k.fail(where, "%d is not the number of a worker: shuntctl status shows those there are, from 0 on", w)
		case cores > 0 && w >= cores:
			k.fail(where, "there is no worker %d: workers.cpus names %d of them, numbered from 0 on", w, cores)
		case slices.Contains(workers[:i], w):
			k.fail(where, "worker %d is named before: keep one", w)
		}
	}
	if len(workers) > queues {
		k.fail(at, "%d workers are named for %d of queues: name no more than that, or raise queues", len(workers), queues)
	}
}

func (k *checker) limits(at string, l Limits) {
	k.lasts(at+".flood.burst", l.Flood.Burst, 100*time.Microsecond, time.Second)
	if k.given(at) && !k.given(at+".from-guest") && !k.given(at+".to-guest") { // one for both
		k.lasts(at+".burst", l.FromGuest.Burst, 100*time.Microsecond, time.Second)
		return
	}
	k.lasts(at+".from-guest.burst", l.FromGuest.Burst, 100*time.Microsecond, time.Second)
	k.lasts(at+".to-guest.burst", l.ToGuest.Burst, 100*time.Microsecond, time.Second)
}

// lasts reports a length of time that was given and is out of range.
func (k *checker) lasts(path string, d Duration, low, high time.Duration) {
	if v := time.Duration(d); (v != 0 || k.given(path)) && (v < low || v > high) {
		k.fail(path, "%s is out of range: give %s to %s", v, Duration(low), Duration(high))
	}
}

// acl checks what its rules, each of which is good by itself, are together.
func (k *checker) acl(at string, p acl.Policy) {
	if len(p.Rules) > acl.MaxRules {
		k.fail(strings.TrimPrefix(at+".rules", "."), "%d rules are more than the %d that a port may have: take some together", len(p.Rules), acl.MaxRules)
	}
	first := make(map[acl.Rule]int, len(p.Rules))
	for i, r := range p.Rules {
		if was, twice := first[r]; twice {
			k.fail(strings.TrimPrefix(fmt.Sprintf("%s.rules[%d]", at, i), "."), "%q is also rule %d, which decides before it: keep one", r, was)
			continue
		}
		first[r] = i
	}
}
