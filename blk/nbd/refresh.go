package nbd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/shuntio/shunt/blk"
)

// A connection goes on with the size that the export had when it began. So a lane learns of another one by going over to a new connection, and all do before guests are told:
//
//	Refresh ─▶ ask (INFO) ──────────┬─▶ another size: every other lane ─▶ connect (GO) ─▶ suits ─▶ replace, when nothing is on its way ─▶ guests
//	keeper: a lane comes back (GO) ─┘

// errOutdated is why a connection is not used that was made before guests were told another size.
var errOutdated = errors.New("the export has another size by now")

// Refresh asks the server anew what the export is. A server that allows one connection at a time does not answer while a lane has it.
func (s *Store) Refresh(ctx context.Context) (blk.Info, error) {
	now, err := s.ask(ctx)
	asked := time.Now()
	if err == nil {
		err = s.align(ctx, nil, now.Size)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil && now.Size != s.told.Size {
		s.told, s.sized = now, asked
	}
	return s.told, err
}

// ask learns what an export is without opening it.
func (s *Store) ask(ctx context.Context) (blk.Info, error) {
	ctx, cancel := context.WithTimeout(ctx, greetingLimit)
	defer cancel()
	n, err := s.dial(ctx)
	if err != nil {
		return blk.Info{}, s.say(ctx, err)
	}
	defer n.leave()
	e, err := n.enter(optInfo, s.address.export)
	if err != nil {
		return blk.Info{}, s.say(ctx, err)
	}
	return s.suits(e)
}

// align has all lanes but one that are up go over to a connection that knows the export's size, unless theirs does. The others will make a new one anyway.
func (s *Store) align(ctx context.Context, but *lane, size uint64) error {
	s.mu.Lock()
	lanes := append([]*lane(nil), s.lanes...)
	s.mu.Unlock()
	for _, l := range lanes {
		if t := l.status.Load(); l == but || !t.up || t.size == size {
			continue
		}
		if err := s.renew(ctx, l, size); err != nil {
			return err
		}
	}
	return nil
}

// renew gives a lane a new connection, and waits until it has gone over to it.
func (s *Store) renew(ctx context.Context, l *lane, size uint64) error {
	c, err := s.connect(ctx)
	if err != nil {
		return err
	}
	i, err := s.suits(c.export)
	if err == nil && i.Size != size {
		err = fmt.Errorf("%s: %w: it has become %d bytes, and %d a moment later; ask again", s.options.URI, ErrChanged, size, i.Size)
	}
	if err != nil {
		c.close()
		return err
	}
	done := make(chan error, 1)
	l.host.Worker.Do(func() { l.replace(c, done) })
	select {
	case err = <-done:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("%s: a new connection: %w", s.options.URI, err)
	}
	return nil
}

// learned notes what an export is by now, and passes it on: that of a connection begun at a time.
func (s *Store) learned(i blk.Info, begun time.Time) error {
	s.mu.Lock()
	before := s.told
	if i.Size != before.Size {
		if begun.Before(s.sized) {
			s.mu.Unlock()
			return fmt.Errorf("%s: %w", s.options.URI, errOutdated)
		}
		s.sized = begun
	}
	s.told = i
	s.mu.Unlock()
	before.Describe = i.Describe
	if before != i && s.options.Watcher != nil {
		s.options.Watcher.Changed(i)
	}
	return nil
}
