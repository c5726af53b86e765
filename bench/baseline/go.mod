module github.com/shuntio/shunt/bench/baseline

go 1.26.0

// The libraries that were measured and refused, each at exactly this version.
require (
	github.com/asavie/xdp v0.3.3
	github.com/google/gopacket v1.1.19
	github.com/pawelgaczynski/giouring v0.0.0-20230826085535-69588b89acb9
)

require (
	github.com/cilium/ebpf v0.22.0
	github.com/shuntio/shunt v0.0.0
	github.com/vishvananda/netlink v1.3.1
	golang.org/x/sys v0.49.0
)

require github.com/vishvananda/netns v0.0.5 // indirect

replace github.com/shuntio/shunt => ../..
