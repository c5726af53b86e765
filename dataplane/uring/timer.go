package uring

import "time"

// forever is how long a worker may sleep that waits for no timer: dataplane.Forever.
const forever = time.Duration(1<<63 - 1)

// Timer calls its handler once, after a while. It is its user's memory.
type Timer struct {
	// Handler hears of the end.
	Handler TimerHandler
	// Tag is its user's.
	Tag int

	running bool
}

// TimerHandler hears that a timer has expired: on the worker, within Poll. The timer may be started again at once.
type TimerHandler interface {
	Expired(t *Timer)
}

// Running tells whether the timer was started, and has neither expired nor been stopped.
func (t *Timer) Running() bool { return t.running }

type wheel struct{}

func (w *wheel) start(t *Timer, d time.Duration) { t.running = true }
func (w *wheel) stop(t *Timer)                   { t.running = false }

// Start lets a timer expire after d, and up to a tick (65 us) later. One that is running begins anew.
func (r *Ring) Start(t *Timer, d time.Duration) { r.timers.start(t, d) }

// Stop keeps a timer from expiring; nothing if it is not running.
func (r *Ring) Stop(t *Timer) { r.timers.stop(t) }
