// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)

//go:build ignore

/*
 * Which frames of an uplink are ours. A frame goes down this list until a line
 * decides; what is ours goes to an AF_XDP socket, everything else to the kernel.
 *
 *	Ethernet ---- 802.1Q, 802.1ad ---------------------> pass-tagged
 *	   | flat: unicast to a MAC in macs ---------------> redirect-flat
 *	   v neither IPv4 nor IPv6 ------------------------> pass-not-ip
 *	IPv4, IPv6 -- fragment ----------------------------> pass-fragment
 *	   v not UDP to vxlan_port, no I flag -------------> pass-not-vxlan
 *	VXLAN ------- outer destination not in vteps4/6 ---> pass-other-address
 *	   | (VNI, inner destination) in stations ---------> redirect-station
 *	   | VNI in networks: broadcast, unknown stations -> redirect
 *	   v
 *	unknown network -----------------------------------> pass-unknown-vni
 *
 * What is redirected goes to xsks[queue * sockets_per_queue + worker]; if nobody
 * is there it is dropped (drop-no-socket). A station and a flat MAC can have
 * several workers. The flow decides which, so that it stays in order: by the
 * source port of the outer UDP header, which whoever encapsulated made of the
 * inner flow (RFC 7348, 5), or by the addresses and ports of a flat frame. The
 * hash that a NIC made would be cheaper, but reading it (since kernel 6.3) takes a program
 * that is bound to the device, which neither generic mode nor an exchange of
 * programs has, and drivers do not agree on it.
 *
 * Multicast and broadcast never match macs: a flat network's share of them is
 * copied by an AF_PACKET socket, as the host needs them too.
 *
 * Nothing is judged by a length field: what a header claims beyond the end of
 * the frame is for the engine, or the kernel, to refuse. Neither are checksums,
 * which a veth peer leaves partial.
 */

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* The names are part of the interface: userspace reads them from the program's
 * BTF, in lower case and with dashes, so a tool names those of any version. */
enum verdict {
	REDIRECT,
	REDIRECT_STATION,
	REDIRECT_FLAT,
	DROP_NO_SOCKET,
	PASS_TRUNCATED, /* ends within the headers above */
	PASS_TAGGED,
	PASS_NOT_IP,
	PASS_NOT_VXLAN,
	PASS_FRAGMENT,
	PASS_OTHER_ADDRESS,
	PASS_UNKNOWN_VNI,
	VERDICTS,
};

#include "verdict.h"

#define IP_MF_OR_OFFSET 0x3fff /* RFC 791: more fragments, or not the first */

#define MAX_WORKERS 8 /* of a station; a power of two */

#define VXLAN_I 0x08000000 /* RFC 7348: the VNI is valid */

struct vxlanhdr {
	__be32 flags;
	__be32 vni; /* upper 24 bits */
};

/* Written by the loader before the program is loaded; the verifier then takes
 * them for constants. */
const volatile __u16 vxlan_port = 4789;
const volatile __u32 sockets_per_queue = 1;

/* Switched while running. Unset, macs is not looked at. */
volatile _Bool flat;

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 1); /* sized by the loader */
	__type(key, __u32);
	__type(value, __u32);
} xsks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, struct in_addr);
	__type(value, __u8);
} vteps4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, struct in6_addr);
	__type(value, __u8);
} vteps6 SEC(".maps");

/* The entries of the tables below change in place, under their locks
 * (BPF_F_LOCK), which only writers take. An exchange would free the old entry, whose
 * memory another may take at once; a frame that is just looking at it would then find
 * neither of the two, and go to the kernel. */

/* VNI in host order to the worker its frames go to. */
struct network {
	__u32 worker;
	struct bpf_spin_lock lock;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1 << 16);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct network);
} networks SEC(".maps");

struct mac {
	__u8 addr[ETH_ALEN];
};

