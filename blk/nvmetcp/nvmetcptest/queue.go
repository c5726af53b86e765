package nvmetcptest

import (
	"hash/crc32"
	"io"
	"net"
	"sync"
	"time"
)

var table = crc32.MakeTable(crc32.Castagnoli)

// Queue is a connection.
type Queue struct {
	Target *Target
	Conn   net.Conn
	// ID is the queue's number; 0: an admin queue.
	ID uint16
	// Digests in force.
	HeaderDigest, DataDigest bool

	controller *controller
	write      sync.Mutex
	transfers  map[uint16]*transfer // by TTAG
	lastTag    uint16
	holding    int // commands that are held back; guarded by Target.mu
}

// transfer is a write that waits for its data.
type transfer struct {
	e          []byte
	data       []byte
	got, asked int
	run        func(data []byte)
}

// serve is the connection's life.
func (q *Queue) serve() {
	defer func() {
		t := q.Target
		for busy := t.o.Lingers; busy; time.Sleep(time.Millisecond) {
			t.Do(func() { busy = q.holding > 0 && !t.stopping })
		}
		q.Conn.Close()
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.queues, q)
		if q.controller != nil && q.ID == 0 {
			q.controller.end() // its admin queue is gone, so is the controller
		}
	}()
	q.transfers = map[uint16]*transfer{}
	if !q.initialize() {
		return
	}
	for {
		h, data, ok := q.read()
		if !ok {
			return
		}
		switch h[0] {
		case 0x04:
			if !q.command(h[8:72], data) {
				return
			}
		case 0x06:
			if !q.data(h, data) {
				return
			}
		case 0x02:
			q.Target.TermStatus.Store(uint32(le.Uint16(h[8:])))
			q.Target.Terminated.Add(1)
			return
		default:
			q.fault("PDU type %#x from a host", h[0])
			return
		}
	}
}

// fault reports what a host did wrong: the tests' host is not to.
func (q *Queue) fault(format string, args ...any) {
	q.Target.TB.Errorf("target: "+format, args...)
}

func (q *Queue) initialize() bool {
	b := make([]byte, 128)
	if _, err := io.ReadFull(q.Conn, b); err != nil {
		return false
	}
	q.Target.whilePaused()
	if b[0] != 0 || b[2] != 128 || le.Uint32(b[4:]) != 128 || b[8] != 0 || b[9] != 0 {
		q.fault("ICReq % x", b[:16])
		return false
	}
	digests := b[11]
	if q.Target.o.NoDigests {
		digests = 0
	}
	q.HeaderDigest, q.DataDigest = digests&1 != 0, digests&2 != 0
	r := make([]byte, 128)
	r[0], r[2] = 1, 128
	le.PutUint32(r[4:], 128)
	r[10], r[11] = q.Target.o.CPDA, digests
	le.PutUint32(r[12:], uint32(q.Target.o.MaxH2CData))
	_, err := q.Conn.Write(r)
	return err == nil
}

// read takes a PDU, and checks it as a controller should.
func (q *Queue) read() (h, data []byte, ok bool) {
	h = make([]byte, 8, 80)
	if _, err := io.ReadFull(q.Conn, h); err != nil {
		return nil, nil, false
	}
	q.Target.whilePaused()
	hlen, plen, pdo := int(h[2]), int(le.Uint32(h[4:])), int(h[3])
	if want := map[byte]int{4: 72, 6: 24, 2: 24}[h[0]]; hlen != want {
		q.fault("HLEN %d in a PDU of type %#x", hlen, h[0])
		return nil, nil, false
	}
	rest := make([]byte, plen-8)
	if _, err := io.ReadFull(q.Conn, rest); err != nil {
		return nil, nil, false
	}
	all := append(h, rest...)
	if h[0] == 2 {
		return all, nil, true
	}
	end := hlen
	if q.HeaderDigest != (h[1]&1 != 0) {
		q.fault("header digest flag in %#x", h[1])
		return nil, nil, false
	}
	if q.HeaderDigest {
		if crc32.Checksum(all[:hlen], table) != le.Uint32(all[hlen:]) {
			q.fault("wrong header digest in a PDU of type %#x", h[0])
			return nil, nil, false
		}
		end += 4
	}
	if pdo == 0 {
		if plen != end {
			q.fault("PLEN %d without data, of %d", plen, end)
			return nil, nil, false
		}
		return all[:hlen], nil, true
	}
	if align := 4 * (int(q.Target.o.CPDA) + 1); pdo%align != 0 || pdo < end {
		q.fault("PDO %d, aligned to %d", pdo, align)
		return nil, nil, false
	}
	data = all[pdo:]
	if q.DataDigest != (h[1]&2 != 0) {
		q.fault("data digest flag in %#x", h[1])
		return nil, nil, false
	}
	if q.DataDigest {
		sum := le.Uint32(data[len(data)-4:])
		if data = data[:len(data)-4]; crc32.Checksum(data, table) != sum {
			q.fault("wrong data digest in a PDU of type %#x", h[0])
			return nil, nil, false
		}
	}
	return all[:hlen], data, true
}

// Raw writes bytes as they are.
func (q *Queue) Raw(b []byte) {
	q.write.Lock()
	defer q.write.Unlock()
	q.Conn.SetWriteDeadline(time.Now().Add(10 * time.Second))
	q.Conn.Write(b)
}

