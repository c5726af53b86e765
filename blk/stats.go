package blk

// OpStats are of all requests of one kind.
type OpStats struct {
	// Done counts requests that ended well, Failed those that did not (withdrawn ones are neither), Bytes what the first ones read and wrote, or gave back.
	Done, Failed, Bytes uint64
	// Queue is how long requests waited in the gate until the lane had them for the last time; Store from there to their end; Total both.
	Queue, Store, Total Histogram
}

// GateStats are counters of a gate, or of several.
type GateStats struct {
	// Ops are by operation.
	Ops [Ops]OpStats
	// Retries counts requests that were lost on the way and submitted again, Timeouts those that took too long, Withdrawn those that were taken back,
	// Limited those that had to wait for their turn. Barriers counts flushes of our own, behind writes to a store without FUA.
	Retries, Timeouts, Withdrawn, Limited, Barriers uint64
	// InFlight is how many requests the lane has now, Waiting how many wait for it or for their turn.
	InFlight, Waiting int
}

// count is for a request that ended.
func (s *GateStats) count(r *Request, o Outcome, now int64) {
	op := &s.Ops[r.Op]
	switch o {
	case OK:
		op.Done++
		op.Bytes += r.Length
	case Withdrawn:
		s.Withdrawn++
		return
	default:
		op.Failed++
	}
	came := r.held.came
	op.Total.add(now - came)
	if r.Began != 0 {
		op.Queue.add(r.Began - came)
		op.Store.add(now - r.Began)
	}
}

// Merge adds what others counted.
func (s *GateStats) Merge(other *GateStats) {
	for i := range s.Ops {
		a, b := &s.Ops[i], &other.Ops[i]
		a.Done, a.Failed, a.Bytes = a.Done+b.Done, a.Failed+b.Failed, a.Bytes+b.Bytes
		a.Queue.Merge(&b.Queue)
		a.Store.Merge(&b.Store)
		a.Total.Merge(&b.Total)
	}
	s.Retries += other.Retries
	s.Timeouts += other.Timeouts
	s.Withdrawn += other.Withdrawn
	s.Limited += other.Limited
	s.Barriers += other.Barriers
	s.InFlight += other.InFlight
	s.Waiting += other.Waiting
}

// collect adds the gate's counters to s, on its worker.
func (g *Gate) collect(s *GateStats) {
	g.stats.InFlight, g.stats.Waiting = 0, 0
	for _, l := range [...]*tickets{&g.away, &g.leaving} {
		for r := l.first; r != nil; r = r.held.next {
			if !r.held.flushing {
				g.stats.InFlight++
			}
		}
	}
	g.stats.Waiting = g.busy - g.stats.InFlight
	s.Merge(&g.stats)
	g.stats.InFlight, g.stats.Waiting = 0, 0
}

// VolumeStats are a volume's counters since it was opened.
type VolumeStats struct {
	GateStats
	// Reconnects counts lanes that came back, Disconnects those that went away. A volume has a lane on each of its workers.
	Reconnects, Disconnects uint64
	// Unflushed is how many writes were acknowledged since the last flush that succeeded.
	Unflushed uint64
	// Losses counts ends of the store at which there were such writes, and which they may not have survived; LossesTold the flushes that failed to tell the guest.
	Losses, LossesTold uint64
}
