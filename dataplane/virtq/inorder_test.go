package virtq

import (
	"encoding/binary"
	"testing"
)

// What Publish leaves in a split used ring: of chains that have nothing to write, and the one after them, one element.
func TestUsedInOrder(t *testing.T) {
	for _, inOrder := range []bool{false, true} {
		r := newRig(t, DeviceOptions{Size: 8, Base: 6, InOrder: inOrder})
		for i, write := range []uint16{0, 0, wr, 0, wr, wr} {
			r.put(0, i, data, 8, write, 0)
			r.offer(uint16(6+i), uint16(i))
			if err := r.device.Next(r.chain); err != nil {
				t.Fatal(err)
			}
		}
		for i := range r.file[rigUsed+4 : rigUsed+4+8*8] {
			r.file[rigUsed+4+i] = 0xee
		}
		for i := range uint16(4) {
			r.device.Complete(i, uint32(10*i))
		}
		r.device.Publish()
		r.device.Complete(4, 40)
		r.device.Complete(5, 50)
		r.device.Publish()
		want := []uint32{0, 1, 2, 3, 4, 5}
		if inOrder {
			want = []uint32{2, 0xeeeeeeee, 0xeeeeeeee, 3, 4, 5}
		}
		for i, head := range want {
			if id, n := r.usedElem(uint16(6 + i)); id != head || head < 8 && n != 10*head {
				t.Errorf("inOrder=%v: element %d is of chain %#x with %d bytes, want %#x", inOrder, 6+i, id, n, head)
			}
		}
		if r.usedIndex() != 12 {
			t.Errorf("inOrder=%v: used index %d", inOrder, r.usedIndex())
		}
	}
}

// Devices may let one element stand for any chains before: the driver takes those for filled.
func TestDriverInOrder(t *testing.T) {
	for _, packed := range []bool{false, true} {
		p := newPair(t, 16, map[bool]uint16{true: PackedStart}[packed], mode{packed: packed, inOrder: true})
		var heads []uint16
		for i := range 6 {
			head, ok := p.driver.Add([]Buffer{{data, 1}}[:i%2], []Buffer{{data, 100}, {data, uint32(i)}}[i%2:])
			if !ok {
				t.Fatalf("chain %d does not fit", i)
			}
			heads = append(heads, head)
		}
		p.driver.Publish()
		used := func(at int, id uint16, n uint32, index uint16) {
			if packed {
				p.putPacked(0, at, 0, n, id, 0x8080|wr)
			} else {
				binary.LittleEndian.PutUint32(p.file[rigUsed+4+8*at:], uint32(id))
				binary.LittleEndian.PutUint32(p.file[rigUsed+4+8*at+4:], n)
				p.setUsed(index)
			}
		}
		expect := func(head uint16, n uint32) {
			t.Helper()
			if got, m, ok, err := p.driver.Used(); got != head || m != n || !ok || err != nil {
				t.Errorf("packed=%v: chain %d with %d bytes, %v, %v, want %d with %d", packed, got, m, ok, err, head, n)
			}
		}
		used(0, heads[2], 7, 3)
		expect(heads[0], 100)
		if !p.driver.Pending() {
			t.Errorf("packed=%v: nothing pending in the middle of a batch", packed)
		}
		expect(heads[1], 1)
		expect(heads[2], 7)
		if _, _, ok, err := p.driver.Used(); ok || err != nil || p.driver.Pending() {
			t.Errorf("packed=%v: more than the batch: %v, %v", packed, ok, err)
		}
		if !packed { // the index does not reach as far as the element says
			used(3, heads[4], 1, 4)
			expect(heads[3], 3)
			if _, _, ok, err := p.driver.Used(); ok || err == nil {
				t.Errorf("%v, %v", ok, err)
			}
		}
	}
}
