package uring

import "sync/atomic"

// Stats are counters of a ring, written by its worker and read by anybody.
type Stats struct {
	// Operations counts those pushed, Completions what came of them: several of a multishot one. Enters counts system calls.
	Operations, Completions, Enters atomic.Uint64
	// Punted counts operations that the kernel always hands to io-wq: fsync, fallocate.
	Punted atomic.Uint64
	// Overflows counts how often the CQ was full; nothing is lost by that. Full counts pushes that found no room.
	Overflows, Full atomic.Uint64
	// Stale counts completions of operations that nobody waited for.
	Stale atomic.Uint64
}
