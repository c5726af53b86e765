package frame

import "sync/atomic"

// lane is the way home of a pool's frames from one other pool: a ring with one producer, the worker that put them back, and one consumer,
// their home's. It has room for every frame of that home, so it is never full.
//
//	Put (another's) ──▶ lane ──▶ Exchange ──▶ Collect (home's) ──▶ Get
type lane struct {
	slots []*Frame
	mask  uint32

	_      [64]byte
	filled uint32        // the producer's
	tail   atomic.Uint32 // written by the producer
	_      [64]byte
	head   uint32 // the consumer's alone: nobody needs to know, since the ring cannot fill
}

func newLane(frames int) *lane {
	n := uint32(1)
	for n < uint32(frames) {
		n *= 2
	}
	return &lane{slots: make([]*Frame, n), mask: n - 1}
}

// send sets a foreign frame on its way home; false if there is none. It is seen there after Exchange.
func (p *Pool) send(f *Frame) bool {
	if int(f.home) >= len(p.away) || p.away[f.home] == nil {
		return false
	}
	l := p.away[f.home]
	l.slots[l.filled&l.mask] = f
	l.filled++
	return true
}

// Exchange lets frames that were put back here go home, and takes in those that came home. Once a round.
func (p *Pool) Exchange() {
	for _, l := range p.away {
		if l != nil && l.filled != l.tail.Load() {
			l.tail.Store(l.filled)
		}
	}
	p.Collect()
}

// Collect takes in frames that came home.
func (p *Pool) Collect() {
	for _, l := range p.home {
		tail := l.tail.Load()
		for ; l.head != tail; l.head++ {
			p.free = append(p.free, l.slots[l.head&l.mask])
		}
	}
}
