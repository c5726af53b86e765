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
}

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
	// netlink tells how many queues were allocated; those in use are a matter of ethtool channels.
	switch n, err := channels(name); {
	case err == nil && n > 0:
		d.Queues = n
	case err != nil && !errors.Is(err, unix.EOPNOTSUPP):
		return d, fmt.Errorf("count the queues of interface %s: %w", name, err)
	}
	return d, nil
}
