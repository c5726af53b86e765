package vxlan

import (
	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/wire"
)

// uplinkPort is the forwarder of an uplink's links.
type uplinkPort struct {
	sw   *Switch
	slot int
}

// Forward sends each frame from the wire to the ports it is for, and never back to the wire.
func (u *uplinkPort) Forward(w *dataplane.Worker, from *dataplane.Link, frames []*frame.Frame) {
	l := u.sw.begin(w)
	up := l.now.uplinks[u.slot]
	if up == nil {
		dropAll(w, from, frames)
		return
	}
	for i, f := range frames {
		nw, v := up.decide(l, f)
		switch {
		case v.to.isPort():
			l.deliver(from, &frames[i], l.toPort(l.now.ports[v.to], f))
		case v.to == dropped:
			l.drop(from, &frames[i], v.why)
		default: // everywhere or nowhere
			l.flood(from, nw, nil, &frames[i], v.to)
		}
	}
}

// decide finds the network of a frame from the wire, unpacks and judges it, learns its source, and looks up its destination.
func (u *uplink) decide(l *lane, f *frame.Frame) (*network, verdict) {
	if f.HeadLen() < wire.EthernetLen {
		return nil, drop(DropMalformed)
	}
	nw, source, why, ok := u.unpack(f)
	if !ok {
		return nil, drop(why)
	}
	if why, ok := nw.admits(f); !ok {
		return nil, drop(why)
	}
	head := f.Head()
	if nw.learning && !nw.flat {
		nw.learnRemote(l, u, wire.Ethernet(head).Source(), source)
	}
	to := nw.lookup(l, wire.Ethernet(head).Destination())
	if to.isVTEP() || to == atUplink {
		return nil, drop(DropSplitHorizon)
	}
	return nw, verdict{to: to}
}

// unpack finds the network of a frame from the wire, and moves the frame's front past what is in front of the network's own frame. source is the
// tunnel endpoint that sent it.
func (u *uplink) unpack(f *frame.Frame) (nw *network, source address, why dataplane.Reason, ok bool) {
	if wire.Ethernet(f.Head()).Destination() != u.mac {
		return u.flat, source, DropNotOurs, u.flat != nil
	}
	// Only a vhost-user peer leaves a checksum open, and nobody cuts packets inside a tunnel.
	if f.GSO.Type != frame.GSONone {
		return nil, source, DropOuterIP, false
	}
	if f.Checksum.Needed && !complete(f) {
		return nil, source, DropHeadTooShort, false
	}
	o, why, ok := u.parse(f)
	if !ok {
		return nil, source, why, false
	}
	f.Trim(o.inner)
	f.Checksum, f.Hash = frame.Checksum{}, 0 // they were the outer packet's
	if why, ok := congestion(f, o.tos); !ok {
		return nil, source, why, false
	}
	return o.network, o.source, 0, true
}

// learnRemote enters the source of a frame from the wire, behind the VTEP that sent it. A VTEP that nobody knows is told to the
// control side, and its guests are learned from its next frames.
func (nw *network) learnRemote(l *lane, u *uplink, mac wire.MAC, source address) {
	if mac.IsMulticast() {
		return
	}
	learned := nw.learned[l.number]
	// The usual frame changes nothing: its source is behind the same VTEP as before, and was seen in this tick.
	s, found := learned.find(mac)
	same := found && s.at.isVTEP() && l.now.vteps[s.at.vtep()].has(source, u)
	if same && s.seen == l.tick {
		return
	}
	var at place
	if same {
		at = s.at
	} else {
		index, known := u.endpoints[source]
		if !known {
			l.sw.discover(u, source)
			return
		}
		at = atVTEP(index)
	}
	l.sw.vtepSeen[at.vtep()].Store(l.tick)
	nw.learn(l, mac, at, learned.wire)
}

// has tells whether the tunnel is the one to an address on an uplink.
func (t *tunnel) has(address address, u *uplink) bool {
	return t != nil && t.address == address && t.uplink.slot == u.slot
}
