// Package blktest has the fake of package blk's seam to stores: a disk in memory that answers later, on the worker that asked, and breaks when it is told to.
//
//	Lane.Submit ─▶ waiting ─▶ Lane.Poll: due? ─▶ cache ◀─┐ read
//	                                             │       │
//	                              flush, FUA ────┴▶ stable storage ─▶ cache, after Restore(false)
//
// The store keeps what a disk with a volatile cache has: content as it is read, and content as it is after a power cut. What was written and not flushed
// survives Restore(false) block by block, or does not. A request that is lost on the way was executed, or was not. Both are decided by a generator that a test seeds.
//
// Faults are set from the test's goroutine, at any time.
package blktest
