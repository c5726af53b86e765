package driver

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/shuntio/shunt/dataplane/shm"
	"github.com/shuntio/shunt/dataplane/virtq"
	"golang.org/x/sys/unix"
)

var (
	// ErrFull: no descriptor or slot is free. Poll makes room.
	ErrFull = errors.New("queue is full")
	// ErrLong: a request has more segments or ranges than the disk was made for.
	ErrLong = errors.New("request has more segments or ranges than Options allow")
	// ErrLedger: the device answered what it was not asked, twice, or without a status.
	ErrLedger = errors.New("answers do not match requests")
	// ErrGone: the back-end is away, for good or for now.
	ErrGone = errors.New("back-end is gone")
)

// Queue is the driver's side of one virtqueue. One goroutine at a time uses it:
//
//	Submit, Submit, Kick ─▶ … ─▶ Poll, Poll, or Wait when there is nothing else to do
//
// Nothing is allocated on the way. The lock is taken by nobody else unless a back-end has died and the rings begin anew.
type Queue struct {
	disk   *Disk
	index  int
	layout virtq.Layout

	mu    sync.Mutex
	ring  *virtq.Driver
	slots []slot
	free  []uint16 // slots not in use
	of    []uint16 // a chain's slot, by its head
	early []uint16 // slots that were answered when the rings began anew
	under int
	age   uint64
	err   error

	submitted, completed, kicks, sleeps uint64

	readable, writable []virtq.Buffer // of the chain that is being made
	kick, call, wake   int            // eventfds; wake is our own
	files              []unix.PollFd
}

// none is no slot.
const none = 0xffff

func newQueue(d *Disk, index int, layout virtq.Layout, slots Buffer) (*Queue, error) {
	o := &d.options
	q := &Queue{disk: d, index: index, layout: layout, kick: -1, call: -1, wake: -1}
	q.slots, q.free, q.of = make([]slot, o.Size), make([]uint16, 0, o.Size), make([]uint16, o.Size)
	q.early = make([]uint16, 0, o.Size)
	n := o.slotBytes()
	for i := range q.slots {
		q.slots[i] = slot{bytes: slots.Bytes[i*n:][:n:n], addr: slots.Addr + uint64(i*n)}
		q.free = append(q.free, uint16(o.Size-1-i))
	}
	q.readable, q.writable = make([]virtq.Buffer, 0, o.Segments+headerBytes+1), make([]virtq.Buffer, 0, o.Segments+1)
	for _, fd := range []*int{&q.kick, &q.call, &q.wake} {
		var err error
		if *fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
			return q, fmt.Errorf("eventfd: %w", err)
		}
	}
	q.files = []unix.PollFd{{Fd: int32(q.call), Events: unix.POLLIN}, {Fd: int32(q.wake), Events: unix.POLLIN}}
	return q, q.begin()
}

// begin makes the ring a fresh one.
func (q *Queue) begin() (err error) {
	o := &q.disk.options
	q.ring, err = virtq.NewDriver(virtq.DriverOptions{Layout: q.layout, Size: o.Size, Packed: o.Packed, EventIdx: o.EventIdx})
	if err == nil {
		q.ring.Disarm()
	}
	for i := range q.of {
		q.of[i] = none
	}
	return err
}

// Submit puts a request into the ring; the device sees it after Kick.
func (q *Queue) Submit(r *Request) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	o := &q.disk.options
	switch {
	case q.err != nil:
		return q.err
	case len(r.Data) > o.Segments || len(r.Ranges) > o.Ranges:
		return ErrLong
	case len(q.free) == 0:
		return ErrFull
	}
	at := q.free[len(q.free)-1]
	s := &q.slots[at]
	s.request, s.age = r, q.age
	if !q.offer(at) {
		s.request = nil
		return ErrFull
	}
	q.free = q.free[:len(q.free)-1]
	q.age++
	q.under++
	q.submitted++
	if o.Clock {
		r.Began = Now()
	}
	return nil
}

// offer adds a slot's request to the ring.
func (q *Queue) offer(at uint16) bool {
	s := &q.slots[at]
	q.compose(s)
	var head uint16
	var ok bool
	if q.disk.options.Indirect {
		table := q.tableAt()
		head, ok = q.ring.AddIndirect(s.bytes[table:], s.addr+uint64(table), q.readable, q.writable)
	} else {
		head, ok = q.ring.Add(q.readable, q.writable)
	}
	if ok {
		q.of[head] = at
	}
	return ok
}

// Kick shows the device what was submitted, and wakes it if it sleeps.
func (q *Queue) Kick() {
	q.mu.Lock()
	if q.ring.Publish() {
		q.kicks++
		shm.Signal(q.kick)
	}
	q.mu.Unlock()
}

// Poll takes back requests that were answered, as many as done has room for, and tells how many. An error is the end of the disk.
func (q *Queue) Poll(done []*Request) (n int, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for n < len(done) && len(q.early) > 0 {
		at := q.early[len(q.early)-1]
		q.early = q.early[:len(q.early)-1]
		done[n] = q.finish(at)
		n++
	}
	for n < len(done) && q.err == nil {
		at, ok := q.take()
		if !ok {
			break
		}
		done[n] = q.finish(at)
		n++
	}
	return n, q.err
}

