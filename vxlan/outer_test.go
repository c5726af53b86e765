package vxlan

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/dataplanetest"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/wire"
)

// spoil returns a copy of a packet with a change, and a valid IPv4 header checksum unless it is to be spoilt.
func spoil(b []byte, change func(b []byte)) []byte {
	b = bytes.Clone(b)
	change(b)
	if b[12] == 8 && b[14]&0x0f >= 5 && len(b) >= 14+int(b[14]&0x0f)*4 {
		wire.IPv4(b[14:]).SetChecksum()
	}
	return b
}

func TestOuterRefused(t *testing.T) {
	inner := ethernetFrame(mac1, macX, 1, 2, 3)
	v4, v6 := tunnelPacket(t, host4, peer4, 100, inner, nil), tunnelPacket(t, host6, peer6, 100, inner, nil)
	set := func(at int, v ...byte) func([]byte) { return func(b []byte) { copy(b[at:], v) } }
	noSum := func(b []byte) []byte { return spoil(b, set(40, 0, 0)) }
	for _, c := range []struct {
		name string
		in   []byte
		want dataplane.Reason
	}{
		{"runt", v4[:13], DropMalformed},
		{"only Ethernet", v4[:14], DropOuterIP},
		{"other MAC", spoil(v4, set(0, 2, 0, 0, 0, 0, 9)), DropNotOurs},
		{"ARP", spoil(v4, set(12, 8, 6)), DropNotOurs},
		{"version", spoil(v4, set(14, 0x65)), DropOuterIP},
		{"header checksum", func() []byte { b := bytes.Clone(v4); b[24]++; return b }(), DropOuterIP},
		{"longer than the frame", spoil(v4, set(16, 0xff)), DropOuterIP},
		{"fragment", spoil(v4, set(20, 0x20)), DropOuterFragment},
		{"later fragment", spoil(v4, set(20, 0, 7)), DropOuterFragment},
		{"TCP", spoil(v4, set(23, 6)), DropNotOurs},
		{"other destination", spoil(v4, set(30, 192, 0, 2, 9)), DropNotOurs},
		{"other port", spoil(v4, set(36, 0x12, 0xb6)), DropNotOurs},
		{"UDP longer than IP", spoil(v4, set(38, 0x01)), DropOuterUDP},
		{"UDP shorter than its header", spoil(v4, set(38, 0, 7)), DropOuterUDP},
		{"UDP checksum", spoil(v4, set(60, 0xee)), DropOuterUDP},
		{"no VNI", spoil(noSum(v4), set(42, 0)), DropOuterVXLAN},
		{"inner frame of 13 bytes", spoil(noSum(v4), set(38, 0, 8+8+13)), DropOuterVXLAN},
		{"unknown VNI", spoil(noSum(v4), set(46, 0, 0, 101)), DropUnknownVNI},
		{"IPv6 on an IPv4 uplink", v6, DropNotOurs},
		{"IPv4, cut off", v4[:50], DropOuterIP},
	} {
		l := newLab(t)
		up, a, _ := blue(l)
		l.send(up, c.in)
		l.got(a)
		if up.Counters.Drops(c.want) != 1 {
			t.Errorf("%s: %v, want %v", c.name, drops(up), c.want)
		}
	}
	for _, c := range []struct {
		name string
		in   []byte
		want dataplane.Reason
	}{
		{"version", spoil(v6, set(14, 0x40)), DropOuterIP},
		{"longer than the frame", spoil(v6, set(18, 0xff)), DropOuterIP},
		{"other destination", spoil(v6, set(53, 9)), DropNotOurs},
		{"TCP", spoil(v6, set(20, 6)), DropNotOurs},
		{"cut off extensions", spoil(v6, func(b []byte) { b[20], b[54] = 60, 60 }), DropOuterIP},
		{"UDP checksum", spoil(v6, set(80, 0xee)), DropOuterUDP},
		{"IPv4 on an IPv6 uplink", v4, DropNotOurs},
	} {
		l := newLab(t)
		up := l.uplink("up0", host6)
		l.network(Network{Name: "blue", VNI: 100, Uplink: "up0"})
		a := l.attach(Port{Name: "a", Network: "blue", MAC: mac1})
		l.send(up, c.in)
		l.got(a)
		if up.Counters.Drops(c.want) != 1 {
			t.Errorf("IPv6, %s: %v, want %v", c.name, drops(up), c.want)
		}
	}
}

