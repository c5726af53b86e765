package vxlan

import (
	"encoding/binary"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/offload"
	"github.com/shuntio/shunt/dataplane/wire"
	"github.com/shuntio/shunt/vxlan/acl"
)

// guestPort is the forwarder of a guest's links.
type guestPort struct {
	sw   *Switch
	slot int
}

// Forward sends each frame where its destination is.
//
// A frame stays in its slot of the vector until everything that reads borrowed memory is done, since that may fault; what is still
// in the vector then is not lost.
func (g *guestPort) Forward(w *dataplane.Worker, from *dataplane.Link, frames []*frame.Frame) {
	l := g.sw.begin(w)
	if g.slot >= len(l.now.ports) || l.now.ports[g.slot] == nil { // not yet, or not any more
		dropAll(w, from, frames)
		return
	}
	p := l.now.ports[g.slot]
	nw, flows := p.network, p.flows[l.number]
	l.key.source, l.key.wide = address{}, false
	for i, f := range frames {
		known := l.recall(flows, nw, p, f)
		if known != nil {
			l.sendKnown(from, &frames[i], nw, p, known)
			continue
		}
		v := p.decide(l, f)
		l.keep(flows, nw, p, f, v)
		l.send(from, &frames[i], nw, p, v)
	}
	l.end()
}

// verdict is what was decided of a frame.
type verdict struct {
	to      place
	rules   ruling           // of the filters that judged it
	why     dataplane.Reason // if dropped, or if depends has byDenial
	depends depends
	keep    bool // it holds for other frames of the flow, too
}

func drop(why dataplane.Reason) verdict { return verdict{to: dropped, why: why} }

// send puts a frame on the way that was decided. source is nil if it came from the wire.
func (l *lane) send(from *dataplane.Link, in **frame.Frame, nw *network, source *port, v verdict) {
	switch f := *in; {
	case v.depends&(byDenial|byIn) == byDenial|byIn:
		l.drop(l.toPort(l.now.ports[v.to], f).link, in, v.why)
	case v.depends&byDenial != 0 || v.to == dropped:
		if v.why == DropOverMTU && source != nil {
			l.tooBig(from, source, f, nw.maxFrame)
		}
		l.drop(from, in, v.why)
	case v.to.isPort():
		l.deliver(from, in, l.toPort(l.now.ports[v.to], f))
	case v.to.isVTEP():
		t := l.now.vteps[v.to.vtep()]
		if t == nil {
			l.drop(from, in, DropNoNextHop) // it has just left
			return
		}
		e := l.toVTEP(nw, t, f)
		e.source = source
		l.deliver(from, in, e)
	case v.to == atUplink:
		l.deliver(from, in, l.toWire(nw.uplink, f))
	case v.to == everywhere && source != nil && nw.answer(f):
		*in = nil
		l.worker.Send(from, f)
	default: // everywhere or nowhere
		l.flood(from, nw, source, in, v.to)
	}
}

// decide judges a guest's frame and looks up its destination.
func (p *port) decide(l *lane, f *frame.Frame) verdict {
	l.anew()
	if f.HeadLen() < wire.EthernetLen {
		return drop(DropMalformed)
	}
	learned, why, ok := p.judge(l, f)
	if !ok {
		return drop(why)
	}
	v := verdict{keep: true}
	if learned {
		v.depends = bySource
	}
	if p.filter != nil {
		if why, ok := p.passes(l, acl.Out, f, &v); !ok {
			v.why = why
			return v
		}
	}
	nw := p.network
	nw.route(l, f, &v)
	switch {
	case v.to == atPort(p.slot):
		return drop(DropHairpin)
	case v.to == nowhere && nw.flat && nw.uplink != nil && len(nw.strangers) == 0:
		v.to = atUplink // the only one to flood to
	}
	return v
}

// route finds the place of a frame's destination, and asks the filter of the port there.
func (nw *network) route(l *lane, f *frame.Frame, v *verdict) {
	to, learned := nw.lookup(l, wire.Ethernet(f.Head()).Destination())
	v.to, v.keep = to, v.keep && to != nowhere && to != everywhere
	if learned {
		v.depends |= byDestination
	}
	if to.isPort() {
		if q := l.now.ports[to]; q.filter != nil {
			v.why, _ = q.passes(l, acl.In, f, v)
		}
	}
}

// judge tells whether the port may send the frame, and learns its source, if that is to be learned.
func (p *port) judge(l *lane, f *frame.Frame) (learned bool, why dataplane.Reason, ok bool) {
	head, nw := f.Head(), p.network
	if source := wire.Ethernet(head).Source(); source != p.mac {
		if p.antiSpoof {
			return false, DropSpoofedMAC, false
		}
		if source.IsMulticast() {
			return false, DropMalformed, false
		}
		learned = nw.learn(l, source, atPort(p.slot), p.rings[l.number])
	}
	if p.antiSpoof {
		if why, bad := p.spoofed(head, f.Len() == len(head)); bad {
			return false, why, false
		}
	}
	why, ok = nw.admits(f)
	return learned, why, ok
}

// admits tells whether a frame may be in the network at all. Of a packet that is to be cut its segments are judged.
func (nw *network) admits(f *frame.Frame) (dataplane.Reason, bool) {
	length := f.Len()
	if f.GSO.Type != frame.GSONone {
		longest, why, ok := offload.Check(f)
		if !ok {
			return why, false
		}
		length = longest
	}
	if length <= nw.maxFrame && !nw.dropTagged {
		return 0, true
	}
	head := f.Head()
	if length > nw.maxFrame && length > nw.maxFrame+wire.VLANLen*tags(head) {
		return DropOverMTU, false
	}
	if nw.dropTagged && tags(head) > 0 {
		return DropTagged, false
	}
	return 0, true
}

// tags counts the VLAN tags of a frame, up to two.
func tags(head []byte) (n int) {
	for at := 12; n < wire.MaxTags && len(head) >= at+2; at += wire.VLANLen {
		if t := binary.BigEndian.Uint16(head[at:]); t != wire.EtherTypeVLAN && t != wire.EtherTypeQinQ {
			break
		}
		n++
	}
	return n
}

// lookup finds the place of a destination, and tells whether it was learned.
func (nw *network) lookup(l *lane, mac wire.MAC) (at place, learned bool) {
	if mac.IsMulticast() {
		return everywhere, false
	}
	if at := nw.static.place(mac); at != nowhere {
		return at, false
	}
	at = nw.learned[l.number].place(mac, l.tick)
	switch {
	case at.isPort():
		if p := l.now.ports[at]; p == nil || p.network != nw || p.rings == nil {
			return nowhere, false // the port has just left, and its entries are about to
		}
	case at.isVTEP() && l.now.vteps[at.vtep()] == nil:
		return nowhere, false
	}
	return at, true
}

// learn enters the source of a frame, unless its place was configured or nothing is learned.
func (nw *network) learn(l *lane, mac wire.MAC, at place, owner *ring) bool {
	if !nw.learning || nw.static.place(mac) != nowhere {
		return false
	}
	learned := nw.learned[l.number]
	was, news := learned.learn(mac, at, l.tick, owner)
	if was != nowhere {
		nw.left(l.now, l.number, was)
	}
	if news && len(l.sw.lanes) > 1 && !(owner.mayTell(l.tick) && l.tell(nw, mac, at)) {
		learned.untold(mac)
	}
	return true
}

// dropAll is for a link that is attached to nothing.
func dropAll(w *dataplane.Worker, from *dataplane.Link, frames []*frame.Frame) {
	for i, f := range frames {
		frames[i] = nil
		w.Drop(from, f, DropDetached)
	}
}
