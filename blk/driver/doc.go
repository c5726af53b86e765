// Package driver is the driver's side of a virtio-blk device, with no guest around it: what an operating system and its hypervisor do, as a library for
// tests, load generators and benchmarks. It speaks to any vhost-user-blk back-end, ours or another's.
//
//	caller        Queue (one goroutine each)                          back-end
//	Submit ─▶ slot: header, status ─▶ chain ─▶ avail ring ─ kick ─▶   reads, writes
//	Poll   ◀─ request, by its head ◀─ used ring ◀─────────── call ─   status, used
//	Wait      arm, look again, sleep on the call eventfd
//
//	Disk: memory (a memfd), features, configuration, connection;
//	      its keeper connects again when the back-end dies
//
// # One memory
//
// A disk's memory is one memfd, given to the back-end as two regions, each with its own offset in the file: tables (rings, and a slot for each
// descriptor, with the request's header, its status, its ranges and its indirect table), and buffers, of which Alloc gives pieces.
//
// # A back-end that dies
//
// With Options.Reconnect the disk waits for the socket to be back, as QEMU does, and goes on. How depends on INFLIGHT_SHMFD:
//
// With it the rings keep their state, and nobody touches them. The in-flight area, made once by the first back-end (GET_INFLIGHT_FD), is given to each
// (SET_INFLIGHT_FD). The base of a split ring is its used index; that of a packed ring is the last that a back-end told (QEMU 7.2 has no better), so
// a back-end has to take its own notes. No kick follows: a back-end looks into a ring that was started, and signals call for what its predecessor did not.
//
// Without it nobody can tell which chains of a ring were done, unless they are done in order. So the rings begin anew, and what is under way is offered again, the
// oldest first: what a driver does after a reset.
//
// # A ledger of answers
//
// Each chain is answered exactly once. An answer for a head that is not under way is an error (virtq.Driver). An answer that came for a head's
// previous chain would be taken for the next one's; so every status byte is preset to a value that no device writes, and an answer
// without a status is an error, too.
package driver
