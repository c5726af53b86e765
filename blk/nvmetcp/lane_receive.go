package nvmetcp

import (
	"fmt"
	"hash/crc32"
	"io"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/dataplane/guestmem"
	"golang.org/x/sys/unix"
)

// Receiving: one vector at a time is with the kernel.
//
//	usually        [ private buffer                 ]   headers and short data, which is copied on
//	in long data   [ the guest's buffers ][ private ]   the rest of that PDU's data, and what follows it
//
// What has come into the private buffer, consume takes apart. A PDU's header is taken when all of it is there, and judged as a whole; data in whatever pieces it comes.

// receive lets the kernel receive, unless it does.
func (l *lane) receive() {
	if !l.connected() || l.recv.Busy() {
		return
	}
	l.in.Reset()
	l.direct = 0
	if l.r > 0 {
		copy(l.buffer, l.buffer[l.r:l.w])
		l.r, l.w = 0, l.w-l.r
	}
	if l.w == 0 && l.skip == 0 && l.due > 0 && l.data.long && l.wanted(l.data) {
		l.receiveDirectly(l.data)
	} else {
		size := len(l.buffer) - l.w
		if l.reads > 0 {
			size = min(size, l.due+shortSize)
		}
		l.in.Add(l.buffer[l.w:][:size])
	}
	if !l.host.Ring.Recv(&l.recv, l.file, l.in, 0) {
		l.direct = 0 // the ring has no room: with the next Flush
	}
}

// receiveDirectly fills the vector with the guest's buffers, and some of our own for what comes behind.
func (l *lane) receiveDirectly(c *command) {
	at, buffers := c.at, l.tasks[c.task].request.Buffers
	for n := 1; l.direct < l.due && n < vectorSize; n++ {
		b := at.part(buffers, l.due-l.direct)
		if !l.in.Add(b) {
			return
		}
		at.offset += len(b)
		l.direct += len(b)
	}
	if l.direct == l.due {
		l.in.Add(l.buffer[:shortSize])
	}
}

// wanted tells whether a command's data still goes anywhere.
func (l *lane) wanted(c *command) bool {
	return c.task != nobody && !l.tasks[c.task].faulty
}

// received hears how a receive ended.
func (l *lane) received(res int32) {
	direct := l.direct
	l.direct = 0
	switch {
	case res == 0:
		l.fail(fmt.Errorf("the controller closed the connection: %w", io.EOF))
		return
	case res > 0:
	case res == -int32(unix.EINTR), res == -int32(unix.EAGAIN), res == -int32(unix.ECANCELED) && direct > 0:
		res = 0
	case res == -int32(unix.EFAULT) && direct > 0:
		l.tasks[l.data.task].faulty = true // the rest of its data is drained
		res = 0
	default:
		l.fail(fmt.Errorf("receive from the controller: %w", unix.Errno(-res)))
		return
	}
	l.pumping = true
	n := int(res)
	if direct > 0 {
		n = l.tookDirectly(n, direct)
	}
	l.w += n
	l.consume()
	l.pumping = false
	l.push()
	l.receive()
}

// tookDirectly accounts for n bytes, of which the first went into the guest's buffers; it returns how many did not.
func (l *lane) tookDirectly(n, direct int) int {
	c, m := l.data, min(n, direct)
	t := &l.tasks[c.task]
	c.at.advance(t.request.Buffers, m)
	l.due -= m
	if t.withdrawn { // while the kernel had its buffers
		l.orphan(c)
		if t.left == 0 {
			l.conclude(t)
		}
	}
	if l.due == 0 {
		l.dataEnds(nil)
	}
	return n - m
}

// consume takes apart what is in the private buffer.
func (l *lane) consume() {
	for l.connected() && l.broken == nil {
		have := l.buffer[l.r:l.w]
		switch {
		case l.skip > 0 && len(have) > 0:
			n := min(l.skip, len(have))
			l.skip -= n
			l.r += n
		case l.skip > 0:
			return
		case l.due > 0 && len(have) > 0:
			n := min(l.due, len(have))
			l.deliver(have[:n])
			l.due -= n
			l.r += n
			if l.due == 0 && !l.digest {
				l.dataEnds(nil)
			}
		case l.due > 0:
			return
		case l.digest:
			if len(have) < digestLength {
				return
			}
			l.digest = false
			l.r += digestLength
			l.dataEnds(have[:digestLength])
		default:
			n, bad := 0, (*violation)(nil)
			if len(have) >= commonLength {
				n, bad = l.limits.terms.expect(have)
			}
			if bad == nil && (n == 0 || len(have) < n) {
				return
			}
			if bad == nil {
				l.r += n
				bad = l.pdu(have[:n])
			}
			if bad != nil {
				l.fail(bad)
			}
		}
	}
}

