package nvmetcp

import (
	"fmt"
	"time"

	"github.com/shuntio/shunt/blk"
)

// command is a command on the IO queue. It is free, or in use: waiting to be sent, begun (the controller may answer), answered, and over when what
// the kernel has of it has been given back.
type command struct {
	head  []byte // private; see below
	index int32
	uses  uint16

	cid    uint16
	op     blk.Op
	task   int32  // nobody: an orphan, whose request has ended
	at     cursor // in the request's buffers, of the next byte to send or receive
	first  cursor // the same, of the first one
	length uint32 // bytes of data it moves

	begun    bool // its capsule is being sent, or has been
	queued   bool // in lane.line
	inWire   bool // in lane.wire
	answered bool
	over     bool // free as soon as it is neither of these
	long     bool // its data goes directly into the guest's memory
	corrupt  bool // a data digest did not match
	status   status
	since    int64
	late     int64 // when its abort was asked for; 0: it was not

	received uint32 // of a read: bytes announced by data PDUs
	capsule  uint32 // of a write: bytes in the capsule, all or none
	asked    uint32 // of a write: bytes that R2Ts have asked for
	granted  uint32 // of those, bytes no PDU was begun for
	ttag     uint16
}

// nobody is the task of an orphan.
const nobody = -1

// Layout of a command's head: the header of the PDU being sent, digest and padding with it; what a discard sends as data; the data digest.
const (
	headRange  = maxDataOffset
	headDigest = headRange + 16
)

// changes tells whether the command changes the disk.
func (c *command) changes() bool { return c.op != blk.OpRead && c.op != blk.OpFlush }

// changes tells whether the controller has any that do, or may have.
func (l *lane) changes() bool {
	for i := range l.commands[:l.limits.depth] {
		if c := &l.commands[i]; c.begun && !c.answered && c.changes() {
			return true
		}
	}
	return false
}

// sends tells whether data moves to the controller.
func (c *command) sends() bool { return c.op == blk.OpWrite || c.op == blk.OpDiscard }

// command makes the next command of a task, and puts it in line.
func (l *lane) command(t *task) {
	i := l.free[len(l.free)-1]
	l.free = l.free[:len(l.free)-1]
	c, r := &l.commands[i], t.request
	*c = command{head: c.head, index: i, uses: c.uses + 1, op: r.Op, task: t.index, at: t.at, first: t.at, since: l.host.Worker.Now()}
	c.cid = c.uses<<indexBits | uint16(i)
	n := l.compose(c, r, t.next)
	t.next += max(n, 1)
	if n > 0 && r.Buffers != nil {
		t.at.advance(r.Buffers, int(n))
	}
	t.left++
	c.queued = true
	l.line.push(i)
	if !l.tick.Running() {
		l.host.Ring.Start(&l.tick, tickTime)
	}
}

// compose writes the submission queue entry for what of a request begins at from, and returns how much of it that is.
func (l *lane) compose(c *command, r *blk.Request, from uint64) (n uint64) {
	e := sqe(c.head[commonLength:commandLength])
	block := (r.Offset + from) >> l.limits.shift
	blocks := func() uint32 { return uint32(n >> l.limits.shift) }
	switch r.Op {
	case blk.OpRead, blk.OpWrite:
		n = min(r.Length-from, l.limits.most)
		c.length = uint32(n)
		if r.Op == blk.OpRead {
			e.begin(opRead, l.limits.nsid)
			if c.long = c.length >= directFrom && !l.limits.terms.dataDigest; c.long {
				l.reads++
			}
		} else {
			e.begin(opWrite, l.limits.nsid)
		}
		e.setCDW64(10, int64(block))
		e.setCDW(12, blocks()-1|flag(r.FUA, rwFUA))
	case blk.OpFlush:
		e.begin(opFlush, l.limits.nsid)
	case blk.OpWriteZeroes:
		n = min(r.Length-from, l.limits.mostZeroes)
		e.begin(opWriteZeroes, l.limits.nsid)
		e.setCDW64(10, int64(block))
		e.setCDW(12, blocks()-1|flag(r.FUA, rwFUA)|flag(r.Unmap && l.limits.deallocate, zeroDeallocate))
	case blk.OpDiscard:
		n = min(r.Length-from, l.limits.mostDiscard)
		e.begin(opDSM, l.limits.nsid)
		e.setCDW(11, dsmDeallocate)
		of := c.head[headRange : headRange+16]
		le.PutUint32(of, 0)
		le.PutUint32(of[4:], blocks())
		le.PutUint64(of[8:], block)
		c.length = uint32(len(of))
	}
	if c.sends() && c.length <= l.limits.inCapsule {
		c.capsule = c.length
		e.inCapsule(c.length)
	} else {
		e.transport(c.length)
	}
	e.setCID(c.cid)
	return n
}

