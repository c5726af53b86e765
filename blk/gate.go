package blk

import (
	"time"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/uring"
)

// Gate is where the requests of one queue wait: for their turn under the volume's limits, for a lane that is down or full, for the flush that makes a write
// stable. It submits again what was lost on the way, and ends what takes too long.
//
//	Submit ─▶ fenced ─▶ limited ─▶ ready ─▶ Lane.Submit: away ─┬▶ Done ─────────────────▶ Handler.Done
//	          (After)   (turn)       ▲                         ├▶ written ─▶ covered ─▶     (write and flush: stable.go)
//	                                lost ◀──── Lost ───────────┤
//	                                                           └▶ leaving ─▶ Done          (asked back)
//
// Each arrow leads from one list to another, and where nothing keeps a request it goes the upper way in one step. A gate belongs to its queue's worker. It calls
// Handler.Done within the lane's Done, a timer, Flush or Withdraw, never within Submit. No order is promised among requests under way at once, as in
// virtio-blk; what was lost goes first, by age.
//
// A timer serves the whole gate: it is set for the earliest time at which something is to be done, and not moved when that becomes later.
type Gate struct {
	volume *Volume
	trunk  *trunk
	worker *dataplane.Worker
	timers timers
	clock  func() int64

	fenced, limited, ready, lost, away, leaving, written, covered, ended tickets

	turn    int64   // when the first of limited may go, if it has its turn
	by      *bounds // that gave it
	barrier Request // the gate's own flush, behind writes that must be stable
	order   uint64  // of the last request
	busy    int     // requests that are not done

	timer    uring.Timer
	deadline int64 // when timer expires; never: it does not run

	// The clock is read once for all requests that come, or end, in a row.
	now   int64
	round int64
	phase phase

	stats GateStats
}

// timers is a uring.Ring, as far as a gate needs it.
type timers interface {
	Start(t *uring.Timer, d time.Duration)
	Stop(t *uring.Timer)
}

const never = int64(1<<63 - 1)

// phase says what the clock was read for last.
type phase uint8

const (
	pausing phase = iota
	coming
	going
)

// at is the time, read once for all that happens in a row in one round.
func (g *Gate) at(p phase) int64 {
	if round := g.worker.Now(); g.phase != p || g.round != round {
		g.phase, g.round, g.now = p, round, g.clock()
	}
	return g.now
}

// Submit takes a request. Its handler hears of the end later, never within the call.
func (g *Gate) Submit(r *Request) {
	now := g.at(coming)
	g.order++
	g.busy++
	t := &r.held
	*t = ticket{handler: r.Handler, order: g.order, came: now, since: now}
	r.Handler, r.Began = g, 0
	v := g.volume
	p := v.policy.Load()
	if r.Op == OpFlush {
		t.epoch = v.ledger.begin()
	} else if r.Op != OpRead {
		g.secure(r, p)
	}
	if p.Timeout > 0 {
		g.wake(now + int64(p.Timeout))
	}
	if r.After > now {
		g.fenced.push(r)
		g.wake(g.fenced.first.After)
		return
	}
	g.limit(r, now)
}

// limit lets a request go when it is its turn.
func (g *Gate) limit(r *Request, now int64) {
	if b := g.volume.bounds.Load(); b != nil || !g.limited.empty() {
		g.limited.push(r)
		g.admit(now)
		return
	}
	g.admitted(r, now)
}

// unfence lets go what no write of a dead process can come after any more. It is the youngest from now on.
func (g *Gate) unfence(now int64) {
	for r := g.fenced.first; r != nil && r.After <= now; r = g.fenced.first {
		r.leave()
		g.order++
		r.held.order, r.held.since = g.order, now
		g.limit(r, now)
	}
}

// admitted sends a request that the limits have let go.
func (g *Gate) admitted(r *Request, now int64) {
	r.held.since = now
	switch {
	case g.trunk.open() && g.ready.empty() && g.lost.empty():
		if !g.give(r, now) {
			g.ready.push(r)
		}
	case g.hopeless():
		g.later(r, Failed)
	default:
		g.ready.push(r)
	}
}

// admit lets go whose turn it is.
func (g *Gate) admit(now int64) {
	for r := g.limited.first; r != nil; r = g.limited.first {
		if !r.held.turn {
			g.turn, g.by = now, g.volume.bounds.Load()
			if g.by != nil {
				g.turn = g.by.reserve(now, r)
			}
			r.held.turn = true
		}
		if g.turn > now {
			g.wake(g.turn)
			return
		}
		if r.leave(); r.held.came < now {
			g.stats.Limited++
		}
		g.admitted(r, now)
	}
}

// give submits a request to the lane; false: it stays where it is.
func (g *Gate) give(r *Request, now int64) bool {
	t, info := &r.held, g.volume.info.Load()
	t.doomed = r.Op == OpFlush && !t.flushing && g.volume.ledger.fails(t.epoch)
	if t.doomed || r.Offset+r.Length > info.Size { // the disk was larger when the request came
		if t.list != nil {
			r.leave()
		}
		g.later(r, Failed)
		return true
	}
	if r.FUA && !info.FUA {
		g.secure(r, g.volume.policy.Load()) // the store had it when the request came
	}
	r.Began = now
	if !g.trunk.submit(r) {
		return false
	}
	if t.again {
		g.stats.Retries++
	}
	t.again = true
	if t.list != nil {
		r.leave()
	}
	g.away.insert(r)
	if t.flushing {
		g.coverWritten()
	}
	return true
}

