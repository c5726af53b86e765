package nbd

import (
	"errors"
	"fmt"

	"github.com/shuntio/shunt/blk"
)

// A request of the block layer (a task) goes over the wire in one or several parts, each a command of NBD with its own cookie:
//
//	Submit ─▶ task ── ready ──▶ cut ─▶ part ── out ──▶ sent ─▶ answered ─┬─▶ the last one of its task: Done
//	                    ▲                                                │
//	                    └─────────────── more to cut ────────────────────┘
//
// A task that was withdrawn is gone at once; its parts stay as orphans until the server has answered them, and what they bring is dropped.
const (
	// maxTasks is how many requests a lane takes: as many as a full virtqueue of the usual size.
	maxTasks = 256
	// maxParts is the window: how many commands are on their way. Most requests are one part.
	maxParts = 256
	// share is how many parts one task may have on their way, so that one of a terabyte does not fill the window.
	share = 32
	// large is where a payload is worth a receive of its own, straight into the guest's memory.
	large = 16 << 10
	// maxExtents bounds in how many pieces, with gaps between them, a read can be answered.
	maxExtents = 32
	// maxErrors bounds how many errors a part can be answered with.
	maxErrors = 64
)

// fifo is a queue of slots of tasks or parts, each of which is in it at most once.
type fifo struct {
	slots [max(maxTasks, maxParts)]uint16
	head  int
	n     int
}

func (f *fifo) index(i int) int    { return (f.head + i) % len(f.slots) }
func (f *fifo) push(slot uint16)   { f.slots[f.index(f.n)] = slot; f.n++ }
func (f *fifo) at(i int) uint16    { return f.slots[f.index(i)] }
func (f *fifo) pop() (slot uint16) { slot = f.at(0); f.head = f.index(1); f.n--; return slot }

// find is where a slot is in the queue, or -1.
func (f *fifo) find(slot uint16) int {
	for i := range f.n {
		if f.at(i) == slot {
			return i
		}
	}
	return -1
}

// remove takes a slot out of the middle; nothing if it is not there.
func (f *fifo) remove(slot uint16) {
	i := f.find(slot)
	if i < 0 {
		return
	}
	for ; i < f.n-1; i++ {
		f.slots[f.index(i)] = f.slots[f.index(i+1)]
	}
	f.n--
}

// place is where in a request's buffers something begins.
type place struct{ buffer, offset int }

// forward is the place n bytes further on.
func (p place) forward(buffers [][]byte, n int) place {
	for n > 0 {
		left := len(buffers[p.buffer]) - p.offset
		if n < left {
			p.offset += n
			break
		}
		n -= left
		p.buffer, p.offset = p.buffer+1, 0
	}
	return p
}

// task is a request that the lane has.
type task struct {
	r       *blk.Request // nil: the slot is free
	slot    uint16
	command uint16
	flags   uint16
	most    uint32 // bytes a part may have
	slow    uint32 // the same of zeroes that the server might have to write
	share   int32  // parts it may have on their way
	parts   int32  // parts it has on their way
	next    uint64 // offset of what is to be cut next; the request's end: nothing
	start   place  // the same in its buffers
	worst   blk.Outcome
	ready   bool // is in table.ready
	leaving bool // is withdrawn, and waits for an operation that may touch its buffers
}

func (t *task) end() uint64 { return t.r.Offset + t.r.Length }

// part is one command on its way.
type part struct {
	cookie  uint64
	task    *task // nil: an orphan, or one of our own
	command uint16
	flags   uint16
	length  uint32
	offset  uint64
	since   int64
	slot    uint16
	used    bool
	waiting bool // is in table.out: bytes of it may still be on their way out
	replied bool // the answer is complete
	drop    bool // what it brings has no place to go
	echo    chan<- struct{}

	outcome blk.Outcome
	errors  int
	start   place // of its payload in the request's buffers
	mark    place // the same of a chunk
	marked  uint32
	extents int // what was answered of a read, in order of offset, with gaps between them
	from    [maxExtents]uint32
	to      [maxExtents]uint32
}

// writes tells whether the command changes the disk.
func (p *part) writes() bool {
	return p.command == cmdWrite || p.command == cmdTrim || p.command == cmdWriteZeroes
}

// payload is how much follows the header.
func (p *part) payload() int {
	if p.command == cmdWrite {
		return int(p.length)
	}
	return 0
}

// sinks tells whether what it brings is dropped.
func (p *part) sinks() bool { return p.task == nil || p.drop }

// at is the place of a byte of the part, cheap for those in order.
func (p *part) at(offset uint32) place {
	if offset < p.marked {
		p.mark, p.marked = p.start, 0
	}
	p.mark, p.marked = p.mark.forward(p.task.r.Buffers, int(offset-p.marked)), offset
	return p.mark
}

var errOverlap = errors.New("twice the same bytes")

// cover notes that bytes were answered, each of which may be once.
func (p *part) cover(from, to uint32) error {
	i := 0
	for i < p.extents && p.to[i] < from {
		i++
	}
	switch {
	case i < p.extents && p.from[i] < to && from < p.to[i],
		i+1 < p.extents && p.to[i] == from && p.from[i+1] < to:
		return errOverlap
	case i < p.extents && p.to[i] == from:
		p.to[i] = to
		if i+1 < p.extents && p.from[i+1] == to { // the gap is filled
			p.to[i] = p.to[i+1]
			copy(p.from[i+1:], p.from[i+2:p.extents])
			copy(p.to[i+1:], p.to[i+2:p.extents])
			p.extents--
		}
	case i < p.extents && p.from[i] == to:
		p.from[i] = from
	case p.extents == maxExtents:
		return fmt.Errorf("more than %d scattered pieces", maxExtents)
	default:
		copy(p.from[i+1:], p.from[i:p.extents])
		copy(p.to[i+1:], p.to[i:p.extents])
		p.from[i], p.to[i] = from, to
		p.extents++
	}
	return nil
}

