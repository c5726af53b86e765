// Package nvmetcp is an NVMe/TCP host (an initiator) of our own, as a blk.Store: a namespace of a remote NVM subsystem is a disk.
//
// Two kinds of connections make an association with a controller, and they are driven in two ways:
//
//	control side (goroutines, net.Conn)                      worker (io_uring)
//	  ICReq/ICResp, Connect, properties,                       Submit ─▶ CapsuleCmd ────────────▶ ┐
//	  Identify, features, keep-alive, events, Abort            guest ◀─ R2T ─ H2CData ◀─▶         │ IO queue, one per lane
//	    └── admin queue ──▶ controller                         guest memory ◀─ C2HData ◀─         │
//	  connects each IO queue, then gives its socket ──Do──▶    Done ◀─ CapsuleResp, or SUCCESS ◀─ ┘
//
// The admin queue is slow and rare, so it is plain blocking code (admin.go, controller.go). An IO queue is a state machine on the worker's ring
// (lane*.go) that allocates nothing: one send and one receive are under way at a time, commands are found by the index in their CID, and everything that
// a controller says of lengths and offsets is checked before a byte goes into a guest's memory.
//
// # What the guest can change under way
//
// A write's data digest is computed over a private copy, which is what is sent: a guest may rewrite its buffers at any time, honestly. A read whose data
// has a digest is received into private memory, summed there, and copied on piece by piece before the digest is known; what does not match fails the
// command, whose buffers then say nothing. Verifying in the guest's memory would be wrong both ways: some guests let many reads land on one dummy page at
// once, and a hostile one could make any server's data look corrupt in our counters. Without a digest, data of 16 KiB and more goes
// from the socket into the guest's memory directly.
//
// # When the way breaks
//
// A connection that breaks, a controller that breaks the protocol, a command that neither ends nor can be aborted, and a write that was taken back before it
// ended, all end the association: the requests of all lanes come back Lost. A new association begins only when the old one
// can no longer execute anything (fence.go): the controller was disabled over the admin queue (CC.EN = 0) and has hung up on the lanes, or, where that does not answer, the keep-alive
// timeout has run out since the last byte we may have sent, plus the time the controller asks for to quiesce (CQT). As long the successor of a process that was killed
// under writes writes nothing (blk.Info.Quiesce): it cannot disable a controller whose admin queue is gone. A namespace that came back with
// another identity, or another block size, is refused.
//
// No authentication (DH-HMAC-CHAP) and no TLS: a controller that asks for them is refused with a sentence. Go's crypto/tls has no external PSK.
package nvmetcp
