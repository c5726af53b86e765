// Package vxlan connects guests' ports with each other and, by VXLAN (RFC 7348), with those on other machines.
//
// The way of a frame:
//
//	guest ──▶ guestPort.Forward                        (guest.go)
//	            judge: source, MTU, tags                 (antispoof.go)
//	            look up the destination's MAC            (table.go, learned.go)
//	            ├─ a port here ────────────────────────▶ its link
//	            ├─ a VTEP: write the outer headers in front of the head (tunnel.go) ─▶ the uplink's link
//	            ├─ a group, or unknown: a clone each to ports here and to VTEPs (flood.go)
//	            └─ else drop, with its reason            (reasons.go)
//
//	wire ───▶ uplinkPort.Forward                       (uplink.go)
//	            outer Ethernet, IP, UDP, VXLAN ─▶ network, length of the inner frame (outer.go)
//	            move the front of the frame past them, cut padding behind
//	            learn: inner source MAC is behind the outer source
//	            look up ─▶ ports here, and never back to the wire (split horizon)
//
// What is configured is a snapshot (snapshot.go): immutable, behind one atomic pointer, built anew and swapped by the control
// side (switch.go), picked up once for each vector of frames. What is learned belongs to the worker, which alone reads and
// writes it; the control side touches it only through Worker.Do.
//
// Networks are apart by construction: each has tables of its own, and a lookup in one can only yield its own ports and
// the VTEPs its VNI is sent to. What a guest writes into its frame, be it VLAN tags or VXLAN headers, never chooses the table.
package vxlan
