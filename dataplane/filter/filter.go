// Package filter chooses frames by an expression in the manner of tcpdump's:
//
//	tcp and port 443 and not host 10.0.0.1
//	udp and dst portrange 4000-4999
//	vni 100 and inner (arp or icmp6)
//
// Compile makes a tree of the text and of the tree a flat program:
//
//	text ─▶ lexer ─▶ parser (parse.go) ─▶ tree ─▶ program of tests, each with its two continuations
//
// A program only ever jumps to lower addresses, so a frame passes each test once at most, nothing is allocated, and Match can run on the worker
// that has the frame. It looks at the frame's head alone.
//
// It differs from tcpdump where the engine knows more: VLAN tags and IPv6 extension headers are looked through, vni and inner see
// into a tunnel. There is no access to single bytes.
package filter

import (
	"encoding/binary"

	"github.com/shuntio/shunt/dataplane/wire"
)

// Filter is a compiled expression. Many workers may use it at a time.
type Filter struct {
	text  string
	code  []test
	entry int
	ports []uint16 // UDP ports of VXLAN
	deep  bool     // some test is of the inner frame or its network
}

// String is the expression.
func (f *Filter) String() string { return f.text }

// test is one instruction: a question about the frame, and where to go on.
type test struct {
	ask     question
	sides   sides
	inner   bool
	yes, no int16 // lower addresses, or one of those below

	low, high uint32 // a range of numbers
	// An address and what of it counts, in the order of the wire; IPv4 in the upper half's upper half.
	family   uint16 // EtherType
	address  [2]uint64
	mask     [2]uint64
	hardware wire.MAC
}

// Where a program ends.
const (
	accept = -1
	reject = -2
)

type question uint8

const (
	askEtherType question = iota // low
	askHardware                  // hardware, by sides
	askMulticast                 // of the destination; hardware: broadcast only
	askVLAN                      // any tag in low to high
	askLength                    // low to high
	askProtocol                  // low, in family or both
	askAddress                   // address and mask, by sides
	askPort                      // low to high, by sides
	askVNI                       // low to high
)

// sides says which ends of a packet a test means.
type sides uint8

const (
	source sides = 1 << iota
	destination
	both   // at once: src and dst
	either = source | destination
)

// packet is a frame as the tests see it.
type packet struct {
	head   []byte
	length int
	layers wire.Layers
}

func look(head []byte, length int) packet { return packet{head, length, wire.Locate(head)} }

// Match reports whether the expression is true of a frame, given its head and its length in bytes.
func (f *Filter) Match(head []byte, length int) bool {
	outer := look(head, length)
	var inner packet
	vni := int64(-1)
	if f.deep {
		inner, vni = f.open(&outer)
	}
	at := f.entry
	for at >= 0 {
		t := &f.code[at]
		p := &outer
		if t.inner {
			p = &inner
		}
		var is bool
		if t.ask == askVNI {
			is = vni >= int64(t.low) && vni <= int64(t.high)
		} else {
			is = t.is(p)
		}
		if at = int(t.no); is {
			at = int(t.yes)
		}
	}
	return at == accept
}

// open finds the frame in a tunnel, and its network; -1 if there is none.
func (f *Filter) open(p *packet) (inner packet, vni int64) {
	at := int(p.layers.Transport)
	if at == 0 || p.layers.Fragment || p.layers.Protocol != wire.ProtoUDP || len(p.head) < at+wire.UDPLen+wire.VXLANLen {
		return packet{}, -1
	}
	port := binary.BigEndian.Uint16(p.head[at+2:])
	for _, known := range f.ports {
		if h := wire.VXLAN(p.head[at+wire.UDPLen:]); port == known && h.HasVNI() {
			at += wire.UDPLen + wire.VXLANLen
			return look(p.head[at:], max(0, p.length-at)), int64(h.VNI())
		}
	}
	return packet{}, -1
}