func TestOuterAccepted(t *testing.T) {
	inner := ethernetFrame(mac1, macX, 1, 2, 3)
	v4, v6 := tunnelPacket(t, host4, peer4, 100, inner, nil), tunnelPacket(t, host6, peer6, 100, inner, nil)
	options := append(append(bytes.Clone(v4[:34]), 1, 1, 1, 0), v4[34:]...)
	options = spoil(options, func(b []byte) { b[14] = 0x46; b[17] += 4 })
	extended := append(append(bytes.Clone(v6[:54]), 17, 0, 0, 0, 0, 0, 0, 0), v6[54:]...)
	extended[20], extended[19] = 60, extended[19]+8
	short := tunnelPacket(t, host4, peer4, 100, inner[:14], nil)
	for _, c := range []struct {
		name  string
		local netip.Addr
		in    []byte
		want  []byte
		head  int
	}{
		{"IPv4", host4, v4, inner, 0},
		{"IPv6", host6, v6, inner, 0},
		{"padded", host4, append(bytes.Clone(v4), 1, 2, 3), inner, 0},
		{"padded, with a body", host4, append(bytes.Clone(v4), 1, 2, 3), inner, 70},
		{"with a body", host4, v4, inner, 70},
		{"IPv6, with a body", host6, v6, inner, 95},
		{"no checksum", host4, spoil(v4, func(b []byte) { b[40], b[41] = 0, 0 }), inner, 0},
		{"IPv6, no checksum", host6, spoil(v6, func(b []byte) { b[60], b[61] = 0, 0 }), inner, 0},
		{"reserved bits set", host4, spoil(v4, func(b []byte) { b[40], b[41], b[42], b[43], b[49] = 0, 0, 0xff, 0xff, 0xff }), inner, 0},
		{"IPv4 options", host4, options, inner, 0},
		{"IPv6 destination options", host6, extended, inner, 0},
		{"nothing but an Ethernet header", host4, append(short, make([]byte, 20)...), inner[:14], 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t)
			up := l.uplink("up0", c.local)
			l.network(Network{Name: "blue", VNI: 100, Uplink: "up0"})
			a := l.attach(Port{Name: "a", Network: "blue", MAC: mac1})
			up.Feed(dataplanetest.Packet{Bytes: c.in, Head: c.head, Piece: 9})
			l.settle()
			if len(drops(up)) > 0 {
				t.Fatal(drops(up))
			}
			l.got(a, c.want)
			l.balanced()
		})
	}
}

// TestUplinkOptions sets what is usually left to the resolver and to the defaults.
func TestUplinkOptions(t *testing.T) {
	l := newLab(t)
	up := l.uplinkOf(Uplink{Name: "up0", Address: host4, MAC: hostMAC, Port: 8472, TTL: 9, TrustChecksums: true, Resolver: &Fixed{Gateway: peerMAC}})
	l.network(Network{Name: "blue", VNI: 100, Uplink: "up0", Entries: []Entry{{MAC: mac3, VTEP: peer4}}})
	a := l.attach(Port{Name: "a", Network: "blue", MAC: mac1})
	inner := ethernetFrame(mac1, mac3)
	l.send(up, spoil(tunnelPacket(t, host4, peer4, 100, inner, func(_ *layers.VXLAN, u *layers.UDP) { u.DstPort = 8472 }), func(b []byte) { b[40]++ }))
	l.got(a, inner)
	l.send(a, ethernetFrame(mac3, mac1))
	b := up.Sent()[0].Bytes
	if binary.BigEndian.Uint16(b[36:]) != 8472 || b[22] != 9 || wire.Ethernet(b).Source() != hostMAC {
		t.Errorf("% x", b[:50])
	}
}

// fuzzUplink is an uplink alone, for parse.
func fuzzUplink(local netip.Addr) *uplink {
	nw := &network{vni: 100}
	return &uplink{mac: hostMAC, port: 4789, is4: local.Is4(), is6: local.Is6(), address: addressOf(local), vnis: newVNITable([]*network{nw})}
}

