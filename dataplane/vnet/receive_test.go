package vnet_test

import (
	"encoding/binary"
	"strings"
	"testing"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/virtq"
	"github.com/shuntio/shunt/dataplane/vnet"
	"github.com/shuntio/shunt/dataplane/vnet/vnettest"
)

func regions(g *vnettest.Guest) []vhostuser.Region { return []vhostuser.Region{g.Region()} }

// The buffers of a frame may be cut anywhere, also within the header (virtio 1.2, 2.7.4: framing is the driver's business).
func TestReceiveCutAnywhere(t *testing.T) {
	for name, c := range map[string]struct {
		features uint64
		header   int
	}{
		"modern":                   {modern, 12},
		"modern without mergeable": {vnet.FeatureVersion1, 12},
		"legacy with mergeable":    {vnet.FeatureMrgRxbuf, 12},
		"legacy":                   {vnet.FeatureCsum, 10},
		"no features told":         {0, 10},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, c.features)
			for _, length := range []int{1, 14, 60, 255, 256, 257, 300} {
				data := counting(length)
				packet := append(make([]byte, c.header), data...)
				for cut := range packet {
					lengths := []int{cut}
					if cut == 0 {
						lengths = nil
					}
					if got, _, ok := b.send(b.pieces(packet, lengths...)); !ok || !same(got, data) {
						t.Fatalf("frame of %d cut at %d: %d bytes, %v", length, cut, len(got), ok)
					}
				}
				for first := range c.header + 2 { // three and four pieces about the header
					for second := range 4 {
						if first == 0 || second == 0 || first+second+1 > len(packet) {
							continue
						}
						if got, _, ok := b.send(b.pieces(packet, first, second, 1)); !ok || !same(got, data) {
							t.Fatalf("frame of %d cut at %d and %d: %d bytes, %v", length, first, first+second, len(got), ok)
						}
					}
				}
			}
			if len(b.drops()) != 0 || len(b.failed) != 0 {
				t.Errorf("drops %v, failures %v", b.drops(), b.failed)
			}
		})
	}
}

func TestReceiveManyBuffers(t *testing.T) {
	b := newBed(t, modern)
	for n := 1; n <= 40; n++ {
		data := counting(n * 30)
		lengths := []int{12}
		for range n - 2 {
			lengths = append(lengths, 30)
		}
		packet := append(make([]byte, 12), data...)
		if n == 1 {
			lengths = nil
		}
		before := b.drops()
		got, _, ok := b.send(b.pieces(packet, lengths...))
		switch {
		case n <= frame.MaxBody && (!ok || !same(got, data)):
			t.Errorf("%d buffers: %d bytes, %v", n, len(got), ok)
		case n > frame.MaxBody && ok:
			t.Errorf("%d buffers: accepted", n)
		case n > frame.MaxBody:
			b.wantDrop(before, vnet.DropTooManyPieces)
		}
	}
	if b.counters.RxPackets.Load() != 40 {
		t.Errorf("%d frames counted, want 40 with the dropped ones", b.counters.RxPackets.Load())
	}
}

// An indirect table in the guest's memory describes a frame as well as the queue's own table.
func TestReceiveIndirect(t *testing.T) {
	b := newBed(t, modern)
	memory, base := b.scratch()
	packet := append(make([]byte, 12), counting(1000)...)
	copy(memory[4096:], packet)
	entry := func(i int, addr uint64, n uint32, flags, next uint16) {
		e := memory[16*i:]
		for k := range 8 {
			e[k] = byte(addr >> (8 * k))
		}
		e[8], e[9], e[10], e[11] = byte(n), byte(n>>8), byte(n>>16), byte(n>>24)
		e[12], e[13], e[14], e[15] = byte(flags), byte(flags>>8), byte(next), byte(next>>8)
	}
	entry(0, base+4096, 5, 1, 2)
	entry(2, base+4096+5, 500, 1, 1)
	entry(1, base+4096+505, 507, 0, 0)
	head, _ := b.tx.Add([]virtq.Buffer{{Addr: base, Len: 48}}, nil)
	b.guest.Layout(1).Desc[16*int(head)+12] |= 4 // VIRTQ_DESC_F_INDIRECT
	b.tx.Publish()
	if n := b.port.Receive(b.vector[:], b.pool); n != 1 || !same(whole(b.vector[0]), packet[12:]) {
		t.Fatalf("%d frames", n)
	}
	b.pool.PutAll(b.vector[:])
	b.port.Release()
}

func TestReceiveLength(t *testing.T) {
	b := newBed(t, modern)
	for _, cuts := range [][]int{nil, {12}, {6}, {12 + 100}, {12, 256}} { // one buffer, and several
		for _, c := range []struct {
			length int
			why    dataplane.Reason
			ok     bool
		}{
			{frame.MaxLen, 0, true}, {frame.MaxLen + 1, vnet.DropTooLong, false}, {frame.MaxLen + 1000, vnet.DropTooLong, false},
			{1 << 19, vnet.DropTooLong, false},
		} {
			data, before := counting(c.length), b.drops()
			got, _, ok := b.send(b.pieces(append(make([]byte, 12), data...), cuts...))
			if ok != c.ok || ok && !same(got, data) {
				t.Errorf("frame of %d, cut at %v: %v, %d bytes", c.length, cuts, ok, len(got))
			}
			if !c.ok {
				b.wantDrop(before, c.why)
			}
		}
	}
}

