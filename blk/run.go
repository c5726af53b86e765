package blk

import (
	"fmt"

	"github.com/shuntio/shunt/dataplane/shm"
	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/virtq"
)

// run is a ring from StartVring to StopVring, with a place for every request that it can hold. It outlives the ring only where a request could not be
// ended in time: then it waits for that, and nobody looks at what it says.
//
//	take ─▶ slot under way ─▶ gate ─▶ Done ─▶ finish ─┬▶ answer: status, Complete ─▶ published once a round
//	                           ▲                      └▶ another range
//	                           └──────────────────────┘
type run struct {
	queue   *Queue
	ring    *virtq.Device
	notes   inflight
	area    *vhostuser.Inflight // the front-end's; nil: none
	slots   []slot              // by head
	spare   *virtq.Chain        // for the next one; it changes places with the slot's
	done    []uint16            // requests that ended since the last Flush, by head
	used    []uint16            // chains that are completed and not published
	out     int                 // requests at the gate
	shown   int                 // out as QueueStats has it
	tables  virtq.Layout
	packed  bool
	through bool // the driver cannot ask for a flush

	legacy  *legacy // what the next process is to know
	marks   marks   // as it has them
	doubt   bool    // as it has it
	resumed int     // chains to be taken that were under way before
	foreign bool    // in a process that is dead

	paused   bool // nothing is taken
	calling  bool // requests are called back: what ends goes no further
	failed   bool // the guest broke the ring or took its memory away: nothing there is touched
	orphaned bool // the queue has forgotten it
	settled  chan struct{}

	kick, call, broken int    // eventfds or -1
	want               bool   // the driver is to be called at the end of the round
	log                uint64 // guest address of the used ring, for the dirty log
}

// state is that of a slot.
type state uint8

const (
	idle      state = iota
	atGate          // the store has it, or will
	withdrawn       // it came back from there, undone as far as anybody knows
	answered        // its chain is completed
)

// maxBuffers is how many views a chain has: header and status in single bytes, and some segments that cross from one memory region into the next.
const maxBuffers = headerBytes + SegMax + 1 + 17

func newRun(q *Queue, size int) *run {
	r := &run{
		queue: q, slots: make([]slot, size), spare: virtq.NewChain(maxBuffers), done: make([]uint16, 0, size), used: make([]uint16, 0, size),
	}
	for i := range r.slots {
		r.slots[i].chain = virtq.NewChain(maxBuffers)
	}
	r.clear()
	return r
}

// clear makes the run one that nothing was ever taken in, and that holds no view of any memory.
func (r *run) clear() {
	for i := range r.slots {
		s := &r.slots[i]
		s.chain.Clear()
		*s = slot{run: r, chain: s.chain}
		s.Handler = s
	}
	r.spare.Clear()
	*r = run{
		queue: r.queue, slots: r.slots, spare: r.spare, done: r.done[:0], used: r.used[:0], kick: -1, call: -1, broken: -1,
		// The first call is due at once: a process before us may have been killed between publishing used chains and telling of them.
		want: true,
	}
}

// head names the slot.
func (s *slot) head() uint16 { return s.chain.Head }

// take takes the next chain.
func (r *run) take(l *limits, through bool) error {
	c, at := r.spare, r.ring.Base()
	if err := r.ring.Next(c); err != nil {
		return err
	}
	s := &r.slots[c.Head]
	if s.state != idle {
		return fmt.Errorf("%w: %d is under way", virtq.ErrHead, c.Head)
	}
	s.chain, r.spare = c, s.chain
	s.state = answered
	r.notes.took(c, at)
	verdict, err := s.parse(l, through)
	if err != nil {
		return err
	}
	if r.resumed > 0 {
		r.resumed--
		if verdict == handOn && r.foreign && s.Op.writes() {
			r.queue.device.fence()
		}
	}
	if verdict == handOn {
		if s.After = 0; s.Op.writes() {
			s.After = r.queue.device.fenced.Load()
		}
		r.queue.credit -= int(s.Length)
		r.submit(s)
		return nil
	}
	stats := &r.queue.stats
	stats.Answered.Add(1)
	switch verdict {
	case statusIOErr:
		stats.Refused.Add(1)
	case statusUnsup:
		stats.Unsupported.Add(1)
	}
	r.answer(s, verdict)
	return nil
}