// FuzzOuter holds that no packet makes the parser panic; that what it accepts, gopacket decodes to the same VNI, source and
// inner frame, with a valid checksum; and that what gopacket decodes as an unfragmented VXLAN packet to us with a valid
// checksum, it accepts. cut is where the borrowed body begins.
func FuzzOuter(f *testing.F) {
	inner := ethernetFrame(mac1, macX, 1, 2, 3)
	for _, local := range []netip.Addr{host4, host6} {
		from := peer4
		if local.Is6() {
			from = peer6
		}
		b := tunnelPacket(f, local, from, 100, inner, nil)
		f.Add(b, uint8(0))
		f.Add(append(bytes.Clone(b), 0, 0, 0), uint8(80))
		f.Add(b[:60], uint8(0))
	}
	uplinks := map[bool]*uplink{true: fuzzUplink(host4), false: fuzzUplink(host6)}
	memory, err := frame.NewMemory(make([]byte, frame.ChunkSize))
	if err != nil {
		f.Fatal(err)
	}
	pool, err := memory.NewPool(0, 1)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte, cut uint8) {
		if len(b) < wire.EthernetLen || len(b) > 3000 {
			return
		}
		u := uplinks[wire.Ethernet(b).EtherType() == wire.EtherTypeIPv4]
		fr := pool.Get()
		defer pool.Put(fr)
		head := len(b)
		if cut > 0 {
			head = min(head, max(int(cut), wire.EthernetLen))
		}
		copy(fr.Append(head), b)
		if rest := b[head:]; len(rest) > 0 {
			half := len(rest) / 2
			fr.Borrow([][]byte{rest[:half], rest[half:]}, len(rest))
		}
		var o outer
		why, ok := u.parse(fr, &o)
		want, accepted, decodes := oracle(b, u)
		if !ok {
			if accepted && why != DropHeadTooShort && !(cut > 0 && len(b) > head) {
				t.Fatalf("refused as %v, gopacket accepts VNI %d from %x", why, want.vni, want.source)
			}
			return
		}
		if !decodes {
			if u.is6 && b[20] != wire.ProtoUDP || u.is4 && b[14] != 0x45 {
				return // gopacket knows some extension headers only, does not look into atomic fragments (RFC 6946), and reads options
			}
			t.Fatal("accepted, gopacket does not decode it")
		}
		if !fr.Trim(o.inner) || !fr.Gather() {
			t.Fatal("inner frame outside the packet")
		}
		if o.network.vni != want.vni || o.source != want.source || !bytes.Equal(fr.Head(), want.inner) {
			t.Fatalf("VNI %d from %x: % x\ngopacket: %d from %x: % x", o.network.vni, o.source, fr.Head(), want.vni, want.source, want.inner)
		}
		if !want.checksum {
			t.Fatal("accepted with a wrong checksum")
		}
	})
}

type decoded struct {
	vni      uint32
	source   address
	inner    []byte
	checksum bool
}

// oracle is gopacket's opinion: what the packet says, whether it is one we must take, and whether it is VXLAN at all.
func oracle(b []byte, u *uplink) (d decoded, accepted, decodes bool) {
	p := gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.DecodeOptions{NoCopy: true})
	var udp *layers.UDP
	var network gopacket.NetworkLayer
	at, fragment := 0, false
	for _, l := range p.Layers() {
		switch l := l.(type) {
		case *layers.IPv4:
			network, fragment = l, l.Flags&layers.IPv4MoreFragments != 0 || l.FragOffset != 0
			if len(l.Contents) < 20 || l.DstIP == nil || wire.Sum(0, l.Contents) != 0xffff || address4(l.DstIP.To4()) != u.address {
				return d, false, false
			}
			d.source = address4(l.SrcIP.To4())
		case *layers.IPv6:
			network = l
			if len(l.Contents) < 40 || address6(l.DstIP) != u.address {
				return d, false, false
			}
			d.source = address6(l.SrcIP)
		case *layers.IPv6Fragment:
			fragment = true
		case *layers.UDP:
			udp = l
		case *layers.VXLAN:
			if udp == nil || network == nil || udp.DstPort != 4789 {
				return d, false, false
			}
			start := at - wire.UDPLen
			length := int(binary.BigEndian.Uint16(b[start+4:]))
			if length < 8+8+14 || start+length > len(b) {
				return d, false, false
			}
			d.inner, d.vni = b[at+8:start+length], l.VNI
			d.checksum = udp.Checksum == 0 || naiveUDP(b[start:start+length], network)
			return d, d.checksum && l.ValidIDFlag && l.VNI == 100 && !fragment && len(p.Layers()) > 0 && plain(p), true
		}
		if udp != nil || network != nil || at == 0 {
			at += len(l.LayerContents())
		}
	}
	return d, false, false
}

