package vxlan

import (
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/wire"
	"github.com/shuntio/shunt/vxlan/acl"
)

// Errors that callers test for.
var (
	// ErrNotFound: nothing has this name.
	ErrNotFound = errors.New("not found")
	// ErrInUse: something else still refers to it.
	ErrInUse = errors.New("in use")
	// ErrConflict: something else has it already.
	ErrConflict = errors.New("already taken")
	// ErrInvalid: the value cannot work.
	ErrInvalid = errors.New("invalid")
	// ErrMTU: the network's frames do not fit its uplink with their encapsulation.
	ErrMTU = errors.New("does not fit")
)

// Options of a Switch. The zero value is usable.
type Options struct {
	// MaxVTEPs bounds the tunnel endpoints of all uplinks. Zero: 4096.
	MaxVTEPs int
	// MaxLearnedVTEPs bounds those of them that nobody configured. Zero: a quarter of MaxVTEPs.
	MaxLearnedVTEPs int
	// Flows is how many flows of each port, and from the wire of each network, a worker keeps what was decided of. Zero: 2048, which take 264 KiB at most.
	Flows int
	// Seed makes table positions and flow hashes unpredictable. Zero: a random one; tests set it.
	Seed uint64

	clock    *atomic.Uint32 // of tests, in ticks; nil: the workers'
	uncached bool           // tests: decide about each frame anew
}

// Uplink is how VXLAN packets and the frames of a flat network leave the machine.
type Uplink struct {
	// Name is what networks refer to.
	Name string
	// Address is the local tunnel endpoint. Zero: as the Resolver says, followed as it changes.
	Address netip.Addr
	// MAC is the address that VXLAN packets to us carry. Zero: as the Resolver says, followed as it changes.
	MAC wire.MAC
	// MTU is the longest IP packet the uplink takes. Zero: as the Resolver says, followed as it changes.
	MTU int
	// Port is the UDP port of VXLAN. Zero: 4789.
	Port uint16
	// TTL of the outer packets. Zero: 64.
	TTL uint8
	// ZeroChecksum6 leaves the outer UDP checksum out over IPv6, as RFC 6935 and 6936 allow for tunnels. The receiver must be
	// told so: Linux's VXLAN device drops such packets unless it has udp6zerocsumrx. Over IPv4 it is always left out.
	ZeroChecksum6 bool
	// TrustChecksums accepts outer UDP checksums without verifying them, for an uplink whose NIC does.
	TrustChecksums bool
	// Resolver knows the next hops. It must be set.
	Resolver Resolver
}

// Network is one layer 2 network.
type Network struct {
	// Name is what ports refer to.
	Name string
	// VNI is the network's identifier on the wire. Not looked at if Flat.
	VNI uint32
	// Flat networks have no VXLAN: their frames are on the uplink as they are. An uplink has at most one.
	Flat bool
	// Uplink is the name of the uplink. Empty: the network is on this machine only.
	Uplink string
	// MTU is the longest IP packet of the network. Zero: 1500 less what VXLAN needs, or 1500 if Flat or without uplink.
	MTU int
	// Learning enters the source addresses of frames from the wire and from ports that may use more than their MAC.
	Learning bool
	// Age is how long a learned entry outlives its last frame. Zero: 300 s.
	Age time.Duration
	// LearnLimit bounds the entries learned from the wire. Zero: 4096.
	LearnLimit int
	// DropTagged refuses frames with a VLAN tag, both ways, as RFC 7348 6.1 has it by default. Zero value: a tag is payload, as
	// Linux's VXLAN device has it.
	DropTagged bool
	// DSCP says whether the guests' differentiated services hold outside the tunnel, too. Zero: DSCPCopy.
	DSCP DSCP
	// NoAnswer leaves questions for known addresses, by ARP and neighbour solicitation, to who has them.
	NoAnswer bool
	// Flood are the VTEPs to which group and unknown frames are replicated.
	Flood []netip.Addr
	// Entries are the static ones.
	Entries []Entry
}

// Entry is a configured place of a MAC address.
type Entry struct {
	// MAC is the guest's address.
	MAC wire.MAC
	// IP is the guest's IP address, if it is known.
	IP netip.Addr
	// VTEP is where the guest is. Zero in a flat network, and only there: on the uplink's wire.
	VTEP netip.Addr
}

// Port is a guest's place in a network.
type Port struct {
	// Name is the port's.
	Name string
	// Network is the name of its network.
	Network string
	// MAC is the guest's address, whose frames no other port and nobody on the wire can attract. Zero: the guest's are learned.
	MAC wire.MAC
	// IPs are the guest's addresses. Empty: any.
	IPs []netip.Addr
	// AntiSpoof drops frames whose source is not MAC or none of IPs.
	AntiSpoof bool
	// LearnLimit bounds the entries learned from the port, if it has no AntiSpoof. Zero: 64.
	LearnLimit int
	// ACL says which packets may go out of the port and in to it (directions as the guest sees them). Nil: all. A policy is not changed: another one takes
	// its place, by SetPort, and running flows are judged again by it.
	ACL *acl.Policy
	// Flood bounds the frames from the port that go to several places, to a group or an unknown address. Zero: nothing does.
	Flood dataplane.LimitOptions
	// FlowLimit bounds the flows of the port that are remembered so that they may be answered, if it has an ACL. Zero: 8192.
	FlowLimit int
}

