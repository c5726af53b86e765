package peer

import (
	"fmt"

	"github.com/vishvananda/netlink"

	"github.com/shuntio/shunt/tools/lab/netlab"
)

// NetdevStats reads the counters of a device in a namespace.
func NetdevStats(ns *netlab.Namespace, device string) (netlink.LinkStatistics64, error) {
	var stats netlink.LinkStatistics64
	err := ns.Do(func() error {
		link, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		stats = netlink.LinkStatistics64(*link.Attrs().Statistics)
		return nil
	})
	if err != nil {
		return stats, fmt.Errorf("read counters of %s: %w", device, err)
	}
	return stats, nil
}
