package nvmetcptest

import (
	"time"
)

// Status codes, type in the second byte.
const (
	invalidOpcode = 0x001
	invalidField  = 0x002
	lbaRange      = 0x080
	sequence      = 0x00c
	inaccessible  = 0x302
	doNotRetry    = 1 << 14 // of the status without its phase bit
)

// command acts on a capsule; false: the connection ends.
func (q *Queue) command(e, data []byte) bool {
	t := q.Target
	cid := le.Uint16(e[2:])
	if e[0] == 0x7f && e[4] == 0x01 {
		return q.connect(e, data)
	}
	if q.controller == nil {
		q.fault("command %#x before Connect", e[0])
		return false
	}
	if q.ID == 0 {
		t.mu.Lock()
		defer t.mu.Unlock()
		return q.admin(e, cid)
	}
	t.Commands[e[0]].Add(1)
	t.mu.Lock()
	intercept := t.intercept
	t.mu.Unlock()
	if intercept != nil && intercept(q, e) {
		return true
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	q.controller.alive()
	if t.hold != nil && t.hold(e) {
		q.holding++
		t.held = append(t.held, func() {
			q.holding--
			if q.executes() {
				q.io(e, data, cid)
			}
		})
		return true
	}
	return q.io(e, data, cid)
}

func (q *Queue) connect(e, data []byte) bool {
	t := q.Target
	t.mu.Lock()
	defer t.mu.Unlock()
	t.Connects.Add(1)
	cid := le.Uint16(e[2:])
	q.ID = le.Uint16(e[42:])
	if len(data) != 1024 || e[39] != 1 || le.Uint32(e[32:]) != 1024 {
		q.fault("Connect with %d bytes of data", len(data))
		return false
	}
	name := cstring(data[256:512])
	discovery := name == "nqn.2014-08.org.nvmexpress.discovery"
	if name != NQN && !discovery {
		q.complete(cid, 1<<16|256, 0x182|doNotRetry)
		return false
	}
	if t.o.Authenticate {
		q.complete(cid, 1<<16|1, 0)
		return true
	}
	wanted := le.Uint16(data[16:])
	if q.ID == 0 {
		if wanted != 0xffff {
			q.fault("an admin queue for controller %#x", wanted)
			return false
		}
		q.controller = t.newController(q, time.Duration(le.Uint32(e[48:]))*time.Millisecond, discovery)
		q.complete(cid, uint32(q.controller.id), 0)
		return true
	}
	c := t.controllers[wanted]
	if c == nil || c.csts&1 == 0 || int(q.ID) > t.o.Queues || le.Uint16(e[44:]) > t.o.Entries {
		q.complete(cid, 42, 0x182|doNotRetry)
		return false
	}
	for _, other := range c.queues {
		if other.ID == q.ID && t.queues[other] {
			q.complete(cid, 0, sequence|doNotRetry)
			return false
		}
	}
	q.controller = c
	c.queues = append(c.queues, q)
	q.complete(cid, uint32(c.id), 0)
	return true
}

func cstring(b []byte) string {
	for i := range b {
		if b[i] == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

// admin executes a command of the admin queue, with Target.mu held.
func (q *Queue) admin(e []byte, cid uint16) bool {
	t, c := q.Target, q.controller
	t.Admin[e[0]].Add(1)
	if t.o.Lingers {
		c.alive() // all traffic is a sign of life
	}
	if e[0] == 0x7f {
		return q.property(e, cid)
	}
	if c.csts&1 == 0 {
		q.complete(cid, 0, sequence)
		return true
	}
	dw := func(n int) uint32 { return le.Uint32(e[4*n:]) }
	switch e[0] {
	case 0x06:
		b, status := t.identify(c, byte(dw(10)), dw(1))
		q.give(e, cid, b, status)
	case 0x02:
		n := (int(dw(10)>>16) | int(dw(11)&0xffff)<<16) + 1
		b, ok := t.logPage(c, byte(dw(10)), int(dw(12)), 4*n)
		if !ok {
			q.complete(cid, 0, 0x109|doNotRetry)
			return true
		}
		q.give(e, cid, b, 0)
	case 0x09:
		switch dw(10) & 0xff {
		case 7:
			q.complete(cid, uint32(t.o.Queues-1)*0x10001, 0)
		case 0xb:
			c.enable = dw(11)
			q.complete(cid, 0, 0)
		default:
			q.complete(cid, 0, invalidField|doNotRetry)
		}
	case 0x0c:
		c.aer = append(c.aer, cid)
		c.tell()
	case 0x18:
		c.alive()
		t.KeptUp.Add(1)
		q.complete(cid, 0, 0)
	case 0x08:
		q.complete(cid, 1, 0) // not aborted
	default:
		q.complete(cid, 0, invalidOpcode|doNotRetry)
	}
	return true
}

func (q *Queue) give(e []byte, cid uint16, b []byte, status uint16) {
	if status != 0 {
		q.complete(cid, 0, status|doNotRetry)
		return
	}
	if e[39] != 0x5a || int(le.Uint32(e[32:])) != len(b) {
		q.fault("SGL % x for %d bytes of admin data", e[24:40], len(b))
	}
	q.answer(cid, b)
}

func (q *Queue) property(e []byte, cid uint16) bool {
	t, c := q.Target, q.controller
	offset := le.Uint32(e[44:])
	switch e[4] {
	case 0x04:
		var v uint64
		switch offset {
		case 0x00:
			v = uint64(t.o.Entries) | 1<<16 | 10<<24 | 1<<37
		case 0x08:
			v = 0x10400
		case 0x14:
			v = uint64(c.cc)
		case 0x1c:
			v = uint64(c.csts)
		}
		var h [24]byte
		h[0] = 5
		le.PutUint64(h[8:], v)
		le.PutUint16(h[20:], cid)
		q.Raw(q.PDU(h, nil))
	case 0x00:
		if offset != 0x14 {
			q.complete(cid, 0, invalidField|doNotRetry)
			return true
		}
		c.cc = le.Uint32(e[48:])
		switch {
		case c.cc>>14&3 != 0:
			c.csts = c.csts&^(3<<2) | 2<<2
		case c.cc&1 != 0:
			if c.cc>>16&0xff != 0x46 {
				q.fault("CC %#x", c.cc)
			}
			c.csts |= 1
		default:
			c.csts = 0
			for _, other := range c.queues { // a reset deletes IO queues
				if other.ID != 0 && !t.o.Lingers {
					other.Conn.Close()
				}
			}
		}
		q.complete(cid, 0, 0)
	default:
		q.complete(cid, 0, invalidField|doNotRetry)
	}
	return true
}

func (t *Target) identify(c *controller, cns byte, nsid uint32) ([]byte, uint16) {
	b := make([]byte, 4096)
	switch cns {
	case 0x00:
		if nsid != 1 {
			return b, 0
		}
		le.PutUint64(b, t.o.Blocks)
		b[33] = 1<<3 | 1
		b[130] = byte(t.o.Shift)
		le.PutUint32(b[92:], 1)
		copy(b[104:], t.uuid[:])
	case 0x01:
		copy(b[4:], "SHUNT0001           ")
		copy(b[24:], "shunt test target                       ")
		copy(b[64:], "1       ")
		b[77] = t.o.MDTS
		le.PutUint16(b[78:], c.id)
		le.PutUint32(b[92:], 1<<8)
		if t.o.ANA {
			b[76] = 1 << 3
			le.PutUint32(b[92:], 1<<8|1<<11)
			le.PutUint32(b[344:], 1)
			le.PutUint32(b[348:], 1)
		}
		le.PutUint16(b[128:], t.o.CRDT)
		le.PutUint16(b[320:], 1)
		if !t.o.NoOptional {
			le.PutUint16(b[520:], 1<<2|1<<3)
		}
		if t.o.Cache {
			b[525] = 1
		}
		le.PutUint32(b[536:], 1|1<<20|1<<21)
		copy(b[768:], NQN)
		le.PutUint32(b[1792:], uint32(64+t.o.InCapsule)/16)
	case 0x02:
		le.PutUint32(b, 1)
	case 0x03:
		b[0], b[1] = 3, 16
		copy(b[4:], t.uuid[:])
	default:
		return nil, invalidField
	}
	return b, 0
}

func (t *Target) logPage(c *controller, page byte, offset, n int) ([]byte, bool) {
	all := make([]byte, 4096)
	switch page {
	case 0x02:
		if t.o.Health != nil && len(t.o.Health) == 0 {
			return nil, false
		}
		copy(all[:512], t.o.Health)
	case 0x04:
		le.PutUint32(all, 1)
		c.mask[4] = false
	case 0x0c:
		le.PutUint16(all[8:], 1)
		le.PutUint32(all[16:], 1)
		all[32] = t.ana
		c.mask[0xc] = false
	case 0x70:
		le.PutUint64(all, t.generation)
		le.PutUint64(all[8:], 2)
		for i, kind := range []byte{3, 2} {
			r := all[1024*(i+1):]
			r[0], r[1], r[2] = 3, 1, kind
			le.PutUint16(r[4:], 1)
			copy(r[32:64], "4420                            ")
			copy(r[256:], []string{"nqn.2014-08.org.nvmexpress.discovery", NQN}[i])
			copy(r[512:], "127.0.0.1")
		}
	default:
		return nil, false
	}
	b := make([]byte, n)
	if offset < len(all) {
		copy(b, all[offset:])
	}
	return b, true
}

// SetGeneration changes the discovery log's counter.
func (t *Target) SetGeneration(n uint64) { t.Do(func() { t.generation = n }) }

// executes tells whether the queue's commands still are, with Target.mu held.
func (q *Queue) executes() bool {
	return q.Target.o.Lingers || !q.controller.gone && q.controller.csts&1 != 0
}

// io executes a command of an IO queue, with Target.mu held; false: the connection ends.
func (q *Queue) io(e, data []byte, cid uint16) bool {
	t := q.Target
	dw := func(n int) uint32 { return le.Uint32(e[4*n:]) }
	if t.o.ANA && t.ana != 1 && t.ana != 2 {
		q.complete(cid, 0, 0x300|map[byte]uint16{3: 2, 4: 1, 15: 3}[t.ana])
		return true
	}
	if e[1]&0xc0 != 0x40 || dw(1) != 1 {
		q.fault("command %#x for namespace %d with flags %#x", e[0], dw(1), e[1])
		return false
	}
	at, n := le.Uint64(e[40:])<<t.o.Shift, (int(dw(12)&0xffff)+1)<<t.o.Shift
	beyond := at > uint64(len(t.disk)) || uint64(n) > uint64(len(t.disk))-at
	if (e[0] == 1 || e[0] == 2) && t.o.MDTS != 0 && n > 4096<<t.o.MDTS {
		q.fault("%d bytes in a command, beyond MDTS", n)
	}
	if e[0] != 0 && e[0] != 9 && beyond {
		q.complete(cid, 0, lbaRange|doNotRetry)
		return true
	}
	switch e[0] {
	case 0x02:
		q.answer(cid, t.disk[at:at+uint64(n)])
	case 0x01:
		return q.fetch(e, data, n, func(data []byte) {
			if !q.executes() {
				return
			}
			copy(t.disk[at:], data)
			if dw(12)&(1<<30) != 0 {
				copy(t.stable[at:], data)
			}
			q.complete(cid, 0, 0)
		})
	case 0x00:
		copy(t.stable, t.disk)
		q.complete(cid, 0, 0)
	case 0x08:
		clear(t.disk[at : at+uint64(n)])
		q.complete(cid, 0, 0)
	case 0x09:
		return q.fetch(e, data, 16*(int(dw(10)&0xff)+1), func(data []byte) {
			at, n := le.Uint64(data[8:])<<t.o.Shift, uint64(le.Uint32(data[4:]))<<t.o.Shift
			if dw(11)&4 == 0 || at > uint64(len(t.disk)) || n > uint64(len(t.disk))-at {
				q.complete(cid, 0, lbaRange|doNotRetry)
				return
			}
			clear(t.disk[at : at+n])
			q.complete(cid, 0, 0)
		})
	default:
		q.complete(cid, 0, invalidOpcode|doNotRetry)
	}
	return true
}
