package blk

import (
	"time"

	"github.com/shuntio/shunt/dataplane/uring"
)

// wake sees that the gate's timer expires at that time, or earlier.
func (g *Gate) wake(at int64) {
	if at < g.deadline {
		g.deadline = at
		g.timers.Start(&g.timer, time.Duration(max(0, at-g.now)))
	}
}

// Expired implements uring.TimerHandler: somebody's turn under the limits has come, or the end of a fence, or somebody has waited too long.
func (g *Gate) Expired(*uring.Timer) {
	g.deadline, g.phase = never, pausing
	now := g.at(coming)
	if p := g.volume.policy.Load(); p.Timeout > 0 {
		g.expire(now - int64(p.Timeout))
	}
	g.unfence(now)
	g.admit(now)
	g.send()
	g.rearm()
}

// expire ends what the limits let go at that time or before.
func (g *Gate) expire(since int64) {
	for _, l := range [...]*tickets{&g.lost, &g.ready, &g.written, &g.covered} {
		for r := l.first; r != nil && r.held.since <= since; r = l.first {
			r.leave()
			if r.held.flushing {
				g.flushed(Lost)
				continue
			}
			g.stats.Timeouts++
			g.end(r, Failed)
		}
	}
	for r := g.away.first; r != nil && r.held.since <= since; r = g.away.first {
		g.recall(r, expired)
	}
}

// rearm sets the timer for what is to be done next.
func (g *Gate) rearm() {
	if r := g.fenced.first; r != nil {
		g.wake(r.After)
	}
	if r := g.limited.first; r != nil && r.held.turn {
		g.wake(g.turn)
	}
	p := g.volume.policy.Load()
	if p.Timeout == 0 {
		return
	}
	for _, l := range [...]*tickets{&g.lost, &g.ready, &g.written, &g.covered, &g.away} {
		if l.first != nil {
			g.wake(l.first.held.since + int64(p.Timeout))
		}
	}
}

// review is for when the volume's policy or limits have changed: a turn under other limits is void.
func (g *Gate) review() {
	if r := g.limited.first; r != nil && g.by != g.volume.bounds.Load() {
		r.held.turn = false
	}
	g.phase = pausing
	g.admit(g.at(coming))
	if g.hopeless() {
		g.down()
	}
	g.rearm()
}
