package uring

import (
	"fmt"
	"time"

	"github.com/shuntio/shunt/dataplane/shm"
	"golang.org/x/sys/unix"
)

// The ring as its worker's source:
//
//	Poll   ─▶ is there something to enter for? ─▶ reap: completions to their handlers ─▶ timers
//	Flush  ─▶ what was pushed since, and what Poll left to do ─▶ enter
//	Arm, Pending, Disarm ─▶ the eventfd on; a look at the CQ and at the SQ's flags; the eventfd off

// Quantum is how many completions one Poll hands out at most.
const Quantum = 128

// shortWeight is how much may be under way for an enter to count as short. Whatever is under way may be done within it: at some microseconds an operation and
// 10 GB/s of copying this is about 30 us. The garbage collector has to wait for a short one.
const (
	shortWeight = 128 << 10
	opWeight    = 4 << 10
)

// roundWeight is about how much one enter begins: what is copied from or to the page cache is copied there and then, and the worker has others to serve. It is
// some 100 us; what is left goes with the next enter.
const roundWeight = 1 << 20

// Poll hands completions to their handlers, and calls the handlers of timers that are due. A handler may push, and may panic: then the ring goes on with
// the next completion when it is polled again.
func (r *Ring) Poll() int {
	r.timers.fresh = false
	// Under load Flush enters once a round, and what that has brought is here by now. What was pushed after the last Flush goes out now.
	if r.unsent() || r.empty() && r.asked() {
		r.enter()
	}
	n := r.reap() + r.timers.run()
	r.publish()
	return n
}

// Flush hands the kernel what was pushed, and does what it asks for.
func (r *Ring) Flush() {
	if r.unsent() || r.asked() {
		r.enter()
		r.publish()
	}
}

// Arm asks the kernel to signal the eventfd, and tells how long the worker may sleep: until the next timer.
func (r *Ring) Arm() time.Duration {
	shm.Store32(r.cqFlags, 0)
	return r.timers.next()
}

// Pending tells, after the worker's fence, whether Poll has something to do, timers aside. The kernel publishes a completion, or that there is work for us, before it
// looks whether we want the signal.
func (r *Ring) Pending() bool { return r.unsent() || !r.empty() || r.asked() }

// Disarm takes Arm back.
func (r *Ring) Disarm() {
	shm.Store32(r.cqFlags, cqEventFDDisabled)
	r.timers.fresh = false
}

// unsent tells whether the kernel has not yet taken everything.
func (r *Ring) unsent() bool { return r.tail != r.taken || len(r.cancels) > 0 }

// asked tells whether the kernel asks us to come.
func (r *Ring) asked() bool { return shm.Load32(r.sqFlags)&(sqTaskrun|sqCQOverflow) != 0 }

// empty tells whether there is no completion.
func (r *Ring) empty() bool {
	if r.head == r.seen {
		r.seen = shm.Load32(r.cqTail)
	}
	return r.head == r.seen
}

// enter gives the kernel a part of what was pushed, mostly all, and lets it do its work on our thread. What it cannot take now it is given the next time.
func (r *Ring) enter() {
	if shm.Load32(r.sqFlags)&sqCQOverflow != 0 {
		r.counts.overflows++
	}
	r.pushCancels()
	shm.Release32(r.sqTail, r.tail)
	part := r.part()
	for {
		n, errno := enter(r.fd, part, r.weight <= shortWeight)
		r.counts.enters++
		switch errno {
		case 0:
			r.taken += uint32(n)
			return
		case unix.EINTR:
		case unix.EAGAIN, unix.EBUSY: // no memory for a request; a CQ so full that we must empty it first
			return
		case unix.EEXIST:
			panic(ErrThread)
		default:
			panic(fmt.Errorf("io_uring_enter: %w", errno)) // a mistake of ours: EBADFD is a ring that is not enabled
		}
	}
}

// part is how many of the entries go with this enter: one at least, if there are any.
func (r *Ring) part() (n uint32) {
	all := r.tail - r.taken
	if r.weight <= roundWeight {
		return all
	}
	for weight := uint32(0); n < all && weight < roundWeight; n++ {
		weight += r.weights[(r.taken+n)&uint32(len(r.sqes)-1)]
	}
	return n
}

// reap hands out a quantum of completions. The head is moved past each before its handler is called.
func (r *Ring) reap() (n int) {
	for ; n < Quantum && !r.empty(); n++ {
		c := r.cqes[r.head&uint32(len(r.cqes)-1)]
		r.head++
		shm.Release32(r.cqHead, r.head)
		r.deliver(c)
	}
	return n
}

// deliver finds the operation that a completion is of.
func (r *Ring) deliver(c cqe) {
	index, generation := uint32(c.userData), uint32(c.userData>>32)
	if generation == 0 {
		return // of a cancellation that found nothing to cancel
	}
	if index >= uint32(len(r.slots)) || r.slots[index].op == nil || r.slots[index].generation != generation {
		r.counts.stale++
		return
	}
	op := r.slots[index].op
	r.counts.completions++
	if c.flags&More == 0 {
		r.slots[index].op = nil
		r.free = append(r.free, index)
		r.weight -= int(op.weight)
		if op.void {
			op.void, c.res = false, -int32(unix.ECANCELED)
		}
		op.slot, op.cancelled = 0, false
		if op.file >= 0 {
			r.leave(op.file)
		}
	}
	op.Handler.Completed(op, c.res, c.flags)
}