// send submits what waits for the lane, what was lost first.
func (g *Gate) send() {
	for g.trunk.open() {
		r := g.lost.first
		if r == nil {
			r = g.ready.first
		}
		if r == nil || !g.give(r, g.at(coming)) {
			return
		}
	}
}

// Done implements Handler: the lane has ended a request.
func (g *Gate) Done(r *Request, o Outcome) {
	t := &r.held
	r.leave()
	if t.flushing {
		g.flushed(o)
		return
	}
	if o != OK || g.volume.doubt.Load() != 0 {
		g.doubts(r, o)
	}
	unflushed := o == OK && t.stable && !r.FUA
	if o == Lost || o == Withdrawn || unflushed && t.ending != staying {
		switch t.ending {
		case staying:
			g.lose(r)
			return
		case expired:
			o = Failed
			g.stats.Timeouts++
		case called:
			o = Withdrawn
		}
	}
	switch {
	case o != OK:
	case unflushed:
		g.written.insert(r)
		g.secureWritten()
		return
	case r.Op == OpFlush:
		if g.volume.ledger.cover(t.epoch); g.volume.ledger.fails(t.epoch) {
			o, t.doomed = Failed, true
		}
	case !t.stable && (r.Op == OpWrite || r.Op == OpWriteZeroes) && g.volume.info.Load().Flush:
		g.volume.ledger.acknowledge(g.trunk.page)
	}
	g.end(r, o)
}

// lose keeps a request whose fate nobody knows, if it may be submitted again.
func (g *Gate) lose(r *Request) {
	if g.patient() {
		g.lost.insert(r)
		return
	}
	g.end(r, Failed)
}

// patient: requests wait for a lane that went away, for a time at least.
func (g *Gate) patient() bool {
	p := g.volume.policy.Load()
	return p.OnError == Wait || p.Timeout > 0
}

// hopeless: nobody waits for the lane to come back. One that was never up yet is being opened.
func (g *Gate) hopeless() bool { return !g.trunk.up && g.trunk.seen && !g.patient() }

// down is told when the lane went away. What it had comes back as Lost.
func (g *Gate) down() {
	g.rewrite()
	if g.patient() {
		return
	}
	g.drain(&g.lost, Failed)
	g.drain(&g.ready, Failed)
}

// end tells who submitted a request that it is done.
func (g *Gate) end(r *Request, o Outcome) {
	g.stats.count(r, o, g.at(going))
	g.busy--
	if r.held.doomed && o == Failed {
		g.volume.ledger.tell()
	}
	h := r.held.handler
	r.Handler, r.held.handler = h, nil
	h.Done(r, o)
}

// later ends a request when the caller has returned.
func (g *Gate) later(r *Request, o Outcome) {
	r.held.outcome = o
	g.ended.push(r)
}

// drain ends what a list holds by now.
func (g *Gate) drain(l *tickets, o Outcome) {
	for last := g.order; l.first != nil && l.first.held.order <= last; {
		r := l.first
		r.leave()
		if r.held.flushing {
			g.flushed(Lost)
			continue
		}
		g.end(r, o)
	}
}

// Flush ends a round: what was submitted goes out. Requests that ended without the lane are done within it.
func (g *Gate) Flush() {
	for last := g.order; g.ended.first != nil && g.ended.first.held.order <= last; {
		r := g.ended.first
		r.leave()
		g.end(r, r.held.outcome)
	}
	if g.lost.first != nil || g.ready.first != nil {
		g.send()
	}
	g.trunk.flush()
	g.phase = pausing
}

// Withdraw asks for all requests back. Those that the lane does not have are done when it returns, the others as soon as the lane lets them go: Withdrawn,
// unless they have ended otherwise.
func (g *Gate) Withdraw() {
	for _, l := range [...]*tickets{&g.written, &g.covered, &g.fenced, &g.limited, &g.ready, &g.lost, &g.ended} { // writes before the flush that is theirs
		g.drain(l, Withdrawn)
	}
	for last := g.order; g.away.first != nil && g.away.first.held.order <= last; {
		g.recall(g.away.first, called)
	}
	for r := g.leaving.first; r != nil; r = r.held.next {
		r.held.ending = called
	}
}

// recall asks the lane for a request back. It may be done, and others with it, when this returns.
func (g *Gate) recall(r *Request, why ending) {
	r.leave()
	r.held.ending = why
	g.leaving.insert(r)
	g.trunk.lane.Withdraw(r)
}

// Busy is how many requests are not done, the gate's own flush among them.
func (g *Gate) Busy() int {
	if g.barrier.held.flushing {
		return g.busy + 1
	}
	return g.busy
}

// Marks are what a successor has to know of writes that went this way.
func (g *Gate) Marks() marks {
	l := &g.volume.ledger
	return marks{written: g.trunk.page.last.Load(), flushed: l.flushed.Load(), lost: l.owed.Load()}
}

// Inherit makes writes ours that a process before this one acknowledged and did not flush. lost: it knew that the store has lost some.
func (g *Gate) Inherit(lost bool) {
	v, p := g.volume, g.trunk.page
	if !v.info.Load().Flush {
		return
	}
	v.ledger.acknowledge(p)
	if lost || v.restarted.Load() {
		v.note(noteLoss, g.worker.Index(), nil, v.ledger.judge(p, dataplane.Clock()))
	}
}
