// Package acl judges packets by a port's rules: its security group.
//
//	allow in tcp from 10.0.0.0/8 to any port 80-443
//	deny out any to 169.254.169.254/32
//	allow out any
//
// A Policy is an ordered list of rules and a default. The first rule that matches decides. Directions are the guest's: what is
// "in" goes to the guest, what is "out" comes from it, as everywhere in security groups.
//
// # What is judged
//
// A rule speaks of IPv4 and IPv6, of both unless a prefix or ICMP says which. Its ports, and its ICMP type and code, are only
// matched by packets that show them: a later fragment has none, so it follows the rules that ask for none. (The switch lets later
// fragments follow their first one where it has seen that; what remains is judged here.)
//
// Other EtherTypes go by the rules that name them (ether 0x88cc) or all of them (ether any), else by the default. VLAN tags are looked
// through.
//
// What no policy judges, since nothing works without it and anti-spoofing looks at it: ARP and RARP, and their counterparts in
// IPv6, neighbour solicitations and advertisements. Router advertisements, DHCP, IGMP and MLD are packets like others.
//
// # How it is judged
//
// Rules of each direction and IP version become one table. It splits every field (two addresses, protocol, two ports) into the
// intervals in which the same rules match, each with the set of these rules as bits in the rules' order:
//
//	source       ──search──▶ 0110 1111 ┐
//	destination  ──search──▶ 0111 1001 │
//	protocol     ──index───▶ 1110 1011 ├─ AND ─▶ 0010 0001 ─▶ the first bit is the rule
//	source port  ──search──▶ 1111 1111 │
//	dest. port   ──search──▶ 1010 0111 ┘
//
// A set holds its non-zero words alone, behind a summary with a bit for each; the summaries' AND says which words are worth
// looking at. So 4096 rules cost four binary searches and, at the most, 64 words of five sets. Nothing is allocated, nothing is locked.
//
// # State
//
// Rules are not stateful: they say who may begin. The switch judges a flow's first packet, keeps the verdict and its rule in its
// flow cache, and lets a packet that no rule allows pass if it answers a flow that was allowed the other way: Tuple.Answers says which flow
// that would be, Tuple.IsError that it may be an ICMP error about one. A verdict is as old as its Compiled: a cached one that came from another must be
// judged anew, which is how a change takes effect on running flows.
//
// Counters live with the Compiled policy, for each worker apart. A policy that replaces another one carries on where its rules are the same.
package acl
