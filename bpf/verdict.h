// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)

/*
 * Counters of frames by enum verdict, which the program defines before it
 * includes this; its last value, VERDICTS, is the number of the others.
 */

struct counter {
	__u64 packets;
	__u64 bytes;
};

/* Bumped here without a lock, a copy to each CPU; userspace adds them up. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, VERDICTS);
	__type(key, __u32); /* enum verdict */
	__type(value, struct counter);
} verdicts SEC(".maps");

/* Not inlined, so that its prototype carries enum verdict into the kernel. */
static __noinline void count(struct xdp_md *ctx, enum verdict verdict)
{
	struct counter *counter = bpf_map_lookup_elem(&verdicts, &verdict);

	if (!counter)
		return;
	counter->packets++;
	counter->bytes += bpf_xdp_get_buff_len(ctx); /* all buffers of a jumbo frame */
}
