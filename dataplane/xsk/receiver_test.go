package xsk

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/shm"
	"github.com/shuntio/shunt/tools/need"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// Three sockets on a model's queue, each of another worker, with a pool of its own.
type trio struct {
	m     *model
	owner *Port
	rx    [3]*far // the first is the owner's
	more  [2]*Receiver
	pools [3]*frame.Pool
}

func newTrio(tb testing.TB, owners, others, size int, start uint32) *trio {
	tb.Helper()
	m, s := newModel(tb, owners+2*others, size, start)
	x := &trio{m: m}
	var err error
	for i, at := range [3][2]int{{0, owners}, {owners, others}, {owners + others, others}} {
		if x.pools[i], err = m.umem.memory.NewPool(at[0], at[1]); err != nil {
			tb.Fatal(err)
		}
	}
	frame.Connect(x.pools[:])
	if x.owner, err = NewPort(PortOptions{Socket: s, Pool: x.pools[0], Counters: new(dataplane.Counters)}); err != nil {
		tb.Fatal(err)
	}
	x.rx[0] = &m.rx
	for i := range x.more {
		var second *Socket
		x.rx[i+1], second = m.second(tb, s, size, start)
		if x.more[i], err = NewReceiver(ReceiverOptions{Owner: x.owner, Socket: second, Counters: new(dataplane.Counters)}); err != nil {
			tb.Fatal(err)
		}
	}
	return x
}

// port is the i-th of the three.
func (x *trio) port(i int) dataplane.Port {
	if i == 0 {
		return x.owner
	}
	return x.more[i-1]
}

// counters are those of the i-th.
func (x *trio) counters(i int) *dataplane.Counters {
	if i == 0 {
		return x.owner.counters
	}
	return x.more[i-1].in.counters
}

