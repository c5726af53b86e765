package acl

import (
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

// Values at which intervals begin and end, and their neighbours.
var (
	prefixes4 = []string{"0.0.0.0/0", "0.0.0.0/32", "10.0.0.0/8", "10.0.0.0/32", "10.0.0.128/25", "10.1.0.0/16", "128.0.0.0/1", "255.255.255.255/32", "255.0.0.0/8"}
	prefixes6 = []string{"::/0", "::/128", "fd00::/8", "fd00::1/128", "fd00:0:0:1::/64", "fd00::8000:0:0:0/65", "8000::/1",
		"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128", "ffff:ffff:ffff:ffff::/64", "0:0:0:ffff:ffff:ffff:ffff:ffff/128"}
	edges         = []uint16{1, 2, 22, 80, 81, 442, 443, 444, 65534, 65535}
	someProtocols = []uint16{0, 1, 6, 17, 47, 58, 132, 255}
	ethers        = []uint16{0x26, 0x88cc, 0x88cd, 0x8847}
)

func prefix(t *rapid.T, v6 bool, label string) netip.Prefix {
	if rapid.Bool().Draw(t, label+" any") {
		return netip.Prefix{}
	}
	list := prefixes4
	if v6 {
		list = prefixes6
	}
	return netip.MustParsePrefix(rapid.SampledFrom(list).Draw(t, label))
}

func portRange(t *rapid.T, label string) Ports {
	if rapid.Bool().Draw(t, label+" any") {
		return Ports{}
	}
	a, b := rapid.SampledFrom(edges).Draw(t, label), rapid.SampledFrom(edges).Draw(t, label)
	return Ports{min(a, b), max(a, b)}
}

var aRule = rapid.Custom(func(t *rapid.T) Rule {
	r := Rule{
		Verdict: Verdict(rapid.IntRange(0, 1).Draw(t, "verdict")), Direction: Direction(rapid.IntRange(0, 1).Draw(t, "direction")),
		Subject: Subject(rapid.IntRange(0, 3).Draw(t, "subject")),
	}
	v6 := rapid.Bool().Draw(t, "v6")
	switch r.Subject {
	case AnyEther:
		return r
	case OfEther:
		r.Number = rapid.SampledFrom(ethers[1:]).Draw(t, "ether")
		return r
	case OfProtocol:
		r.Number = rapid.SampledFrom(someProtocols).Draw(t, "protocol")
		v6 = r.Number != protoICMP && (v6 || r.Number == protoICMPv6)
		switch {
		case hasPorts(r.Number):
			r.FromPort, r.ToPort = portRange(t, "from port"), portRange(t, "to port")
		case r.Number == protoICMP || r.Number == protoICMPv6:
			r.ICMP.HasType = rapid.Bool().Draw(t, "has type")
			r.ICMP.HasCode = r.ICMP.HasType && rapid.Bool().Draw(t, "has code")
			if r.ICMP.HasType {
				r.ICMP.Type = rapid.SampledFrom([]uint8{0, 3, 8, 128, 255}).Draw(t, "type")
			}
			if r.ICMP.HasCode {
				r.ICMP.Code = rapid.SampledFrom([]uint8{0, 1, 255}).Draw(t, "code")
			}
		}
	}
	r.From, r.To = prefix(t, v6, "from"), prefix(t, v6, "to")
	return r
})

func address(t *rapid.T, v6 bool, label string) Address {
	list := prefixes4
	if v6 {
		list = prefixes6
	}
	p := netip.MustParsePrefix(rapid.SampledFrom(list).Draw(t, label))
	a := p.Addr()
	if rapid.Bool().Draw(t, label+" last") {
		a = last(p)
	}
	switch rapid.IntRange(0, 2).Draw(t, label+" beside") {
	case 1:
		if before := a.Prev(); before.IsValid() {
			a = before
		}
	case 2:
		if next := a.Next(); next.IsValid() {
			a = next
		}
	}
	return addressOf(a)
}

// last is the last address of a prefix.
func last(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

var aTuple = rapid.Custom(func(t *rapid.T) Tuple {
	if rapid.IntRange(0, 9).Draw(t, "kind") == 0 {
		return Tuple{EtherType: rapid.SampledFrom(append(ethers, etherARP)).Draw(t, "ether")}
	}
	v6 := rapid.Bool().Draw(t, "v6")
	p := Tuple{EtherType: etherIPv4, Source: address(t, v6, "source"), Destination: address(t, v6, "destination")}
	if v6 {
		p.EtherType = etherIPv6
	}
	p.Protocol = uint8(rapid.SampledFrom(someProtocols).Draw(t, "protocol"))
	p.Bare = rapid.IntRange(0, 3).Draw(t, "bare") == 0 // whatever else it has means nothing then
	switch {
	case hasPorts(uint16(p.Protocol)):
		p.SourcePort, p.DestinationPort = rapid.SampledFrom(edges).Draw(t, "source port"), rapid.SampledFrom(edges).Draw(t, "destination port")
	case p.Protocol == protoICMP || p.Protocol == protoICMPv6:
		p.Type = rapid.SampledFrom([]uint8{0, 3, 4, 8, 127, 128, 129, 134, 135, 136, 254, 255}).Draw(t, "type")
		p.Code = rapid.SampledFrom([]uint8{0, 1, 2, 255}).Draw(t, "code")
	}
	return p
})

// TestTablesFollowRules holds the tables to the rules themselves, asked one after the other.
func TestTablesFollowRules(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := Policy{Default: Verdict(rapid.IntRange(0, 1).Draw(t, "default")), Rules: rapid.SliceOfN(aRule, 0, 150).Draw(t, "rules")}
		c := Compile(p, Options{})
		for range 50 {
			packet, d := aTuple.Draw(t, "packet"), Direction(rapid.IntRange(0, 1).Draw(t, "direction"))
			rule, allow := c.Judge(d, &packet)
			if want := Explain(p, &packet, d); rule != want.Rule || allow != (want.Verdict == Allow) {
				t.Fatalf("%s %s: rule %d, allow %v; want %+v of\n%s", d, packet, rule, allow, want, p)
			}
		}
	})
}

// TestEveryRuleIsReadBack holds printer and parser together for rules that no text was there for first.
func TestEveryRuleIsReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := aRule.Draw(t, "rule")
		if again, err := ParseRule(r.String()); err != nil || again != r {
			t.Fatalf("%q is read as %q, %v", r, again, err)
		}
	})
}
