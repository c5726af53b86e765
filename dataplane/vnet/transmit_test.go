package vnet_test

import (
	"encoding/binary"
	"fmt"
	"runtime/debug"
	"testing"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/shm"
	"github.com/shuntio/shunt/dataplane/vnet"
)

// join is what a driver reads from one frame's chains: the bytes that the device says it wrote.
func join(chains [][][]byte, written []uint32) (all []byte) {
	for i, chain := range chains {
		left := int(written[i])
		for _, buffer := range chain {
			n := min(left, len(buffer))
			all = append(all, buffer[:n]...)
			left -= n
		}
	}
	return all
}

func TestTransmitFits(t *testing.T) {
	for name, features := range map[string]uint64{
		"mergeable": modern, "not mergeable": vnet.FeatureVersion1, "legacy": vnet.FeatureCsum, "legacy with mergeable": vnet.FeatureMrgRxbuf,
	} {
		h := 12
		if features&(vnet.FeatureVersion1|vnet.FeatureMrgRxbuf) == 0 {
			h = 10
		}
		for _, length := range []int{14, 60, 256, 257, 300, 1500, 9000} {
			for _, lengths := range [][]int{{h + length}, {h + length + 1}, {h, length}, {h + 5, length}, {h, 1, 1, length - 2}, {h, 3, length * 2}} {
				t.Run(fmt.Sprintf("%s %d in %v", name, length, lengths), func(t *testing.T) {
					b := newBed(t, features)
					head, chain := b.offer(0, lengths...)
					memory, _ := b.scratch()
					for i := range memory[:length*3+300] {
						memory[i] = 0xee
					}
					data := counting(length)
					b.transmit(data)
					got, n, ok := b.used()
					if !ok || got != head || int(n) != h+length {
						t.Fatalf("chain %d with %d bytes, %v; want %d with %d", got, n, ok, head, h+length)
					}
					all := join([][][]byte{chain}, []uint32{n})
					want := make([]byte, h, h+length)
					if h == 12 {
						want[10] = 1 // num_buffers
					}
					if !same(all, append(want, data...)) {
						t.Error("the guest reads something else")
					}
					end := 0
					for _, l := range lengths {
						end += l
					}
					for i := h + length; i < end+100; i++ {
						if memory[i] != 0xee {
							t.Fatalf("byte %d behind the frame was written", i)
						}
					}
					if b.counters.TxPackets.Load() != 1 || int(b.counters.TxBytes.Load()) != length || len(b.drops()) != 0 {
						t.Errorf("counted %d frames of %d bytes, drops %v", b.counters.TxPackets.Load(), b.counters.TxBytes.Load(), b.drops())
					}
				})
			}
		}
	}
}

func TestTransmitMerged(t *testing.T) {
	for _, size := range []int{12, 13, 64, 268, 300, 1526, 4096} {
		for _, length := range []int{14, 64, 256, 257, 1500, 5000} {
			b := newBed(t, modern)
			var heads []uint16
			var chains [][][]byte
			for i := range 24 {
				lengths := []int{size}
				if i%3 == 1 && size > 30 { // some of several buffers
					lengths = []int{20, size - 20}
				}
				head, chain := b.offer(i*8192, lengths...)
				heads, chains = append(heads, head), append(chains, chain)
			}
			data := counting(length)
			need := (12 + length + size - 1) / size
			b.transmit(data, data)
			frames := min(2, len(heads)/need)
			if d := b.drops()[vnet.DropGuestRingFull]; int(d) != 2-frames {
				t.Errorf("%d bytes into %d buffers of %d: drops %v", length, len(heads), size, b.drops())
			}
			for k := range frames {
				var written []uint32
				for i := range need {
					head, n, ok := b.used()
					if !ok || head != heads[k*need+i] {
						t.Fatalf("%d bytes into buffers of %d: chain %d of %d is %d, %v", length, size, i, need, head, ok)
					}
					written = append(written, n)
				}
				all := join(chains[k*need:(k+1)*need], written)
				if len(all) != 12+length || !same(all[12:], data) {
					t.Errorf("%d bytes into buffers of %d: the guest reads %d", length, size, len(all)-12)
				} else if n := binary.LittleEndian.Uint16(all[10:]); int(n) != need {
					t.Errorf("num_buffers is %d, want %d", n, need)
				}
			}
			if _, _, ok := b.used(); ok {
				t.Error("one chain more came back")
			}
		}
	}
}

