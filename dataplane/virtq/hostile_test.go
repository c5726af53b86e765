package virtq

import (
	"encoding/binary"
	"runtime"
	"testing"
	"time"

	"github.com/shuntio/shunt/dataplane/guestmem"
)

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
	began := time.Now()
	taken, failed := 0, 0
	for goesOn(began, taken > 0 && failed > 0) {
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

// goesOn tells how long a driver is watched: for a while, and until both of its faces were seen, since it may not get to run at first.
func goesOn(began time.Time, both bool) bool {
	took := time.Since(began)
	return took < 300*time.Millisecond || !both && took < 20*time.Second
}

// The same with a packed ring, whose flags flap, too. A device that finds an error begins again, as after a reset.
func TestPackedDriverRewritesMeanwhile(t *testing.T) {
	r := newPackedRig(t, DeviceOptions{Indirect: true})
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		good := [4]descriptor{{data, 64, 0, next}, {tableAddr, 64, 0, ind}, {rigEnd - 8, 8, 0, wr}, {data, 1, 0, 0}}
		bad := [4]descriptor{{1 << 63, 1 << 31, 0, wr | next}, {rigEnd, 1 << 30, 0, ind}, {0, 4, 0, ind | next}, {data, 0, 16, 0}}
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			for k := range 16 {
				d := good[(i+k)%4]
				if (i+k)%5 == 0 {
					d = bad[k%4]
				}
				turn := []uint16{av, av0}[i/7%2]
				if (i*k)%11 == 3 {
					turn ^= av | av0
				}
				r.putPacked(0, k, d.addr, d.n, d.third+uint16(k), d.last|turn)
				if k < 4 {
					d = good[2+k&1]
					if i%3 == 0 {
						d = bad[k]
					}
					r.putPacked(table, k, d.addr, d.n, d.third, d.last)
				}
			}
		}
	}()
	began := time.Now()
	taken, failed := 0, 0
	for goesOn(began, taken > 0 && failed > 0) {
		for range 100 {
			n, err := r.device.Available()
			r.device.Hint(n)
			for ; n > 0 && err == nil; n-- {
				if err = r.device.Next(r.chain); err != nil {
					break
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
				if taken%3 != 0 {
					r.device.Complete(r.chain.Head, 1)
				}
				if taken%7 == 0 {
					r.device.Back(0)
				}
			}
			if r.device.Publish(); err != nil {
				failed++
				r.renew(t, DeviceOptions{Packed: true, Indirect: true, Base: PackedStart, UsedBase: PackedStart, InOrder: failed%2 == 0})
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
	for _, m := range modes() {
		for _, logged := range []bool{false, true} {
			p := newPair(t, 16, m.bases(16)[2], m)
			if logged {
				p.device.SetLog(newTestLog(t, rigEnd/guestmem.LogPage).Log, rigBase+rigUsed)
			}
			one, two := []Buffer{{data, 60}}, []Buffer{{rigMiddle - 10, 20}, {data + 64, 1500}}
			indirect := p.file[rigTables : rigTables+tableBytes]
			if n := testing.AllocsPerRun(1000, func() {
				for i := range 3 {
					var head uint16
					switch {
					case i == 0:
						head, _ = p.driver.Add(one, nil)
					case i == 1 || !m.indirect:
						head, _ = p.driver.Add(one, two)
					default:
						head, _ = p.driver.AddIndirect(indirect, rigBase+rigTables, one, two)
					}
					p.driver.Publish()
					if n, err := p.device.Available(); n != 1 || err != nil {
						t.Fatal(n, err)
					}
					p.device.Hint(1)
					if err := p.device.Next(p.chain); err != nil || p.chain.Head != head {
						t.Fatal(err)
					}
					p.device.Back(0)
					_ = p.device.Next(p.chain)
					p.device.Rewind()
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
				t.Errorf("%v, logged=%v: %v allocations", m, logged, n)
			}
		}
	}
}

// A driver joins chains of a packed ring that were looked at already, so that each is longer than what was counted. They are what they were.
func TestPackedChainsJoinedMeanwhile(t *testing.T) {
	r := newPackedRig(t, DeviceOptions{Size: 128})
	for i := range 128 {
		flags := uint16(av)
		if i%2 == 0 {
			flags |= next
		}
		r.putPacked(0, i, data+uint64(i), 1, uint16(i), flags)
	}
	chains, err := r.device.Available()
	if chains != look/2 || err != nil {
		t.Fatal(chains, err)
	}
	for i := 1; i < 120; i += 2 {
		r.putPacked(0, i, data+uint64(i), 1, uint16(i), av|next)
	}
	for i := range chains {
		if err := r.device.Next(r.chain); err != nil || r.chain.Slots != 2 || int(r.chain.Head) != 2*i+1 || len(r.chain.Readable) != 2 {
			t.Fatalf("chain %d: %d descriptors, id %d, %d buffers, %v", i, r.chain.Slots, r.chain.Head, len(r.chain.Readable), err)
		}
	}
	// What had not been read is as long as the driver makes it.
	if n, err := r.device.Available(); n != 4 || err != nil {
		t.Fatal(n, err)
	}
	if err := r.device.Next(r.chain); err != nil || r.chain.Slots != 58 || r.chain.Head != 121 {
		t.Fatalf("the last chain: %d descriptors, id %d, %v", r.chain.Slots, r.chain.Head, err)
	}
}
