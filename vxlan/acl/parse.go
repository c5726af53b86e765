package acl

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// SyntaxError says what is wrong with the text of a rule, a policy or a packet.
type SyntaxError struct {
	Line   int    // of a policy, from 1; 0: there is only one
	Column int    // of the first character that is wrong, from 1
	Reason string // one sentence
}

func (e *SyntaxError) Error() string {
	if e.Line > 0 {
		return fmt.Sprintf("%d:%d: %s", e.Line, e.Column, e.Reason)
	}
	return fmt.Sprintf("at character %d: %s", e.Column, e.Reason)
}

// ParseRule reads a rule:
//
//	allow|deny in|out [any | tcp | udp | icmp | icmpv6 | proto N | ether 0xNNNN | ether any]
//	    [from PREFIX|any [port N[-N]]] [to PREFIX|any [port N[-N]]] [type N [code N]]
//
// A PREFIX may be an address alone. The error is a *SyntaxError.
func ParseRule(text string) (Rule, error) {
	p := newParser(text)
	r := p.rule()
	if p.err != nil {
		return Rule{}, p.err
	}
	return r, nil
}

// parser reads words. After an error it accepts none any more, so that callers need not look.
type parser struct {
	words []word
	end   int      // column behind the text
	tried []string // what would have been accepted where the parser stands
	err   *SyntaxError
}

type word struct {
	text   string
	column int
}

func newParser(text string) *parser {
	p := &parser{end: len(text) + 1}
	for i := 0; i < len(text); {
		n := strings.IndexAny(text[i:], " \t")
		if n < 0 {
			n = len(text) - i
		}
		if n > 0 {
			p.words = append(p.words, word{text[i : i+n], i + 1})
		}
		i += n + 1
	}
	return p
}

func (p *parser) fail(column int, format string, args ...any) {
	if p.err == nil {
		p.err = &SyntaxError{Column: column, Reason: fmt.Sprintf(format, args...)}
	}
	p.words = nil
}

// accept takes the next word if it is this one.
func (p *parser) accept(keyword string) bool {
	if len(p.words) > 0 && p.words[0].text == keyword {
		p.words, p.tried = p.words[1:], nil
		return true
	}
	p.tried = append(p.tried, keyword)
	return false
}

// take takes the next word, whatever it is. what says so to who did not give one.
func (p *parser) take(what string) (word, bool) {
	if len(p.words) == 0 {
		p.fail(p.end, "the text ends: go on with %s", what)
		return word{column: p.end}, false
	}
	w := p.words[0]
	p.words, p.tried = p.words[1:], nil
	return w, true
}

// stuck refuses the next word, with all that was tried for it.
func (p *parser) stuck() {
	slices.Sort(p.tried)
	tried := strings.Join(slices.Compact(p.tried), ", ")
	switch {
	case len(p.words) == 0:
		p.fail(p.end, "the text ends: go on with one of %s", tried)
	case tried == "":
		p.fail(p.words[0].column, "%s is too much: end before it", quote(p.words[0].text))
	default:
		p.fail(p.words[0].column, "%s is none of %s, which may stand here", quote(p.words[0].text), tried)
	}
}

// done refuses what is left.
func (p *parser) done() {
	if len(p.words) > 0 {
		p.stuck()
	}
}

func (p *parser) rule() (r Rule) {
	r.Verdict = p.verdict()
	switch {
	case p.accept("in"):
	case p.accept("out"):
		r.Direction = Out
	default:
		p.stuck()
	}
	p.subject(&r)
	if r.Subject == AnyIP || r.Subject == OfProtocol {
		if p.accept("from") {
			r.From, r.FromPort = p.side(&r, netip.Prefix{})
		}
		if p.accept("to") {
			r.To, r.ToPort = p.side(&r, r.From)
		}
		r.ICMP = p.icmp(&r)
	}
	p.done()
	return r
}

func (p *parser) verdict() Verdict {
	switch {
	case p.accept("allow"):
		return Allow
	case p.accept("deny"):
	default:
		p.stuck()
	}
	return Deny
}

func (p *parser) subject(r *Rule) {
	switch {
	case p.accept("any"):
	case p.accept("ether"):
		p.ether(r)
	case p.protocol(&r.Number):
		r.Subject = OfProtocol
	}
}

// protocol reads a protocol's name or number, if there is one.
func (p *parser) protocol(number *uint16) bool {
	for _, known := range protocols {
		if p.accept(known.name) {
			*number = known.number
			return true
		}
	}
	if p.accept("proto") {
		*number, _ = p.number("a protocol's number", 0, 255)
		return true
	}
	return false
}

// EtherTypes that no rule names, and why.
var unspoken = map[uint16]string{
	etherIPv4: "that of IPv4: name a protocol or addresses instead",
	etherIPv6: "that of IPv6: name a protocol or addresses instead",
	etherARP:  "that of ARP, which always passes: leave the rule out",
	etherRARP: "that of RARP, which always passes: leave the rule out",
	0x8100:    "a VLAN tag's, which is looked through: name the EtherType behind it",
	0x88a8:    "a VLAN tag's, which is looked through: name the EtherType behind it",
}

