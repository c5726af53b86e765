package acl

import (
	"errors"
	"strings"
	"testing"
)

// TestParseRule goes through what is written in other words than it is printed in; the rest is FuzzRule's.
func TestParseRule(t *testing.T) {
	for _, test := range []struct{ text, want string }{
		{"allow in", "allow in any"},
		{"deny out any", "deny out any"},
		{" allow\tin  tcp ", "allow in tcp"},
		{"allow in tcp from 10.0.0.0/8 to any port 80-443", "allow in tcp from 10.0.0.0/8 to any port 80-443"},
		{"allow in any from 10.0.0.1", "allow in any from 10.0.0.1/32"},
		{"allow in from 10.0.0.1 to 10.0.0.2", "allow in any from 10.0.0.1/32 to 10.0.0.2/32"},
		{"allow in from any to any", "allow in any"},
		{"allow in to fd00::1", "allow in any to fd00::1/128"},
		{"allow in any from 0.0.0.0/0", "allow in any from 0.0.0.0/0"},
		{"allow in any to ::/0", "allow in any to ::/0"},
		{"deny out udp from any port 68 to any port 67-67", "deny out udp from any port 68 to any port 67"},
		{"allow in proto 6 to any port 22", "allow in tcp to any port 22"},
		{"allow in proto 132 to any port 1-65535", "allow in proto 132 to any port 1-65535"},
		{"allow in proto 0", "allow in proto 0"},
		{"allow in icmp type 3 code 4", "allow in icmp type 3 code 4"},
		{"allow in icmp type 0", "allow in icmp type 0"},
		{"allow in icmpv6 type 135", "allow in icmpv6 type 135"},
		{"allow in proto 58 from fe80::/10 type 134 code 0", "allow in icmpv6 from fe80::/10 type 134 code 0"},
		{"deny out ether 0x88CC", "deny out ether 0x88cc"},
		{"allow out ether any", "allow out ether any"},
	} {
		r, err := ParseRule(test.text)
		if err != nil || r.String() != test.want {
			t.Errorf("%q: %q, %v, want %q", test.text, r.String(), err, test.want)
		}
	}
}

