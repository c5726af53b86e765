package uring

// Op is one operation under way. It is its user's memory, used again and again; while it is busy the ring has it.
type Op struct {
	// Handler hears of completions.
	Handler Handler
	// Tag is its user's.
	Tag int

	slot uint32 // number of its slot plus one; 0: not under way
}

// Handler hears of completions, on the worker, within Poll.
type Handler interface {
	// Completed: the operation came to a result, of which a negative one is -errno. flags are the completion's: without More this was the last
	// one, op is not busy any more, and may be pushed at once.
	Completed(op *Op, res int32, flags uint32)
}

// Flags of a completion.
const (
	// Buffer: data lies in a buffer of Buffers.
	Buffer = 1 << 0
	// More: the operation goes on, and there will be further completions.
	More = 1 << 1
	// NonEmpty: the socket has more data.
	NonEmpty = 1 << 2
)

// Busy tells whether the operation is under way.
func (o *Op) Busy() bool { return o.slot != 0 }

// Readv reads from a file at an offset (preadv2).
func (r *Ring) Readv(op *Op, f File, v *Vector, offset int64) bool { return false }

// Writev writes to a file at an offset. flags are those of pwritev2, such as unix.RWF_DSYNC.
func (r *Ring) Writev(op *Op, f File, v *Vector, offset int64, flags int32) bool { return false }

// Fsync makes what was written stable; with datasync without what only describes it.
func (r *Ring) Fsync(op *Op, f File, datasync bool) bool { return false }

// Fallocate changes a range of a file as fallocate does, by unix.FALLOC_FL flags.
func (r *Ring) Fallocate(op *Op, f File, mode uint32, offset, length int64) bool { return false }

// Connect connects a socket.
func (r *Ring) Connect(op *Op, f File, to *Address) bool { return false }

// Send sends what the vector has (sendmsg); the result may be less than that. flags are unix.MSG ones. Only one at a time keeps a stream in order.
func (r *Ring) Send(op *Op, f File, v *Vector, flags int32) bool { return false }

// Recv receives into the vector (recvmsg); the result is less than its length unless flags has MSG_WAITALL, and may be even then.
func (r *Ring) Recv(op *Op, f File, v *Vector, flags int32) bool { return false }

// RecvMulti receives again and again, each time into one of the buffers, until it fails (-ENOBUFS: none was left), ends (0), or is cancelled. Then
// the completion lacks More, and it is to be pushed again.
func (r *Ring) RecvMulti(op *Op, f File, b *Buffers) bool { return false }

// PollAdd waits for events of a file, as poll(2) does, once; the result has those that came.
func (r *Ring) PollAdd(op *Op, f File, events uint32) bool { return false }

// Shutdown shuts a socket down, as shutdown(2) does.
func (r *Ring) Shutdown(op *Op, f File, how int) bool { return false }

// Nop does nothing, and completes.
func (r *Ring) Nop(op *Op) bool { return false }

// Cancel asks for the end of an operation, which always has room; false if op is not busy. The operation's own completion tells how it ended: -ECANCELED, or
// -EINTR, or as if nothing had been asked.
func (r *Ring) Cancel(op *Op) bool { return false }