func (p *parser) ether(r *Rule) {
	if p.accept("any") {
		r.Subject = AnyEther
		return
	}
	w, ok := p.take("an EtherType, as 0x88cc, or any")
	if !ok {
		return
	}
	digits, hex := strings.CutPrefix(w.text, "0x")
	n, err := strconv.ParseUint(digits, 16, 16)
	switch {
	case !hex || err != nil || len(digits) != 4:
		p.fail(w.column, "%s is no EtherType: write four hexadecimal digits as 0x88cc, or any", quote(w.text))
	case n < 0x600:
		p.fail(w.column, "%s is no EtherType but a length (IEEE 802.3): such frames are among ether any", w.text)
	case unspoken[uint16(n)] != "":
		p.fail(w.column, "%s is %s", w.text, unspoken[uint16(n)])
	}
	r.Subject, r.Number = OfEther, uint16(n)
}

// side reads the source or the destination. other is the prefix of the other one.
func (p *parser) side(r *Rule, other netip.Prefix) (prefix netip.Prefix, ports Ports) {
	prefix = p.prefix(r, other)
	if len(p.words) > 0 && p.words[0].text == "port" && (r.Subject != OfProtocol || !hasPorts(r.Number)) {
		p.fail(p.words[0].column, "a port needs a protocol that has ports: name tcp, udp, or proto 33, 132 or 136 before from and to")
		return prefix, ports
	}
	if r.Subject == OfProtocol && hasPorts(r.Number) && p.accept("port") {
		ports = p.ports()
	}
	return prefix, ports
}

func (p *parser) prefix(r *Rule, other netip.Prefix) netip.Prefix {
	w, ok := p.take("an address, a prefix, or any")
	if !ok || w.text == "any" {
		return netip.Prefix{}
	}
	prefix, err := netip.ParsePrefix(w.text)
	if a, alone := netip.ParseAddr(w.text); alone == nil && a.Zone() == "" {
		prefix, err = netip.PrefixFrom(a, a.BitLen()), nil
	}
	switch {
	case err != nil:
		p.fail(w.column, "%s is no prefix: write it as 10.0.0.0/8 or fd00::/64, an address alone, or any", quote(w.text))
	case prefix.Addr().Is4In6():
		p.fail(w.column, "%s is an IPv4 prefix in IPv6's dress: write the IPv4 address", w.text)
	case prefix != prefix.Masked():
		p.fail(w.column, "%s has bits beyond its length: write %s", w.text, prefix.Masked())
	case other.IsValid() && other.Addr().Is4() != prefix.Addr().Is4():
		p.fail(w.column, "%s and %s are of different IP versions: a packet has one", other, prefix)
	case r.Subject == OfProtocol && r.Number == protoICMP && prefix.Addr().Is6():
		p.fail(w.column, "%s is an IPv6 prefix: icmp is IPv4's, name icmpv6", prefix)
	case r.Subject == OfProtocol && r.Number == protoICMPv6 && prefix.Addr().Is4():
		p.fail(w.column, "%s is an IPv4 prefix: icmpv6 is IPv6's, name icmp", prefix)
	}
	return prefix
}

func (p *parser) ports() (r Ports) {
	w, ok := p.take("a port, or a range as 80-443")
	if !ok {
		return r
	}
	first, last, isRange := strings.Cut(w.text, "-")
	a, okA := decimal(first, 1, 65535)
	b, okB := a, okA
	if isRange {
		b, okB = decimal(last, 1, 65535)
	}
	switch {
	case !okA || !okB:
		p.fail(w.column, "%s is no port: give 1 to 65535, or a range as 80-443", quote(w.text))
	case a > b:
		p.fail(w.column, "%s runs backwards: write %d-%d", w.text, b, a)
	}
	return Ports{a, b}
}

// Neighbour discovery's counterpart of ARP (RFC 4861), which no policy judges.
const (
	neighbourSolicitation  = 135
	neighbourAdvertisement = 136
)

func (p *parser) icmp(r *Rule) (m ICMP) {
	is := r.Subject == OfProtocol && (r.Number == protoICMP || r.Number == protoICMPv6)
	if len(p.words) > 0 && p.words[0].text == "type" && !is {
		p.fail(p.words[0].column, "a type needs icmp or icmpv6: name it before from and to")
	}
	if !is || !p.accept("type") {
		return m
	}
	n, column := p.number("an ICMP type", 0, 255)
	m.HasType, m.Type = true, uint8(n)
	if r.Number == protoICMPv6 && (n == neighbourSolicitation || n == neighbourAdvertisement) && r.Verdict == Deny {
		p.fail(column, "type %d is neighbour discovery, which always passes as ARP does: leave the rule out", n)
	}
	if p.accept("code") {
		n, _ := p.number("an ICMP code", 0, 255)
		m.HasCode, m.Code = true, uint8(n)
	}
	return m
}

// number reads a decimal number, and says where it stood.
func (p *parser) number(what string, low, high uint64) (uint16, int) {
	w, ok := p.take(what)
	if !ok {
		return 0, w.column
	}
	n, ok := decimal(w.text, low, high)
	if !ok {
		p.fail(w.column, "%s is not %s: give %d to %d", quote(w.text), what, low, high)
	}
	return n, w.column
}

// decimal reads a number without sign or leading zero.
func decimal(text string, low, high uint64) (uint16, bool) {
	n, err := strconv.ParseUint(text, 10, 16)
	return uint16(n), err == nil && n >= low && n <= high && text == strconv.FormatUint(n, 10)
}

// quote shows a word of the user's, which may be anything.
func quote(s string) string {
	const most = 64
	if len(s) > most {
		s = s[:most] + "..."
	}
	return strconv.Quote(s)
}
