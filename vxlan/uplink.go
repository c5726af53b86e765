package vxlan

import (
	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/wire"
)

// uplinkPort is the forwarder of an uplink's link.
type uplinkPort struct {
	sw   *Switch
	slot int
}

// Forward sends each frame from the wire to the ports it is for, and never back to the wire.
func (l *uplinkPort) Forward(w *dataplane.Worker, from *dataplane.Link, frames []*frame.Frame) {
	now := l.sw.current.Load()
	u := now.uplinks[l.slot]
	if u == nil {
		dropAll(w, from, frames)
		return
	}
	tick := uint32(w.Now() >> tickShift)
	for i, f := range frames {
		nw, v := u.decide(l.sw, now, f, tick)
		switch {
		case v.to.isPort():
			frames[i] = nil
			w.Send(now.ports[v.to].link, f)
		case v.to == dropped:
			frames[i] = nil
			w.Drop(from, f, v.why)
		default: // everywhere or nowhere
			nw.flooded(w, from, nil, &frames[i], v)
		}
	}
}

// decide finds the network of a frame from the wire, unpacks and judges it, learns its source, and looks up its destination.
func (u *uplink) decide(sw *Switch, now *snapshot, f *frame.Frame, tick uint32) (*network, verdict) {
	if f.HeadLen() < wire.EthernetLen {
		return nil, drop(DropMalformed)
	}
	if f.Checksum.Needed && !complete(f) { // only a vhost-user peer leaves one open
		return nil, drop(DropHeadTooShort)
	}
	nw := u.flat
	if wire.Ethernet(f.Head()).Destination() == u.mac {
		o, why, ok := u.parse(f)
		if !ok {
			return nil, drop(why)
		}
		nw = o.network
		f.Trim(o.inner)
		if why, ok := nw.admits(f.Head(), f.Len()); !ok {
			return nil, drop(why)
		}
		if nw.learning {
			nw.learnRemote(sw, now, u, wire.Ethernet(f.Head()).Source(), o.source, tick)
		}
	} else if nw == nil {
		return nil, drop(DropNotOurs)
	} else if why, ok := nw.admits(f.Head(), f.Len()); !ok {
		return nil, drop(why)
	}
	to := nw.lookup(now, wire.Ethernet(f.Head()).Destination(), tick)
	if to.isVTEP() || to == atUplink {
		return nil, drop(DropSplitHorizon)
	}
	return nw, verdict{to: to}
}

// learnRemote enters the source of a frame from the wire, behind the VTEP that sent it. A VTEP that nobody knows is told to the
// control side, and its guests are learned from its next frames.
func (nw *network) learnRemote(sw *Switch, now *snapshot, u *uplink, mac wire.MAC, source address, tick uint32) {
	if mac.IsMulticast() {
		return
	}
	// The usual frame changes nothing: its source is behind the same VTEP as before, and was seen in this tick.
	s, found := nw.learned.find(mac)
	if found && s.at.isVTEP() && now.vteps[s.at.vtep()].has(source, u) {
		if s.seen != tick {
			s.seen = tick
			sw.vtepSeen[s.at.vtep()].Store(tick)
		}
		return
	}
	index, known := u.endpoints[source]
	if !known {
		sw.discover(u, source)
		return
	}
	sw.vtepSeen[index].Store(tick)
	nw.learn(mac, atVTEP(index), tick, nw.learned.wire)
}

// has tells whether the tunnel is the one to an address on an uplink.
func (t *tunnel) has(address address, u *uplink) bool {
	return t != nil && t.address == address && t.link == u.link
}
