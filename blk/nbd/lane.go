package nbd

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/dataplane/guestmem"
	"github.com/shuntio/shunt/dataplane/uring"
	"golang.org/x/sys/unix"
)

// lane is one worker's connection. All of it belongs to that worker, except what is said otherwise.
//
//	Submit ─▶ ready ─ cut ─▶ out ─ transmit ─▶ SENDMSG of headers and guest memory
//	Done ◀─ answered ◀─ replies ◀─ received ◀── RECVMSG into guest memory and the inbox
//
// Each direction has one operation under way at most, so the streams stay in order. Listening costs an operation only while answers are due; that the server
// hangs up meanwhile is told by a poll.
type lane struct {
	table
	replies replies
	store   *Store
	host    blk.Host
	events  blk.Events

	memory  *uring.Memory
	headers []byte // of parts, by their slot
	bounce  []byte // the rest of a write that was withdrawn while it was sent

	// The connection.
	fd       int // -1: none
	file     uring.File
	export   *export
	up       bool // it takes requests
	dropping error
	hung     bool // the server will say no more than it has said
	closed   bool // Close was called

	send, recv, poll    uring.Op
	outgoing, incoming  *uring.Vector
	begun               int // bytes of the first part of out that were sent
	batch               int // parts of out that the send under way has bytes of
	bounced             int // begun, when the first part of out went over to bounce; 0: it has not
	faults              int // sends that ended in a hole of the guest's memory one after the other
	watch, retry, leave uring.Timer
	withdrawn           fifo // tasks to be given back
	moved               int64
	quiet               int // bytes since moved
	refused             bool
	next                *link           // the connection to go over to when nothing is on its way
	nextDone            chan error      // who wanted that
	ctx                 context.Context // of the keeper
	cancel              context.CancelFunc
	opened              bool                   // there was a connection before
	status              atomic.Pointer[status] // for anybody
	barrier             int                    // orphans as the store was told last, those of the last connection until there is another one
	scratch             [4096]byte             // to see whether memory is there
}

// Sizes of a lane.
const (
	// bounceSize is the longest rest of a write that is sent to its end although it was withdrawn; for longer ones the connection is dropped.
	bounceSize = 1 << 20
	// maxBatch is how much one send tries at most: more than sockets take at once.
	maxBatch = 1 << 20
	// pieces is how many buffers a send or receive has at most.
	pieces = 130
	// movement is how many bytes count as a sign of life.
	movement = 64 << 10
	// bigZeroes is what a server zeroes in one command that says it is quick at it, and how much it discards; slowZeroes what it might have to write.
	bigZeroes  = 1 << 30
	slowZeroes = 32 << 20
	// again is when something is tried again for which there was no room, or that other lanes hold back.
	again = time.Millisecond
)

// newLane makes a lane that has no connection yet.
func newLane(s *Store, h blk.Host, e blk.Events) (*lane, error) {
	const headers = (maxParts*requestSize + 4095) &^ 4095
	memory, err := uring.NewMemory(headers + inboxSize + bounceSize)
	if err != nil {
		return nil, fmt.Errorf("memory of an NBD connection: %w", err)
	}
	l := &lane{store: s, host: h, events: e, memory: memory, fd: -1}
	b := memory.Bytes()
	l.headers, l.bounce = b[:headers:headers], b[headers+inboxSize:]
	l.replies = replies{table: &l.table, inbox: b[headers : headers+inboxSize : headers+inboxSize]}
	l.table.open()
	l.send.Handler, l.recv.Handler, l.poll.Handler = l, l, l
	l.watch.Handler, l.retry.Handler, l.leave.Handler = l, l, l
	return l, nil
}

// Submit takes a request.
func (l *lane) Submit(r *blk.Request) bool {
	if !l.up || l.freeTasks.n == 0 {
		l.refused = true
		return false
	}
	t := l.take(r)
	l.translate(t)
	l.enqueue(t)
	return true
}

// translate says how a request is said in NBD.
func (l *lane) translate(t *task) {
	t.most, t.share = l.export.maximum, share
	possible := true
	switch t.r.Op {
	case blk.OpRead:
		t.command = cmdRead
	case blk.OpWrite:
		t.command = cmdWrite
	case blk.OpFlush:
		t.command, possible = cmdFlush, l.export.has(flagFlush)
	case blk.OpDiscard:
		t.command, possible = cmdTrim, l.export.has(flagTrim)
		t.most = bigZeroes
	case blk.OpWriteZeroes:
		t.command, possible = cmdWriteZeroes, l.export.has(flagWriteZeroes)
		t.most = slowZeroes
		if !t.r.Unmap {
			t.flags |= cmdFlagNoHole
		}
		if t.r.Length > slowZeroes && l.export.has(flagFastZero) {
			t.flags |= cmdFlagFastZero
			t.most, t.share = bigZeroes, 1
		}
	}
	if t.r.FUA && t.command != cmdRead && t.command != cmdFlush {
		t.flags |= cmdFlagFUA
		possible = possible && l.export.has(flagFUA)
	}
	switch writes := t.command != cmdRead && t.command != cmdFlush; {
	case writes && l.export.has(flagReadOnly):
		t.worst = blk.Failed
	case !possible:
		t.worst = blk.Unsupported
	}
}

