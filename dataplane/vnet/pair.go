package vnet

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/guestmem"
	"github.com/shuntio/shunt/dataplane/offload"
	"github.com/shuntio/shunt/dataplane/shm"
	"github.com/shuntio/shunt/dataplane/virtq"
)

// Pair is one pair of queues: a dataplane.Port.
type Pair struct {
	device   *Device
	link     *dataplane.Link
	counters *dataplane.Counters

	// owner is the worker; written while it and the next one stand still.
	owner   atomic.Pointer[dataplane.Worker]
	running atomic.Uint32         // which queues run: bits by queue; written by the worker
	why     atomic.Pointer[error] // why the pair is out of service; nil: it isn't
	calls   atomic.Uint64         // notifications sent to the guest

	// The worker's, and between two rounds the control side's.
	memory *guestmem.Map // of the guest; nil before the table came
	log    *guestmem.Log // for writes to it; nil: nobody wants to know
	tx     queue         // transmitq: the guest fills it
	rx     queue         // receiveq: we fill it
	offers offers        // what the features let the guest ask for, and us
	bodies [][]byte      // what received frames borrow until Release
	taking int           // chains that Receive has taken and not counted yet: what a fault there must count

	announces  [maxAnnounces][6]byte // addresses to be announced (announce.go)
	announcing int

	coalesce  bool
	coalescer offload.Coalescer
	uncut     []*frame.Frame    // of a vector: those that are to be cut since they came
	absorbed  int               // frames of it that have become part of others
	placed    [maxChains]placed // of the frame being put into the receiveq
}

// queue is one running virtqueue.
type queue struct {
	ring   *virtq.Device // nil: stopped
	chain  *virtq.Chain
	kick   int    // eventfd or -1; watched by the worker
	call   int    // eventfd or -1
	broken int    // eventfd or -1: signalled when the ring has failed
	want   bool   // the driver is to be called at the end of the round
	polled bool   // the driver does not kick
	base   uint32 // where it stood when it was stopped
	packed bool
	place  *place // where its place is kept; nil: in the ring itself, or nowhere
	log    uint64 // guest address of what we write beside a ring's descriptors, for the dirty log
}

// Queues of a pair (virtio 1.2, 5.1.2: receiveq1, transmitq1, receiveq2, ...).
const (
	receiveq  = 0
	transmitq = 1
)

func newPair(d *Device, o PairOptions, coalesce bool) *Pair {
	p := &Pair{
		device: d, link: o.Link, counters: o.Link.Counters, coalesce: coalesce,
		bodies: make([][]byte, 0, dataplane.Quantum*maxPieces), uncut: make([]*frame.Frame, 0, dataplane.Quantum),
		tx: stopped(nil, 0), rx: stopped(nil, 0),
	}
	p.owner.Store(o.Worker)
	p.offers = offersOf(0)
	return p
}

func stopped(chain *virtq.Chain, base uint32) queue {
	return queue{kick: -1, call: -1, broken: -1, chain: chain, base: base}
}

// on runs fn on the pair's worker between two rounds. Where that touches guest memory that is gone, the pair goes out of service, and that is
// the error: also of a pair that its worker does not poll.
func (p *Pair) on(fn func() error) (err error) {
	p.owner.Load().Do(func() {
		defer p.unreadable(&err)
		err = fn()
	})
	return err
}

func (p *Pair) unreadable(err *error) {
	r := recover()
	if r == nil {
		return
	}
	address, ok := dataplane.FaultAddress(r)
	if !ok || !p.Fault(address) {
		panic(r)
	}
	*err = *p.why.Load()
}

