package xsk

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/shm"
	"golang.org/x/sys/unix"
)

// One queue, several workers. The kernel redirects a packet only to a socket that is bound to the queue it arrived on, so each worker that is to
// have some of the queue's packets has a socket there:
//
//	        owner's worker                        kernel                        another worker
//	pool ──▶ Port.refill ──▶ fill ──┬──▶ rx of the owner's socket ──▶ Port.Receive
//	                                └──▶ rx of a receiver's socket ──────────────▶ Receiver.Receive ──▶ ...
//	 ▲                                                                                   │ taken
//	 └─────── frame.Pool: a frame that is put back returns to its home ◀─────────────────┘
//
// Chunks are the owner's pool's, whoever receives in them. A receiver counts what it took (written by its worker, read by the owner's), so
// that the owner knows how many are left. While the owner sleeps nobody fills, so a receiver that has used up a good part wakes it.

// DropReceiveOnly is for frames sent to a receiver, which is a bug.
var DropReceiveOnly = dataplane.NewReason("uplink-receive-only", "the frame was sent to a socket that only receives; please report it")

// ReceiverOptions configure a Receiver. All but CompletePartial must be set.
type ReceiverOptions struct {
	// Owner is the port that owns the queue.
	Owner *Port
	// Socket is bound to the same queue, with the owner's socket as its Owner, and the receiver's from now on. It needs no Tx.
	Socket *Socket
	// Counters of what it receives.
	Counters *dataplane.Counters
	// CompletePartial is as in PortOptions.
	CompletePartial bool
}

// Receiver is another worker's socket on an uplink's queue, as a dataplane.Port from which packets come. Nothing can be sent there.
type Receiver struct {
	owner   *Port
	in      intake
	unknown atomic.Uint64

	_     [64]byte      // the next line is read by the owner's worker
	taken atomic.Uint32 // chunks, ever; written by the receiver's worker
	since uint32        // taken since the owner was seen awake
	_     [64]byte
	seen  uint32 // taken, as the owner has it
}

// NewReceiver makes a receiver. Only on the owner's worker, or before that runs; packets come when the socket is in the XSKMAP.
// The file to be watched for them is that of the socket; that the owner's worker watches Port.WakeFD now is up to the caller.
func NewReceiver(o ReceiverOptions) (*Receiver, error) {
	p, s := o.Owner, o.Socket
	switch {
	case s.Rx.Len() == 0:
		return nil, errors.New("AF_XDP receiver: its socket must have an rx ring")
	case s.o.Owner != p.s || s.umem != p.s.umem:
		return nil, errors.New("AF_XDP receiver: its socket must share the queue of the owner's socket")
	}
	if p.wake < 0 {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		if err != nil {
			return nil, fmt.Errorf("AF_XDP receiver: %w", err)
		}
		p.wake = fd
	}
	r := &Receiver{owner: p}
	r.in = intake{s: s, counters: o.Counters, unknown: &r.unknown, from: p.in.from, shared: true, partial: o.CompletePartial}
	p.receivers = append(p.receivers, r)
	p.share()
	return r, nil
}

// share follows a change of the receivers.
func (p *Port) share() {
	p.in.shared = len(p.receivers) > 0
	// Together they may use up half of the fill ring before one of them must have woken the owner.
	p.patience.Store(uint32(max(1, p.fill/2/max(1, len(p.receivers)))))
}

// Frames is how many frames lie in the receiver's ring at most, beyond those that the owner's options tell.
func (r *Receiver) Frames() int { return r.in.s.Rx.Len() }

// Socket is where the packets come from.
func (r *Receiver) Socket() *Socket { return r.in.s }

// Unknown is as in PortStats.
func (r *Receiver) Unknown() uint64 { return r.unknown.Load() }

// Receive takes what arrived.
func (r *Receiver) Receive(into []*frame.Frame, pool *frame.Pool) int {
	n, taken := r.in.receive(into, pool)
	if taken > 0 {
		r.tell(uint32(taken))
	}
	return n
}

// tell lets the owner know of chunks that were taken. The store comes before the load in the order of sync/atomic, and Port.Arm does the reverse:
// either the owner sees this when it fills for the last time before it sleeps, or it is seen asleep here.
func (r *Receiver) tell(taken uint32) {
	r.taken.Store(r.taken.Load() + taken)
	if !r.owner.asleep.Load() {
		r.since = 0
		return
	}
	if r.since += taken; r.since >= r.owner.patience.Load() {
		r.since = 0
		shm.Signal(r.owner.wake)
	}
}

// news is how many chunks were taken since it was asked last, on the owner's worker.
func (r *Receiver) news() int {
	taken := r.taken.Load()
	n := taken - r.seen
	r.seen = taken
	return int(n)
}

// Transmit drops what should have gone to the owner.
func (r *Receiver) Transmit(frames []*frame.Frame, _ *frame.Pool) {
	for _, f := range frames {
		if f != nil {
			r.in.counters.Drop(DropReceiveOnly, 1)
			DropReceiveOnly.Mark(f)
		}
	}
}

// Release has nothing to end.
func (r *Receiver) Release() {}

// Flush has nothing to send.
func (r *Receiver) Flush() {}

// Arm leaves it to the socket's file.
func (r *Receiver) Arm() time.Duration { return dataplane.Forever }

// Pending tells whether a packet is there.
func (r *Receiver) Pending() bool { return r.in.s.Rx.Peek(1) > 0 }

// Disarm has nothing to take back.
func (r *Receiver) Disarm() {}

// Fault is never ours.
func (r *Receiver) Fault(uintptr) bool { return false }

// Close closes the socket, after its worker dropped the receiver, and before the owner is closed. It may sleep: not on a worker.
// Packets that were steered to it from now on are dropped by the XDP program.
func (r *Receiver) Close() error { return r.in.s.shut() }

// Reclaim gives the pool the frames that were left in the receiver's ring, which it ends with, and returns how many those were. On
// the owner's worker, after Close, and before the owner's own Reclaim.
func (r *Receiver) Reclaim(pool *frame.Pool) (n int) {
	p := r.owner
	p.filled -= r.news()
	n = r.in.giveUp(pool)
	ring := &r.in.s.Rx
	for range ring.Len() { // the kernel writes no more: what is there is all
		if ring.Peek(1) == 0 {
			break
		}
		if f, _ := p.s.umem.take(ring.At(0).Addr, r.in.from, true); f != nil {
			pool.Put(f)
			p.filled--
			n++
		}
		ring.Release(1)
	}
	r.in.s.unmap()
	for i, x := range p.receivers {
		if x == r {
			p.receivers = append(p.receivers[:i], p.receivers[i+1:]...)
			break
		}
	}
	p.share()
	return n
}