// take takes one answer from the ring, and checks it.
func (q *Queue) take() (at uint16, ok bool) {
	head, n, ok, err := q.ring.Used()
	if err != nil {
		q.err = fmt.Errorf("queue %d: %w: %w", q.index, ErrLedger, err)
	}
	if !ok || err != nil {
		return 0, false
	}
	at, q.of[head] = q.of[head], none
	s := &q.slots[at]
	r := s.request
	r.Status, r.Written = Status(s.bytes[statusAt]), n
	if r.Status == unanswered {
		q.err = fmt.Errorf("queue %d: %w: head %d (%v of sector %d) came back without a status", q.index, ErrLedger, head, r.Op, r.Sector)
		return 0, false
	}
	return at, true
}

// finish ends a slot.
func (q *Queue) finish(at uint16) *Request {
	s := &q.slots[at]
	r := s.request
	s.request = nil
	q.free = append(q.free, at)
	q.under--
	q.completed++
	if q.disk.options.Clock {
		r.Ended = Now()
	}
	return r
}

// Wait sleeps until Poll has something to say, for the timeout at most; negative: without end. It kicks first. It reports false when the time is over.
func (q *Queue) Wait(timeout time.Duration) bool {
	q.Kick()
	q.mu.Lock()
	q.ring.Arm()
	shm.Fence() // the wish to be called is seen before we look again
	ready := len(q.early) > 0 || q.err != nil || q.ring.Pending()
	q.sleeps++
	q.mu.Unlock()
	if !ready {
		ready = q.sleep(timeout)
	}
	q.mu.Lock()
	q.ring.Disarm()
	q.mu.Unlock()
	return ready
}

// sleep is until either eventfd is signalled.
func (q *Queue) sleep(timeout time.Duration) bool {
	end := time.Now().Add(timeout)
	for {
		ms := -1
		if timeout >= 0 {
			ms = int(max(time.Until(end)+time.Millisecond-1, 0) / time.Millisecond)
		}
		n, err := unix.Poll(q.files, ms)
		if err == unix.EINTR {
			continue
		}
		if n > 0 {
			shm.Drain(q.call)
			shm.Drain(q.wake)
		}
		return n > 0
	}
}

// renew begins the ring anew and offers what is under way again. What was answered already is kept for Poll.
func (q *Queue) renew() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.err == nil {
		at, ok := q.take()
		if !ok {
			break
		}
		q.early = append(q.early, at)
	}
	if q.err != nil {
		return q.err
	}
	again := make([]uint16, 0, len(q.slots))
	for i := range q.slots {
		if q.slots[i].request != nil && !slices.Contains(q.early, uint16(i)) {
			again = append(again, uint16(i))
		}
	}
	slices.SortFunc(again, func(a, b uint16) int { return int(int64(q.slots[a].age - q.slots[b].age)) })
	if err := q.begin(); err != nil {
		return err
	}
	for _, at := range again {
		if !q.offer(at) {
			return fmt.Errorf("queue %d: %w when it began anew", q.index, ErrFull)
		}
	}
	shm.Signal(q.wake)
	return nil
}

// fail ends the queue.
func (q *Queue) fail(err error) {
	q.mu.Lock()
	if q.err == nil {
		q.err = err
	}
	q.mu.Unlock()
	shm.Signal(q.wake)
}

// Raw is where the ring lies and how the two sides wake each other, for those who write to it past this package: they must not Submit.
func (q *Queue) Raw() (l virtq.Layout, kick, call int) { return q.layout, q.kick, q.call }

// Room is how many more requests can be submitted, if there are descriptors for them.
func (q *Queue) Room() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.free)
}

// Under is how many requests are under way.
func (q *Queue) Under() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.under
}

// QueueStats are what a queue has counted. Kicks are signals sent, Sleeps how often Wait was called.
type QueueStats struct{ Submitted, Completed, Kicks, Sleeps uint64 }

// Stats are the counts.
func (q *Queue) Stats() QueueStats {
	q.mu.Lock()
	defer q.mu.Unlock()
	return QueueStats{q.submitted, q.completed, q.kicks, q.sleeps}
}

// Stuck says in one sentence where a queue stands that does not move: who has to do what.
func (q *Queue) Stuck() string {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ring.Pending() {
		return fmt.Sprintf("queue %d: %d under way, and answers lie in the used ring: the device did not signal call", q.index, q.under)
	}
	return fmt.Sprintf("queue %d: %d under way, none answered; %d kicks were sent", q.index, q.under, q.kicks)
}

func (q *Queue) close() {
	for _, fd := range []*int{&q.kick, &q.call, &q.wake} {
		if *fd >= 0 {
			_ = unix.Close(*fd)
			*fd = -1
		}
	}
}

// Now is a clock in nanoseconds, for what Options.Clock measures.
func Now() int64 { return int64(time.Since(epoch)) }

var epoch = time.Now()
