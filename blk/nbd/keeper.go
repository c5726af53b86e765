package nbd

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/shuntio/shunt/blk"
)

// The keeper of a lane is a goroutine that lives from one connection's end to the next one's beginning:
//
//	broken ─▶ dial, handshake ─▶ is the export still what guests were told? ─▶ quiesce ─▶ is the server the same? ─▶ Worker.Do(attach)
//	   ▲            └────────────────────┴── no: wait, longer each time (backoff) ◀┘
//	   └──────────────────────────────────────────────── the connection breaks
const (
	firstWait = 50 * time.Millisecond
	longest   = time.Second
	// echoLimit is how long another lane's connection may take to show that its server is alive.
	echoLimit = 2 * time.Second
)

// status is how a lane fares, replaced as a whole.
type status struct {
	up    bool
	why   error
	since time.Time
	made  time.Time // its connection
	size  uint64    // of the export, on that
}

var errNotYet = errors.New("there is no connection yet")

// isUp and isDown note how a lane fares, on its worker.
func (s *Store) isUp(l *lane) {
	if l.opened {
		s.reconnects.Add(1)
	}
	l.opened = true
	now := time.Now()
	l.status.Store(&status{up: true, since: now, made: now, size: l.export.size})
}

// isRenewed notes that it has gone over to another connection.
func (s *Store) isRenewed(l *lane) {
	l.status.Store(&status{up: true, since: l.status.Load().since, made: time.Now(), size: l.export.size})
}

func (s *Store) isDown(l *lane, why error) { l.status.Store(&status{why: why, since: time.Now()}) }

// ending is how a lane's last connection ended. risky: commands were on their way that change the disk. stopped: the server did not end it, and may have stopped, to read them
// when it goes on.
type ending struct {
	at             time.Time
	risky, stopped bool
}

// keep gets a lane a connection, or gives it the one there is.
func (s *Store) keep(l *lane, c *link, last ending) {
	if l.ctx.Err() != nil {
		return // nobody wants another one
	}
	last.at = time.Now()
	first := !l.opened
	if l.carried {
		l.carried, l.backoff = false, 0
	}
	broken := l.broken
	go func() { // the backoff's owner until the lane has a connection
		if last.risky && last.stopped && s.options.Quiesce > 0 {
			ctx, cancel := context.WithCancel(l.ctx)
			defer cancel()
			go s.lookFor(ctx, l, last.at, broken)
		}
		for c != nil || rest(l.ctx, l.backoff.next()) {
			err := s.provide(l, c, last, first)
			if err == nil || errors.Is(err, errClosed) {
				return
			}
			c = nil
			was := l.status.Load()
			l.status.CompareAndSwap(was, &status{why: err, since: was.since})
			if first {
				l.host.Worker.Do(func() { l.missing(err) })
			}
		}
	}()
}

// backoff is how long a lane waited for its last attempt to connect: twice as long each time that there was no connection, or one that has answered nothing, as to a
// server that hangs up as soon as it is asked. One that has answered something begins anew. Lanes do not wait in step: each by up to a half more or less.
type backoff time.Duration

func (b *backoff) next() time.Duration {
	d := min(max(2*time.Duration(*b), firstWait), longest)
	*b = backoff(d)
	return d/2 + rand.N(d)
}

// rest sleeps, and tells whether it slept well.
func rest(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// provide tries once. A connection that is not attached is closed.
func (s *Store) provide(l *lane, c *link, last ending, first bool) (err error) {
	if c == nil {
		if c, err = s.connect(l.ctx); err != nil {
			return err
		}
	}
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	i, err := s.suits(c.export)
	if err != nil {
		return err
	}
	since := last.at
	if last.stopped {
		since = time.Now() // it lives
	}
	if last.risky && s.options.Quiesce > 0 && !rest(l.ctx, time.Until(since.Add(s.options.Quiesce))) {
		return l.ctx.Err()
	}
	kept := first || s.witnessed(l, last.at) // the first one's past is the volume's business: blk.VolumeOptions.Restarted
	if err := s.tell(l, i, c.begun); err != nil {
		return err
	}
	err = errClosed
	l.host.Worker.Do(func() { err = l.attach(c, kept) })
	return err
}

// tell lets guests know what the export is, after the other lanes.
func (s *Store) tell(l *lane, i blk.Info, begun time.Time) error {
	ctx, cancel := context.WithTimeout(l.ctx, greetingLimit)
	defer cancel()
	if err := s.align(ctx, l, i.Size); err != nil {
		return err
	}
	return s.learned(i, begun)
}

// lookFor has the other lanes not wait for this one to have a connection, when it is known without that the server has gone on since the last one broke: another lane has been connected since then,
// or brings an answer.
func (s *Store) lookFor(ctx context.Context, l *lane, at time.Time, broken uint64) {
	connected := func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return slices.ContainsFunc(s.lanes, func(o *lane) bool {
			st := o.status.Load()
			return o != l && st.up && st.made.After(at)
		})
	}
	for rest(ctx, longest) {
		if (connected() || s.witnessed(l, at)) && ctx.Err() == nil {
			l.host.Worker.Do(func() { l.expect(broken) })
			return
		}
	}
}

// witnessed tells whether the server is known to be the one there was before: another lane's connection to it, older than the break of this one, has brought an answer
// after this one's new connection was made.
func (s *Store) witnessed(l *lane, broken time.Time) bool {
	s.mu.Lock()
	others := append([]*lane(nil), s.lanes...)
	s.mu.Unlock()
	for _, o := range others {
		before := o.status.Load()
		if o == l || !before.up || !before.made.Before(broken) {
			continue
		}
		heard, asked := make(chan struct{}, 1), false
		o.host.Worker.Do(func() { asked = o.status.Load() == before && o.echo(heard) })
		if !asked {
			continue
		}
		select {
		case <-heard: // an answer comes only on the connection that was asked
			return true
		case <-l.ctx.Done():
			return false
		case <-time.After(echoLimit):
		}
	}
	return false
}
