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
//	say that we sleep; arm every source; FENCE; look again everywhere; wait; disarm
//
// A link that its limit holds back has nothing to be woken for but the time at which the limit lets frames pass. Its files are left out of it: what
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
	if timedOut && held == Forever && w.pending() && !w.announced() {
		w.stats.Late.Add(1)
	}
	w.awake()
}

// announced tells whether a watched file has something to say by now: what came while the thread was on its way out of its sleep is not late.
func (w *Worker) announced() bool {
	n, _ := w.await(0)
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
	w.mailbox.asleep.Store(false)
	for _, s := range w.sources {
		s.Disarm()
	}
}

// wait sleeps until a watched file has something to say, or the limit is over; then it reports true. Which file it was nobody asks: we look everywhere.
func (w *Worker) wait(limit time.Duration) (timedOut bool) {
	if w.deaf > 0 {
		limit = min(limit, deafInterval)
	}
	if limit == Forever {
		limit = -1
	}
	w.stats.Sleeps.Add(1)
	n, err := w.await(limit)
	if n > 0 || err != nil { // EINTR: the runtime's preemption signal
		return false
	}
	w.stats.Timeouts.Add(1)
	return true
}

// await tells how many files have something to say, after the limit at the latest; below zero: without end. Eventfds are in a set of the kernel's, and what they cost does not grow with
// their number. Sockets are not: as long as one is in there, the kernel comes by for each frame that it sends or receives, also while the worker is awake.
func (w *Worker) await(limit time.Duration) (int, error) {
	if len(w.files) == 1 {
		return w.poller.Wait(limit)
	}
	var timeout *unix.Timespec
	if limit >= 0 {
		w.timeout = unix.NsecToTimespec(int64(limit))
		timeout = &w.timeout
	}
	n, err := unix.Ppoll(w.files, timeout, nil)
	if n > 0 && w.files[0].Revents != 0 {
		_, _ = w.poller.Wait(0) // what was signalled is not to end the next sleep, too
	}
	return n, err
}

// watch is a file that ends the worker's sleep.
type watch struct {
	fd     int
	events int16
	edge   bool
	times  int   // that it is watched
	feeds  *Link // whose frames it tells of, and of nothing else; nil: of other things
	off    bool  // it is left out, since a limit holds those back
	deaf   bool  // it could not be put in
}

// deafInterval is how long the worker sleeps at most if there is a file that the kernel has no memory to watch.
const deafInterval = 500 * time.Microsecond

// hold leaves the files of links that are held back by their limits out of the coming sleep. It returns how long the first of them is.
func (w *Worker) hold() (least time.Duration) {
	least = Forever
	for i := range w.watches {
		f := &w.watches[i]
		if f.feeds == nil {
			continue
		}
		held := f.feeds.owner.Load() == w && f.feeds.waits != Forever // one that is polled by nobody yet has not been armed
		if held {
			least = min(least, f.feeds.waits)
		}
		if held != f.off {
			if f.off = held; held {
				w.ignore(f)
			} else {
				w.listen(f)
			}
		}
	}
	return least
}

// listen puts a file in.
func (w *Worker) listen(f *watch) {
	if !f.edge {
		w.files = append(w.files, unix.PollFd{Fd: int32(f.fd), Events: f.events})
		return
	}
	shm.Drain(f.fd) // what was brought before is found without it: we look everywhere before we sleep
	if f.deaf = w.poller.Add(f.fd, f.events) != nil; f.deaf {
		w.deaf++
	}
}

// ignore takes it out.
func (w *Worker) ignore(f *watch) {
	switch {
	case !f.edge:
		i := slices.IndexFunc(w.files, func(p unix.PollFd) bool { return int(p.Fd) == f.fd })
		w.files = slices.Delete(w.files, i, i+1)
	case f.deaf:
		f.deaf = false
		w.deaf--
	case w.poller.Remove(f.fd) == nil:
		shm.Drain(f.fd)
	}
}

// Watch lets a file end the worker's sleep: events as in poll(2). With edge it is an eventfd: it ends one sleep each time that it is signalled, and is not read until Unwatch, which
// sets it back to zero. Only within Do. The file stays the caller's, and open until Unwatch.
func (w *Worker) Watch(fd int, events int16, edge bool) { w.WatchFor(nil, fd, events, edge) }

// WatchFor is Watch for a file that tells of nothing but frames which come in by a link: while the link's limit holds those back, nobody looks at it.
func (w *Worker) WatchFor(l *Link, fd int, events int16, edge bool) {
	for i := range w.watches {
		if w.watches[i].fd == fd {
			w.watches[i].times++
			return
		}
	}
	w.watches = append(w.watches, watch{fd: fd, events: events, edge: edge, times: 1, feeds: l})
	w.listen(&w.watches[len(w.watches)-1])
}

// Unwatch takes Watch back. Only within Do.
func (w *Worker) Unwatch(fd int) {
	for i := range w.watches {
		f := &w.watches[i]
		if f.fd != fd {
			continue
		}
		if f.times--; f.times == 0 {
			if !f.off {
				w.ignore(f)
			}
			w.watches = slices.Delete(w.watches, i, i+1)
		}
		return
	}
}

// Watched is how many files end the worker's sleep, its mailbox's among them. Only within Do, or of a worker that does not run.
func (w *Worker) Watched() int { return len(w.watches) }

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
