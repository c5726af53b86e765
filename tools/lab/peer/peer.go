// Package peer drives the programs the engine is tested against, none of
// which we wrote: the kernel's VXLAN device and its counters, ping, iperf3,
// tshark, and DPDK's testpmd with its virtio-user, vhost and AF_XDP drivers.
//
// Programs run through a [Runner]: a namespace or a guest. What they print is
// parsed into numbers; an error carries what a program said.
package peer

import (
	"context"
	"fmt"
	"strings"
)

// Runner runs a program and returns what it wrote. *netlab.Namespace and
// *guest.Guest are Runners.
type Runner interface {
	Run(ctx context.Context, name string, args ...string) (string, error)
}

// Counters reads the protocol counters of a namespace or guest, as
// "Tcp.InCsumErrors" and "Udp6InCsumErrors", from /proc/net/snmp and snmp6.
func Counters(ctx context.Context, r Runner) (map[string]uint64, error) {
	text, err := r.Run(ctx, "cat", "/proc/net/snmp", "/proc/net/snmp6")
	if err != nil {
		return nil, fmt.Errorf("read protocol counters: %w", err)
	}
	return parseCounters(text), nil
}

// parseCounters reads pairs of lines, names then values, each beginning with
// the protocol and a colon; and single lines of one name and one value.
func parseCounters(text string) map[string]uint64 {
	counters := map[string]uint64{}
	var names []string
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		var value uint64
		switch {
		case len(words) == 2 && !strings.HasSuffix(words[0], ":"):
			if _, err := fmt.Sscan(words[1], &value); err == nil {
				counters[words[0]] = value
			}
		case len(words) > 0 && len(names) == len(words) && names[0] == words[0]:
			for i := 1; i < len(words); i++ {
				if _, err := fmt.Sscan(words[i], &value); err == nil {
					counters[strings.TrimSuffix(words[0], ":")+"."+names[i]] = value
				}
			}
			names = nil
		default:
			names = words
		}
	}
	return counters
}

// ChecksumErrors sums the counters of packets the stack refused for their
// checksum, with IPv4's header errors.
func ChecksumErrors(ctx context.Context, r Runner) (uint64, error) {
	counters, err := Counters(ctx, r)
	if err != nil {
		return 0, err
	}
	sum := counters["Ip.InHdrErrors"]
	for name, value := range counters {
		if strings.HasSuffix(name, "InCsumErrors") {
			sum += value
		}
	}
	return sum, nil
}
