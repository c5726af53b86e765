package file

import (
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/shm"
	"github.com/shuntio/shunt/dataplane/uring"
	"golang.org/x/sys/unix"
)

// writer is a thread that writes through the page cache for a lane, where the file system cannot do so without waiting: for a page that is being written back, for
// its journal, for the disk when too much is dirty. The worker must not wait. io_uring knows that, and hands each such write to a thread of io-wq, which it
// wakes for it and which wakes the worker when it is done. This one does the same, a batch for each time that anybody is woken.
//
//	lane.write ─▶ asked ─┬─▶ run: pwritev2, one after the other ─▶ written ─┬─▶ Poll ─▶ lane.written
//	                     └ Flush: wakes it, if it rests                     └ tell: wakes the worker, if it sleeps
//
// One at a time is all there is: such file systems lock the file for a write, and io-wq has one thread for all writes to a file, too. But writes that wait behind one
// another, and go on in the file where the one before ends, are done as one: much of what a write costs it costs once for each, however short it is.
//
// The worker's side is a dataplane.Source. Either side, before it sleeps, says so and looks once more; and whoever brings something looks whether the other sleeps
// after it has brought it. sync/atomic is sequentially consistent, so one of them sees the other.
type writer struct {
	lane  *lane
	fd    int
	tasks []task // by slot

	asked, written belt
	resting        atomic.Bool // the thread is, or is about to; the worker clears it with the signal
	asleep         atomic.Bool // the worker is, or is about to; the thread clears it with the signal
	closing        atomic.Bool

	// The worker's.
	taken uint32 // of written
	fresh bool   // something was asked since the thread was looked after
	event int    // eventfd that ends the worker's sleep

	// The thread's.
	begun  uint32        // of asked
	joined *uring.Vector // of writes that are done as one
	untold int           // weight of what was written since the worker was told
	bell   int           // eventfd that ends its rest
	count  [8]byte
	ended  chan struct{}
}

var _ dataplane.Source = (*writer)(nil)

// task is a write. The worker fills it in before it is asked, the thread the result before it is written; in between its phase says whose it is.
type task struct {
	vector *uring.Vector
	offset int64
	flags  int32
	result int32
	phase  atomic.Uint32
}

// Phases of a task.
const (
	none    = iota
	waiting // the thread may begin it, the worker may take it back
	begun   // the thread is at it, or was
	taken   // it went back to the worker, and the thread is to pass it over
)

// belt carries slots' numbers from one thread to another. It has room for all there are.
type belt struct {
	slots []uint32
	tail  atomic.Uint32 // how many were put; written by the one, read by the other
}

func (b *belt) put(slot int) {
	n := b.tail.Load()
	b.slots[n%uint32(len(b.slots))] = uint32(slot)
	b.tail.Store(n + 1)
}

// at is the n-th that was put.
func (b *belt) at(n uint32) int { return int(b.slots[n%uint32(len(b.slots))]) }

// What is written before the worker is told of it, if there is more to write: 24 writes of 4 KiB, some 100 us. To wake a worker, and have it wake its guest, costs as
// much as one or two of them. If the disk has one wait, those before it wait with it.
const (
	tellWeight = 384 << 10
	taskWeight = 12 << 10
)

// newWriter starts one. The worker has it as a source from then on.
func newWriter(l *lane, fd, depth int) (*writer, error) {
	size := 1
	for size < depth {
		size *= 2 // so that counts may wrap
	}
	w := &writer{lane: l, fd: fd, tasks: make([]task, depth), event: -1, bell: -1, ended: make(chan struct{})}
	w.asked.slots, w.written.slots = make([]uint32, size), make([]uint32, size)
	var errs [3]error
	w.joined, errs[0] = uring.NewVector(uring.MaxVector)
	w.event, errs[1] = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	w.bell, errs[2] = unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err := errors.Join(errs[:]...); err != nil {
		w.free()
		return nil, fmt.Errorf("thread to write with: %w", err)
	}
	l.host.Worker.Do(func() {
		l.host.Worker.Add(w)
		l.host.Worker.Watch(w.event, unix.POLLIN, true)
	})
	go w.run()
	return w, nil
}

// close ends the thread, which has nothing left to write, and the worker's side. On the worker.
func (w *writer) close() {
	w.closing.Store(true)
	shm.Signal(w.bell)
	<-w.ended
	w.lane.host.Worker.Unwatch(w.event)
	w.lane.host.Worker.Remove(w)
	w.free()
}

