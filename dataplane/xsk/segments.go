package xsk

import (
	"encoding/binary"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// copyPieces is how many descriptors of a packet the kernel takes in copy mode: MAX_SKB_FRAGS, as it is unless configured, and the first.
const copyPieces = 18

// Of the generic netlink family "netdev" (linux/netdev.h), which came with 6.3 and tells this from 6.6 on.
const (
	netdevGet           = 1 // NETDEV_CMD_DEV_GET
	netdevIndex         = 1 // NETDEV_A_DEV_IFINDEX
	netdevMaxZCSegments = 4 // NETDEV_A_DEV_XDP_ZC_MAX_SEGS
)

// genericHeader is struct genlmsghdr: command, version, and two bytes that this family wants zero (nl.Genlmsg sends what lies behind it in memory).
type genericHeader [nl.SizeofGenlmsg]byte

// Len implements nl.NetlinkRequestData.
func (h genericHeader) Len() int { return len(h) }

// Serialize implements nl.NetlinkRequestData.
func (h genericHeader) Serialize() []byte { return h[:] }

// zeroCopyPieces asks how many descriptors of a packet a device takes in zero copy. One of more is refused there without being given back.
func zeroCopyPieces(d *Device) (int, error) {
	family, err := netlink.GenlFamilyGet("netdev")
	if err != nil {
		return 0, fmt.Errorf("ask for the descriptors of a packet that %s takes: %w", d.Name, err)
	}
	request := nl.NewNetlinkRequest(int(family.ID), 0)
	request.AddData(genericHeader{netdevGet, 1})
	request.AddData(nl.NewRtAttr(netdevIndex, nl.Uint32Attr(uint32(d.Index))))
	replies, err := request.Execute(unix.NETLINK_GENERIC, 0)
	if err != nil {
		return 0, fmt.Errorf("ask for the descriptors of a packet that %s takes: %w", d.Name, err)
	}
	for _, reply := range replies {
		if len(reply) < nl.SizeofGenlmsg {
			continue
		}
		attributes, err := nl.ParseRouteAttr(reply[nl.SizeofGenlmsg:])
		if err != nil {
			continue
		}
		for _, a := range attributes {
			if a.Attr.Type == netdevMaxZCSegments && len(a.Value) >= 4 {
				return int(binary.NativeEndian.Uint32(a.Value)), nil
			}
		}
	}
	return 1, nil
}
