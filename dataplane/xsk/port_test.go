package xsk

import (
	"errors"
	"runtime/debug"
	"testing"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// TestPortAgainstModel lets a port and a model kernel take turns in any order, near the wrap of all indices. After each turn every
// frame must be in exactly one place, and every packet counted.
func TestPortAgainstModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		size := 1 << rapid.IntRange(1, 4).Draw(rt, "log size")
		frames := rapid.IntRange(1, 4*size).Draw(rt, "frames")
		start := rapid.Uint32Range(^uint32(0)-30, ^uint32(0)).Draw(rt, "start")
		m, p, pool := modelPort(t, frames, size, start)
		var held []*frame.Frame // frames other ports have
		var received, delivered, offered uint64
		rt.Repeat(map[string]func(*rapid.T){
			"receive": func(rt *rapid.T) {
				into := make([]*frame.Frame, rapid.IntRange(1, size+1).Draw(rt, "n"))
				n := p.Receive(into, pool)
				p.Release()
				for _, f := range into[:n] {
					if f.HeadLen() == 0 || f.Head()[0] != byte(f.HeadLen()) {
						rt.Fatalf("frame of %d bytes holds %v", f.HeadLen(), f.Head())
					}
				}
				held = append(held, into[:n]...)
				received += uint64(n)
			},
			"deliver": func(rt *rapid.T) {
				n := rapid.IntRange(0, size).Draw(rt, "n")
				m.take(n)
				for range n {
					length := rapid.IntRange(1, 255).Draw(rt, "length")
					if m.deliver(uint32(length), byte(length)) {
						delivered++
					}
				}
			},
			"transmit": func(rt *rapid.T) {
				n := rapid.IntRange(0, len(held)).Draw(rt, "n")
				transmit(p, pool, held[:n]...)
				held = held[n:]
				offered += uint64(n)
			},
			"borrow": func(rt *rapid.T) {
				for range rapid.IntRange(0, 3).Draw(rt, "n") {
					if f := makeFrame(pool, rapid.SampledFrom([]int{0, 13, 14, 60, 1518, 1519}).Draw(rt, "length")); f != nil {
						held = append(held, f)
					}
				}
			},
			"flush":    func(*rapid.T) { p.Flush() },
			"complete": func(rt *rapid.T) { m.complete(rapid.IntRange(0, size).Draw(rt, "n")) },
			"arm": func(rt *rapid.T) {
				sleep := p.Arm()
				if blocked := p.s.Tx.Unread() > 0 || p.sent > 0 && pool.Len() == 0; blocked != (sleep < dataplane.Forever) {
					rt.Fatalf("Arm allows %v with %d unread, %d sent, %d free", sleep, p.s.Tx.Unread(), p.sent, pool.Len())
				}
				if p.filled < p.fill && pool.Len() > 0 {
					rt.Fatalf("asleep with %d of %d in the fill ring and %d free", p.filled, p.fill, pool.Len())
				}
				if *m.completion.producer != *m.completion.consumer {
					rt.Fatal("asleep with completions unread")
				}
				if p.Pending() != (*m.rx.producer != *m.rx.consumer) {
					rt.Fatal("Pending is wrong")
				}
				p.Disarm()
			},
			"the kernel is busy": func(rt *rapid.T) {
				errno := rapid.SampledFrom([]unix.Errno{0, unix.EAGAIN, unix.EBUSY, unix.ENOBUFS, unix.ENETDOWN}).Draw(rt, "errno")
				m.send = func() unix.Errno {
					switch errno {
					case 0:
						m.consume(kernelBudget)
					case unix.EBUSY:
						m.consume(1)
					}
					return errno
				}
			},
			"": func(rt *rapid.T) {
				counted := pool.Len() + len(held) + p.filled + p.sent
				if counted != frames {
					rt.Fatalf("%d frames: %d free, %d held, %d filled, %d sent", frames, pool.Len(), len(held), p.filled, p.sent)
				}
				inKernel := len(m.flying) + int(*m.tx.producer-*m.tx.consumer) + int(*m.completion.producer-*m.completion.consumer)
				if inKernel != p.sent {
					rt.Fatalf("the kernel transmits %d, the port thinks %d", inKernel, p.sent)
				}
				if p.filled > p.fill || p.sent > p.limit {
					rt.Fatalf("%d filled of %d, %d sent of %d", p.filled, p.fill, p.sent, p.limit)
				}
				waiting := uint64(*m.rx.producer - *m.rx.consumer)
				if p.counters.RxPackets.Load() != received || received+waiting != delivered {
					rt.Fatalf("delivered %d, waiting %d, received %d, counted %d", delivered, waiting, received, p.counters.RxPackets.Load())
				}
				dropped, why := drops(p.counters)
				if sent := p.counters.TxPackets.Load(); sent+dropped-p.counters.Drops(DropBusy) != offered {
					rt.Fatalf("offered %d, sent %d, dropped%s", offered, sent, why)
				}
				if m.invalid != 0 || p.stats.Unknown.Load() != 0 {
					rt.Fatalf("%d invalid descriptors, %d unknown addresses", m.invalid, p.stats.Unknown.Load())
				}
			},
		})
		if n := p.Reclaim(pool); pool.Len()+len(held) != frames {
			rt.Fatalf("reclaimed %d: %d free, %d held of %d frames", n, pool.Len(), len(held), frames)
		}
	})
}

