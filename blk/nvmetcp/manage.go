package nvmetcp

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/shuntio/shunt/blk"
	"golang.org/x/sys/unix"
)

// The life of a store, on one goroutine:
//
//	associate ─▶ connect lanes ─▶ Up ─▶ keep-alive, events, aborts ─▶ something breaks
//	    ▲                                                                   │
//	    │                                      every lane: Down, its operations end, requests come back Lost
//	    │                                                                   │
//	    │                     ┌─ the admin queue answers: CC.EN = 0, CSTS.RDY = 0 ──────────────────────┐
//	    └── back off ◀── fence┤                                   and it hangs up on all lanes (fence.go) ┤ nothing of ours is executed
//	                          └─ it does not: until the keep-alive timeout has run out at the other end ┘
//
// The old admin connection stays open until there is a new association. If the old controller still answers on it then, the
// target was not restarted in between, and has kept what it said was done.
func (s *Store) manage(a *association) {
	defer close(s.ended)
	defer func() { s.take(nil) }()
	var delay time.Duration
	for kept := true; ; {
		why := s.serve(a, kept)
		if a.carried.Load() {
			delay = 0
		}
		if s.isClosed() {
			s.down(ErrClosed).cut()
			a.leave()
			return
		}
		s.take(nil)
		s.set(func(st *blk.State) { st.Up, st.Why = false, why })
		alive, err := s.fence(a, s.down(why), why)
		var next *association
		if err == nil {
			next, err = s.reconnect(&delay)
		}
		if err != nil {
			a.close()
			return
		}
		kept = !next.controller.VolatileCache || alive && a.answers()
		a.close()
		s.set(func(st *blk.State) { st.Reconnects++ })
		s.take(next)
		a = next
	}
}

func (s *Store) isClosed() bool {
	select {
	case <-s.closing:
		return true
	default:
		return false
	}
}

// serve keeps an association up until it breaks, and says why it did.
func (s *Store) serve(a *association, kept bool) error {
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer a.fail(ErrClosed)
	a.aborts = make(chan abort, 64)
	a.ana = make(chan struct{}, 1)
	if a.controller.ANA {
		if err := s.access(a); err != nil {
			a.fail(err)
		} else {
			tasks.Go(func() { s.watchAccess(a) })
		}
	}
	tasks.Go(func() {
		select {
		case <-s.closing:
			a.fail(ErrClosed) // whatever is waited for
		case <-a.ctx.Done():
		}
	})
	tasks.Go(func() { a.keepAlive() })
	tasks.Go(func() { s.events(a) })
	tasks.Go(func() { s.watchHealth(a) })
	tasks.Go(func() { a.abortLate() })
	for {
		var timer <-chan time.Time
		if a.ctx.Err() == nil && !s.connect(a, kept) {
			timer = time.After(lanePause)
		}
		select {
		case <-a.ctx.Done():
			return context.Cause(a.ctx)
		case <-a.admin.gone:
			a.fail(a.admin.err)
		case <-s.wake:
		case <-timer:
		case <-s.closing:
			return ErrClosed
		}
	}
}

// lanePause is until the next attempt for a lane whose worker lacked something.
const lanePause = time.Second

// connect gives every lane that has none its IO queue; false: one could not have it.
func (s *Store) connect(a *association, kept bool) (all bool) {
	up := true
	for _, l := range s.open() {
		if l.using == a {
			continue
		}
		if int(l.qid) > a.queues {
			up = false
			err := fmt.Errorf("the controller grants only %d IO queues now", a.queues)
			s.set(func(st *blk.State) { st.Why = err })
			l.host.Worker.Do(func() { l.missing(err) })
			continue
		}
		err := s.attach(a, l, kept)
		if errors.Is(err, errWorker) {
			up = false
			s.set(func(st *blk.State) { st.Up, st.Why = false, err })
			l.host.Worker.Do(func() { l.missing(err) })
		} else if err != nil {
			a.fail(err)
			return true
		}
	}
	if access := a.access.Load(); up && (access == nil || access.accessible()) {
		s.set(func(st *blk.State) { st.Up, st.Why = true, nil })
	}
	return up
}