// TestReceiversAgainstModel lets an owner, two receivers, and a kernel that hands packets of one or several chunks to any of them take turns.
// After each turn every frame is in exactly one place, and at the end all are home.
func TestReceiversAgainstModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		size := 1 << rapid.IntRange(1, 4).Draw(rt, "log size")
		owners, others := rapid.IntRange(1, 6*size).Draw(rt, "owner's frames"), rapid.IntRange(1, 4).Draw(rt, "frames of each other")
		frames := owners + 2*others
		x := newTrio(t, owners, others, size, rapid.Uint32Range(^uint32(0)-30, ^uint32(0)).Draw(rt, "start"))
		defer x.owner.Close()
		m, multi := x.m, rapid.Bool().Draw(rt, "multi-buffer")
		for i := range 3 {
			if i == 0 {
				x.owner.s.o.MultiBuffer, x.owner.s.pieces = multi, copyPieces
			} else {
				x.more[i-1].in.s.o.MultiBuffer = multi
			}
		}
		x.owner.SetMTU(9000)
		var held [3][]*frame.Frame // by each worker
		var delivered, received [3]uint64
		worker := rapid.IntRange(0, 2)
		rt.Repeat(map[string]func(*rapid.T){
			"deliver": func(rt *rapid.T) {
				m.take(rapid.IntRange(0, size).Draw(rt, "chunks"))
				for range rapid.IntRange(0, size).Draw(rt, "n") {
					to := worker.Draw(rt, "to")
					pieces := rapid.SliceOfN(rapid.Uint32Range(14, 255), 1, 3).Draw(rt, "pieces")
					if m.deliverTo(x.rx[to], byte(pieces[0]), pieces...) {
						delivered[to]++
					}
				}
			},
			"receive": func(rt *rapid.T) {
				at := worker.Draw(rt, "at")
				into := make([]*frame.Frame, rapid.IntRange(1, size+1).Draw(rt, "n"))
				n := x.port(at).Receive(into, x.pools[at])
				for _, f := range into[:n] {
					for _, piece := range append([][]byte{f.Head()}, f.Body()...) {
						if piece[0] != f.Head()[0] {
							rt.Fatal("pieces of two packets are in one frame")
						}
					}
				}
				held[at] = append(held[at], into[:n]...)
				received[at] += uint64(n)
			},
			"put": func(rt *rapid.T) {
				at := worker.Draw(rt, "at")
				n := rapid.IntRange(0, len(held[at])).Draw(rt, "n")
				x.pools[at].PutAll(held[at][:n])
				held[at] = held[at][n:]
			},
			"pass on": func(rt *rapid.T) { // through a crossing
				from, to := worker.Draw(rt, "from"), worker.Draw(rt, "to")
				if from != to {
					held[to] = append(held[to], held[from]...)
					held[from] = nil
				}
			},
			"transmit": func(rt *rapid.T) {
				n := rapid.IntRange(0, len(held[0])).Draw(rt, "n")
				transmit(x.owner, x.pools[0], held[0][:n]...)
				held[0] = held[0][n:]
				x.owner.Flush()
			},
			"complete": func(rt *rapid.T) { m.complete(rapid.IntRange(0, size).Draw(rt, "n")) },
			"end of round": func(rt *rapid.T) {
				x.pools[worker.Draw(rt, "at")].Exchange()
			},
			"owner sleeps": func(rt *rapid.T) {
				x.owner.Arm()
				if !x.owner.asleep.Load() {
					rt.Fatal("not asleep")
				}
				if unread := int(*m.fill.producer - *m.fill.consumer); unread < x.owner.fill && x.owner.filled < x.owner.fill+2*size && x.pools[0].Len() > 0 {
					rt.Fatalf("asleep with %d chunks to receive into, %d free", unread, x.pools[0].Len())
				}
				x.owner.Disarm()
			},
			"": func(rt *rapid.T) {
				for range 2 { // everything on its way home arrives
					for _, p := range x.pools {
						p.Exchange()
					}
				}
				for _, r := range x.more {
					x.owner.filled -= r.news()
				}
				counted, free := x.owner.filled+x.owner.sent, 0
				for i, p := range x.pools {
					free += p.Len()
					for _, f := range held[i] {
						counted += 1 + len(f.Body())
					}
				}
				for _, in := range []*intake{&x.owner.in, &x.more[0].in, &x.more[1].in} {
					if in.packet != nil {
						counted += 1 + len(in.packet.Body())
					}
				}
				if counted+free != frames {
					rt.Fatalf("%d frames: %d free, %d filled, %d sent, %v held", frames, free, x.owner.filled, x.owner.sent, held)
				}
				inRings := len(m.chunks) + int(*m.fill.producer-*m.fill.consumer)
				for _, rx := range x.rx {
					inRings += int(*rx.producer - *rx.consumer)
				}
				if inRings != x.owner.filled {
					rt.Fatalf("the kernel has %d chunks to receive into, the owner thinks %d", inRings, x.owner.filled)
				}
				if most := x.owner.fill + 2*size; x.owner.filled > most {
					rt.Fatalf("%d filled of at most %d", x.owner.filled, most)
				}
				for i := range 3 {
					c := x.counters(i)
					malformed := c.Drops(DropMalformed)
					if got := c.RxPackets.Load(); got != received[i]+malformed || got > delivered[i] || multi && malformed != 0 {
						rt.Fatalf("socket %d: %d delivered, %d counted, %d received, %d malformed", i, delivered[i], got, received[i], malformed)
					}
				}
			},
		})
		for _, r := range x.more {
			r.Reclaim(x.pools[0])
		}
		x.owner.Reclaim(x.pools[0])
		for i, p := range x.pools {
			p.PutAll(held[i])
			p.Exchange()
		}
		free := 0
		for _, p := range x.pools {
			p.Exchange()
			free += p.Len()
		}
		if free != frames || x.owner.in.shared {
			rt.Fatalf("%d of %d frames are free at the end", free, frames)
		}
	})
}

