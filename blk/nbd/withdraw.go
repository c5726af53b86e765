package nbd

import (
	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/dataplane/guestmem"
)

// Withdraw asks for a request back. What it is doing decides how:
//
//	not sent at all               it is forgotten
//	being sent                    the send is cancelled; what the server still must get of it, it gets from a private copy
//	sent, unanswered              the answer is dropped when it comes
//	being answered                the receive is cancelled if it goes to the request's memory; the rest is dropped
//
// A cancelled operation on a socket ends at once, and only when it has ended is the request given back: no late byte comes to its memory.
func (l *lane) Withdraw(r *blk.Request) {
	if r.Slot < 0 || r.Slot >= maxTasks || l.tasks[r.Slot].r != r || l.tasks[r.Slot].leaving {
		return
	}
	t := &l.tasks[r.Slot]
	t.leaving = true
	l.leaving++
	if t.ready {
		t.ready = false
		l.ready.remove(t.slot)
	}
	if l.dropping != nil {
		return // it comes back with all others
	}
	if l.sending(t) {
		l.host.Ring.Cancel(&l.send)
	}
	if l.receiving(t) {
		l.host.Ring.Cancel(&l.recv)
	}
	l.part(t)
}

// sending tells whether the send under way may read the task's memory.
func (l *lane) sending(t *task) bool {
	if !l.send.Busy() {
		return false
	}
	for i := range min(l.batch, l.out.n) {
		if p := &l.parts[l.out.at(i)]; p.task == t && p.payload() > 0 {
			return true
		}
	}
	return false
}

// receiving tells whether the receive under way may write to the task's memory.
func (l *lane) receiving(t *task) bool {
	return l.recv.Busy() && l.replies.aimed > 0 && l.replies.owner.task == t
}

// released: an operation has ended, and tasks may have waited for it.
func (l *lane) released() {
	if l.dropping != nil || l.leaving == 0 {
		return
	}
	for i := range l.tasks {
		if t := &l.tasks[i]; t.leaving {
			l.part(t)
		}
	}
}

// part lets a task that is leaving go, unless an operation still has its memory.
func (l *lane) part(t *task) {
	if l.withdrawn.find(t.slot) >= 0 || l.sending(t) || l.receiving(t) {
		return
	}
	for i := l.out.n - 1; i >= 0; i-- {
		p := &l.parts[l.out.at(i)]
		switch {
		case p.task != t || l.send.Busy() && i < l.batch: // only its header is being sent, which is ours
		case i > 0 || l.begun == 0:
			if !l.unsend(p) {
				return // dropped
			}
		case !l.finishFrom(p):
			return // dropped
		}
	}
	l.abandon(t)
	l.count()
	l.withdrawn.push(t.slot)
	l.host.Ring.Start(&l.leave, 0) // never within Withdraw
}

// unsend forgets a part that was never begun to be sent. A server that has begun to answer it all the same, whose cookie it has guessed, is not listened to any further.
func (l *lane) unsend(p *part) bool {
	if p.replied || p.extents > 0 || p.errors > 0 {
		l.drop(errUnasked)
		return false
	}
	l.forget(p)
	return true
}

// finishFrom makes a private copy of what the server still must get of a write that was begun. If that is too long, or gone, the connection is dropped.
func (l *lane) finishFrom(p *part) bool {
	if p.payload() == 0 || l.bounced > 0 {
		return true
	}
	sent := max(l.begun-requestSize, 0)
	rest := int(p.length) - sent
	if rest > len(l.bounce) {
		l.drop(errMidst)
		return false
	}
	at := p.start.forward(p.task.r.Buffers, sent)
	for to := l.bounce[:rest]; len(to) > 0; {
		b := p.task.r.Buffers[at.buffer][at.offset:]
		b = b[:min(len(b), len(to))]
		if !guestmem.Copy(to, b) {
			l.drop(errMidst)
			return false
		}
		to = to[len(b):]
		at = place{buffer: at.buffer + 1}
	}
	l.bounced = requestSize + sent
	return true
}
