package nbd

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/dataplane/uring"
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

	memory  *uring.Memory // of what follows, and of replies.inbox
	headers []byte        // of parts, by their slot
	bounce  []byte        // the rest of a write that was withdrawn while it was sent

	// The connection.
	fd       int // -1: none
	file     uring.File
	export   *export
	behind   *pump // stands behind fd; nil: nothing does
	up       bool  // it takes requests
	dropping error // it is given up; nil: it is not
	hung     bool  // the server will say no more than it has said
	closed   bool  // Close was called
	next     *link // the connection to go over to when nothing is on its way
	nextDone chan error

	// What is under way on it.
	send, recv, poll   uring.Op
	outgoing, incoming *uring.Vector
	begun              int // bytes of the first part of out that were sent
	batch              int // parts of out that the send under way has bytes of
	bounced            int // begun, when the first part of out went over to bounce; 0: it has not
	faults             int // sends one after the other that ended in a hole of the guest's memory

	watch, retry, leave uring.Timer // looks for signs of life; tries again; calls step
	past                uring.Timer // ends doubt
	moved               int64       // when there was a sign of life
	quiet               int         // bytes since then
	withdrawn           fifo        // tasks to be given back
	barrier             int         // orphans as the store was told last, those of the last connection until doubt ends
	refused             bool        // a request was handed back

	// Between connections; see keeper.go.
	ctx     context.Context // ends the keeper
	cancel  context.CancelFunc
	opened  bool   // there was a connection before
	missed  bool   // there was none to begin with, which was told
	broken  uint64 // connections
	carried bool   // an answer came on it
	backoff backoff
	status  atomic.Pointer[status] // for anybody
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
	l.watch.Handler, l.retry.Handler, l.leave.Handler, l.past.Handler = l, l, l, l
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
		t.slow = min(slowZeroes, l.export.maximum)
		t.most = t.slow
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
	switch t {
	case &l.watch:
		l.look()
	case &l.past:
		l.hold(0)
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
	l.zero()
	if l.dropping != nil {
		return
	}
	l.cut()
	if (l.closed || l.next != nil) && l.inflight == 0 {
		l.disconnect()
	}
	l.transmit()
	l.listen()
	if l.ended > 0 {
		l.ended, l.carried = 0, true
		l.moved, l.quiet = l.host.Worker.Now(), 0
		if l.refused && l.up && l.freeTasks.n > 0 {
			l.refused = false
			l.events.Room()
		}
	}
}

// zero goes on with a long hole.
func (l *lane) zero() {
	if l.replies.gap == 0 {
		return
	}
	if err := l.replies.parse(); err != nil {
		l.drop(err)
	} else if l.replies.gap > 0 {
		l.host.Ring.Start(&l.leave, 0)
	}
}

// count tells the store how many commands the server may still carry out that were withdrawn.
func (l *lane) count() {
	if l.fd >= 0 && l.dropping == nil && l.orphans != l.barrier {
		l.hold(l.orphans)
	}
}

// hold keeps all lanes from sending while n is not 0.
func (l *lane) hold(n int) {
	l.store.withdrawn.Add(int64(n - l.barrier))
	l.barrier = n
}

// doubt is for a connection that broke under writes. What it has left may come back to a guest as failed, which writes anew, on another lane perhaps: so none sends before the time
// has passed within which the server may still carry it out. Where it has stopped, that is told from when it is known to go on (keeper.go).
func (l *lane) doubt(stopped bool) {
	if l.store.options.Quiesce <= 0 {
		l.hold(0)
		return
	}
	l.hold(max(l.barrier, 1))
	if !stopped {
		l.expect(l.broken)
	}
}

// expect ends the doubt of when so many connections had broken, that time from now.
func (l *lane) expect(broken uint64) {
	if !l.closed && l.fd < 0 && l.broken == broken {
		l.host.Ring.Start(&l.past, l.store.options.Quiesce)
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