// errWorker is in errors that are no fault of the controller's: the other lanes go on.
var errWorker = errors.New("the lane's worker lacks something")

// dialIO connects a lane's queue, again if the controller refuses: it may not have noticed yet that a former lane of that number is gone.
func (a *association) dialIO(qid uint16) (c *conn, err error) {
	for try := range 4 {
		if pause(a.ctx, time.Duration(try)*50*time.Millisecond, nil) != nil {
			break
		}
		if c, err = a.queue(a.ctx, qid); err == nil {
			break
		}
	}
	return c, err
}

func (s *Store) attach(a *association, l *lane, kept bool) error {
	c, err := a.dialIO(l.qid)
	if err != nil {
		return err
	}
	t := c.terms
	fd, err := c.detach()
	if err != nil {
		c.Close()
		return fmt.Errorf("%w: %w", errWorker, err)
	}
	s.mu.Lock()
	limits := a.limits(t)
	s.mu.Unlock()
	l.using, l.quiet = a, make(chan struct{})
	err = fmt.Errorf("%w: a fault in its memory", errWorker)
	l.host.Worker.Do(func() {
		access := a.access.Load()
		here := access == nil || access.accessible()
		if err = l.attach(a, fd, limits, kept, here); err == nil && !here {
			l.missing(s.unreached(*access))
		}
	})
	if err != nil {
		l.using = nil
		unix.Close(fd)
		if errors.Is(err, ErrClosed) {
			return nil
		}
	}
	return err
}

// down takes every lane out of service, and returns when the kernel has nothing of theirs any more: what is left is the sockets of those
// that had commands which change the disk; we send nothing on them.
func (s *Store) down(why error) (left sockets) {
	lanes := s.open()
	for _, l := range lanes {
		ended := fmt.Errorf("the association with %s ended: %w", s.o.Address, why)
		l.host.Worker.Do(func() {
			if l.using != nil {
				l.fail(ended)
			}
			l.missing(ended)
		})
	}
	for _, l := range lanes {
		if l.using == nil {
			continue
		}
		select {
		case <-l.quiet:
			if fd := l.bury(); fd >= 0 && l.risky {
				left = append(left, fd)
			} else if fd >= 0 {
				cut(fd)
			}
		case <-s.closing: // who closes the store has closed its lanes
		}
		l.using = nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	left, s.dropped = append(left, s.dropped...), nil
	return left
}

// whileOpen is a context that ends with the store.
func (s *Store) whileOpen() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		select {
		case <-s.closing:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// reconnect makes attempts until one succeeds, the first after delay: none after an association that has carried anything. After another one the pauses between
// attempts go on growing: something is wrong that shows only once there is an association. An error means that the store was closed.
func (s *Store) reconnect(delay *time.Duration) (*association, error) {
	ctx, cancel := s.whileOpen()
	defer cancel()
	for began := time.Now(); ; {
		var timer <-chan time.Time
		if limit := s.o.CtrlLossTimeout; limit > 0 && time.Since(began) > limit {
			s.set(func(st *blk.State) { st.Why = fmt.Errorf("given up after %v: %w", limit, st.Why) })
		} else {
			timer = time.After(*delay/2 + rand.N(*delay+1))
		}
		select {
		case <-timer:
		case <-s.again:
			began, *delay = time.Now(), 0
		case <-s.closing:
			return nil, ErrClosed
		}
		*delay = min(max(2**delay, 50*time.Millisecond), s.o.ReconnectDelay)
		a, err := s.associate(ctx)
		if err == nil {
			return a, nil
		}
		if s.isClosed() {
			return nil, ErrClosed
		}
		s.set(func(st *blk.State) { st.Why = err })
		for _, l := range s.open() {
			l.host.Worker.Do(func() { l.missing(err) }) // it was opened meanwhile
		}
	}
}

// answers tells whether the old controller is still there, as it was.
func (a *association) answers() bool {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_, err := a.admin.property(ctx, propertyCSTS, false)
	return err == nil
}

// leave ends an association that nobody uses, and tells the controller.
func (a *association) leave() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	a.shutdown(ctx)
	a.close()
}
