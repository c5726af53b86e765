// Package wire reads and writes the headers that shunt meets in frames, and computes their checksums.
//
// Each header is a named []byte laid over the packet where it lies. A Parse function checks once that the bytes are there
// and that the header's own length fields stay inside them; after it the accessors cannot fail, and what an accessor
// returns is as the sender wrote it. All a Parse function is given may be the front of a packet whose rest lies
// elsewhere (see package frame), so lengths that speak of the payload are for the caller to compare with what it has.
//
//	Ethernet ─▶ [VLAN tags] ─┬▶ ARP
//	                         ├▶ IPv4 ────────────┬▶ TCP, ICMPv4, ICMPv6
//	                         └▶ IPv6, extensions ┴▶ UDP ─▶ VXLAN ─▶ Ethernet …
//
// Locate walks that path over a frame's head and says where each header lies; flow hashes and address checks begin
// with it. Nothing here allocates or keeps the bytes it is given.
package wire
