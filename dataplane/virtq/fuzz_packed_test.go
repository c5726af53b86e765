package virtq

import (
	"reflect"
	"testing"
)

// The fuzzed bytes of a packed ring: what was negotiated, where its cursors stand, then the ring of 11 descriptors (no power of two) and an
// indirect table. It is read in four rounds, and what follows are other rings for the later ones: a driver's flags may do anything.
const (
	fuzzSize      = 11
	fuzzPacked    = 4
	fuzzRing      = 16 * fuzzSize
	fuzzTable     = 16 * 70
	fuzzPackedMax = fuzzPacked + 4*fuzzRing + fuzzTable
)

// FuzzPackedNext has the device take what a hostile driver put into a packed ring, and complete it. Whatever the bytes, an oracle knows
// which chains are good; and what the device writes lies where the next used descriptors go, and nowhere else.
func FuzzPackedNext(f *testing.F) {
	build := func(head [fuzzPacked]byte, write func(r *rig)) {
		r := newPackedRig(f, DeviceOptions{Size: fuzzSize})
		write(r)
		b := append(head[:], r.file[:fuzzRing]...)
		f.Add(append(b, r.file[table:table+fuzzTable]...))
	}
	build([4]byte{}, func(r *rig) {
		for i := range fuzzSize {
			r.putPacked(0, i, data+uint64(i)*64, 64, uint16(i), av)
		}
	})
	build([4]byte{1 | 4, 0, 9, 9}, func(r *rig) {
		r.putPacked(0, 9, data, 64, 0, av|next)
		r.putPacked(0, 10, data, 64, 0, av|next)
		r.putPacked(0, 0, rigMiddle-8, 16, 7, av0|wr)
		r.putPacked(0, 1, tableAddr, 48, 8, av0|ind)
		r.putPacked(table, 0, data, 12, 0, 0)
		r.putPacked(table, 1, data, 12, 0, wr)
		r.putPacked(table, 2, data, 12, 0, wr)
	})
	build([4]byte{2, 0, fuzzSize + 3, 3}, func(r *rig) { // another device's are under way
		for i := 3; i < fuzzSize; i++ {
			r.putPacked(0, i, data, 1, 4, av0|next)
		}
	})
	r := newPackedRig(f, DeviceOptions{Size: fuzzSize})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < fuzzPacked || len(b) > fuzzPackedMax {
			return
		}
		base, used := int(b[2])%(2*fuzzSize), int(b[3])%(2*fuzzSize)
		m := packedModel{rig: r, t: t, avail: base, used: used, out: (base - used + 2*fuzzSize) % (2 * fuzzSize), indirect: b[0]&1 != 0, inOrder: b[0]&4 != 0}
		o := DeviceOptions{Packed: true, Indirect: m.indirect, EventIdx: b[0]&2 != 0, InOrder: m.inOrder, Base: m.base(base), UsedBase: m.base(used)}
		if m.out > fuzzSize {
			if _, err := NewDevice(DeviceOptions{Layout: r.layout(r.file), Size: fuzzSize, Packed: true, Base: o.Base, UsedBase: o.UsedBase}); err == nil {
				t.Fatalf("base %#x is accepted with used base %#x", o.Base, o.UsedBase)
			}
			return
		}
		clear(r.file[:rigData])
		clear(r.file[table : table+fuzzTable])
		r.renew(t, o)
		rings := b[fuzzPacked:]
		if len(rings) > fuzzRing {
			copy(r.file[table:table+fuzzTable], rings[fuzzRing:])
		}
		copy(r.file[:fuzzRing], rings)
		for round := 0; m.round(round, b[1]) && len(rings) > fuzzRing; round++ {
			rings = rings[fuzzRing:]
			copy(r.file[:fuzzRing], rings)
		}
	})
}

// packedModel is what a device of a packed ring has to do. Places count on around the ring twice: the second round is the one with wrap counter 0.
type packedModel struct {
	*rig
	t                 *testing.T
	avail, used, out  int
	indirect, inOrder bool
	under             []modelChain // taken, not completed
}

type modelChain struct {
	id    uint16
	slots int
	reads bool
}

func (m *packedModel) base(place int) uint16 {
	if place < fuzzSize {
		return uint16(place) | PackedStart
	}
	return uint16(place - fuzzSize)
}

func (m *packedModel) busy(id uint16) bool {
	for _, c := range m.under {
		if c.id == id {
			return true
		}
	}
	return false
}

// round takes what there is and completes as many chains as the bits of keep say. It reports whether the ring is still good.
func (m *packedModel) round(round int, keep byte) bool {
	n, err := m.device.Available()
	m.device.Hint(n)
	offered := m.offered(m.avail)
	if full := offered && m.out == fuzzSize; (err != nil) != full {
		m.t.Fatalf("%d of %d under way, and the next is offered: %v; Available says %d, %v", m.out, fuzzSize, offered, n, err)
	} else if full {
		return false
	}
	if m.device.Pending() != offered || (n > 0) != offered {
		m.t.Fatalf("the next is offered: %v; Available says %d, Pending %v", offered, n, m.device.Pending())
	}
	for range n {
		readable, writable, slots, id, ok := m.packedChainOf(m.avail, fuzzSize-m.out, m.indirect, cap(m.chain.views))
		ok = ok && id < fuzzSize && !m.busy(id)
		if err := m.device.Next(m.chain); (err == nil) != ok {
			m.t.Fatalf("chain %d at %d: %v, oracle says %v", id, m.avail, err, ok)
		} else if err != nil {
			return false
		}
		gotR, okR := m.pieces(m.chain.Readable)
		gotW, okW := m.pieces(m.chain.Writable)
		if !okR || !okW || !reflect.DeepEqual(gotR, readable) || !reflect.DeepEqual(gotW, writable) || int(m.chain.Slots) != slots || m.chain.Head != id {
			m.t.Fatalf("chain %d: %+v, oracle says %d %x %x", m.chain.Head, m.chain, id, readable, writable)
		}
		m.avail = (m.avail + slots) % (2 * fuzzSize)
		m.out += slots
		m.under = append(m.under, modelChain{id, slots, len(m.chain.Writable) == 0})
		if m.device.Base() != m.base(m.avail) {
			m.t.Fatalf("base is %#x, want %#x", m.device.Base(), m.base(m.avail))
		}
	}
	m.complete(int(keep >> (2 * round) & 3))
	return true
}

// complete completes all but keep chains, and looks what that left in the ring.
func (m *packedModel) complete(keep int) {
	var want [fuzzRing]byte
	copy(want[:], m.file[:fuzzRing])
	open, at := false, 0
	for len(m.under) > keep {
		c := m.under[0]
		m.under = m.under[1:]
		m.device.Complete(c.id, 0)
		if !open {
			at = m.used
		}
		turn := byte(0)
		if at < fuzzSize {
			turn = 0x80
		}
		d := want[16*(at%fuzzSize):]
		copy(d[8:], []byte{0, 0, 0, 0, byte(c.id), byte(c.id >> 8), turn, turn})
		open = m.inOrder && c.reads
		m.used = (m.used + c.slots) % (2 * fuzzSize)
		m.out -= c.slots
	}
	m.device.Publish()
	if string(m.file[:fuzzRing]) != string(want[:]) {
		m.t.Fatalf("the ring is\n% x, want\n% x", m.file[:fuzzRing], want)
	}
	if m.device.UsedBase() != m.base(m.used) {
		m.t.Fatalf("used base is %#x, want %#x", m.device.UsedBase(), m.base(m.used))
	}
}
