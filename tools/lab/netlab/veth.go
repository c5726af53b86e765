package netlab

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// End describes one end of a veth pair.
type End struct {
	// Namespace the end lives in; nil is the caller's own.
	Namespace *Namespace
	// Name of the device, at most 15 bytes.
	Name string
	// MAC address; empty lets the kernel choose.
	MAC string
	// MTU in bytes; 0 is 1500.
	MTU int
	// Addrs with their prefix length, as "10.0.0.1/24" or "fd00::1/64".
	Addrs []string
}

// Veth makes a veth pair with the given number of queues in each direction
// (0 is 1), gives both ends their addresses and sets them up. Both ends go
// when either's namespace is closed.
func Veth(a, b End, queues int) error {
	if err := veth(a, b, max(1, queues)); err != nil {
		return fmt.Errorf("make veth pair %s - %s: %w", a.Name, b.Name, err)
	}
	return nil
}

func veth(a, b End, queues int) error {
	macA, errA := parseMAC(a.MAC)
	macB, errB := parseMAC(b.MAC)
	if err := errors.Join(errA, errB, checkName(a.Name), checkName(b.Name)); err != nil {
		return err
	}
	handleA, nsA, err := a.open()
	if err != nil {
		return err
	}
	defer handleA.Close()
	defer nsA.Close()
	handleB, nsB, err := b.open()
	if err != nil {
		return err
	}
	defer handleB.Close()
	defer nsB.Close()

	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr, attrs.MTU = a.Name, macA, mtu(a)
	attrs.NumTxQueues, attrs.NumRxQueues = queues, queues
	pair := netlink.NewVeth(attrs)
	pair.PeerName, pair.PeerHardwareAddr, pair.PeerMTU = b.Name, macB, uint32(mtu(b))
	pair.PeerNumTxQueues, pair.PeerNumRxQueues = uint32(queues), uint32(queues)
	pair.PeerNamespace = netlink.NsFd(nsB)
	if err := handleA.LinkAdd(pair); err != nil {
		return err
	}
	if err := errors.Join(a.configure(handleA), b.configure(handleB)); err != nil {
		_ = handleA.LinkDel(pair)
		return err
	}
	return nil
}

// open returns a netlink handle inside the end's namespace, and the namespace.
func (e End) open() (*netlink.Handle, netns.NsHandle, error) {
	path := "/proc/thread-self/ns/net"
	if e.Namespace != nil {
		path = e.Namespace.Path()
	}
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return nil, ns, fmt.Errorf("open the namespace of %s: %w", e.Name, err)
	}
	handle, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		ns.Close()
		return nil, ns, fmt.Errorf("open netlink in the namespace of %s: %w", e.Name, err)
	}
	return handle, ns, nil
}

func (e End) configure(handle *netlink.Handle) error {
	link, err := handle.LinkByName(e.Name)
	if err != nil {
		return fmt.Errorf("find %s: %w", e.Name, err)
	}
	if err := handle.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", e.Name, err)
	}
	for _, s := range e.Addrs {
		addr, err := netlink.ParseAddr(s)
		if err != nil {
			return fmt.Errorf("address of %s: %w", e.Name, err)
		}
		if addr.IP.To4() == nil {
			addr.Flags |= unix.IFA_F_NODAD
		}
		if err := handle.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("add %s to %s: %w", s, e.Name, err)
		}
	}
	return nil
}

func mtu(e End) int {
	if e.MTU == 0 {
		return 1500
	}
	return e.MTU
}

func parseMAC(s string) (net.HardwareAddr, error) {
	if s == "" {
		return nil, nil
	}
	return net.ParseMAC(s)
}

func checkName(s string) error {
	if s == "" || len(s) > unix.IFNAMSIZ-1 {
		return fmt.Errorf("device name %q must have 1 to %d bytes", s, unix.IFNAMSIZ-1)
	}
	return nil
}