// TestBadRules marks with an @ where the error must be, which is removed before parsing.
func TestBadRules(t *testing.T) {
	for _, test := range []struct{ text, want string }{
		{"@", "the text ends: go on with one of allow, deny"},
		{"@permit in", `"permit" is none of allow, deny, which may stand here`},
		{"allow@", "the text ends: go on with one of in, out"},
		{"allow @tcp", `"tcp" is none of in, out, which may stand here`},
		{"allow in @tpc", `"tpc" is none of any, ether, from, icmp, icmpv6, proto, tcp, to, udp, which may stand here`},
		{"allow in tcp @form 10.0.0.0/8", `"form" is none of from, to, which may stand here`},
		{"allow in tcp from@", "the text ends: go on with an address, a prefix, or any"},
		{"allow in tcp from @10.0.0.0/33", `"10.0.0.0/33" is no prefix: write it as 10.0.0.0/8 or fd00::/64, an address alone, or any`},
		{"allow in tcp from @fe80::1%eth0", "is no prefix"},
		{"allow in tcp from @host", `"host" is no prefix`},
		{"allow in tcp from @10.0.0.1/8", "10.0.0.1/8 has bits beyond its length: write 10.0.0.0/8"},
		{"allow in tcp from @::ffff:10.0.0.1", "is an IPv4 prefix in IPv6's dress"},
		{"allow in from 10.0.0.0/8 to @fd00::/8", "10.0.0.0/8 and fd00::/8 are of different IP versions: a packet has one"},
		{"allow in icmp from @fd00::/8", "fd00::/8 is an IPv6 prefix: icmp is IPv4's, name icmpv6"},
		{"allow in icmpv6 to @10.0.0.0/8", "10.0.0.0/8 is an IPv4 prefix: icmpv6 is IPv6's, name icmp"},
		{"allow in to any @port 80", "a port needs a protocol that has ports: name tcp, udp, or proto 33, 132 or 136 before from and to"},
		{"allow in icmp to any @port 80", "a port needs a protocol"},
		{"allow in tcp @port 80", `"port" is none of from, to`},
		{"allow in tcp to any port@", "the text ends: go on with a port, or a range as 80-443"},
		{"allow in tcp to any port @0", `"0" is no port: give 1 to 65535`},
		{"allow in tcp to any port @65536", `"65536" is no port`},
		{"allow in tcp to any port @080", `"080" is no port`},
		{"allow in tcp to any port @80-", `"80-" is no port`},
		{"allow in tcp to any port @-80", `"-80" is no port`},
		{"allow in tcp to any port @80,443", `"80,443" is no port`},
		{"allow in tcp to any port @443-80", "443-80 runs backwards: write 80-443"},
		{"allow in tcp to any port 80 @from any", `"from" is too much: end before it`},
		{"allow in tcp to any @from any", `"from" is none of port, which may stand here`},
		{"allow in proto @256", `"256" is not a protocol's number: give 0 to 255`},
		{"allow in proto @gre", `"gre" is not a protocol's number`},
		{"allow in proto@", "the text ends: go on with a protocol's number"},
		{"allow in tcp @type 8", "a type needs icmp or icmpv6: name it before from and to"},
		{"allow in @type 8", "a type needs icmp or icmpv6"},
		{"allow in icmp type @256", `"256" is not an ICMP type: give 0 to 255`},
		{"allow in icmp type 3 code @-1", `"-1" is not an ICMP code: give 0 to 255`},
		{"allow in icmp @code 4", `"code" is none of from, to, type`},
		{"allow in icmp type 3 code 4 @5", `"5" is too much: end before it`},
		{"deny in icmpv6 type @135", "type 135 is neighbour discovery, which always passes as ARP does: leave the rule out"},
		{"allow in ether@", "the text ends: go on with an EtherType, as 0x88cc, or any"},
		{"allow in ether @88cc", `"88cc" is no EtherType: write four hexadecimal digits as 0x88cc, or any`},
		{"allow in ether @0x88", `"0x88" is no EtherType`},
		{"allow in ether @0x0026", "0x0026 is no EtherType but a length (IEEE 802.3): such frames are among ether any"},
		{"allow in ether @0x0800", "0x0800 is that of IPv4: name a protocol or addresses instead"},
		{"deny in ether @0x0806", "0x0806 is that of ARP, which always passes: leave the rule out"},
		{"allow in ether @0x8100", "0x8100 is a VLAN tag's, which is looked through: name the EtherType behind it"},
		{"allow in ether 0x88cc @from any", `"from" is too much`},
	} {
		before, after, marked := strings.Cut(test.text, "@")
		if !marked {
			t.Fatalf("%q has no mark", test.text)
		}
		r, err := ParseRule(before + after)
		var syntax *SyntaxError
		if !errors.As(err, &syntax) {
			t.Errorf("%q: taken as %v", test.text, r)
			continue
		}
		if syntax.Column != len(before)+1 || !strings.Contains(syntax.Reason, test.want) {
			t.Errorf("%q: %v, want %s", test.text, err, test.want)
		}
	}
}

func TestParsePolicy(t *testing.T) {
	p, err := ParsePolicy("# web server\r\n\nallow in tcp to any port 443 # TLS\n  default allow\ndeny out any")
	want := "allow in tcp to any port 443\ndeny out any\ndefault allow\n"
	if err != nil || p.String() != want {
		t.Errorf("%q, %v, want %q", p, err, want)
	}
	_, err = ParsePolicy("default deny\nallow\ndefault allow\ndefault deny now\nallow in\ndefault")
	want = `2:6: the text ends: go on with one of in, out
3:1: the default was given before, in line 1: keep one
4:1: the default was given before, in line 1: keep one
6:1: the default was given before, in line 1: keep one`
	if err == nil || err.Error() != want {
		t.Errorf("%v\nwant\n%s", err, want)
	}
	if _, err = ParsePolicy("default deny now"); err == nil || err.Error() != `1:14: "now" is too much: end before it` {
		t.Error(err)
	}
}

