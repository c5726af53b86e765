// Package uring is io_uring as a dataplane.Worker uses it: one ring, which one pinned thread alone fills, enters and empties.
//
//	push: an SQE, zeroed, filled ─▶ SQ ─▶ Flush: io_uring_enter ─▶ kernel ─┬─ done at once ───────────┐
//	                                                                      ├─ later, on our thread ───┤ (TASKRUN shows; needs an enter)
//	                                                                      └─ by an io-wq thread ─────┤
//	Handler.Completed ◀─ slot, generation ◀─ head advanced ◀─ Poll ◀─ CQ ◀──────────────────────────┘
//
// A ring of SINGLE_ISSUER and DEFER_TASKRUN posts completions only while its thread is inside io_uring_enter, and shows by a flag in memory that
// it should come. So the ring enters when something was pushed, or that flag (or an overflow of the CQ) is up, and otherwise costs two loads a round.
// For its sleep the worker has an eventfd, which the kernel signals when there are completions or such work, and only while the worker says by a flag in the CQ
// that it sleeps.
//
// The kernel sees addresses, and Go's memory may move or be freed behind them. So whatever an SQE points to lies in mappings of our own: iovecs and
// message headers (Vector), socket addresses (Address), buffers (Memory, Buffers) and the guests' memory.
//
// An Op is known to the kernel by the number of a slot and a generation, never by its address: a completion that comes twice or late meets a
// slot of another generation and is dropped.
//
// Timers are a wheel of our own (timer.go) instead of timeouts of the kernel: starting and stopping one is a few instructions.
package uring
