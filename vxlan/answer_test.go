package vxlan

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/shuntio/shunt/dataplane/dataplanetest"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/wire"
	"pgregory.net/rapid"
)

// arpQuestion is an ARP request, by gopacket.
func arpQuestion(tb interface{ Fatal(...any) }, from wire.MAC, sender, target string, change func(*layers.ARP)) []byte {
	a := &layers.ARP{AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4, Operation: 1,
		SourceHwAddress: hw(from), SourceProtAddress: netip.MustParseAddr(sender).AsSlice(), DstHwAddress: make([]byte, 6), DstProtAddress: netip.MustParseAddr(target).AsSlice()}
	if change != nil {
		change(a)
	}
	return serialize(tb, &layers.Ethernet{SrcMAC: hw(from), DstMAC: hw(wire.Broadcast), EthernetType: layers.EthernetTypeARP}, a)
}

// ndQuestion is a neighbour solicitation, by gopacket; link adds the source's link-layer address.
type ndQuestion struct {
	from           wire.MAC
	source, target string
	destination    string // empty: the solicited node's group
	link           bool
	hops, code     uint8
	options        []byte // raw
}

func (q ndQuestion) frame(tb interface{ Fatal(...any) }) []byte {
	target := netip.MustParseAddr(q.target).As16()
	to := wire.SolicitedNode(target)
	if q.destination != "" {
		to = netip.MustParseAddr(q.destination).As16()
	}
	if q.hops == 0 {
		q.hops = 255
	}
	ip := &layers.IPv6{Version: 6, HopLimit: q.hops, NextHeader: layers.IPProtocolICMPv6, SrcIP: netip.MustParseAddr(q.source).AsSlice(), DstIP: to[:]}
	icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(135, q.code)}
	_ = icmp.SetNetworkLayerForChecksum(ip)
	ns := &layers.ICMPv6NeighborSolicitation{TargetAddress: target[:]}
	if q.link {
		ns.Options = append(ns.Options, layers.ICMPv6Option{Type: 1, Data: hw(q.from)})
	}
	ether := &layers.Ethernet{SrcMAC: hw(q.from), DstMAC: []byte{0x33, 0x33, to[12], to[13], to[14], to[15]}, EthernetType: layers.EthernetTypeIPv6}
	return serialize(tb, ether, ip, icmp, ns, gopacket.Payload(q.options))
}

// asked is a lab with addresses of all kinds: a and b are here, mac3 is on another machine.
func asked(tb testing.TB) (l *lab, up, a, b *dataplanetest.Port) {
	l = newLab(tb)
	up = l.uplink("up0", host4)
	l.network(Network{Name: "blue", VNI: 100, Uplink: "up0", Flood: []netip.Addr{peer4}, Entries: []Entry{
		{MAC: mac3, VTEP: peer4, IP: netip.MustParseAddr("10.0.0.3")}, {MAC: mac4, VTEP: peer4, IP: netip.MustParseAddr("fd00::4")},
		{MAC: macX, VTEP: peer4, IP: netip.MustParseAddr("10.0.0.99")},
	}})
	ips := func(all ...string) (ips []netip.Addr) {
		for _, s := range all {
			ips = append(ips, netip.MustParseAddr(s))
		}
		return ips
	}
	a = l.attach(Port{Name: "a", Network: "blue", MAC: mac1, IPs: ips("10.0.0.1", "fd00::1", "fe80::1", "10.0.0.99")})
	b = l.attach(Port{Name: "b", Network: "blue", MAC: mac2, IPs: ips("10.0.0.2", "fd00::2", "fe80::2", "10.0.1.2")})
	return l, up, a, b
}