func TestParseTuple(t *testing.T) {
	for _, test := range []struct{ text, want string }{
		{"tcp 10.0.0.1:1234 > 10.0.0.2:80", "tcp 10.0.0.1:1234 > 10.0.0.2:80"},
		{"udp [fd00::1]:53 > [fd00::2]:0", "udp [fd00::1]:53 > [fd00::2]:0"},
		{"icmp 10.0.0.1 > 10.0.0.2", "icmp 10.0.0.1 > 10.0.0.2 type 8 code 0"},
		{"icmpv6 fd00::1 > fd00::2", "icmpv6 fd00::1 > fd00::2 type 128 code 0"},
		{"icmp 10.0.0.1 > 10.0.0.2 type 3 code 4", "icmp 10.0.0.1 > 10.0.0.2 type 3 code 4"},
		{"proto 47 10.0.0.1 > 10.0.0.2", "proto 47 10.0.0.1 > 10.0.0.2"},
		{"proto 132 10.0.0.1:1 > 10.0.0.2:2", "proto 132 10.0.0.1:1 > 10.0.0.2:2"},
		{"tcp 10.0.0.1 > 10.0.0.2 fragment", "tcp 10.0.0.1 > 10.0.0.2 fragment"},
		{"arp", "arp"},
		{"ether 0x0806", "arp"},
		{"rarp", "rarp"},
		{"ether 0x88cc", "ether 0x88cc"},
		{"ether 0x0026", "ether 0x0026"},
	} {
		p, err := ParseTuple(test.text)
		if err != nil || p.String() != test.want {
			t.Errorf("%q: %q, %v, want %q", test.text, p, err, test.want)
		}
	}
	for _, test := range []struct{ text, want string }{
		{"@", "the text ends: go on with one of arp, ether, icmp, icmpv6, proto, rarp, tcp, udp"},
		{"@gre 10.0.0.1 > 10.0.0.2", `"gre" is none of`},
		{"tcp @10.0.0.1:99999 > 10.0.0.2:80", `"10.0.0.1:99999" is no address: write it as 10.0.0.1, 10.0.0.1:80, fd00::1 or [fd00::1]:80`},
		{"tcp 10.0.0.1:1 @10.0.0.2:80", `"10.0.0.2:80" is none of >`},
		{"tcp 10.0.0.1:1 >@", "the text ends: go on with an address"},
		{"tcp 10.0.0.1 > @10.0.0.2", "the packet needs its ports"},
		{"tcp 10.0.0.1:1 > @10.0.0.2:2 fragment", "this packet has no ports"},
		{"icmp 10.0.0.1:1 > @10.0.0.2", "this packet has no ports"},
		{"tcp 10.0.0.1:1 > @[fd00::2]:80", "10.0.0.1 and fd00::2 are of different IP versions"},
		{"icmp fd00::1 > @fd00::2", "icmp is IPv4's"},
		{"icmpv6 10.0.0.1 > @10.0.0.2", "icmpv6 is IPv6's"},
		{"icmp 10.0.0.1 > 10.0.0.2 type @300", `"300" is not an ICMP type`},
		{"tcp @[fe80::1%eth0]:1 > [fd00::2]:80", "is not how an address stands"},
		{"ether @0x0800", "0x0800 is IP: name its protocol and addresses instead"},
		{"ether @88cc", `"88cc" is no EtherType`},
		{"arp @now", `"now" is too much`},
	} {
		before, after, _ := strings.Cut(test.text, "@")
		_, err := ParseTuple(before + after)
		var syntax *SyntaxError
		if !errors.As(err, &syntax) || syntax.Column != len(before)+1 || !strings.Contains(syntax.Reason, test.want) {
			t.Errorf("%q: %v, want %s", test.text, err, test.want)
		}
	}
}
