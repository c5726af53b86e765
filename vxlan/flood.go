package vxlan

import (
	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
)

// flooded sends a frame to everybody who may want it: the network's other ports, and, if it came from a guest (source is not
// nil), the VTEPs of the flood list or the flat network's wire. Each gets a clone, the last one the frame itself. Unknown unicast
// goes only to those ports that may use addresses nobody told us.
//
// The frame stays in its slot of the vector until it goes itself: passing on a clone may push out a full vector, which may fault.
func (nw *network) flooded(w *dataplane.Worker, from *dataplane.Link, source *port, in **frame.Frame, v verdict) {
	f := *in
	ports := nw.members
	if v.to == nowhere {
		ports = nw.strangers
	}
	// The destination found last waits in toPort, toTunnel or toWire until it is known whether another one follows.
	var toPort *port
	var toTunnel *tunnel
	toWire := false
	for _, p := range ports {
		if p == source {
			continue
		}
		if toPort != nil {
			if g := clone(w, from, f); g != nil {
				w.Send(toPort.link, g)
			}
		}
		toPort = p
	}
	if source != nil && nw.uplink != nil {
		if toPort != nil && (nw.flat || len(nw.flood) > 0) {
			if g := clone(w, from, f); g != nil {
				w.Send(toPort.link, g)
			}
			toPort = nil
		}
		toWire = nw.flat
		for _, t := range nw.flood {
			if toTunnel != nil {
				if g := clone(w, from, f); g != nil {
					nw.tunnelled(w, from, g, toTunnel, v.sum)
				}
			}
			toTunnel = t
		}
	}

	*in = nil
	switch {
	case toPort != nil:
		w.Send(toPort.link, f)
	case toTunnel != nil:
		nw.tunnelled(w, from, f, toTunnel, v.sum)
	case toWire:
		w.Send(nw.uplink.link, f)
	default:
		w.Drop(from, f, DropNoDestination)
	}
}

// clone copies a frame; nil, counted, if none is free.
func clone(w *dataplane.Worker, from *dataplane.Link, f *frame.Frame) *frame.Frame {
	g := w.Clone(f)
	if g == nil {
		from.Counters.Drop(DropNoClone, 1)
	}
	return g
}
