package blk

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/shuntio/shunt/dataplane/vhostuser"
)

// A front-end waits for rings that stop, for resets and for the removal of memory under its big lock, and a store may not answer for minutes. So all rings that are to
// stop, or have requests in memory that goes, wait together:
//
//	StopVrings ───┐            0 ms   pause      nothing is taken any more; what is under way has until drainTime to end by itself, as nearly all of it does
//	RemoveMemory ─┴▶ withdraw  20 ms  callBack   the gates are asked for the rest (Lane.Withdraw)
//	                           75 ms             what has not come back by then is left alone: its run waits for it, its guest memory cannot be used
//	                                             for anything else, and no ring of the device takes anything until it has ended
//	StopVrings ─▶ letGo, forget    what has no answer is given back to the driver's side of the ring (inflight.go): the base is one behind which nothing is lost
//	RemoveMemory ─▶ resume         what came back goes to the store again, or fails if it lay there
//
// Calls one after the other wait no longer together: what a device has waited it has back only after as long. Most front-ends stop each ring by a call of its own. So the second ring in a row
// that stops while the store does not answer has the requests of all called back (hurry), which is done then for those that follow: each has leastTime from there on. A ring that does
// not stop after all goes on when no other has for lullTime.
const (
	drainTime    = 20 * time.Millisecond
	withdrawTime = 55 * time.Millisecond
	leastTime    = 5 * time.Millisecond
	lullTime     = 100 * time.Millisecond
)

// StopVring implements vhostuser.Device.
func (d *Device) StopVring(index int) (base uint32, err error) {
	var bases [1]uint32
	err = d.StopVrings([]int{index}, bases[:])
	return bases[0], err
}

// StopVrings implements vhostuser.VringsStopper. A ring that has failed is where it was when it failed.
func (d *Device) StopVrings(indices []int, bases []uint32) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	queues := make([]*Queue, len(indices))
	for i, index := range indices {
		q, err := d.queue(index)
		if err != nil {
			return err
		}
		queues[i] = q
	}
	d.withdraw(queues, true)
	together(queues, (*Queue).letGo)
	together(queues, (*Queue).forget) // also of what has just turned out to be gone
	for i, q := range queues {
		if bases[i] = q.base; q.rest != nil {
			q.rest.clear()
		}
	}
	return nil
}

// withdraw has queues take nothing more, stopping or until they resume, and waits until nothing of them is at their gates, as long as that may take.
func (d *Device) withdraw(queues []*Queue, stopping bool) {
	settled := make([]chan struct{}, len(queues))
	together(queues, func(q *Queue) { settled[slices.Index(queues, q)] = q.pause() })
	began := time.Now()
	spent := max(0, d.waited-began.Sub(d.rested))
	if !wait(settled, began.Add(d.drain-spent)) {
		if stopping && spent > 0 && d.lull == nil {
			d.hurry()
		}
		d.callBack(queues)
		until := began.Add(d.drain + withdrawTime - spent)
		if least := d.called.Add(leastTime); least.After(until) {
			until = least
		}
		wait(settled, until)
	}
	d.rested = time.Now()
	d.waited = spent + d.rested.Sub(began)
	if d.lull != nil {
		d.lull.Reset(d.patience)
	}
}

// callBack asks for what queues have at their gates, unless that was done before.
func (d *Device) callBack(queues []*Queue) {
	fresh := false
	together(queues, func(q *Queue) { fresh = q.callBack() || fresh })
	if fresh {
		d.called = time.Now()
	}
}

// hurry has all rings be about to stop.
func (d *Device) hurry() {
	together(d.queues, func(q *Queue) { q.pause() })
	d.callBack(d.queues)
	d.lull = time.AfterFunc(d.patience, d.goOn)
}

// goOn ends it for those that have not stopped.
func (d *Device) goOn() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.lull != nil {
		d.lull = nil
		together(d.queues, (*Queue).resume)
	}
}

// relax ends it for a device that is closed.
func (d *Device) relax() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.lull != nil {
		d.lull.Stop()
		d.lull = nil
	}
}

// few is for how many queues a worker does something in one go, between two rounds in which it sees to its other guests.
const few = 16

// together runs fn for queues, each on its worker, as queues of one worker do not wait for one another.
func together(queues []*Queue, fn func(*Queue)) {
	for some := range slices.Chunk(queues, few) {
		for i, first := range some {
			if slices.ContainsFunc(some[:i], first.neighbours) {
				continue
			}
			first.worker.Do(func() {
				for _, q := range some[i:] {
					if q.neighbours(first) {
						q.contained(fn)
					}
				}
			})
		}
	}
}