// Fault implements dataplane.Port: the guest took memory away under us. All pairs that share the memory and the worker end, since the worker
// cannot tell which of them touched it; those of other workers will see for themselves.
func (p *Pair) Fault(address uintptr) bool {
	what := ""
	switch {
	case p.memory != nil && p.memory.Contains(address):
		what = "the guest's memory"
	case p.log.Contains(address):
		what = "the dirty log of the guest's migration"
	default:
		return false
	}
	why := fmt.Errorf("%s went away at %#x while in use", what, address)
	p.forgo()
	for _, sibling := range p.device.pairs {
		if sibling != p && sibling.owner.Load() == p.owner.Load() && sibling.running.Load() != 0 {
			sibling.forgo()
			sibling.end(why)
		}
	}
	p.fail(why)
	return true
}

// forgo ends marking without a look at the log: it may be what is gone, and with memory gone there is nothing to migrate.
func (p *Pair) forgo() {
	for _, q := range []*queue{&p.tx, &p.rx} {
		if q.ring != nil {
			q.ring.LoseLog()
		}
	}
}

// fail takes the pair out of service: its rings are not looked at again until they are started anew.
func (p *Pair) fail(why error) {
	p.end(why)
	if p.device.failed != nil {
		p.device.failed(why)
	}
}

func (p *Pair) end(why error) {
	p.counters.RxPackets.Add(uint64(p.taking))
	p.taking = 0
	for _, q := range []*queue{&p.tx, &p.rx} {
		if q.ring != nil && q.broken >= 0 {
			shm.Signal(q.broken)
		}
		p.halt(q)
	}
	p.bodies = p.bodies[:0]
	p.why.Store(&why)
}

// halt stops a queue where it stands. What was taken from it and not shown to the driver as used is the driver's again.
func (p *Pair) halt(q *queue) {
	if q.kick >= 0 {
		p.owner.Load().Unwatch(q.kick)
	}
	base := q.base
	if q.ring != nil {
		q.ring.Rewind()
		if base = uint32(q.ring.Base()); q.packed {
			base |= uint32(q.ring.UsedBase()) << 16
		}
	}
	*q = stopped(q.chain, base)
	p.tell()
}

// tell publishes which queues run.
func (p *Pair) tell() {
	var bits uint32
	if p.rx.ring != nil {
		bits |= 1 << receiveq
	}
	if p.tx.ring != nil {
		bits |= 1 << transmitq
	}
	p.running.Store(bits)
	p.link.Ready.Store(p.rx.ring != nil)
}

// publish shows the driver what was completed.
func (q *queue) publish() {
	if q.place != nil {
		q.place.note(q.ring)
	}
	if q.ring.Publish() {
		q.want = true
	}
}

// Flush calls the guest, once a round for each queue that wants it.
func (p *Pair) Flush() {
	if p.tx.want {
		p.notify(&p.tx)
	}
	if p.rx.want {
		p.notify(&p.rx)
	}
}

// notify writes the queue's call eventfd. It is non-blocking; full means that the guest has a call it has not looked at.
func (p *Pair) notify(q *queue) {
	q.want = false
	if q.call >= 0 {
		p.calls.Add(1)
		shm.Signal(q.call)
	}
}

// pollInterval is how long the worker sleeps at most while a driver does not kick (vhost-user: a ring without a kick descriptor). It costs
// 2000 looks a second, and the frame that begins a burst up to half a millisecond.
const pollInterval = 500 * time.Microsecond

// Arm asks the guest to kick for frames it sends. Receive buffers are looked for when there is a frame to put in.
func (p *Pair) Arm() time.Duration {
	q := &p.tx
	if q.ring == nil {
		return dataplane.Forever
	}
	q.ring.Arm()
	if q.polled {
		return pollInterval
	}
	return dataplane.Forever
}

// Pending tells whether there are frames for Receive.
func (p *Pair) Pending() bool {
	return p.announcing > 0 || p.tx.ring != nil && p.tx.ring.Pending()
}

// Disarm asks the guest not to kick.
func (p *Pair) Disarm() {
	if p.tx.ring != nil {
		p.tx.ring.Disarm()
	}
}

// maxPieces bounds the buffers one frame of a guest may lie in.
const maxPieces = frame.MaxBody
