// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)

//go:build ignore

/*
 * For an interface whose frames are all ours: the host end of a container's veth.
 *
 *	every frame -- longer than longest -----> drop-too-long
 *	   v
 *	xsks[queue] ----------------------------> redirect
 *	   nobody there ------------------------> drop-no-socket
 *
 * Nothing is passed: what the container sends is never the kernel's, also while
 * no socket is there.
 */

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

/* The names are part of the interface, as in steer.bpf.c. */
enum verdict {
	REDIRECT,
	DROP_NO_SOCKET,
	DROP_TOO_LONG,
	VERDICTS,
};

#include "verdict.h"

/* The longest frame in bytes, switched while running. A peer that does not know of
 * our program, which is so in generic mode, hands us packets of 64 KB to segment. */
volatile __u32 longest = 1518;

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 1); /* sized by the loader */
	__type(key, __u32);
	__type(value, __u32);
} xsks SEC(".maps");

static __always_inline int take(struct xdp_md *ctx)
{
	enum verdict verdict = REDIRECT;
	int action = XDP_DROP;

	if (bpf_xdp_get_buff_len(ctx) > longest) {
		verdict = DROP_TOO_LONG;
	} else {
		action = bpf_redirect_map(&xsks, ctx->rx_queue_index, XDP_DROP);
		if (action != XDP_REDIRECT)
			verdict = DROP_NO_SOCKET;
	}
	count(ctx, verdict);
	return action;
}

/* Takes frames of several buffers, as shunt_steer does. */
SEC("xdp.frags")
int shunt_port(struct xdp_md *ctx)
{
	return take(ctx);
}

/* For drivers that refuse the above. */
SEC("xdp")
int shunt_port_lin(struct xdp_md *ctx)
{
	return take(ctx);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