func flag(on bool, bit uint32) uint32 {
	if on {
		return bit
	}
	return 0
}

// lookup finds a command that is under way by what a controller says it is.
func (l *lane) lookup(cid uint16) *command {
	i := int(cid & (1<<indexBits - 1))
	if i >= l.limits.depth {
		return nil
	}
	c := &l.commands[i]
	if !c.begun || c.answered || c.over || c.cid != cid {
		return nil
	}
	return c
}

// respond takes the controller's answer to a command.
func (l *lane) respond(c *command, s status, h header) *violation {
	if s.ok() {
		if c.op == blk.OpRead && c.received != c.length {
			return breach(fesSequence, 0, h, "a read succeeded with %d of %d bytes of data", c.received, c.length)
		}
		if c.sends() && c.capsule == 0 && (c.asked != c.length || c.granted > 0 || l.current == c) {
			return breach(fesSequence, 0, h, "a write succeeded without %d bytes of its data", c.length-c.asked+c.granted)
		}
	}
	if s.ok() && !l.carried {
		l.carried = true
		l.association.carried.Store(true)
	}
	c.answered, c.status, c.granted = true, s, 0
	if !c.inWire && l.current != c {
		l.finish(c)
	}
	return nil
}

// finish is a command's end.
func (l *lane) finish(c *command) {
	v := judge(c.status, c.op)
	if c.corrupt {
		v = max(v, again)
	}
	i := c.task
	l.retire(c)
	if i != nobody {
		t := &l.tasks[i]
		t.left--
		if v >= t.verdict {
			t.verdict, t.crd = v, c.status.crd()
		}
		l.conclude(t)
	}
	l.issue()
}

// orphan parts a command from its task.
func (l *lane) orphan(c *command) {
	if c.task != nobody {
		l.tasks[c.task].left--
		c.task = nobody
	}
}

// retire lets a command be free, if not at once.
func (l *lane) retire(c *command) {
	if c.long {
		c.long = false
		l.reads--
	}
	c.over, c.task = true, nobody
	l.reclaim(c)
}

func (l *lane) reclaim(c *command) {
	if c.over && !c.queued && !c.inWire && l.current != c {
		c.over, c.begun = false, false
		l.free = append(l.free, c.index)
	}
}

// findLate asks for the abort of commands that take too long, and gives up the connection for one that does not end then either: not because this worker, or the whole machine,
// has stood still meanwhile.
func (l *lane) findLate() {
	busy := false
	now := l.host.Worker.Now()
	for i := range l.commands[:l.limits.depth] {
		c := &l.commands[i]
		if c.over || !c.queued && !c.begun {
			continue
		}
		busy = true
		age, limit := time.Duration(now-c.since), l.limits.timeout
		switch {
		case c.late != 0 && time.Duration(now-c.late) > limit/4+tickTime/2:
			l.fail(fmt.Errorf("a %v was not answered within %v, nor was its abort", c.op, age.Round(time.Second)))
			return
		case c.late == 0 && age > limit:
			select {
			case l.association.aborts <- abort{l.qid, c.cid}:
				c.late = now
			default: // at the next look, or one that was asked for is not answered either
			}
		}
	}
	if busy {
		l.host.Ring.Start(&l.tick, tickTime)
	}
}
