package config

import (
	"fmt"
	"net"
	"net/netip"
	"path"
	"regexp"
	"strconv"
	"strings"
)

// checker applies the rules that one value or several together must keep, and goes on after a problem.
type checker struct {
	c        *Config
	at       positions
	problems []Problem
	paths    map[string]string // socket path -> the key that has it
	devices  map[string]string // interface -> the object that has it
}

func (c *Config) check(at positions) []Problem {
	k := &checker{c: c, at: at, paths: map[string]string{}, devices: map[string]string{}}
	k.workers()
	k.control()
	k.uplinks()
	k.networks()
	k.ports()
	k.volumes()
	return k.problems
}

// fail reports a problem where path stands, or where the object around it does when the key is absent.
func (k *checker) fail(path, format string, args ...any) {
	if enough(k.problems) {
		return
	}
	path = strings.TrimPrefix(path, ".") // of a document that is one object
	p := Problem{Path: path, Reason: fmt.Sprintf(format, args...)}
	for around := path; ; {
		if at, ok := k.at[around]; ok {
			p.Line, p.Column = at.line, at.column
			break
		}
		i := strings.LastIndexAny(around, ".[")
		if i < 0 {
			break
		}
		around = around[:i]
	}
	k.problems = append(k.problems, p)
}

// given reports whether a key stood in the document. Zero values of assembled configurations count as absent.
func (k *checker) given(path string) bool { _, ok := k.at[path]; return ok }

// between reports a number that was given and is out of range.
func (k *checker) between(path string, v, low, high int) {
	if (v != 0 || k.given(path)) && (v < low || v > high) {
		k.fail(path, "%d is out of range: give %d to %d, or remove the key", v, low, high)
	}
}

var nameSyntax = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{0,62}$`)

// name checks an object's name against the syntax, and against those of its kind that came before.
func (k *checker) name(path, name string, seen map[string]string) {
	switch first, twice := seen[name]; {
	case name == "" && !k.given(path):
		k.fail(path, "the name is missing: give the object one")
	case !nameSyntax.MatchString(name):
		k.fail(path, "%s is not a name: use up to 63 lower-case letters, digits, dots and dashes, the first a letter or digit",
			quote(name))
	case twice:
		k.fail(path, "%s is also the name of %s: give each its own", name, first)
	default:
		seen[name] = strings.TrimSuffix(path, ".name")
	}
}

// socket checks the path of a unix socket, and that no other key has it.
func (k *checker) socket(where, socket string) {
	switch first, twice := k.paths[path.Clean(socket)]; {
	case !path.IsAbs(socket) || strings.HasSuffix(socket, "/") || strings.ContainsRune(socket, 0):
		k.fail(where, "%s is not the path of a socket: begin it with / and end it with a file's name", quote(socket))
	case len(socket) > MaxSocketPath:
		k.fail(where, "the path has %d bytes: a unix socket's has at most %d, choose a shorter directory", len(socket), MaxSocketPath)
	case twice:
		k.fail(where, "%s is also %s: give each its own socket", socket, first)
	default:
		k.paths[path.Clean(socket)] = where
	}
}

func (k *checker) workers() {
	cpus := k.c.Workers.CPUs
	seen := map[int]bool{}
	for i, cpu := range cpus {
		at := fmt.Sprintf("workers.cpus[%d]", i)
		switch {
		case cpu < 0 || cpu > 8191: // NR_CPUS is at most 8192
			k.fail(at, "%d is not the number of a core: lscpu shows those there are", cpu)
		case seen[cpu]:
			k.fail(at, "core %d is named before: keep one", cpu)
		}
		seen[cpu] = true
	}
}

func (k *checker) control() {
	c := k.c.Control
	if c.Socket != "" || k.given("control.socket") {
		k.socket("control.socket", c.Socket)
	} else {
		k.paths[DefaultSocket] = "control.socket"
	}
	if c.Metrics != "" || k.given("control.metrics") {
		k.listener("control.metrics", c.Metrics)
	}
}

func (k *checker) listener(where, address string) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		k.fail(where, "%s is not an address to listen on: write it as 127.0.0.1:9464", quote(address))
		return
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
		k.fail(where, "%s is not a TCP port: give 1 to 65535", quote(port))
	}
	if _, err := netip.ParseAddr(host); err != nil && host != "" && host != "localhost" {
		k.fail(where, "%s is not an IP address: give the one to listen on, or none before the colon for all", quote(host))
	}
}

func (k *checker) uplinks() {
	names := map[string]string{}
	for i, u := range k.c.Uplinks {
		at := fmt.Sprintf("uplinks[%d]", i)
		k.name(at+".name", u.Name, names)
		switch {
		case u.Interface == "" && u.VhostUser == "":
			k.fail(at, "the uplink leads nowhere: give interface or vhost-user")
		case u.Interface != "" && u.VhostUser != "":
			k.fail(at+".vhost-user", "the uplink has an interface too: keep one of them")
		case u.Interface != "":
			k.device(at, u.Interface)
			k.between(at+".queues", u.Queues, 1, 256)
			k.between(at+".transmit-budget", u.TransmitBudget, MinTransmitBudget, MaxTransmitBudget)
		default:
			k.uplinkVhostUser(at, u)
		}
		if u.Address.IsValid() {
			k.unicast(at+".address", u.Address)
		}
		k.between(at+".port", int(u.Port), 1, 65535)
	}
}

// device checks the name of a network interface, and that no other object has it.
func (k *checker) device(at, name string) {
	switch first, twice := k.devices[name]; {
	case name == "" || len(name) > 15 || name == "." || name == ".." || strings.ContainsAny(name, "/: \t\n\x00"):
		k.fail(at+".interface", "%s is not the name of a network interface: give one that ip link shows", quote(name))
	case twice:
		k.fail(at+".interface", "%s belongs to %s: an interface serves one uplink or port, name another", name, first)
	default:
		k.devices[name] = at
	}
}

func (k *checker) uplinkVhostUser(at string, u Uplink) {
	k.socket(at+".vhost-user", u.VhostUser)
	for _, key := range []struct {
		name  string
		given bool
	}{
		{"mode", u.Mode != "" && u.Mode != BindAuto},
		{"xdp", u.XDP != "" && u.XDP != XDPAuto},
		{"queues", u.Queues != 0 || k.given(at+".queues")},
		{"busy-poll", u.BusyPoll != "" && u.BusyPoll != ToggleAuto},
		{"multi-buffer", u.MultiBuffer != "" && u.MultiBuffer != ToggleAuto},
		{"transmit-budget", u.TransmitBudget != 0 || k.given(at+".transmit-budget")},
	} {
		if key.given {
			k.fail(at+"."+key.name, "this is for uplinks with an interface: remove it")
		}
	}
}

// unicast checks an address that packets are sent to or from.
func (k *checker) unicast(where string, a netip.Addr) bool {
	switch {
	case a.Zone() != "":
		k.fail(where, "%s has a zone: give the address alone", a)
	case a.Is4In6():
		k.fail(where, "%s is an IPv4 address in IPv6's dress: write %s", a, a.Unmap())
	case a.IsUnspecified() || a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		k.fail(where, "%s is not the address of one host: give a unicast address", a)
	default:
		return true
	}
	return false
}

// mac checks the address of one station.
func (k *checker) mac(where string, m MAC) bool {
	switch {
	case m.IsZero():
		k.fail(where, "%s is not the address of a station: give its own, or remove the key", m)
	case m.IsMulticast():
		k.fail(where, "%s is a multicast address: give that of one station", m)
	default:
		return true
	}
	return false
}