// plain: Ethernet, IP, UDP, VXLAN and nothing between them, nor inconsistent lengths that the two may judge differently.
func plain(p gopacket.Packet) bool {
	ls := p.Layers()
	if len(ls) < 4 || ls[2].LayerType() != layers.LayerTypeUDP || ls[3].LayerType() != layers.LayerTypeVXLAN {
		return false
	}
	udp := ls[2].(*layers.UDP)
	rest := len(ls[1].LayerPayload())
	switch ip := ls[1].(type) {
	case *layers.IPv4:
		total := int(binary.BigEndian.Uint16(ip.Contents[2:])) // gopacket puts a length in place of zero
		return ip.Version == 4 && int(udp.Length) == rest && total == len(ip.Contents)+rest && total+14 <= len(p.Data())
	case *layers.IPv6:
		return ip.Version == 6 && int(udp.Length) == rest && int(ip.Length) == rest
	}
	return false
}

// naiveUDP verifies a UDP checksum with nothing of package wire.
func naiveUDP(b []byte, network gopacket.NetworkLayer) bool {
	var s uint64
	add := func(b []byte) {
		for i, c := range b {
			s += uint64(c) << (8 * (1 - i%2))
		}
	}
	flow := network.NetworkFlow()
	add(flow.Src().Raw())
	add(flow.Dst().Raw())
	s += 17 + uint64(len(b))
	add(b)
	return s%0xffff == 0
}

// TestOuterCorpus holds that the checked-in corpus is there: the seeds that reach every branch.
func TestOuterCorpus(t *testing.T) {
	if os.Getenv("SHUNT_WRITE_CORPUS") != "" {
		writeOuterCorpus(t)
	}
	dir := filepath.Join("testdata", "fuzz", "FuzzOuter")
	files, err := os.ReadDir(dir)
	if err != nil || len(files) < 8 {
		t.Errorf("%d files in %s: %v; write them with SHUNT_WRITE_CORPUS=1", len(files), dir, err)
	}
}

// writeOuterCorpus writes the seeds of FuzzOuter that are worth keeping beside the code.
func writeOuterCorpus(t *testing.T) {
	t.Helper()
	inner := ethernetFrame(mac1, macX, 1, 2, 3)
	v4, v6 := tunnelPacket(t, host4, peer4, 100, inner, nil), tunnelPacket(t, host6, peer6, 100, inner, nil)
	extended := append(append(bytes.Clone(v6[:54]), 17, 0, 0, 0, 0, 0, 0, 0), v6[54:]...)
	extended[20], extended[19] = 60, extended[19]+8
	options := spoil(append(append(bytes.Clone(v4[:34]), 1, 1, 1, 0), v4[34:]...), func(b []byte) { b[14] = 0x46; b[17] += 4 })
	fragment6 := bytes.Clone(extended)
	fragment6[20], fragment6[57] = wire.ProtoFragment, 1
	dir := filepath.Join("testdata", "fuzz", "FuzzOuter")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"ipv4": v4, "ipv6": v6, "ipv4-padded": append(bytes.Clone(v4), 0, 0, 0, 0), "ipv4-options": options, "ipv6-extension": extended,
		"ipv6-fragment": fragment6, "ipv4-fragment": spoil(v4, func(b []byte) { b[20] = 0x20 }),
		"ipv4-no-vni":     spoil(v4, func(b []byte) { b[40], b[41], b[42] = 0, 0, 0 }),
		"ipv6-no-sum":     spoil(v6, func(b []byte) { b[60], b[61] = 0, 0 }),
		"ipv4-udp-length": spoil(v4, func(b []byte) { b[39]-- }),
		"ipv4-short":      tunnelPacket(t, host4, peer4, 100, inner[:14], nil),
		"ipv4-nested":     tunnelPacket(t, host4, peer4, 100, v4, nil),
	} {
		for suffix, cut := range map[string]string{"": "'\\x00'", "-body": "'\\x50'"} {
			text := "go test fuzz v1\n[]byte(" + quote(b) + ")\nbyte(" + cut + ")\n"
			if err := os.WriteFile(filepath.Join(dir, name+suffix), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// quote writes bytes as a Go string literal, each as it is.
func quote(b []byte) string {
	s := `"`
	for _, c := range b {
		s += `\x` + string("0123456789abcdef"[c>>4]) + string("0123456789abcdef"[c&15])
	}
	return s + `"`
}