/* Who shares the frames of a station. Every slot names one of them, those beyond n
 * too: a frame that looks at an entry while it changes can see n of before and
 * slots of after. */
struct workers {
	__u32 n;
	__u8 worker[MAX_WORKERS];
	struct bpf_spin_lock lock;
};

/* A guest's unicast MAC in a network to its workers. */
struct station {
	__u32 vni; /* host order */
	struct mac mac;
	__u16 zero;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1 << 16);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct station);
	__type(value, struct workers);
} stations SEC(".maps");

/* The same in a flat network. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1 << 14);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct mac);
	__type(value, struct workers);
} macs SEC(".maps");

#define GOLDEN 0x9e3779b1u /* 2^32 / phi: successive numbers end up far apart */

/* Which of a station's workers a flow has. Hash 0 has the first. */
static __always_inline __u32 pick(const struct workers *w, __u32 hash)
{
	hash = (hash ^ hash >> 16) * GOLDEN;
	return w->worker[((__u64)hash * w->n >> 32) & (MAX_WORKERS - 1)];
}

static __always_inline __u32 mix(__u32 hash, __u32 word)
{
	return (hash ^ word) * GOLDEN ^ hash >> 15;
}

/* TCP, UDP, DCCP, SCTP and UDP-Lite begin with their ports. */
static __always_inline __u32 ports(__u8 protocol, void *transport, void *end)
{
	if (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP && protocol != IPPROTO_DCCP &&
	    protocol != IPPROTO_SCTP && protocol != IPPROTO_UDPLITE)
		return 0;
	if (transport + 4 > end)
		return 0;
	return *(__u32 *)transport;
}

/* A frame's flow. Fragments go by their addresses alone, so that those of a
 * datagram stay together. */
static __always_inline __u32 flow(struct ethhdr *eth, void *end)
{
	struct ipv6hdr *ip6 = (void *)(eth + 1);
	struct iphdr *ip = (void *)(eth + 1);
	__u32 hash;

	if (eth->h_proto == bpf_htons(ETH_P_IP) && (void *)(ip + 1) <= end) {
		hash = mix(mix(ip->protocol, ip->saddr), ip->daddr);
		if (!(ip->frag_off & bpf_htons(IP_MF_OR_OFFSET)))
			hash = mix(hash, ports(ip->protocol, (void *)ip + ip->ihl * 4, end));
		return hash;
	}
	if (eth->h_proto == bpf_htons(ETH_P_IPV6) && (void *)(ip6 + 1) <= end) {
		__u32 *word = (void *)&ip6->saddr; /* and daddr behind it */

		hash = ip6->nexthdr;
#pragma unroll
		for (int i = 0; i < 8; i++)
			hash = mix(hash, word[i]);
		return mix(hash, ports(ip6->nexthdr, ip6 + 1, end));
	}
	return 0;
}

static __always_inline enum verdict judge_network(__u32 vni, __u16 source, __u8 *inner, void *end, __u32 *worker)
{
	struct station key = { .vni = vni };
	struct workers *workers;
	struct network *known;

	if (inner + ETH_ALEN <= (__u8 *)end && !(inner[0] & 1)) {
		__builtin_memcpy(&key.mac, inner, ETH_ALEN);
		workers = bpf_map_lookup_elem(&stations, &key);
		if (workers) {
			*worker = pick(workers, source);
			return REDIRECT_STATION;
		}
	}
	known = bpf_map_lookup_elem(&networks, &vni);
	if (!known)
		return PASS_UNKNOWN_VNI;
	*worker = known->worker;
	return REDIRECT;
}

static __always_inline enum verdict judge_vxlan(struct udphdr *udp, void *end, __u32 *worker,
						struct in_addr *dst4, struct in6_addr *dst6)
{
	struct vxlanhdr *vxlan = (void *)(udp + 1);

