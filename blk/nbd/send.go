package nbd

import (
	"errors"
	"fmt"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/dataplane/guestmem"
	"github.com/shuntio/shunt/dataplane/uring"
	"golang.org/x/sys/unix"
)

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
		if p.payload() == 0 || p.task == nil || l.faults == 1 && p.readable() {
			continue
		}
		p.task.worst = blk.Failed
		if i == 0 && l.begun > 0 {
			l.drop(errors.New("the guest took away memory in the midst of a write"))
			return
		}
		t := p.task
		if !l.unsend(p) {
			return
		}
		l.settle(t)
	}
}

// readable tells whether all of a write's payload is there.
func (p *part) readable() bool {
	at := p.start
	for left := int(p.length); left > 0; at = (place{buffer: at.buffer + 1}) {
		b := p.task.r.Buffers[at.buffer][at.offset:]
		if b = b[:min(len(b), left)]; !guestmem.Readable(b) {
			return false
		}
		left -= len(b)
	}
	return true
}