// Lengths of the outer headers in front of an inner frame.
const (
	overhead4 = wire.EthernetLen + wire.IPv4MinLen + wire.UDPLen + wire.VXLANLen
	overhead6 = wire.EthernetLen + wire.IPv6Len + wire.UDPLen + wire.VXLANLen
)

const (
	minMTU = 68    // RFC 791's smallest
	maxMTU = 65535 // what an IP header can say
)

// Overhead is how much longer than the network's MTU the uplink's must be: VXLAN's headers and the inner Ethernet header.
func Overhead(local netip.Addr) int {
	if local.Is4() || local.Is4In6() {
		return overhead4
	}
	return overhead6
}

// validate checks what needs no other object, and fills in what zero values stand for.
func (n *Network) validate() error {
	if n.Name == "" {
		return fmt.Errorf("network without a name: %w", ErrInvalid)
	}
	if !n.Flat && n.Uplink != "" && (n.VNI == 0 || n.VNI > wire.MaxVNI) {
		return fmt.Errorf("network %s: VNI %d: %w, must be 1 to %d", n.Name, n.VNI, ErrInvalid, wire.MaxVNI)
	}
	if n.Flat && len(n.Flood) > 0 {
		return fmt.Errorf("network %s: a flat network has no VTEPs, remove flood: %w", n.Name, ErrInvalid)
	}
	if n.Uplink == "" && len(n.Flood)+len(n.Entries) > 0 {
		return fmt.Errorf("network %s: flood and entries need an uplink: %w", n.Name, ErrInvalid)
	}
	if n.MTU != 0 && (n.MTU < minMTU || n.MTU > maxMTU) {
		return fmt.Errorf("network %s: MTU %d: %w, must be %d to %d", n.Name, n.MTU, ErrInvalid, minMTU, maxMTU)
	}
	if n.DSCP > DSCPZero {
		return fmt.Errorf("network %s: DSCP mode %d: %w, must be DSCPCopy or DSCPZero", n.Name, n.DSCP, ErrInvalid)
	}
	if n.Age < 0 || n.LearnLimit < 0 {
		return fmt.Errorf("network %s: a negative age or limit: %w", n.Name, ErrInvalid)
	}
	if n.Age == 0 {
		n.Age = 300 * time.Second
	}
	if n.LearnLimit == 0 {
		n.LearnLimit = 4096
	}
	seen := make(map[wire.MAC]netip.Addr, len(n.Entries)) // VTEPs
	for i := range n.Entries {
		e := &n.Entries[i]
		if e.MAC == 0 || e.MAC.IsMulticast() {
			return fmt.Errorf("network %s: entry for %v: %w, must be a guest's own MAC address", n.Name, e.MAC, ErrInvalid)
		}
		e.VTEP, e.IP = e.VTEP.Unmap(), e.IP.Unmap()
		if vtep, again := seen[e.MAC]; again && (vtep != e.VTEP || !e.IP.IsValid()) {
			return fmt.Errorf("network %s: two entries for %v: %w, they must have one VTEP and an IP each", n.Name, e.MAC, ErrConflict)
		}
		seen[e.MAC] = e.VTEP
		if e.IP.IsValid() && (e.IP.IsUnspecified() || e.IP.IsMulticast() || e.IP.Zone() != "") {
			return fmt.Errorf("network %s: entry for %v: IP %v: %w, must be a unicast address", n.Name, e.MAC, e.IP, ErrInvalid)
		}
		if n.Flat {
			if e.VTEP.IsValid() {
				return fmt.Errorf("network %s: entry for %v: a flat network has no VTEPs, remove it: %w", n.Name, e.MAC, ErrInvalid)
			}
			continue
		}
		if err := n.vtep(e.VTEP); err != nil {
			return err
		}
	}
	for i := range n.Flood {
		n.Flood[i] = n.Flood[i].Unmap()
		if err := n.vtep(n.Flood[i]); err != nil {
			return err
		}
	}
	return nil
}

func (n *Network) vtep(a netip.Addr) error {
	if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() || a.Zone() != "" {
		return fmt.Errorf("network %s: VTEP %v: %w, must be the unicast address of another machine", n.Name, a, ErrInvalid)
	}
	return nil
}

func (p *Port) validate() error {
	if p.Name == "" {
		return fmt.Errorf("port without a name: %w", ErrInvalid)
	}
	if p.MAC.IsMulticast() || p.MAC>>48 != 0 {
		return fmt.Errorf("port %s: MAC %v: %w, is a group address", p.Name, p.MAC, ErrInvalid)
	}
	if p.AntiSpoof && p.MAC == 0 {
		return fmt.Errorf("port %s: anti-spoof needs the guest's MAC: %w", p.Name, ErrInvalid)
	}
	for i, ip := range p.IPs {
		p.IPs[i] = ip.Unmap()
		if !ip.IsValid() || ip.IsUnspecified() || ip.IsMulticast() {
			return fmt.Errorf("port %s: IP %v: %w, must be a unicast address", p.Name, ip, ErrInvalid)
		}
	}
	if p.LearnLimit < 0 || p.FlowLimit < 0 {
		return fmt.Errorf("port %s: a negative limit: %w", p.Name, ErrInvalid)
	}
	if p.FlowLimit == 0 {
		p.FlowLimit = 8192
	}
	if p.LearnLimit == 0 {
		p.LearnLimit = 64
	}
	return nil
}