// TestReceiverWakesOwner: while the owner sleeps, who uses up its chunks wakes it before they are all gone, and nobody wakes who is awake.
func TestReceiverWakesOwner(t *testing.T) {
	const size = 64
	x := newTrio(t, 4*size, 1, size, 0)
	defer x.owner.Close()
	into := make([]*frame.Frame, size)
	use := func(n int) {
		x.m.take(n)
		for range n {
			if !x.m.deliverTo(x.rx[1], 20, 20) {
				t.Fatal("the kernel has no chunk")
			}
		}
		x.pools[1].PutAll(into[:x.more[0].Receive(into, x.pools[1])])
	}
	rung := func() bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(x.owner.WakeFD()), Events: unix.POLLIN}}, 0)
		if err != nil {
			t.Fatal(err)
		}
		shm.Drain(x.owner.WakeFD())
		return n > 0
	}
	use(size / 2)
	if rung() {
		t.Error("an owner that is awake was woken")
	}
	if got := x.owner.Arm(); got != dataplane.Forever {
		t.Errorf("Arm allows %v", got)
	}
	if n := *x.m.fill.producer - *x.m.fill.consumer; n != size {
		t.Errorf("asleep with %d chunks in the fill ring, want all %d", n, size)
	}
	use(size/4 - 1)
	if rung() {
		t.Error("woken for little")
	}
	use(1)
	if !rung() {
		t.Error("not woken, with a quarter of the chunks used up by one of two receivers")
	}
	x.owner.Disarm()
	use(size / 4)
	if rung() {
		t.Error("an owner that is awake was woken")
	}
	// Frames that are with another worker come home without a word.
	var all []*frame.Frame
	for f := x.pools[0].Get(); f != nil; f = x.pools[0].Get() {
		all = append(all, f)
	}
	x.m.take(size)
	if got := x.owner.Arm(); got != noFileTells {
		t.Errorf("Arm allows %v with no chunk in the fill ring and none free", got)
	}
	x.owner.Disarm()
	x.pools[0].PutAll(all)
}

// TestPortMoves to another worker: what it gives the kernel is the new one's from then on, what it gets back goes where it came from.
func TestPortMoves(t *testing.T) {
	const size = 16
	x := newTrio(t, 2*size, 2*size, size, 0)
	defer x.owner.Close()
	x.owner.Arm()
	x.owner.Disarm()
	x.owner.SetPool(x.pools[1])
	before := x.pools[1].Len()
	x.m.take(4)
	for range 4 {
		x.m.deliver(20, 20)
	}
	into := make([]*frame.Frame, size)
	x.pools[1].PutAll(into[:x.owner.Receive(into, x.pools[1])])
	x.owner.Arm()
	x.owner.Disarm()
	x.pools[1].Exchange()
	x.pools[0].Exchange()
	if x.pools[1].Len() != before-4 || x.pools[0].Len() != size+4 {
		t.Errorf("after the move %d frames are free at the new worker, %d at the old", x.pools[1].Len(), x.pools[0].Len())
	}
}

// TestReceiverRefuses what is none of its affair.
func TestReceiverRefuses(t *testing.T) {
	x := newTrio(t, 64, 4, 16, 0)
	defer x.owner.Close()
	r := x.more[0]
	f := makeFrame(x.pools[1], 60)
	r.Transmit([]*frame.Frame{nil, f}, x.pools[1])
	if r.in.counters.Drops(DropReceiveOnly) != 1 || f.Dropped == 0 {
		t.Error("a frame was sent by a socket that only receives")
	}
	// An address that comes up in two rings is believed once.
	x.m.take(1)
	x.rx[1].push(Desc{Addr: x.m.chunks[0] + 256, Len: 60})
	x.rx[0].push(Desc{Addr: x.m.chunks[0] + 256, Len: 60})
	into := make([]*frame.Frame, 4)
	if n := r.Receive(into, x.pools[1]) + x.owner.Receive(into[1:], x.pools[0]); n != 1 || x.owner.stats.Unknown.Load() != 1 {
		t.Errorf("%d frames of one chunk", n)
	}
	_, alone := newModel(t, 64, 16, 0)
	if _, err := NewReceiver(ReceiverOptions{Owner: x.owner, Socket: alone}); err == nil {
		t.Error("a socket of another queue was accepted")
	}
}

