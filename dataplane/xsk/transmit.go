package xsk

import (
	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"golang.org/x/sys/unix"
)

// The way of a frame to the device:
//
//	Transmit ──▶ fits ──▶ tx          a frame given to the kernel, or dropped with a reason
//	Flush ──▶ kick ──▶ sendto         once a round
//	completion ──▶ reap ──▶ pool      the next round, or when the kernel is done with it

// Transmit writes descriptors of the frames and keeps them until the kernel gives them back. The kernel is called by Flush.
func (p *Port) Transmit(frames []*frame.Frame, pool *frame.Pool) {
	room := p.room(p.descriptors(frames), pool)
	for i, f := range frames {
		if f == nil {
			continue
		}
		if p.staged == room { // before a body is copied for nothing
			p.drop(f, p.noRoom())
			continue
		}
		n, why := p.prepare(f, pool) // a body may fault, this one's or that of one behind it
		if n > room-p.staged {
			n, why = 0, p.noRoom()
		}
		if n == 0 {
			p.drop(f, why)
			continue
		}
		frames[i] = nil
		p.stagedPackets++
		p.stagedBytes += f.Len()
		if n == 1 {
			p.stage(f, 0)
		} else {
			p.stageChain(f)
		}
	}
	p.submit()
}

// drop counts a frame, which stays in the vector.
func (p *Port) drop(f *frame.Frame, why dataplane.Reason) {
	p.counters.Drop(why, 1)
	why.Mark(f)
}

// descriptors estimates how many the frames take.
func (p *Port) descriptors(frames []*frame.Frame) int {
	n := len(frames)
	if !p.s.o.MultiBuffer {
		return n
	}
	for _, f := range frames {
		if f != nil && f.Len() > f.HeadLen()+f.Room() {
			n += max(len(f.Body()), f.Len()/frame.ChunkSize+1)
		}
	}
	return n
}

// stage writes the descriptor of one chunk.
func (p *Port) stage(f *frame.Frame, options uint32) {
	p.s.Tx.Set(p.staged, Desc{Addr: f.Address(), Len: uint32(f.HeadLen()), Options: options})
	p.s.umem.give(f, p.txMark)
	p.staged++
}

// stageChain writes those of a frame with a body of its own. Each chunk is the kernel's, and comes back, by itself.
func (p *Port) stageChain(f *frame.Frame) {
	n := f.Scatter(&p.parts)
	p.stage(f, unix.XDP_PKT_CONTD)
	for i, part := range p.parts[:n] {
		options := uint32(unix.XDP_PKT_CONTD)
		if i == n-1 {
			options = 0
		}
		p.stage(part, options)
		p.parts[i] = nil
	}
	p.stats.Chained.Add(1)
}

// submit hands the staged descriptors to the kernel. There are some at the beginning of a Transmit or Flush only if the one before
// was ended by a fault, in the body of the frame behind them.
func (p *Port) submit() {
	if p.staged == 0 {
		return
	}
	p.s.Tx.Submit(p.staged)
	p.sent += p.staged
	p.counters.TxPackets.Add(uint64(p.stagedPackets))
	p.counters.TxBytes.Add(uint64(p.stagedBytes))
	p.staged, p.stagedPackets, p.stagedBytes = 0, 0, 0
}

// prepare makes the frame private, in one piece if it fits one: copying what fits is cheaper by far than a further descriptor, for which the kernel
// takes a page (BenchmarkChain). It returns how many descriptors the frame takes; 0 if it can't be sent, and why.
func (p *Port) prepare(f *frame.Frame, pool *frame.Pool) (n int, why dataplane.Reason) {
	switch n := f.Len(); {
	case n > p.maxLen:
		return 0, DropTooLong
	case n < ethernetHeader: // the kernel would refuse an empty one and never give it back
		return 0, DropTooShort
	case f.GSO.Type != frame.GSONone:
		return 0, DropUnsegmented
	case f.Checksum.Needed:
		return 0, DropChecksum
	case f.Gather():
		f.Shed(pool)
		return 1, 0
	case !p.s.o.MultiBuffer:
		return 0, DropTooLong
	case !f.Own(pool):
		return 0, DropNoChunk
	}
	if n = 1 + len(f.Body()); n > p.s.pieces {
		return 0, DropPieces
	}
	return n, 0
}

// room is how many descriptors can be written, at most n. Where there is not enough, it lets the kernel work first.
func (p *Port) room(n int, pool *frame.Pool) int {
	p.submit()
	if p.gone || p.down && p.s.Tx.Unread() > 0 { // what waits shows when the interface is up again; no more behind it
		return 0
	}
	room := p.s.Tx.Reserve(min(n, p.limit-p.sent))
	if room < n {
		p.reap(pool)
		p.kick()
		p.reap(pool)
		room = p.s.Tx.Reserve(min(n, p.limit-p.sent))
	}
	return room
}

func (p *Port) noRoom() dataplane.Reason {
	if p.down || p.gone {
		return DropDown
	}
	return DropRingFull
}

// reap takes back the frames that were transmitted.
func (p *Port) reap(pool *frame.Pool) {
	if p.sent == 0 {
		return
	}
	n := p.s.Completion.Peek(p.s.Completion.Len())
	for i := range n {
		f, _ := p.s.umem.take(p.s.Completion.At(i), p.txMark, false)
		if f == nil {
			p.stats.Unknown.Add(1)
			continue
		}
		p.sent--
		pool.Put(f)
	}
	p.s.Completion.Release(n)
}

// Flush lets the kernel transmit.
func (p *Port) Flush() {
	p.submit()
	if p.sent > 0 && !p.gone {
		p.kick()
	}
}

// kick calls the kernel until it took all descriptors or will not take more now. In copy mode one call takes as many as the budget,
// 32 unless set otherwise, and transmits them before it returns. What a call did is read off the ring: older kernels
// return 0 as well when they stopped at a full completion ring.
func (p *Port) kick() {
	unread := p.s.Tx.Unread()
	for unread > 0 && (p.s.busyPoll.Load() || p.s.wantsTx()) {
		errno := p.s.send(p.s.fd)
		p.stats.Kicks.Add(1)
		p.down = errno == unix.ENETDOWN || errno == unix.ENXIO
		p.gone = errno == unix.ENXIO
		if errno == unix.EBUSY { // taken, freed, and its completion on the way: only not transmitted
			p.counters.Drop(DropBusy, 1)
		}
		before := unread
		unread = p.s.Tx.Unread()
		if unread == before {
			// Kept: EAGAIN (SO_SNDBUF, the completion ring or the device's queue is full), ENOBUFS, the interface is
			// down. In zero copy the driver goes on by itself.
			if !p.s.zeroCopy {
				p.stats.Kept.Add(1)
			}
			return
		}
	}
}