func (w *writer) free() {
	for _, fd := range []int{w.event, w.bell} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
	if w.joined != nil {
		_ = w.joined.Close()
	}
}

// ask has the thread write. Flush follows.
func (w *writer) ask(slot int, v *uring.Vector, offset int64, flags int32) {
	t := &w.tasks[slot]
	t.vector, t.offset, t.flags = v, offset, flags
	t.phase.Store(waiting)
	w.asked.put(slot)
	w.fresh = true
}

// takeBack takes a write back; false: it is under way, or done.
func (w *writer) takeBack(slot int) bool { return w.tasks[slot].phase.CompareAndSwap(waiting, taken) }

// Poll hands out what was written.
func (w *writer) Poll() (n int) {
	for ; w.taken != w.written.tail.Load() && n < uring.Quantum; n++ {
		slot := w.written.at(w.taken)
		w.taken++
		w.lane.written(slot, w.tasks[slot].result)
	}
	return n
}

// Flush wakes the thread for what was asked.
func (w *writer) Flush() {
	if w.fresh {
		w.fresh = false
		if w.resting.CompareAndSwap(true, false) {
			shm.Signal(w.bell)
		}
	}
}

// Arm asks the thread to end the worker's sleep.
func (w *writer) Arm() time.Duration {
	w.asleep.Store(true)
	return dataplane.Forever
}

// Pending tells whether there is anything for Poll or Flush.
func (w *writer) Pending() bool { return w.fresh || w.taken != w.written.tail.Load() }

// Disarm takes Arm back.
func (w *writer) Disarm() { w.asleep.Store(false) }

// run is the thread.
func (w *writer) run() {
	runtime.LockOSThread() // and not unlocked: it ends with the goroutine
	defer close(w.ended)
	_ = w.lane.ring.Place() // it may be anywhere, if not there
	for !w.closing.Load() {
		if w.begun == w.asked.tail.Load() {
			w.tell()
			w.rest()
			continue
		}
		w.write(w.claim())
		if w.untold >= tellWeight {
			w.tell()
		}
	}
}

// claim begins the next tasks, several where each goes on where the one before ends, and joins these. None: the next one was taken back, and is passed over.
func (w *writer) claim() (n uint32, joined bool) {
	var flags int32
	var end int64
	for most := w.asked.tail.Load() - w.begun; n < most; n++ {
		t := &w.tasks[w.asked.at(w.begun+n)]
		switch {
		case n == 0:
			flags = t.flags
			w.joined.Reset()
			w.joined.Append(t.vector)
		case t.offset != end || t.flags != flags || w.joined.Len() >= tellWeight || !w.joined.Append(t.vector):
			return n, n > 1
		}
		if !t.phase.CompareAndSwap(waiting, begun) {
			if n == 0 {
				w.pass(0)
			}
			return n, false // what is joined has too much
		}
		end = t.offset + int64(t.vector.Len())
	}
	return n, n > 1
}

// write does what was claimed: at once if it is joined, and one by one whatever that leaves undone.
func (w *writer) write(n uint32, joined bool) {
	done := int32(0)
	if joined {
		first := &w.tasks[w.asked.at(w.begun)]
		done = w.joined.WriteWaiting(w.fd, first.offset, first.flags)
	}
	for range n {
		t := &w.tasks[w.asked.at(w.begun)]
		if length := int32(t.vector.Len()); done >= length {
			t.result = length
			done -= length
		} else {
			t.result = t.vector.WriteWaiting(w.fd, t.offset, t.flags)
			done = 0
		}
		w.pass(taskWeight + t.vector.Len())
	}
}

// pass gives the next task back.
func (w *writer) pass(weight int) {
	w.written.put(w.asked.at(w.begun))
	w.begun++
	w.untold += weight
}

// tell wakes the worker, if it sleeps.
func (w *writer) tell() {
	w.untold = 0
	if w.asleep.CompareAndSwap(true, false) {
		shm.Signal(w.event)
	}
}

// rest sleeps until there is something to do, or for no reason.
func (w *writer) rest() {
	w.resting.Store(true)
	if w.begun == w.asked.tail.Load() && !w.closing.Load() {
		_, _ = unix.Read(w.bell, w.count[:])
	}
	w.resting.Store(false)
}
