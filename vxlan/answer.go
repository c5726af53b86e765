package vxlan

import (
	"encoding/binary"

	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/wire"
)

// Guests ask everybody who has an address. If that is configured, the answer is made here, of the question's own frame, and nobody else is asked:
//
//	guest ──▶ ARP request, neighbour solicitation ──▶ answer ──▶ known: the MAC ──▶ reply, advertisement ──▶ the same guest

// answer turns a guest's question for an address of the network, whose MAC is configured, into the answer, which is to go back by the link that the
// question came from: an ARP request (RFC 826) or a neighbour solicitation (RFC 4861, 7.2.3), those that probe for duplicates
// (RFC 5227, RFC 4862) among them. It is asked of frames to group addresses that the port may send; questions to a station itself want to know whether it is there.
//
// It reports false, and changes nothing, for everything else: other frames, tagged ones, addresses that are not known or are the asker's own,
// announcements, malformed questions.
func (nw *network) answer(f *frame.Frame) bool {
	head := f.Head()
	if nw.noAnswer || len(head) < wire.EthernetLen || f.Len() != len(head) {
		return false
	}
	switch wire.Ethernet(head).EtherType() {
	case wire.EtherTypeARP:
		return nw.answerARP(f)
	case wire.EtherTypeIPv6:
		return len(head) >= minSolicitation && head[20] == wire.ProtoICMPv6 && head[54] == wire.ICMPv6NeighborSolicitation && nw.answerND(f)
	}
	return false
}

// answerARP is answer for ARP. That an announcement asks for the sender's own address (RFC 5227, 3) tells it from a question.
func (nw *network) answerARP(f *frame.Frame) bool {
	h, ok := wire.ParseARP(f.Head()[wire.EthernetLen:])
	if !ok || h.Operation() != wire.ARPRequest {
		return false
	}
	asker := wire.Ethernet(f.Head()).Source()
	target, sender := h.TargetIP(), h.SenderIP()
	mac := nw.known.find(known4(target[:]))
	if mac == 0 || mac == asker || h.SenderMAC() != asker || sender == target {
		return false
	}
	f.Truncate(wire.EthernetLen + wire.ARPLen)
	wire.Ethernet(f.Head()).Set(asker, mac, wire.EtherTypeARP)
	binary.BigEndian.PutUint16(h[6:], wire.ARPReply)
	own, to := mac.Bytes(), asker.Bytes()
	copy(h[8:], own[:])
	copy(h[14:], target[:])
	copy(h[18:], to[:])
	copy(h[24:], sender[:])
	f.Checksum, f.Hash = frame.Checksum{}, 0
	return true
}

const (
	ndAt            = wire.EthernetLen + wire.IPv6Len // where the message begins
	minSolicitation = ndAt + wire.NeighborMinLen
	advertisement   = ndAt + wire.NeighborLinkLen

	allNodesMAC wire.MAC = 0x3333_0000_0001
)

var allNodes = [16]byte{0: 0xff, 1: 0x02, 15: 1}

// answerND is answer for a neighbour solicitation, of which there are minSolicitation bytes at least.
//
// Link-local targets are left to answer for themselves: they may be routers, which only they know, and an advertisement that does not say so takes a router off
// its hosts' lists (RFC 4861, 7.2.5). Lists of routers have link-local addresses only.
func (nw *network) answerND(f *frame.Frame) bool {
	head := f.Head()
	target := [16]byte(head[ndAt+wire.ICMPLen : minSolicitation])
	asker := wire.Ethernet(head).Source()
	mac := nw.known.find(address6(target[:]))
	if mac == 0 || mac == asker || target[0] == 0xfe && target[1]&0xc0 == 0x80 || !solicitation(f, target) {
		return false
	}
	source := [16]byte(head[22:38])
	if grow := advertisement - len(head); grow > 0 && f.Append(grow) == nil || grow < 0 && !f.Truncate(advertisement) {
		return false
	}
	flags, toMAC, to := uint8(wire.AdvertisementOverride|wire.AdvertisementSolicited), asker, source
	if source == ([16]byte{}) { // a probe for duplicates: everybody is told, since the prober has no address yet (RFC 4861, 7.2.4)
		flags, toMAC, to = wire.AdvertisementOverride, allNodesMAC, allNodes
	}
	head = f.Head()
	wire.Ethernet(head).Set(toMAC, mac, wire.EtherTypeIPv6)
	wire.IPv6(head[wire.EthernetLen:]).Set(wire.IPv6Fields{PayloadLen: wire.NeighborLinkLen, NextHeader: wire.ProtoICMPv6,
		HopLimit: wire.NeighborHopLimit, Source: target, Destination: to})
	m := wire.ICMPv6(head[ndAt:])
	m.SetNeighborAdvertisement(flags, target, mac)
	m.SetChecksum(target[:], to[:])
	f.Checksum, f.Hash = frame.Checksum{}, 0
	return true
}

// solicitation tells whether a neighbour solicitation is one that hosts must not discard (RFC 4861, 7.1.1).
func solicitation(f *frame.Frame, target [16]byte) bool {
	ip, ok := wire.ParseIPv6(f.Head()[wire.EthernetLen:])
	if !ok || ip.HopLimit() != wire.NeighborHopLimit || len(ip.Payload()) != int(ip.PayloadLen()) {
		return false
	}
	m := wire.ICMPv6(ip.Payload())
	source, destination := [16]byte(ip.Source()), [16]byte(ip.Destination())
	link, ok := m.NeighborOptions(wire.OptionSourceLink) // not, if there is no whole solicitation
	switch c := f.Checksum; {
	case !ok || m.Code() != 0 || source[0] == 0xff:
		return false
	case c.Needed: // the guest leaves it to us, and so nothing can have been spoilt
		ok = c.Start == ndAt && c.Offset == 2
	default:
		ok = c.Valid || m.ChecksumValid(ip.Source(), ip.Destination())
	}
	if source == ([16]byte{}) {
		return ok && !link && destination == wire.SolicitedNode(target)
	}
	return ok && (destination == wire.SolicitedNode(target) || destination == target)
}