// TestPortHostileKernel feeds descriptors and addresses that were never given away: nothing panics, and no
// frame comes back twice.
func TestPortHostileKernel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		const frames, size = 24, 8
		m, p, pool := modelPort(t, frames, size, 0)
		address := rapid.OneOf(rapid.Uint64(), rapid.Uint64Range(0, (frames+1)*frame.ChunkSize))
		var held []*frame.Frame
		for range rapid.IntRange(1, 60).Draw(rt, "turns") {
			switch rapid.IntRange(0, 5).Draw(rt, "turn") {
			case 0:
				m.push(Desc{Addr: address.Draw(rt, "rx"), Len: rapid.Uint32().Draw(rt, "len"), Options: rapid.Uint32().Draw(rt, "options")})
			case 1:
				m.finish(address.Draw(rt, "completion"))
			case 2:
				*m.rx.producer, *m.completion.producer = rapid.Uint32().Draw(rt, "rx index"), rapid.Uint32().Draw(rt, "completion index")
			case 3:
				*m.fill.consumer, *m.tx.consumer = rapid.Uint32().Draw(rt, "fill index"), rapid.Uint32().Draw(rt, "tx index")
			case 4:
				into := make([]*frame.Frame, size)
				for _, f := range into[:p.Receive(into, pool)] {
					held = append(held, f)
					_ = f.Head()
				}
			case 5:
				transmit(p, pool, held...)
				held = held[:0]
				p.Flush()
				p.Arm()
			}
		}
		p.Reclaim(pool)
		seen := map[*frame.Frame]bool{}
		for f := pool.Get(); f != nil; f = pool.Get() {
			held = append(held, f)
		}
		for _, f := range held {
			if seen[f] {
				rt.Fatal("a frame came back twice")
			}
			seen[f] = true
		}
		if len(seen) != frames {
			rt.Fatalf("%d frames of %d came back", len(seen), frames)
		}
	})
}

func TestPortDropsWhatDoesNotFit(t *testing.T) {
	m, p, pool := modelPort(t, 64, 16, 0)
	long := makeFrame(pool, 100)
	long.Borrow([][]byte{make([]byte, 9000)}, 9000)
	sum := makeFrame(pool, 100)
	sum.Checksum.Needed = true
	gathered := makeFrame(pool, 100)
	gathered.Borrow([][]byte{make([]byte, 500), make([]byte, 400)}, 900)
	transmit(p, pool, makeFrame(pool, 13), makeFrame(pool, 1519), long, sum, gathered)
	for r, want := range map[dataplane.Reason]uint64{DropTooShort: 1, DropTooLong: 2, DropChecksum: 1, DropRingFull: 0} {
		if got := p.counters.Drops(r); got != want {
			t.Errorf("%v: %d, want %d", r, got, want)
		}
	}
	if n := p.counters.TxBytes.Load(); n != 1000 {
		t.Errorf("%d bytes sent, want 1000", n)
	}
	p.SetMTU(9000)
	p.Flush()
	huge := makeFrame(pool, 100)
	huge.Borrow([][]byte{make([]byte, 4096)}, 4096)
	transmit(p, pool, huge)
	if got := p.counters.Drops(DropTooLong); got != 3 {
		t.Errorf("a frame longer than a chunk: %d drops, want 3", got)
	}
	if m.transmitted != 1 {
		t.Errorf("%d transmitted, want 1", m.transmitted)
	}
}