// PDU makes a PDU of a header of 24 bytes, whose type, flags and fields from byte 8 on are set, and data, with the digests in force.
func (q *Queue) PDU(h [24]byte, data []byte) []byte {
	h[2] = 24
	end := 24
	if q.HeaderDigest {
		h[1] |= 1
		end += 4
	}
	plen := end + len(data)
	if data != nil {
		h[3] = byte(end)
		if q.DataDigest {
			h[1] |= 2
			plen += 4
		}
	}
	le.PutUint32(h[4:], uint32(plen))
	b := append([]byte(nil), h[:]...)
	if q.HeaderDigest {
		b = le.AppendUint32(b, crc32.Checksum(b, table))
	}
	b = append(b, data...)
	if data != nil && q.DataDigest {
		b = le.AppendUint32(b, crc32.Checksum(data, table))
	}
	return b
}

// Response is a response capsule; status is the code, with its type in the second byte.
func (q *Queue) Response(cid uint16, result uint32, status uint16) []byte {
	var h [24]byte
	h[0] = 5
	le.PutUint32(h[8:], result)
	le.PutUint16(h[18:], q.ID)
	le.PutUint16(h[20:], cid)
	le.PutUint16(h[22:], status<<1)
	return q.PDU(h, nil)
}

// Data is a C2HData PDU.
func (q *Queue) Data(cid uint16, offset int, data []byte, flags byte) []byte {
	var h [24]byte
	h[0], h[1] = 7, flags
	le.PutUint16(h[8:], cid)
	le.PutUint32(h[12:], uint32(offset))
	le.PutUint32(h[16:], uint32(len(data)))
	return q.PDU(h, data)
}

// R2T is an R2T PDU.
func (q *Queue) R2T(cid, tag uint16, offset, length int) []byte {
	var h [24]byte
	h[0] = 9
	le.PutUint16(h[8:], cid)
	le.PutUint16(h[10:], tag)
	le.PutUint32(h[12:], uint32(offset))
	le.PutUint32(h[16:], uint32(length))
	return q.PDU(h, nil)
}

func (q *Queue) complete(cid uint16, result uint32, status uint16) {
	q.Raw(q.Response(cid, result, status))
}

// answer sends a read's data, as Options say.
func (q *Queue) answer(cid uint16, data []byte) {
	most := q.Target.o.MaxC2HData
	if most == 0 {
		most = len(data)
	}
	for at := 0; at < len(data); {
		n := min(most, len(data)-at)
		var flags byte
		if at+n == len(data) {
			flags = 1 << 2
			if !q.Target.o.NoSuccess {
				flags |= 1 << 3
			}
		}
		q.Raw(q.Data(cid, at, data[at:at+n], flags))
		at += n
	}
	if q.Target.o.NoSuccess {
		q.complete(cid, 0, 0)
	}
}

// fetch gets length bytes of a write's data: from the capsule, or by R2T. run has them, with Target.mu held.
func (q *Queue) fetch(e, inCapsule []byte, length int, run func(data []byte)) bool {
	if e[39] == 0x01 {
		if len(inCapsule) != length || int(le.Uint32(e[32:])) != length {
			q.fault("%d bytes in a capsule, the SGL says %d, the command %d", len(inCapsule), le.Uint32(e[32:]), length)
			return false
		}
		run(inCapsule)
		return true
	}
	if e[39] != 0x5a || int(le.Uint32(e[32:])) != length || len(inCapsule) != 0 {
		q.fault("SGL % x for %d bytes", e[24:40], length)
		return false
	}
	q.lastTag++
	x := &transfer{e: e, data: make([]byte, length), run: run}
	q.transfers[q.lastTag] = x
	q.ask(q.lastTag, x)
	return true
}

func (q *Queue) ask(tag uint16, x *transfer) {
	n := len(x.data) - x.asked
	if most := q.Target.o.MaxR2T; most != 0 {
		n = min(n, most)
	}
	b := q.R2T(le.Uint16(x.e[2:]), tag, x.asked, n)
	x.asked += n
	q.Raw(b)
}

// data is an H2CData PDU.
func (q *Queue) data(h, data []byte) bool {
	q.Target.Data.Add(1)
	tag := le.Uint16(h[10:])
	x := q.transfers[tag]
	at, n := int(le.Uint32(h[12:])), int(le.Uint32(h[16:]))
	switch {
	case x == nil || le.Uint16(h[8:]) != le.Uint16(x.e[2:]):
		q.fault("H2CData with tag %d", tag)
		return false
	case n != len(data) || n > q.Target.o.MaxH2CData || at != x.got || at+n > x.asked:
		q.fault("H2CData of %d (DATAL %d) at %d, due at %d, asked for %d", len(data), n, at, x.got, x.asked)
		return false
	case (h[1]&4 != 0) != (at+n == x.asked):
		q.fault("LAST_PDU %v at %d of %d", h[1]&4 != 0, at+n, x.asked)
		return false
	}
	copy(x.data[at:], data)
	x.got += n
	if x.got == len(x.data) {
		delete(q.transfers, tag)
		q.Target.mu.Lock()
		x.run(x.data)
		q.Target.mu.Unlock()
	} else if x.got == x.asked {
		q.ask(tag, x)
	}
	return true
}
