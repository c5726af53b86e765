package blk

import (
	"fmt"
	"time"

	"github.com/shuntio/shunt/dataplane/vhostuser"
)

// A front-end waits for StopVring, resets and the removal of memory under its big lock, and a store may not answer for minutes. So:
//
//	0 ms    nothing is taken any more; what is under way has until drainTime to end by itself, which is what happens to nearly all of it
//	20 ms   the gate is asked to call the rest back (Lane.Withdraw)
//	75 ms   what has not come back by then is left alone: its run waits for it, its guest memory cannot be used for anything else, and no ring
//	        of the device takes anything until it has ended
//
// and whatever has no answer is given back to the driver's side of the ring (inflight.go), so the front-end is told a base behind which nothing is lost. A device
// with many queues spends drainTime once.
const (
	drainTime    = 20 * time.Millisecond
	withdrawTime = 55 * time.Millisecond
)

// StopVring implements vhostuser.Device. A ring that has failed is where it was when it failed.
func (d *Device) StopVring(index int) (base uint32, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	q, err := d.queue(index)
	if err != nil {
		return 0, err
	}
	d.pause(q)
	q.on(q.letGo)
	q.on(q.forget)
	if q.rest != nil {
		q.rest.clear()
	}
	return q.base, nil
}

// pause has queues take nothing more, and waits until nothing of them is at their gates, as long as that may take for all of them together.
func (d *Device) pause(queues ...*Queue) {
	settled := make([]chan struct{}, len(queues))
	for i, q := range queues {
		q.on(func() { settled[i] = q.pause() })
	}
	most := d.drain
	if time.Now().Before(d.tired) {
		most = 0 // the store has had its time, with a ring that was stopped before
	}
	if wait(settled, most) {
		return
	}
	d.tired = time.Now().Add(time.Second)
	for i, q := range queues {
		if settled[i] != nil {
			q.on(q.callBack)
		}
	}
	wait(settled, withdrawTime)
}

// wait tells whether all that is waited for happened in time; nil: there is nothing to wait for.
func wait(all []chan struct{}, most time.Duration) bool {
	t := time.NewTimer(most)
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

func (q *Queue) callBack() {
	if r := q.run; r != nil {
		r.calling = true
		q.gate.Withdraw()
		r.finish()
	}
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
	d.pause(paused...)
	err := d.memory.Remove(region)
	for _, q := range paused {
		q.on(q.resume)
	}
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
			r.submit(s)
		}
	}
}

// closeTime is how long Close waits for requests that were left alone.
const closeTime = 2 * time.Second

// drained waits until nothing of the queue is at its gate.
func (q *Queue) drained() error {
	for deadline := time.Now().Add(closeTime); ; time.Sleep(time.Millisecond) {
		busy := 0
		q.worker.Do(func() {
			if busy = q.gate.Busy(); busy > 0 {
				q.gate.Withdraw()
			}
		})
		if busy == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("queue %d: %d requests are still under way, which the store does not end: the kernel has them, or a network file system", q.index, busy)
		}
	}
}
