// Package nbd is a client of the Network Block Device protocol as a blk.Store: fixed newstyle, TLS, structured replies, on the worker's io_uring.
//
//	keeper (goroutine): dial ─▶ [TLS] ─▶ options ─▶ GO ─▶ a plain socket ─┐
//	                                                                     ▼ Worker.Do
//	lane (worker):   Submit ─▶ task ─▶ parts ─▶ SENDMSG: headers, and payloads out of the guest's memory
//	                 Done   ◀─ task ◀─ parts ◀─ RECVMSG: payloads into the guest's memory, headers into the inbox
//
// What comes once a connection (dialling, the handshake, certificates, backing off) is ordinary blocking code on a goroutine, with a deadline. What comes
// for every request is the lane's: no goroutine, no lock, no allocation. With TLS the lane has one end of a socketpair, and two goroutines carry its
// bytes to a tls.Conn: cryptography is not on the worker, and is done on a copy that the guest cannot change any more.
//
// A lane is one connection. A server that offers CAN_MULTI_CONN gets one from each worker that asks for it; any other gets one, as the protocol wants it.
//
// What NBD cannot do shapes the rest. It has no way to take a command back, nor to tell a server to forget a connection's commands. So what is withdrawn stays as an
// orphan until the server has answered, and as long as there are orphans that write nothing new is sent; and after a connection has broken under
// writes a stated time passes before the next one is used, or any other (Options.Quiesce); where a process was killed under writes, before the next one writes
// (blk.Info). What remains: a server that is cut off, alive, and holds a write
// for longer than that may carry it out after a newer one to the same blocks. Nor has it a way to show that a server is still the one that it was: only
// where another connection to it has lived through the break is that known, and told to Events.Up as kept.
//
// Nothing that a server says is believed: option replies, lists and error messages have bounds; a reply must name a command that is on its way, and
// each byte of a read may come once, within the read, before anything is written to the guest's memory. A server that breaks a rule is disconnected.
package nbd
