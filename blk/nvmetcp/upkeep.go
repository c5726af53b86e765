package nvmetcp

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// What goes on beside the lanes while there is an association: signs of life, aborts, events.

// keepAlive gives a sign of life twice in a keep-alive timeout, and wants one.
func (a *association) keepAlive() {
	for pause(a.ctx, a.kato/2, nil) == nil {
		ctx, cancel := context.WithTimeoutCause(a.ctx, a.kato, fmt.Errorf("no answer to a keep-alive within %v", a.kato))
		e := make(sqe, sqeLength)
		e.begin(opKeepAlive, 0)
		r, err := a.admin.do(ctx, e, nil)
		cancel()
		if err == nil && r.status.code() == scInvalidOpcode {
			return
		}
		if err == nil && !r.status.ok() {
			err = &commandError{r.status}
		}
		if err != nil {
			a.fail(fmt.Errorf("keep-alive: %w", err))
			return
		}
	}
}

// healthPause is how old what a guest is told of the device's health may be.
const healthPause = time.Hour

// watchHealth asks anew from time to time: wear is no event.
func (s *Store) watchHealth(a *association) {
	for pause(a.ctx, healthPause, nil) == nil {
		if err := s.relearn(a.ctx, a); err != nil {
			a.fail(err)
			return
		}
	}
}

// abort names a command that is late.
type abort struct{ qid, cid uint16 }

// abortLate asks the controller to end commands that lanes found late. What comes of it, the lane sees.
func (a *association) abortLate() {
	for {
		select {
		case late := <-a.aborts:
			e := make(sqe, sqeLength)
			e.begin(opAbort, 0)
			e.setCDW(10, uint32(late.qid)|uint32(late.cid)<<16)
			ctx, cancel := context.WithTimeout(a.ctx, a.kato)
			a.admin.do(ctx, e, nil)
			cancel()
		case <-a.ctx.Done():
			return
		}
	}
}

// events asks for asynchronous events, one at a time, and acts on them.
func (s *Store) events(a *association) {
	for {
		e := make(sqe, sqeLength)
		e.begin(opAsyncEvent, 0)
		r, err := a.admin.do(a.ctx, e, nil)
		if err != nil || !r.status.ok() {
			return // the connection's end is noticed elsewhere; a controller without events has none
		}
		if err := s.event(a, r.result); err != nil {
			a.fail(err)
			return
		}
		if pause(a.ctx, eventPause, nil) != nil {
			return
		}
	}
}

// eventPause bounds what a controller that raises events all the time can make us do.
const eventPause = 10 * time.Millisecond

// event: type in the lowest three bits, information in the second byte, the log page to be read, so that the event may come again, in the third.
func (s *Store) event(a *association, result uint64) error {
	ctx, cancel := context.WithTimeoutCause(a.ctx, s.o.ConnectTimeout, errors.New("no answer"))
	defer cancel()
	const notice = 2
	if page := byte(result >> 16); page == logANA {
		poke(a.ana)
	} else if page != 0 {
		n := 512
		if page == logChanged {
			n = pageLength
		}
		if _, err := a.admin.logPage(ctx, "of an event", uint32(page), 0xffffffff, 0, n); err != nil && !refusedOnly(err) {
			return err
		}
	}
	if result&7 == notice && byte(result>>8) == 0 { // namespace attribute changed
		return s.relearn(a.ctx, a)
	}
	return nil
}