// Flush sends what was submitted.
func (l *lane) Flush() { l.step() }

// Completed hears of the operations.
func (l *lane) Completed(op *uring.Op, res int32, _ uint32) {
	switch op {
	case &l.send:
		l.sent(int(res))
	case &l.recv:
		l.received(int(res))
	default:
		l.hung = res > 0 || l.hung
	}
	l.step()
}

// Expired hears of the timers.
func (l *lane) Expired(t *uring.Timer) {
	if t == &l.watch {
		l.look()
	}
	l.step()
}

// step does whatever there is to do.
func (l *lane) step() {
	for l.withdrawn.n > 0 {
		l.finish(&l.tasks[l.withdrawn.pop()], blk.Withdrawn)
	}
	l.count()
	if l.hung && l.inflight == 0 && l.dropping == nil {
		l.drop(errHungUp)
	}
	if l.dropping != nil {
		if !l.busy() {
			l.dropped()
		}
		return
	}
	if l.fd < 0 {
		return
	}
	l.cut()
	if (l.closed || l.next != nil) && l.inflight == 0 {
		l.disconnect()
	}
	l.transmit()
	l.listen()
	if l.ended > 0 {
		l.ended = 0
		l.moved, l.quiet = l.host.Worker.Now(), 0
		if l.refused && l.up && l.freeTasks.n > 0 {
			l.refused = false
			l.events.Room()
		}
	}
}

// count tells the store how many commands the server may still carry out that were withdrawn.
func (l *lane) count() {
	if l.fd >= 0 && l.dropping == nil && l.orphans != l.barrier {
		l.store.withdrawn.Add(int64(l.orphans - l.barrier))
		l.barrier = l.orphans
	}
}

// busy tells whether an operation is under way.
func (l *lane) busy() bool { return l.send.Busy() || l.recv.Busy() || l.poll.Busy() }

// cut makes parts of what is ready, as far as the window goes. What was withdrawn and may still change the disk comes first: nothing is sent by any lane
// until the server has answered that, or it could overtake what follows.
func (l *lane) cut() {
	if l.ready.n == 0 || l.next != nil || l.closed {
		return
	}
	if l.store.withdrawn.Load() != 0 {
		l.later()
		return
	}
	for l.ready.n > 0 && l.freeParts.n > 0 {
		t := &l.tasks[l.ready.pop()]
		t.ready = false
		l.cutTask(t)
	}
}

// later sees to it that step is called again soon.
func (l *lane) later() {
	if !l.retry.Running() {
		l.host.Ring.Start(&l.retry, again)
	}
}

// cutTask makes parts of one task. Where it must wait for room or answers, what is left of it stays ready or becomes so when a part is answered.
func (l *lane) cutTask(t *task) {
	if t.worst == blk.OK && t.command == cmdFlush {
		l.issue1(t, 0, 0)
		return
	}
	for t.worst == blk.OK && t.next < t.end() && t.parts < t.share && l.freeParts.n > 0 {
		n := uint32(min(t.end()-t.next, uint64(t.most)))
		l.issue1(t, t.next, n)
		t.next += uint64(n)
		if len(t.r.Buffers) > 0 {
			t.start = t.start.forward(t.r.Buffers, int(n))
		}
	}
	if t.parts == 0 || t.next < t.end() {
		l.settle(t)
	}
}

// issue1 puts one command of a task on its way.
func (l *lane) issue1(t *task, offset uint64, n uint32) {
	now := l.host.Worker.Now()
	if l.inflight == 0 {
		l.moved, l.quiet = now, 0
	}
	p := l.issue(t, t.command, t.flags, offset, n, now)
	l.header(p).put(p.flags, p.command, p.cookie, p.offset, p.length)
	if !l.watch.Running() {
		l.host.Ring.Start(&l.watch, l.store.options.Timeout/4)
	}
}

// header is where the header of a part lies.
func (l *lane) header(p *part) request {
	return request(l.headers[int(p.slot)*requestSize:][:requestSize])
}

// transmit begins to send what is out.
func (l *lane) transmit() {
	if l.send.Busy() || l.out.n == 0 {
		return
	}
	l.fill(l.outgoing)
	if !l.host.Ring.Send(&l.send, l.file, l.outgoing, 0) {
		l.batch = 0
		l.later()
	}
}

// fill takes parts into a vector, from where the last send ended. Headers that lie one after the other become one buffer there.
func (l *lane) fill(v *uring.Vector) {
	v.Reset()
	skip := l.begun
	for l.batch = 0; l.batch < l.out.n && v.Len() < maxBatch; skip = 0 {
		p := &l.parts[l.out.at(l.batch)]
		l.batch++
		if skip < requestSize && !v.Add(l.header(p)[skip:]) {
			return
		}
		if p.payload() > 0 && !l.fillPayload(v, p, max(skip-requestSize, 0)) {
			return
		}
	}
}