// deliver copies data that came into the private buffer to where it belongs. Its digest is that of the private bytes.
func (l *lane) deliver(b []byte) {
	if l.digest {
		l.arrived = crc32.Update(l.arrived, castagnoli, b)
	}
	for c := l.data; len(b) > 0 && l.wanted(c); {
		t := &l.tasks[c.task]
		to := c.at.part(t.request.Buffers, len(b))
		if !guestmem.Copy(to, b[:len(to)]) {
			t.faulty = true
			return
		}
		c.at.offset += len(to)
		b = b[len(to):]
	}
}

// pdu acts on a header, digest included.
func (l *lane) pdu(whole header) *violation {
	padding, bad := l.limits.terms.check(whole)
	if bad != nil {
		return bad
	}
	h := whole[:headerLength]
	switch h.kind() {
	case pduC2HTermReq:
		l.fail(terminated(h))
		return nil
	case pduCapsuleResp:
		r := parseCQE(h[commonLength:])
		c := l.lookup(r.cid)
		if c == nil {
			return breach(fesSequence, 0, h, "an answer to command %#x, which is not under way", r.cid)
		}
		return l.respond(c, r.status, h)
	case pduR2T:
		return l.readyToTransfer(h)
	default:
		return l.dataBegins(h, padding)
	}
}

// readyToTransfer: the controller wants data of a write. It asks for it from front to back, once, and for no more while we have some to send: we agreed on one R2T
// at a time.
func (l *lane) readyToTransfer(h header) *violation {
	c := l.lookup(h.cccid())
	switch {
	case c == nil:
		return breach(fesSequence, 8, h, "R2T for command %#x, which is not under way", h.cccid())
	case !c.sends() || c.capsule > 0:
		return breach(fesSequence, 8, h, "R2T for a %v, which has no data to send", c.op)
	case c.granted > 0 || l.current == c:
		return breach(fesLimit, 0, h, "a second R2T for a command, with one agreed on")
	case h.length() == 0 || h.offset() != c.asked || h.length() > c.length-c.asked:
		return breach(fesOutOfRange, 12, h, "R2T for %d bytes at %d of a command's %d, where %d is next", h.length(), h.offset(), c.length, c.asked)
	}
	c.asked += h.length()
	c.granted, c.ttag = h.length(), h.ttag()
	if !c.queued {
		c.queued = true
		l.line.push(c.index)
	}
	return nil
}

// dataBegins: data of a read comes. It comes from front to back, and not beyond what was asked for.
func (l *lane) dataBegins(h header, padding int) *violation {
	c := l.lookup(h.cccid())
	switch {
	case c == nil:
		return breach(fesSequence, 8, h, "data for command %#x, which is not under way", h.cccid())
	case c.op != blk.OpRead:
		return breach(fesSequence, 8, h, "data for a %v", c.op)
	case h.offset() != c.received || h.length() > c.length-c.received:
		return breach(fesOutOfRange, 12, h, "%d bytes of data at %d of a command's %d, where %d is next", h.length(), h.offset(), c.length, c.received)
	case h.flags()&flagLast != 0 && c.received+h.length() != c.length:
		return breach(fesSequence, 1, h, "the last data of a read, with %d bytes missing", c.length-c.received-h.length())
	}
	c.received += h.length()
	l.data, l.due, l.skip, l.arrived = c, int(h.length()), padding, 0
	l.digest, l.last = l.limits.terms.dataDigest, h.flags()&flagSuccess != 0
	return nil
}

// dataEnds: all data of a PDU is there, and its digest, if one was agreed on.
func (l *lane) dataEnds(digest []byte) {
	c := l.data
	l.data = nil
	if digest != nil && le.Uint32(digest) != l.arrived {
		c.corrupt = true
	}
	if !l.last {
		return
	}
	if bad := l.respond(c, 0, nil); bad != nil {
		l.fail(bad)
	}
}
