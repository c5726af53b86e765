package blktest

import (
	"slices"
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/guestmem"
)

// lane is a worker's way to the store, and a dataplane.Source: the worker polls it.
type lane struct {
	store  *Store
	host   blk.Host
	events blk.Events

	up      bool
	dead    bool // the store that it knew is no more
	refused bool // a request was handed back; Room is due
	waiting []task
	ended   []ended // by the current Poll

	// Copies of the store's, so that Submit takes no lock.
	depth         int
	delay, jitter time.Duration
	silent, deaf  bool
}

type task struct {
	r         *blk.Request
	due       int64
	withdrawn bool
}

type ended struct {
	r *blk.Request
	o blk.Outcome
}

var (
	_ blk.Lane         = (*lane)(nil)
	_ dataplane.Source = (*lane)(nil)
)

func newLane(s *Store, h blk.Host, e blk.Events) *lane {
	l := &lane{store: s, host: h, events: e}
	l.look()
	l.waiting, l.ended = make([]task, 0, l.depth), make([]ended, 0, l.depth)
	return l
}

// look takes over what the store's faults are.
func (l *lane) look() {
	s := l.store
	s.mu.Lock()
	defer s.mu.Unlock()
	l.depth, l.delay, l.jitter, l.silent, l.deaf = s.depth, s.delay, s.jitter, s.silent, s.deaf
}

// Submit implements blk.Lane.
func (l *lane) Submit(r *blk.Request) bool {
	if !l.up || len(l.waiting) >= l.depth {
		l.refused = true
		return false
	}
	t := task{r: r}
	if l.delay+l.jitter > 0 {
		t.due = l.store.options.Clock() + int64(l.delay)
		if l.jitter > 0 {
			t.due += l.store.draw(int64(l.jitter))
		}
	}
	l.waiting = append(l.waiting, t)
	return true
}

// draw is a number below n.
func (s *Store) draw(n int64) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.chance.Int64N(n)
}

// Withdraw implements blk.Lane.
func (l *lane) Withdraw(r *blk.Request) {
	for i := range l.waiting {
		if l.waiting[i].r == r {
			l.waiting[i].withdrawn = !l.deaf
		}
	}
}

// Flush implements blk.Lane: what was submitted is on its way already.
func (l *lane) Flush() {}

// Close implements blk.Lane.
func (l *lane) Close() {
	if len(l.waiting) > 0 {
		panic("blktest: a lane is closed with requests under way")
	}
	l.host.Worker.Remove(l)
	l.store.mu.Lock()
	defer l.store.mu.Unlock()
	l.store.lanes = slices.DeleteFunc(l.store.lanes, func(x *lane) bool { return x == l })
}

// Poll ends requests that are due.
func (l *lane) Poll() int {
	if len(l.waiting) == 0 && !l.refused {
		return 0
	}
	l.perform()
	n := len(l.ended)
	l.tell()
	if l.refused && l.up && len(l.waiting) < l.depth {
		l.refused = false
		l.events.Room()
	}
	return n
}

