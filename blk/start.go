package blk

import (
	"errors"
	"fmt"

	"github.com/shuntio/shunt/dataplane/guestmem"
	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/virtq"
	"golang.org/x/sys/unix"
)

// StartVring implements vhostuser.Device. What a process that was killed had under way becomes available once more before anything else does.
func (d *Device) StartVring(c vhostuser.VringConfig) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	q, err := d.queue(c.Index)
	if err != nil {
		return err
	}
	r := q.rest
	if r == nil || len(r.slots) != int(c.Size) {
		r = newRun(q, int(c.Size)) // here, so that the worker need not wait for the allocator
	}
	if d.area == nil && d.volume != nil {
		d.volume.unkept()
	}
	err = errGone
	q.on(func() { err = q.start(r, c) })
	if err != nil {
		return fmt.Errorf("start ring %d: %w", c.Index, err)
	}
	return nil
}

// errGone says that memory turned out to be gone while a ring was set up.
var errGone = errors.New("the guest's memory went away")

// start runs on the worker.
func (q *Queue) start(r *run, c vhostuser.VringConfig) error {
	if q.memory == nil {
		return errors.New("the guest has shared no memory")
	}
	d := q.device
	packed, size := d.features&FeaturePacked != 0, int(c.Size)
	l, ok := c.Tables(q.memory, packed)
	if !ok {
		return errors.New("its tables are outside the guest's memory")
	}
	_, told := c.PackedBase()
	if packed && int(told&^virtq.PackedStart) >= size {
		return fmt.Errorf("the front-end has it begin at %d of %d descriptors", told&^virtq.PackedStart, size)
	}
	q.opening = d.area
	if d.unread {
		if err := d.inherit(q, packed); err != nil {
			q.opening = nil
			return err
		}
	}
	r.adopt(legacyOf(d.area, c.Index, packed))
	notes, base, resumed, err := openInflight(d.area, c.Index, l, size, packed, told)
	q.opening = nil
	if err != nil {
		return err
	}
	used, _ := q.memory.Guest(l.Used)
	r.ring, err = virtq.NewDevice(virtq.DeviceOptions{
		Layout: l, Size: size, Memory: q.memory,
		Packed: packed, Base: base, UsedBase: base,
		EventIdx: d.features&FeatureEventIdx != 0,
		Indirect: d.features&FeatureIndirect != 0,
		Log:      q.log, UsedLog: used, Lasting: true, Status: true,
	})
	if err != nil {
		return err
	}
	r.notes, r.area, r.tables, r.packed, r.log = notes, d.area, l, packed, used
	r.resumed, r.foreign = max(resumed, q.given), resumed > 0
	r.call, r.broken, r.through = c.Call, c.Err, d.features&FeatureFlush == 0
	if resumed > 0 {
		r.markTables()
		q.stats.Resumed.Add(uint64(resumed))
	}
	q.run, q.rest, q.given = r, nil, 0
	r.watch(c.Kick)
	q.why.Store(nil)
	q.runs.Store(true)
	return nil
}

// watch lets kicks wake the worker. One that came before we looked is not lost: the ring is polled before the next sleep.
func (r *run) watch(kick int) {
	r.unwatch()
	if r.kick = kick; kick >= 0 {
		r.queue.worker.Watch(kick, unix.POLLIN, true)
	}
}

// markTables tells the log that we wrote where it is the driver who writes.
func (r *run) markTables() {
	part := r.tables.Avail
	if r.packed {
		part = r.tables.Desc
	}
	if addr, ok := r.queue.memory.Guest(part); ok {
		r.queue.log.Mark(addr, uint64(len(part)))
	}
}

// UpdateVring implements vhostuser.Device. Where the log of used rings lies we know ourselves.
func (d *Device) UpdateVring(c vhostuser.VringConfig) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	q, err := d.queue(c.Index)
	if err != nil {
		return err
	}
	q.on(func() {
		r := q.run
		if r == nil {
			return
		}
		r.call, r.broken = c.Call, c.Err
		if r.failed {
			return
		}
		r.want = true // a call that was due on the old one is not lost
		r.watch(c.Kick)
	})
	return nil
}

// useMemory runs on the worker, with rings that may run: a request that lies in memory which is not in the map any more is over.
func (q *Queue) useMemory(m *guestmem.Map) {
	q.memory = m
	r := q.run
	if r == nil {
		return
	}
	lost := r.mislay(m)
	if r.failed {
		return
	}
	r.ring.SetMemory(m)
	r.spare.Clear()
	for i := range r.slots {
		if s := &r.slots[i]; s.state == idle {
			s.chain.Clear()
			s.status, s.Buffers = nil, nil
		}
	}
	if lost {
		q.fail(fmt.Errorf("ring %d: the front-end removed memory that holds a request under way", q.index))
	}
}

// mislay notes which requests lie in memory that is not in the map, and tells whether the status of any does. As long as the store has one of them, the addresses of that
// memory are not to be anybody else's; also where the ring has failed.
func (r *run) mislay(m *guestmem.Map) (lost bool) {
	missing := func(view []byte) bool {
		if m == nil {
			return true
		}
		_, ok := m.Guest(view)
		return !ok
	}
	for i := range r.slots {
		s := &r.slots[i]
		if s.state != atGate && s.state != withdrawn {
			continue
		}
		for _, v := range s.Buffers {
			s.gone = s.gone || missing(v)
		}
		none := missing(s.status)
		lost = lost || none
		if (none || s.gone) && s.lent && !s.keeps {
			s.keeps = true
			r.queue.device.memory.Hold()
		}
	}
	return lost
}
