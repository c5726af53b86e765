package filter

import (
	"math"
	"net/netip"

	"github.com/shuntio/shunt/dataplane/wire"
)

// protocols are words that stand for an IP protocol, in one version of IP or both.
var protocols = map[string]struct {
	number uint32
	family uint16
}{
	"tcp": {wire.ProtoTCP, 0}, "udp": {wire.ProtoUDP, 0}, "sctp": {protoSCTP, 0}, "gre": {47, 0}, "esp": {wire.ProtoESP, 0},
	"icmp": {wire.ProtoICMPv4, wire.EtherTypeIPv4}, "icmp6": {wire.ProtoICMPv6, wire.EtherTypeIPv6},
}

// etherTypes are words that stand for an EtherType.
var etherTypes = map[string]uint32{
	"ip": wire.EtherTypeIPv4, "ip4": wire.EtherTypeIPv4, "ip6": wire.EtherTypeIPv6, "arp": wire.EtherTypeARP, "rarp": 0x8035, "lldp": 0x88cc,
}

// test reads
//
//	[src | dst | src or dst | src and dst]  host A | net P | port N | portrange N-M | ether A
//	tcp | udp | icmp | ...  [[sides] port N | portrange N-M]      ip | ip6 | arp | ...  [[sides] host A | net P | proto N]
//	proto N   ether [sides] [host] A | proto N | broadcast | multicast   vlan [N]   vni [N]   vxlan   less N   greater N
//	A, P or N alone: as the test before it
func (p *parser) test() (*tree, error) {
	word := p.token
	if q, known := protocols[word]; known {
		p.next()
		return p.qualified(p.leaf(test{ask: askProtocol, low: q.number, family: q.family}), p.ports)
	}
	if e, known := etherTypes[word]; known {
		p.next()
		return p.qualified(p.leaf(test{ask: askEtherType, low: e}), p.addresses)
	}
	switch word {
	case "ether":
		p.next()
		return p.ether()
	case "vlan", "vni", "vxlan":
		p.next()
		return p.segment(word)
	case "less", "greater":
		p.next()
		n, _, err := p.number(word, 0, math.MaxUint32, false)
		t := test{ask: askLength, high: n}
		if word == "greater" {
			t.low, t.high = n, math.MaxUint32
		}
		return p.leaf(t), err
	case "broadcast", "multicast":
		return p.ether()
	case "":
		return nil, p.wrong("a test is missing, such as host 10.0.0.1 or port 80")
	}
	s, sided, err := p.sides()
	if err != nil {
		return nil, err
	}
	if t, err := p.ports(s); t != nil || err != nil {
		return t, err
	}
	if t, err := p.addresses(s); t != nil || err != nil {
		return t, err
	}
	if sided && p.is("ether") {
		return p.hardware(s)
	}
	return p.bare(s, sided)
}

// bare reads a value without a word in front.
func (p *parser) bare(s sides, sided bool) (*tree, error) {
	if _, err := netip.ParseAddr(p.token); err == nil {
		return p.repeat(func() (*tree, error) { return p.address(s, false) })
	}
	if _, err := netip.ParsePrefix(p.token); err == nil {
		return p.repeat(func() (*tree, error) { return p.address(s, true) })
	}
	if _, err := wire.ParseMAC(p.token); err == nil {
		return p.repeat(func() (*tree, error) { return p.mac(s) })
	}
	if p.again != nil && !sided && len(p.token) > 0 && p.token[0] >= '0' && p.token[0] <= '9' {
		return p.again()
	}
	return nil, p.wrong("%q is no test: try host, net, port, portrange, tcp, udp, icmp, icmp6, arp, ip, ip6, proto, ether, vlan, vni, inner, less or greater", p.token)
}

// repeat reads a value, and remembers how.
func (p *parser) repeat(read func() (*tree, error)) (*tree, error) {
	p.again = read
	return read()
}

// qualified reads what may follow a protocol, and joins it.
func (p *parser) qualified(t *tree, more func(sides) (*tree, error)) (*tree, error) {
	s, sided, err := p.sides()
	if err != nil {
		return nil, err
	}
	right, err := more(s)
	switch {
	case err != nil:
		return nil, err
	case right != nil:
		again := p.again
		p.again = func() (*tree, error) {
			right, err := again()
			return &tree{kind: '&', left: t, right: right}, err
		}
		return &tree{kind: '&', left: t, right: right}, nil
	case sided:
		return nil, p.wrong("%q does not go with what is in front of it", p.token)
	}
	return t, nil
}

