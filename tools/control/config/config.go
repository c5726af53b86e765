// Package config is the daemon's configuration: its types, their one strict decoder, and the rules between them.
//
//	file (YAML) ──┐                                   ┌─> Config, defaults filled in
//	              ├─> node tree ──> decode ──> check ─┤
//	body (JSON) ──┘   (line:col)    (types)    (rules)└─> *Error: every problem, with line, column, path and reason
//
// YAML files and JSON bodies become the same small tree, so that both are judged by the same code and both report
// where the offending value stands. Nothing is guessed: an unknown key, a key given twice, a number where a string
// belongs, an anchor or a tag are refused. All problems of a document are reported at once.
//
// The types are also the API's: their json tags are the YAML keys. A Config that came out of Parse holds no "absent"
// scalars any more and nil for every empty list, so two of them compare with reflect.DeepEqual; package control sees so
// what changed.
//
// The package looks at nothing but the text: whether an interface, a user or a core exists on this host is for the
// engine to say when it applies the object.
package config

import (
	"encoding/json"
	"net/netip"
	"slices"
)

// The values that stand where a key is absent.
const (
	DefaultSocket    = "/run/shunt/shuntd.sock"
	DefaultVXLANPort = 4789 // RFC 7348, section 5
	DefaultMode      = FileMode(0o660)
	DefaultQueues    = 1
	MaxVNI           = 1<<24 - 1
	MaxSocketPath    = 107 // sun_path holds 108 bytes with its NUL, unix(7)
	MaxDocument      = 4 << 20
)

// Config is one whole configuration. An empty one is valid: a daemon that serves only its API.
type Config struct {
	Workers  Workers   `json:"workers"`
	Control  Control   `json:"control"`
	Uplinks  []Uplink  `json:"uplinks"`
	Networks []Network `json:"networks"`
	Ports    []Port    `json:"ports"`
}

// Workers says which cores poll. It is read once at start: a change needs a restart.
type Workers struct {
	CPUs CPUs `json:"cpus"`           // absent: auto
	Idle Idle `json:"idle,omitempty"` // absent: adaptive
}

// Control is the operator's side of the daemon. It is read once at start: a change needs a restart.
type Control struct {
	Socket  string  `json:"socket,omitempty"`  // of the API; absent: DefaultSocket
	Group   Account `json:"group,omitempty"`   // may use the API too (mode 0660); absent: root only (mode 0600)
	Metrics string  `json:"metrics,omitempty"` // host:port of a Prometheus listener; absent: none
}

// Uplink is a way to other hosts: an interface taken by AF_XDP, or a peer's vhost-user connection.
// Exactly one of Interface and VhostUser is set.
type Uplink struct {
	Name      string     `json:"name"`
	Interface string     `json:"interface,omitempty"`
	VhostUser string     `json:"vhost-user,omitempty"` // path of the socket
	Mode      BindMode   `json:"mode,omitempty"`       // of the AF_XDP bind; absent: auto
	XDP       XDPMode    `json:"xdp,omitempty"`        // where the XDP program attaches; absent: auto
	Address   netip.Addr `json:"address,omitzero"`     // local tunnel endpoint; absent: the interface's own
	Port      uint16     `json:"port,omitempty"`       // UDP port of VXLAN; absent: 4789
	Queues    int        `json:"queues,omitempty"`     // receive queues to serve, from queue 0; absent: all there are
}

// Network is one layer 2 segment. With an uplink and a VNI it is a VXLAN network, with an uplink alone a flat one whose
// frames leave untagged, with neither it lives on this host only.
type Network struct {
	Name     string       `json:"name"`
	VNI      uint32       `json:"vni,omitempty"`    // 1 to MaxVNI; absent: flat, or local
	Uplink   string       `json:"uplink,omitempty"` // absent: frames are switched between ports of this host only
	MTU      int          `json:"mtu,omitempty"`    // of the guests' frames; absent: 1500 less the headers of VXLAN, if it has one
	Learning bool         `json:"learning"`         // of source addresses; absent: true
	Flood    []netip.Addr `json:"flood,omitempty"`  // VTEPs that broadcast, unknown and multicast frames are replicated to
	Entries  []Entry      `json:"entries,omitempty"`
}

