package peer

import (
	"context"
	"fmt"
	"strconv"

	"github.com/shuntio/shunt/tools/lab/netlab"
)

// VXLAN describes a device of the kernel's VXLAN driver:
//
//	Addrs -> Name (inner, MAC, MTU) -> UDP from Local to Remote or Entries -> Device
type VXLAN struct {
	// Name of the device, at most 15 bytes.
	Name string
	VNI  int
	// Device is the underlay's, which has the address Local.
	Device, Local string
	// Remote tunnel endpoint, where frames without an entry go; empty: none.
	Remote string
	// Entries of the forwarding table beyond that.
	Entries []VXLANEntry
	// MAC of the device; empty lets the kernel choose.
	MAC string
	// MTU in bytes; 0 is what fits the underlay.
	MTU int
	// Addrs of the device, as "10.0.0.2/24".
	Addrs []string
	// Options of ip-link(8)'s VXLAN type, as "noudpcsum" or "udp6zerocsumrx".
	Options []string
}

// VXLANEntry sends frames for a MAC address to a tunnel endpoint;
// 00:00:00:00:00:00 is for broadcast, unknown and multicast ones.
type VXLANEntry struct{ MAC, Remote string }

// KernelVXLAN makes the device in a namespace, sets it up and gives it its
// addresses. It goes with the namespace.
func KernelVXLAN(ctx context.Context, ns *netlab.Namespace, v VXLAN) error {
	ip := func(args ...string) error {
		_, err := ns.Run(ctx, "ip", args...)
		return err
	}
	add := []string{"link", "add", "name", v.Name}
	if v.MAC != "" {
		add = append(add, "address", v.MAC)
	}
	if v.MTU != 0 {
		add = append(add, "mtu", strconv.Itoa(v.MTU))
	}
	add = append(add, "type", "vxlan", "id", strconv.Itoa(v.VNI), "dstport", "4789", "local", v.Local, "dev", v.Device)
	if v.Remote != "" {
		add = append(add, "remote", v.Remote)
	}
	commands := [][]string{append(add, v.Options...)}
	for _, addr := range v.Addrs {
		commands = append(commands, []string{"addr", "add", addr, "dev", v.Name, "nodad"})
	}
	commands = append(commands, []string{"link", "set", v.Name, "up"})
	for _, command := range commands {
		if err := ip(command...); err != nil {
			return fmt.Errorf("make VXLAN device %s: %w", v.Name, err)
		}
	}
	for _, e := range v.Entries {
		if _, err := ns.Run(ctx, "bridge", "fdb", "append", e.MAC, "dev", v.Name, "dst", e.Remote); err != nil {
			return fmt.Errorf("make VXLAN device %s: %w", v.Name, err)
		}
	}
	return nil
}