// covered tells whether all of it was answered.
func (p *part) covered() bool { return p.extents == 1 && p.from[0] == 0 && p.to[0] == p.length }

// table is what a lane has of requests. It does no IO.
type table struct {
	tasks                [maxTasks]task
	parts                [maxParts]part
	freeTasks, freeParts fifo
	ready                fifo   // tasks that have something to cut
	out                  fifo   // parts that were not sent whole
	cookies              uint64 // given out
	inflight             int    // parts on their way
	large                int    // those of them that are reads of large and more
	orphans              int    // those of them that write and were withdrawn
	ended                int    // parts that came to an end since the lane looked
	leaving              int    // tasks that are
}

func (t *table) open() {
	for i := range t.tasks {
		t.tasks[i].slot = uint16(i)
		t.freeTasks.push(uint16(i))
	}
	for i := range t.parts {
		t.parts[i].slot = uint16(i)
		t.freeParts.push(uint16(i))
	}
}

// take gives out a slot for a request. There must be one.
func (t *table) take(r *blk.Request) *task {
	k := &t.tasks[t.freeTasks.pop()]
	*k = task{r: r, slot: k.slot, next: r.Offset}
	r.Slot = int(k.slot)
	return k
}

// enqueue puts a task among those that have something to cut.
func (t *table) enqueue(k *task) {
	k.ready = true
	t.ready.push(k.slot)
}

// issue puts a command on its way. There must be a free part.
func (t *table) issue(k *task, command, flags uint16, offset uint64, length uint32, now int64) *part {
	slot := t.freeParts.pop()
	t.cookies++
	p := &t.parts[slot]
	p.cookie, p.task, p.command, p.flags, p.length, p.offset, p.since = t.cookies<<16|uint64(slot), k, command, flags, length, offset, now
	p.used, p.waiting, p.replied, p.drop, p.echo, p.outcome, p.errors = true, true, false, false, nil, blk.OK, 0
	p.marked, p.extents = 0, 0
	if k != nil {
		p.start, p.mark = k.start, k.start
		k.parts++
	}
	t.out.push(slot)
	t.inflight++
	if p.isLarge() {
		t.large++
	}
	return p
}

func (p *part) isLarge() bool { return p.command == cmdRead && p.length >= large }

// find is the part that a cookie names; nil if there is none on its way.
func (t *table) find(cookie uint64) *part {
	if slot := cookie & 0xffff; slot < maxParts && t.parts[slot].used && t.parts[slot].cookie == cookie {
		return &t.parts[slot]
	}
	return nil
}

// free takes a part off its way.
func (t *table) free(p *part) {
	if p.isLarge() {
		t.large--
	}
	p.used, p.waiting, p.task = false, false, nil
	t.inflight--
	t.ended++
	t.freeParts.push(p.slot)
}

// answered ends a part whose answer is complete, as soon as no byte of it is on its way out either.
func (t *table) answered(p *part) {
	p.replied = true
	if p.waiting {
		return
	}
	k, outcome, fast := p.task, p.outcome, p.flags&cmdFlagFastZero != 0
	if k == nil {
		if p.writes() {
			t.orphans--
		}
		if p.echo != nil {
			p.echo <- struct{}{} // has room
		}
		t.free(p)
		return
	}
	if fast && outcome == blk.Unsupported { // it would be slow: in pieces then, each of which is answered in time
		k.flags &^= cmdFlagFastZero
		k.next, k.most, k.share = p.offset, k.slow, share
		outcome = blk.OK
	}
	t.free(p)
	k.parts--
	if outcome != blk.OK && k.worst == blk.OK {
		k.worst = outcome
	}
	t.settle(k)
}

// settle ends a task that has nothing more to cut, or sees that it is cut further.
func (t *table) settle(k *task) {
	if k.worst != blk.OK {
		k.next = k.end() // it fails as a whole
	}
	switch more := k.next < k.end(); {
	case more && !k.ready && k.parts < k.share:
		t.enqueue(k)
	case !more && k.parts == 0 && !k.leaving:
		t.finish(k, k.worst)
	}
}

// finish gives a request back. It has no part any more.
func (t *table) finish(k *task, o blk.Outcome) {
	r := k.r
	if k.ready {
		t.ready.remove(k.slot)
	}
	if k.leaving {
		t.leaving--
	}
	k.r, k.ready, k.leaving = nil, false, false
	t.freeTasks.push(k.slot)
	r.Handler.Done(r, o)
}

// abandon makes orphans of a task's parts that are on their way.
func (t *table) abandon(k *task) {
	for i := range t.parts {
		p := &t.parts[i]
		if !p.used || p.task != k {
			continue
		}
		p.task = nil
		if p.writes() {
			t.orphans++
		}
	}
	k.parts = 0
}

// forget takes a part back that was never begun to be sent.
func (t *table) forget(p *part) {
	t.out.remove(p.slot)
	if p.task != nil {
		p.task.parts--
	}
	t.free(p)
}
