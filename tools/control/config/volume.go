package config

import "strings"

// The values that stand where a volume's key is absent, and its bounds.
const (
	DefaultVolumeBurst = Duration(100e6) // 100ms
	// MaxSerial is what GET_ID has room for (virtio 1.2, section 5.2.6.1).
	MaxSerial = 20
	// MaxVolumeQueues is how many rings vhost-user can number.
	MaxVolumeQueues = 256
)

// Volume is a guest's disk: a vhost-user socket in front, a store behind.
type Volume struct {
	Name   string   `json:"name"`
	Socket string   `json:"socket"`         // vhost-user
	Role   Role     `json:"role,omitempty"` // absent: server
	Mode   FileMode `json:"mode,omitzero"`  // of the server's socket; absent: 0660
	Owner  Account  `json:"owner,omitempty"`
	Group  Account  `json:"group,omitempty"`
	// Source is where the data are: file:///path, nbd://host[:port]/export, nbds:// with TLS, nbd+unix:///export?socket=/path, nbds+unix://, or
	// nvme+tcp://host[:port]/nqn?nsid=1.
	Source   string `json:"source"`
	Serial   string `json:"serial,omitempty"` // what the guest reads as the disk's serial number, 20 bytes at most; absent: the beginning of the name
	ReadOnly bool   `json:"readonly,omitempty"`
	Queues   int    `json:"queues,omitempty"` // offered to the guest; absent: 1
	// Workers are numbers in the list of workers: queue i belongs to Workers[i % len(Workers)]. Absent: one that the daemon chooses.
	Workers []int `json:"workers,omitempty"`
	// Direct is whether a file is read and written past the page cache. Absent: true, for a file.
	Direct *bool `json:"direct,omitempty"`
	// RegisteredBuffers: the guest's memory is pinned for a file's IO, which must then never be given back to the host (balloon, virtio-mem).
	RegisteredBuffers bool       `json:"registered-buffers,omitempty"`
	OnError           OnError    `json:"on-error,omitempty"`   // what requests do while the store is away; absent: wait
	Timeout           Duration   `json:"timeout,omitzero"`     // after which one that waits fails; absent: with wait never, with fail at once
	Durability        Durability `json:"durability,omitempty"` // absent: flush
	// Quiesce is how long a store that came back is left alone, so that what it was asked before is over. Absent: the store's own.
	Quiesce Duration `json:"quiesce,omitzero"`
	// VolumeGroup is the name of one whose limits the volume shares, beside its own.
	VolumeGroup string       `json:"volume-group,omitempty"`
	Limits      VolumeLimits `json:"limits"`
	TLS         *TLS         `json:"tls,omitempty"` // of NBD
	Digests     Digests      `json:"digests,omitzero"`
	HostNQN     string       `json:"host-nqn,omitempty"` // who we are for NVMe; absent: as /etc/nvme/hostnqn says, else made of the machine's id
}

// VolumeSource is where data are and how they are reached: what of a Volume a look at them needs.
type VolumeSource struct {
	Source   string  `json:"source"`
	ReadOnly bool    `json:"readonly,omitempty"` // what cannot be written to will do
	Direct   *bool   `json:"direct,omitempty"`
	TLS      *TLS    `json:"tls,omitempty"`
	Digests  Digests `json:"digests,omitzero"`
	HostNQN  string  `json:"host-nqn,omitempty"`
}

// From is where the volume's data are.
func (v Volume) From() VolumeSource {
	return VolumeSource{Source: v.Source, ReadOnly: v.ReadOnly, Direct: v.Direct, TLS: v.TLS, Digests: v.Digests, HostNQN: v.HostNQN}
}

// VolumeGroup is a limit that volumes share.
type VolumeGroup struct {
	Name   string       `json:"name"`
	Limits VolumeLimits `json:"limits"`
}

// VolumeLimits bounds the requests of a guest to a disk, or of several. Zero is no limit.
type VolumeLimits struct {
	IOPS  uint64   `json:"iops"`           // requests a second
	BPS   uint64   `json:"bps"`            // bytes a second, other than the bits of a port
	Burst Duration `json:"burst,omitzero"` // how much may pass at once, as time at the limit; absent: 100ms
}

// TLS says how a store's server is spoken to. The files are PEM, and read anew for each connection.
type TLS struct {
	CA         string `json:"ca,omitempty"`          // certificates, of which one must have signed the server's; absent: the system's
	Cert       string `json:"cert,omitempty"`        // our own certificate; absent: none
	Key        string `json:"key,omitempty"`         // its key
	ServerName string `json:"server-name,omitempty"` // whose certificate the server must have; absent: the source's host
}

// Digests are checksums of NVMe/TCP, which the controller must agree to.
type Digests struct {
	Header bool `json:"header"`
	Data   bool `json:"data"`
}

// OnError is what becomes of requests while their store is away.
type OnError string

// They wait until it is back, or fail.
const (
	OnErrorWait OnError = "wait"
	OnErrorFail OnError = "fail"
)

// UnmarshalText accepts either by name.
func (o *OnError) UnmarshalText(text []byte) error { return word(o, text, OnErrorWait, OnErrorFail) }

// Durability is when a guest's write is on stable storage.
type Durability string

// When the guest flushes, as a disk with a cache, or before it is done.
const (
	DurabilityFlush Durability = "flush"
	DurabilityFUA   Durability = "fua"
)

// UnmarshalText accepts either by name.
func (d *Durability) UnmarshalText(text []byte) error {
	return word(d, text, DurabilityFlush, DurabilityFUA)
}

// The schemes of sources.
const (
	SchemeFile     = "file"
	SchemeNBD      = "nbd"
	SchemeNBDS     = "nbds"
	SchemeNBDUnix  = "nbd+unix"
	SchemeNBDSUnix = "nbds+unix"
	SchemeNVMe     = "nvme+tcp"
)

var schemes = []string{SchemeFile, SchemeNBD, SchemeNBDS, SchemeNBDUnix, SchemeNBDSUnix, SchemeNVMe}

// DiscoveryNQN is the name of every subsystem that tells of others (NVMe base specification).
const DiscoveryNQN = "nqn.2014-08.org.nvmexpress.discovery"

// Scheme is what a source begins with, before the colon.
func Scheme(source string) string {
	scheme, _, _ := strings.Cut(source, "://")
	return scheme
}

// ObjectName returns the volume's name.
func (v Volume) ObjectName() string { return v.Name }

// ObjectName returns the group's name.
func (g VolumeGroup) ObjectName() string { return g.Name }

func (v *Volume) fill() {
	v.Role = or(v.Role, RoleServer)
	if v.Role == RoleServer {
		v.Mode = or(v.Mode, DefaultMode)
	}
	v.Serial = or(v.Serial, v.Name[:min(len(v.Name), MaxSerial)])
	v.Queues = or(v.Queues, DefaultQueues)
	v.Workers = some(v.Workers)
	if v.Direct == nil && Scheme(v.Source) == SchemeFile {
		direct := true
		v.Direct = &direct
	}
	v.OnError, v.Durability = or(v.OnError, OnErrorWait), or(v.Durability, DurabilityFlush)
	v.Limits.Burst = or(v.Limits.Burst, DefaultVolumeBurst)
	if v.TLS != nil && *v.TLS == (TLS{}) {
		v.TLS = nil
	}
}

func (g *VolumeGroup) fill() { g.Limits.Burst = or(g.Limits.Burst, DefaultVolumeBurst) }
