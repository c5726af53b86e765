package vxlan

import (
	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/wire"
	"github.com/shuntio/shunt/vxlan/acl"
)

// flood sends a frame to everybody who may want it: the network's other ports, and, if it came from a guest (source is not
// nil), the VTEPs of the flood list or the flat network's wire. Each gets a clone, the last one the frame itself. Unknown unicast
// goes only to those ports that may use addresses nobody told us. What a guest sends to several places is bounded: they did not ask for it, and the copies are
// their worker's work.
func (l *lane) flood(from *dataplane.Link, nw *network, source *port, in **frame.Frame, known place) {
	if source != nil && source.floods != nil && nw.places(source, known) > 1 && !source.floods.Pass(l.worker.Now(), *in) {
		l.drop(from, in, DropFloodLimit)
		return
	}
	l.replicate(from, nw, source, in, known)
}

// places is how many a guest's frame is flooded to, if no filter refuses it.
func (nw *network) places(source *port, known place) int {
	n := len(nw.members) - 1
	if known == nowhere {
		n = len(nw.strangers)
		if !source.antiSpoof {
			n-- // it is one itself
		}
	}
	switch {
	case nw.uplink == nil:
		return n
	case nw.flat:
		return n + 1
	}
	return n + len(nw.flood)
}

// replicate makes the copies.
//
// The frame stays in its slot of the vector until it goes itself: passing on a clone may push out a full vector, which may fault. What reads its
// body is done once, before.
func (l *lane) replicate(from *dataplane.Link, nw *network, source *port, in **frame.Frame, known place) {
	f := *in
	if f.GSO.Type != frame.GSONone {
		l.replicateSegments(from, nw, source, in, known)
		return
	}
	if f.Checksum.Needed && !complete(f) {
		l.drop(from, in, DropHeadTooShort)
		return
	}
	c := copies{lane: l, from: from, frame: f, why: DropNoDestination}
	if source != nil && len(nw.flood) > 0 && nw.flood[0].checksum {
		c.sum = wire.SumPieces(0, f.Head(), f.Body())
	}
	c.ports(nw, source, known)
	if source != nil && nw.uplink != nil {
		c.uplink(nw)
	}
	switch {
	case c.last.link != nil:
	case c.refused:
		*in = nil
		l.worker.Pool().Put(f) // it is counted where it was refused
		return
	default:
		l.drop(from, in, c.why)
		return
	}
	*in = nil
	l.out(from, f, c.last, c.sum)
}

// copies are those of one frame.
type copies struct {
	lane  *lane
	from  *dataplane.Link
	frame *frame.Frame
	sum   uint16
	last  exit // found last: it waits until it is known whether another one follows

	refused bool             // by the rules of some port
	why     dataplane.Reason // it is dropped, if nobody gets it and nobody has refused it
}

func (c *copies) ports(nw *network, source *port, known place) {
	ports := nw.members
	if known == nowhere {
		ports = nw.strangers
	}
	for _, p := range ports {
		if p != source && c.admitted(p) {
			c.to(c.lane.toPort(p, c.frame))
		}
	}
}

// admitted asks a port's filter. A copy that it refuses is counted as one that was dropped there.
func (c *copies) admitted(p *port) bool {
	if p.filter == nil {
		return true
	}
	var v verdict
	why, ok := p.passes(c.lane, acl.In, c.frame, &v)
	switch {
	case ok:
	case v.depends&byIn == 0: // it shows too little to be judged, whoever does it
		c.why = why
	default:
		c.refused = true
		c.lane.worker.Refuse(c.lane.toPort(p, c.frame).link, c.frame, why)
	}
	return ok
}

func (c *copies) uplink(nw *network) {
	if nw.flat {
		c.to(c.lane.toWire(nw.uplink, c.frame))
		return
	}
	for _, t := range nw.flood {
		c.to(c.lane.toVTEP(nw, t, c.frame))
	}
}

// to sends a clone to the exit found before this one; counted, if no frame is free.
func (c *copies) to(e exit) {
	if c.last.link != nil {
		if g := c.lane.worker.Clone(c.frame); g != nil {
			c.lane.out(c.from, g, c.last, c.sum)
		} else {
			c.from.Counters.Drop(DropNoClone, 1)
		}
	}
	c.last = e
}

// replicateSegments cuts a packet that is longer than its path once for all who get it. Its segments are in no vector, so the lane holds the one under way.
func (l *lane) replicateSegments(from *dataplane.Link, nw *network, source *port, in **frame.Frame, known place) {
	if why, ok := l.segmenter.Start(*in); !ok {
		l.drop(from, in, why)
		return
	}
	for {
		g, ok := l.segmenter.Next(l.worker.Pool())
		if !ok {
			break
		}
		l.held, l.heldFrom = g, from
		l.replicate(from, nw, source, &l.held, known)
	}
	l.spend(from, in)
}
