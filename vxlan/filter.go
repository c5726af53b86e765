package vxlan

import (
	"encoding/binary"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/wire"
	"github.com/shuntio/shunt/vxlan/acl"
)

// filter is a port's security group: the rules (package acl) and the flows that they have allowed.
//
//	packet ─▶ of a flow that was allowed, either way?  ─▶ allowed
//	       ─▶ an ICMP error that quotes such a packet? ─▶ allowed
//	       ─▶ a later fragment of a packet judged?     ─▶ as that one
//	       ─▶ the rules ─▶ allowed: a flow begins      ─▶ denied
//
// When the rules change, each running flow is judged again with its next packet, by the direction that it began in: one that the new rules would not
// let begin ends, and its packets are judged for themselves. A TCP segment that opens a connection is never a reply.
//
// The worker that decides about a frame judges both ends: what goes out of the sender, and what goes in to the receiver.
type filter struct {
	rules *acl.Compiled
	// version tells these rules from those before.
	version   uint32
	conns     *conns
	fragments []*fragments // by worker
}

// packet is what filters judge a frame by. It is read once for both ends.
type packet struct {
	acl.Tuple
	whole  bool // the frame is not one of a group's
	flags  uint8
	echo   uint16 // an ICMP request's or reply's identifier
	id     uint32 // the datagram's, if part
	vlans  vlans
	part   bool // a fragment, the first one or (Bare) a later one
	quoted int  // where the packet begins that an ICMP error is about; 0: none
}

const tcpEnds = wire.TCPFin | wire.TCPSyn | wire.TCPRst

// read fills in a packet; false if the head does not show all that is to be judged.
func (k *packet) read(head []byte, f *frame.Frame) bool {
	at := wire.Locate(head)
	*k = packet{whole: !wire.Ethernet(head).Destination().IsMulticast()}
	k.EtherType, k.vlans = at.EtherType, vlansOf(head, int(at.Tags))
	if at.Network == 0 || at.Broken {
		return false
	}
	end := f.Len() // of the packet, as its IP header has it; in one that is to be cut, that means nothing
	switch at.EtherType {
	case wire.EtherTypeIPv4:
		h := wire.IPv4(head[at.Network:])
		k.Source, k.Destination = acl.Address4(h.Source()), acl.Address4(h.Destination())
		k.id = uint32(h.ID())
		if f.GSO.Type == frame.GSONone {
			end = int(at.Network) + int(h.TotalLen())
		}
		if at.Protocol == wire.ProtoTCP && h.FragmentOffset() == 8 {
			return false // it would write over flags that were judged (RFC 3128)
		}
	case wire.EtherTypeIPv6:
		h := wire.IPv6(head[at.Network:])
		k.Source, k.Destination = acl.Address6(h.Source()), acl.Address6(h.Destination())
		if f.GSO.Type == frame.GSONone {
			end = int(at.Network) + wire.IPv6Len + int(h.PayloadLen())
		}
		if at.Fragment {
			k.id = fragmentID(h)
		}
	default:
		return true
	}
	k.Protocol, k.part, k.Bare = at.Protocol, at.Fragment, at.Transport == 0
	return k.Bare || k.readTransport(head[:min(len(head), end)], int(at.Transport))
}

func (k *packet) readTransport(head []byte, at int) bool {
	if at > len(head) {
		return false
	}
	b := head[at:]
	switch k.Protocol {
	case wire.ProtoTCP:
		if len(b) < 14 {
			return false
		}
		k.flags = b[13]
	case wire.ProtoUDP, 33, 132, 136: // with DCCP, SCTP and UDP-Lite
		if len(b) < 4 {
			return false
		}
	case wire.ProtoICMPv4, wire.ProtoICMPv6:
		if len(b) < wire.ICMPLen {
			return false
		}
		k.Type, k.Code = b[0], b[1]
		k.echo = binary.BigEndian.Uint16(b[4:])
		if k.IsError() {
			k.quoted = at + wire.ICMPLen
		}
		return true
	default:
		return true
	}
	k.SourcePort, k.DestinationPort = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	return true
}

// fragmentID is the identification of an IPv6 fragment, whose extension headers have been walked before.
func fragmentID(h wire.IPv6) uint32 {
	next, at := h.NextHeader(), wire.IPv6Len
	for range wire.MaxExtensions + 1 {
		if len(h) < at+8 {
			break
		}
		switch next {
		case wire.ProtoFragment:
			return binary.BigEndian.Uint32(h[at+4:])
		case wire.ProtoAH:
			next, at = h[at], at+(int(h[at+1])+2)*4
		default:
			next, at = h[at], at+(int(h[at+1])+1)*8
		}
	}
	return 0
}

// asks tells whether an ICMP message asks for a reply, replies whether it is one.
func (k *packet) asks() bool {
	return k.EtherType == wire.EtherTypeIPv4 && (k.Type == 8 || k.Type == 13) || k.EtherType == wire.EtherTypeIPv6 && k.Type == 128
}

