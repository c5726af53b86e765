package vnettest

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"

	"github.com/shuntio/shunt/dataplane/shm"
	"github.com/shuntio/shunt/dataplane/virtq"
)

// Header is what lies in front of a frame (virtio 1.2, 5.1.6).
type Header struct {
	Flags, GSOType     uint8
	HdrLen, GSOSize    uint16
	CsumStart, CsumOff uint16
	// Buffers is how many the frame arrived in; a driver sends zero.
	Buffers uint16
}

func (h Header) write(b []byte) {
	b[0], b[1] = h.Flags, h.GSOType
	binary.LittleEndian.PutUint16(b[2:], h.HdrLen)
	binary.LittleEndian.PutUint16(b[4:], h.GSOSize)
	binary.LittleEndian.PutUint16(b[6:], h.CsumStart)
	binary.LittleEndian.PutUint16(b[8:], h.CsumOff)
	binary.LittleEndian.PutUint16(b[10:], h.Buffers)
}

func readHeader(b []byte) Header {
	le := binary.LittleEndian
	return Header{
		Flags: b[0], GSOType: b[1], HdrLen: le.Uint16(b[2:]), GSOSize: le.Uint16(b[4:]),
		CsumStart: le.Uint16(b[6:]), CsumOff: le.Uint16(b[8:]), Buffers: le.Uint16(b[10:]),
	}
}

// Send puts one frame into the transmitq, in as many buffers as it takes, and kicks if the device wants it.
func (p *Pair) Send(frame []byte) error { return p.SendWith(Header{}, frame) }

// SendWith is Send with offloads asked for.
func (p *Pair) SendWith(h Header, frame []byte) error {
	if err := p.reclaim(); err != nil {
		return err
	}
	size := p.guest.options.BufferSize
	n := (HeaderLen + len(frame) + size - 1) / size
	if n > len(p.freeTx) || n > p.Tx.Free() {
		return errFull
	}
	p.scratch = p.scratch[:0]
	first := p.freeTx[len(p.freeTx)-1]
	for k := range n {
		i := p.freeTx[len(p.freeTx)-1]
		p.freeTx = p.freeTx[:len(p.freeTx)-1]
		b, used := p.buffer(1, i), 0
		if k == 0 {
			h.write(b)
			used = HeaderLen
		}
		c := copy(b[used:], frame)
		frame = frame[c:]
		p.scratch = append(p.scratch, virtq.Buffer{Addr: p.address(1, i), Len: uint32(used + c)})
		p.txNext[i] = none
		if k < n-1 {
			p.txNext[i] = p.freeTx[len(p.freeTx)-1]
		}
	}
	head, _ := p.Tx.Add(p.scratch, nil)
	p.txOf[head] = first
	p.PublishTx()
	return nil
}

// transmit makes a chain of tx buffer i, the last of the free ones.
func (p *Pair) transmit(i uint16, n uint32) bool {
	p.scratch = append(p.scratch[:0], virtq.Buffer{Addr: p.address(1, i), Len: n})
	head, ok := p.Tx.Add(p.scratch, nil)
	if ok {
		p.freeTx = p.freeTx[:len(p.freeTx)-1]
		p.txOf[head], p.txNext[i] = i, none
	}
	return ok
}

// PublishTx shows the device what was added, and kicks it.
func (p *Pair) PublishTx() {
	if p.Tx.Publish() {
		shm.Signal(p.kick[1])
	}
}

// reclaim takes back the buffers of frames that were sent.
func (p *Pair) reclaim() error {
	for {
		head, _, ok, err := p.Tx.Used()
		if err != nil || !ok {
			return err
		}
		for i := p.txOf[head]; i != none; i = p.txNext[i] {
			p.freeTx = append(p.freeTx, i)
		}
		p.Sent++
	}
}

// Prepare writes one frame into every tx buffer, for Blast. fill may change each copy; i counts them.
func (p *Pair) Prepare(frame []byte, fill func(i int, frame []byte)) {
	for i := range p.guest.options.QueueSize {
		b := p.buffer(1, uint16(i))
		Header{}.write(b)
		n := copy(b[HeaderLen:], frame)
		if fill != nil {
			fill(i, b[HeaderLen:HeaderLen+n])
		}
	}
}

// Blast puts up to n prepared frames of a length into the transmitq and returns how many. It allocates nothing.
func (p *Pair) Blast(n, length int) (int, error) {
	if err := p.reclaim(); err != nil {
		return 0, err
	}
	n = min(n, len(p.freeTx))
	for k := range n {
		if !p.transmit(p.freeTx[len(p.freeTx)-1], uint32(HeaderLen+length)) {
			n = k
			break
		}
	}
	p.PublishTx()
	return n, nil
}

// offer puts rx buffer i into the receiveq.
func (p *Pair) offer(i uint16) {
	p.scratch = append(p.scratch[:0], virtq.Buffer{Addr: p.address(0, i), Len: uint32(p.guest.options.BufferSize)})
	if head, ok := p.Rx.Add(nil, p.scratch); ok {
		p.rxOf[head] = i
	}
}

// Sink takes up to n buffers that arrived and offers them again, without looking at them; for load. Received may be read atomically meanwhile.
func (p *Pair) Sink(n int) (taken int, err error) {
	for taken < n {
		head, _, ok, e := p.Rx.Used()
		if err = e; e != nil || !ok {
			break
		}
		p.offer(p.rxOf[head])
		taken++
	}
	atomic.StoreUint64(&p.Received, p.Received+uint64(taken))
	p.publishRx()
	return taken, err
}

func (p *Pair) publishRx() {
	if p.Rx.Publish() {
		shm.Signal(p.kick[0])
	}
}

// Recv takes one frame that arrived; nil if there is none. The frame is the caller's.
func (p *Pair) Recv() ([]byte, error) {
	_, frame, err := p.RecvWith()
	return frame, err
}

// RecvWith is Recv with the header.
func (p *Pair) RecvWith() (h Header, frame []byte, err error) {
	for {
		head, n, ok, err := p.Rx.Used()
		if err != nil || !ok {
			return h, nil, err
		}
		i := p.rxOf[head]
		if n > uint32(p.guest.options.BufferSize) {
			return h, nil, fmt.Errorf("device wrote %d bytes into a buffer of %d", n, p.guest.options.BufferSize)
		}
		p.merging = append(p.merging, p.buffer(0, i)[:n]...)
		p.offer(i)
		p.publishRx()
		if p.mergeFor == 0 { // the first buffer of a frame
			if n < HeaderLen {
				return h, nil, fmt.Errorf("device wrote %d bytes, less than a header", n)
			}
			if p.mergeFor = int(readHeader(p.merging).Buffers); p.mergeFor == 0 {
				return h, nil, fmt.Errorf("device says that the frame has no buffers")
			}
		}
		if p.mergeFor--; p.mergeFor == 0 {
			h, frame = readHeader(p.merging), p.merging[HeaderLen:]
			p.merging = nil
			p.Received++
			return h, frame, nil
		}
	}
}
