package virtq

import "github.com/shuntio/shunt/dataplane/shm"

// AddIndirect is Add with an indirect table: the chain takes one descriptor, whatever its length. table is where the table is written, and addr
// its guest-physical address; the device may read it until the chain is used. It reports false, too, if the table is too small or its address
// is no multiple of 8.
func (q *Driver) AddIndirect(table []byte, addr uint64, readable, writable []Buffer) (head uint16, ok bool) {
	n := len(readable) + len(writable)
	if n == 0 || q.left == 0 || !q.putTable(table, readable, writable) {
		return 0, false
	}
	one := Buffer{Addr: addr, Len: uint32(16 * n)}
	if q.packed {
		head = q.nextID()
		q.offer(one, descIndirect, head)
	} else {
		head = q.take(0)
		q.desc[head] = desc{addr: one.Addr, len: one.Len, flags: descIndirect}
		q.enter(head)
	}
	q.account(head, 1, writable)
	return head, true
}

// putTable writes an indirect table.
func (q *Driver) putTable(table []byte, readable, writable []Buffer) bool {
	n := len(readable) + len(writable)
	descs, err := shm.View[desc](table, n)
	if err != nil {
		return false
	}
	for i := range descs {
		b, flags := buffer(readable, writable, i)
		switch {
		case q.packed: // the flags lie where a split ring's descriptor has next, and nothing links
			descs[i] = desc{addr: b.Addr, len: b.Len, next: flags}
		case i < n-1:
			descs[i] = desc{addr: b.Addr, len: b.Len, flags: flags | descNext, next: uint16(i + 1)}
		default:
			descs[i] = desc{addr: b.Addr, len: b.Len, flags: flags}
		}
	}
	return true
}
