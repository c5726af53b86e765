// Package blk turns a guest's virtio-blk disk (virtio 1.2, section 5.2) into requests to a Store, and what comes back into the used ring.
//
//	guest ring ─▶ Queue.Poll ─▶ parse ─▶ Request ─▶ Gate ─▶ Lane.Submit ─▶ io_uring / socket ─▶ server, file
//	                                                (rate, retry, timeout)          │
//	guest ring ◀─ Queue.Flush ◀─ status, used ◀─ Gate.Done ◀────── Lane: Handler.Done
//
// One worker owns a virtqueue with all that hangs on it: its Queue takes chains and reads each header once, a Gate holds requests back where a limit or a
// lost server says so, and a Lane is the worker's own way to the store, on the worker's own io_uring. So a request crosses no thread,
// takes no lock and allocates nothing; a read lands in the guest's memory where it can. What all queues of a disk share is a Volume.
//
// A store may go away and come back. A lane then gives its requests back as Lost; the gate keeps them, as the volume's policy says, and submits them
// again when the lane is up. What a guest asked for before this daemon was started is found in the in-flight area and begins anew in the same way.
//
// A Store is asynchronous and knows nothing of virtio: package blk/file, blk/nbd and blk/nvmetcp have one each.
package blk
