// Package verify puts a random load on a virtio-blk device and knows at any time what may lie on it, so that it finds a lost, torn, misplaced or
// doubled write, an answer too much and one too few, while back-ends and servers die under it.
//
//	Load ─▶ Model.begin ─▶ driver.Queue ─▶ device            each block: sector, generation, checksum, and
//	     ◀─ Model.end   ◀─              ◀─                    a body that follows from these
//
// # What may lie there
//
// The Model has for each unit of the disk the writes that can still matter, oldest first. Each has a generation and two times: when it was issued, before the
// device could see it, and when its end was seen. A write *hides* those that had ended when it was issued. So:
//
//   - What is visible is any write not hidden by one that has ended well: the last one, those under way, those that overlapped.
//   - What is durable is any write not hidden by one that ended before the beginning of a flush that ended well.
//   - After the crash of a server anything that was durable may be visible. The driver is to be told so: a flush that fails excuses what is lost. One that
//     ends well vouches for all that ended before it, also for writes from before the crash.
//   - The crash of a back-end alone excuses nothing.
//   - A write that failed may have happened. A discarded unit has zeroes or what was there.
package verify
