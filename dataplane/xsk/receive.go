package xsk

import (
	"github.com/shuntio/shunt/dataplane/frame"
	"golang.org/x/sys/unix"
)

// The way of a packet from the device, once a round:
//
//	rx ──▶ receive ──▶ into
//	                  pool ──▶ refill ──▶ fill ──▶ kernel

// Receive takes what arrived, and fills the fill ring up again at once, so that it never runs dry.
func (p *Port) Receive(into []*frame.Frame, pool *frame.Pool) int {
	p.reap(pool)
	n := p.receive(into, pool)
	p.refill(pool)
	return n
}

func (p *Port) receive(into []*frame.Frame, pool *frame.Pool) (n int) {
	ready := p.s.Rx.Peek(len(into))
	if ready == 0 {
		return 0
	}
	bytes, malformed := 0, 0
	for i := range ready {
		d := p.s.Rx.At(i)
		f, off := p.s.umem.take(d.Addr, p.fillMark)
		if f == nil {
			p.stats.Unknown.Add(1)
			continue
		}
		p.filled--
		if !p.whole(&d) || !f.SetHead(off, d.Len) {
			pool.Put(f)
			malformed++
			continue
		}
		into[n] = f
		n++
		bytes += int(d.Len)
	}
	p.s.Rx.Release(ready)
	p.counters.RxPackets.Add(uint64(n + malformed))
	p.counters.RxBytes.Add(uint64(bytes))
	if malformed > 0 {
		p.counters.Drop(DropMalformed, malformed)
	}
	return n
}

// whole tells whether the descriptor is a packet by itself. The pieces of one that is not are all dropped, each counted.
func (p *Port) whole(d *Desc) bool {
	within := p.chain
	p.chain = d.Options&unix.XDP_PKT_CONTD != 0
	return !within && !p.chain
}

// refill gives the kernel chunks to receive into.
func (p *Port) refill(pool *frame.Pool) {
	n := min(p.fill-p.filled, pool.Len())
	if n <= 0 {
		return
	}
	n = p.s.Fill.Reserve(n)
	for i := range n {
		f := pool.Get()
		p.s.umem.give(f, p.fillMark)
		p.s.Fill.Set(i, f.Address()&^(frame.ChunkSize-1))
	}
	p.s.Fill.Submit(n)
	p.filled += n
	if p.s.wantsRx() {
		p.stats.RxKicks.Add(1)
		p.s.receive(p.s.fd)
	}
}

// Release has nothing to end: received frames borrow nothing.
func (p *Port) Release() {}
