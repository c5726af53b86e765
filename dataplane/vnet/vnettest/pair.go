package vnettest

import (
	"errors"

	"github.com/shuntio/shunt/dataplane/virtq"
	"github.com/shuntio/shunt/dataplane/vnet"
)

// Pair is the driver's side of a queue pair.
type Pair struct {
	// Rx and Tx are the driver's sides of receiveq and transmitq.
	Rx, Tx *virtq.Driver
	// Sent and Received count frames the device has taken from Tx and put into Rx.
	Sent, Received uint64

	guest    *Guest
	tables   [2][3]int // offsets of the tables: queue, then descriptor, avail, used
	buffers  [2]int    // offset of the first buffer
	kick     [2]int    // eventfds
	call     [2]int
	broken   [2]int
	freeTx   []uint16 // tx buffers that no chain uses
	rxOf     []uint16 // which buffer a chain of the receiveq has, by head
	txOf     []uint16 // the first buffer of a chain of the transmitq, by head
	txNext   []uint16 // the buffer behind a buffer; none
	merging  []byte   // a frame that arrives in several buffers
	mergeFor int      // buffers of it still to come
	scratch  []virtq.Buffer
}

// none is no buffer.
const none = 0xffff

func (p *Pair) eventfds() []*int {
	return []*int{&p.kick[0], &p.kick[1], &p.call[0], &p.call[1], &p.broken[0], &p.broken[1]}
}

// restart begins both queues anew.
func (p *Pair) restart() error {
	o := &p.guest.options
	n, q := o.QueueSize, 0
	for p.guest.Pairs[q] != p {
		q++
	}
	driver := func(q int) (*virtq.Driver, error) {
		return virtq.NewDriver(virtq.DriverOptions{
			Layout: p.guest.Layout(q), Size: n, EventIdx: o.Features&vnet.FeatureEventIdx != 0,
			Packed: o.Features&vnet.FeaturePacked != 0, InOrder: o.Features&vnet.FeatureInOrder != 0,
		})
	}
	var err error
	if p.Rx, err = driver(2 * q); err != nil {
		return err
	}
	if p.Tx, err = driver(2*q + 1); err != nil {
		return err
	}
	p.rxOf, p.txOf, p.txNext = make([]uint16, n), make([]uint16, n), make([]uint16, n)
	p.freeTx, p.scratch = p.freeTx[:0], make([]virtq.Buffer, 0, n)
	for i := range n {
		p.freeTx = append(p.freeTx, uint16(n-1-i))
		p.offer(uint16(i))
	}
	p.Rx.Publish()
	p.merging, p.mergeFor = nil, 0
	return nil
}

func (p *Pair) buffer(q int, i uint16) []byte {
	size := p.guest.options.BufferSize
	at := p.buffers[q] + int(i)*size
	return p.guest.Memory[at : at+size]
}

func (p *Pair) address(q int, i uint16) uint64 {
	return GuestBase + uint64(p.buffers[q]) + uint64(i)*uint64(p.guest.options.BufferSize)
}

// errFull is returned by Send if not enough buffers are free.
var errFull = errors.New("transmit queue is full")
