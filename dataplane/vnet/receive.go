package vnet

import (
	"encoding/binary"
	"time"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
)

// maxPieces bounds the buffers one frame of a guest may lie in.
const maxPieces = frame.MaxBody

// Receive takes frames from the guest's transmitq:
//
//	transmitq ──▶ chain of buffers ──▶ take ──▶ head: copied, the first frame.HeadLen bytes
//	                                        └─▶ body: borrowed, until Release publishes the chains as used
func (p *Port) Receive(into []*frame.Frame, pool *frame.Pool) (n int) {
	q := &p.tx
	if q.ring == nil {
		return 0
	}
	chains, err := q.ring.Available()
	if err != nil {
		p.fail(err)
		return 0
	}
	chains = min(chains, len(into), pool.Len())
	q.ring.Hint(chains)
	bytes, taken := 0, 0
	for ; taken < chains; taken++ {
		p.taking = taken + 1
		f := into[n]
		if f == nil {
			f = pool.Get()
			into[n] = f
		}
		if err := q.ring.Next(q.chain); err != nil {
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
func (p *Port) take(f *frame.Frame, buffers [][]byte) (drop dataplane.Reason, ok bool) {
	if len(buffers) == 1 && len(buffers[0]) >= p.header { // the common case: header and frame in one buffer
		buffer := buffers[0]
		if drop, ok = p.offloads(f, buffer[:p.header]); !ok {
			return drop, false
		}
		data := buffer[p.header:]
		switch {
		case len(data) <= frame.HeadLen:
			copy(f.Append(len(data)), data)
		case len(data) <= frame.MaxLen:
			copy(f.Append(frame.HeadLen), data)
			p.borrow(f, data[frame.HeadLen:])
		default:
			return DropTooLong, false
		}
		return DropFarChecksum, p.judged(f)
	}
	return p.takePieces(f, buffers)
}

// takePieces is take for a frame in several buffers; they may be cut anywhere, also within the header.
func (p *Port) takePieces(f *frame.Frame, buffers [][]byte) (drop dataplane.Reason, ok bool) {
	if len(buffers) > maxPieces {
		return DropTooManyPieces, false
	}
	var header [maxHeader]byte
	have := 0
	for len(buffers) > 0 && have < p.header {
		n := copy(header[have:p.header], buffers[0])
		have += n
		if n < len(buffers[0]) {
			buffers = p.rest(buffers, n)
			break
		}
		buffers = buffers[1:]
	}
	if have < p.header {
		return DropBadHeader, false
	}
	if drop, ok = p.offloads(f, header[:p.header]); !ok {
		return drop, false
	}
	for len(buffers) > 0 && f.HeadLen() < frame.HeadLen {
		n := min(len(buffers[0]), frame.HeadLen-f.HeadLen())
		copy(f.Append(n), buffers[0])
		if n < len(buffers[0]) {
			buffers = p.rest(buffers, n)
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
	f.Borrow(p.bodies[first:], length)
	return DropFarChecksum, p.judged(f)
}

// rest cuts n bytes off the first buffer. The slice is the chain's, which is ours until the next one is taken.
func (p *Port) rest(buffers [][]byte, n int) [][]byte {
	buffers[0] = buffers[0][n:]
	return buffers
}

// borrow makes one view the frame's body.
func (p *Port) borrow(f *frame.Frame, view []byte) {
	at := len(p.bodies)
	p.bodies = append(p.bodies, view)
	f.Borrow(p.bodies[at:at+1], len(view))
}

// Virtio-net header fields (virtio 1.2, 5.1.6), little-endian:
//
//	flags u8 | gso_type u8 | hdr_len u16 | gso_size u16 | csum_start u16 | csum_offset u16 | num_buffers u16
const (
	maxHeader    = 12
	legacyHeader = 10 // without num_buffers: neither VERSION_1 nor MRG_RXBUF

	flagNeedsCsum = 1
	gsoNone       = 0
)

// offloads reads what the guest asks for in the header.
func (p *Port) offloads(f *frame.Frame, header []byte) (drop dataplane.Reason, ok bool) {
	first := binary.LittleEndian.Uint64(header)
	if first&0xffff == 0 { // flags and gso_type
		return 0, true
	}
	if gso := byte(first >> 8); gso != gsoNone {
		return DropBadHeader, false // no segmentation offload is offered
	}
	if byte(first)&flagNeedsCsum != 0 {
		if !p.csum {
			return DropBadHeader, false
		}
		f.Checksum = frame.Checksum{
			Needed: true, Start: uint16(first >> 48), Offset: binary.LittleEndian.Uint16(header[8:]),
		}
	}
	return 0, true
}

// judged tells whether the checksum field that the guest left to us lies in the head.
func (p *Port) judged(f *frame.Frame) bool {
	c := f.Checksum
	return !c.Needed || int(c.Start)+int(c.Offset)+2 <= f.HeadLen()
}

// Release gives the chains of the last Receive back to the guest.
func (p *Port) Release() {
	p.bodies = p.bodies[:0]
	if p.tx.ring != nil && p.tx.ring.Publish() {
		p.tx.want = true
	}
}

// Arm asks the guest to kick for frames it sends. Receive buffers are looked for when there is a frame to put in.
func (p *Port) Arm() time.Duration {
	if p.tx.ring != nil {
		p.tx.ring.Arm()
	}
	return dataplane.Forever
}

// Pending tells whether the guest has frames for us.
func (p *Port) Pending() bool { return p.tx.ring != nil && p.tx.ring.Pending() }

// Disarm asks the guest not to kick.
func (p *Port) Disarm() {
	if p.tx.ring != nil {
		p.tx.ring.Disarm()
	}
}
