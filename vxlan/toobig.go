package vxlan

import (
	"encoding/binary"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/wire"
)

// A guest that sends packets longer than its network or the way to another machine takes is told so, else its connections stall (RFC 1191, RFC 8201):
//
//	guest ──▶ packet ──▶ too long ──▶ dropped, counted
//	guest ◀── ICMP ◀── tooBig ◀── the packet's head, in a frame of its own
//
// There is no router here that the message could be from. As middleboxes do, it is sent in the name of the packet's destination, or of the station it was
// handed to, whose address is configured; if it is not, there is no message.

const (
	// A port is told of paceBurst packets at once, and of one each paceGap after that: as each flow, but not each packet, needs a message.
	paceGap   = int64(10 * time.Millisecond)
	paceBurst = 50
)

// pace bounds the messages to one port, whichever worker its packets come by: the time at which all that were sent would have been, at one each paceGap.
type pace struct{ full atomic.Int64 }

// pass tells whether one may be sent now.
func (p *pace) pass(now int64) bool {
	for {
		full := p.full.Load()
		next := max(full, now) + paceGap
		if next-now > paceBurst*paceGap {
			return false
		}
		if p.full.CompareAndSwap(full, next) {
			return true
		}
	}
}

// tooBig tells the guest behind a link of p that its packet was longer than a frame may be. The packet stays as it is, in its slot of the
// vector: sending may push out a full vector, which may fault. A p of nil is nobody.
func (l *lane) tooBig(from *dataplane.Link, p *port, f *frame.Frame, maxFrame int) {
	mtu := maxFrame - wire.EthernetLen
	if p == nil || !p.network.tellable(f.Head(), mtu) || !p.pace.pass(l.worker.Now()) {
		return
	}
	g := l.worker.Pool().Get()
	if g == nil {
		return
	}
	p.network.tell(g, f.Head(), mtu)
	l.worker.Send(from, g)
}

// tellable tells whether the sender of a packet may be sent a message about it: untagged, neither from nor to a group, no message about an error itself (RFC 1122,
// 3.2.2; RFC 4443, 2.4), no fragment but the first. A packet that routers may cut is not told of, but the MTU of those that may not.
func (nw *network) tellable(head []byte, mtu int) bool {
	if len(head) < wire.EthernetLen || wire.Ethernet(head).Source().IsMulticast() || wire.Ethernet(head).Destination().IsMulticast() {
		return false
	}
	l := wire.Locate(head)
	if l.Tags > 0 || l.Transport == 0 || len(head) < int(l.Transport)+8 || !nw.speaker(head).IsValid() { // eight bytes: RFC 792
		return false
	}
	switch l.EtherType {
	case wire.EtherTypeIPv4:
		ip := wire.IPv4(head[wire.EthernetLen:])
		return ip.DontFragment() && unicast4(ip.Source()) && unicast4(ip.Destination()) && (l.Protocol != wire.ProtoICMPv4 || !isError4(head[l.Transport]))
	case wire.EtherTypeIPv6:
		// Below the smallest MTU of IPv6 (RFC 8200, 5) there is nothing that hosts could do.
		ip := wire.IPv6(head[wire.EthernetLen:])
		return mtu >= minMTU6 && unicast6(ip.Source()) && unicast6(ip.Destination()) && (l.Protocol != wire.ProtoICMPv6 || head[l.Transport] >= 128)
	}
	return false
}

const (
	minMTU6 = 1280
	// maxAbout4 and maxAbout6 are how much of a packet a message quotes: so that it has 576 bytes (RFC 1812, 4.3.2.3), or 1280 (RFC 4443, 2.4).
	maxAbout4 = 576 - wire.IPv4MinLen - wire.ICMPLen
	maxAbout6 = minMTU6 - wire.IPv6Len - wire.ICMPLen
)

func unicast4(b []byte) bool { return b[0] != 0 && b[0] != 127 && b[0] < 224 }
func unicast6(b []byte) bool { return b[0] != 0xff && [16]byte(b) != [16]byte{} }

func isError4(kind uint8) bool {
	switch kind {
	case wire.ICMPv4Unreachable, 4, 5, 11, 12: // source quench, redirect, time exceeded, parameter problem
		return true
	}
	return false
}

// speaker is the address in whose name a message is sent: the packet's destination if it is configured, else the first one of the station that the frame is for.
func (nw *network) speaker(head []byte) netip.Addr {
	b := head[wire.EthernetLen:]
	if wire.Ethernet(head).EtherType() == wire.EtherTypeIPv4 {
		if nw.known.find(known4(b[16:])) != 0 {
			return netip.AddrFrom4([4]byte(b[16:20]))
		}
		return nw.known.station(wire.Ethernet(head).Destination()).ip4
	}
	if len(b) < wire.IPv6Len {
		return netip.Addr{}
	}
	if nw.known.find(address6(b[24:])) != 0 {
		return netip.AddrFrom16([16]byte(b[24:40]))
	}
	return nw.known.station(wire.Ethernet(head).Destination()).ip6
}

// tell writes the message about a packet that is tellable into an empty frame: fragmentation needed (RFC 792, RFC 1191) or packet too big (RFC 4443).
func (nw *network) tell(g *frame.Frame, head []byte, mtu int) {
	about := head[wire.EthernetLen:]
	asked := wire.Ethernet(head)
	speaker := nw.speaker(head)
	if speaker.Is4() {
		about = about[:min(len(about), maxAbout4)]
		length := wire.IPv4MinLen + wire.ICMPLen + len(about)
		b := g.Append(wire.EthernetLen + length)
		wire.Ethernet(b).Set(asked.Source(), asked.Destination(), wire.EtherTypeIPv4)
		const networkControl = 0xc0 // RFC 1812, 4.3.2.5
		wire.IPv4(b[14:]).Set(wire.IPv4Fields{TOS: networkControl, TotalLen: uint16(length), DontFragment: true, TTL: 64, Protocol: wire.ProtoICMPv4,
			Source: speaker.As4(), Destination: [4]byte(wire.IPv4(about).Source())})
		m := wire.ICMPv4(b[34:])
		const fragmentationNeeded = 4
		binary.BigEndian.PutUint64(m, wire.ICMPv4Unreachable<<56|fragmentationNeeded<<48|uint64(mtu)&0xffff)
		copy(m.Payload(), about)
		m.SetChecksum()
		return
	}
	about = about[:min(len(about), maxAbout6)]
	b := g.Append(ndAt + wire.ICMPLen + len(about))
	source, destination := speaker.As16(), [16]byte(wire.IPv6(about).Source())
	wire.Ethernet(b).Set(asked.Source(), asked.Destination(), wire.EtherTypeIPv6)
	wire.IPv6(b[14:]).Set(wire.IPv6Fields{PayloadLen: uint16(wire.ICMPLen + len(about)), NextHeader: wire.ProtoICMPv6, HopLimit: 64,
		Source: source, Destination: destination})
	m := wire.ICMPv6(b[ndAt:])
	binary.BigEndian.PutUint64(m, wire.ICMPv6PacketTooBig<<56|uint64(mtu))
	copy(m.Payload(), about)
	m.SetChecksum(source[:], destination[:])
}
