package control

import (
	"maps"
	"net/netip"
	"runtime/debug"
	"slices"
	"time"

	"github.com/shuntio/shunt/tools/control/config"
)

// Kind is a kind of configured object.
type Kind string

// The kinds, and the worker as an owner of counters.
const (
	KindUplink  Kind = "uplink"
	KindNetwork Kind = "network"
	KindPort    Kind = "port"
	KindWorker  Kind = "worker"

	KindVolumeGroup Kind = "volume-group"
	KindVolume      Kind = "volume"
)

// Status is the state of the daemon.
type Status struct {
	Version string    `json:"version"`
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	Failed  []Failure `json:"failed,omitempty"` // what is not as it should be
	EngineStatus
}

// EngineStatus is the state of the engine's objects.
type EngineStatus struct {
	HugePages bool            `json:"huge-pages"` // frame memory lies on them
	Workers   []WorkerStatus  `json:"workers"`
	Uplinks   []UplinkStatus  `json:"uplinks"`
	Networks  []NetworkStatus `json:"networks"`
	Ports     []PortStatus    `json:"ports"`
	Volumes   []VolumeStatus  `json:"volumes"`
}

// WorkerStatus is the state of a poll loop.
type WorkerStatus struct {
	ID      int         `json:"id"`
	CPU     int         `json:"cpu"` // -1: not pinned
	Idle    config.Idle `json:"idle"`
	Busy    float64     `json:"busy"`    // share of the time that was work, 0 to 1, over about the last second
	Rounds  uint64      `json:"rounds"`  // of the loop
	Sleeps  uint64      `json:"sleeps"`  // times it waited in the kernel
	Packets uint64      `json:"packets"` // that it forwarded or dropped
	// Frames is how many packets its memory holds; FreeFrames is how many more it has room for now.
	Frames     int `json:"frames"`
	FreeFrames int `json:"free-frames"`
	// IOUring is which of the kernel's features its io_uring uses, "basic" if none of the optional ones. Absent: it has no volume yet, and so no io_uring.
	IOUring string `json:"io-uring,omitempty"`
}

// UplinkStatus is the state of a way to other hosts, with the modes in force.
type UplinkStatus struct {
	Name           string     `json:"name"`
	Interface      string     `json:"interface,omitempty"`
	VhostUser      string     `json:"vhost-user,omitempty"`
	State          State      `json:"state"`
	Reason         string     `json:"reason,omitempty"` // of a state other than up
	XDP            string     `json:"xdp,omitempty"`    // native or generic
	Bind           string     `json:"bind,omitempty"`   // zerocopy or copy
	Queues         int        `json:"queues"`
	BusyPoll       bool       `json:"busy-poll"`                 // whether workers drive the NIC's queues
	MultiBuffer    bool       `json:"multi-buffer"`              // whether packets longer than a chunk of memory pass
	TransmitBudget int        `json:"transmit-budget,omitempty"` // frames that one system call transmits, where the kernel was told
	Address        netip.Addr `json:"address,omitzero"`
	MTU            int        `json:"mtu"`
	Neighbours     int        `json:"neighbours"` // next hops whose MAC address is known
}

// NetworkStatus is the state of a segment.
type NetworkStatus struct {
	Name     string `json:"name"`
	VNI      uint32 `json:"vni,omitempty"`
	Uplink   string `json:"uplink,omitempty"`
	MTU      int    `json:"mtu"` // in force
	Learning bool   `json:"learning"`
	Ports    int    `json:"ports"`
	Static   int    `json:"static"`  // forwarding entries of the configuration
	Learned  int    `json:"learned"` // forwarding entries learned
	// Problem is why not all packets of the network's MTU get through, since its uplink's changed.
	Problem string `json:"problem,omitempty"`
}

// State is that of a port or uplink.
type State string

// The states: of a vhost-user connection, without a peer and with one whose queues run; of an interface, without and
// with carrier; of either, given up for a reason.
const (
	StateDisconnected State = "disconnected"
	StateConnected    State = "connected"
	StateDown         State = "down"
	StateUp           State = "up"
	StateFailed       State = "failed"
)

