package vxlan

import "github.com/shuntio/shunt/dataplane"

// Why the switch drops a frame. A frame is counted at the link it came from, but for what the rules of another port refuse: that is counted there.
var (
	// DropMalformed is for frames that are no Ethernet frames, or whose group address is their source.
	DropMalformed = dataplane.NewReason("malformed", "the frame is shorter than its headers, or is from a group address")
	// DropHeadTooShort is for frames whose judging needs more than the private head holds.
	DropHeadTooShort = dataplane.NewReason("head-too-short", "the headers reach beyond the part of the frame that is judged")
	// DropSpoofedMAC and DropSpoofedIP are for ports with anti-spoofing.
	DropSpoofedMAC = dataplane.NewReason("spoofed-mac", "the frame claims a MAC address that is not its port's")
	// DropSpoofedIP is for ARP, neighbour discovery and IP sources.
	DropSpoofedIP = dataplane.NewReason("spoofed-ip", "the frame claims an IP address that is not its port's")
	// DropACLOut is for what a port's rules do not let out, DropACLIn for what they do not let in.
	DropACLOut = dataplane.NewReason("acl-denied-out", "the port's rules do not let its guest send the frame")
	// DropACLIn is explained at DropACLOut.
	DropACLIn = dataplane.NewReason("acl-denied-in", "the port's rules do not let the frame in to its guest")
	// DropOverMTU is for frames longer than their network allows, or the way to their VTEP.
	DropOverMTU = dataplane.NewReason("over-mtu", "the frame is longer than the MTU of its network or of the way to its VTEP")
	// DropTagged is for networks that refuse VLAN tags.
	DropTagged = dataplane.NewReason("vlan-tag", "the frame carries a VLAN tag and its network refuses them")
	// DropNoDestination is for unknown unicast, or a group, with nobody to flood to.
	DropNoDestination = dataplane.NewReason("no-destination", "nobody is known at the destination address, and there is nobody to flood to")
	// DropHairpin is for frames that would go back where they came from.
	DropHairpin = dataplane.NewReason("hairpin", "the destination is behind the port that sent the frame")
	// DropSplitHorizon is for frames from the wire that would go back to it.
	DropSplitHorizon = dataplane.NewReason("split-horizon", "the frame came from the wire and its destination is on the wire")
	// DropNoNextHop is for VTEPs that have no route or no neighbour yet.
	DropNoNextHop = dataplane.NewReason("no-next-hop", "there is no route to the VTEP, or its neighbour's MAC address is not known yet")
	// DropFloodLimit is for frames that there would have been several copies of.
	DropFloodLimit = dataplane.NewReason("flood-limit",
		"the port's guest sends more broadcast, multicast and unknown unicast frames than its flood limit lets go to several places")
	// DropNoClone counts copies that could not be made.
	DropNoClone = dataplane.NewReason("no-clone", "no frame was free for another copy of a flooded frame")
	// DropNoHeadroom is for frames without room for the outer headers.
	DropNoHeadroom = dataplane.NewReason("no-headroom", "the frame has no room in front for the outer headers, or is too long to be gathered")
	// DropDetached is for links that have left the configuration.
	DropDetached = dataplane.NewReason("detached", "the port is not, or no longer, attached to a network")

	// DropNotOurs is for frames from the wire that are neither tunnelled to us nor for a flat network.
	DropNotOurs = dataplane.NewReason("not-ours", "the frame from the wire is neither VXLAN to this machine nor for a flat network")
	// DropOuterIP and its neighbours are for what is wrong with the outer headers.
	DropOuterIP = dataplane.NewReason("bad-outer-ip", "the outer IP header is malformed, or has a bad checksum or length")
	// DropOuterFragment is for outer fragments, which RFC 7348 4.3 lets a VTEP discard.
	DropOuterFragment = dataplane.NewReason("bad-outer-fragment", "the outer packet is a fragment")
	// DropOuterUDP is for a UDP length that contradicts the packet's, or a bad checksum.
	DropOuterUDP = dataplane.NewReason("bad-outer-udp", "the outer UDP header has a bad length or checksum; a veth peer leaves checksums to nobody unless told to make them (ethtool -K DEV tx off)")
	// DropOuterVXLAN is for VXLAN headers without VNI, or with less than an Ethernet header behind.
	DropOuterVXLAN = dataplane.NewReason("bad-outer-vxlan", "the VXLAN header has no VNI, or no frame behind it")
	// DropCongestion is for packets that a router would have dropped, had it not been for the tunnel.
	DropCongestion = dataplane.NewReason("ecn-congestion", "the outer packet was marked to have met congestion, and the inner one's sender would not understand the mark (RFC 6040)")
	// DropUnknownVNI is for networks that this machine does not have, or has on another uplink.
	DropUnknownVNI = dataplane.NewReason("unknown-vni", "no network with this VNI is on the uplink")
)
