package vxlan

import (
	"encoding/binary"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/offload"
	"github.com/shuntio/shunt/dataplane/wire"
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
	p := l.now.ports[g.slot]
	if p == nil {
		dropAll(w, from, frames)
		return
	}
	for i, f := range frames {
		v := p.decide(l, f)
		switch {
		case v.to.isPort():
			l.deliver(from, &frames[i], l.toPort(l.now.ports[v.to], f))
		case v.to.isVTEP():
			l.deliver(from, &frames[i], l.toVTEP(p.network, l.now.vteps[v.to.vtep()], f))
		case v.to == atUplink:
			l.deliver(from, &frames[i], l.toWire(p.network.uplink, f))
		case v.to == dropped:
			l.drop(from, &frames[i], v.why)
		case v.to == everywhere && p.network.answer(f):
			frames[i] = nil
			w.Send(from, f)
		default: // everywhere or nowhere
			l.flood(from, p.network, p, &frames[i], v.to)
		}
	}
}

// verdict is what was decided of a frame.
type verdict struct {
	to  place
	why dataplane.Reason // if dropped
}

func drop(why dataplane.Reason) verdict { return verdict{to: dropped, why: why} }

// decide judges a frame and looks up its destination.
func (p *port) decide(l *lane, f *frame.Frame) verdict {
	head := f.Head()
	if len(head) < wire.EthernetLen {
		return drop(DropMalformed)
	}
	if why, ok := p.judge(l, f); !ok {
		return drop(why)
	}
	nw := p.network
	to := nw.lookup(l, wire.Ethernet(head).Destination())
	switch {
	case to == atPort(p.slot):
		return drop(DropHairpin)
	case to == nowhere && nw.flat && nw.uplink != nil && len(nw.strangers) == 0:
		to = atUplink // the only one to flood to
	}
	return verdict{to: to}
}

// judge tells whether the port may send the frame, and learns its source.
func (p *port) judge(l *lane, f *frame.Frame) (dataplane.Reason, bool) {
	head, nw := f.Head(), p.network
	if source := wire.Ethernet(head).Source(); source != p.mac {
		if p.antiSpoof {
			return DropSpoofedMAC, false
		}
		if source.IsMulticast() {
			return DropMalformed, false
		}
		nw.learn(l, source, atPort(p.slot), p.rings[l.number])
	}
	if p.antiSpoof {
		if why, bad := p.spoofed(head, f.Len() == len(head)); bad {
			return why, false
		}
	}
	return nw.admits(f)
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

// lookup finds the place of a destination.
func (nw *network) lookup(l *lane, mac wire.MAC) place {
	if mac.IsMulticast() {
		return everywhere
	}
	if at := nw.static.place(mac); at != nowhere {
		return at
	}
	at := nw.learned[l.number].place(mac, l.tick)
	switch {
	case at.isPort():
		if p := l.now.ports[at]; p == nil || p.network != nw {
			return nowhere // the port has just left, and its entries are about to
		}
	case at.isVTEP() && l.now.vteps[at.vtep()] == nil:
		return nowhere
	}
	return at
}

// learn enters the source of a frame, unless its place was configured.
func (nw *network) learn(l *lane, mac wire.MAC, at place, owner *ring) {
	if !nw.learning || nw.static.place(mac) != nowhere {
		return
	}
	learned := nw.learned[l.number]
	was, news := learned.learn(mac, at, l.tick, owner)
	if was != nowhere {
		nw.left(l.now, l.number, was)
	}
	if news && len(l.sw.lanes) > 1 && !(owner.mayTell(l.tick) && l.tell(nw, mac, at)) {
		learned.untold(mac)
	}
}

// dropAll is for a link that is attached to nothing.
func dropAll(w *dataplane.Worker, from *dataplane.Link, frames []*frame.Frame) {
	for i, f := range frames {
		frames[i] = nil
		w.Drop(from, f, DropDetached)
	}
}
