package nvmetcp

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"time"

	"github.com/shuntio/shunt/blk"
	"golang.org/x/sys/unix"
)

// Store is a namespace, through one association after another.
type Store struct {
	o       Options
	first   namespaceData // what is there must be the same namespace
	closing chan struct{}
	ended   chan struct{} // the manager is through
	wake    chan struct{} // there is a new lane; has room for one
	again   chan struct{} // somebody wants an attempt now; has room for one

	mu      sync.Mutex
	closed  bool
	lanes   []*lane // by queue number, from 1; nil: free
	current *association
	info    blk.Info
	state   blk.State
	dropped sockets       // of lanes that were closed while they had commands that change the disk, until the association is fenced
	unended error         // of writes that a former controller was not seen to end; nil: there are none
	changed chan struct{} // closed, and made anew, when current or state changes
}

var _ blk.Store = (*Store)(nil)

// ErrClosed says that a store was closed.
var ErrClosed = errors.New("the NVMe/TCP store was closed")

// Open connects to a namespace, and keeps up an association with its controller until Close.
func Open(ctx context.Context, o Options) (*Store, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	s := &Store{o: o, closing: make(chan struct{}), ended: make(chan struct{}), wake: make(chan struct{}, 1), again: make(chan struct{}, 1), changed: make(chan struct{})}
	a, err := s.associate(ctx)
	if err != nil {
		return nil, err
	}
	s.first = a.namespace
	s.lanes = make([]*lane, o.Queues)
	s.take(a)
	go s.manage(a)
	return s, nil
}

// associate makes an association with the namespace.
func (s *Store) associate(ctx context.Context) (*association, error) {
	a, err := associate(ctx, &s.o, s.o.KATO)
	if err != nil {
		return nil, err
	}
	if err = a.open(ctx); err == nil {
		err = s.same(a.namespace)
	}
	if err != nil {
		a.leave()
		return nil, err
	}
	return a, nil
}

// same refuses a namespace that is not the one we had: a guest's file system is on that.
func (s *Store) same(n namespaceData) error {
	if s.first.Blocks == 0 {
		return nil
	}
	switch {
	case s.first.identity != n.identity:
		return fmt.Errorf("namespace %d of %s at %s: %w (%v, it was %v)", s.o.NSID, s.o.NQN, s.o.Address, ErrReplaced, n.identity, s.first.identity)
	case s.first.Shift != n.Shift:
		return fmt.Errorf("namespace %d of %s at %s: %w, with blocks of %d bytes instead of %d", s.o.NSID, s.o.NQN, s.o.Address, ErrReplaced, 1<<n.Shift, 1<<s.first.Shift)
	}
	return nil
}

// pause waits, if need be; an error is that of ctx, or that stop was closed.
func pause(ctx context.Context, d time.Duration, stop <-chan struct{}) error {
	if d <= 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-stop:
		return ErrClosed
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Info is what the namespace was when it was asked last.
func (s *Store) Info() blk.Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.info
}

// State is how the store fares.
func (s *Store) State() blk.State {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.state
	if st.Up {
		st.Why = s.unended
	}
	return st
}

// Open makes a lane: an IO queue, connected as soon as there is an association.
func (s *Store) Open(h blk.Host, e blk.Events) (blk.Lane, error) {
	l, err := newLane(s, h, e)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		l.release()
		return nil, ErrClosed
	}
	most := len(s.lanes)
	if s.current != nil {
		most = min(most, s.current.queues)
	}
	for i := range s.lanes[:most] {
		if s.lanes[i] == nil {
			l.qid = uint16(i + 1)
			s.lanes[i] = l
			poke(s.wake)
			return l, nil
		}
	}
	l.release()
	return nil, fmt.Errorf("%s has %d IO queues for this host, and all are in use; use fewer workers for the volume", s.o.NQN, most)
}

// drop forgets a lane that is closed. One that is down, which the manager has not come to, leaves its socket.
func (s *Store) drop(l *lane) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lanes[l.qid-1] == l {
		s.lanes[l.qid-1] = nil
	}
	if l.state != laneDown || l.fd < 0 {
		return
	}
	if l.risky {
		unix.Shutdown(l.fd, unix.SHUT_WR)
		s.dropped = append(s.dropped, l.fd)
	} else {
		cut(l.fd)
	}
	l.fd = -1
}

// open are the lanes there are.
func (s *Store) open() (lanes []*lane) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.lanes {
		if l != nil {
			lanes = append(lanes, l)
		}
	}
	return lanes
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Refresh asks the controller what the namespace is now. Without an association it has one tried at once, and waits.
func (s *Store) Refresh(ctx context.Context) (blk.Info, error) {
	poke(s.again)
	for {
		s.mu.Lock()
		a, why, changed, closed := s.current, s.state.Why, s.changed, s.closed
		s.mu.Unlock()
		if closed {
			return blk.Info{}, ErrClosed
		}
		if a != nil {
			if err := s.relearn(ctx, a); err != nil {
				return s.Info(), err
			}
			return s.Info(), nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return s.Info(), fmt.Errorf("%s is not connected: %w", s.o.Address, errors.Join(why, context.Cause(ctx)))
		}
	}
}

// relearn asks anew what the namespace is, and tells the watcher if it has changed.
func (s *Store) relearn(ctx context.Context, a *association) error {
	ctx, cancel := context.WithTimeout(ctx, s.o.ConnectTimeout)
	defer cancel()
	select {
	case a.learning <- struct{}{}:
		defer func() { <-a.learning }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	n, err := a.learn(ctx)
	if err == nil {
		err = s.same(n)
	}
	var life *blk.Lifetime
	if err == nil {
		life, err = a.health(ctx)
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	a.namespace, a.lifetime = n, life
	before, now := s.info, a.info()
	s.info = now
	s.mu.Unlock()
	if !reflect.DeepEqual(before, now) && s.o.Watcher != nil {
		s.o.Watcher.Changed(now)
	}
	return nil
}

// set changes the state, and wakes who waits for that.
func (s *Store) set(change func(*blk.State)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.state
	change(&s.state)
	if s.state.Up != before.Up || s.state.Since.IsZero() {
		s.state.Since = time.Now()
	}
	close(s.changed)
	s.changed = make(chan struct{})
}

// take makes an association the current one; nil: there is none.
func (s *Store) take(a *association) {
	s.mu.Lock()
	before := s.info
	s.current = a
	if a != nil {
		s.info = a.info()
	}
	now := s.info
	s.mu.Unlock()
	sameDisk := before
	sameDisk.Describe = now.Describe
	if a != nil && before.Size != 0 && !reflect.DeepEqual(sameDisk, now) && s.o.Watcher != nil {
		s.o.Watcher.Changed(now)
	}
	s.set(func(*blk.State) {})
}

// Close ends the association. Every lane was closed before.
func (s *Store) Close() error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.closing)
	}
	s.mu.Unlock()
	<-s.ended
	return nil
}