// A network that leaves questions to who has the addresses floods them.
func TestNoAnswer(t *testing.T) {
	l, up, a, b := asked(t)
	l.network(Network{Name: "blue", VNI: 100, Uplink: "up0", NoAnswer: true, Flood: []netip.Addr{peer4}})
	l.send(a, arpQuestion(t, mac1, "10.0.0.1", "10.0.0.2", nil))
	if n, m, answers := len(b.Sent()), len(up.Sent()), len(a.Sent()); n != 1 || m != 1 || answers != 0 {
		t.Errorf("%d went to the guest asked for, %d to the wire, %d answers", n, m, answers)
	}
}

func TestAnswerARP(t *testing.T) {
	for target, mac := range map[string]wire.MAC{"10.0.0.2": mac2, "10.0.1.2": mac2, "10.0.0.3": mac3} {
		for _, sender := range []string{"10.0.0.1", "0.0.0.0"} { // a question, and a probe for duplicates
			l, up, a, b := asked(t)
			l.send(a, arpQuestion(t, mac1, sender, target, nil))
			l.got(b)
			l.got(up)
			sent := a.Sent()
			if len(sent) != 1 {
				t.Fatalf("%s from %s: %d answers", target, sender, len(sent))
			}
			p := gopacket.NewPacket(sent[0].Bytes, layers.LayerTypeEthernet, gopacket.Default)
			e, _ := p.LinkLayer().(*layers.Ethernet)
			r, _ := p.Layer(layers.LayerTypeARP).(*layers.ARP)
			if r == nil || !bytes.Equal(e.DstMAC, hw(mac1)) || !bytes.Equal(e.SrcMAC, hw(mac)) || r.Operation != 2 ||
				!bytes.Equal(r.SourceHwAddress, hw(mac)) || !bytes.Equal(r.SourceProtAddress, netip.MustParseAddr(target).AsSlice()) ||
				!bytes.Equal(r.DstHwAddress, hw(mac1)) || !bytes.Equal(r.DstProtAddress, netip.MustParseAddr(sender).AsSlice()) {
				t.Errorf("%s from %s: %v", target, sender, p)
			}
			l.balanced()
		}
	}
}

// What is not answered goes on as it was, to everybody.
func TestNotAnsweredARP(t *testing.T) {
	question := func(target string, change func(*layers.ARP)) []byte {
		return arpQuestion(t, mac1, "10.0.0.1", target, change)
	}
	known := question("10.0.0.2", nil)
	for name, f := range map[string][]byte{
		"not known":           question("10.0.0.7", nil),
		"the asker's own":     question("10.0.0.1", nil),
		"probe for its own":   arpQuestion(t, mac1, "0.0.0.0", "10.0.0.1", nil),
		"announcement":        arpQuestion(t, mac1, "10.0.0.2", "10.0.0.2", nil),
		"two have it":         question("10.0.0.99", nil),
		"a reply":             question("10.0.0.2", func(a *layers.ARP) { a.Operation = 2 }),
		"for another asker":   question("10.0.0.2", func(a *layers.ARP) { a.SourceHwAddress = hw(macX) }),
		"of another protocol": question("10.0.0.2", func(a *layers.ARP) { a.Protocol = 0x1234 }),
		"tagged":              append(append(bytes.Clone(known[:12]), 0x81, 0, 0, 1), known[12:]...),
		"cut off":             known[:41],
	} {
		l, _, a, b := asked(t)
		l.send(a, f)
		l.got(a)
		l.got(b, f)
		if t.Failed() {
			t.Fatal(name)
		}
	}
	// With a body, which is not looked at.
	l, _, a, b := asked(t)
	a.Feed(dataplanetest.Packet{Bytes: known, Head: 42, Piece: 5})
	l.settle()
	l.got(a)
	l.got(b, known)
	// From the wire: whoever asks there has neighbours of its own.
	l, up, a, b := asked(t)
	l.send(up, tunnelPacket(t, host4, peer4, 100, arpQuestion(t, mac3, "10.0.0.3", "10.0.0.2", nil), nil))
	l.got(up)
	l.got(a, arpQuestion(t, mac3, "10.0.0.3", "10.0.0.2", nil))
	if len(b.Sent()) != 1 {
		t.Error("b was not asked")
	}
}

