package vxlan

import (
	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/offload"
	"github.com/shuntio/shunt/dataplane/wire"
)

// The last part of a frame's way, when it is known where it goes:
//
//	deliver ──▶ what the link does not take (Link.Offloads): a checksum left open is filled in,
//	  │         a packet longer than its path is cut, each segment going on by itself
//	  └──▶ out: a tunnel's outer headers in front ──▶ Worker.Send

// exit is where a frame leaves the switch: a link, and for another machine the tunnel to it.
type exit struct {
	link *dataplane.Link
	to   *tunnel // nil: the frame goes as it is
	vni  uint32
	tos  uint8 // the network's tosMask
	// source is who is told that a packet is too long for the tunnel; nil: nobody.
	source *port
}

// toPort is the exit to a port here.
func (l *lane) toPort(p *port, f *frame.Frame) exit { return exit{link: p.ways[l.number].pick(l, f)} }

// toWire is the exit to the wire of a flat network.
func (l *lane) toWire(u *uplink, f *frame.Frame) exit { return exit{link: u.ways[l.number].pick(l, f)} }

// toVTEP is the exit to another machine.
func (l *lane) toVTEP(nw *network, t *tunnel, f *frame.Frame) exit {
	return exit{link: nw.uplink.ways[l.number].pick(l, f), to: t, vni: nw.vni, tos: nw.tosMask}
}

// takes is what an exit takes beside complete frames. Nobody cuts packets inside a tunnel, and an outer checksum needs the inner one.
func (e exit) takes() uint32 {
	o := e.link.Offloads.Load()
	switch {
	case e.to == nil:
		return o
	case e.to.checksum:
		return 0
	}
	return o & dataplane.OffloadChecksum
}

// deliver makes a frame such as its exit takes it, and sends it. It stays in its slot of the vector while its body is read, which may fault.
func (l *lane) deliver(from *dataplane.Link, in **frame.Frame, e exit) {
	f := *in
	if e.to != nil && e.to.ready && f.GSO.Type == frame.GSONone && f.Len() > e.to.maxFrame {
		l.tooLong(from, in, e)
		return
	}
	if f.Checksum.Needed && offload.Needs(f)&^e.takes() != 0 {
		if f.GSO.Type != frame.GSONone {
			l.cut(from, in, e)
			return
		}
		if !complete(f) {
			l.drop(from, in, DropHeadTooShort)
			return
		}
	}
	sum := uint16(0)
	if e.to != nil && e.to.checksum {
		sum = wire.SumPieces(0, f.Head(), f.Body())
	}
	*in = nil
	l.out(from, f, e, sum)
}

// out sends a frame that lacks nothing but the outer headers; sum is that of its bytes, if they need it.
func (l *lane) out(from *dataplane.Link, f *frame.Frame, e exit, sum uint16) {
	if t := e.to; t != nil {
		if why, ok := l.encapsulate(t, f, e, sum); !ok {
			l.worker.Drop(from, f, why)
			return
		}
	}
	l.worker.Send(e.link, f)
}

func (l *lane) encapsulate(t *tunnel, f *frame.Frame, e exit, sum uint16) (dataplane.Reason, bool) {
	switch {
	case !t.ready:
		return DropNoNextHop, false
	case f.Len() > t.maxFrame:
		return DropOverMTU, false
	}
	l.hash(f)
	return DropNoHeadroom, t.encapsulate(f, e.vni, e.tos, sum)
}

// cut sends the segments of a packet that is longer than its path. What the packet was judged to be, they are.
func (l *lane) cut(from *dataplane.Link, in **frame.Frame, e exit) {
	if longest, why, ok := offload.Check(*in); !ok {
		l.drop(from, in, why)
		return
	} else if e.to != nil && e.to.ready && longest > e.to.maxFrame {
		l.tooLong(from, in, e)
		return
	}
	if why, ok := l.segmenter.Start(*in); !ok {
		l.drop(from, in, why)
		return
	}
	for {
		g, ok := l.segmenter.Next(l.worker.Pool())
		if !ok {
			break
		}
		sum := uint16(0)
		if e.to != nil && e.to.checksum {
			sum = wire.SumPieces(0, g.Head(), g.Body())
		}
		l.out(from, g, e, sum)
	}
	l.spend(from, in)
}

// tooLong drops a frame that the tunnel does not take, and tells its source.
func (l *lane) tooLong(from *dataplane.Link, in **frame.Frame, e exit) {
	l.tooBig(from, e.source, *in, e.to.maxFrame)
	l.drop(from, in, DropOverMTU)
}

// spend puts a packet back that was cut, and counts the segments that there was no frame for.
func (l *lane) spend(from *dataplane.Link, in **frame.Frame) {
	if left := l.segmenter.Left(); left > 0 {
		from.Counters.Drop(offload.DropNoSegment, left)
	}
	f := *in
	*in = nil
	l.worker.Pool().Put(f)
}

// drop ends the way of a frame that is in its slot of the vector.
func (l *lane) drop(from *dataplane.Link, in **frame.Frame, why dataplane.Reason) {
	f := *in
	*in = nil
	l.worker.Drop(from, f, why)
}

// hash is the frame's flow hash.
func (l *lane) hash(f *frame.Frame) uint32 {
	if f.Hash == 0 {
		f.Hash = wire.FlowHash(f.Head(), l.sw.seed)
	}
	return f.Hash
}

// complete fills in a checksum that the sender left open.
func complete(f *frame.Frame) bool {
	ok := wire.Complete(f.Head(), f.Body(), f.Checksum.Start, f.Checksum.Offset)
	f.Checksum = frame.Checksum{}
	return ok
}
