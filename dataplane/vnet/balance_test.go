package vnet_test

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/shuntio/shunt/dataplane/virtq"
	"github.com/shuntio/shunt/dataplane/vnet"
)

// Frames go from a guest's transmitq to its own receiveq, both filled with whatever chains a driver may think of. Every frame is
// delivered as it was, in order, or counted under a reason; and every chain stays the driver's or comes back once.
func TestEveryFrameDeliveredOrCounted(t *testing.T) {
	for _, features := range []uint64{ // mergeable or not, legacy; the formats of rings
		modern, modern &^ vnet.FeatureMrgRxbuf, 0, modern | vnet.FeatureInOrder, modern | vnet.FeaturePacked, modern | vnet.FeaturePacked | vnet.FeatureInOrder,
	} {
		rapid.Check(t, func(rt *rapid.T) {
			b := newBed(rt2tb{t, rt}, features)
			h := 12
			if features == 0 {
				h = 10
			}
			memory, base := b.scratch()
			rxAt, txAt := 1<<18, 0
			type chain struct {
				head    uint16
				buffers [][]byte
			}
			var offered []chain
			var sent [][]byte // good ones
			var delivered, taken uint64
			rt.Repeat(map[string]func(*rapid.T){
				"offer": func(rt *rapid.T) {
					lengths := rapid.SliceOfN(rapid.SampledFrom([]int{0, 5, 12, 50, 300, 1526, 4000}), 1, 4).Draw(rt, "lengths")
					var c chain
					var buffers []virtq.Buffer
					if rxAt > 1<<19-1<<15 {
						rxAt = 1 << 18 // older ones are long used: 64 chains of at most 16000 bytes
					}
					for _, n := range lengths {
						buffers = append(buffers, virtq.Buffer{Addr: base + uint64(rxAt), Len: uint32(n)})
						c.buffers = append(c.buffers, memory[rxAt:rxAt+n])
						rxAt += n
					}
					var ok bool
					if len(offered) < 12 {
						if c.head, ok = b.rx.Add(nil, buffers); ok {
							offered = append(offered, c)
							b.rx.Publish()
						}
					}
				},
				"send": func(rt *rapid.T) {
					length := rapid.SampledFrom([]int{-3, 0, 1, 14, 60, 250, 256, 257, 1500, 5000}).Draw(rt, "length")
					cut := rapid.IntRange(0, max(0, h+length)).Draw(rt, "cut")
					packet := make([]byte, h, h+max(0, length))
					if length >= 0 {
						packet = append(packet, counting(length)...)
						for i := h; i < len(packet); i++ {
							packet[i] += byte(taken)
						}
					} else {
						packet = packet[:h+length]
					}
					if len(sent) > 40 || b.tx.Free() < 2 {
						return
					}
					if txAt > 1<<17 {
						return // wait until all is moved
					}
					copy(memory[txAt:], packet)
					if _, ok := b.tx.Add([]virtq.Buffer{{Addr: base + uint64(txAt), Len: uint32(cut)}, {Addr: base + uint64(txAt+cut), Len: uint32(len(packet) - cut)}}, nil); !ok {
						rt.Fatal("no descriptor free")
					}
					b.tx.Publish()
					txAt += len(packet)
					taken++
					if length >= 0 {
						sent = append(sent, packet[h:])
					}
				},
				"move": func(rt *rapid.T) {
					n := b.port.Receive(b.vector[:rapid.IntRange(1, 64).Draw(rt, "quantum")], b.pool)
					b.port.Transmit(b.vector[:n], b.pool)
					b.pool.PutAll(b.vector[:n])
					b.port.Release()
					for {
						_, _, ok, err := b.tx.Used()
						if err != nil {
							rt.Fatal(err)
						}
						if !ok {
							break
						}
					}
					if b.tx.Free() == bedQueue {
						txAt = 0
					}
				},
				"take": func(rt *rapid.T) {
					for {
						head, n, ok := b.used()
						if !ok {
							return
						}
						if head != offered[0].head {
							rt.Fatalf("chain %d came back, want %d", head, offered[0].head)
						}
						chains, written := [][][]byte{offered[0].buffers}, []uint32{n}
						offered = offered[1:]
						all := join(chains, written)
						if len(all) < h {
							rt.Fatalf("%d bytes, less than a header", len(all))
						}
						if h == 12 {
							for range int(all[10]) - 1 {
								head, n, ok := b.used()
								if !ok || head != offered[0].head {
									rt.Fatalf("of a frame in %d chains, one is missing", all[10])
								}
								all = append(all, join([][][]byte{offered[0].buffers}, []uint32{n})...)
								offered = offered[1:]
							}
						}
						// It is one of those sent, behind the last delivered one.
						for len(sent) > 0 && !same(sent[0], all[h:]) {
							sent = sent[1:]
						}
						if len(sent) == 0 {
							rt.Fatalf("a frame of %d bytes that nobody sent", len(all)-h)
						}
						sent = sent[1:]
						delivered++
					}
				},
				"": func(rt *rapid.T) {
					var dropped uint64
					for _, n := range b.drops() {
						dropped += n
					}
					in, out := b.counters.RxPackets.Load(), b.counters.TxPackets.Load()
					if in > taken || in != out+dropped || delivered > out {
						rt.Fatalf("%d sent, %d counted in, %d out, %d dropped, %d delivered", taken, in, out, dropped, delivered)
					}
					b.checkPool()
					if s := b.dev.State(); s.Failed != nil {
						rt.Fatal(s.Failed)
					}
				},
			})
			b.close()
		})
	}
}

// rt2tb is the test's TB, whose failures are the property's.
type rt2tb struct {
	testing.TB
	rt *rapid.T
}

func (t rt2tb) Fatal(args ...any)                 { t.rt.Fatal(args...) }
func (t rt2tb) Fatalf(format string, args ...any) { t.rt.Fatalf(format, args...) }
func (t rt2tb) Errorf(format string, args ...any) { t.rt.Errorf(format, args...) }
func (t rt2tb) Error(args ...any)                 { t.rt.Error(args...) }