func (q *Queue) neighbours(other *Queue) bool { return q.worker == other.worker }

// wait tells whether all that is waited for happened in time; nil: there is nothing to wait for.
func wait(all []chan struct{}, until time.Time) bool {
	t := time.NewTimer(time.Until(until))
	defer t.Stop()
	for _, c := range all {
		if c == nil {
			continue
		}
		select {
		case <-c:
		case <-t.C:
			return false
		}
	}
	return true
}

// pause runs on the worker, as do all that follow. nil: nothing is at the gate.
func (q *Queue) pause() (settled chan struct{}) {
	r := q.run
	if r == nil {
		return nil
	}
	r.paused = true
	if r.finish(); r.out == 0 {
		return nil
	}
	r.settled = make(chan struct{})
	return r.settled
}

// callBack tells whether anything was at the gate that had not been called back.
func (q *Queue) callBack() (fresh bool) {
	r := q.run
	if r == nil || r.calling {
		return false
	}
	r.calling, fresh = true, r.out > 0
	q.gate.Withdraw()
	r.finish()
	return fresh
}

// letGo makes what is left the driver's again.
func (q *Queue) letGo() {
	r := q.run
	if r == nil {
		return
	}
	r.unwatch()
	r.calling = true // what ends from here on goes no further
	r.finish()
	if r.failed {
		return
	}
	if r.writing() {
		r.suspect()
	}
	n, err := r.notes.giveBack(r.ring.UsedBase())
	if err != nil {
		return // the guest has made a mess of its ring
	}
	q.given = n
	if n > 0 {
		r.markTables()
		q.stats.GivenBack.Add(uint64(n))
	}
	r.ring.Rewind()
	if r.want {
		r.notify()
	}
}

// forget ends the run, and touches no memory of the guest's.
func (q *Queue) forget() {
	r := q.run
	if r == nil {
		return
	}
	if q.base = uint32(r.ring.Base()); r.packed {
		q.base |= uint32(r.ring.UsedBase()) << 16
	}
	q.run = nil
	q.runs.Store(false)
	if r.out > 0 {
		r.orphaned = true
		q.device.left.Add(1)
		q.device.memory.Hold()
		return
	}
	q.rest = r
}

// RemoveMemory implements vhostuser.Device. Requests with buffers there are called back and end with an error, like those of a driver that never had the memory.
func (d *Device) RemoveMemory(region vhostuser.Region) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var paused []*Queue
	for _, q := range d.queues {
		touches := false
		q.on(func() { touches = q.touches(region) })
		if touches {
			paused = append(paused, q)
		}
	}
	d.withdraw(paused, false)
	err := d.memory.Remove(region)
	together(paused, (*Queue).resume)
	return err
}

// touches tells whether a request under way lies in the region.
func (q *Queue) touches(region vhostuser.Region) bool {
	r := q.run
	if r == nil || r.failed {
		return false
	}
	in := func(view []byte) bool {
		addr, _ := q.memory.Guest(view)
		return addr-region.GuestAddr < region.Size
	}
	for i := range r.slots {
		s := &r.slots[i]
		if s.state != atGate {
			continue
		}
		if in(s.status) {
			return true
		}
		for _, v := range s.Buffers {
			if in(v) {
				return true
			}
		}
	}
	return false
}

// resume takes pause back.
func (q *Queue) resume() {
	r := q.run
	if r == nil || r.failed {
		return
	}
	r.paused, r.calling, r.settled = false, false, nil
	for i := range r.slots {
		if s := &r.slots[i]; s.state == withdrawn && s.gone {
			r.answer(s, statusIOErr)
		} else if s.state == withdrawn {
			r.again(s)
		}
	}
}

// ErrBusy says that a device cannot be closed yet.
var ErrBusy = errors.New("requests are still under way, which the store does not end")

// closeTime is how long Close waits for requests that were left alone.
const closeTime = 2 * time.Second

// drained waits until nothing of any queue is at its gate.
func (d *Device) drained() error {
	deadline := time.Now().Add(closeTime)
	for pause := time.Millisecond; ; pause = min(2*pause, closeTime/20) {
		busy := 0
		together(d.queues, func(q *Queue) {
			if n := q.gate.Busy(); n > 0 {
				busy += n
				q.gate.Withdraw()
			}
		})
		if busy == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%w: the kernel has %d of them, or a network file system", ErrBusy, busy)
		}
		time.Sleep(pause)
	}
}
