package dataplane

import (
	"fmt"
	"slices"
	"time"

	"github.com/shuntio/shunt/dataplane/shm"
	"golang.org/x/sys/unix"
)

// IdlePolicy says what a worker does when a round found nothing.
type IdlePolicy uint8

const (
	// Adaptive polls for WorkerOptions.Spin after the last work, then sleeps. While others have work of the worker's and will tell when it is done (Owe), it
	// sleeps at once, unless frames come: to poll for a disk takes a CPU and makes the disk no faster.
	Adaptive IdlePolicy = iota
	// Poll never sleeps: lowest latency, a whole CPU.
	Poll
	// Interrupt sleeps as soon as a round found nothing: least CPU.
	Interrupt
)

// String is the policy's name in the configuration.
func (p IdlePolicy) String() string {
	switch p {
	case Adaptive:
		return "adaptive"
	case Poll:
		return "poll"
	case Interrupt:
		return "interrupt"
	}
	return fmt.Sprintf("idle-policy-%d", uint8(p))
}

// idleState follows the rounds of one Run.
type idleState struct {
	policy IdlePolicy
	spin   int64 // ns
	last   int64 // when there was work last
}

// after a round that found work, or none.
func (i *idleState) after(w *Worker, work int) {
	switch {
	case work > 0:
		i.last = w.now
	case i.policy == Poll:
	case i.policy == Adaptive && w.now-i.last < i.spin && (w.owed == 0 || w.now-w.carried < i.spin):
	default:
		w.sleep()
		i.last = w.now
	}
}

// Owe counts what a source has given to others than its peers, such as requests that a disk has: n more, or fewer. Whoever has it signals a file that the worker
// watches when it is done. Only the worker calls this.
func (w *Worker) Owe(n int) { w.owed += n }

// sleep is the one place where the sleep sequence is written:
//
//	say that we sleep; arm every source; FENCE; look again everywhere; ppoll; disarm
//
// A link that its limit holds back has nothing to be woken for but the time at which the limit lets frames pass. Its files are left out of the ppoll: what
// waits in a socket would end each sleep at once.
//
// Everybody who brings work does the mirror image: publish the work; FENCE; look whether we sleep, and if so
// write the file we watch. Each side's store is ordered before its load by the fence, so at least one of them sees the other:
// either we find the work, or they find us asleep.
func (w *Worker) sleep() {
	w.mailbox.asleep.Store(true)
	limit := Forever
	for _, s := range w.sources {
		limit = min(limit, s.Arm())
	}
	held := w.hold()
	limit = min(limit, held)
	w.pool.Exchange() // arming an uplink takes back what was transmitted
	w.countFree()
	shm.Fence()
	if w.pending() {
		w.awake()
		return
	}
	timedOut := w.wait(limit)
	w.unhold()
	if timedOut && held == Forever && w.pending() && !w.announced() {
		w.stats.Late.Add(1)
	}
	w.awake()
}

// announced tells whether a watched file has something to say by now: what came while the thread was on its way out of its sleep is not late.
func (w *Worker) announced() bool {
	w.timeout = unix.Timespec{}
	n, _ := unix.Ppoll(w.wake, &w.timeout, nil)
	return n > 0
}

// pending looks everywhere for work.
func (w *Worker) pending() bool {
	if w.mailbox.pending.Load() || w.stop.Load() || w.arriving() {
		return true
	}
	for _, s := range w.sources {
		if s.Pending() {
			return true
		}
	}
	return false
}

func (w *Worker) awake() {
	w.unhold()
	w.mailbox.asleep.Store(false)
	for _, s := range w.sources {
		s.Disarm()
	}
}

// wait sleeps until a watched file has something to say, or the limit is over; then it reports true.
func (w *Worker) wait(limit time.Duration) (timedOut bool) {
	var timeout *unix.Timespec
	if limit != Forever {
		w.timeout = unix.NsecToTimespec(int64(limit))
		timeout = &w.timeout
	}
	w.stats.Sleeps.Add(1)
	n, err := unix.Ppoll(w.wake, timeout, nil)
	if err != nil { // EINTR: the runtime's preemption signal
		return false
	}
	if n == 0 {
		w.stats.Timeouts.Add(1)
		return true
	}
	for i := range w.wake {
		if w.wake[i].Revents != 0 && w.drain[i] {
			shm.Drain(int(w.wake[i].Fd)) // whatever it counts, we look everywhere
		}
	}
	return false
}

// hold leaves the files of links that are held back by their limits out of the coming sleep. It returns how long the first of them is.
func (w *Worker) hold() (least time.Duration) {
	least = Forever
	for i, l := range w.feeds {
		if l != nil && l.owner.Load() == w && l.waits != Forever { // one that is polled by nobody yet has not been armed
			w.wake[i].Fd = ^w.wake[i].Fd // poll(2) ignores what is negative
			least = min(least, l.waits)
		}
	}
	return least
}

// unhold takes hold back.
func (w *Worker) unhold() {
	for i := range w.wake {
		if fd := w.wake[i].Fd; fd < 0 {
			w.wake[i].Fd = ^fd
		}
	}
}

// Watch lets a file end the worker's sleep: events as in poll(2). With drain it is an eventfd that is read when it fires.
// Only within Do. The file stays the caller's, and open until Unwatch.
func (w *Worker) Watch(fd int, events int16, drain bool) { w.WatchFor(nil, fd, events, drain) }

// WatchFor is Watch for a file that tells of nothing but frames which come in by a link: while the link's limit holds those back, nobody looks at it.
func (w *Worker) WatchFor(l *Link, fd int, events int16, drain bool) {
	w.wake = append(w.wake, unix.PollFd{Fd: int32(fd), Events: events})
	w.drain = append(w.drain, drain)
	w.feeds = append(w.feeds, l)
}

// Unwatch takes Watch back. Only within Do.
func (w *Worker) Unwatch(fd int) {
	for i := range w.wake {
		if int(w.wake[i].Fd) == fd {
			w.wake = append(w.wake[:i], w.wake[i+1:]...)
			w.drain = append(w.drain[:i], w.drain[i+1:]...)
			w.feeds = slices.Delete(w.feeds, i, i+1)
			return
		}
	}
}

// Watched is how many files end the worker's sleep, its mailbox's among them. Only within Do, or of a worker that does not run.
func (w *Worker) Watched() int { return len(w.wake) }

// Arm, Pending and Disarm pass the sleep sequence on to the link's port. What a limit holds back needs nobody to wake the worker but time. Whether it
// does is asked once: links of other workers may share the limit, and use it up between Arm and Pending. Were the link held back then, with no time set for it,
// nobody would wake the worker.
func (l *Link) Arm() (limit time.Duration) {
	w := l.owner.Load()
	defer w.contain(l)
	l.waits = l.held(w.now)
	return min(l.waits, l.Port.Arm())
}

// Pending tells whether the port has work.
func (l *Link) Pending() bool {
	w := l.owner.Load()
	defer w.contain(l)
	return l.waits == Forever && l.Port.Pending()
}

// Disarm takes Arm back.
func (l *Link) Disarm() {
	defer l.owner.Load().contain(l)
	l.Port.Disarm()
}