// sides reads which ends are meant. sided tells whether there was anything to read.
func (p *parser) sides() (s sides, sided bool, err error) {
	first := p.token
	if !p.is("src", "dst") {
		return either, false, nil
	}
	s = source
	if first == "dst" {
		s = destination
	}
	rest := *p // "src or dst" is one word of three; "src host a or dst host b" is not
	operator := p.token
	if p.is("or", "and") && p.is("src", "dst") {
		if operator == "and" {
			return both, true, nil
		}
		return either, true, nil
	}
	p.at, p.column, p.token = rest.at, rest.column, rest.token
	return s, true, nil
}

// ports reads a test of ports; nil if there is none.
func (p *parser) ports(s sides) (*tree, error) {
	ranged := p.token == "portrange"
	if !p.is("port", "portrange") {
		return nil, nil
	}
	return p.repeat(func() (*tree, error) {
		low, high, err := p.number("a port", 0, math.MaxUint16, ranged)
		return p.leaf(test{ask: askPort, sides: s, low: low, high: high}), err
	})
}

// addresses reads a test of addresses or protocols; nil if there is none.
func (p *parser) addresses(s sides) (*tree, error) {
	switch prefix := p.token == "net"; {
	case p.is("host", "net"):
		return p.repeat(func() (*tree, error) { return p.address(s, prefix) })
	case p.is("proto"):
		return p.repeat(p.protocol)
	}
	return nil, nil
}

func (p *parser) address(s sides, prefix bool) (*tree, error) {
	t, err := p.network(prefix)
	t.sides = s
	return p.leaf(t), err
}

func (p *parser) protocol() (*tree, error) {
	if q, known := protocols[p.token]; known {
		p.next()
		return p.leaf(test{ask: askProtocol, low: q.number}), nil
	}
	n, _, err := p.number("proto", 0, math.MaxUint8, false)
	return p.leaf(test{ask: askProtocol, low: n}), err
}

// ether reads what follows that word.
func (p *parser) ether() (*tree, error) {
	switch {
	case p.is("broadcast"):
		return p.leaf(test{ask: askMulticast, hardware: wire.Broadcast}), nil
	case p.is("multicast"):
		return p.leaf(test{ask: askMulticast}), nil
	case p.is("proto"):
		if e, known := etherTypes[p.token]; known {
			p.next()
			return p.leaf(test{ask: askEtherType, low: e}), nil
		}
		n, _, err := p.number("ether proto", 0, math.MaxUint16, false)
		return p.leaf(test{ask: askEtherType, low: n}), err
	}
	s, _, err := p.sides()
	if err != nil {
		return nil, err
	}
	return p.hardware(s)
}

func (p *parser) hardware(s sides) (*tree, error) {
	p.is("host")
	return p.repeat(func() (*tree, error) { return p.mac(s) })
}

func (p *parser) mac(s sides) (*tree, error) {
	m, err := wire.ParseMAC(p.token)
	if err != nil {
		return nil, p.wrong("%q is not an Ethernet address such as 52:54:00:00:00:01", p.token)
	}
	p.next()
	return p.leaf(test{ask: askHardware, sides: s, hardware: m}), nil
}

// segment reads which VLAN or VXLAN network is meant; none: any.
func (p *parser) segment(word string) (*tree, error) {
	t := test{ask: askVLAN, high: 0xfff}
	if word != "vlan" {
		if t = (test{ask: askVNI, high: math.MaxUint32}); p.inner {
			return nil, p.wrong("%s is within inner: only one tunnel is looked into", word)
		}
	}
	most := t.high & wire.MaxVNI
	if word == "vxlan" || p.token == "" || p.token[0] < '0' || p.token[0] > '9' {
		return p.leaf(t), nil
	}
	return p.repeat(func() (_ *tree, err error) {
		t.low, t.high, err = p.number(word, 0, most, true)
		return p.leaf(t), err
	})
}
