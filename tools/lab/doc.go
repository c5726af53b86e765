// Package lab is the end-to-end laboratory: it runs shuntd with guests and
// peers that we did not write, on one machine.
//
//	netlab   namespaces that play machines, veth pairs between them
//	guest    virtual machines with Debian's stock kernel, and their images
//	peer     the kernel's VXLAN device, DPDK's testpmd, ping, iperf3, tshark
//	daemon   shuntd itself
//	demo     a tour for newcomers, on the same parts
//
// The package itself holds only tests: what an operator or a guest would see.
// They need root; a peer that is not installed fails them in CI and skips them
// elsewhere.
package lab
