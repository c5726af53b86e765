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
	room := p.room(len(frames), pool)
	for i, f := range frames {
		if f == nil {
			continue
		}
		if p.staged == room {
			p.counters.Drop(p.noRoom(), 1)
			pool.Put(f)
			frames[i] = nil
			continue
		}
		if why, ok := p.fits(f); !ok { // its body may fault, or that of one behind it: what was dropped and counted leaves the vector
			p.counters.Drop(why, 1)
			pool.Put(f)
			frames[i] = nil
			continue
		}
		length := f.HeadLen()
		p.s.umem.give(f, p.txMark)
		p.s.Tx.Set(p.staged, Desc{Addr: f.Address(), Len: uint32(length)})
		frames[i] = nil
		p.staged++
		p.stagedBytes += length
	}
	p.submit()
}

// submit hands the staged descriptors to the kernel. There are some at the beginning of a Transmit or Flush only if the one before
// was ended by a fault, in the body of the frame behind them.
func (p *Port) submit() {
	if p.staged == 0 {
		return
	}
	p.s.Tx.Submit(p.staged)
	p.sent += p.staged
	p.counters.TxPackets.Add(uint64(p.staged))
	p.counters.TxBytes.Add(uint64(p.stagedBytes))
	p.staged, p.stagedBytes = 0, 0
}

// fits makes the frame one private piece that the device may be given, or says why it can't be.
func (p *Port) fits(f *frame.Frame) (why dataplane.Reason, ok bool) {
	switch n := f.Len(); {
	case n > p.maxLen:
		return DropTooLong, false
	case n < ethernetHeader: // the kernel would refuse an empty one and never give it back
		return DropTooShort, false
	case f.Checksum.Needed:
		return DropChecksum, false
	case !f.Gather():
		return DropTooLong, false
	}
	return 0, true
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
		f, _ := p.s.umem.take(p.s.Completion.At(i), p.txMark)
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
	for unread > 0 && p.s.wantsTx() {
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