// Entry is a static forwarding entry: MAC lives behind VTEP.
type Entry struct {
	MAC  MAC        `json:"mac"`
	IP   netip.Addr `json:"ip,omitzero"`   // shown in the FDB; ARP and ND are not answered by this version
	VTEP netip.Addr `json:"vtep,omitzero"` // absent, in a flat network only: behind the uplink
}

// Port is a guest's network interface.
type Port struct {
	Name      string       `json:"name"`
	Network   string       `json:"network"`
	Socket    string       `json:"socket"`           // vhost-user
	Role      Role         `json:"role,omitempty"`   // absent: server
	Mode      FileMode     `json:"mode,omitzero"`    // of the socket; absent: 0660
	Owner     Account      `json:"owner,omitempty"`  // absent: the daemon's user
	Group     Account      `json:"group,omitempty"`  // absent: the daemon's group
	MAC       MAC          `json:"mac,omitzero"`     // absent: the guest chooses, and anti-spoof must be off
	IPs       []netip.Addr `json:"ips,omitempty"`    // absent: any, where anti-spoof looks at MAC addresses only
	Queues    int          `json:"queues,omitempty"` // queue pairs; absent: 1
	AntiSpoof bool         `json:"anti-spoof"`       // absent: true
	Limits    Limits       `json:"limits"`
}

// Limits bounds a port in each direction. Zero is no limit.
type Limits struct {
	PPS   uint64   `json:"pps"`
	BPS   uint64   `json:"bps"`            // bits a second
	Burst Duration `json:"burst,omitzero"` // how much may pass at once, as time at the limit; absent: 10ms
}

// MarshalJSON writes empty lists as such and not as null, for the programs that walk them.
func (c Config) MarshalJSON() ([]byte, error) {
	type plain Config // without this method
	c.Uplinks, c.Networks, c.Ports = notNil(c.Uplinks), notNil(c.Networks), notNil(c.Ports)
	return json.Marshal(plain(c))
}

func notNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

// fill replaces every absent scalar by its default, and empty lists by nil, so that equal meanings are equal values.
func (c *Config) fill() {
	c.Workers.Idle = or(c.Workers.Idle, IdleAdaptive)
	c.Control.Socket = or(c.Control.Socket, DefaultSocket)
	c.Uplinks, c.Networks, c.Ports = some(c.Uplinks), some(c.Networks), some(c.Ports) // copies: others may read the old ones
	for i := range c.Uplinks {
		u := &c.Uplinks[i]
		u.Mode = or(u.Mode, BindAuto)
		u.XDP = or(u.XDP, XDPAuto)
		u.Port = or(u.Port, DefaultVXLANPort)
	}
	for i := range c.Networks {
		n := &c.Networks[i]
		n.Flood, n.Entries = some(n.Flood), some(n.Entries)
	}
	for i := range c.Ports {
		p := &c.Ports[i]
		p.Role = or(p.Role, RoleServer)
		p.Mode = or(p.Mode, DefaultMode)
		p.Queues = or(p.Queues, DefaultQueues)
		p.Limits.Burst = or(p.Limits.Burst, DefaultBurst)
		p.IPs = some(p.IPs)
	}
}

func or[T comparable](v, absent T) T {
	var zero T
	if v == zero {
		return absent
	}
	return v
}

func some[T any](list []T) []T {
	if len(list) == 0 {
		return nil
	}
	return slices.Clone(list)
}

// ObjectName returns the uplink's name.
func (u Uplink) ObjectName() string { return u.Name }

// ObjectName returns the network's name.
func (n Network) ObjectName() string { return n.Name }

// ObjectName returns the port's name.
func (p Port) ObjectName() string { return p.Name }