func (r *run) submit(s *slot) {
	s.state, s.FUA, s.lent = atGate, s.stable, true
	r.out++
	r.queue.gate.Submit(&s.Request)
}

// again submits a request that came back, or what is left of it.
func (r *run) again(s *slot) {
	if s.ended == Withdrawn {
		r.queue.stats.Again.Add(1)
	}
	r.submit(s)
}

// Done implements Handler. It touches nothing but the run.
func (s *slot) Done(_ *Request, o Outcome) {
	r := s.run
	r.out--
	s.ended, s.lent = o, false
	if s.keeps {
		s.keeps = false
		r.queue.device.memory.Release()
	}
	if r.orphaned {
		if r.out == 0 {
			r.queue.device.left.Add(-1)
			r.queue.device.memory.Release()
		}
		return
	}
	r.done = append(r.done, s.head())
}

// finish goes on with requests that ended, and shows the driver what is completed.
func (r *run) finish() {
	if r.failed {
		r.done = r.done[:0]
		r.settle()
		return
	}
	for _, head := range r.done {
		r.goOn(&r.slots[head])
	}
	r.done = r.done[:0]
	r.bequeath()
	if len(r.used) > 0 {
		r.publish()
	}
	r.settle()
}

func (r *run) publish() {
	if r.notes.publish(r.ring, r.used) {
		r.want = true
	}
	for _, head := range r.used {
		r.slots[head].state = idle
	}
	r.used = r.used[:0]
}

// settle tells who waits for it that the gate has nothing.
func (r *run) settle() {
	if r.settled != nil && r.out == 0 {
		close(r.settled)
		r.settled = nil
	}
}

// goOn is for a request that ended: it has another range, or is answered, or waits to be given back.
func (r *run) goOn(s *slot) {
	verdict := statusIOErr
	switch s.ended {
	case OK:
		if more := s.more(); more && !r.calling {
			r.submit(s)
			return
		} else if more {
			s.state = withdrawn
			return
		}
		verdict = statusOK
	case Unsupported:
		verdict = statusUnsup
	case Withdrawn:
		if s.state = withdrawn; !r.calling && !s.gone {
			r.again(s) // it came too late for a pause that is over
		}
		if r.calling || !s.gone {
			return
		}
	}
	r.answer(s, verdict)
}

// more makes the request what is still to be done.
func (s *slot) more() bool {
	if s.at++; s.at < s.n {
		s.span()
		return true
	}
	return false
}

// answer ends a chain. The driver is told how much of its buffers was written from their beginning on (virtio 1.2, 2.7.8.2): all of it where a request goes well, and nothing
// where a read fails, though the status behind was.
func (r *run) answer(s *slot, verdict status) {
	s.state = answered
	s.status[0] = byte(verdict)
	written := uint32(0)
	if verdict == statusOK {
		written = s.filled
	}
	if written == s.room-1 {
		written++
	}
	r.ring.Complete(s.head(), written)
	r.used = append(r.used, s.head())
}

// notify calls the driver.
func (r *run) notify() {
	r.want = false
	if r.call >= 0 && !r.failed {
		r.queue.stats.Calls.Add(1)
		shm.Signal(r.call)
	}
}

// fail ends everything that touches the guest. What is under way there is no longer anybody's.
func (r *run) fail() {
	if r.failed {
		return
	}
	r.failed, r.paused, r.calling, r.want = true, true, true, false
	if r.broken >= 0 {
		shm.Signal(r.broken)
	}
	r.unwatch()
}

func (r *run) unwatch() {
	if r.kick >= 0 {
		r.queue.worker.Unwatch(r.kick)
		r.kick = -1
	}
}

// writing tells whether a write was taken that is not answered.
func (r *run) writing() bool {
	for i := range r.slots {
		if s := &r.slots[i]; (s.state == atGate || s.state == withdrawn) && s.Op.writes() {
			return true
		}
	}
	return false
}
