package dataplanetest

import (
	"bytes"
	"time"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
)

// Packet is a frame as a test writes it.
type Packet struct {
	Bytes []byte
	// Checksum is what the sender left open.
	Checksum frame.Checksum
	// GSO says how it is to be cut.
	GSO frame.GSO
	// Head is how many bytes are private; the rest is borrowed, in pieces of Piece bytes. Zero: as much as a chunk takes,
	// and pieces of 1000.
	Head, Piece int
}

// Sent is a frame that a Port was told to transmit.
type Sent struct {
	Bytes    []byte
	Checksum frame.Checksum
	GSO      frame.GSO
}

// Port is a dataplane.Port that receives what a test feeds it and keeps what it transmits. Use it from the goroutine that drives
// the worker, or between rounds.
type Port struct {
	// Discard forgets what is transmitted, for benchmarks; it is counted all the same.
	Discard bool
	// Counters are the link's.
	Counters *dataplane.Counters

	fed    []Packet
	sent   []Sent
	pieces [][]byte
}

// NewLink makes a fake port and the link it is behind, not yet added to a worker.
func NewLink(name string) (*dataplane.Link, *Port) {
	p := &Port{Counters: new(dataplane.Counters)}
	return &dataplane.Link{Name: name, Port: p, Counters: p.Counters}, p
}

// Feed queues packets to be received.
func (p *Port) Feed(packets ...Packet) { p.fed = append(p.fed, packets...) }

// FeedBytes queues complete frames to be received.
func (p *Port) FeedBytes(frames ...[]byte) {
	for _, b := range frames {
		p.Feed(Packet{Bytes: b})
	}
}

// Waiting is how many packets are fed and not yet received.
func (p *Port) Waiting() int { return len(p.fed) }

// Sent returns what was transmitted since the last call.
func (p *Port) Sent() []Sent {
	sent := p.sent
	p.sent = nil
	return sent
}

// Receive takes what was fed, as far as frames are free.
func (p *Port) Receive(into []*frame.Frame, pool *frame.Pool) (n int) {
	for n < len(into) && len(p.fed) > 0 {
		f := pool.Get()
		if f == nil {
			break
		}
		into[n] = f
		n++
		p.fill(f, p.fed[0])
		p.fed = p.fed[1:]
	}
	return n
}

func (p *Port) fill(f *frame.Frame, from Packet) {
	head, piece := from.Head, from.Piece
	if head == 0 || head > len(from.Bytes) {
		head = min(len(from.Bytes), f.Room())
	}
	if piece == 0 {
		piece = 1000
	}
	copy(f.Append(head), from.Bytes[:head])
	if rest := from.Bytes[head:]; len(rest) > 0 {
		first := len(p.pieces)
		for b := rest; len(b) > 0; b = b[min(piece, len(b)):] {
			p.pieces = append(p.pieces, b[:min(piece, len(b))])
		}
		f.Borrow(p.pieces[first:len(p.pieces):len(p.pieces)], len(rest))
	}
	f.Checksum, f.GSO = from.Checksum, from.GSO
	p.Counters.RxPackets.Add(1)
	p.Counters.RxBytes.Add(uint64(len(from.Bytes)))
}

// Release forgets the borrowed pieces.
func (p *Port) Release() { p.pieces = nil }

// Transmit keeps a copy of each frame.
func (p *Port) Transmit(frames []*frame.Frame, _ *frame.Pool) {
	p.Counters.TxPackets.Add(uint64(len(frames)))
	if p.Discard {
		return
	}
	for _, f := range frames {
		p.Counters.TxBytes.Add(uint64(f.Len()))
		b := bytes.Clone(f.Head())
		for _, piece := range f.Body() {
			b = append(b, piece...)
		}
		p.sent = append(p.sent, Sent{Bytes: b, Checksum: f.Checksum, GSO: f.GSO})
	}
}

// Flush does nothing: Transmit has done it.
func (p *Port) Flush() {}

// Arm lets the worker sleep a millisecond: nobody wakes it for what is fed.
func (p *Port) Arm() time.Duration { return time.Millisecond }

// Pending tells whether something is fed.
func (p *Port) Pending() bool { return len(p.fed) > 0 }

// Disarm does nothing.
func (p *Port) Disarm() {}

// Fault is never this port's.
func (p *Port) Fault(uintptr) bool { return false }