// What does not fit goes nowhere: its chains stay with the device, and the next frame finds them.
func TestTransmitDoesNotFit(t *testing.T) {
	for _, c := range []struct {
		name     string
		features uint64
		length   int
		chains   [][]int
		why      dataplane.Reason
	}{
		{"no chain", modern, 100, nil, vnet.DropGuestRingFull},
		{"too small", vnet.FeatureVersion1, 100, [][]int{{111}, {200}}, vnet.DropGuestBuffer},
		{"too small in pieces", vnet.FeatureVersion1, 100, [][]int{{12, 50, 49}}, vnet.DropGuestBuffer},
		{"ring ends in the middle", modern, 1000, [][]int{{300}, {300}, {300}}, vnet.DropGuestRingFull},
		{"header in pieces", modern, 100, [][]int{{8, 4, 100}}, vnet.DropGuestBuffer},
		{"no room for a header", modern, 100, [][]int{{11}, {200}}, vnet.DropGuestBuffer},
		{"empty buffer", modern, 100, [][]int{{0}, {200}}, vnet.DropGuestBuffer},
		{"empty buffer, second", modern, 100, [][]int{{50}, {0}, {200}}, vnet.DropGuestBuffer},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBed(t, c.features)
			var heads []uint16
			for i, lengths := range c.chains {
				head, _ := b.offer(i*4096, lengths...)
				heads = append(heads, head)
			}
			before := b.drops()
			b.transmit(counting(c.length))
			b.wantDrop(before, c.why)
			if _, _, ok := b.used(); ok {
				t.Error("a chain came back")
			}
			if base, err := b.dev.StopVring(0); err != nil || base != 0 {
				t.Errorf("base is %d, %v: chains are lost", base, err)
			}
			if b.counters.TxPackets.Load() != 0 || len(heads) != len(c.chains) {
				t.Errorf("%d frames counted", b.counters.TxPackets.Load())
			}
		})
	}
}

func TestTransmitSmallAfterTooLarge(t *testing.T) {
	b := newBed(t, vnet.FeatureVersion1)
	head, chain := b.offer(0, 200)
	b.transmit(counting(500), counting(100), counting(100))
	got, n, ok := b.used()
	if !ok || got != head || n != 112 || !same(chain[0][12:112], counting(100)) {
		t.Errorf("chain %d with %d bytes, %v", got, n, ok)
	}
	if d := b.drops(); d[vnet.DropGuestBuffer] != 1 || d[vnet.DropGuestRingFull] != 1 {
		t.Errorf("drops %v", d)
	}
}

// A frame that was dropped and counted is not there to be counted again when the body of a later one turns out to be gone.
func TestTransmitCountsOnce(t *testing.T) {
	b := newBed(t, vnet.FeatureVersion1)
	b.offer(0, 200)
	b.offer(4096, 200)
	gone, err := shm.Map(shm.MapOptions{FD: -1, Length: 4096})
	if err != nil {
		t.Fatal(err)
	}
	defer gone.Free()
	if err := gone.Revoke(); err != nil {
		t.Fatal(err)
	}
	b.vector[0], b.vector[1], b.vector[2] = b.frameOf(counting(100)), b.frameOf(counting(300)), b.frameOf(counting(50))
	b.vector[2].Borrow([][]byte{gone.Bytes()[:50]}, 50)
	func() {
		defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
		defer func() {
			if _, ok := dataplane.FaultAddress(recover()); !ok {
				t.Error("no fault")
			}
		}()
		b.port.Transmit(b.vector[:3], b.pool)
	}()
	for i, want := range []uint8{0, uint8(vnet.DropGuestBuffer) + 1, 0} {
		if f := b.vector[i]; f == nil || f.Dropped != want {
			t.Errorf("slot %d: %+v, want it dropped for %d", i, f, want)
		}
	}
	if b.drops()[vnet.DropGuestBuffer] != 1 {
		t.Errorf("drops %v", b.drops())
	}
	b.pool.PutAll(b.vector[:3])
	b.checkPool()
	if _, _, ok := b.used(); ok || b.counters.TxPackets.Load() != 0 {
		t.Error("the driver was shown a frame of an unfinished batch")
	}
	// The next batch begins where that one did.
	b.transmit(counting(60), counting(61), counting(62))
	for _, want := range []uint32{72, 73} {
		if _, n, ok := b.used(); !ok || n != want {
			t.Errorf("%d bytes, %v, want %d", n, ok, want)
		}
	}
	if b.counters.TxPackets.Load() != 2 || b.drops()[vnet.DropGuestRingFull] != 1 {
		t.Errorf("%d sent, drops %v", b.counters.TxPackets.Load(), b.drops())
	}
}