func TestAnswerND(t *testing.T) {
	for name, q := range map[string]ndQuestion{
		"question":            {source: "fd00::1", target: "fd00::2", link: true},
		"without its address": {source: "fd00::1", target: "fd00::2"},
		"other machine":       {source: "fe80::1", target: "fd00::4", link: true},
		"to the target":       {source: "fd00::1", target: "fd00::2", destination: "fd00::2"},
		"more options":        {source: "fd00::1", target: "fd00::2", link: true, options: []byte{14, 3, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22}},
		"nonce in a probe":    {source: "::", target: "fd00::2", options: []byte{14, 1, 1, 2, 3, 4, 5, 6}},
		"probe":               {source: "::", target: "fd00::4"},
	} {
		q.from = mac1
		mac := mac2
		if q.target == "fd00::4" {
			mac = mac4
		}
		l, up, a, b := asked(t)
		f := q.frame(t)
		f[0], f[1] = 0x33, 0x33
		l.send(a, f)
		l.got(b)
		l.got(up)
		sent := a.Sent()
		if len(sent) != 1 {
			t.Fatalf("%s: %d answers", name, len(sent))
		}
		wantMAC, to, flags := hw(mac1), q.source, uint8(0x60)
		if q.source == "::" {
			wantMAC, to, flags = []byte{0x33, 0x33, 0, 0, 0, 1}, "ff02::1", 0x20
		}
		p := gopacket.NewPacket(sent[0].Bytes, layers.LayerTypeEthernet, gopacket.Default)
		e, _ := p.LinkLayer().(*layers.Ethernet)
		ip, _ := p.NetworkLayer().(*layers.IPv6)
		r, _ := p.Layer(layers.LayerTypeICMPv6NeighborAdvertisement).(*layers.ICMPv6NeighborAdvertisement)
		if r == nil || !bytes.Equal(e.DstMAC, wantMAC) || !bytes.Equal(e.SrcMAC, hw(mac)) || ip.HopLimit != 255 || ip.SrcIP.String() != q.target ||
			ip.DstIP.String() != to || r.Flags != flags || r.TargetAddress.String() != q.target || len(r.Options) != 1 || r.Options[0].Type != 2 || !bytes.Equal(r.Options[0].Data, hw(mac)) {
			t.Errorf("%s: %v", name, p)
		}
		if len(sent[0].Bytes) != 86 || sumICMPv6(sent[0].Bytes) != 0 {
			t.Errorf("%s: %d bytes, checksum off by %#04x", name, len(sent[0].Bytes), sumICMPv6(sent[0].Bytes))
		}
		l.balanced()
	}
}

// sumICMPv6 is 0 if the checksum is right, with nothing of package wire.
func sumICMPv6(b []byte) uint64 {
	s := uint64(58 + len(b) - 54)
	for i, c := range b[22:] {
		s += uint64(c) << (8 * (1 - i%2))
	}
	return s % 0xffff
}

