package virtq

import (
	"encoding/binary"
	"reflect"
	"testing"
)

// The fuzzed bytes: flags, the avail index and how the tables lie, then the descriptor table, the avail ring, and an indirect table.
const (
	fuzzHead     = 4
	fuzzDesc     = fuzzHead
	fuzzAvail    = fuzzDesc + 16*16
	fuzzIndirect = fuzzAvail + 2*16
	fuzzMax      = fuzzIndirect + 16*80
)

// load puts the bytes where a driver would have written them.
func (r *rig) load(b []byte) {
	clear(r.file[:rigAvail+AvailBytes(r.size)])
	clear(r.file[table : table+16*80])
	part := func(from, to, at int) {
		if len(b) > from {
			copy(r.file[at:at+to-from], b[from:min(to, len(b))])
		}
	}
	part(fuzzDesc, fuzzAvail, 0)
	part(fuzzAvail, fuzzIndirect, rigAvail+4)
	part(fuzzIndirect, fuzzMax, table)
}

func FuzzDeviceNext(f *testing.F) {
	build := func(flags byte, avail uint16, write func(r *rig)) {
		r := newRig(f, DeviceOptions{Indirect: true})
		write(r)
		b := []byte{flags, byte(avail), byte(avail >> 8), 0}
		b = append(b, r.file[:16*16]...)
		b = append(b, r.file[rigAvail+4:rigAvail+4+2*16]...)
		b = append(b, r.file[table:table+16*80]...)
		f.Add(b)
	}
	build(1, 2, func(r *rig) {
		r.put(0, 0, data, 60, 0, 0)
		r.put(0, 1, data+64, 12, next, 2)
		r.put(0, 2, rigMiddle-8, 16, wr, 0)
		r.offer(1, 1)
	})
	build(1, 1, func(r *rig) {
		r.put(0, 0, tableAddr, 48, ind, 0)
		r.put(table, 0, data, 12, next, 1)
		r.put(table, 1, data+64, 1000, next, 2)
		r.put(table, 2, data+8192, 1, wr, 0)
	})
	build(3, 16, func(r *rig) {
		for i := range 16 {
			r.put(0, i, data, 1, next, uint16(i+1)%16)
		}
	})
	r := newRig(f, DeviceOptions{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < fuzzHead || len(b) > fuzzMax {
			return
		}
		r.load(b)
		r.renew(t, DeviceOptions{Indirect: b[0]&1 != 0, EventIdx: b[0]&2 != 0, Base: uint16(b[3]) << 8})
		base, ahead := r.device.Base(), binary.LittleEndian.Uint16(b[1:])
		r.setAvail(base + ahead)
		n, err := r.device.Available()
		if (err == nil) != (int(ahead) <= r.size) || err == nil && n != int(ahead) {
			t.Fatalf("%d ahead: %d, %v", ahead, n, err)
		}
		good := 0
		for ; good < n; good++ {
			head := binary.LittleEndian.Uint16(r.file[rigAvail+4+2*(int(base+uint16(good))%r.size):])
			readable, writable, ok := r.chainOf(head, r.device.indirect, cap(r.chain.views))
			if err := r.device.Next(r.chain); (err == nil) != ok {
				t.Fatalf("chain %d: %v, oracle says %v", head, err, ok)
			} else if err != nil {
				break
			}
			gotR, okR := r.pieces(r.chain.Readable)
			gotW, okW := r.pieces(r.chain.Writable)
			if !okR || !okW || !reflect.DeepEqual(gotR, readable) || !reflect.DeepEqual(gotW, writable) {
				t.Fatalf("chain %d: %x %x, oracle says %x %x", head, gotR, gotW, readable, writable)
			}
			r.device.Complete(r.chain.Head, 1)
		}
		r.device.Publish()
		if r.usedIndex() != base+uint16(good) && good > 0 {
			t.Fatalf("used index %d, want %d", r.usedIndex(), base+uint16(good))
		}
		if good > 0 && b[0]&4 != 0 { // dear, so not always
			if n := testing.AllocsPerRun(1, func() {
				r.device.availNext = base
				for range good {
					if r.device.Next(r.chain) != nil {
						t.Fatal("another answer the second time")
					}
					r.device.Complete(r.chain.Head, 1)
				}
				r.device.Publish()
			}); n != 0 {
				t.Fatalf("%v allocations", n)
			}
		}
	})
}