func TestReceiveShort(t *testing.T) {
	for _, features := range []uint64{modern, vnet.FeatureCsum} {
		b := newBed(t, features)
		h := 12
		if features&vnet.FeatureVersion1 == 0 {
			h = 10
		}
		for n := range h + 1 {
			for _, cuts := range [][]int{nil, {n / 2}} {
				if n == 0 || len(cuts) > 0 && cuts[0] == 0 {
					cuts = nil
				}
				before := b.drops()
				got, _, ok := b.send(b.pieces(make([]byte, n), cuts...))
				if ok != (n == h) || len(got) != 0 {
					t.Errorf("%d bytes where the header has %d: %v", n, h, ok)
				}
				if n < h {
					b.wantDrop(before, vnet.DropBadHeader)
				}
			}
		}
		// A chain with nothing to read.
		before := b.drops()
		memory, base := b.scratch()
		copy(memory, "untouched")
		b.tx.Add(nil, []virtq.Buffer{{Addr: base, Len: 100}})
		b.tx.Publish()
		if n := b.port.Receive(b.vector[:], b.pool); n != 0 || string(memory[:9]) != "untouched" {
			t.Errorf("%d frames of a writable buffer", n)
		}
		b.wantDrop(before, vnet.DropBadHeader)
		if _, _, ok, _ := b.tx.Used(); !ok {
			t.Error("its chain did not come back")
		}
	}
}

// A chain that is longer than any frame's takes the port out of service rather than the worker's time.
func TestReceiveEndlessChain(t *testing.T) {
	b := newBed(t, modern)
	memory, base := b.scratch()
	const n = 1000
	for i := range n { // empty buffers, one after the other
		binary.LittleEndian.PutUint64(memory[16*i:], base)
		binary.LittleEndian.PutUint64(memory[16*i+8:], uint64(1)<<32|uint64(i+1)<<48)
	}
	head, _ := b.tx.Add([]virtq.Buffer{{Addr: base, Len: 16 * n}}, nil)
	b.guest.Layout(1).Desc[16*int(head)+12] |= 4 // VIRTQ_DESC_F_INDIRECT
	b.tx.Publish()
	if got := b.port.Receive(b.vector[:], b.pool); got != 0 || b.dev.State().Failed == nil {
		t.Errorf("%d frames, %+v", got, b.dev.State())
	}
	b.checkPool()
}

// With few frames free, few are taken, and the others wait.
func TestReceiveWithoutFrames(t *testing.T) {
	b := newBed(t, modern)
	for range 20 {
		b.tx.Add(b.pieces(make([]byte, 100)), nil)
	}
	b.tx.Publish()
	var held []*frame.Frame
	for b.pool.Len() > 5 {
		held = append(held, b.pool.Get())
	}
	if n := b.port.Receive(b.vector[:], b.pool); n != 5 {
		t.Errorf("%d frames taken with 5 free", n)
	}
	if n := b.port.Receive(b.vector[5:], b.pool); n != 0 {
		t.Errorf("%d frames taken with none free", n)
	}
	b.pool.PutAll(held)
	b.port.Release()
	got := 5
	b.pool.PutAll(b.vector[:])
	for n := b.port.Receive(b.vector[:], b.pool); n > 0; n = b.port.Receive(b.vector[:], b.pool) {
		got += n
		b.pool.PutAll(b.vector[:])
		b.port.Release()
	}
	if got != 20 || b.counters.RxPackets.Load() != 20 || len(b.drops()) != 0 {
		t.Errorf("%d frames, %d counted, drops %v; want 20", got, b.counters.RxPackets.Load(), b.drops())
	}
	b.checkPool()
}

// A ring that breaks the rules takes the port out of service; what came before is forwarded.
func TestReceiveBrokenRing(t *testing.T) {
	for name, c := range map[string]struct {
		wreck func(b *bed)
		want  string
		n     int
	}{
		"head out of range": {func(b *bed) { b.guest.Layout(1).Avail[4+2*3+1] = 0xff }, "out of range", 3},
		"index jumps":       {func(b *bed) { b.guest.Layout(1).Avail[3] = 0x70 }, "index", 0},
		"buffer outside":    {func(b *bed) { b.guest.Layout(1).Desc[16*4+7] = 0xff }, "outside", 4},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, modern)
			for range 8 {
				b.tx.Add(b.pieces(make([]byte, 2000)), nil)
			}
			b.tx.Publish()
			c.wreck(b)
			n := b.port.Receive(b.vector[:], b.pool)
			for _, f := range b.vector[:n] {
				if len(whole(f)) != 1988 {
					t.Errorf("frame of %d", f.Len())
				}
			}
			b.pool.PutAll(b.vector[:n])
			b.port.Release()
			b.checkPool()
			if n != c.n || int(b.counters.RxPackets.Load()) != c.n {
				t.Errorf("%d frames, %d counted, want %d", n, b.counters.RxPackets.Load(), c.n)
			}
			s := b.dev.State()
			if s.Failed == nil || !strings.Contains(s.Failed.Error(), c.want) || s.Running || len(b.failed) != 1 {
				t.Errorf("state %+v, told %v", s, b.failed)
			}
			// It stays out until the rings are started anew.
			if b.port.Receive(b.vector[:], b.pool) != 0 || b.port.Pending() {
				t.Error("a failed port receives")
			}
			b.transmit(counting(60))
			if b.drops()[vnet.DropGuestNotReady] != 1 {
				t.Errorf("drops %v", b.drops())
			}
			b.attach(modern)
			if got, _, ok := b.send(b.pieces(make([]byte, 100))); !ok || len(got) != 88 || b.dev.State().Failed != nil {
				t.Errorf("started anew: %v, %d bytes, %+v", ok, len(got), b.dev.State())
			}
		})
	}
}