func TestNotAnsweredND(t *testing.T) {
	good := ndQuestion{from: mac1, source: "fd00::1", target: "fd00::2", link: true}
	of := func(change func(q *ndQuestion)) []byte {
		q := good
		change(&q)
		f := q.frame(t)
		f[0], f[1] = 0x33, 0x33
		return f
	}
	spoilt := func(change func(b []byte)) []byte {
		b := good.frame(t)
		change(b)
		return b
	}
	plain := good.frame(t)
	for name, f := range map[string][]byte{
		"not known":                    of(func(q *ndQuestion) { q.target = "fd00::7" }),
		"link-local":                   of(func(q *ndQuestion) { q.target = "fe80::2" }),
		"the asker's own":              of(func(q *ndQuestion) { q.source, q.target, q.link = "::", "fd00::1", false }),
		"forwarded":                    of(func(q *ndQuestion) { q.hops = 254 }),
		"code":                         of(func(q *ndQuestion) { q.code = 1 }),
		"probe with an address":        of(func(q *ndQuestion) { q.source = "::" }),
		"probe to the target":          of(func(q *ndQuestion) { q.source, q.destination, q.link = "::", "fd00::2", false }),
		"to all nodes":                 of(func(q *ndQuestion) { q.destination = "ff02::1" }),
		"from a group":                 of(func(q *ndQuestion) { q.source = "ff02::1" }),
		"option of length 0":           of(func(q *ndQuestion) { q.options = make([]byte, 8) }),
		"option beyond the end":        of(func(q *ndQuestion) { q.options = []byte{14, 2, 0, 0, 0, 0, 0, 0} }),
		"half an option":               of(func(q *ndQuestion) { q.options = []byte{14} }),
		"checksum":                     spoilt(func(b []byte) { b[56]++ }),
		"payload longer than frame":    spoilt(func(b []byte) { b[19]++ }),
		"payload shorter than message": spoilt(func(b []byte) { b[19] = 23 }),
		"advertisement":                spoilt(func(b []byte) { b[54] = 136 }),
		"fragment":                     spoilt(func(b []byte) { b[20] = 44 }),
		"tagged":                       append(append(bytes.Clone(plain[:12]), 0x81, 0, 0, 1), plain[12:]...),
		"cut off":                      plain[:77],
	} {
		l, _, a, b := asked(t)
		l.send(a, f)
		l.got(a)
		l.got(b, f)
		if t.Failed() {
			t.Fatal(name)
		}
	}
}

// A checksum that the guest leaves open is not verified, if it is this one.
func TestAnswerOpenChecksum(t *testing.T) {
	for start, want := range map[uint16]int{54: 1, 50: 0} {
		l, _, a, _ := asked(t)
		f := ndQuestion{from: mac1, source: "fd00::1", target: "fd00::2", link: true}.frame(t)
		f[56]++
		a.Feed(dataplanetest.Packet{Bytes: f, Checksum: frame.Checksum{Needed: true, Start: start, Offset: 2}})
		l.settle()
		if sent := a.Sent(); len(sent) != want || want == 1 && sent[0].Checksum.Needed {
			t.Errorf("checksum at %d: %d answers", start, len(sent))
		}
	}
}

// Tables follow the configuration.
func TestKnownChanges(t *testing.T) {
	l, _, a, _ := asked(t)
	answered := func(target string) bool {
		l.send(a, arpQuestion(t, mac1, "10.0.0.1", target, nil))
		return len(a.Sent()) == 1
	}
	if !answered("10.0.0.2") || answered("10.0.0.20") {
		t.Fatal("before")
	}
	l.must(l.sw.SetPort(Port{Name: "b", Network: "blue", MAC: mac2, IPs: []netip.Addr{netip.MustParseAddr("10.0.0.20")}}))
	if answered("10.0.0.2") || !answered("10.0.0.20") {
		t.Error("after the port's addresses changed")
	}
	l.detach("b")
	if answered("10.0.0.20") {
		t.Error("after the port has gone")
	}
	l.network(Network{Name: "blue", VNI: 100, Uplink: "up0"})
	if answered("10.0.0.3") {
		t.Error("after the entry has gone")
	}
	both := []Entry{{MAC: mac3, VTEP: peer4, IP: netip.MustParseAddr("10.0.0.3")}, {MAC: mac3, VTEP: peer4, IP: netip.MustParseAddr("10.0.0.33")}}
	l.network(Network{Name: "blue", VNI: 100, Uplink: "up0", Entries: both})
	if !answered("10.0.0.3") || !answered("10.0.0.33") {
		t.Error("a station with two addresses")
	}
}

func TestEntryIPRefused(t *testing.T) {
	for _, ip := range []string{"0.0.0.0", "::", "224.0.0.1", "ff02::1", "fe80::1%eth0"} {
		n := Network{Name: "blue", VNI: 1, Uplink: "up0", Entries: []Entry{{MAC: mac1, VTEP: peer4, IP: netip.MustParseAddr(ip)}}}
		if n.validate() == nil {
			t.Errorf("%s: accepted", ip)
		}
	}
}

func TestKnownAgainstMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var all []knownIP
		model := map[netip.Addr]wire.MAC{}
		first := map[wire.MAC]station{}
		for range rapid.IntRange(0, 100).Draw(t, "addresses") {
			n := byte(rapid.IntRange(0, 60).Draw(t, "address"))
			ip := netip.AddrFrom4([4]byte{10, 0, 0, n})
			if rapid.Bool().Draw(t, "IPv6") {
				ip = netip.AddrFrom16([16]byte{0: 0xfd, 15: n})
			}
			mac := wire.MAC(rapid.IntRange(1, 5).Draw(t, "MAC"))
			all = append(all, knownIP{ip, mac})
			if old, ok := model[ip]; ok && old != mac {
				mac = 0
			}
			model[ip] = mac
		}
		for _, a := range all {
			if s := first[a.mac]; model[a.ip] != 0 {
				if a.ip.Is4() && !s.ip4.IsValid() {
					s.ip4 = a.ip
				} else if a.ip.Is6() && !s.ip6.IsValid() {
					s.ip6 = a.ip
				}
				first[a.mac] = s
			}
		}
		k := newKnown(all, rapid.Uint64().Draw(t, "seed"))
		for n := range byte(70) {
			for _, ip := range []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, n}), netip.AddrFrom16([16]byte{0: 0xfd, 15: n})} {
				if got := k.find(knownKey(ip)); got != model[ip] {
					t.Fatalf("%v is at %v, want %v", ip, got, model[ip])
				}
			}
			if b := []byte{10, 0, 0, n}; k.find(known4(b)) != model[netip.AddrFrom4([4]byte(b))] {
				t.Fatal("IPv4 from a header has another key")
			}
		}
		for mac := range wire.MAC(8) {
			if k.station(mac) != first[mac] {
				t.Fatalf("%v has %v, want %v", mac, k.station(mac), first[mac])
			}
		}
	})
	var none known
	if none.find(address{}) != 0 || none.station(0) != (station{}) {
		t.Error("an empty table has something")
	}
}

// fuzzKnown is a network of two stations, for answer.
func fuzzKnown() *network {
	return &network{known: newKnown([]knownIP{{netip.MustParseAddr("10.0.0.2"), mac2}, {netip.MustParseAddr("fd00::2"), mac2}, {netip.MustParseAddr("10.0.0.1"), mac1}, {netip.MustParseAddr("fd00::1"), mac1}}, 7)}
}

func fuzzPool(tb interface{ Fatal(...any) }, n int) *frame.Pool {
	memory, err := frame.NewMemory(make([]byte, n*frame.ChunkSize))
	if err != nil {
		tb.Fatal(err)
	}
	pool, err := memory.NewPool(0, n)
	if err != nil {
		tb.Fatal(err)
	}
	return pool
}

// questions are what FuzzAnswer begins with.
func questions(t interface{ Fatal(...any) }) map[string][]byte {
	return map[string][]byte{
		"arp": arpQuestion(t, mac1, "10.0.0.1", "10.0.0.2", nil), "arp-probe": arpQuestion(t, mac1, "0.0.0.0", "10.0.0.2", nil),
		"arp-own": arpQuestion(t, mac1, "0.0.0.0", "10.0.0.1", nil), "arp-announcement": arpQuestion(t, mac1, "10.0.0.2", "10.0.0.2", nil),
		"nd":         ndQuestion{from: mac1, source: "fd00::1", target: "fd00::2", link: true}.frame(t),
		"nd-unicast": ndQuestion{from: mac1, source: "fd00::1", target: "fd00::2", destination: "fd00::2"}.frame(t),
		"nd-probe":   ndQuestion{from: mac1, source: "::", target: "fd00::2"}.frame(t),
		"nd-nonce":   ndQuestion{from: mac1, source: "::", target: "fd00::2", options: []byte{14, 1, 1, 2, 3, 4, 5, 6}}.frame(t),
		"nd-option":  ndQuestion{from: mac1, source: "fd00::1", target: "fd00::2", options: []byte{14, 0, 1, 2, 3, 4, 5, 6}}.frame(t),
	}
}