// is answers the test.
func (t *test) is(p *packet) bool {
	if len(p.head) < wire.EthernetLen {
		return false
	}
	l := &p.layers
	switch t.ask {
	case askEtherType:
		return uint32(l.EtherType) == t.low
	case askHardware:
		h := wire.Ethernet(p.head)
		return t.either(h.Source() == t.hardware, h.Destination() == t.hardware)
	case askMulticast:
		d := wire.Ethernet(p.head).Destination()
		return d.IsMulticast() && (t.hardware == 0 || d == t.hardware)
	case askVLAN:
		return t.isVLAN(p)
	case askLength:
		return uint32(p.length) >= t.low && uint32(p.length) <= t.high
	case askProtocol:
		return t.isIP(l) && !l.Broken && uint32(l.Protocol) == t.low
	case askAddress:
		return t.isAddress(p)
	case askPort:
		return t.isPort(p)
	}
	return false
}

// either is the test's answer, given those about where the packet is from and where it goes to.
func (t *test) either(from, to bool) bool {
	switch t.sides {
	case source:
		return from
	case destination:
		return to
	case both:
		return from && to
	}
	return from || to
}

func (t *test) isIP(l *wire.Layers) bool {
	if l.Network == 0 || l.EtherType != wire.EtherTypeIPv4 && l.EtherType != wire.EtherTypeIPv6 {
		return false
	}
	return t.family == 0 || t.family == l.EtherType
}

func (t *test) isVLAN(p *packet) bool {
	for i := range int(p.layers.Tags) {
		id := uint32(binary.BigEndian.Uint16(p.head[wire.EthernetLen+i*wire.VLANLen:]) & 0xfff)
		if id >= t.low && id <= t.high {
			return true
		}
	}
	return false
}

// isAddress compares the addresses of IP packets, and of ARP those it is about.
func (t *test) isAddress(p *packet) bool {
	l := &p.layers
	at := int(l.Network)
	if at == 0 {
		return false
	}
	b := p.head[at:]
	switch {
	case l.EtherType == wire.EtherTypeIPv4 && t.family == wire.EtherTypeIPv4 && len(b) >= wire.IPv4MinLen:
		return t.either(t.covers4(b[12:]), t.covers4(b[16:]))
	case l.EtherType == wire.EtherTypeARP && t.family == wire.EtherTypeIPv4:
		if _, ok := wire.ParseARP(b); ok {
			return t.either(t.covers4(b[14:]), t.covers4(b[24:]))
		}
	case l.EtherType == wire.EtherTypeIPv6 && t.family == wire.EtherTypeIPv6 && len(b) >= wire.IPv6Len:
		return t.either(t.covers6(b[8:]), t.covers6(b[24:]))
	}
	return false
}

func (t *test) covers4(b []byte) bool {
	return uint64(binary.BigEndian.Uint32(b))<<32&t.mask[0] == t.address[0]
}

func (t *test) covers6(b []byte) bool {
	return binary.BigEndian.Uint64(b)&t.mask[0] == t.address[0] && binary.BigEndian.Uint64(b[8:])&t.mask[1] == t.address[1]
}

// isPort looks at the ports of TCP, UDP and SCTP. Later fragments have none.
func (t *test) isPort(p *packet) bool {
	l := &p.layers
	at := int(l.Transport)
	if at == 0 || len(p.head) < at+4 || l.Protocol != wire.ProtoTCP && l.Protocol != wire.ProtoUDP && l.Protocol != protoSCTP {
		return false
	}
	from, to := uint32(binary.BigEndian.Uint16(p.head[at:])), uint32(binary.BigEndian.Uint16(p.head[at+2:]))
	return t.either(from >= t.low && from <= t.high, to >= t.low && to <= t.high)
}

const protoSCTP = 132

// tree is an expression.
type tree struct {
	kind        rune // 't': test; '!': not left; '&', '|': left and right
	test        test
	left, right *tree
}

// emit appends the program of a tree that goes on at yes or no, and returns where it begins. What comes later in the text is emitted first, so that
// every jump leads to a lower address.
func (f *Filter) emit(t *tree, yes, no int16) int16 {
	switch t.kind {
	case '!':
		return f.emit(t.left, no, yes)
	case '&':
		return f.emit(t.left, f.emit(t.right, yes, no), no)
	case '|':
		return f.emit(t.left, yes, f.emit(t.right, yes, no))
	}
	t.test.yes, t.test.no = yes, no
	f.code = append(f.code, t.test)
	f.deep = f.deep || t.test.inner || t.test.ask == askVNI
	return int16(len(f.code) - 1)
}
