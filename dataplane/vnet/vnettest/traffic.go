package vnettest

import (
	"encoding/binary"
	"fmt"

	"github.com/shuntio/shunt/dataplane/shm"
	"github.com/shuntio/shunt/dataplane/virtq"
)

// Header is what a guest writes in front of a frame (virtio 1.2, 5.1.6).
type Header struct {
	Flags, GSOType     uint8
	HdrLen, GSOSize    uint16
	CsumStart, CsumOff uint16
}

func (h Header) write(b []byte) {
	b[0], b[1] = h.Flags, h.GSOType
	binary.LittleEndian.PutUint16(b[2:], h.HdrLen)
	binary.LittleEndian.PutUint16(b[4:], h.GSOSize)
	binary.LittleEndian.PutUint16(b[6:], h.CsumStart)
	binary.LittleEndian.PutUint16(b[8:], h.CsumOff)
	binary.LittleEndian.PutUint16(b[10:], 0)
}

// Send puts one frame, not longer than a buffer, into the transmitq and kicks if the device wants it.
func (g *Guest) Send(frame []byte) error { return g.SendWith(Header{}, frame) }

// SendWith is Send with offloads asked for.
func (g *Guest) SendWith(h Header, frame []byte) error {
	if len(frame)+HeaderLen > g.options.BufferSize {
		return fmt.Errorf("frame of %d bytes does not fit a buffer", len(frame))
	}
	if err := g.reclaim(); err != nil {
		return err
	}
	if len(g.freeTx) == 0 {
		return errFull
	}
	i := g.freeTx[len(g.freeTx)-1]
	b := g.buffer(1, i)
	h.write(b)
	n := copy(b[HeaderLen:], frame)
	if !g.transmit(i, uint32(HeaderLen+n)) {
		return errFull
	}
	g.PublishTx()
	return nil
}

// transmit makes a chain of tx buffer i, the last of the free ones.
func (g *Guest) transmit(i uint16, n uint32) bool {
	g.scratch[0] = virtq.Buffer{Addr: g.address(1, i), Len: n}
	head, ok := g.Tx.Add(g.scratch[:], nil)
	if ok {
		g.freeTx = g.freeTx[:len(g.freeTx)-1]
		g.txOf[head] = i
	}
	return ok
}

// PublishTx shows the device what was added, and kicks it.
func (g *Guest) PublishTx() {
	if g.Tx.Publish() {
		shm.Signal(g.kick[1])
	}
}

// reclaim takes back the buffers of frames that were sent.
func (g *Guest) reclaim() error {
	for {
		head, _, ok, err := g.Tx.Used()
		if err != nil || !ok {
			return err
		}
		g.freeTx = append(g.freeTx, g.txOf[head])
		g.Sent++
	}
}

// Prepare writes one frame into every tx buffer, for Blast. fill may change each copy; i counts them.
func (g *Guest) Prepare(frame []byte, fill func(i int, frame []byte)) {
	for i := range g.options.QueueSize {
		b := g.buffer(1, uint16(i))
		Header{}.write(b)
		n := copy(b[HeaderLen:], frame)
		if fill != nil {
			fill(i, b[HeaderLen:HeaderLen+n])
		}
	}
}

// Blast puts up to n prepared frames of a length into the transmitq and returns how many. It allocates nothing.
func (g *Guest) Blast(n, length int) (int, error) {
	if err := g.reclaim(); err != nil {
		return 0, err
	}
	n = min(n, len(g.freeTx))
	for k := range n {
		if !g.transmit(g.freeTx[len(g.freeTx)-1], uint32(HeaderLen+length)) {
			n = k
			break
		}
	}
	g.PublishTx()
	return n, nil
}

// offer puts rx buffer i into the receiveq.
func (g *Guest) offer(i uint16) {
	g.scratch[0] = virtq.Buffer{Addr: g.address(0, i), Len: uint32(g.options.BufferSize)}
	if head, ok := g.Rx.Add(nil, g.scratch[:]); ok {
		g.rxOf[head] = i
	}
}

// Sink takes up to n buffers that arrived and offers them again, without looking at them; for load.
func (g *Guest) Sink(n int) (int, error) {
	for k := range n {
		head, _, ok, err := g.Rx.Used()
		if err != nil || !ok {
			g.publishRx()
			return k, err
		}
		g.Received++
		g.offer(g.rxOf[head])
	}
	g.publishRx()
	return n, nil
}

func (g *Guest) publishRx() {
	if g.Rx.Publish() {
		shm.Signal(g.kick[0])
	}
}

// Recv takes one frame that arrived; nil if there is none. The frame is the caller's.
func (g *Guest) Recv() ([]byte, error) {
	for {
		head, n, ok, err := g.Rx.Used()
		if err != nil || !ok {
			return nil, err
		}
		i := g.rxOf[head]
		if n > uint32(g.options.BufferSize) {
			return nil, fmt.Errorf("device wrote %d bytes into a buffer of %d", n, g.options.BufferSize)
		}
		piece := append([]byte(nil), g.buffer(0, i)[:n]...)
		g.offer(i)
		g.publishRx()
		if g.mergeFor == 0 { // the first buffer of a frame
			if n < HeaderLen {
				return nil, fmt.Errorf("device wrote %d bytes, less than a header", n)
			}
			g.mergeFor = int(binary.LittleEndian.Uint16(piece[10:]))
			if g.mergeFor == 0 {
				return nil, fmt.Errorf("device says that the frame has no buffers")
			}
			g.merging = piece[HeaderLen:]
		} else {
			g.merging = append(g.merging, piece...)
		}
		if g.mergeFor--; g.mergeFor == 0 {
			g.Received++
			return g.merging, nil
		}
	}
}

// CallFD is the eventfd that the device signals for a queue.
func (g *Guest) CallFD(q int) int { return g.call[q] }

// KickFD is the eventfd that the guest signals for a queue.
func (g *Guest) KickFD(q int) int { return g.kick[q] }

func (g *Guest) buffer(q int, i uint16) []byte {
	at := g.buffers[q] + int(i)*g.options.BufferSize
	return g.Memory[at : at+g.options.BufferSize]
}

func (g *Guest) address(q int, i uint16) uint64 {
	return GuestBase + uint64(g.buffers[q]) + uint64(i)*uint64(g.options.BufferSize)
}
