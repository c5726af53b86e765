package vnet

import (
	"encoding/binary"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/shm"
)

// Transmit puts frames into the guest's receiveq:
//
//	frame ──▶ put ──▶ header, head, body copied into one chain of buffers ──▶ published once, at the end
//	              └─▶ putMerged: into as many chains as it takes (MRG_RXBUF)
//
// It keeps no frame. Those it drops on the way it recycles itself: a fault in a later frame's body counts what is still in the vector.
func (p *Port) Transmit(frames []*frame.Frame, pool *frame.Pool) {
	q := &p.rx
	if q.ring == nil {
		p.counters.Drop(DropGuestNotReady, len(frames))
		return
	}
	q.ring.Rewind() // what a call left that the memory of a frame's sender cut off
	if chains, err := q.ring.Available(); err == nil {
		q.ring.Hint(min(chains, len(frames)))
	}
	packets, bytes, unplaced := 0, 0, 0
	for i, f := range frames {
		chains, err := q.ring.Available()
		if err != nil {
			p.fail(err)
			p.counters.Drop(DropGuestNotReady, packets+len(frames)-i) // with those not published yet
			return
		}
		if chains == 0 {
			unplaced = len(frames) - i
			break
		}
		if err := q.ring.Next(q.chain); err != nil {
			p.fail(err)
			p.counters.Drop(DropGuestNotReady, packets+len(frames)-i) // with those not published yet
			return
		}
		drop, ok := p.put(f)
		if !ok {
			if q.ring == nil { // put failed the port
				p.counters.Drop(drop, packets+len(frames)-i)
				return
			}
			p.counters.Drop(drop, 1)
			pool.Put(f)
			frames[i] = nil
			continue
		}
		packets++
		bytes += f.Len()
	}
	if q.ring.Publish() {
		q.want = true
	}
	p.counters.TxPackets.Add(uint64(packets))
	p.counters.TxBytes.Add(uint64(bytes))
	if unplaced > 0 {
		p.counters.Drop(DropGuestRingFull, unplaced)
	}
}

// put copies a frame into the chain just taken, and further ones if it must and may.
func (p *Port) put(f *frame.Frame) (drop dataplane.Reason, ok bool) {
	q := &p.rx
	head, total := f.Head(), p.header+f.Len()
	if len(q.chain.Writable) == 1 && len(f.Body()) == 0 { // the common case
		buffer := q.chain.Writable[0]
		if len(buffer) >= total {
			p.plainHeader(buffer)
			copy(buffer[p.header:], head)
			q.ring.Complete(q.chain.Head, uint32(total))
			return 0, true
		}
	}
	return p.putMerged(f, total)
}

// plainHeader writes the header of a complete frame in one chain.
func (p *Port) plainHeader(buffer []byte) {
	binary.LittleEndian.PutUint64(buffer, 0)
	if p.header == maxHeader {
		binary.LittleEndian.PutUint32(buffer[8:], 1<<16) // csum_offset 0, num_buffers 1
	} else {
		binary.LittleEndian.PutUint16(buffer[8:], 0)
	}
}

// maxChains bounds the chains of one frame: the longest frame in pages, and a partial one at each end.
const maxChains = frame.MaxLen/4096 + 2

// putMerged is put for everything that is not the common case: scattered buffers, a borrowed body, several chains.
// Chains are only completed when the whole frame has found room; else they all go back to the avail ring.
func (p *Port) putMerged(f *frame.Frame, total int) (drop dataplane.Reason, ok bool) {
	q := &p.rx
	var heads [maxChains]uint16
	var lens [maxChains]uint32
	var header [maxHeader]byte // zeros
	src := source{head: f.Head(), body: f.Body(), header: header[:p.header]}
	var count []byte // where num_buffers goes
	n := 0
	for {
		room := 0
		for _, buffer := range q.chain.Writable {
			if n == 0 && room == 0 && p.header == maxHeader && len(buffer) >= maxHeader {
				count = buffer[10:12]
			}
			room += src.copyTo(buffer)
		}
		heads[n], lens[n] = q.chain.Head, uint32(room)
		n++
		if src.done() {
			break
		}
		more := p.merge && n < maxChains && room > 0
		if more {
			chains, err := q.ring.Available()
			if err != nil {
				p.fail(err)
				return DropGuestNotReady, false
			}
			if chains == 0 {
				p.back(n)
				return DropGuestRingFull, false
			}
			if err := q.ring.Next(q.chain); err != nil {
				p.fail(err)
				return DropGuestNotReady, false
			}
			continue
		}
		p.back(n)
		return DropGuestBuffer, false
	}
	if count == nil && p.header == maxHeader {
		p.back(n) // a driver must not cut the header into pieces unless it is alone in its buffer (virtio 1.2, 5.1.6.3.1)
		return DropGuestBuffer, false
	}
	if count != nil {
		binary.LittleEndian.PutUint16(count, uint16(n))
	}
	for i := range n {
		q.ring.Complete(heads[i], lens[i])
	}
	return 0, true
}

// back returns the n chains taken last.
func (p *Port) back(n int) {
	for range n {
		p.rx.ring.Back()
	}
}

// source is a frame that is copied out piece by piece, its virtio-net header first.
type source struct {
	header, head []byte
	body         [][]byte
	into         int // how much of body[0] is copied
}

func (s *source) done() bool { return len(s.header) == 0 && len(s.head) == 0 && len(s.body) == 0 }

// copyTo fills a buffer as far as the source goes.
func (s *source) copyTo(buffer []byte) (n int) {
	if len(s.header) > 0 {
		c := copy(buffer, s.header)
		s.header, n = s.header[c:], c
	}
	if len(s.head) > 0 && len(s.header) == 0 {
		c := copy(buffer[n:], s.head)
		s.head, n = s.head[c:], n+c
	}
	for len(s.head) == 0 && len(s.header) == 0 && len(s.body) > 0 && n < len(buffer) {
		c := copy(buffer[n:], s.body[0][s.into:])
		n += c
		if s.into += c; s.into == len(s.body[0]) {
			s.body, s.into = s.body[1:], 0
		}
	}
	return n
}

// Flush calls the guest, once a round for each queue that wants it.
func (p *Port) Flush() {
	if p.tx.want {
		p.notify(&p.tx)
	}
	if p.rx.want {
		p.notify(&p.rx)
	}
}

// notify writes the queue's call eventfd. It is non-blocking; full means that the guest has a call it has not looked at.
func (p *Port) notify(q *queue) {
	q.want = false
	if q.call >= 0 {
		p.calls.Add(1)
		shm.Signal(q.call)
	}
}
