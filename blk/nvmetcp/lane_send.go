package nvmetcp

import (
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/dataplane/guestmem"
	"golang.org/x/sys/unix"
)

// Sending: one vector at a time is with the kernel, filled from the commands in line. A PDU may go on in the next vector, where this one has no room, but no other PDU
// comes between.
//
//	line: c3 (capsule), c7 (data its R2T asked for) ...
//	vector: c3.head, the guest's buffers of c3, c7.head, the guest's buffers of c7 ┆ the rest of them
//
// With a data digest, in place of the guest's buffers, their copies in lane.bounce.

var errFault = errors.New("the guest took memory away that it had asked to write from")

// push gives the kernel what there is to send, unless it has something.
func (l *lane) push() {
	if !l.connected() || l.broken != nil || l.pumping || l.send.Busy() {
		return
	}
	if l.out.Len() == 0 {
		l.build()
	}
	if l.out.Len() > 0 && l.broken == nil {
		l.host.Ring.Send(&l.send, l.file, l.out, unix.MSG_NOSIGNAL) // the ring has no room: with the next Flush
	}
}

// build fills the vector.
func (l *lane) build() {
	l.out.Reset()
	l.bounced = 0
	for l.out.Len() < sendMost {
		if l.current == nil && !l.begin() || !l.fill() {
			return
		}
	}
}

// begin begins the next PDU; false: there is none, or no room.
func (l *lane) begin() bool {
	for !l.line.empty() {
		c := &l.commands[l.line.peek()]
		if c.over || c.begun && c.granted == 0 {
			l.line.pop()
			c.queued = false
			l.reclaim(c)
			continue
		}
		if c.inWire {
			return false // its head is in this vector
		}
		if !l.beginPDU(c) {
			return false
		}
		l.line.pop()
		c.queued = false
		l.mark(c)
		return true
	}
	return false
}

// beginPDU puts the header of a command's next PDU into the vector.
func (l *lane) beginPDU(c *command) bool {
	t := &l.limits.terms
	data := c.capsule
	var n int
	if !c.begun {
		n = t.seal(c.head[:maxDataOffset], pduCapsuleCmd, 0, commandLength, data)
	} else {
		data = min(c.granted, t.maxH2CData)
		var flags byte
		if data == c.granted {
			flags = flagLast
		}
		h := header(c.head)
		le.PutUint16(h[8:], c.cid)
		le.PutUint16(h[10:], c.ttag)
		le.PutUint32(h[12:], c.asked-c.granted)
		le.PutUint32(h[16:], data)
		le.PutUint32(h[20:], 0)
		n = t.seal(h[:maxDataOffset], pduH2CData, flags, headerLength, data)
	}
	if !l.out.Add(c.head[:n]) {
		return false
	}
	if c.begun {
		c.granted -= data
	}
	c.begun = true
	l.current, l.left, l.sum, l.trailer = c, data, 0, t.dataDigest && data > 0
	return true
}

// mark notes that the kernel will have something of a command.
func (l *lane) mark(c *command) {
	if !c.inWire {
		c.inWire = true
		l.wire = append(l.wire, c.index)
	}
}

// fill puts the rest of the current PDU into the vector; false: there is no room for all of it.
func (l *lane) fill() bool {
	c := l.current
	for l.left > 0 {
		n, ok := l.add(c, l.source(c))
		if !ok {
			return false
		}
		l.left -= uint32(n)
		c.at.offset += n
	}
	if l.trailer {
		sum := c.head[headDigest : headDigest+digestLength]
		le.PutUint32(sum, l.sum)
		if !l.out.Add(sum) {
			return false
		}
		l.mark(c)
		l.trailer = false
	}
	l.current = nil
	if c.granted > 0 && !c.queued {
		c.queued = true
		l.line.push(c.index)
	}
	return true
}

// source is what a command sends next: of a write the guest's, of a discard our own.
func (l *lane) source(c *command) []byte {
	if c.op == blk.OpDiscard {
		return c.head[headRange+c.at.offset : headRange+16][:l.left]
	}
	return c.at.part(l.tasks[c.task].request.Buffers, int(l.left))
}

// add puts data, or a private copy of it, into the vector.
func (l *lane) add(c *command, b []byte) (n int, ok bool) {
	if l.limits.terms.dataDigest {
		room := l.bounce[l.bounced:]
		copied := room[:min(len(b), len(room))]
		if len(copied) == 0 || !l.out.Add(copied) {
			return 0, false
		}
		if !guestmem.Copy(copied, b) {
			l.tasks[c.task].faulty = true
			l.failSoon(errFault)
			return 0, false
		}
		l.bounced += len(copied)
		l.sum = crc32.Update(l.sum, castagnoli, copied)
		b = copied
	} else if !l.out.Add(b) {
		return 0, false
	}
	l.mark(c)
	return len(b), true
}

// sent hears how a send ended.
func (l *lane) sent(res int32) {
	switch {
	case res == -int32(unix.EINTR), res == -int32(unix.EAGAIN):
		res = 0
	case res == -int32(unix.EFAULT):
		l.blame()
		l.fail(errFault)
		return
	case res <= 0:
		l.fail(fmt.Errorf("send to the controller: %w", unix.Errno(-res)))
		return
	}
	l.out.Advance(int(res))
	if l.out.Len() == 0 {
		l.pumping = true
		for _, i := range l.wire {
			c := &l.commands[i]
			c.inWire = false
			if c.answered && !c.over && l.current != c {
				l.finish(c)
			} else {
				l.reclaim(c)
			}
		}
		l.wire = l.wire[:0]
		l.pumping = false
	}
	l.push()
}

// blame finds whose memory was gone when the kernel wanted to read it: that request fails, the others are only lost with the connection. Only what commands with bytes in the vector write is looked at,
// since a request may be a thousand times as long.
func (l *lane) blame() {
	for _, i := range l.wire {
		c := &l.commands[i]
		if c.task == nobody || c.op != blk.OpWrite {
			continue
		}
		t := &l.tasks[c.task]
		at := c.first
		for left := int(c.length); left > 0 && !t.faulty; {
			b := at.part(t.request.Buffers, left)
			t.faulty = !guestmem.Readable(b)
			at.offset += len(b)
			left -= len(b)
		}
	}
}