// fillPayload takes the payload of a write behind what was sent of it; false if that is too much.
func (l *lane) fillPayload(v *uring.Vector, p *part, sent int) bool {
	if l.bounced > 0 && p.slot == l.out.at(0) {
		return v.Add(l.bounce[requestSize+sent-l.bounced : requestSize+int(p.length)-l.bounced])
	}
	buffers := p.task.r.Buffers
	at := p.start.forward(buffers, sent)
	for left := int(p.length) - sent; left > 0; {
		b := buffers[at.buffer][at.offset:]
		b = b[:min(len(b), left)]
		if !v.Add(b) {
			return false
		}
		left -= len(b)
		at = place{buffer: at.buffer + 1}
	}
	return true
}

// sent hears how a send ended.
func (l *lane) sent(n int) {
	switch {
	case n > 0:
		l.faults = 0
		l.stir(n)
		l.advance(n)
	case n == -int(unix.EFAULT):
		l.unreadable()
	case n == -int(unix.ECANCELED), n == -int(unix.EINTR), n == -int(unix.EAGAIN):
	case n == 0:
		l.drop(errHungUp)
	default:
		l.drop(fmt.Errorf("send: %w", unix.Errno(-n)))
	}
	l.batch = 0
	l.released()
}

// advance takes n bytes off the front of out.
func (l *lane) advance(n int) {
	for n > 0 && l.out.n > 0 {
		p := &l.parts[l.out.at(0)]
		left := requestSize + p.payload() - l.begun
		if n < left {
			l.begun += n
			return
		}
		n -= left
		l.out.pop()
		l.begun, l.bounced = 0, 0
		p.waiting = false
		p.since = l.host.Worker.Now()
		if p.command == cmdDisc {
			l.free(p)
			if l.next != nil {
				l.drop(errReplaced)
			} else {
				l.drop(errClosed)
			}
			return
		}
		if p.replied {
			l.answered(p)
		}
	}
}

// unreadable finds out whose memory a send could not read, and fails those requests. A guest that plays with its memory so that nobody can be found loses all
// its writes of this batch.
func (l *lane) unreadable() {
	l.faults++
	for i := min(l.batch, l.out.n) - 1; i >= 0; i-- {
		p := &l.parts[l.out.at(i)]
		if p.payload() == 0 || p.task == nil || l.faults == 1 && l.readable(p) {
			continue
		}
		p.task.worst = blk.Failed
		if i == 0 && l.begun > 0 {
			l.drop(errors.New("the guest took away memory in the midst of a write"))
			return
		}
		t := p.task
		l.forget(p)
		l.settle(t)
	}
}

// readable tells whether all of a write's payload is there.
func (l *lane) readable(p *part) bool {
	at := p.start
	for left := int(p.length); left > 0; {
		b := p.task.r.Buffers[at.buffer][at.offset:]
		b = b[:min(len(b), left, len(l.scratch))]
		if !guestmem.Copy(l.scratch[:], b) {
			return false
		}
		left -= len(b)
		at = at.forward(p.task.r.Buffers, len(b))
	}
	return true
}

// listen begins to receive, while answers are due.
func (l *lane) listen() {
	if l.dropping != nil {
		return
	}
	if !l.hung && !l.poll.Busy() && !l.host.Ring.PollAdd(&l.poll, l.file, unix.POLLRDHUP) {
		l.later()
	}
	if l.recv.Busy() || l.inflight == 0 {
		return
	}
	l.incoming.Reset()
	l.replies.aim(l.incoming)
	if !l.host.Ring.Recv(&l.recv, l.file, l.incoming, 0) {
		l.later()
	}
}

// received hears how a receive ended.
func (l *lane) received(n int) {
	switch {
	case n > 0:
		l.stir(n)
		if err := l.replies.arrived(n); err != nil {
			l.drop(err)
		}
	case n == -int(unix.EFAULT):
		l.replies.fault()
	case n == -int(unix.ECANCELED), n == -int(unix.EINTR), n == -int(unix.EAGAIN):
	case n == 0:
		l.drop(errHungUp)
	default:
		l.drop(fmt.Errorf("receive: %w", unix.Errno(-n)))
	}
	l.replies.aimed = 0
	l.released()
}

// stir notes bytes that moved.
func (l *lane) stir(n int) {
	if l.quiet += n; l.quiet >= movement {
		l.moved, l.quiet = l.host.Worker.Now(), 0
	}
}

// look sees from time to time whether the server still lives.
func (l *lane) look() {
	if l.inflight == 0 || l.dropping != nil || l.fd < 0 {
		return
	}
	now, limit := l.host.Worker.Now(), l.store.options.Timeout
	if now-l.moved > int64(limit) {
		l.drop(fmt.Errorf("the server does not answer for %v", limit))
		return
	}
	for i := range l.parts {
		if p := &l.parts[i]; p.used && !p.waiting && now-p.since > int64(patience*limit) {
			l.drop(fmt.Errorf("the server does not answer a %s for %v", commandName(p.command), patience*limit))
			return
		}
	}
	l.host.Ring.Start(&l.watch, limit/4)
}
