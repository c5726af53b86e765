package vnet

import (
	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/virtq"
)

// Receive takes frames from the guest's transmitq:
//
//	transmitq ──▶ chain of buffers ──▶ take ──▶ header: what is asked for, judged against the head
//	                                        ├─▶ head: copied, the first frame.HeadLen bytes
//	                                        └─▶ body: borrowed, until Release publishes the chains as used
func (p *Pair) Receive(into []*frame.Frame, pool *frame.Pool) (n int) {
	if p.announcing > 0 {
		n = p.announce(into, pool)
	}
	q := &p.tx
	if q.ring == nil {
		return n
	}
	chains, err := q.ring.Available()
	if err != nil {
		p.fail(err)
		return n
	}
	chains = min(chains, len(into)-n, pool.Len())
	bytes, taken := 0, 0
	for ; taken < chains; taken++ {
		p.taking = taken + 1
		f := into[n]
		if f == nil {
			f = pool.Get()
			into[n] = f
		}
		if taken%virtq.HintEvery == 0 {
			q.ring.Hint(chains - taken)
		}
		if err := q.ring.Next(q.chain); err != nil {
			p.taking = 0
			pool.Put(f)
			into[n] = nil
			p.fail(err)
			break
		}
		drop, ok := p.take(f, q.chain.Readable)
		q.ring.Complete(q.chain.Head, 0) // seen by the driver after Release
		if !ok {
			p.counters.Drop(drop, 1)
			f.Reset()
			continue
		}
		bytes += f.Len()
		n++
	}
	if n < len(into) && into[n] != nil {
		pool.Put(into[n])
		into[n] = nil
	}
	p.taking = 0
	if taken > 0 {
		p.counters.RxPackets.Add(uint64(taken))
		p.counters.RxBytes.Add(uint64(bytes))
	}
	if n == 0 {
		p.Release()
	}
	return n
}

// take fills a frame from the buffers of one chain. It reads each byte of guest memory at most once.
func (p *Pair) take(f *frame.Frame, buffers [][]byte) (drop dataplane.Reason, ok bool) {
	if len(buffers) == 1 && len(buffers[0]) >= p.offers.header { // the common case: header and frame in one buffer
		buffer := buffers[0]
		if drop, ok = p.offers.read(f, buffer[:p.offers.header]); !ok {
			return drop, false
		}
		data := buffer[p.offers.header:]
		switch {
		case len(data) <= frame.HeadLen:
			copy(f.Append(len(data)), data)
		case len(data) <= frame.MaxLen:
			copy(f.Append(frame.HeadLen), data)
			p.borrow(f, data[frame.HeadLen:])
		default:
			return DropTooLong, false
		}
		return judged(f)
	}
	return p.takePieces(f, buffers)
}

// takePieces is take for a frame in several buffers; they may be cut anywhere, also within the header.
func (p *Pair) takePieces(f *frame.Frame, buffers [][]byte) (drop dataplane.Reason, ok bool) {
	if len(buffers) > maxPieces {
		return DropTooManyPieces, false
	}
	var space [maxHeader]byte
	header := space[:p.offers.header]
	have := 0
	for len(buffers) > 0 && have < len(header) {
		n := copy(header[have:], buffers[0])
		have += n
		if n < len(buffers[0]) {
			buffers = rest(buffers, n)
			break
		}
		buffers = buffers[1:]
	}
	if have < len(header) {
		return DropBadHeader, false
	}
	if drop, ok = p.offers.read(f, header); !ok {
		return drop, false
	}
	for len(buffers) > 0 && f.HeadLen() < frame.HeadLen {
		n := min(len(buffers[0]), frame.HeadLen-f.HeadLen())
		copy(f.Append(n), buffers[0])
		if n < len(buffers[0]) {
			buffers = rest(buffers, n)
			break
		}
		buffers = buffers[1:]
	}
	first, length := len(p.bodies), 0
	for _, b := range buffers {
		p.bodies = append(p.bodies, b)
		length += len(b)
	}
	if f.HeadLen()+length > frame.MaxLen {
		p.bodies = p.bodies[:first]
		return DropTooLong, false
	}
	if length > 0 {
		f.Borrow(p.bodies[first:], length)
	}
	return judged(f)
}

// rest cuts n bytes off the first buffer. The slice is the chain's, which is ours until the next one is taken.
func rest(buffers [][]byte, n int) [][]byte {
	buffers[0] = buffers[0][n:]
	return buffers
}

// borrow makes one view the frame's body.
func (p *Pair) borrow(f *frame.Frame, view []byte) {
	at := len(p.bodies)
	p.bodies = append(p.bodies, view)
	f.Borrow(p.bodies[at:at+1], len(view))
}

// Release gives the chains of the last Receive back to the guest.
func (p *Pair) Release() {
	p.bodies = p.bodies[:0]
	if p.tx.ring != nil {
		p.tx.publish()
	}
}
