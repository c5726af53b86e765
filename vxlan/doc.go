// Package vxlan connects guests' ports with each other and, by VXLAN (RFC 7348), with those on other machines.
//
// The way of a frame:
//
//	guest ──▶ guestPort.Forward                        (guest.go)
//	            recall what was decided of its flow, or   (flow.go)
//	            judge: source, MTU, tags                 (antispoof.go)
//	            the rules of the port, outward           (filter.go, conns.go)
//	            look up the destination's MAC            (table.go, learned.go)
//	            the rules of the port there, inward
//	            ├─ a port here ────────────────────────▶ its link      ┐ what a link does not take:
//	            ├─ a VTEP: the outer headers in front   (tunnel.go) ─▶ ├ checksums filled in, packets
//	            │                                       the uplink's   ┘ cut (deliver.go)
//	            ├─ a question for a configured address: the answer, back (answer.go)
//	            ├─ too long: dropped, and the guest told (toobig.go)
//	            ├─ a group, or unknown: a clone each to ports here and to VTEPs (flood.go), but for questions
//	            │  that are answered here                (answer.go)
//	            └─ else drop, with its reason            (reasons.go)
//
//	wire ───▶ uplinkPort.Forward                       (uplink.go)
//	            outer Ethernet, IP, UDP, VXLAN ─▶ network, length of the inner frame (outer.go)
//	            move the front of the frame past them, cut padding behind
//	            what routers said of congestion into the inner packet (ecn.go)
//	            recall, or learn: inner source MAC is behind the outer source
//	            look up ─▶ ports here, and never back to the wire (split horizon)
//
// What is configured is a snapshot (snapshot.go): immutable, behind one atomic pointer, built anew and swapped by the control
// side (switch.go), picked up once for each vector of frames. What is learned, and what was decided of flows, belongs to one worker each (lane.go), which alone
// reads and writes it and tells the others where addresses are (notes.go); the control side touches it only through Worker.Do. Flows that a
// port's rules have allowed are the one thing that workers share (conns.go).
//
// Networks are apart by construction: each has tables of its own, and a lookup in one can only yield its own ports and
// the VTEPs its VNI is sent to. What a guest writes into its frame, be it VLAN tags or VXLAN headers, never chooses the table.
package vxlan
