// Package shm is memory shared with somebody else: a guest, the kernel, another process.
//
// A Mapping is a range of address space. It lives in three states, and only moves forward:
//
//	mapped ──Revoke──▶ reserved (PROT_NONE) ──Free──▶ gone
//
// A revoked range faults when touched but its addresses are not handed out again. So whoever still
// holds a stale view of it faults, and never reads what another tenant mapped there meanwhile. Free comes
// after every worker has passed a grace point.
//
// Views of a mapping are plain slices. Their elements change under our feet, so users load each
// element once into a local and judge that. What needs an order between loads and stores of
// the two sides goes through Load16, Store16 and their wider siblings (acquire and release), and Fence,
// the only thing here that orders a store before a later load.
//
// Together with guestmem, virtq, xsk and uring this is where unsafe may live, in files named *_unsafe.go.
package shm
