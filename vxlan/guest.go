package vxlan

import (
	"encoding/binary"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/wire"
)

// guestPort is the forwarder of a guest's link.
type guestPort struct {
	sw   *Switch
	slot int
}

// Forward sends each frame where its destination is.
//
// A frame stays in its slot of the vector until everything that reads borrowed memory is done, since that may fault; what is still
// in the vector then is not lost.
func (g *guestPort) Forward(w *dataplane.Worker, from *dataplane.Link, frames []*frame.Frame) {
	now := g.sw.current.Load()
	p := now.ports[g.slot]
	if p == nil {
		dropAll(w, from, frames)
		return
	}
	tick := uint32(w.Now() >> tickShift)
	for i, f := range frames {
		v := p.decide(now, f, tick, g.sw.seed)
		switch {
		case v.to.isPort():
			frames[i] = nil
			w.Send(now.ports[v.to].link, f)
		case v.to.isVTEP():
			frames[i] = nil
			p.network.tunnelled(w, from, f, now.vteps[v.to.vtep()], v.sum)
		case v.to == atUplink:
			frames[i] = nil
			w.Send(p.network.uplink.link, f)
		case v.to == dropped:
			frames[i] = nil
			w.Drop(from, f, v.why)
		default: // everywhere or nowhere
			p.network.flooded(w, from, p, &frames[i], v)
		}
	}
}

// verdict is what was decided of a frame.
type verdict struct {
	to  place
	sum uint16           // of the frame's bytes, if the way needs it
	why dataplane.Reason // if dropped
}

func drop(why dataplane.Reason) verdict { return verdict{to: dropped, why: why} }

// decide judges a frame, looks up its destination, and makes it ready to go there.
func (p *port) decide(now *snapshot, f *frame.Frame, tick uint32, seed uint64) verdict {
	head := f.Head()
	if len(head) < wire.EthernetLen {
		return drop(DropMalformed)
	}
	if why, ok := p.judge(head, f.Len(), tick); !ok {
		return drop(why)
	}
	nw := p.network
	to := nw.lookup(now, wire.Ethernet(head).Destination(), tick)
	switch {
	case to.isPort():
		if to == atPort(p.slot) {
			return drop(DropHairpin)
		}
		if f.Checksum.Needed && !now.ports[to].partial && !complete(f) {
			return drop(DropHeadTooShort)
		}
		return verdict{to: to}
	case to == nowhere && nw.flat && nw.uplink != nil && len(nw.strangers) == 0:
		to = atUplink // the only one to flood to
	}
	if f.Checksum.Needed && !complete(f) {
		return drop(DropHeadTooShort)
	}
	v := verdict{to: to}
	if nw.uplink == nil || nw.flat {
		return v
	}
	if f.Hash == 0 {
		f.Hash = wire.FlowHash(head, seed)
	}
	if nw.checksum {
		v.sum = wire.SumPieces(0, head, f.Body())
	}
	return v
}

// complete fills in a checksum that the sender left open.
func complete(f *frame.Frame) bool {
	ok := wire.Complete(f.Head(), f.Body(), f.Checksum.Start, f.Checksum.Offset)
	f.Checksum.Needed = false
	return ok
}

// judge tells whether the port may send the frame, and learns its source.
func (p *port) judge(head []byte, length int, tick uint32) (dataplane.Reason, bool) {
	nw := p.network
	if source := wire.Ethernet(head).Source(); source != p.mac {
		if p.antiSpoof {
			return DropSpoofedMAC, false
		}
		if source.IsMulticast() {
			return DropMalformed, false
		}
		nw.learn(source, atPort(p.slot), tick, p.ring)
	}
	if p.antiSpoof {
		if why, bad := p.spoofed(head, length == len(head)); bad {
			return why, false
		}
	}
	if length <= nw.maxFrame && !nw.dropTagged {
		return 0, true
	}
	return nw.admits(head, length)
}

// admits tells whether a frame may be in the network at all.
func (nw *network) admits(head []byte, length int) (dataplane.Reason, bool) {
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
func (nw *network) lookup(now *snapshot, mac wire.MAC, tick uint32) place {
	if mac.IsMulticast() {
		return everywhere
	}
	if at := nw.static.place(mac); at != nowhere {
		return at
	}
	at := nw.learned.place(mac, tick)
	if at.isPort() && now.ports[at] == nil {
		return nowhere // the port has just left, and its entries are about to
	}
	return at
}

// learn enters the source of a frame, unless its place was configured.
func (nw *network) learn(mac wire.MAC, at place, tick uint32, owner *ring) {
	if nw.learning && nw.static.place(mac) == nowhere {
		nw.learned.learn(mac, at, tick, owner)
	}
}

// tunnelled sends a frame to a VTEP.
func (nw *network) tunnelled(w *dataplane.Worker, from *dataplane.Link, f *frame.Frame, t *tunnel, sum uint16) {
	switch {
	case t == nil || !t.ready:
		w.Drop(from, f, DropNoNextHop)
	case f.Len() > t.maxFrame:
		w.Drop(from, f, DropOverMTU)
	case !t.encapsulate(f, nw.vni, sum):
		w.Drop(from, f, DropNoHeadroom)
	default:
		w.Send(t.link, f)
	}
}

// dropAll is for a link that is attached to nothing.
func dropAll(w *dataplane.Worker, from *dataplane.Link, frames []*frame.Frame) {
	for i, f := range frames {
		frames[i] = nil
		w.Drop(from, f, DropDetached)
	}
}
