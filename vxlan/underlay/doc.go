// Package underlay knows the next hops of an uplink that is a network interface of the kernel's: it follows the kernel's routes,
// neighbours, addresses and links, so that VXLAN packets go the way that the kernel's own would.
//
//	kernel ── netlink messages ──▶ listen ──▶ follow ──┬─ link, address: look everything up again
//	                                                   ├─ route: ask for the route to each VTEP again
//	                                                   └─ neighbour: a MAC address came, changed, or went
//	switch ── Want ───────────────────────▶ follow      │
//	                                                   ▼
//	switch ◀── NextHop, Local ── state, immutable, swapped when something changed ── Notify ──▶ switch
//
// The kernel resolves neighbours when it sends to them, and our packets it never sees. So it is asked to, as if it had
// (NTF_USE): when a next hop has no neighbour entry, and whenever the entry of one in use becomes stale. Entries stay the
// kernel's: nothing is left behind in its tables but what its own traffic would have left.
//
// A socket that overflows loses messages but says so; then all tables are read again.
package underlay
