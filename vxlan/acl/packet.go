package acl

import (
	"net/netip"
	"strconv"
)

// ParseTuple reads a packet as a person would name it:
//
//	tcp 10.0.0.1:1234 > 10.0.0.2:80        also udp and proto 33, 132, 136
//	icmp 10.0.0.1 > 10.0.0.2 type 8 code 0 also icmpv6; without a type an echo request
//	proto 47 fd00::1 > fd00::2             any other protocol
//	udp 10.0.0.1 > 10.0.0.2 fragment       a later fragment, which has no ports
//	arp, rarp, ether 0x88cc                what is not IP
//
// The error is a *SyntaxError.
func ParseTuple(text string) (Tuple, error) {
	p := newParser(text)
	t := p.tuple()
	if p.err != nil {
		return Tuple{}, p.err
	}
	return t, nil
}

func (p *parser) tuple() (t Tuple) {
	var protocol uint16
	switch {
	case p.accept("arp"):
		t.EtherType = etherARP
	case p.accept("rarp"):
		t.EtherType = etherRARP
	case p.accept("ether"):
		p.etherType(&t)
	case p.protocol(&protocol):
		t.Protocol = uint8(protocol)
		p.packet(&t)
	default:
		p.stuck()
	}
	p.done()
	return t
}

func (p *parser) etherType(t *Tuple) {
	w, ok := p.take("an EtherType, as 0x88cc")
	if !ok {
		return
	}
	n, err := strconv.ParseUint(w.text, 0, 16)
	if err != nil || len(w.text) != 6 {
		p.fail(w.column, "%s is no EtherType: write four hexadecimal digits as 0x88cc", quote(w.text))
	}
	t.EtherType = uint16(n)
	if t.isIP() {
		p.fail(w.column, "%s is IP: name its protocol and addresses instead", w.text)
	}
}

func (p *parser) packet(t *Tuple) {
	from, fromPort := p.station()
	if !p.accept(">") {
		p.stuck()
		return
	}
	at := p.end
	if len(p.words) > 0 {
		at = p.words[0].column
	}
	to, toPort := p.station()
	if p.err != nil {
		return
	}
	if from.Is4() != to.Is4() {
		p.fail(at, "%s and %s are of different IP versions: a packet has one", from, to)
		return
	}
	t.EtherType = etherIPv6
	if from.Is4() {
		t.EtherType = etherIPv4
	}
	t.Source, t.Destination, t.SourcePort, t.DestinationPort = addressOf(from), addressOf(to), uint16(max(fromPort, 0)), uint16(max(toPort, 0))
	ports := hasPorts(uint16(t.Protocol))
	t.Bare = p.accept("fragment")
	switch {
	case (!ports || t.Bare) && (fromPort >= 0 || toPort >= 0):
		p.fail(at, "this packet has no ports: write the addresses alone")
	case ports && !t.Bare && (fromPort < 0 || toPort < 0):
		p.fail(at, "the packet needs its ports, as 10.0.0.1:1234 > 10.0.0.2:80 or [fd00::1]:1234 > [fd00::2]:80; only a later fragment has none")
	case !t.Bare:
		p.message(t, at)
	}
}

// message reads an ICMP packet's type and code.
func (p *parser) message(t *Tuple, at int) {
	v4, v6 := t.Protocol == protoICMP, t.Protocol == protoICMPv6
	switch {
	case !v4 && !v6:
		return
	case v4 && t.EtherType == etherIPv6:
		p.fail(at, "icmp is IPv4's and these are IPv6 addresses: name icmpv6")
		return
	case v6 && t.EtherType == etherIPv4:
		p.fail(at, "icmpv6 is IPv6's and these are IPv4 addresses: name icmp")
		return
	}
	t.Type = 8
	if v6 {
		t.Type = 128
	}
	if !p.accept("type") {
		return
	}
	n, _ := p.number("an ICMP type", 0, 255)
	t.Type = uint8(n)
	if p.accept("code") {
		n, _ := p.number("an ICMP code", 0, 255)
		t.Code = uint8(n)
	}
}

// station reads an address and its port, -1 without one.
func (p *parser) station() (netip.Addr, int) {
	w, ok := p.take("an address")
	if !ok {
		return netip.Addr{}, -1
	}
	a, err := netip.ParseAddr(w.text)
	port := -1
	if both, e := netip.ParseAddrPort(w.text); err != nil && e == nil {
		a, port, err = both.Addr(), int(both.Port()), nil
	}
	switch {
	case err != nil:
		p.fail(w.column, "%s is no address: write it as 10.0.0.1, 10.0.0.1:80, fd00::1 or [fd00::1]:80", quote(w.text))
	case a.Zone() != "" || a.Is4In6():
		p.fail(w.column, "%s is not how an address stands in a packet: write it without zone, and an IPv4 one as such", quote(w.text))
	}
	return a, port
}
