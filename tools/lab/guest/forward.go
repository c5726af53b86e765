package guest

import (
	"fmt"
	"strings"
)

// Forward is a network of QEMU's own, without privileges: what connects to a port of the host reaches the guest. The guest has a device for it
// behind its NICs, with the address 10.0.2.15/24, and reaches nothing outside.
type Forward struct {
	// Host is where QEMU listens, as 127.0.0.1:4420; Guest the guest's TCP port.
	Host  string
	Guest int
}

// forwardAddress is the guest's on the network of its forwards.
const forwardAddress = "10.0.2.15"

func forwardArguments(forwards []Forward) []string {
	if len(forwards) == 0 {
		return nil
	}
	netdev := []string{"user,id=forward,restrict=on"}
	for _, f := range forwards {
		netdev = append(netdev, fmt.Sprintf("hostfwd=tcp:%s-%s:%d", f.Host, forwardAddress, f.Guest))
	}
	return []string{"-netdev", strings.Join(netdev, ","), "-device", "virtio-net-pci,netdev=forward,romfile=,vectors=0"}
}
