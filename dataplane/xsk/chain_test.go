package xsk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"
	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/tools/need"
	"golang.org/x/sys/unix"
)

// jumbo makes a numbered frame of n bytes with a head of 256, whose rest is borrowed, or (own) lies in chunks of the frame's own.
func jumbo(pool *frame.Pool, n int, number uint64, own bool) *frame.Frame {
	head := min(n, frame.HeadLen)
	f := numbered(pool, head, number)
	if f == nil || n == head {
		return f
	}
	rest := make([]byte, n-head)
	for i := range rest {
		rest[i] = byte(i) ^ byte(number)
	}
	cut := len(rest) / 3
	f.Borrow([][]byte{rest[:cut], rest[cut:]}, len(rest))
	if own && !f.Own(pool) {
		pool.Put(f)
		return nil
	}
	return f
}

// checkJumbo looks at every byte of one.
func checkJumbo(f *frame.Frame) error {
	all := bytes.Clone(f.Head())
	for _, piece := range f.Body() {
		all = append(all, piece...)
	}
	if len(all) != f.Len() || len(all) < 22 {
		return fmt.Errorf("%d bytes in a frame of %d", len(all), f.Len())
	}
	at := binary.BigEndian.Uint64(all[14:])
	for i := frame.HeadLen; i < len(all); i++ {
		if want := byte(i-frame.HeadLen) ^ byte(at); all[i] != want {
			return fmt.Errorf("byte %d of frame %d, of %d: %#x, want %#x", i, at, len(all), all[i], want)
		}
	}
	return nil
}

// TestJumboFrames sends frames of every kind of length up to 9014 bytes, and all that were taken arrive as they were.
func TestJumboFrames(t *testing.T) {
	if err := MultiBuffer.Check(); errors.Is(err, ErrNotSupported) {
		if Masked(MultiBuffer.Name) {
			t.Skip("masked")
		}
		need.Missing(t, "%v", err)
	}
	for name, mode := range map[string]link.XDPAttachFlags{"native": link.XDPDriverMode, "generic": link.XDPGenericMode} {
		t.Run(name, func(t *testing.T) {
			a, b := newPair(t, 1, 9000)
			a.redirect(t, mode)
			b.redirect(t, mode)
			u, pool := newUMEM(t, 4096)
			o := SocketOptions{Fill: 512, Rx: 512, Tx: 256, Completion: 256, MultiBuffer: true, Mode: ModeCopy}
			from, to := newPort(t, a.open(t, u, o), pool), newPort(t, b.open(t, u, o), pool)
			if !from.s.InForce().MultiBuffer || from.s.InForce().ZeroCopy {
				t.Errorf("in force: %+v", from.s.InForce())
			}
			into := make([]*frame.Frame, 5) // which cuts packets in two between calls
			var sent, received, bytes uint64
			receive := func() {
				n := to.Receive(into, pool)
				for _, f := range into[:n] {
					if _, ok := number(f); !ok {
						continue
					}
					if err := checkJumbo(f); err != nil {
						t.Fatal(err)
					}
					received++
				}
				pool.PutAll(into[:n])
			}
			const frames = 3000
			for sent < frames {
				batch := []*frame.Frame{}
				for range 7 {
					n := 60 + int(sent*97%8955)
					f := jumbo(pool, n, sent, sent%2 == 0)
					if f == nil {
						t.Fatal("no frame is free")
					}
					batch = append(batch, f)
					bytes += uint64(n)
					sent++
				}
				transmit(from, pool, batch...)
				from.Flush()
				for range 12 {
					receive()
				}
			}
			until(t, "all frames", func() bool {
				from.Flush()
				from.Receive(nil, pool)
				receive()
				n, _ := drops(from.counters)
				k := statistics(t, to)
				return received+n+k.RxDropped+k.RxRingFull >= sent && from.sent == 0
			})
			_, why := drops(from.counters)
			k := statistics(t, to)
			if received != sent {
				t.Errorf("%d sent, %d received; dropped%s, %+v", sent, received, why, k)
			}
			if got := from.counters.TxBytes.Load(); got != bytes || from.stats.Chained.Load() == 0 {
				t.Errorf("%d bytes counted of %d, %d chains", got, bytes, from.stats.Chained.Load())
			}
			if n, why := drops(to.counters); n != 0 || k.RxInvalid != 0 || statistics(t, from).TxInvalid != 0 {
				t.Errorf("received and dropped%s; %+v, %+v", why, k, statistics(t, from))
			}
			for _, p := range []*Port{from, to} {
				if err := p.Close(); err != nil {
					t.Error(err)
				}
				p.Reclaim(pool)
			}
			if pool.Len() != 4096 {
				t.Errorf("%d of 4096 frames are free", pool.Len())
			}
		})
	}
}

