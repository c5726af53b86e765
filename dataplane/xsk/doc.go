// Package xsk moves frames between a network device and user space by AF_XDP (kernel: net/xdp,
// Documentation/networking/af_xdp.rst).
//
// Frames lie in one frame.Memory, which the kernel knows as UMEM. What moves are descriptors, through four rings in
// memory shared with the kernel. Each has one writer at either end:
//
//	                 we produce                       the kernel produces
//	receive:   pool ──▶ fill ──▶ kernel, a packet ──▶ rx ──▶ Port.Receive ──▶ ...
//	transmit:  ... ──▶ Port.Transmit ──▶ tx ──▶ kernel, driver ──▶ completion ──▶ pool
//
// Fill and completion belong to a queue of a device, rx and tx to a socket. So several sockets receive from
// one queue, one for each worker (Receiver), while a single one, the queue's owner (Port), feeds it and takes completions back. A frame
// in any of the rings is the kernel's; a ledger beside the UMEM says which, since what comes back through a
// ring is believed only if it went out by its counterpart. When the socket is closed the ledger is what
// frames are reclaimed by.
//
// A packet longer than a chunk is several descriptors where the kernel has that (MultiBuffer): received, a frame that owns the frames of
// the further ones; to be sent, a frame whose body is first copied into frames of its own, if it was borrowed. Each chunk of it goes and comes
// back by itself.
//
// In zero-copy mode the driver works on the rings by itself and asks to be woken by a flag in the ring it
// starved on. In copy mode nothing is transmitted but inside our own system call, which takes at most 32 descriptors
// unless told otherwise, and receiving copies in the softirq of whoever sent. Which one is in force is what the kernel says, see
// Socket.ZeroCopy.
//
// Port makes one queue of an uplink a dataplane.Port. It moves raw frames and knows nothing of what is in them, but for checksums that the
// kernel of a container left open (partial.go).
package xsk