// PortStatus is the state of a guest's network interface.
type PortStatus struct {
	Name      string     `json:"name"`
	Network   string     `json:"network"`
	Socket    string     `json:"socket,omitempty"`    // vhost-user
	Interface string     `json:"interface,omitempty"` // AF_XDP
	State     State      `json:"state"`
	Reason    string     `json:"reason,omitempty"`   // of a failed state
	Features  []string   `json:"features,omitempty"` // negotiated, by their names in the specification
	Ring      string     `json:"ring,omitempty"`     // split or packed
	Queues    int        `json:"queues"`             // queue pairs that run
	MAC       config.MAC `json:"mac,omitzero"`       // configured, else learned
	Workers   []int      `json:"workers,omitempty"`  // the IDs of those that have its queues, by queue pair
}

// Counters are as the engine sees it: received is what came into it, from the guest of a port or from the wire of an
// uplink; transmitted is what left it, to the guest or onto the wire. Bytes count Ethernet frames without FCS, on an
// uplink with the encapsulation. A dropped packet counts as received where it came in, and under its reason at the
// object that the reason is about.
type Counters struct {
	RxPackets uint64            `json:"rx-packets"`
	RxBytes   uint64            `json:"rx-bytes"`
	TxPackets uint64            `json:"tx-packets"`
	TxBytes   uint64            `json:"tx-bytes"`
	Drops     map[string]uint64 `json:"drops,omitempty"` // packets by reason
	More      map[string]uint64 `json:"more,omitempty"`  // by name: kicks, calls, syscalls, copies
}

// Dropped is the sum of all reasons.
func (c Counters) Dropped() uint64 {
	var sum uint64
	for _, n := range c.Drops {
		sum += n
	}
	return sum
}

// ObjectStats are the counters of one object.
type ObjectStats struct {
	Kind Kind   `json:"kind"`
	Name string `json:"name"`
	Counters
	Queues []QueueStats `json:"queues,omitempty"` // of a port or uplink
	// Volume has the counters of a volume, which counts no packets.
	Volume *VolumeStats `json:"volume,omitempty"`
}

// QueueStats are the counters of one queue pair of a port, or of one queue of an uplink as one worker has it: each of them receives from it. Their sums are
// less than the object's: what programs and the kernel count belongs to no queue.
type QueueStats struct {
	Queue  int `json:"queue"`
	Worker int `json:"worker"` // its ID
	Counters
}

// Stats are all counters at a time.
type Stats struct {
	At      time.Time         `json:"at"`
	Objects []ObjectStats     `json:"objects"`
	Reasons map[string]string `json:"reasons,omitempty"` // what a drop reason means, one sentence each
}

// Drop is a number of packets that one object dropped for one reason.
type Drop struct {
	Kind    Kind   `json:"kind"`
	Name    string `json:"name"`
	Reason  string `json:"reason"`
	Packets uint64 `json:"packets"`
	Meaning string `json:"meaning,omitempty"`
}

// DropList lists every drop counter that is not zero, by object in the order of the stats, then by reason.
func (s Stats) DropList() []Drop {
	list := []Drop{}
	for _, o := range s.Objects {
		for _, reason := range slices.Sorted(maps.Keys(o.Drops)) {
			if n := o.Drops[reason]; n > 0 {
				list = append(list, Drop{o.Kind, o.Name, reason, n, s.Reasons[reason]})
			}
		}
	}
	return list
}

// FDBEntry is one line of a network's forwarding table.
type FDBEntry struct {
	MAC    config.MAC    `json:"mac"`
	Origin FDBOrigin     `json:"origin"`
	Port   string        `json:"port,omitempty"` // the station is a guest of this host
	VTEP   netip.Addr    `json:"vtep,omitzero"`  // the station is behind this tunnel endpoint
	IP     netip.Addr    `json:"ip,omitzero"`    // answered for
	Age    time.Duration `json:"age,omitempty"`  // nanoseconds since a learned entry was last seen
}

// FDBOrigin says where an entry comes from.
type FDBOrigin string

// The origins: a port's configuration, a network's entries, a packet.
const (
	FDBPort    FDBOrigin = "port"
	FDBStatic  FDBOrigin = "static"
	FDBLearned FDBOrigin = "learned"
)

// Version is that of the running program, as the go command stamped it: a release, else the revision it was built from.
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "unknown"
	}
	if i := slices.IndexFunc(info.Settings, func(s debug.BuildSetting) bool { return s.Key == "vcs.revision" }); i >= 0 && info.Main.Version == "(devel)" {
		return "devel-" + info.Settings[i].Value
	}
	return info.Main.Version
}
