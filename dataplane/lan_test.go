package dataplane_test

import (
	"encoding/binary"
	"fmt"
	"runtime/debug"
	"testing"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/vnet"
	"github.com/shuntio/shunt/dataplane/vnet/vnettest"
)

// lan is a worker, driven by hand or running, with guests on a small switch.
type lan struct {
	testing.TB
	worker *dataplane.Worker
	pool   *frame.Pool
	frames int
	hosts  []*host
	clones uint64            // made by the switch
	at     func(step string) // called on the way, where things may happen
}

// host is a guest with its link.
type host struct {
	*vnettest.Guest
	lan      *lan
	dev      *vnet.Device
	port     *vnet.Pair
	link     *dataplane.Link
	name     string
	sent     uint64 // frames put into its transmitq
	received uint64 // good frames taken from its receiveq
}

var dropUnknown = dataplane.NewReason("test-unknown", "the test's switch knows no such destination")

const everybody = 0xff

// newLAN makes guests called A, B, C.
func newLAN(tb testing.TB, n int, o vnettest.Options) *lan {
	tb.Helper()
	const frames = 512
	memory, err := frame.NewMemory(make([]byte, frames*frame.ChunkSize))
	if err != nil {
		tb.Fatal(err)
	}
	pool, err := memory.NewPool(0, frames)
	if err != nil {
		tb.Fatal(err)
	}
	w, err := dataplane.NewWorker(dataplane.WorkerOptions{Pool: pool, Idle: dataplane.Interrupt})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { w.Close() })
	l := &lan{TB: tb, worker: w, pool: pool, frames: frames, at: func(string) {}}
	for i := range n {
		h := &host{lan: l, name: string(rune('A' + i)), link: &dataplane.Link{Counters: &dataplane.Counters{}, Forwarder: l}}
		h.link.Name = h.name
		if h.Guest, err = vnettest.New(o); err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(h.Guest.Close)
		if h.dev, err = vnet.New(vnet.Options{Pairs: []vnet.PairOptions{{Worker: w, Link: h.link}}}); err != nil {
			tb.Fatal(err)
		}
		h.port = h.link.Port.(*vnet.Pair)
		h.link.Port = watched{h.port, h}
		if err := h.Attach(h.dev); err != nil {
			tb.Fatal(err)
		}
		w.Do(func() { w.Add(h.link) })
		l.hosts = append(l.hosts, h)
	}
	return l
}

// Forward sends a frame to the host that the last byte of its destination names, or to all others.
func (l *lan) Forward(w *dataplane.Worker, from *dataplane.Link, frames []*frame.Frame) {
	for i, f := range frames {
		l.at(fmt.Sprintf("%s.forward.%d", from.Name, i))
		to := f.Head()[5]
		if to == everybody {
			for _, h := range l.hosts[1:] { // all but one get clones
				if h.link != from {
					if g := w.Clone(f); g != nil {
						l.clones++
						w.Send(h.link, g)
					}
				}
			}
			to = 0
		}
		frames[i] = nil
		if int(to) >= len(l.hosts) {
			w.Drop(from, f, dropUnknown)
			continue
		}
		w.Send(l.hosts[to].link, f)
	}
}

// watched tells the test about every call of a port.
type watched struct {
	*vnet.Pair
	h *host
}

func (p watched) Receive(into []*frame.Frame, pool *frame.Pool) int {
	p.h.lan.at(p.h.name + ".receive")
	n := p.Pair.Receive(into, pool)
	p.h.lan.at(p.h.name + ".received")
	return n
}

func (p watched) Transmit(frames []*frame.Frame, pool *frame.Pool) {
	p.h.lan.at(p.h.name + ".transmit")
	p.Pair.Transmit(frames, pool)
	p.h.lan.at(p.h.name + ".transmitted")
}

func (p watched) Release()      { p.h.lan.at(p.h.name + ".release"); p.Pair.Release() }
func (p watched) Flush()        { p.h.lan.at(p.h.name + ".flush"); p.Pair.Flush() }
func (p watched) Pending() bool { p.h.lan.at(p.h.name + ".pending"); return p.Pair.Pending() }
func (p watched) Disarm()       { p.h.lan.at(p.h.name + ".disarm"); p.Pair.Disarm() }

// byHand runs fn as the worker would: faults are panics.
func byHand(fn func()) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	fn()
}

// packet is a frame that can be told from any other, and from a torn one.
func packet(to, from byte, serial uint32, length int) []byte {
	b := make([]byte, length)
	b[5], b[11], b[12], b[13] = to, from, 0x88, 0xb5
	binary.BigEndian.PutUint32(b[14:], serial)
	for i := 18; i < length; i++ {
		b[i] = byte(serial) + byte(i*7)
	}
	return b
}

func intact(b []byte) bool {
	if len(b) < 18 {
		return false
	}
	serial := binary.BigEndian.Uint32(b[14:])
	for i := 18; i < len(b); i++ {
		if b[i] != byte(serial)+byte(i*7) {
			return false
		}
	}
	return true
}

// send puts a frame into the host's transmitq; false: it is full.
func (h *host) send(to byte, length int) bool {
	if err := h.Send(packet(to, h.name[0]-'A', uint32(h.sent), length)); err != nil {
		return false
	}
	h.sent++
	return true
}

// drain takes everything that arrived.
func (h *host) drain() {
	h.lan.Helper()
	for {
		b, err := h.Recv()
		if err != nil {
			h.lan.Fatalf("%s: its driver finds %v", h.name, err)
		}
		if b == nil {
			return
		}
		if !intact(b) {
			h.lan.Fatalf("%s: a torn frame of %d bytes", h.name, len(b))
		}
		h.received++
	}
}

// settle runs rounds until nothing moves.
func (l *lan) settle(drain ...*host) {
	l.Helper()
	for range 100 {
		work := 0
		byHand(func() { work = l.worker.Round() })
		for _, h := range drain {
			h.drain()
		}
		if work == 0 {
			return
		}
	}
	l.Fatal("frames still move after 100 rounds")
}

// checkBalance sees that every frame was delivered or counted, and that the pool is whole.
func (l *lan) checkBalance() {
	l.Helper()
	in, out, drops := l.clones, uint64(0), uint64(0)
	for _, h := range l.hosts {
		in += h.link.Counters.RxPackets.Load()
		out += h.link.Counters.TxPackets.Load()
		for _, r := range dataplane.Reasons() {
			drops += h.link.Counters.Drops(r)
		}
	}
	if in != out+drops {
		l.Errorf("%d frames came in or were cloned, %d went out, %d were dropped: %d lost", in, out, drops, int64(in-out-drops))
	}
	if l.pool.Len() != l.frames {
		l.Errorf("%d of %d frames are in the pool", l.pool.Len(), l.frames)
	}
	seen := map[*frame.Frame]bool{}
	var all []*frame.Frame
	for f := l.pool.Get(); f != nil; f = l.pool.Get() {
		if seen[f] {
			l.Fatal("a frame is in the pool twice")
		}
		seen[f] = true
		all = append(all, f)
	}
	l.pool.PutAll(all)
}