// perform does what is due.
func (l *lane) perform() {
	s, now := l.store, int64(0)
	if l.delay+l.jitter > 0 || len(l.waiting) > 0 && l.waiting[0].due > 0 {
		now = s.options.Clock()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := l.waiting[:0]
	for _, t := range l.waiting {
		switch {
		case t.withdrawn:
			l.perhaps(t.r)
			l.ended = append(l.ended, ended{t.r, blk.Withdrawn})
		case t.due <= now && !l.silent && !l.dead:
			l.ended = append(l.ended, ended{t.r, s.answer(t.r)})
		default:
			kept = append(kept, t)
		}
	}
	clear(l.waiting[len(kept):])
	l.waiting = kept
}

// tell calls handlers, which may submit again.
func (l *lane) tell() {
	for _, e := range l.ended {
		e.r.Handler.Done(e.r, e.o)
	}
	clear(l.ended)
	l.ended = l.ended[:0]
}

// fall loses the store.
func (l *lane) fall(why error) {
	if !l.up {
		return
	}
	s := l.store
	s.mu.Lock()
	early := s.chance.IntN(2) == 0
	s.chance.Shuffle(len(l.waiting), func(i, j int) { l.waiting[i], l.waiting[j] = l.waiting[j], l.waiting[i] })
	for _, t := range l.waiting {
		l.perhaps(t.r)
		l.ended = append(l.ended, ended{t.r, blk.Lost})
	}
	clear(l.waiting)
	l.waiting = l.waiting[:0]
	s.mu.Unlock()
	l.up, l.refused = false, false
	if early {
		l.events.Down(why)
	}
	l.tell()
	if !early {
		l.events.Down(why)
	}
}

// perhaps executes a request whose end nobody hears of. With the store's lock.
func (l *lane) perhaps(r *blk.Request) {
	if !l.dead && l.store.chance.IntN(2) == 0 {
		l.store.execute(r)
	}
}

// die has what is under way be executed or not; from then on nothing is.
func (l *lane) die() {
	s := l.store
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range l.waiting {
		l.perhaps(t.r)
	}
	l.dead = true
}

// rise has the store back.
func (l *lane) rise(kept bool) {
	if l.up {
		return
	}
	l.up, l.dead = true, false
	l.events.Up(kept)
}

// Arm tells when the next request is due.
func (l *lane) Arm() time.Duration {
	least := dataplane.Forever
	for _, t := range l.waiting {
		if !l.silent && !l.dead {
			least = min(least, time.Duration(max(0, t.due-l.store.options.Clock())))
		}
	}
	return least
}

// Pending tells whether Poll has something to do.
func (l *lane) Pending() bool {
	for _, t := range l.waiting {
		if t.withdrawn || !l.silent && !l.dead && (t.due == 0 || t.due <= l.store.options.Clock()) {
			return true
		}
	}
	return false
}

// Disarm has nothing to take back.
func (l *lane) Disarm() {}

// answer executes a request, unless it is to fail.
func (s *Store) answer(r *blk.Request) blk.Outcome {
	for i := range s.fails {
		f := &s.fails[i]
		if f.op != r.Op {
			continue
		}
		if f.after > 0 {
			f.after--
			continue
		}
		o := f.o
		s.fails = slices.Delete(s.fails, i, i+1)
		return o
	}
	return s.execute(r)
}

// execute does what the request says.
func (s *Store) execute(r *blk.Request) blk.Outcome {
	s.counts[r.Op]++
	if r.Op == blk.OpFlush {
		s.settle()
		return blk.OK
	}
	if r.Offset+r.Length > s.info.Size || r.Op != blk.OpRead && s.info.ReadOnly {
		return blk.Failed
	}
	if s.options.Null {
		return blk.OK
	}
	at := s.cache[r.Offset:][:r.Length]
	switch r.Op {
	case blk.OpRead:
		for _, b := range r.Buffers {
			if !guestmem.Copy(b, at) {
				return blk.Failed
			}
			at = at[min(len(at), len(b)):]
		}
		return blk.OK
	case blk.OpWrite:
		for _, b := range r.Buffers {
			if !guestmem.Copy(at, b) {
				return blk.Failed
			}
			at = at[min(len(at), len(b)):]
		}
	default:
		clear(at)
	}
	s.mark(r)
	return blk.OK
}

// mark notes that blocks were written.
func (s *Store) mark(r *blk.Request) {
	if r.FUA || !s.info.Flush {
		copy(s.stable[r.Offset:][:r.Length], s.cache[r.Offset:])
		return
	}
	size := uint64(s.options.BlockSize)
	for i := r.Offset / size; i < (r.Offset+r.Length+size-1)/size; i++ {
		if !s.dirty[i] {
			s.dirty[i] = true
			s.blocks = append(s.blocks, int(i))
		}
	}
}
