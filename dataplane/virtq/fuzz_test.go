package virtq

import (
	"encoding/binary"
	"reflect"
	"runtime"
	"testing"
	"time"
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
				r.device.Rewind()
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

// A driver rewrites table, ring and indirect table while the device reads them. Whatever it reads, it reads once: each view is
// inside the guest's memory, and chains end.
func TestDriverRewritesMeanwhile(t *testing.T) {
	r := newRig(t, DeviceOptions{Indirect: true})
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() { // the hostile driver; guest memory is no Go memory, so the race detector has nothing to say about it
		defer close(done)
		good := [3]struct {
			addr  uint64
			n     uint32
			flags uint16
		}{{data, 64, next}, {tableAddr, 64, ind}, {rigEnd - 8, 8, wr}}
		bad := [3]struct {
			addr  uint64
			n     uint32
			flags uint16
		}{{1 << 63, 1 << 31, wr | next}, {rigEnd, 1 << 30, ind}, {0, 4, ind | next}}
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			for k := range 16 {
				d := good[(i+k)%3]
				if (i+k)%4 == 0 {
					d = bad[k%3]
				}
				r.put(0, k, d.addr, d.n, d.flags, uint16(i+k)%20)
				if k < 4 {
					d = good[2*(k&1)]
					if i%3 == 0 {
						d = bad[k%3]
					}
					r.put(table, k, d.addr, d.n, d.flags, uint16(i+k)%6)
				}
				binary.LittleEndian.PutUint16(r.file[rigAvail+4+2*k:], uint16(i*k)%20)
			}
		}
	}()
	deadline := time.Now().Add(300 * time.Millisecond)
	taken, failed := 0, 0
	for time.Now().Before(deadline) {
		for range 100 {
			r.device.availNext, r.device.availSeen = 0, 16
			for range 16 {
				if err := r.device.Next(r.chain); err != nil {
					failed++
					r.device.availNext++
					continue
				}
				taken++
				for _, views := range [][][]byte{r.chain.Readable, r.chain.Writable} {
					if _, ok := r.pieces(views); !ok {
						t.Fatalf("a view is outside the guest's memory: %d views", len(views))
					}
				}
				if int(r.chain.Head) >= r.size || len(r.chain.Readable)+len(r.chain.Writable) > cap(r.chain.views) {
					t.Fatalf("head %d, %d and %d views", r.chain.Head, len(r.chain.Readable), len(r.chain.Writable))
				}
			}
		}
		runtime.Gosched()
	}
	close(stop)
	<-done
	t.Logf("%d chains taken, %d refused", taken, failed)
	if taken == 0 || failed == 0 {
		t.Error("the driver's two faces were not both seen")
	}
}

func TestNothingAllocated(t *testing.T) {
	for _, eventIdx := range []bool{false, true} {
		p := newPair(t, 16, 65000, eventIdx)
		one, two := []Buffer{{data, 60}}, []Buffer{{rigMiddle - 10, 20}, {data + 64, 1500}}
		p.device.indirect = true
		r := p.rig
		r.put(table, 0, data, 12, next, 1)
		r.put(table, 1, data+64, 1000, wr, 0)
		if n := testing.AllocsPerRun(1000, func() {
			for i := range 3 {
				var head uint16
				switch i {
				case 0:
					head, _ = p.driver.Add(one, nil)
				case 1:
					head, _ = p.driver.Add(one, two)
				case 2:
					head, _ = p.driver.Add(one, nil)
					r.put(0, int(head), tableAddr, 32, ind, 0)
				}
				p.driver.Publish()
				if n, err := p.device.Available(); n != 1 || err != nil {
					t.Fatal(n, err)
				}
				if err := p.device.Next(p.chain); err != nil || p.chain.Head != head {
					t.Fatal(err)
				}
				p.device.Back()
				_ = p.device.Next(p.chain)
				p.device.Complete(head, 1)
				p.device.Publish()
				p.device.Arm()
				if p.device.Pending() {
					t.Fatal("pending")
				}
				p.device.Disarm()
				p.driver.Arm()
				p.driver.Disarm()
				if _, _, ok, err := p.driver.Used(); !ok || err != nil {
					t.Fatal(ok, err)
				}
			}
		}); n != 0 {
			t.Errorf("eventIdx=%v: %v allocations", eventIdx, n)
		}
	}
}
