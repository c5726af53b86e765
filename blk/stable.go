package blk

// Writes that must be stable when they are done: FUA where the store knows it, else a flush behind them. One flush serves all writes
// that the store has done by then, so the busier the gate the fewer flushes a write costs.
//
//	write done ─▶ written ─┬▶ flush submitted: covered ─▶ flush done: Handler.Done
//	                       └── the next ones wait here meanwhile
//
// While a write waits for its flush nobody has been told that it is done. If the lane is lost meanwhile, the store may come back without the write, and then a flush
// would say nothing about it: so the write itself is submitted again.

// secure decides how a write becomes stable. The store's word on FUA is for writes; of zeroes it says nothing.
func (g *Gate) secure(r *Request, p *Policy) {
	if !r.FUA && p.Durability != DurabilityFUA {
		return
	}
	i := g.volume.info.Load()
	r.held.stable = i.Flush || i.FUA
	r.FUA = i.FUA && r.Op == OpWrite
	if r.Op == OpDiscard || !i.Flush && !r.FUA {
		r.held.stable, r.FUA = false, false // nothing to flush, or nothing to flush it with
	}
}

// secureWritten submits a flush for what is written, unless one is under way. It goes out at the end of the round, and covers what is written by then.
func (g *Gate) secureWritten() {
	b := &g.barrier
	if b.held.flushing || g.written.empty() {
		return
	}
	g.order++
	now := g.at(going)
	*b = Request{Op: OpFlush, Handler: g}
	b.held = ticket{flushing: true, order: g.order, since: now, came: now}
	g.stats.Barriers++
	g.ready.push(b)
	if t := g.volume.policy.Load().Timeout; t > 0 {
		g.wake(now + int64(t))
	}
}

// coverWritten is for when the lane has taken the flush.
func (g *Gate) coverWritten() {
	g.barrier.held.epoch = g.volume.ledger.begin()
	for r := g.written.first; r != nil; r = g.written.first {
		r.leave()
		g.covered.push(r)
	}
}

// flushed is for the gate's own flush that ended.
func (g *Gate) flushed(o Outcome) {
	g.barrier.held.flushing = false
	switch o {
	case OK:
		g.volume.ledger.cover(g.barrier.held.epoch)
		g.drain(&g.covered, OK)
		g.secureWritten()
	case Failed, Unsupported:
		g.drain(&g.covered, Failed)
		g.secureWritten()
	default:
		g.rewrite()
	}
}

// rewrite makes writes that wait for a flush ones that were lost, unless the lane has the flush and will say itself how it ended.
func (g *Gate) rewrite() {
	if b := &g.barrier; b.held.flushing {
		if b.held.list != &g.ready {
			return
		}
		b.leave()
		b.held.flushing = false
	}
	for _, l := range [...]*tickets{&g.covered, &g.written} {
		for r := l.first; r != nil; r = l.first {
			r.leave()
			g.lose(r)
		}
	}
}
