package blk

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/guestmem"
	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/virtq"
)

// Queue is one virtqueue of a disk: a dataplane.Source, polled by one worker.
//
//	Poll    chains ─▶ run.take: noted as under way, parsed ─▶ the gate, or answered at once
//	Done    a request ended: remembered, nothing more; the lane may be in the middle of its own work
//	Flush   ended requests go on or are answered: status ─▶ used ring, once ─▶ call; then the gate's own Flush
//
// Guest memory is touched within Poll and Flush alone, which contain the fault if it is gone.
type Queue struct {
	device *Device
	index  int
	worker *dataplane.Worker
	gate   gate
	credit int // bytes this queue may still begin; below zero what it has begun too many

	why   atomic.Pointer[error] // why the queue is out of service; nil: it isn't
	runs  atomic.Bool           // its ring is started
	stats QueueStats

	// The worker's, and between two rounds the control side's.
	run    *run          // nil: stopped
	rest   *run          // the last one, to be used again; nil: it waits for its requests, or there was none
	base   uint32        // where the ring stood when it was stopped
	given  int           // chains that it gave back then
	memory *guestmem.Map // of the guest; nil before the table came
	log    *guestmem.Log // for writes to it; nil: nobody wants to know

	opening *vhostuser.Inflight // an area that is looked at and no run has yet
}

var _ dataplane.Source = (*Queue)(nil)

// gate is where a queue's requests go: a Gate.
type gate interface {
	// Submit takes a request. Done follows, not within the call.
	Submit(r *Request)
	// Flush ends a round.
	Flush()
	// Withdraw has every request that was submitted end soon.
	Withdraw()
	// Busy is how many requests have not ended.
	Busy() int
	// Marks are what a successor has to know of writes, and Inherit takes over those of a process before this one: see legacy.
	Marks() marks
	Inherit(lost bool)
}

// QueueStats are counters of a queue, written by its worker and read by anybody. What went to the store the Volume counts.
type QueueStats struct {
	// Chains counts those taken; Answered those of them that ended here, without the store: identity, an error in the request, nothing to do.
	Chains, Answered atomic.Uint64
	// Refused counts requests that were wrong (IOERR), Unsupported those that the device does not know (UNSUPP), without the store's word.
	Refused, Unsupported atomic.Uint64
	// Resumed counts chains that a dead process had under way, GivenBack those that were under way when the ring was stopped.
	Resumed, GivenBack atomic.Uint64
	// Again counts requests that the store was asked back and was given once more, as their ring went on: the Volume counts each of them twice.
	Again atomic.Uint64
	// Calls counts notifications sent to the guest.
	Calls atomic.Uint64
	// UnderWay is how many requests the store has, or waits for.
	UnderWay atomic.Int64
}

// What a queue begins in a round, at most. The bytes are shared fairly by debt: a request longer than what is left is begun, and the next rounds begin less.
const (
	quantum      = 64
	quantumBytes = 4 << 20
)

// Poll takes what the driver has made available.
func (q *Queue) Poll() (n int) {
	r := q.run
	if r == nil || r.paused || q.waits() {
		return 0
	}
	defer q.contain()
	if q.credit = min(q.credit+quantumBytes, quantumBytes); q.credit <= 0 {
		return 0
	}
	limits, through := q.device.disk.Load(), r.through || q.device.writeThrough.Load()
	for n < quantum && q.credit > 0 {
		chains, err := r.ring.Available()
		if err == nil && chains == 0 {
			break
		}
		if err == nil {
			if n%virtq.HintEvery == 0 && chains > 1 {
				r.ring.Hint(quantum - n)
			}
			err = r.take(limits, through)
		}
		if err != nil {
			q.fail(fmt.Errorf("ring %d: %w", q.index, err))
			break
		}
		n++
	}
	if n > 0 {
		q.stats.Chains.Store(q.stats.Chains.Load() + uint64(n))
	}
	if r.doubt && !r.failed {
		r.believe()
	}
	return n
}

// Flush ends a round.
func (q *Queue) Flush() {
	if r := q.run; r != nil {
		q.finish(r)
	}
	q.gate.Flush()
}

func (q *Queue) finish(r *run) {
	defer q.contain()
	r.finish()
	if r.out != r.shown {
		r.shown = r.out
		q.stats.UnderWay.Store(int64(r.out))
	}
	if r.want {
		r.notify()
	}
}

// pollInterval is how long the worker sleeps at most while a driver does not kick (vhost-user: a ring without a kick descriptor).
const pollInterval = 500 * time.Microsecond

// Arm asks the driver to kick.
func (q *Queue) Arm() time.Duration {
	r := q.run
	switch {
	case r == nil || r.paused:
		return dataplane.Forever
	case q.waits():
		return pollInterval
	}
	defer q.contain()
	r.ring.Arm()
	if r.kick < 0 {
		return pollInterval
	}
	return dataplane.Forever
}

// Pending tells whether there is anything for Poll or Flush.
func (q *Queue) Pending() bool {
	r := q.run
	if r == nil {
		return false
	}
	if len(r.done) > 0 {
		return true
	}
	if r.paused || q.waits() {
		return false
	}
	defer q.contain()
	return r.ring.Pending()
}

// Disarm asks the driver not to kick.
func (q *Queue) Disarm() {
	r := q.run
	if r == nil || r.paused {
		return
	}
	defer q.contain()
	r.ring.Disarm()
}

// waits tells whether a ring that was stopped has left requests with the store. They may still be done, behind those that are taken now: an old write over a newer
// one, an old read into a buffer that has another use. So nothing is taken until they have ended.
func (q *Queue) waits() bool { return q.device.left.Load() > 0 }

// Stats may be read by anybody.
func (q *Queue) Stats() *QueueStats { return &q.stats }

// Worker is the one that polls the queue.
func (q *Queue) Worker() *dataplane.Worker { return q.worker }

// contain is deferred around everything that touches memory shared with the guest, as in dataplane.Worker: a fault there is the guest's doing and ends this
// device; one elsewhere is ours, and goes on.
func (q *Queue) contain() {
	r := recover()
	if r == nil {
		return
	}
	if address, ok := dataplane.FaultAddress(r); !ok || !q.fault(address) {
		panic(r)
	}
	q.worker.Stats().Faults.Add(1)
}

// fault takes all queues of the device that share this worker out of service if the address is in memory that the front-end gave. Those of other workers will
// see for themselves.
func (q *Queue) fault(address uintptr) bool {
	what := ""
	switch {
	case q.memory != nil && q.memory.Contains(address):
		what = "the guest's memory"
	case q.log.Contains(address):
		what = "the dirty log of the guest's migration"
	case q.run != nil && q.run.area.Contains(address), q.opening.Contains(address):
		q.opening = nil
		what = "the area of requests in flight"
	default:
		return false
	}
	why := fmt.Errorf("%s went away at %#x while in use", what, address)
	for _, sibling := range q.device.queues {
		if sibling.worker == q.worker && sibling.run != nil {
			sibling.run.ring.LoseLog() // it may be what is gone, and with memory gone there is nothing to migrate
			sibling.end(why)
		}
	}
	if q.device.failed != nil {
		q.device.failed(why)
	}
	return true
}

// fail takes the queue out of service: its ring is not looked at again until it is started anew.
func (q *Queue) fail(why error) {
	q.end(why)
	if q.device.failed != nil {
		q.device.failed(why)
	}
}

func (q *Queue) end(why error) {
	q.why.Store(&why)
	q.run.fail()
	q.gate.Withdraw()
}