	if ((void *)vxlan > end)
		return PASS_TRUNCATED;
	if (udp->dest != bpf_htons(vxlan_port))
		return PASS_NOT_VXLAN;
	if ((void *)(vxlan + 1) > end)
		return PASS_TRUNCATED;
	if (!(vxlan->flags & bpf_htonl(VXLAN_I)))
		return PASS_NOT_VXLAN;
	if (dst4 ? !bpf_map_lookup_elem(&vteps4, dst4) : !bpf_map_lookup_elem(&vteps6, dst6))
		return PASS_OTHER_ADDRESS;
	return judge_network(bpf_ntohl(vxlan->vni) >> 8, bpf_ntohs(udp->source), (void *)(vxlan + 1), end, worker);
}

static __always_inline enum verdict judge_ipv4(struct iphdr *ip, void *end, __u32 *worker)
{
	if ((void *)(ip + 1) > end)
		return PASS_TRUNCATED;
	if (ip->version != 4 || ip->ihl < 5)
		return PASS_NOT_IP;
	if (ip->frag_off & bpf_htons(IP_MF_OR_OFFSET))
		return PASS_FRAGMENT;
	if (ip->protocol != IPPROTO_UDP)
		return PASS_NOT_VXLAN;
	return judge_vxlan((void *)ip + ip->ihl * 4, end, worker, (void *)&ip->daddr, 0);
}

static __always_inline enum verdict judge_ipv6(struct ipv6hdr *ip, void *end, __u32 *worker)
{
	if ((void *)(ip + 1) > end)
		return PASS_TRUNCATED;
	if (ip->version != 6)
		return PASS_NOT_IP;
	if (ip->nexthdr == IPPROTO_FRAGMENT)
		return PASS_FRAGMENT;
	if (ip->nexthdr != IPPROTO_UDP)
		return PASS_NOT_VXLAN;
	return judge_vxlan((void *)(ip + 1), end, worker, 0, &ip->daddr);
}

static __always_inline enum verdict judge(struct xdp_md *ctx, __u32 *worker)
{
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = (void *)(long)ctx->data;
	struct workers *port;

	if ((void *)(eth + 1) > end)
		return PASS_TRUNCATED;
	if (eth->h_proto == bpf_htons(ETH_P_8021Q) || eth->h_proto == bpf_htons(ETH_P_8021AD))
		return PASS_TAGGED;
	if (flat && !(eth->h_dest[0] & 1)) {
		port = bpf_map_lookup_elem(&macs, eth->h_dest);
		if (port) {
			*worker = pick(port, flow(eth, end));
			return REDIRECT_FLAT;
		}
	}
	if (eth->h_proto == bpf_htons(ETH_P_IP))
		return judge_ipv4((void *)(eth + 1), end, worker);
	if (eth->h_proto == bpf_htons(ETH_P_IPV6))
		return judge_ipv6((void *)(eth + 1), end, worker);
	return PASS_NOT_IP;
}

static __always_inline int steer(struct xdp_md *ctx)
{
	__u32 worker = 0;
	enum verdict verdict = judge(ctx, &worker);
	int action = XDP_PASS;

	if (verdict < DROP_NO_SOCKET) {
		/* A known network is never the kernel's, so without a socket it is
		 * dropped. The socket must be bound to this very queue: the kernel
		 * drops what comes from another, which the socket counts. */
		action = bpf_redirect_map(&xsks, ctx->rx_queue_index * sockets_per_queue + worker, XDP_DROP);
		if (action != XDP_REDIRECT)
			verdict = DROP_NO_SOCKET;
	}
	count(ctx, verdict);
	return action;
}

/* Takes frames of several buffers, so a jumbo MTU does not stop it from running
 * in the driver. The headers above always lie in the first buffer. */
SEC("xdp.frags")
int shunt_steer(struct xdp_md *ctx)
{
	return steer(ctx);
}

/* For drivers that refuse the above. */
SEC("xdp")
int shunt_steer_lin(struct xdp_md *ctx)
{
	return steer(ctx);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
