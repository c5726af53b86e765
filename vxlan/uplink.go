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
		nw, why, ok := up.unpack(l, f)
		if !ok {
			l.drop(from, &frames[i], why)
			continue
		}
		flows := nw.flows[l.number]
		known := l.recall(flows, nw, nil, f)
		if known != nil {
			l.sendKnown(from, &frames[i], nw, nil, known)
			continue
		}
		v := up.decide(l, nw, f)
		l.keep(flows, nw, nil, f, v)
		l.send(from, &frames[i], nw, nil, v)
	}
	l.end()
}

// decide judges a network's frame from the wire, learns its source, and looks up its destination.
func (u *uplink) decide(l *lane, nw *network, f *frame.Frame) (v verdict) {
	l.anew()
	v.keep = true
	if why, ok := nw.admits(f); !ok {
		return drop(why)
	}
	met := true
	if nw.learning && !nw.flat {
		var learned bool
		if learned, met = nw.learnRemote(l, u, wire.Ethernet(f.Head()).Source(), l.key.source); learned {
			v.depends = bySource
		}
	}
	nw.route(l, f, &v)
	if v.to.isVTEP() || v.to == atUplink {
		return drop(DropSplitHorizon)
	}
	v.keep = v.keep && met
	return v
}

// unpack finds the network of a frame from the wire, and moves the frame's front past what is in front of the network's own frame. The tunnel endpoint
// that sent it becomes the source of the key.
func (u *uplink) unpack(l *lane, f *frame.Frame) (nw *network, why dataplane.Reason, ok bool) {
	l.key.source, l.key.wide = address{}, u.is6
	if f.HeadLen() < wire.EthernetLen {
		return nil, DropMalformed, false
	}
	if wire.Ethernet(f.Head()).Destination() != u.mac {
		return u.flat, DropNotOurs, u.flat != nil
	}
	// Only a vhost-user peer leaves a checksum open, and nobody cuts packets inside a tunnel.
	if f.GSO.Type != frame.GSONone {
		return nil, DropOuterIP, false
	}
	if f.Checksum.Needed && !complete(f) {
		return nil, DropHeadTooShort, false
	}
	o := &l.outer
	if why, ok = u.parse(f, o); !ok {
		return nil, why, false
	}
	f.Trim(o.inner)
	f.Checksum, f.Hash = frame.Checksum{}, 0 // they were the outer packet's
	if o.tos&1 != 0 {
		if why, ok := congestion(f, o.tos); !ok {
			return nil, why, false
		}
	}
	l.key.source = o.source
	return o.network, 0, true
}

// learnRemote enters the source of a frame from the wire, behind the VTEP that sent it. A VTEP that nobody knows is told to the
// control side (and not met), and its guests are learned from its next frames.
func (nw *network) learnRemote(l *lane, u *uplink, mac wire.MAC, source address) (learned, met bool) {
	if mac.IsMulticast() {
		return false, true
	}
	var at place
	// The usual frame changes nothing: its source is behind the same VTEP as before.
	if s, found := nw.learned[l.number].find(mac); found && s.at.isVTEP() && l.now.vteps[s.at.vtep()].has(source, u) {
		if at = s.at; s.seen == l.tick && nw.static.place(mac) == nowhere {
			return true, true
		}
	} else if index, known := u.endpoints[source]; known {
		at = atVTEP(index)
	} else {
		l.sw.discover(u, source)
		return false, false
	}
	l.sw.vtepSeen[at.vtep()].Store(l.tick)
	return nw.learn(l, mac, at, nw.learned[l.number].wire), true
}

// has tells whether the tunnel is the one to an address on an uplink.
func (t *tunnel) has(address address, u *uplink) bool {
	return t != nil && t.address == address && t.uplink.slot == u.slot
}
