package vxlan

import (
	"net/netip"

	"github.com/shuntio/shunt/dataplane/wire"
)

// NextHop is how packets to a VTEP leave an uplink.
type NextHop struct {
	// Source and Destination are the addresses of the outer Ethernet header.
	Source, Destination wire.MAC
	// MTU of the way, if it is less than the uplink's; 0: not known to be.
	MTU int
}

// Local is an uplink's own end.
type Local struct {
	// Address is the tunnel endpoint's.
	Address netip.Addr
	// MAC is the interface's.
	MAC wire.MAC
	// MTU is the interface's.
	MTU int
}

// Resolver finds next hops for an uplink, and follows them as they change. The switch asks it when it builds a snapshot, so no worker
// ever waits for it. Its methods may be called from any goroutine and do not wait for the network.
type Resolver interface {
	// Want replaces the VTEPs whose next hops are to be known.
	Want(vteps []netip.Addr)
	// NextHop is the answer as of now; false: none (yet).
	NextHop(vtep netip.Addr) (NextHop, bool)
	// Local is the uplink's own end as of now.
	Local() Local
	// Notify sets the one function that is called after any answer changed. It may be called at any time, and does not wait.
	Notify(changed func())
}

// Fixed is a Resolver for uplinks that the kernel knows nothing of, such as a vhost-user port: what it answers was configured.
type Fixed struct {
	// End is the uplink's own.
	End Local
	// Gateway takes the packets to all VTEPs that Neighbors does not have; 0: nobody does.
	Gateway wire.MAC
	// Neighbors are the MAC addresses of VTEPs on the same link. Not to be changed afterwards.
	Neighbors map[netip.Addr]wire.MAC
}

// Want does nothing: everything is known already.
func (f *Fixed) Want([]netip.Addr) {}

// NextHop looks into Neighbors, then to the Gateway.
func (f *Fixed) NextHop(vtep netip.Addr) (NextHop, bool) {
	mac, ok := f.Neighbors[vtep]
	if !ok {
		mac = f.Gateway
	}
	return NextHop{Source: f.End.MAC, Destination: mac}, mac != 0
}

// Local is End.
func (f *Fixed) Local() Local { return f.End }

// Notify does nothing: nothing changes.
func (f *Fixed) Notify(func()) {}
