package vnet

import (
	"encoding/binary"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
)

// maxChains bounds the chains of one frame: the longest one in buffers of 512 bytes, of which no driver has smaller ones, and one more.
const maxChains = frame.MaxLen/512 + 1

// placed is a chain that holds a part of the frame.
type placed struct {
	head   uint16
	length uint32
}

// scatter is put for everything that is not the common case: scattered buffers, a body, several chains, work left to the guest. The
// first chain is taken. Chains are only completed when the whole frame has found room; else they all go back to the avail ring.
func (p *Pair) scatter(f *frame.Frame, total int) (drop dataplane.Reason, ok bool) {
	q := &p.rx
	var header [maxHeader]byte
	src := source{head: f.Head(), body: f.Body(), header: header[:p.offers.header]}
	if drop, ok = p.offers.write(f, src.header); !ok {
		q.ring.Back(0)
		return drop, false
	}
	var count []byte // where num_buffers goes
	for n := 0; ; n++ {
		room := 0
		for _, buffer := range q.chain.Writable {
			if n == 0 && room == 0 && p.offers.header == maxHeader && len(buffer) >= maxHeader {
				count = buffer[10:12]
			}
			room += src.copyTo(buffer)
		}
		p.placed[n] = placed{q.chain.Head, uint32(room)}
		if total -= room; total == 0 {
			return p.finish(count, n+1)
		}
		if !p.offers.merge || n+1 == maxChains || room == 0 {
			p.back(n + 1)
			return DropGuestBuffer, false
		}
		chains, err := q.ring.Available()
		if err == nil && chains == 0 {
			p.back(n + 1)
			return DropGuestRingFull, false
		}
		if err == nil {
			err = q.ring.Next(q.chain)
		}
		if err != nil {
			p.fail(err)
			return DropGuestNotReady, false
		}
	}
}

// finish completes the n chains that hold a frame.
func (p *Pair) finish(count []byte, n int) (drop dataplane.Reason, ok bool) {
	if count == nil && p.offers.header == maxHeader {
		p.back(n) // a driver must not cut the header into pieces unless it is alone in its buffer (virtio 1.2, 5.1.6.3.1)
		return DropGuestBuffer, false
	}
	if count != nil {
		binary.LittleEndian.PutUint16(count, uint16(n))
	}
	for _, c := range p.placed[:n] {
		p.rx.ring.Complete(c.head, c.length)
	}
	return 0, true
}

// back returns the n chains that were placed, the last one first. A log hears of what was written to them and of no more: a chain may be as long as all of the
// guest's memory.
func (p *Pair) back(n int) {
	for i := range n {
		p.rx.ring.Back(p.placed[n-1-i].length)
	}
}

// source is a frame that is copied out piece by piece, its virtio-net header first.
type source struct {
	header, head []byte
	body         [][]byte
	into         int // how much of body[0] is copied
}

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
