package nbd

import (
	"errors"
	"fmt"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/dataplane/uring"
	"golang.org/x/sys/unix"
)

// The life of a lane's connection, on the worker:
//
//	attach ─▶ up ─▶ drop: down, everything cancelled ─▶ dropped: requests come back ─▶ keeper: dial, handshake, quiesce (keeper.go)
//	  ▲        └──▶ replace: nothing new, then the next one in its place                  │
//	  └───────────────────────────────────────────────────────────────────────────────────┘
var (
	errHungUp = errors.New("the server closed the connection")
	errMidst  = errors.New("a write was withdrawn in the midst of being sent")
	errClosed = errors.New("the connection is closed by us")
	// errReplaced is why a connection ends that another one stands ready for.
	errReplaced = errors.New("the connection is replaced")
)

// attach gives the lane a connection whose handshake is done. On error the connection stays the caller's.
func (l *lane) attach(c *link, kept bool) error {
	if l.closed {
		return errClosed
	}
	if err := l.stand(c); err != nil {
		return err
	}
	l.count() // what was withdrawn on the last connection is past
	l.store.isUp(l)
	l.events.Up(kept)
	l.refused = false
	l.step()
	return nil
}

// stand puts the lane on a connection.
func (l *lane) stand(c *link) (err error) {
	if l.outgoing == nil {
		l.outgoing = l.host.Ring.Vector(pieces)
	}
	if l.incoming == nil {
		l.incoming = l.host.Ring.Vector(pieces)
	}
	if l.outgoing == nil || l.incoming == nil {
		return errors.New("the worker's io_uring has no vector left; use more workers, or fewer volumes a worker")
	}
	if l.file, err = l.host.Ring.Register(c.fd); err != nil {
		return err
	}
	l.host.Ring.Stop(&l.past) // it is: the keeper has waited as long
	l.fd, l.export, l.behind = c.fd, c.export, c.behind
	l.begun, l.batch, l.bounced, l.faults, l.ended = 0, 0, 0, 0, 0
	l.dropping, l.hung, l.up = nil, false, true
	l.replies.begin(c.export.structured)
	return nil
}

// drop gives the connection up. Requests come back when nothing is under way on it any more, which is at once.
func (l *lane) drop(why error) {
	if l.dropping != nil || l.fd < 0 {
		return
	}
	l.dropping, l.up = why, false
	switch {
	case why == errClosed || why == errReplaced: // our goodbye is to arrive
		unix.SetsockoptLinger(l.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{}) //nolint:errcheck // it arrives most of the time
		if l.behind != nil {
			l.behind.leave()
		}
	case l.behind != nil:
		l.behind.abort()
	}
	unix.Shutdown(l.fd, unix.SHUT_RDWR) //nolint:errcheck // it may be shut down already
	l.host.Ring.Cancel(&l.send)
	l.host.Ring.Cancel(&l.recv)
	l.host.Ring.Cancel(&l.poll)
	l.host.Ring.Start(&l.leave, 0) // where nothing was under way
}

// dropped ends the connection, which nothing is under way on any more.
func (l *lane) dropped() {
	why := l.dropping
	risky := l.clear()
	if l.closed {
		l.release()
		return
	}
	if c := l.next; c != nil {
		if why == errReplaced && l.stand(c) == nil {
			l.store.isRenewed(l)
			l.answer(nil)
			l.step()
			return
		}
		c.close()
		l.answer(nil)
	}
	stopped := l.export.encrypted || !errors.Is(why, errHungUp) && !errors.Is(why, unix.ECONNRESET) && !errors.Is(why, unix.EPIPE)
	why = fmt.Errorf("%s: %w", l.store.options.URI, why)
	if l.broken++; risky {
		l.doubt(stopped)
	}
	l.withdrawn.n = 0
	l.store.isDown(l, why)
	l.events.Down(why)
	for i := range l.tasks {
		if t := &l.tasks[i]; t.r != nil {
			l.finish(t, t.afterwards())
		}
	}
	l.store.keep(l, nil, ending{risky: risky, stopped: stopped})
}

