package uring

import "fmt"

// Op is one operation under way. It is its user's memory, used again and again; while it is busy the ring has it.
type Op struct {
	// Handler hears of completions.
	Handler Handler
	// Tag is its user's.
	Tag int

	slot      uint32 // number of its slot plus one; 0: not under way
	weight    uint32
	file      File // it is on; -1: none
	cancelled bool // that was asked for
	void      bool // before the kernel had seen it: nothing was done
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

// push begins an operation: an SQE that is zero but for what all have in common. Nil where there is no room. weight is how many bytes it may copy.
func (r *Ring) push(op *Op, opcode uint8, weight int) *sqe {
	if op.slot != 0 {
		panic(fmt.Sprintf("uring: operation %d is pushed while it is under way", op.Tag))
	}
	if len(r.free) == 0 || r.tail-r.taken == uint32(len(r.sqes)) || r.closing {
		r.counts.full++
		return nil
	}
	index := r.free[len(r.free)-1]
	r.free = r.free[:len(r.free)-1]
	at := &r.slots[index]
	if at.generation++; at.generation == 0 {
		at.generation = 1
	}
	at.op, at.at = op, r.tail
	op.slot, op.file = index+1, -1
	op.weight = uint32(opWeight + min(weight, 1<<30))
	r.weight += int(op.weight)
	r.counts.operations++
	r.weights[r.tail&uint32(len(r.sqes)-1)] = op.weight
	s := r.next()
	s.opcode = opcode
	s.userData = at.userData(index)
	return s
}

// pushOn is push of an operation on a file.
func (r *Ring) pushOn(op *Op, opcode uint8, f File, weight int) *sqe {
	s := r.push(op, opcode, weight)
	if s == nil {
		return nil
	}
	op.file = f
	r.files[f].busy++
	s.fd, s.flags = int32(f), sqeFixedFile|r.files[f].how
	return s
}

func (s *slot) userData(index uint32) uint64 { return uint64(s.generation)<<32 | uint64(index) }

// next is the next SQE, zeroed: what the last operation that had it left there means something else to this one. There must be room.
func (r *Ring) next() *sqe {
	s := &r.sqes[r.tail&uint32(len(r.sqes)-1)]
	r.tail++
	*s = sqe{}
	return s
}

// Readv reads from a file at an offset (preadv2); false, as of every push, when there is no room: then nothing happened.
func (r *Ring) Readv(op *Op, f File, v *Vector, offset int64) bool {
	return r.transfer(op, f, v, offset, 0, &reading) != nil
}

// ReadvApart is Readv by a thread of io-wq from the start, without an attempt on the thread that enters: for what may have to wait (Cached).
func (r *Ring) ReadvApart(op *Op, f File, v *Vector, offset int64) bool {
	s := r.transfer(op, f, v, offset, 0, &reading)
	if s == nil {
		return false
	}
	s.flags |= sqeAsync
	r.counts.punted++
	return true
}

// Writev writes to a file at an offset. flags are those of pwritev2, such as unix.RWF_DSYNC.
func (r *Ring) Writev(op *Op, f File, v *Vector, offset int64, flags int32) bool {
	return r.transfer(op, f, v, offset, flags, &writing) != nil
}

// direction has the four forms of reading or writing.
type direction struct{ one, vector, fixed, fixedVector uint8 }

var (
	reading = direction{opRead, opReadv, opReadFixed, opReadvFixed}
	writing = direction{opWrite, opWritev, opWriteFixed, opWritevFixed}
)

// maxTransfer is how much the kernel moves at once, whatever it is asked for (MAX_RW_COUNT). An operation on more than that ends with so much; only the
// length of a single buffer must say so itself, since it has no more than 32 bits.
const maxTransfer = 1<<31 - 4096

// transfer takes the cheapest form: a single buffer spares the kernel the copy of the iovecs, registered memory the pinning of the pages.
func (r *Ring) transfer(op *Op, f File, v *Vector, offset int64, flags int32, d *direction) *sqe {
	s := r.pushOn(op, d.vector, f, v.bytes)
	if s == nil {
		return nil
	}
	s.off, s.opFlags = uint64(offset), uint32(flags)
	one := v.last-v.first == 1
	if index, ok := r.memory.holds(v); ok && (one || r.modes.FixedVectors) {
		s.bufIndex = index
		d = &direction{one: d.fixed, vector: d.fixedVector}
	}
	if one {
		s.opcode = d.one
		s.addr, s.len = v.iovecs[v.first].base, uint32(min(v.iovecs[v.first].len, maxTransfer))
		return s
	}
	s.opcode = d.vector
	s.addr, s.len = v.address(), uint32(v.last-v.first)
	return s
}

// Fsync makes what was written stable; with datasync without what only describes it.
func (r *Ring) Fsync(op *Op, f File, datasync bool) bool {
	s := r.pushOn(op, opFsync, f, 0)
	if s == nil {
		return false
	}
	if datasync {
		s.opFlags = fsyncDatasync
	}
	r.counts.punted++
	return true
}

// Fallocate changes a range of a file as fallocate does, by unix.FALLOC_FL flags.
func (r *Ring) Fallocate(op *Op, f File, mode uint32, offset, length int64) bool {
	s := r.pushOn(op, opFallocate, f, 0)
	if s == nil {
		return false
	}
	s.off, s.addr, s.len = uint64(offset), uint64(length), mode
	r.counts.punted++
	return true
}

// Discard gives blocks of a block device back, which may read as anything afterwards (6.12; -EOPNOTSUPP before).
func (r *Ring) Discard(op *Op, f File, offset, length int64) bool {
	s := r.pushOn(op, opURingCmd, f, 0)
	if s == nil {
		return false
	}
	s.off, s.addr, s.addr3 = blockDiscard, uint64(offset), uint64(length)
	return true
}

// Connect connects a socket.
func (r *Ring) Connect(op *Op, f File, to *Address) bool {
	s := r.pushOn(op, opConnect, f, 0)
	if s == nil {
		return false
	}
	s.addr, s.off = to.at, uint64(to.length)
	return true
}

// Send sends what the vector has (sendmsg); the result may be less than that. flags are unix.MSG ones; MSG_WAITALL sends all of it unless the
// connection breaks. Only one at a time keeps a stream in order.
func (r *Ring) Send(op *Op, f File, v *Vector, flags int32) bool {
	return r.message(op, f, v, flags, opSend, opSendmsg)
}

// Recv receives into the vector (recvmsg); the result is less than its length unless flags has MSG_WAITALL, and may be even then.
func (r *Ring) Recv(op *Op, f File, v *Vector, flags int32) bool {
	return r.message(op, f, v, flags, opRecv, opRecvmsg)
}

func (r *Ring) message(op *Op, f File, v *Vector, flags int32, one, vector uint8) bool {
	s := r.pushOn(op, one, f, v.bytes)
	if s == nil {
		return false
	}
	s.opFlags = uint32(flags)
	if v.last-v.first == 1 {
		s.addr, s.len = v.iovecs[v.first].base, uint32(min(v.iovecs[v.first].len, maxTransfer))
		return true
	}
	s.opcode = vector
	s.addr, s.len = v.message(), 1
	return true
}

// multishotWeight is how many buffers a multishot recv fills at most before the kernel looks elsewhere (MULTISHOT_MAX_RETRY).
const multishotWeight = 32

// RecvMulti receives again and again, each time into one of the buffers, until it fails (-ENOBUFS: none was left), ends (0), or is cancelled. Then
// the completion lacks More, and it is its user's to push it again.
func (r *Ring) RecvMulti(op *Op, f File, b *Buffers) bool {
	s := r.pushOn(op, opRecv, f, min(b.count, multishotWeight)*b.size)
	if s == nil {
		return false
	}
	s.flags |= sqeBufferSelect
	s.ioprio = recvMultishot
	s.bufIndex = b.group
	return true
}

// PollAdd waits for events of a file, as poll(2) does, once; the result has those that came.
func (r *Ring) PollAdd(op *Op, f File, events uint32) bool {
	s := r.pushOn(op, opPollAdd, f, 0)
	if s == nil {
		return false
	}
	s.opFlags = events
	return true
}

// Shutdown shuts a socket down, as shutdown(2) does.
func (r *Ring) Shutdown(op *Op, f File, how int) bool {
	s := r.pushOn(op, opShutdown, f, 0)
	if s == nil {
		return false
	}
	s.len = uint32(how)
	return true
}

// Nop does nothing, and completes.
func (r *Ring) Nop(op *Op) bool { return r.push(op, opNop, 0) != nil }

// Cancel asks for the end of an operation, for which there always is room; false if op is not busy. The operation's own completion tells how it ended:
// -ECANCELED, -EINTR, or as if nothing had been asked. A file's IO that a device has begun ends when the device ends it; what the kernel has not been given yet is never
// begun.
func (r *Ring) Cancel(op *Op) bool {
	if op.slot == 0 {
		return false
	}
	if op.cancelled {
		return true
	}
	op.cancelled = true
	index := op.slot - 1
	switch s := &r.slots[index]; {
	case r.recall(s, index):
		op.void = true
		r.weight -= int(op.weight)
		op.weight = 0
	case !s.listed:
		s.listed = true
		r.cancels = append(r.cancels, index)
	}
	return true
}

// recall makes nothing of an operation that the kernel has not taken; false: it has. What lies where it was pushed is its own only if it is still there.
func (r *Ring) recall(s *slot, index uint32) bool {
	e := &r.sqes[s.at&uint32(len(r.sqes)-1)]
	if s.at-r.taken >= r.tail-r.taken || e.userData != s.userData(index) {
		return false
	}
	*e = sqe{opcode: opNop, userData: e.userData}
	r.weights[s.at&uint32(len(r.sqes)-1)] = 0
	return true
}

// pushCancels puts cancellations in front of all that was pushed, which may be more than goes with this enter; what was in front there goes to the end. An
// operation that has ended meanwhile needs none.
func (r *Ring) pushCancels() {
	n := 0
	for front := r.taken; n < len(r.cancels) && r.tail-r.taken < uint32(len(r.sqes)); n++ {
		s := &r.slots[r.cancels[n]]
		s.listed = false
		if s.op == nil || !s.op.cancelled || s.op.void {
			continue
		}
		r.next()
		*r.move(front, r.tail-1) = sqe{opcode: opCancel, fd: -1, flags: sqeSkipSuccess, addr: s.userData(r.cancels[n])}
		front++
	}
	r.cancels = r.cancels[:copy(r.cancels, r.cancels[n:])]
}

// move puts an entry to another place, and returns where it was.
func (r *Ring) move(from, to uint32) *sqe {
	mask := uint32(len(r.sqes) - 1)
	e := &r.sqes[from&mask]
	r.sqes[to&mask], r.weights[to&mask] = *e, r.weights[from&mask]
	r.weights[from&mask] = 0
	if e.userData != 0 {
		r.slots[uint32(e.userData)].at = to
	}
	return e
}