// TestPortRingFull offers more than the kernel takes: the rest is dropped under its name, and what was kept is sent when the kernel goes on.
func TestPortRingFull(t *testing.T) {
	m, p, pool := modelPort(t, 64, 16, 0)
	m.send = func() unix.Errno { return unix.EAGAIN }
	for range 20 {
		transmit(p, pool, makeFrame(pool, 60))
	}
	p.Flush()
	if got := p.counters.Drops(DropRingFull); got != 4 {
		t.Errorf("%d dropped at a full ring, want 4", got)
	}
	if got := p.Arm(); got != noFileTells {
		t.Errorf("Arm allows %v with a backlog, want %v", got, noFileTells)
	}
	m.send = func() unix.Errno { m.consume(kernelBudget); return 0 }
	p.Flush()
	m.complete(16)
	p.Receive(make([]*frame.Frame, 8), pool)
	if m.transmitted != 16 || p.sent != 0 || pool.Len() != 64-16 {
		t.Errorf("%d transmitted, %d still out, %d free", m.transmitted, p.sent, pool.Len())
	}
}

// TestPortFillKick: a driver that ran out of chunks asks to be woken once they are there (stalled receivers are AF_XDP's commonest complaint).
func TestPortFillKick(t *testing.T) {
	m, p, pool := modelPort(t, 32, 16, 0)
	m.take(16)
	*m.fill.flags = unix.XDP_RING_NEED_WAKEUP
	m.deliver(60, 60)
	into := make([]*frame.Frame, 4)
	if n := p.Receive(into, pool); n != 1 {
		t.Fatalf("received %d, want 1", n)
	}
	if m.fillKicks != 1 {
		t.Errorf("the driver was woken %d times, want 1", m.fillKicks)
	}
}

