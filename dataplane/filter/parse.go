package filter

import (
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"

	"github.com/shuntio/shunt/dataplane/wire"
)

// Bounds of an expression.
const (
	maxText  = 4096
	maxTests = 256
	maxDepth = 64
)

// Error says what is wrong with an expression.
type Error struct {
	Column int // of the text, from 1
	Reason string
}

func (e *Error) Error() string { return fmt.Sprintf("filter, column %d: %s", e.Column, e.Reason) }

// Compile makes a filter of an expression; an empty one matches all. UDP datagrams to one of ports are VXLAN; with none it is 4789.
func Compile(text string, ports ...uint16) (*Filter, error) {
	if len(ports) == 0 {
		ports = []uint16{wire.VXLANPort}
	}
	f := &Filter{text: text, ports: ports, entry: accept}
	if len(text) > maxText {
		return nil, &Error{maxText, fmt.Sprintf("the expression is longer than %d bytes", maxText)}
	}
	p := &parser{text: text}
	p.next()
	if p.token == "" {
		return f, nil
	}
	t, err := p.any()
	if err == nil && p.token != "" {
		err = p.wrong("%q comes after the end of the expression: join with and, or, not", p.token)
	}
	if err != nil {
		return nil, err
	}
	f.entry = int(f.emit(t, accept, reject))
	return f, nil
}

// parser reads
//
//	any   = one {and one | or one}        and: "and", "&&"; or: "or", "||"
//	one   = not one | inner one | "(" any ")" | test
//
// from left to right: "and" and "or" bind alike, as tcpdump has it.
type parser struct {
	text   string
	at     int    // behind token
	column int    // of token
	token  string // empty at the end
	tests  int
	depth  int
	inner  bool
	// again reads a value as the last test did, for "port 80 or 443".
	again func() (*tree, error)
}

// next reads a token: a parenthesis, an operator of signs, or a word.
func (p *parser) next() {
	const blanks, signs = " \t\r\n", "()!&|"
	for p.at < len(p.text) && strings.IndexByte(blanks, p.text[p.at]) >= 0 {
		p.at++
	}
	begin := p.at
	p.column = begin + 1
	for p.at < len(p.text) && strings.IndexByte(blanks+signs, p.text[p.at]) < 0 {
		p.at++
	}
	if p.at == begin && begin < len(p.text) {
		p.at++
		if two := p.text[begin:min(begin+2, len(p.text))]; two == "&&" || two == "||" {
			p.at++
		}
	}
	p.token = p.text[begin:p.at]
}

func (p *parser) wrong(format string, args ...any) error {
	return &Error{p.column, fmt.Sprintf(format, args...)}
}

// is takes the token if it is one of these.
func (p *parser) is(words ...string) bool {
	for _, w := range words {
		if p.token == w {
			p.next()
			return true
		}
	}
	return false
}

func (p *parser) any() (*tree, error) {
	left, err := p.one()
	for err == nil {
		t := &tree{left: left}
		switch {
		case p.is("and", "&&"):
			t.kind = '&'
		case p.is("or", "||"):
			t.kind = '|'
		default:
			return left, nil
		}
		t.right, err = p.one()
		left = t
	}
	return left, err
}

func (p *parser) one() (*tree, error) {
	if p.depth++; p.depth > maxDepth {
		return nil, p.wrong("the expression is nested deeper than %d", maxDepth)
	}
	defer func() { p.depth-- }()
	switch {
	case p.is("not", "!"):
		t, err := p.one()
		return &tree{kind: '!', left: t}, err
	case p.token == "inner":
		return p.inside()
	case p.is("("):
		t, err := p.any()
		if err == nil && !p.is(")") {
			err = p.wrong("a closing parenthesis is missing")
		}
		return t, err
	}
	if p.tests++; p.tests > maxTests {
		return nil, p.wrong("there are more than %d tests", maxTests)
	}
	return p.test()
}

// inside reads what is to be true of the frame in a tunnel.
func (p *parser) inside() (*tree, error) {
	if p.inner {
		return nil, p.wrong("inner is within inner: only one tunnel is looked into")
	}
	p.next()
	p.inner = true
	defer func() { p.inner = false }()
	t, err := p.one()
	if err != nil {
		return nil, err
	}
	// There must be an inner frame, also for "inner not tcp".
	tunnel := &tree{kind: 't', test: test{ask: askVNI, high: math.MaxUint32}}
	return &tree{kind: '&', left: tunnel, right: t}, nil
}

// leaf is a test as a tree.
func (p *parser) leaf(t test) *tree {
	t.inner = p.inner
	return &tree{kind: 't', test: t}
}

// number reads a value, or a range of them if that is allowed.
func (p *parser) number(what string, least, most uint32, ranged bool) (low, high uint32, err error) {
	from, to, isRange := strings.Cut(p.token, "-")
	if !isRange {
		to = from
	}
	a, errA := decimalOrHex(from)
	b, errB := decimalOrHex(to)
	switch {
	case errA != nil || errB != nil || isRange && !ranged:
		kind := "a number"
		if ranged {
			kind = "a range such as 1-9"
		}
		return 0, 0, p.wrong("%s needs %s, not %q", what, kind, p.token)
	case a < uint64(least) || b > uint64(most) || a > b:
		return 0, 0, p.wrong("%s %s is not within %d and %d, the lower number first", what, p.token, least, most)
	}
	p.next()
	return uint32(a), uint32(b), nil
}

func decimalOrHex(s string) (uint64, error) {
	if digits, is := strings.CutPrefix(s, "0x"); is {
		return strconv.ParseUint(digits, 16, 32)
	}
	return strconv.ParseUint(s, 10, 32)
}

// network reads an address or a prefix.
func (p *parser) network(prefix bool) (t test, err error) {
	var n netip.Prefix
	if a, e := netip.ParseAddr(p.token); e == nil && a.Zone() == "" {
		n = netip.PrefixFrom(a, a.BitLen())
	} else if n, e = netip.ParsePrefix(p.token); e != nil || !prefix {
		what := "an address such as 10.0.0.1"
		if prefix {
			what = "a prefix such as 10.0.0.0/8"
		}
		return t, p.wrong("%q is not %s", p.token, what)
	}
	if n.Masked() != n {
		return t, p.wrong("%s has bits beyond its length: is it %s?", n, n.Masked())
	}
	t.ask = askAddress
	if a := n.Addr(); a.Is4() {
		b := a.As4()
		t.family, t.address[0] = wire.EtherTypeIPv4, uint64(binary.BigEndian.Uint32(b[:]))<<32
		t.mask[0] = ^uint64(0) << (64 - n.Bits())
	} else {
		b := a.As16()
		t.family, t.address = wire.EtherTypeIPv6, [2]uint64{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
		t.mask = [2]uint64{^uint64(0) << (64 - min(n.Bits(), 64)), ^uint64(0) << (128 - max(n.Bits(), 64))}
	}
	p.next()
	return t, nil
}
