package underlay

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/shuntio/shunt/dataplane/wire"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// route is the kernel's answer for one VTEP.
type route struct {
	gateway netip.Addr
	mtu     int
	problem string
}

// neighbour is an entry of the kernel's table. The MAC outlives the entry until the kernel says that it failed, so that packets go on
// while it resolves anew.
type neighbour struct {
	mac   wire.MAC
	state int // NUD_*
}

// usable are the states in which the kernel itself would send to the address.
const usable = netlink.NUD_PERMANENT | netlink.NUD_NOARP | netlink.NUD_REACHABLE | netlink.NUD_STALE | netlink.NUD_DELAY | netlink.NUD_PROBE

// settled are those in which nothing need be done to keep the entry: fixed, or just confirmed, or about to be.
const settled = netlink.NUD_PERMANENT | netlink.NUD_NOARP | netlink.NUD_REACHABLE | netlink.NUD_DELAY | netlink.NUD_PROBE | netlink.NUD_INCOMPLETE

// readLink looks the interface and its addresses up.
func (f *follower) readLink() error {
	o := &f.u.options
	link, err := f.u.handle.LinkByName(o.Interface)
	if err != nil {
		f.index, f.up = 0, false
		var missing netlink.LinkNotFoundError
		if errors.As(err, &missing) {
			return fmt.Errorf("interface %s: %w: create it, or name one that ip link shows", o.Interface, ErrNoInterface)
		}
		return fmt.Errorf("interface %s: %w", o.Interface, err)
	}
	a := link.Attrs()
	if f.index != a.Index || f.left {
		f.came++
	}
	f.index, f.left, f.local.MTU = a.Index, false, a.MTU
	f.up = a.Flags&net.FlagUp != 0 && a.RawFlags&unix.IFF_LOWER_UP != 0
	if mac, ok := wire.MACFromHardware(a.HardwareAddr); ok {
		f.local.MAC = mac
	} else {
		return fmt.Errorf("interface %s is no Ethernet interface, its address has %d octets: choose another", o.Interface, len(a.HardwareAddr))
	}
	f.local.Address = o.Address.Unmap()
	if !f.local.Address.IsValid() {
		f.local.Address = f.firstAddress(link)
	}
	return nil
}

// firstAddress is the interface's first global address, IPv4 before IPv6; zero if it has none.
func (f *follower) firstAddress(link netlink.Link) netip.Addr {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		addrs, err := f.u.handle.AddrList(link, family)
		if err != nil {
			continue // without an address there is no tunnel, and the state says so
		}
		for _, a := range addrs {
			ip, ok := netip.AddrFromSlice(a.IP)
			ip = ip.Unmap()
			if ok && a.Scope == int(netlink.SCOPE_UNIVERSE) && !ip.IsLinkLocalUnicast() && !ip.IsLoopback() &&
				a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DEPRECATED|unix.IFA_F_TEMPORARY|unix.IFA_F_DADFAILED) == 0 {
				return ip
			}
		}
	}
	return netip.Addr{}
}

// readRoute asks the kernel how it would send to a VTEP through the interface.
func (f *follower) readRoute(vtep netip.Addr) route {
	o := netlink.RouteGetOptions{OifIndex: f.index}
	if f.local.Address.IsValid() && f.local.Address.Is4() == vtep.Is4() {
		o.SrcAddr = f.local.Address.AsSlice() // as the packets have it: rules may look at it
	}
	routes, err := f.u.handle.RouteGetWithOptions(vtep.AsSlice(), &o)
	if err != nil && o.SrcAddr != nil { // the kernel refuses a source that is not its own (yet)
		o.SrcAddr = nil
		routes, err = f.u.handle.RouteGetWithOptions(vtep.AsSlice(), &o)
	}
	switch {
	case err != nil:
		return route{problem: fmt.Sprintf("no route through %s: %v", f.u.options.Interface, err)}
	case len(routes) == 0 || routes[0].LinkIndex != f.index || routes[0].Type != unix.RTN_UNICAST:
		return route{problem: "no route through " + f.u.options.Interface}
	}
	r := &routes[0]
	to := route{gateway: vtep, mtu: r.MTU}
	if via, ok := r.Via.(*netlink.Via); ok { // IPv4 by way of an IPv6 router (RFC 5549)
		to.gateway, _ = netip.AddrFromSlice(via.Addr)
	} else if gw, ok := netip.AddrFromSlice(r.Gw); ok && !gw.IsUnspecified() {
		to.gateway = gw.Unmap()
	}
	return to
}

// readNeighbours reads the interface's neighbour table.
func (f *follower) readNeighbours() {
	list, err := f.u.handle.NeighList(f.index, netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		f.u.log.Warn("reading the neighbour table", "error", err)
		return
	}
	clear(f.neighbours)
	for i := range list {
		f.enter(&list[i])
	}
}

// enter notes the state of an entry.
func (f *follower) enter(n *netlink.Neigh) {
	ip, ok := netip.AddrFromSlice(n.IP)
	if !ok || n.LinkIndex != f.index {
		return
	}
	ip = ip.Unmap()
	old := f.neighbours[ip]
	is := neighbour{state: n.State}
	switch mac, ok := wire.MACFromHardware(n.HardwareAddr); {
	case n.State&usable != 0 && ok:
		is.mac = mac
	case n.State == netlink.NUD_INCOMPLETE || n.State == netlink.NUD_NONE:
		is.mac = old.mac // it is being resolved
	}
	f.neighbours[ip] = is
}

// leave notes that an entry was deleted. If it is in use, its address stays until the kernel could not find it again.
func (f *follower) leave(n *netlink.Neigh) {
	ip, ok := netip.AddrFromSlice(n.IP)
	if !ok || n.LinkIndex != f.index {
		return
	}
	ip = ip.Unmap()
	if f.gateways[ip] {
		f.neighbours[ip] = neighbour{mac: f.neighbours[ip].mac, state: netlink.NUD_NONE}
	} else {
		delete(f.neighbours, ip)
	}
}

// use asks the kernel to resolve an address, or to confirm it, as if it had sent a packet there. An entry that is not known to exist
// is only made, never touched: the request would take the permanence from one that somebody has just configured.
func (f *follower) use(ip netip.Addr, exists bool) {
	n := netlink.Neigh{LinkIndex: f.index, Family: unix.AF_INET, State: netlink.NUD_NONE, Flags: netlink.NTF_USE, IP: ip.AsSlice()}
	if ip.Is6() {
		n.Family = unix.AF_INET6
	}
	request := f.u.handle.NeighAdd
	if exists {
		request = f.u.handle.NeighAppend // neither exclusive nor replacing
	}
	if err := request(&n); err != nil && !errors.Is(err, unix.EEXIST) {
		f.u.log.Debug("asking the kernel to resolve a neighbour", "address", ip, "error", err)
	}
}
