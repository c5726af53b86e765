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
	"time"
)

// The values that stand where a key is absent.
const (
	DefaultSocket    = "/run/shunt/shuntd.sock"
	DefaultVXLANPort = 4789 // RFC 7348, section 5
	DefaultMode      = FileMode(0o660)
	DefaultQueues    = 1
	DefaultAge       = Duration(300 * time.Second) // as Linux's bridge and VXLAN device
	// DefaultNetworkLearn and DefaultPortLearn bound learned forwarding entries: from the wire, and from one guest.
	DefaultNetworkLearn = 4096
	DefaultPortLearn    = 64
	MaxVNI              = 1<<24 - 1
	MaxNetworkLearn     = 1 << 20
	MaxPortLearn        = 1 << 16
	MaxQueues           = 128  // queue pairs of a port
	MaxWorkers          = 8192 // as many as cores
	MinTransmitBudget   = 32   // what the kernel takes for XDP_MAX_TX_SKB_BUDGET
	MaxTransmitBudget   = 2048 // a whole transmit ring
	MaxSocketPath       = 107  // sun_path holds 108 bytes with its NUL, unix(7)
	MaxDocument         = 4 << 20
)

// Config is one whole configuration. An empty one is valid: a daemon that serves only its API.
type Config struct {
	Workers  Workers   `json:"workers"`
	Control  Control   `json:"control"`
	Uplinks  []Uplink  `json:"uplinks"`
	Networks []Network `json:"networks"`
	Ports    []Port    `json:"ports"`
	// VolumeGroups are limits that volumes share.
	VolumeGroups []VolumeGroup `json:"volume-groups"`
	Volumes      []Volume      `json:"volumes"`
}

// Workers says which cores poll. It is read once at start: a change needs a restart.
type Workers struct {
	CPUs CPUs `json:"cpus"`           // absent: auto
	Idle Idle `json:"idle,omitempty"` // absent: adaptive
	// HugePages is whether frame memory lies on huge pages: on refuses to start without. Absent: auto.
	HugePages Toggle `json:"huge-pages,omitempty"`
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
	// BusyPoll is whether the worker drives the NIC's receive queue itself, MultiBuffer whether frames may be longer than one
	// chunk of memory: on refuses an interface that cannot. Absent: auto.
	BusyPoll    Toggle `json:"busy-poll,omitempty"`
	MultiBuffer Toggle `json:"multi-buffer,omitempty"`
	// TransmitBudget is how many frames one system call transmits at most, in copy mode. Absent: as many as the engine finds good.
	TransmitBudget int `json:"transmit-budget,omitempty"`
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
	// Age is how long a learned entry outlives its last frame, LearnLimit how many are learned from the wire. Absent: 5 minutes, 4096.
	Age        Duration `json:"age,omitzero"`
	LearnLimit int      `json:"learn-limit,omitempty"`
	Answer     bool     `json:"answer"`         // ARP and ND requests for known addresses; absent: true
	DSCP       DSCP     `json:"dscp,omitempty"` // of guests' packets, outside the tunnel; absent: copy
}

// Entry is a static forwarding entry: MAC lives behind VTEP.
type Entry struct {
	MAC  MAC        `json:"mac"`
	IP   netip.Addr `json:"ip,omitzero"`   // ARP and ND requests for it are answered, if the network answers
	VTEP netip.Addr `json:"vtep,omitzero"` // absent, in a flat network only: behind the uplink
}

// MarshalJSON writes empty lists as such and not as null, for the programs that walk them.
func (c Config) MarshalJSON() ([]byte, error) {
	type plain Config // without this method
	c.Uplinks, c.Networks, c.Ports = notNil(c.Uplinks), notNil(c.Networks), notNil(c.Ports)
	c.VolumeGroups, c.Volumes = notNil(c.VolumeGroups), notNil(c.Volumes)
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
	c.Workers.HugePages = or(c.Workers.HugePages, ToggleAuto)
	c.Control.Socket = or(c.Control.Socket, DefaultSocket)
	c.Uplinks, c.Networks, c.Ports = some(c.Uplinks), some(c.Networks), some(c.Ports) // copies: others may read the old ones
	for i := range c.Uplinks {
		u := &c.Uplinks[i]
		u.Mode = or(u.Mode, BindAuto)
		u.XDP = or(u.XDP, XDPAuto)
		u.Port = or(u.Port, DefaultVXLANPort)
		u.BusyPoll, u.MultiBuffer = or(u.BusyPoll, ToggleAuto), or(u.MultiBuffer, ToggleAuto)
	}
	for i := range c.Networks {
		n := &c.Networks[i]
		n.Flood, n.Entries = some(n.Flood), some(n.Entries)
		n.Age, n.LearnLimit, n.DSCP = or(n.Age, DefaultAge), or(n.LearnLimit, DefaultNetworkLearn), or(n.DSCP, DSCPCopy)
	}
	for i := range c.Ports {
		c.Ports[i].fill()
	}
	c.VolumeGroups, c.Volumes = some(c.VolumeGroups), some(c.Volumes)
	for i := range c.VolumeGroups {
		c.VolumeGroups[i].fill()
	}
	for i := range c.Volumes {
		c.Volumes[i].fill()
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
