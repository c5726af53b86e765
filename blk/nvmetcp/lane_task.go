package nvmetcp

import (
	"errors"
	"time"

	"github.com/shuntio/shunt/blk"
)

// task is a request on its way.
type task struct {
	index   int32
	request *blk.Request // nil: the task is free
	next    uint64       // bytes of the request that have, or had, a command
	at      cursor       // where in its buffers that is
	left    int          // commands under way
	verdict verdict      // the worst so far
	crd     int          // which delay the controller asked for
	// faulty: the guest's own memory was not there. withdrawn: taken back.
	faulty, withdrawn bool
	queued            bool // in lane.waiting
	resting           bool // until due, to be tried again
	due               int64
	tries             int
}

// maxTries is how often a command is tried that fails in a way that may get better: as often as Linux does.
const maxTries = 6

// cursor is a place in a request's buffers.
type cursor struct{ buffer, offset int }

// part is the rest of the buffer the cursor is in, at most n bytes.
func (c *cursor) part(buffers [][]byte, n int) []byte {
	for c.offset == len(buffers[c.buffer]) { // Length bytes are there in all, so this ends while some are due
		c.buffer, c.offset = c.buffer+1, 0
	}
	b := buffers[c.buffer][c.offset:]
	return b[:min(len(b), n)]
}

func (c *cursor) advance(buffers [][]byte, n int) {
	for n > 0 {
		b := c.part(buffers, n)
		c.offset += len(b)
		n -= len(b)
	}
}

// takes tells whether the lane takes requests. Where another lane's write comes back the guest may hear of that before this lane's worker does, and what it asks for then would overtake that write.
func (l *lane) takes() bool {
	return l.state == laneUp && l.broken == nil && len(l.idle) > 0 && !l.association.over.Load()
}

// Submit takes a request. What it means for the wire goes out with Flush.
func (l *lane) Submit(r *blk.Request) bool {
	if !l.takes() {
		l.refused = true
		return false
	}
	i := l.idle[len(l.idle)-1]
	l.idle = l.idle[:len(l.idle)-1]
	t := &l.tasks[i]
	*t = task{index: i, request: r}
	r.Slot = int(i)
	if !l.limits.can[r.Op] {
		t.verdict, t.next = unable, r.Length
		l.endSoon(t)
		return true
	}
	l.want(t)
	l.issue()
	return true
}

// want puts a task among those that need commands.
func (l *lane) want(t *task) {
	if !t.queued {
		t.queued = true
		l.waiting.push(t.index)
	}
}

// issue makes commands as long as there are free ones and tasks that need them.
func (l *lane) issue() {
	for !l.waiting.empty() && l.state == laneUp && l.broken == nil {
		t := &l.tasks[l.waiting.peek()]
		if len(l.free) == 0 && !t.spent() {
			return
		}
		if !t.spent() {
			l.command(t)
		}
		if t.spent() {
			l.unqueue()
		}
	}
}

// unqueue takes the first task out of the queue. If it has ended meanwhile, it is free only now: a task is in the queue once at most.
func (l *lane) unqueue() {
	t := &l.tasks[l.waiting.pop()]
	t.queued = false
	if t.request == nil {
		l.idle = append(l.idle, t.index)
	}
}

// spent tells whether a task needs no further command. A flush has no length, and needs one.
func (t *task) spent() bool {
	if t.request == nil || t.withdrawn || t.resting {
		return true
	}
	return t.next >= max(t.request.Length, 1)
}

// conclude is called when a command of a task has ended.
func (l *lane) conclude(t *task) {
	if t.verdict != done && t.verdict != again {
		t.next = max(t.request.Length, 1) // no use going on
	}
	if t.left > 0 || !t.spent() {
		return
	}
	switch {
	case t.withdrawn:
		l.end(t, blk.Withdrawn)
	case t.faulty:
		l.end(t, blk.Failed)
	case t.verdict == done:
		l.end(t, blk.OK)
	case t.verdict == unable:
		l.end(t, blk.Unsupported)
	case t.verdict == refused:
		l.end(t, blk.Failed)
	case t.verdict == pathless:
		l.unreachable(t)
	default:
		l.rest(t, l.delay(t))
	}
}

// longestRest bounds what a controller can make a request wait at once.
const longestRest = 10 * time.Second

// delay is how long to wait before a task is tried again: as the controller says, else longer every time.
func (l *lane) delay(t *task) time.Duration {
	if d := l.limits.crdt[t.crd]; d > 0 {
		return min(d, longestRest)
	}
	return 10 * time.Millisecond << (2 * t.tries) // 10 ms to 10 s
}

