package blk

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"math"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/shm"
	"github.com/shuntio/shunt/dataplane/vhostuser"
)

// legacy is what a process leaves its successor of a ring beside the marks of requests under way: a part of the in-flight area that is the device's own. The ring's
// worker writes it, before whatever it tells of can be seen by the driver; the next process reads all rings' before it starts the first.
//
//	killed with writes under way    the store may still be carrying them out (Info.Quiesce), so that long no write goes there. doubt says so where no mark does: while
//	                                chains of a dead process are given back and not taken yet, or wait for that time to pass
//	killed with writes unflushed    they are unflushed writes of the successor's, too: if the store has been restarted, the next flush fails. written and flushed
//	                                are epochs of the ledger; the newest flush of all rings counts
//	killed, and the disk exchanged  requests under way are for another disk: they are not done
//
// Where a volume is taken away and comes again in one process, its devices are strangers to each other all the same.
//
// A guest's front-end can write anything here, and harm nobody but the guest.
type legacy struct {
	device  uint64 // that wrote this; 0: none has
	doubt   uint64 // 1: if that device is gone, writes may be under way that have no mark
	written uint64 // epoch of the last write that was acknowledged on the ring's lane
	flushed uint64 // writes of earlier epochs are stable, on all lanes
	lost    uint64 // 1: the store has lost writes, and the guest was not told yet
	disk    uint64 // a hash of the disk's name; 0: it has none
}

// unknownEpoch is later than all flushes.
const unknownEpoch = math.MaxUint64

// number is one that no other device has, of this or any process.
func number() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return max(binary.NativeEndian.Uint64(b[:]), 1)
}

// legacyOf finds a ring's. One of our own memory stands in where the area has none.
func legacyOf(area *vhostuser.Inflight, queue int, packed bool) *legacy {
	if area != nil {
		if all, err := shm.View[legacy](area.Own(queue, packed), 1); err == nil {
			return &all[0]
		}
	}
	return new(legacy)
}

// errOtherDisk says that what a guest has under way is not for the disk that there is.
var errOtherDisk = errors.New("the guest's requests under way are for another disk than the one that is at the source now")

// name is the hash of a disk's name.
func (i *Info) name() uint64 {
	if i.Identity == "" {
		return 0
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(i.Identity))
	return h.Sum64()
}

// inherit reads what a process before this one has left, of all rings, and acts on it. On a worker, before the first ring is started.
func (d *Device) inherit(q *Queue, packed bool) error {
	var left []legacy
	info := d.disk.Load().info
	name := info.name()
	for i := range d.area.Queues {
		l := legacyOf(d.area, i, packed)
		was := legacy{shm.Load64(&l.device), shm.Load64(&l.doubt), shm.Load64(&l.written), shm.Load64(&l.flushed), shm.Load64(&l.lost), shm.Load64(&l.disk)}
		if was.device != 0 && was.device != d.number {
			left = append(left, was)
		}
		if was.device != 0 && was.disk != 0 && name != 0 && was.disk != name {
			return fmt.Errorf("%w (%s): give it the one that was there before, or reset the guest", errOtherDisk, info.Identity)
		}
	}
	flushed := make(map[uint64]uint64) // of each device: several may have died one after the other
	for _, l := range left {
		flushed[l.device] = max(flushed[l.device], l.flushed)
	}
	unflushed, lost := false, false
	for _, l := range left {
		if l.doubt != 0 {
			d.fence()
		}
		unflushed = unflushed || l.written != 0 && l.written >= flushed[l.device]
		lost = lost || l.lost != 0
	}
	if unflushed {
		q.gate.Inherit(lost)
	}
	d.unread = false
	return nil
}

// fence holds writes back until none of a process before this one can be carried out any more. When that died is not known, but it was when the front-end came to us.
func (d *Device) fence() {
	until := d.came + int64(d.disk.Load().info.Quiesce)
	if now := dataplane.Clock(); until <= now || until <= d.fenced.Load() {
		return
	} else if d.volume != nil {
		d.volume.note(noteFence, 0, nil, uint64(until-now))
	}
	d.fenced.Store(until)
}

// adopt makes the ring's legacy ours. Whoever follows a process that is killed in the midst of it finds too much doubt rather than too little.
func (r *run) adopt(l *legacy) {
	r.legacy = l
	r.suspect()
	shm.Store64(&l.written, unknownEpoch)
	step()
	shm.Store64(&l.flushed, 0)
	step()
	shm.Store64(&l.device, r.queue.device.number)
	step()
	shm.Store64(&l.disk, r.queue.device.disk.Load().info.name())
	step()
	r.marks = marks{written: unknownEpoch, lost: shm.Load64(&l.lost) != 0}
	r.bequeath()
}

// marks are what a gate knows of writes: see legacy.
type marks struct {
	written, flushed uint64
	lost             bool
}

// bequeath writes down what has changed, before the driver is told anything.
func (r *run) bequeath() {
	m := r.queue.gate.Marks()
	if m == r.marks {
		return
	}
	l := r.legacy
	if m.lost != r.marks.lost {
		lost := uint64(0)
		if m.lost {
			lost = 1
		}
		shm.Store64(&l.lost, lost)
		step()
	}
	if m.written != r.marks.written {
		shm.Store64(&l.written, m.written)
		step()
	}
	if m.flushed != r.marks.flushed {
		shm.Store64(&l.flushed, m.flushed)
		step()
	}
	r.marks = m
}

// suspect begins the doubt, before marks are cleared.
func (r *run) suspect() {
	r.doubt = true
	shm.Store64(&r.legacy.doubt, 1)
	step()
}

// believe ends it when all chains that were given back are marked again, and no write of a dead process can be carried out any more.
func (r *run) believe() {
	until := r.queue.device.fenced.Load()
	if r.resumed > 0 || until != 0 && until > dataplane.Clock() {
		return
	}
	r.doubt = false
	shm.Store64(&r.legacy.doubt, 0)
	step()
}
