package xsk

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Device is a network device as sockets need to know it.
type Device struct {
	Name  string
	Index int
	// MTU in bytes, without the Ethernet header.
	MTU int
	// Queues is how many queues are in use; a packet may arrive on any of them.
	Queues int

	namespace uint64 // cookie of its network namespace, since indices are only unique within one
}

// is tells whether two of them are the same device.
func (d *Device) is(e *Device) bool { return d.Index == e.Index && d.namespace == e.namespace }

// LookupDevice finds a device in the calling thread's network namespace. It must be up.
func LookupDevice(name string) (Device, error) {
	link, err := netlink.LinkByName(name)
	if missing := (netlink.LinkNotFoundError{}); errors.As(err, &missing) {
		return Device{}, fmt.Errorf("interface %s: %w; ip link shows those there are", name, ErrNoDevice)
	}
	if err != nil {
		return Device{}, fmt.Errorf("look up interface %s: %w", name, err)
	}
	a := link.Attrs()
	d := Device{Name: a.Name, Index: a.Index, MTU: a.MTU, Queues: a.NumRxQueues}
	if a.RawFlags&unix.IFF_UP == 0 {
		return d, fmt.Errorf("interface %s: %w; bring it up with: ip link set %s up", name, ErrDown, name)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return d, fmt.Errorf("ask about interface %s: %w", name, err)
	}
	defer unix.Close(fd)
	if d.namespace, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE); err != nil {
		return d, fmt.Errorf("identify the network namespace: %w", err)
	}
	// netlink tells how many queues were allocated; those in use are a matter of ethtool channels.
	switch n, err := channels(fd, name); {
	case err == nil && n > 0:
		d.Queues = n
	case err != nil && !errors.Is(err, unix.EOPNOTSUPP):
		return d, fmt.Errorf("count the queues of interface %s: %w", name, err)
	}
	return d, nil
}
