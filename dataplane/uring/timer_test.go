package uring

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// expiry notes when timers expire.
type expiry struct {
	w     *wheel
	at    map[*Timer]int64
	count map[*Timer]int
	then  func(t *Timer)
}

func (e *expiry) Expired(t *Timer) {
	e.at[t] = e.w.read()
	e.count[t]++
	if e.then != nil {
		e.then(t)
	}
}

// testWheel has a clock of its own.
func testWheel(now *int64) (*wheel, *expiry) {
	w := &wheel{clock: func() int64 { return *now }}
	return w, &expiry{w: w, at: map[*Timer]int64{}, count: map[*Timer]int{}}
}

// Timers against a plain list of deadlines: each expires once, never early, and not later than the first look at the clock one tick after its deadline; next
// says when that is.
func TestTimers(t *testing.T) {
	const tick = 1 << tickShift
	rapid.Check(t, func(t *rapid.T) {
		now := rapid.Int64Range(0, 1<<50).Draw(t, "now")
		w, heard := testWheel(&now)
		timers := make([]Timer, 12)
		deadlines := map[*Timer]int64{} // of those that run
		for i := range timers {
			timers[i].Handler = heard
		}
		span := rapid.Custom(func(t *rapid.T) int64 {
			return rapid.Int64Range(0, 1<<rapid.IntRange(0, 52).Draw(t, "digits")).Draw(t, "ns")
		})
		t.Repeat(map[string]func(*rapid.T){
			"start": func(t *rapid.T) {
				x, d := &timers[rapid.IntRange(0, 11).Draw(t, "timer")], span.Draw(t, "for")
				w.start(x, time.Duration(d))
				deadlines[x] = w.now + d
			},
			"stop": func(t *rapid.T) {
				x := &timers[rapid.IntRange(0, 11).Draw(t, "timer")]
				w.stop(x)
				delete(deadlines, x)
			},
			"wait": func(t *rapid.T) { now += span.Draw(t, "for") },
			"sleep": func(t *rapid.T) {
				if d := w.next(); d != forever {
					now += int64(d)
				}
			},
			"poll": func(*rapid.T) {
				clear(heard.at)
				clear(heard.count)
				w.fresh = false
				w.run()
			},
			"": func(t *rapid.T) {
				for x, at := range heard.at {
					deadline, ran := deadlines[x]
					if !ran || at < deadline || heard.count[x] != 1 {
						t.Fatalf("a timer that runs %v with deadline %d expired %d times, at %d", ran, deadline, heard.count[x], at)
					}
					delete(deadlines, x)
				}
				clear(heard.at)
				first := int64(1<<63 - 1)
				for i := range timers {
					x := &timers[i]
					deadline, ran := deadlines[x]
					if ran != x.Running() {
						t.Fatalf("timer %d runs %v, want %v", i, x.Running(), ran)
					}
					if ran {
						first = min(first, deadline)
					}
					if ran && deadline+2*tick <= int64(w.tick<<tickShift) {
						t.Fatalf("timer %d of %d is still there at %d", i, deadline, w.tick<<tickShift)
					}
				}
				next := w.next()
				if len(deadlines) == 0 {
					if next != forever || w.running != 0 {
						t.Fatalf("nothing runs, and the next is in %v (%d run)", next, w.running)
					}
					return
				}
				if at := now + int64(next); at < first && next > 0 || at > max(first+2*tick, now) {
					t.Fatalf("the first deadline is %d, and the worker sleeps until %d (now %d)", first, at, now)
				}
			},
		})
	})
}

// Handlers start, stop and restart timers, those that are due with them as well.
func TestTimerHandlers(t *testing.T) {
	now := int64(time.Hour)
	w, heard := testWheel(&now)
	var a, b, c Timer
	a.Handler, b.Handler, c.Handler = heard, heard, heard
	w.start(&a, time.Millisecond)
	w.start(&b, time.Millisecond)
	heard.then = func(x *Timer) {
		if x == &a {
			w.stop(&b) // due as well
			w.start(&a, 0)
			w.start(&c, time.Hour)
		}
	}
	now += int64(time.Second)
	w.fresh = false
	if n := w.run(); n != 1 || heard.count[&b] != 0 {
		t.Errorf("%d expired, the stopped one %d times", n, heard.count[&b])
	}
	if d := w.next(); d > 2<<tickShift || !a.Running() || b.Running() {
		t.Errorf("restarted at once: due in %v", d)
	}
	heard.then = nil
	now += 2 << tickShift
	w.fresh = false
	if n := w.run(); n != 1 || w.next() > time.Hour+time.Millisecond || w.next() < time.Hour-time.Second {
		t.Errorf("%d expired, next in %v", n, w.next())
	}
	// A panic loses no other.
	w.start(&a, time.Millisecond)
	w.start(&b, time.Millisecond)
	now += int64(time.Second)
	w.fresh = false
	heard.then = func(*Timer) { panic("hole") }
	func() {
		defer func() { recover() }()
		w.run()
	}()
	heard.then = nil
	if w.next() != 0 {
		t.Error("what is due is not told at once")
	}
	if w.run(); heard.count[&a]+heard.count[&b] != 3+1 {
		t.Errorf("expired %d and %d times", heard.count[&a], heard.count[&b])
	}
	w.start(&a, 1<<63-1)
	if w.next() < 1000*time.Hour && w.running == 1 {
		t.Error("a timer for ever is due in", w.next())
	}
}

func TestTimersAllocateNothing(t *testing.T) {
	r := newRing(t, Options{})
	heard := new(countExpired)
	timers := make([]Timer, 100)
	for i := range timers {
		timers[i].Handler = heard
	}
	if n := testing.AllocsPerRun(100, func() {
		for i := range timers {
			r.Start(&timers[i], time.Duration(i*i)*time.Microsecond)
		}
		r.Stop(&timers[50])
		r.Arm()
		r.Poll()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

type countExpired int

func (c *countExpired) Expired(*Timer) { *c++ }

func BenchmarkTimer(b *testing.B) {
	r := newRing(b, Options{})
	heard := new(countExpired)
	timers := make([]Timer, 1024)
	for i := range timers {
		timers[i].Handler = heard
		r.Start(&timers[i], time.Hour+time.Duration(i)*time.Millisecond)
	}
	b.ResetTimer()
	for i := range b.N {
		r.Start(&timers[i%1024], 30*time.Second)
	}
}