// FuzzAnswer holds that no frame makes answer panic; that what it leaves alone it does not change; and that an answer, to gopacket, is a right one to what
// gopacket takes for a question about the address.
func FuzzAnswer(f *testing.F) {
	for _, b := range questions(f) {
		f.Add(b)
	}
	nw, pool := fuzzKnown(), fuzzPool(f, 1)
	f.Fuzz(func(t *testing.T, b []byte) {
		fr := pool.Get()
		defer pool.Put(fr)
		copy(fr.Append(min(len(b), fr.Room())), b)
		before := bytes.Clone(fr.Head())
		if !nw.answer(fr) {
			if !bytes.Equal(before, fr.Head()) {
				t.Fatal("left alone, and changed")
			}
			return
		}
		q, a := gopacket.NewPacket(before, layers.LayerTypeEthernet, gopacket.NoCopy), gopacket.NewPacket(fr.Head(), layers.LayerTypeEthernet, gopacket.NoCopy)
		if q1, ok := q.Layer(layers.LayerTypeARP).(*layers.ARP); ok {
			a1, ok := a.Layer(layers.LayerTypeARP).(*layers.ARP)
			mac := nw.known.find(known4(q1.DstProtAddress))
			if !ok || q1.Operation != 1 || a1.Operation != 2 || !bytes.Equal(a1.SourceProtAddress, q1.DstProtAddress) || !bytes.Equal(a1.DstProtAddress, q1.SourceProtAddress) ||
				!bytes.Equal(a1.DstHwAddress, q1.SourceHwAddress) || mac == 0 || !bytes.Equal(a1.SourceHwAddress, hw(mac)) {
				t.Fatalf("%v\n%v", q, a)
			}
			return
		}
		q2, ok := q.Layer(layers.LayerTypeICMPv6NeighborSolicitation).(*layers.ICMPv6NeighborSolicitation)
		a2, ok2 := a.Layer(layers.LayerTypeICMPv6NeighborAdvertisement).(*layers.ICMPv6NeighborAdvertisement)
		if !ok || !ok2 || !a2.TargetAddress.Equal(q2.TargetAddress) || sumICMPv6(fr.Head()) != 0 || q.NetworkLayer().(*layers.IPv6).HopLimit != 255 {
			t.Fatalf("%v\n%v", q, a)
		}
	})
}

func TestAnswerAllocatesNothing(t *testing.T) {
	nw, pool := fuzzKnown(), fuzzPool(t, 1)
	for name, b := range questions(t) {
		if n := testing.AllocsPerRun(100, func() {
			f := pool.Get()
			copy(f.Append(len(b)), b)
			nw.answer(f)
			pool.Put(f)
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// TestAnswerCorpus holds that what is checked in is what the tests make; SHUNT_WRITE_CORPUS=1 writes it.
func TestAnswerCorpus(t *testing.T) {
	for name, b := range questions(t) {
		checkIn(t, "FuzzAnswer", name, fmt.Sprintf("[]byte(%s)\n", quote(b)))
	}
}

func checkIn(t *testing.T, target, name, values string) {
	t.Helper()
	path, text := filepath.Join("testdata", "fuzz", target, name), "go test fuzz v1\n"+values
	if os.Getenv("SHUNT_WRITE_CORPUS") != "" {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if is, err := os.ReadFile(path); err != nil || string(is) != text {
		t.Errorf("%s is not what the test makes (%v): write it with SHUNT_WRITE_CORPUS=1", path, err)
	}
}
