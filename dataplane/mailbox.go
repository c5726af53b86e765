package dataplane

import (
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"github.com/shuntio/shunt/dataplane/shm"
	"golang.org/x/sys/unix"
)

// mailbox holds what others want a worker to do between two rounds. Senders take the lock; the worker looks at
// one flag a round and takes the lock only if there is mail.
type mailbox struct {
	pending atomic.Bool // written by senders, cleared by the worker
	asleep  atomic.Bool // written by the worker, read by senders: somebody must write event
	event   int         // eventfd

	mu      sync.Mutex // held while a caller of Do serves itself
	running bool
	letters []letter

	bell   sync.Mutex
	closed bool // event is gone, and its number may be another file's
}

type letter struct {
	fn   func()
	done chan struct{}
}

func (m *mailbox) open() (err error) {
	m.event, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("eventfd of a worker's mailbox: %w", err)
	}
	return nil
}

// Do runs fn on the worker between two rounds and returns when it is done. What held in rounds that began before, such as a
// view of memory or a link, is held by no round any more: this is the grace point. Before Run and after its end fn
// runs on the caller, during WorkerOptions.Start it waits. Never call it from the worker itself, nor from within another fn.
//
// If fn faults on the memory of one of the worker's guests, it ends there and Do returns as always: a caller that must know sets its
// result to an error first.
func (w *Worker) Do(fn func()) {
	m := &w.mailbox
	m.mu.Lock()
	if !m.running {
		defer m.mu.Unlock()
		defer debug.SetPanicOnFault(debug.SetPanicOnFault(true)) // it is the goroutine's; Run set it on the worker's
		w.perform(fn)
		return
	}
	l := letter{fn: fn, done: make(chan struct{})}
	m.letters = append(m.letters, l)
	m.pending.Store(true)
	m.mu.Unlock()
	if m.asleep.Load() { // ordered after the store: sync/atomic is sequentially consistent
		m.ring()
	}
	<-l.done
}

// ring ends the worker's sleep.
func (m *mailbox) ring() {
	m.bell.Lock()
	defer m.bell.Unlock()
	if !m.closed {
		shm.Signal(m.event)
	}
}

// close gives the eventfd back. Whoever rings afterwards rings nobody.
func (m *mailbox) close() error {
	m.bell.Lock()
	defer m.bell.Unlock()
	if m.closed {
		return nil
	}
	m.closed = true
	return unix.Close(m.event)
}

// empty does what was asked. On the worker.
func (m *mailbox) empty(w *Worker) {
	m.mu.Lock()
	letters := m.letters
	m.letters = nil
	m.pending.Store(false)
	m.mu.Unlock()
	for _, l := range letters {
		w.carryOut(l)
	}
}

// carryOut does one letter.
func (w *Worker) carryOut(l letter) {
	defer close(l.done)
	w.perform(l.fn)
}

// perform calls fn. Setting up a ring reads guest memory, so a fault is contained here, too.
func (w *Worker) perform(fn func()) {
	defer w.contain(nil)
	fn()
}

func (m *mailbox) enter() {
	m.mu.Lock()
	m.running = true
	m.mu.Unlock()
}

// leave does the last mail; from then on callers of Do serve themselves. They do so only when no letter is left or under way, since two
// functions at once would be two workers.
func (m *mailbox) leave(w *Worker) {
	for {
		m.mu.Lock()
		if len(m.letters) == 0 {
			m.running = false
			m.mu.Unlock()
			return
		}
		m.mu.Unlock()
		m.empty(w)
	}
}