// TestJumboWithoutTheFeature is what happens where the kernel has no multi-buffer: who demands it is refused; else what fits a chunk passes and the rest is
// dropped by name, at either end.
func TestJumboWithoutTheFeature(t *testing.T) {
	a, b := newPair(t, 1, 9000)
	a.redirect(t, 0)
	b.redirect(t, 0)
	u, pool := newUMEM(t, 1024)
	o := SocketOptions{Fill: 64, Rx: 64, Tx: 64, Completion: 64}
	from := newPort(t, a.open(t, u, o), pool)
	wide := MultiBuffer.Check() == nil
	sender := from
	if wide { // somebody else's jumbo frames
		m := o
		m.MultiBuffer, m.Mode = true, ModeCopy
		sender = newPort(t, b.open(t, u, m), pool)
	}
	t.Setenv("SHUNT_MASK", "xsk-multi-buffer")
	o.MultiBuffer, o.Queue = true, 0
	if s, err := a.tryOpen(u, o); !errors.Is(err, ErrNotSupported) {
		t.Errorf("a socket for jumbo frames: %v, %v", s, err)
	}
	if from.s.InForce().MultiBuffer {
		t.Error("multi-buffer is in force")
	}
	transmit(from, pool, jumbo(pool, 3000, 1, false), jumbo(pool, 9000, 2, false), jumbo(pool, 9000, 3, true))
	from.Flush()
	if got := from.counters.Drops(DropTooLong); got != 2 || from.counters.TxPackets.Load() != 1 {
		t.Errorf("%d dropped as too long, %d sent", got, from.counters.TxPackets.Load())
	}
	if !wide {
		return
	}
	transmit(sender, pool, jumbo(pool, 9000, 4, true))
	sender.Flush()
	until(t, "the kernel drops it for want of room", func() bool { return statistics(t, from).RxDropped == 1 })
}

// A packet of several descriptors goes wholly into the ring or not at all, and each of its chunks comes back by itself.
func TestChainIsAllOrNothing(t *testing.T) {
	const frames = 64
	m, p, pool := modelPort(t, frames, 16, ^uint32(0)-7)
	p.s.o.MultiBuffer, p.s.pieces = true, copyPieces
	p.SetMTU(9000)
	m.send = func() unix.Errno { return unix.EAGAIN }
	free := pool.Len()
	var batch []*frame.Frame
	for i := range uint64(6) { // 4 descriptors each
		batch = append(batch, jumbo(pool, 9000, i, i%2 == 0))
	}
	p.Transmit(batch, pool)
	for i, f := range batch {
		if dropped := f != nil; dropped != (i >= 4) || dropped && f.Dropped == 0 {
			t.Errorf("frame %d: left in the vector %v", i, dropped)
		}
	}
	pool.PutAll(batch)
	if got := p.counters.Drops(DropRingFull); got != 2 || p.counters.TxPackets.Load() != 4 || p.counters.TxBytes.Load() != 4*9000 || p.sent != 16 {
		t.Errorf("%d dropped, %d packets, %d bytes, %d descriptors", got, p.counters.TxPackets.Load(), p.counters.TxBytes.Load(), p.sent)
	}
	if pool.Len() != free-16 {
		t.Errorf("%d frames are with the kernel, want 16", free-pool.Len())
	}
	tx, _ := entries[Desc](m.tx.bytes, layout, 16)
	for i := range uint32(16) {
		d := tx[(*m.tx.consumer+i)&m.tx.mask]
		if more := d.Options&unix.XDP_PKT_CONTD != 0; more != (i%4 != 3) || d.Options&^unix.XDP_PKT_CONTD != 0 {
			t.Errorf("descriptor %d has options %#x", i, d.Options)
		}
	}
	m.consume(16)
	slices.Reverse(m.flying) // a driver is free to
	m.complete(9)
	p.Receive(nil, pool)
	if p.sent != 7 || pool.Len() != free-7 {
		t.Errorf("%d out, %d of %d free", p.sent, pool.Len(), free)
	}
	if p.Reclaim(pool); pool.Len() != frames {
		t.Errorf("%d of %d frames came back", pool.Len(), frames)
	}
}