// flow names the packet's flow as a port sees it that it goes out of or in to; false if it belongs to none.
func (k *packet) flow(d acl.Direction) (key connKey, ok bool) {
	from, to := uint64(k.SourcePort), uint64(k.DestinationPort)
	if k.Protocol == wire.ProtoICMPv4 || k.Protocol == wire.ProtoICMPv6 {
		asked, replies := k.Answers()
		switch {
		case k.asks():
			from, to = uint64(k.echo), uint64(k.Type)
		case replies:
			from, to = uint64(asked.Type), uint64(k.echo)
		default:
			return key, false
		}
	}
	key = connKey{here: k.Source, there: k.Destination, last: from<<48 | to<<32, vlans: k.vlans}
	if d == acl.In {
		key = connKey{here: k.Destination, there: k.Source, last: to<<48 | from<<32, vlans: k.vlans}
	}
	key.last |= uint64(k.Protocol)<<8 | connIPv4
	if k.EtherType == wire.EtherTypeIPv6 {
		key.last ^= connIPv4 ^ connIPv6
	}
	return key, true
}

// tuple is the packet that began a flow, for the rules.
func (key *connKey) tuple(s connState) (t acl.Tuple) {
	t.EtherType, t.Protocol = wire.EtherTypeIPv4, key.protocol()
	if key.last&connIPv6 != 0 {
		t.EtherType = wire.EtherTypeIPv6
	}
	t.Source, t.Destination = key.here, key.there
	t.SourcePort, t.DestinationPort = uint16(key.last>>48), uint16(key.last>>32)
	if s&connIn != 0 {
		t.Source, t.Destination = key.there, key.here
		t.SourcePort, t.DestinationPort = t.DestinationPort, t.SourcePort
	}
	if t.Protocol == wire.ProtoICMPv4 || t.Protocol == wire.ProtoICMPv6 {
		t.Type, t.SourcePort, t.DestinationPort = uint8(t.DestinationPort), 0, 0
	}
	return t
}

// judge decides about a packet that goes out of the filter's port or in to it. It returns the rule that decided, now or when the flow began.
func (x *filter) judge(l *lane, d acl.Direction, k *packet, head []byte) (rule int, allow bool) {
	switch {
	case k.Bare:
		var found bool
		if rule, allow, found = x.fragments[l.number].verdict(d, k, l.tick); !found {
			rule, allow = x.rules.Judge(d, &k.Tuple)
		}
	case k.quoted > 0:
		if rule, allow = x.quoted(l, d, k, head); !allow {
			rule, allow = x.rules.Judge(d, &k.Tuple)
		}
	default:
		rule, allow = x.packet(l, d, k)
		if k.part {
			x.fragments[l.number].note(d, k, rule, allow, l.tick)
		}
	}
	x.rules.Count(l.number, rule, 1)
	return rule, allow
}

// packet judges a packet that shows its transport header.
func (x *filter) packet(l *lane, d acl.Direction, k *packet) (rule int, allow bool) {
	ip := k.EtherType == wire.EtherTypeIPv4 || k.EtherType == wire.EtherTypeIPv6
	if !ip || !k.whole {
		return x.rules.Judge(d, &k.Tuple)
	}
	key, ok := k.flow(d)
	if !ok {
		return x.rules.Judge(d, &k.Tuple)
	}
	opens := k.Protocol == wire.ProtoTCP && k.flags&(wire.TCPSyn|wire.TCPAck|wire.TCPRst) == wire.TCPSyn
	if e, s := x.lives(l, &key); e != nil {
		back := (s&connIn != 0) != (d == acl.In)
		if !opens {
			e.touch(s, k.state(back), l.tick)
			return int(uint32(e.judged.Load())) + acl.Always, true
		}
	}
	rule, allow = x.rules.Judge(d, &k.Tuple)
	if !allow || !ok || k.Protocol == wire.ProtoTCP && k.flags&wire.TCPRst != 0 {
		return rule, allow
	}
	if opens {
		x.conns.end(&key, l.tick) // an earlier connection between the same ports
	}
	var flags connState
	if d == acl.In {
		flags = connIn
	}
	if replies := k.Type == 0 || k.Type == 14 || k.Type == 129; replies && (k.Protocol == wire.ProtoICMPv4 || k.Protocol == wire.ProtoICMPv6) {
		return rule, allow // the rules let it pass; it begins nothing
	}
	x.conns.begin(&key, flags, uint64(x.version)<<32|uint64(uint32(rule-acl.Always)), l.tick)
	return rule, allow
}

// lives finds a flow, and judges it again if the rules have changed since.
func (x *filter) lives(l *lane, key *connKey) (*conn, connState) {
	e, s := x.conns.find(key, l.tick)
	if e == nil {
		return nil, 0
	}
	judged := e.judged.Load()
	if uint32(judged>>32) == x.version {
		return e, s
	}
	t := key.tuple(s)
	d := acl.Out
	if s&connIn != 0 {
		d = acl.In
	}
	rule, allow := x.rules.Judge(d, &t)
	if !allow {
		x.conns.end(key, l.tick)
		return nil, 0
	}
	e.judged.CompareAndSwap(judged, uint64(x.version)<<32|uint64(uint32(rule-acl.Always)))
	return e, s
}

