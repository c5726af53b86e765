package blk

// ticket is what a gate keeps of a request, within the request itself: so a gate needs no table and allocates nothing, however many it has.
type ticket struct {
	handler    Handler // who the request came from; the gate stands in its place meanwhile
	list       *tickets
	next, prev *Request

	order uint64 // of requests at this gate: its age
	came  int64  // when it was submitted
	since int64  // when the limits let it go: what the volume's timeout counts from
	epoch uint64 // of a flush: see ledger

	stable   bool    // it is on stable storage when it is done; the guest or the volume wants it so
	turn     bool    // its turn under the limits is settled: gate.turn
	again    bool    // it was submitted to the lane before
	ending   ending  // why it was asked back from the lane
	outcome  Outcome // of a request that ended by itself, until somebody can be told
	doomed   bool    // a flush that fails because of what the store has lost
	flushing bool    // it is the gate's own flush
}

// ending says why a request was asked back.
type ending uint8

const (
	staying ending = iota
	expired        // it has taken too long
	called         // by who it came from
)

// tickets is a list of requests, the oldest first. A request is in one list, or in none.
type tickets struct{ first, last *Request }

func (l *tickets) empty() bool { return l.first == nil }

// push adds a request that is younger than all, as those that come are.
func (l *tickets) push(r *Request) { l.link(l.last, r, nil) }

// insert adds a request at its age. Those that come back from a lane mostly come in order, so its place is near the end.
func (l *tickets) insert(r *Request) {
	before := l.last
	for before != nil && before.held.order > r.held.order {
		before = before.held.prev
	}
	after := l.first
	if before != nil {
		after = before.held.next
	}
	l.link(before, r, after)
}

func (l *tickets) link(before, r, after *Request) {
	t := &r.held
	t.list, t.prev, t.next = l, before, after
	if before == nil {
		l.first = r
	} else {
		before.held.next = r
	}
	if after == nil {
		l.last = r
	} else {
		after.held.prev = r
	}
}

// leave takes a request out of its list.
func (r *Request) leave() {
	t := &r.held
	if t.prev == nil {
		t.list.first = t.next
	} else {
		t.prev.held.next = t.next
	}
	if t.next == nil {
		t.list.last = t.prev
	} else {
		t.next.held.prev = t.prev
	}
	t.list, t.prev, t.next = nil, nil, nil
}
