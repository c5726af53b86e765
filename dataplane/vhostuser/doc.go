// Package vhostuser lends a guest's virtqueues to this process: the vhost-user protocol, both of its sides.
//
// A front-end (QEMU, Cloud Hypervisor, DPDK virtio-user, our own Frontend) owns a virtio device that some guest sees.
// Over a unix socket it hands the back-end three kinds of things: the guest's memory as file descriptors, the places of
// the rings in it, and eventfds to wake one another (kick: guest to device, call: device to guest). After that packets
// flow through memory and the socket is silent until something changes.
//
//	front-end ──unix socket──▶ Backend ──accepts──▶ session ──calls──▶ Device
//	           messages, fds   one per socket       one goroutine      vnet, blk
//
// Either side may be the one that listens: Listen serves whoever connects, Connect goes to a front-end that listens, and again whenever one is back. From the
// first message on there is no difference.
//
// The session owns the protocol. A Device is told complete and checked facts only: regions that do not overlap and lie
// inside their files, and a ring when everything it needs is known. So a Device has no protocol state to keep, and
// a second device type costs no second state machine.
//
// # A ring's life
//
// The protocol speaks of two independent properties of a ring. It is started by SET_VRING_KICK (every back-end in use
// takes the message itself as the start, not the first signal on the descriptor) and stopped by GET_VRING_BASE. It is
// enabled and disabled by SET_VRING_ENABLE; without VHOST_USER_F_PROTOCOL_FEATURES it counts as enabled always.
// The Device sees the conjunction of both, and of the memory under the ring:
//
//	    SET_VRING_NUM, ADDR, BASE, CALL, ERR: any order, remembered
//	         │
//	┌────────▼────────┐  SET_VRING_KICK   ┌─────────────────────────────────┐
//	│     stopped     │──────────────────▶│ started, not running            │
//	│ base answers    │                   │ waits: features, enabled, size, │
//	│ GET_VRING_BASE  │◀──────────────────│ addresses, memory under them    │
//	└────────▲────────┘  GET_VRING_BASE   └───────┬─────────────────▲───────┘
//	         │                                    │                 │ disabled,
//	         │                        StartVring  │                 │ memory replaced or
//	         │                                    │                 │ removed: StopVring
//	         │  GET_VRING_BASE            ┌───────▼─────────────────┴───────┐
//	         │  RESET_DEVICE, status 0    │ running: the Device owns it     │─┐ call, kick, err or
//	         └────────────────────────────│ StopVring returns the base      │ │ log changed:
//	            StopVring                 └─────────────────────────────▲───┘ │ UpdateVring
//	                                                                    └─────┘
//
// A disabled ring does not run. The specification would have a network device drain and discard what the guest sends
// there; we leave it in the ring, as DPDK does, so that a guest quicker than its front-end's ENABLE loses nothing.
//
// Memory is never replaced under a running ring: SET_MEM_TABLE stops the rings, swaps, and starts them at their base.
// ADD_MEM_REG and REM_MEM_REG leave rings alone unless the removed region holds a part of the ring itself.
//
// # A guest that moves
//
// A live migration begins while everything runs: the front-end gives a dirty log (guestmem.Log) with SET_LOG_BASE, sets VHOST_F_LOG_ALL, and the log flag of each ring.
// It copies memory, takes what was marked meanwhile, copies that, and so on until GET_VRING_BASE has stopped the rings; by then every mark is made. On the other side the
// rings start at that base, and SEND_RARP has the network told.
//
// # A device that breaks off
//
// A Device that finds its guest's rings broken stops looking at them; the session goes on as if they ran. Backend.Fail tells the front-end by
// the rings' error eventfds, by DEVICE_NEEDS_RESET in the device status and by a configuration change; a reset, or rings that start anew, end it.
//
// # What a front-end can do to us
//
// It is as hostile as its guest. Every length and index is bounded, a message with descriptors it must not have is refused,
// and each descriptor is closed exactly once. Kick and call must be eventfds; memory must be memfd, tmpfs or hugetlbfs. Both are
// asked in ways that no file system of the front-end's can delay. It keeps every file it gives us and can change its flags and contents: so eventfds are signalled and
// drained, and its socket is written, in ways that do not depend on O_NONBLOCK, and logs and in-flight areas are sealed where that is possible. A message begun must be finished within a few
// seconds. One front-end is served at a time by one goroutine; the next is turned away with a log line,
// a flood of them waits in the listen queue, and log lines are limited. A device call can take as long as it
// likes without a lock being held.
//
// Numbers on the socket have the machine's byte order, as the specification says.
package vhostuser