func TestReceiverAllocatesNothing(t *testing.T) {
	x := newTrio(t, 512, 4, 128, ^uint32(0)-64)
	defer x.owner.Close()
	x.m.chunks = make([]uint64, 0, 1<<20)
	into := make([]*frame.Frame, dataplane.Quantum)
	if n := testing.AllocsPerRun(1000, func() {
		x.m.take(len(into))
		for range into {
			x.m.deliverTo(x.rx[2], 60, 60)
		}
		r := x.more[1]
		if n := r.Receive(into, x.pools[2]); n != len(into) {
			t.Fatalf("received %d", n)
		}
		x.pools[2].PutAll(into)
		x.pools[2].Exchange()
		x.pools[0].Exchange()
		x.owner.Arm()
		x.owner.Disarm()
		x.owner.Receive(nil, x.pools[0])
	}); n != 0 {
		t.Errorf("%v allocations a round", n)
	}
}

// steerByNumber gives a numbered frame to one of two sockets of its queue, by the last bit of its number.
func (e *end) steerByNumber(tb testing.TB) {
	tb.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.XSKMap, KeySize: 4, ValueSize: 4, MaxEntries: 16})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { m.Close() })
	e.sockets = m
	const data, dataEnd, queue, pass = 0, 4, 16, 2 // of struct xdp_md; XDP_PASS
	e.attach(tb, 0, asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, queue, asm.Word),
		asm.LSh.Imm(asm.R2, 1),
		asm.LoadMem(asm.R4, asm.R1, data, asm.Word),
		asm.LoadMem(asm.R5, asm.R1, dataEnd, asm.Word),
		asm.Mov.Reg(asm.R0, asm.R4),
		asm.Add.Imm(asm.R0, 22),
		asm.JGT.Reg(asm.R0, asm.R5, "pass"),
		asm.LoadMem(asm.R4, asm.R4, 21, asm.Byte),
		asm.And.Imm(asm.R4, 1),
		asm.Or.Reg(asm.R2, asm.R4),
		asm.LoadMapPtr(asm.R1, m.FD()),
		asm.Mov.Imm(asm.R3, pass),
		asm.FnRedirectMap.Call(),
		asm.Return(),
		asm.Mov.Imm(asm.R0, pass).WithSymbol("pass"),
		asm.Return(),
	})
}