// unreachable: the controller does not reach the namespace, or did not. Its ANA log tells; if that says it does, it has been a moment's matter.
func (l *lane) unreachable(t *task) {
	a := l.association
	poke(a.ana)
	if a.access.Load() != nil {
		t.tries = min(t.tries, 2) // there is no end to these: the volume's policy has one
	}
	l.rest(t, max(l.delay(t), 100*time.Millisecond))
}

// rest lets a task wait, to begin anew.
func (l *lane) rest(t *task, d time.Duration) {
	if l.state != laneUp {
		l.end(t, blk.Lost)
		return
	}
	if t.tries++; t.tries >= maxTries {
		l.end(t, blk.Failed)
		return
	}
	t.resting = true
	t.due = l.host.Worker.Now() + int64(d)
	if !l.retry.Running() {
		l.host.Ring.Start(&l.retry, retryTime)
	}
}

// retryTime is between two looks for tasks that have rested, while there are such.
const retryTime = 10 * time.Millisecond

// wakeTasks lets tasks begin anew that have rested.
func (l *lane) wakeTasks() {
	resting := false
	now := l.host.Worker.Now()
	for i := range l.tasks {
		t := &l.tasks[i]
		switch {
		case t.request == nil || !t.resting:
		case t.due > now:
			resting = true
		default:
			t.resting, t.verdict, t.next, t.at = false, done, 0, cursor{}
			l.want(t)
		}
	}
	if resting {
		l.host.Ring.Start(&l.retry, retryTime)
	}
	l.issue()
	l.push()
}

// end is a task's end.
func (l *lane) end(t *task, o blk.Outcome) {
	r := t.request
	t.request = nil
	if !t.queued {
		l.idle = append(l.idle, t.index)
	}
	r.Handler.Done(r, o)
	if l.refused && l.takes() {
		l.refused = false
		l.events.Room()
	}
}

// endSoon ends a task that needs nothing any more, but not within the call that found so.
func (l *lane) endSoon(t *task) {
	l.closing = append(l.closing, t.index)
	if !l.soon.Running() {
		l.host.Ring.Start(&l.soon, 0)
	}
}

// endClosing ends the tasks that are to end soon.
func (l *lane) endClosing() {
	for range len(l.closing) { // not those that come meanwhile
		t := &l.tasks[l.closing[0]]
		l.closing = append(l.closing[:0], l.closing[1:]...)
		if t.request != nil && t.left == 0 {
			l.conclude(t)
		}
	}
}

var errTakenBack = errors.New("a request that may change the disk was taken back before it ended; it is fenced off")

// Withdraw takes a request back. What was not begun is dropped, and the data of a read that still comes is drained. But a write or a discard that
// the controller has could be executed at any later time, over what is written then: it takes the whole association with it.
func (l *lane) Withdraw(r *blk.Request) {
	if r.Slot < 0 || r.Slot >= len(l.tasks) || l.tasks[r.Slot].request != r || l.tasks[r.Slot].withdrawn {
		return
	}
	t := &l.tasks[r.Slot]
	t.withdrawn, t.resting = true, false
	fence := false
	for i := range l.commands[:l.limits.depth] {
		c := &l.commands[i]
		if c.task != t.index {
			continue
		}
		switch {
		case !c.begun:
			l.orphan(c)
			l.retire(c)
		case c.changes():
			fence = true
		case l.data == c && l.direct > 0:
			l.host.Ring.Cancel(&l.recv) // its completion makes an orphan of it
		default:
			l.orphan(c)
		}
	}
	if fence {
		l.failSoon(errTakenBack)
	} else if t.left == 0 {
		l.endSoon(t)
	}
}

// lose ends everything, when there is no connection any more.
func (l *lane) lose() {
	for !l.waiting.empty() {
		l.unqueue()
	}
	for i := range l.tasks {
		t := &l.tasks[i]
		if t.request == nil {
			continue
		}
		o := blk.Lost
		switch {
		case t.withdrawn:
			o = blk.Withdrawn
		case t.faulty:
			o = blk.Failed
		}
		l.end(t, o)
	}
}

// loseWaiting ends what has no command under way.
func (l *lane) loseWaiting() {
	for !l.waiting.empty() {
		l.unqueue()
	}
	for i := range l.tasks {
		t := &l.tasks[i]
		if t.request == nil {
			continue
		}
		if t.left == 0 && !t.withdrawn {
			l.end(t, blk.Lost)
		} else if !t.spent() {
			t.next, t.verdict = max(t.request.Length, 1), pathless
		}
	}
}
