// Package file is a blk.Store on a regular file or a block device.
//
//	Lane.Submit ─┬─ buffers fit O_DIRECT, or the page cache is used ─▶ readv, writev on the guest's memory itself ─▶ Done
//	             ├─ a write through the page cache that may wait ─▶ a thread of ours: pwritev ─▶ Done
//	             ├─ they do not fit ─▶ a chunk of bounce memory ─▶ read, write ─▶ the next chunk ─▶ Done
//	             ├─ flush ─▶ fdatasync
//	             └─ discard, write zeroes ─▶ fallocate, or a command to the device ─▶ where that is refused: the next best
//
// A request is one operation of the worker's io_uring, or a few in a row: the kernel may do a part of it, bounce memory holds a part of it, a file
// system may refuse to punch holes. Each completion either begins the next operation or ends the request (lane.go).
//
// A write through the page cache of ext4 and most other file systems may have to wait for the disk, and the kernel has no way to ask it not to. io_uring gives such
// writes to threads of its own, one by one; here they go to one of ours, in batches (writer.go). On XFS they stay on the ring. So do reads of what the page cache has; what it has not
// goes to io-wq, since the disk is asked for it on the thread that begins the read (resident.go).
//
// Who serves the file system (FUSE, NFS), or the disk below it, may stop answering, and what the kernel has begun it does not give back. So nothing of such a file may stand in
// another one's way. The worker touches it by its ring only, which gives what cannot be tried without waiting to threads of its own at once, since the attempt itself waits
// (uring.MayWait); reads go to bounce memory, so that the guest's is its own again whenever it asks, and come back then. A lane takes only a part of what others
// have left of the ring (share), so there always is a rest. To open, close and look at a file is for the control side, which does not wait for ever (answer.go).
//
// With O_DIRECT the kernel wants buffers, lengths and offsets aligned, and says how (statx, STATX_DIOALIGN). The guest's block size becomes what offsets need;
// what its buffers lack, bounce memory gives.
//
// The file is locked (lock.go) for as long as its open file description lives, and that is what the IO uses: so not only until this process
// closes it, but until the last operation that the kernel has begun for it has ended, even if the process was killed. The next daemon waits for the lock, and
// by then no earlier write can overtake its own. A block device that is written to is claimed (O_EXCL) for as long, against all who would not ask for a lock, such as a mount.
package file