// TestReceiverLive receives on one queue with two goroutines, and accounts for every frame: each got those meant for it, in order, or the
// kernel counted them. Under the race detector it shows that the two share nothing unordered.
func TestReceiverLive(t *testing.T) {
	a, b := newPair(t, 1, 1500)
	a.redirect(t, 0)
	b.steerByNumber(t)
	sender, sending := newUMEM(t, 2*RingSize+512)
	from := newPort(t, a.open(t, sender, SocketOptions{Rx: 64, Fill: 64}), sending)

	const others = 256
	u, _ := newUMEM(t, 3*1024+2*others)
	pools := [2]*frame.Pool{}
	for i, at := range [2][2]int{{0, 3*1024 + others}, {3*1024 + others, others}} {
		var err error
		if pools[i], err = u.memory.NewPool(at[0], at[1]); err != nil {
			t.Fatal(err)
		}
	}
	frame.Connect(pools[:])
	o := SocketOptions{Fill: 1024, Rx: 1024, Tx: 64, Completion: 64}
	owner := newPort(t, b.open(t, u, o), pools[0])
	o.Owner, o.Tx = owner.s, -1
	second := b.open(t, u, o)
	r, err := NewReceiver(ReceiverOptions{Owner: owner, Socket: second, Counters: new(dataplane.Counters)})
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range []*Socket{owner.s, second} {
		if err := b.sockets.Put(uint32(i), uint32(s.FD())); err != nil {
			t.Fatal(err)
		}
	}

	frames := uint64(100_000)
	if need.Soak() {
		frames *= 20
	}
	var received [2]atomic.Uint64
	var quit atomic.Bool
	var workers sync.WaitGroup
	for i, p := range []dataplane.Port{owner, r} {
		workers.Go(func() {
			into := make([]*frame.Frame, dataplane.Quantum)
			next := uint64(i)
			for !quit.Load() {
				n := p.Receive(into, pools[i])
				for _, f := range into[:n] {
					if at, ok := number(f); ok {
						if at < next || at%2 != uint64(i) {
							t.Errorf("worker %d got frame %d when %d was due", i, at, next)
						}
						next = at + 2
						received[i].Add(1)
					}
				}
				pools[i].PutAll(into[:n])
				pools[i].Exchange()
				if n == 0 {
					p.Arm()
					poll := []unix.PollFd{{Fd: int32([]*Socket{owner.s, second}[i].FD()), Events: unix.POLLIN}, {Fd: -1}}
					if i == 0 {
						poll[1] = unix.PollFd{Fd: int32(owner.WakeFD()), Events: unix.POLLIN}
					}
					if !p.Pending() {
						unix.Poll(poll, 20)
					}
					if i == 0 {
						shm.Drain(owner.WakeFD())
					}
					p.Disarm()
				}
			}
		})
	}
	batch := make([]*frame.Frame, dataplane.Quantum)
	for sent := uint64(0); sent < frames; {
		for i := range batch {
			batch[i] = numbered(sending, 100, sent)
			sent++
		}
		from.Transmit(batch, sending)
		sending.PutAll(batch)
		from.Flush()
		from.Receive(nil, sending)
	}
	lost := func() uint64 {
		n, _ := drops(from.counters)
		for _, s := range []*Socket{owner.s, second} {
			k, err := s.Statistics()
			if err != nil {
				t.Fatal(err)
			}
			n += k.RxDropped + k.RxRingFull
		}
		return n
	}
	sent := (frames + dataplane.Quantum - 1) / dataplane.Quantum * dataplane.Quantum
	until(t, "every frame accounted for", func() bool {
		from.Flush()
		from.Receive(nil, sending)
		return received[0].Load()+received[1].Load()+lost() >= sent
	})
	quit.Store(true)
	workers.Wait()
	t.Logf("%d sent, %d and %d received, %d lost", sent, received[0].Load(), received[1].Load(), lost())
	if got := received[0].Load() + received[1].Load() + lost(); got != sent {
		t.Errorf("%d sent, %d accounted for", sent, got)
	}
	if received[0].Load() == 0 || received[1].Load() == 0 {
		t.Error("one of the two got nothing")
	}

	// Close with packets in both rings.
	for i := range uint64(100) {
		transmit(from, sending, numbered(sending, 100, i))
	}
	from.Flush()
	until(t, "packets in both rings", func() bool { return owner.Pending() && r.Pending() })
	closed := r.Close()
	reclaimed := r.Reclaim(pools[0])
	if reclaimed == 0 || reclaimed > 1024 {
		t.Errorf("%d frames were in the receiver's ring", reclaimed)
	}
	into := make([]*frame.Frame, dataplane.Quantum)
	pools[0].PutAll(into[:owner.Receive(into, pools[0])])
	if owner.filled > 1024 {
		t.Errorf("the owner keeps %d frames in the kernel, alone", owner.filled)
	}
	if err := fmt.Sprint(closed, owner.Close()); err != "<nil> <nil>" {
		t.Error(err)
	}
	owner.Reclaim(pools[0])
	for range 2 {
		for _, p := range pools {
			p.Exchange()
		}
	}
	if pools[0].Len() != 3*1024+others || pools[1].Len() != others {
		t.Errorf("%d and %d frames are free, want %d and %d", pools[0].Len(), pools[1].Len(), 3*1024+others, others)
	}
}
