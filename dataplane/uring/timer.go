package uring

import (
	"math/bits"
	"time"
)

// The wheel of timers. Time is counted in ticks, and a tick is written in digits of 6 bits. A timer lies at the level of the highest digit in which its
// deadline differs from now, in the slot of that digit's value:
//
//	level 0: this very tick's neighbours, a slot a tick        (65 us)
//	level 1: a slot for 64 ticks, 4.2 ms                       ┐ when now comes to the slot, its timers
//	level 2: 268 ms   level 3: 17 s   level 4: 18 min   ...    ┘ move down to where they differ next
//
// So all timers of a level are before all of the next, and within a level in the order of the slots: the next deadline is in the first slot of the
// lowest level that has any, which two bit operations find. Starting and stopping is a link in a list.

// forever is how long a worker may sleep that waits for no timer: dataplane.Forever.
const forever = time.Duration(1<<63 - 1)

const (
	tickShift = 16 // a tick is 65536 ns
	digit     = 6
	levels    = 8 // 48 bits of ticks are 500 years
)

// Timer calls its handler once, after a while. It is its user's memory.
type Timer struct {
	// Handler hears of the end.
	Handler TimerHandler
	// Tag is its user's.
	Tag int

	tick       uint64 // when it is due: the first tick that is not before the deadline
	slot       *timerList
	next, prev *Timer
}

// TimerHandler hears that a timer has expired: on the worker, within Poll. The timer may be started again at once.
type TimerHandler interface {
	Expired(t *Timer)
}

// Running tells whether the timer was started, and has neither expired nor been stopped.
func (t *Timer) Running() bool { return t.slot != nil }

// Start lets a timer expire after d, or up to a tick later. One that is running begins anew.
func (r *Ring) Start(t *Timer, d time.Duration) { r.timers.start(t, d) }

// Stop keeps a timer from expiring; nothing if it is not running.
func (r *Ring) Stop(t *Timer) { r.timers.stop(t) }

type timerList struct {
	first       *Timer
	level, slot uint8
}

type wheel struct {
	slots    [levels][1 << digit]timerList
	occupied [levels]uint64 // slots that are not empty
	due      timerList      // expired, and not yet told
	running  int
	tick     uint64 // up to where timers have moved
	now      int64
	fresh    bool // now was read in this round
	clock    func() int64
}

// epoch is what the monotonic clock is counted from.
var epoch = time.Now()

// read reads the clock, once a round and only when somebody asks.
func (w *wheel) read() int64 {
	if !w.fresh {
		w.fresh = true
		if w.clock != nil {
			w.now = w.clock()
		} else {
			w.now = int64(time.Since(epoch))
		}
	}
	return w.now
}

func (w *wheel) start(t *Timer, d time.Duration) {
	w.stop(t)
	now := w.read()
	if w.running == 0 {
		w.tick = max(w.tick, uint64(now)>>tickShift) // run does not move it while there are none
	}
	deadline := now + min(max(int64(d), 0), 1<<62-now)
	t.tick = max(uint64(deadline+1<<tickShift-1)>>tickShift, w.tick+1)
	w.running++
	w.place(t)
}

func (w *wheel) stop(t *Timer) {
	if t.slot != nil {
		w.unlink(t)
		w.running--
	}
}

// place links a timer, whose tick is after the wheel's, into its slot.
func (w *wheel) place(t *Timer) {
	level := min((bits.Len64(t.tick^w.tick)-1)/digit, levels-1)
	at := t.tick >> (level * digit) & (1<<digit - 1)
	w.occupied[level] |= 1 << at
	l := &w.slots[level][at]
	l.level, l.slot = uint8(level), uint8(at)
	w.link(l, t)
}

// link appends a timer to a list, which is circular.
func (w *wheel) link(l *timerList, t *Timer) {
	t.slot = l
	if l.first == nil {
		l.first, t.next, t.prev = t, t, t
		return
	}
	t.next, t.prev = l.first, l.first.prev
	t.prev.next, t.next.prev = t, t
}

// unlink takes a timer out of its list.
func (w *wheel) unlink(t *Timer) {
	l := t.slot
	switch {
	case t.next == t:
		l.first = nil
		if l != &w.due {
			w.occupied[l.level] &^= 1 << l.slot
		}
	case l.first == t:
		l.first = t.next
	}
	t.prev.next, t.next.prev = t.next, t.prev
	t.slot, t.next, t.prev = nil, nil, nil
}

// earliest finds the slot whose timers are due first, and the tick it begins at; nil if there is none.
func (w *wheel) earliest() (*timerList, uint64) {
	for level := range w.occupied {
		if w.occupied[level] == 0 {
			continue
		}
		at := uint64(bits.TrailingZeros64(w.occupied[level]))
		shift := level * digit
		return &w.slots[level][at], (w.tick>>shift>>digit<<digit | at) << shift
	}
	return nil, 0
}

// run calls the handlers of what is due.
func (w *wheel) run() (n int) {
	if w.running == 0 {
		return 0
	}
	w.advance(uint64(w.read()) >> tickShift)
	for w.due.first != nil {
		t := w.due.first
		w.unlink(t)
		w.running--
		n++
		t.Handler.Expired(t)
	}
	return n
}

// advance moves now on, slot by slot that has timers: those due are put aside, the others move down.
func (w *wheel) advance(now uint64) {
	for {
		l, begins := w.earliest()
		if l == nil || begins > now {
			w.tick = max(w.tick, now)
			return
		}
		w.tick = begins
		for l.first != nil {
			t := l.first
			w.unlink(t)
			if t.tick <= w.tick {
				w.link(&w.due, t)
			} else {
				w.place(t)
			}
		}
	}
}

// next is how long it is until the first timer is due.
func (w *wheel) next() time.Duration {
	if w.running == 0 {
		return forever
	}
	if w.due.first != nil {
		return 0 // a handler panicked
	}
	l, _ := w.earliest()
	tick := l.first.tick
	if l.level > 0 {
		for t := l.first.next; t != l.first; t = t.next {
			tick = min(tick, t.tick)
		}
	}
	w.fresh = false // some time has passed since the round began
	return max(time.Duration(int64(tick<<tickShift)-w.read()), 0)
}