// TestPortFaultWhileGathering takes a guest's memory away in the middle of a batch, as a worker meets it: the frames before the one
// that faulted go out, the others are recycled, none is lost, and one that was dropped and counted is not there to be counted again.
func TestPortFaultWhileGathering(t *testing.T) {
	m, p, pool := modelPort(t, 64, 16, 0)
	gone, err := unix.Mmap(-1, 0, 4096, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(gone)
	bad := makeFrame(pool, 60)
	bad.Borrow([][]byte{gone[:100]}, 100)
	batch := []*frame.Frame{makeFrame(pool, 60), makeFrame(pool, 61), makeFrame(pool, ethernetHeader-1), bad, makeFrame(pool, 62)}
	func() {
		defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
		defer func() {
			if recover() == nil {
				t.Error("no fault")
			}
			if p.counters.Drops(DropTooShort) != 1 || batch[2].Dropped == 0 || batch[3].Dropped != 0 || batch[4].Dropped != 0 {
				t.Errorf("%d dropped as too short; left to be counted: %v", p.counters.Drops(DropTooShort), batch)
			}
			pool.PutAll(batch)
		}()
		p.Transmit(batch, pool)
	}()
	p.Flush()
	transmit(p, pool, makeFrame(pool, 63))
	p.Flush()
	m.complete(16)
	p.Receive(nil, pool)
	if m.transmitted != 3 || p.counters.TxBytes.Load() != 60+61+63 || pool.Len() != 64-16 {
		t.Errorf("%d transmitted, %d bytes, %d of %d frames are free", m.transmitted, p.counters.TxBytes.Load(), pool.Len(), 64-16)
	}
}

func TestPortDown(t *testing.T) {
	m, p, pool := modelPort(t, 64, 16, 0)
	m.send = func() unix.Errno { return unix.ENETDOWN }
	transmit(p, pool, makeFrame(pool, 60))
	p.Flush()
	transmit(p, pool, makeFrame(pool, 60))
	if got := p.counters.Drops(DropDown); got != 1 {
		t.Errorf("%d dropped at an interface that is down, want 1", got)
	}
	if got := p.Arm(); got != downRetry {
		t.Errorf("Arm allows %v while down, want %v", got, downRetry)
	}
	m.send = func() unix.Errno { m.consume(kernelBudget); return 0 }
	p.Flush()
	transmit(p, pool, makeFrame(pool, 60))
	p.Flush()
	if m.transmitted != 2 {
		t.Errorf("%d transmitted after the interface came up, want 2", m.transmitted)
	}
	m.send = func() unix.Errno { return unix.ENXIO }
	transmit(p, pool, makeFrame(pool, 60))
	p.Flush()
	transmit(p, pool, makeFrame(pool, 60))
	if got := p.counters.Drops(DropDown); got != 2 || p.Arm() != dataplane.Forever {
		t.Errorf("%d dropped at an interface that is gone, want 2; Arm allows %v", got, p.Arm())
	}
}

func TestPortMultiBufferIsDropped(t *testing.T) {
	m, p, pool := modelPort(t, 32, 16, 0)
	m.take(16)
	for _, options := range []uint32{unix.XDP_PKT_CONTD, unix.XDP_PKT_CONTD, 0, 0} {
		m.push(Desc{Addr: m.chunks[0] + 256, Len: 100, Options: options})
		m.chunks = m.chunks[1:]
	}
	if n := p.Receive(make([]*frame.Frame, 8), pool); n != 1 {
		t.Errorf("received %d, want the one whole packet", n)
	}
	if got := p.counters.Drops(DropMalformed); got != 1 {
		t.Errorf("%d packets dropped, want 1", got)
	}
}

// TestPortAllocatesNothing is the promise of the hot path.
func TestPortAllocatesNothing(t *testing.T) {
	m, p, pool := modelPort(t, 512, 128, ^uint32(0)-64)
	m.chunks, m.flying = make([]uint64, 0, 1<<20), make([]uint64, 0, 1<<20)
	into := make([]*frame.Frame, dataplane.Quantum)
	round := func() {
		m.take(len(into))
		for range into {
			m.deliver(60, 60)
		}
		n := p.Receive(into, pool)
		if n != len(into) {
			t.Fatalf("received %d", n)
		}
		p.Release()
		p.Transmit(into[:n], pool)
		pool.PutAll(into[:n])
		p.Flush()
		m.complete(n)
		p.Arm()
		p.Pending()
		p.Disarm()
	}
	if n := testing.AllocsPerRun(1000, round); n != 0 {
		t.Errorf("%v allocations a round", n)
	}
	if d, why := drops(p.counters); d != 0 {
		t.Errorf("drops:%s", why)
	}
}

func TestPortOptions(t *testing.T) {
	m, s := newModel(t, 32, 16, 0)
	pool, _ := m.umem.memory.NewPool(0, 32)
	o := PortOptions{Socket: s, Pool: pool, Counters: new(dataplane.Counters), Fill: 4}
	if n := o.Frames(); n != 20 {
		t.Errorf("%d frames, want 4 to receive into and 16 under way", n)
	}
	other, _ := newModel(t, 32, 16, 0)
	foreign, _ := other.umem.memory.NewPool(0, 32)
	if _, err := NewPort(PortOptions{Socket: s, Pool: foreign}); err == nil {
		t.Error("a pool of another memory was accepted")
	}
	for f := pool.Get(); f != nil; f = pool.Get() {
	}
	if _, err := NewPort(o); err == nil {
		t.Error("an empty pool was accepted")
	}
	s.Rx = Consumer[Desc]{}
	if _, err := NewPort(o); err == nil {
		t.Error("a socket without rx ring was accepted")
	}
}

func TestMasked(t *testing.T) {
	for mask, want := range map[string]bool{"": false, "all": true, "x, xsk-tx-budget": true, "xsk-tx": false} {
		t.Setenv("SHUNT_MASK", mask)
		if got := Masked(TxBudget.Name); got != want {
			t.Errorf("SHUNT_MASK=%q: masked %v", mask, got)
		}
	}
	t.Setenv("SHUNT_MASK", "all")
	for _, f := range []*Feature{&MultiBuffer, &TxBudget} {
		if err := f.Check(); !errors.Is(err, ErrNotSupported) {
			t.Errorf("%s masked: %v", f.Name, err)
		}
	}
}

// BenchmarkPort is what a port costs by itself: a frame received and transmitted, the kernel's part as cheap as can be.
func BenchmarkPort(b *testing.B) {
	m, p, pool := modelPort(b, 1024, 256, 0)
	into := make([]*frame.Frame, dataplane.Quantum)
	fill, _ := entries[uint64](m.fill.bytes, layout, 256)
	tx, _ := entries[Desc](m.tx.bytes, layout, 256)
	b.ReportAllocs()
	for b.Loop() {
		for range into {
			m.push(Desc{Addr: fill[*m.fill.consumer&m.fill.mask] + 256, Len: 114})
			*m.fill.consumer++
		}
		n := p.Receive(into, pool)
		p.Transmit(into[:n], pool)
		pool.PutAll(into[:n])
		for *m.tx.consumer != *m.tx.producer {
			m.finish(tx[*m.tx.consumer&m.tx.mask].Addr)
			*m.tx.consumer++
		}
		p.Flush()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(dataplane.Quantum*b.N), "ns/frame")
}
