package nvmetcp

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/shuntio/shunt/blk"
)

// access reads how the controller reaches the namespace.
func (s *Store) access(a *association) error {
	ctx, cancel := context.WithTimeoutCause(a.ctx, s.o.ConnectTimeout, errors.New("no answer"))
	defer cancel()
	n := 16 + 32*int(min(max(a.controller.ANAGroups, 1), 2048))
	const groupsOnly = 1 << 8
	b, err := a.admin.logPage(ctx, "of asymmetric access", logANA|groupsOnly, 0, 0, n)
	if err != nil {
		return err
	}
	s.mu.Lock()
	group := a.namespace.ANAGroup
	s.mu.Unlock()
	state, ok := parseANA(b, a.o.NSID, group)
	if !ok {
		return fmt.Errorf("the controller's ANA log does not have group %d, which namespace %d is in", group, a.o.NSID)
	}
	a.access.Store(&state)
	return nil
}

// accessPause is between two looks at a namespace that cannot be reached: a controller need not tell that it can be again.
const accessPause = time.Second

// watchAccess takes lanes out of service while the namespace cannot be reached through this controller, and back.
func (s *Store) watchAccess(a *association) {
	for before := *a.access.Load(); ; {
		var timer <-chan time.Time
		if !before.accessible() {
			timer = time.After(accessPause)
		}
		select {
		case <-a.ctx.Done():
			return
		case <-a.ana:
		case <-timer:
		}
		if err := s.access(a); err != nil {
			a.fail(err)
			return
		}
		now := *a.access.Load()
		if now.accessible() != before.accessible() {
			s.hold(a, now)
		}
		before = now
	}
}

// hold tells the lanes what they can reach.
func (s *Store) hold(a *association, now anaState) {
	why := s.unreached(now)
	for _, l := range s.open() {
		l.host.Worker.Do(func() {
			if l.association != a {
				return
			}
			if now.accessible() {
				l.resume(!a.controller.VolatileCache)
			} else {
				l.hold(why)
			}
		})
	}
	s.set(func(st *blk.State) {
		if st.Up = now.accessible(); st.Up {
			st.Why = nil
		} else {
			st.Why = why
		}
	})
}

// unreached says why lanes are down that are connected.
func (s *Store) unreached(now anaState) error {
	return fmt.Errorf("%s does not reach namespace %d now (ANA state %v)", s.o.Address, s.o.NSID, now)
}
