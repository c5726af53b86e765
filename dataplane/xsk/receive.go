package xsk

import (
	"github.com/shuntio/shunt/dataplane/frame"
)

// The way of a packet from the device, once a round:
//
//	rx ──▶ intake ──▶ into
//	                 pool ──▶ refill ──▶ fill ──▶ kernel

// Receive takes what arrived, and fills the fill ring up again at once, so that it never runs dry.
func (p *Port) Receive(into []*frame.Frame, pool *frame.Pool) int {
	p.reap(pool)
	polls := p.s.busyPoll.Load()
	if polls && p.s.Rx.Peek(1) == 0 {
		p.poll()
	}
	n, taken := p.in.receive(into, pool)
	if polls && taken > 0 && !p.s.settled {
		p.s.settleBusyPoll()
	}
	p.filled -= taken
	p.refill(pool)
	return n
}

// refill gives the kernel chunks to receive into.
func (p *Port) refill(pool *frame.Pool) {
	n := min(p.missing(), pool.Len())
	if n <= 0 {
		return
	}
	n = p.s.Fill.Reserve(n)
	for i := range n {
		f := pool.Get()
		p.s.Fill.Set(i, f.Address()&^(frame.ChunkSize-1))
		p.s.umem.give(f, p.in.from) // the frame is another's from now on
	}
	p.s.Fill.Submit(n)
	p.filled += n
	if p.s.wantsRx() {
		p.stats.RxKicks.Add(1)
		p.s.receive(p.s.fd)
	}
}

// missing is how many chunks the kernel is to get. Alone, a port has as many in the kernel's hands as were configured. With receivers so
// many lie in the fill ring, whatever the receivers leave in their own rings; those are allowed for on top, so that a slow one
// starves no other.
func (p *Port) missing() int {
	if len(p.receivers) == 0 {
		return p.fill - p.filled
	}
	most := p.fill
	for _, r := range p.receivers {
		p.filled -= r.news()
		most += r.Frames()
	}
	return min(most-p.filled, p.fill-p.s.Fill.Unread())
}

// Release has nothing to end: received frames borrow nothing.
func (p *Port) Release() {}