// clear forgets the connection and all that was on its way, and tells whether any of that changes the disk.
func (l *lane) clear() (risky bool) {
	l.host.Ring.Unregister(l.file) //nolint:errcheck // it is registered, and this is its thread
	unix.Close(l.fd)
	l.fd, l.dropping = -1, nil
	l.host.Ring.Stop(&l.watch)
	l.host.Ring.Stop(&l.retry)
	l.host.Ring.Stop(&l.leave)
	for i := range l.parts {
		if p := &l.parts[i]; p.used {
			risky = risky || p.writes()
			l.free(p)
		}
	}
	l.out.n, l.orphans = 0, 0
	l.replies.owner, l.replies.gap = nil, 0
	return risky
}

// afterwards is how a task ends whose connection is no more.
func (t *task) afterwards() blk.Outcome {
	switch {
	case t.leaving:
		return blk.Withdrawn
	case t.worst == blk.Failed:
		return blk.Failed
	}
	return blk.Lost
}

// Close ends the lane. What was withdrawn and not answered yet is waited for, since it may still change the disk: the connection goes on alone until then,
// or the server is found dead.
func (l *lane) Close() {
	if l.closed {
		return
	}
	l.closed, l.up = true, false
	l.cancel()
	switch {
	case l.fd < 0:
		l.release()
	default:
		l.host.Ring.Start(&l.leave, 0) // step goes on
	}
}

// disconnect says goodbye.
func (l *lane) disconnect() {
	if l.out.n > 0 {
		return
	}
	p := l.issue(nil, cmdDisc, 0, 0, 0, l.host.Worker.Now())
	l.header(p).put(0, cmdDisc, p.cookie, 0, 0)
	if !l.watch.Running() {
		l.host.Ring.Start(&l.watch, l.store.options.Timeout/4)
	}
}

// release frees what a closed lane holds.
func (l *lane) release() {
	for _, v := range []*uring.Vector{l.outgoing, l.incoming} {
		if v != nil {
			l.host.Ring.Free(v)
		}
	}
	l.host.Ring.Stop(&l.watch)
	l.host.Ring.Stop(&l.retry)
	l.host.Ring.Stop(&l.leave)
	l.host.Ring.Stop(&l.past)
	if l.next != nil {
		l.next.close()
		l.answer(errClosed)
	}
	l.hold(0)
	l.memory.Free() //nolint:errcheck // nothing is under way in it
	l.memory = nil
	l.store.forget(l)
}

// echo asks for a block, and sends on heard when it came: the server that this connection was made to is alive.
func (l *lane) echo(heard chan<- struct{}) bool {
	if !l.up || l.freeParts.n == 0 || l.next != nil {
		return false
	}
	now := l.host.Worker.Now()
	if l.inflight == 0 {
		l.moved, l.quiet = now, 0
	}
	p := l.issue(nil, cmdRead, 0, 0, l.export.minimum, now)
	p.echo = heard
	l.header(p).put(0, cmdRead, p.cookie, 0, p.length)
	l.step()
	return true
}

// missing tells of a lane that has never had a connection: who does not wait for a server is not to wait for its first word either.
func (l *lane) missing(why error) {
	if !l.closed && !l.opened && !l.missed {
		l.missed = true
		l.events.Down(why)
	}
}

// replace lets the lane go over to another connection when nothing is on its way on this one. It answers on done.
func (l *lane) replace(c *link, done chan error) {
	if !l.up || l.next != nil {
		c.close()
		done <- nil // it makes a new one anyway
		return
	}
	l.next, l.nextDone = c, done
	l.step()
}

// answer tells who wanted that how it went.
func (l *lane) answer(err error) {
	l.next = nil
	l.nextDone <- err // has room
	l.nextDone = nil
}