// state is what a packet changes in its flow.
func (k *packet) state(back bool) (flags connState) {
	if back {
		flags = connAnswered
	}
	if k.Protocol == wire.ProtoTCP {
		switch {
		case k.flags&wire.TCPRst != 0:
			flags |= connReset
		case k.flags&wire.TCPFin != 0 && back:
			flags |= connFinishedBack
		case k.flags&wire.TCPFin != 0:
			flags |= connFinished
		}
	}
	return flags
}

// quoted judges an ICMP error by the packet that it is about, which went the other way.
func (x *filter) quoted(l *lane, d acl.Direction, k *packet, head []byte) (rule int, allow bool) {
	var q packet
	q.EtherType, q.vlans = k.EtherType, k.vlans
	b := head[min(k.quoted, len(head)):]
	var at int
	if k.EtherType == wire.EtherTypeIPv4 {
		h, ok := wire.ParseIPv4(b)
		if !ok || h.FragmentOffset() != 0 {
			return 0, false
		}
		q.Source, q.Destination, q.Protocol = acl.Address4(h.Source()), acl.Address4(h.Destination()), h.Protocol()
		at = h.HeaderLen()
	} else {
		h, ok := wire.ParseIPv6(b)
		if !ok {
			return 0, false
		}
		u, ok := h.Upper()
		if !ok || u.Later {
			return 0, false
		}
		q.Source, q.Destination, q.Protocol = acl.Address6(h.Source()), acl.Address6(h.Destination()), u.Protocol
		at = u.Offset
	}
	if q.Source != k.Destination || !q.readQuoted(b, at) {
		return 0, false
	}
	key, ok := q.flow(d.Opposite())
	if !ok {
		return 0, false
	}
	e, _ := x.lives(l, &key)
	if e == nil {
		return 0, false
	}
	return int(uint32(e.judged.Load())) + acl.Always, true
}

// readQuoted is readTransport for what an ICMP error quotes, of which eight bytes are all there need be (RFC 792).
func (k *packet) readQuoted(b []byte, at int) bool {
	if len(b) < at+8 {
		return false
	}
	if k.Protocol == wire.ProtoTCP {
		k.SourcePort, k.DestinationPort = binary.BigEndian.Uint16(b[at:]), binary.BigEndian.Uint16(b[at+2:])
		return true
	}
	return k.readTransport(b, at) && k.quoted == 0
}

// fragments remember how first fragments were judged, for the later ones, which show no ports. A flood of first fragments pushes out those of the same
// port and worker.
type fragments struct {
	entries [256]fragment
}

type fragment struct {
	source, destination acl.Address
	id                  uint64 // identification, protocol, direction, IP version
	vlans               vlans
	tick                uint32
	rule                int32
	allow               bool
}

// fragmentAge is how long the fragments of a datagram may come after another: as long as receivers wait for them.
var fragmentAge = ticks(30 * 1e9)

func (x *fragments) entry(d acl.Direction, k *packet) (*fragment, uint64) {
	id := uint64(k.id)<<32 | uint64(k.Protocol)<<24 | uint64(d)<<16 | uint64(k.EtherType)
	h := fold(k.Source.Lo^0x9e37_79b9_7f4a_7c15, k.Destination.Lo^id^uint64(k.vlans)<<8)
	return &x.entries[h%uint64(len(x.entries))], id
}

func (x *fragments) note(d acl.Direction, k *packet, rule int, allow bool, tick uint32) {
	e, id := x.entry(d, k)
	*e = fragment{k.Source, k.Destination, id, k.vlans, tick, int32(rule), allow}
}

func (x *fragments) verdict(d acl.Direction, k *packet, tick uint32) (rule int, allow, found bool) {
	e, id := x.entry(d, k)
	if e.id != id || e.vlans != k.vlans || e.source != k.Source || e.destination != k.Destination || tick-e.tick > fragmentAge {
		return 0, false, false
	}
	return int(e.rule), e.allow, true
}

// passes judges a frame by a port's filter, and notes in the verdict what it depends on.
func (p *port) passes(l *lane, d acl.Direction, f *frame.Frame, v *verdict) (why dataplane.Reason, ok bool) {
	if !l.read(f) {
		v.to, v.keep = dropped, false
		if f.Len() == f.HeadLen() {
			return DropMalformed, false
		}
		return DropHeadTooShort, false
	}
	rule, ok := p.filter.judge(l, d, &l.packet, f.Head())
	v.keep = v.keep && rule <= maxRule
	if !ok {
		v.depends |= byDenial
	}
	if d == acl.Out {
		v.rules, v.depends = v.rules|ruledOut(rule), v.depends|byOut
		return DropACLOut, ok
	}
	v.rules, v.depends = v.rules|ruledIn(rule), v.depends|byIn
	return DropACLIn, ok
}

// read reads the frame being decided, once for both ends; false if it cannot be judged.
func (l *lane) read(f *frame.Frame) bool {
	if !l.isRead {
		l.isRead, l.readable = true, l.packet.read(f.Head(), f)
	}
	return l.readable
}
