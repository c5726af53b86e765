// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)

/* Programs that are not shunt's, for the tests to load. */

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8);
	__type(key, __u32);
	__type(value, __u32);
} seen SEC(".maps");

SEC("xdp")
int pass_all(struct xdp_md *ctx)
{
	__u32 queue = ctx->rx_queue_index;

	bpf_map_update_elem(&seen, &queue, &queue, BPF_ANY);
	return XDP_PASS;
}

/* Reads a frame without looking for its end. */
SEC("xdp")
int unverifiable(struct xdp_md *ctx)
{
	return *(int *)(long)ctx->data;
}

SEC("tc")
int no_xdp(struct __sk_buff *skb)
{
	return skb->len & 1;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