// What cannot be sent in several descriptors is dropped by name and loses no chunk.
func TestChainRefused(t *testing.T) {
	const frames = 48
	_, p, pool := modelPort(t, frames, 16, 0)
	p.s.o.MultiBuffer, p.s.pieces = true, copyPieces
	p.SetMTU(65000)
	free := pool.Len()
	pieces := makeFrame(pool, 100)
	for range copyPieces {
		if !pieces.Attach(makeFrame(pool, 250), 0) {
			t.Fatal("cannot attach")
		}
	}
	cut := makeFrame(pool, 100)
	cut.GSO.Type = frame.GSOTCP4
	held := []*frame.Frame{pieces, cut}
	transmit(p, pool, held...)
	for f := pool.Get(); f != nil; f = pool.Get() {
		held = append(held, f)
	}
	last := held[len(held)-1]
	last.Append(100)
	body := make([]byte, 8000)
	last.Borrow([][]byte{body}, len(body))
	held = held[2 : len(held)-1]
	transmit(p, pool, last)
	for why, want := range map[dataplane.Reason]uint64{DropPieces: 1, DropUnsegmented: 1, DropNoChunk: 1} {
		if got := p.counters.Drops(why); got != want {
			t.Errorf("%v: %d, want %d", why, got, want)
		}
	}
	pool.PutAll(held)
	if pool.Len() != free || p.sent != 0 {
		t.Errorf("%d of %d frames are free", pool.Len(), free)
	}
}

// What a device says of zero copy is asked without having any: veth takes a single descriptor.
func TestZeroCopyPieces(t *testing.T) {
	need.Kernel(t, 6, 6)
	a, _ := newPair(t, 1, 1500)
	a.do(t, func() error {
		d, err := LookupDevice(a.Name)
		if err != nil {
			return err
		}
		if n, err := zeroCopyPieces(&d); n != 1 || err != nil {
			t.Errorf("%d descriptors, %v", n, err)
		}
		if _, err := zeroCopyPieces(&Device{Name: "gone0", Index: 4711}); err == nil {
			t.Error("a device that is not there answered")
		}
		return nil
	})
}

// BenchmarkChain is the choice in prepare: a frame whose body lies in another chunk, as one packet of two descriptors or copied into one. By turns, on
// veth in copy mode; the result is how much longer the two take, in ns a frame.
func BenchmarkChain(b *testing.B) {
	if err := MultiBuffer.Check(); err != nil {
		if Masked(MultiBuffer.Name) {
			b.Skip("masked")
		}
		need.Missing(b, "%v", err)
	}
	for _, n := range []int{64, 512, 1400, 3000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			from, to := newPair(b, 1, 9000)
			to.sink(b)
			u, pool := newUMEM(b, 2048)
			p := newPort(b, from.open(b, u, SocketOptions{Fill: 64, Rx: 64, Tx: 512, Completion: 512, MultiBuffer: true, Mode: ModeCopy}), pool)
			batch := make([]*frame.Frame, 32)
			turn := func(chained bool) float64 {
				until(b, "all completions", func() bool { p.Flush(); p.Receive(nil, pool); return p.sent == 0 })
				for i := range batch {
					f, g := numbered(pool, 128, 0), pool.Get()
					g.Append(n)
					if chained { // with the head at the end of its chunk
						at := uint32(frame.ChunkSize - 128)
						head := bytes.Clone(f.Head())
						f.SetHead(at, 128)
						copy(f.Head(), head)
					}
					f.Attach(g, 0)
					batch[i] = f
				}
				start := time.Now()
				p.Transmit(batch, pool)
				p.Flush()
				return float64(time.Since(start).Nanoseconds()) / float64(len(batch))
			}
			var one, two []float64
			for b.Loop() {
				for range 50 {
					one, two = append(one, turn(false)), append(two, turn(true))
				}
			}
			slices.Sort(one)
			slices.Sort(two)
			b.ReportMetric(one[len(one)/2], "gathered-ns")
			b.ReportMetric(two[len(two)/2], "chained-ns")
			b.ReportMetric(0, "ns/op")
		})
	}
}