func TestTransmitNotReady(t *testing.T) {
	b := newBed(t, modern)
	if _, err := b.dev.StopVring(0); err != nil {
		t.Fatal(err)
	}
	b.transmit(counting(60), counting(60))
	if b.drops()[vnet.DropGuestNotReady] != 2 {
		t.Errorf("drops %v", b.drops())
	}
}

// Frames that were put into the ring of a driver that then breaks the rules were never shown to it.
func TestTransmitBrokenRing(t *testing.T) {
	for name, wreck := range map[string]func(b *bed){
		"head out of range": func(b *bed) { b.guest.Layout(0).Avail[4+2*4+1] = 0xff },
		"buffer outside":    func(b *bed) { b.guest.Layout(0).Desc[16*4+7] = 0xff },
		"index jumps back": func(b *bed) {
			b.guest.Layout(0).Avail[2] = 4
			b.guest.Layout(0).Avail[4+2*3] = 0xfe
			b.guest.Layout(0).Avail[5+2*3] = 0xff
		},
	} {
		for _, length := range []int{100, 700} { // one chain each; two, of which the second may be the broken one
			t.Run(fmt.Sprintf("%s %d", name, length), func(t *testing.T) {
				b := newBed(t, modern)
				for i := range 8 {
					b.offer(i*4096, 500)
				}
				wreck(b)
				b.transmit(counting(length), counting(length), counting(length), counting(length), counting(length), counting(length))
				var dropped uint64
				for _, n := range b.drops() {
					dropped += n
				}
				if sent := b.counters.TxPackets.Load(); sent+dropped != 6 {
					t.Errorf("6 frames: %d sent, %v dropped", sent, b.drops())
				}
				if b.dev.State().Failed == nil || len(b.failed) != 1 {
					t.Errorf("state %+v", b.dev.State())
				}
			})
		}
	}
}

// The index is looked at again in the middle of a batch, when the chains known of are used up.
func TestTransmitIndexJumps(t *testing.T) {
	b := newBed(t, modern)
	for i := range 3 {
		b.offer(i*4096, 500)
	}
	b.transmit(counting(100))
	b.guest.Layout(0).Avail[3] = 0x70
	b.transmit(counting(100), counting(100), counting(100), counting(100))
	if sent, lost := b.counters.TxPackets.Load(), b.drops()[vnet.DropGuestNotReady]; sent != 1 || lost != 4 {
		t.Errorf("5 frames: %d sent, %d dropped as the port failed; want 1 and 4", sent, lost)
	}
	if b.dev.State().Failed == nil {
		t.Error("the port goes on")
	}
}

func TestTransmitCalls(t *testing.T) {
	b := newBed(t, modern)
	call := b.guest.CallFD(0)
	b.offer(0, 2000)
	b.offer(4096, 2000)
	b.port.Flush()
	if !signalled(t, call) {
		t.Error("no call at the start: what a killed back-end published last may have been told to nobody")
	}
	b.port.Flush()
	if signalled(t, call) {
		t.Error("call without a frame")
	}
	calls := b.dev.Calls()
	b.transmit(counting(60))
	if signalled(t, call) {
		t.Error("call before the end of the round")
	}
	b.port.Flush()
	b.port.Flush()
	if !signalled(t, call) || b.dev.Calls() != calls+1 {
		t.Errorf("%d calls for one frame", b.dev.Calls()-calls)
	}
	b.rx.Disarm()
	b.transmit(counting(60))
	b.port.Flush()
	if signalled(t, call) {
		t.Error("call, though the driver wants none")
	}
}
