package vxlan

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/shuntio/shunt/dataplane/dataplanetest"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/wire"
)

// longPacket is a TCP packet from mac1 of so many bytes, by gopacket.
func longPacket(t interface{ Fatal(...any) }, to wire.MAC, source, destination string, length int, change func(l []gopacket.SerializableLayer)) []byte {
	s, d := netip.MustParseAddr(source), netip.MustParseAddr(destination)
	tcp := &layers.TCP{SrcPort: 1000, DstPort: 443, Seq: 0x01020304, ACK: true}
	ls := []gopacket.SerializableLayer{&layers.Ethernet{SrcMAC: hw(mac1), DstMAC: hw(to), EthernetType: layers.EthernetTypeIPv4}, nil, tcp, nil}
	n := length - wire.EthernetLen - wire.TCPMinLen
	if s.Is4() {
		ip := &layers.IPv4{Version: 4, TTL: 64, Flags: layers.IPv4DontFragment, Protocol: layers.IPProtocolTCP, SrcIP: s.AsSlice(), DstIP: d.AsSlice()}
		_ = tcp.SetNetworkLayerForChecksum(ip)
		ls[1], n = ip, n-wire.IPv4MinLen
	} else {
		ls[0].(*layers.Ethernet).EthernetType = layers.EthernetTypeIPv6
		ip := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolTCP, SrcIP: s.AsSlice(), DstIP: d.AsSlice()}
		_ = tcp.SetNetworkLayerForChecksum(ip)
		ls[1], n = ip, n-wire.IPv6Len
	}
	ls[3] = gopacket.Payload(bytes.Repeat([]byte{0x5a, 1, 2}, n)[:n])
	if change != nil {
		change(ls)
	}
	return serialize(t, ls...)
}

// roomy is a network of 1500 bytes; the way to mac3's machine takes 1400, that to mac4's more.
func roomy(tb testing.TB, spoof bool) (l *lab, up, a *dataplanetest.Port) {
	l = newLab(tb)
	up = l.uplinkOf(Uplink{Name: "up0", Resolver: narrow{&Fixed{End: Local{Address: host4, MAC: hostMAC, MTU: 1600}, Gateway: peerMAC}}})
	l.network(Network{Name: "blue", VNI: 100, Uplink: "up0", MTU: 1500, Entries: []Entry{
		{MAC: mac3, VTEP: peer4, IP: netip.MustParseAddr("10.0.0.3")}, {MAC: mac4, VTEP: other4, IP: netip.MustParseAddr("fd00::4")}, {MAC: macX, VTEP: other4},
	}})
	a = l.attach(Port{Name: "a", Network: "blue", MAC: mac1, AntiSpoof: spoof, IPs: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}})
	return l, up, a
}

// narrow says that the way to peer4 takes 1400 bytes of the network's packets.
type narrow struct{ *Fixed }

func (n narrow) NextHop(vtep netip.Addr) (NextHop, bool) {
	h, ok := n.Fixed.NextHop(vtep)
	if vtep == peer4 {
		h.MTU = 1400 + overhead4
	}
	return h, ok
}

func TestTooBig(t *testing.T) {
	for _, c := range []struct {
		name        string
		packet      []byte
		gso         uint16
		from        string
		mtu, quoted int
	}{
		{"over the network's", longPacket(t, mac3, "10.0.0.1", "10.0.0.3", 1515, nil), 0, "10.0.0.3", 1500, 242},
		{"over the way's", longPacket(t, mac3, "10.0.0.1", "10.0.0.3", 1415, nil), 0, "10.0.0.3", 1400, 242},
		{"to another network, by a gateway", longPacket(t, mac3, "10.0.0.1", "8.8.8.8", 1514, nil), 0, "10.0.0.3", 1400, 242},
		{"segments over the network's", longPacket(t, mac3, "10.0.0.1", "10.0.0.3", 9000, nil), 1461, "10.0.0.3", 1500, 242},
		{"segments over the way's", longPacket(t, mac3, "10.0.0.1", "10.0.0.3", 9000, nil), 1400, "10.0.0.3", 1400, 242},
		{"IPv6", longPacket(t, mac4, "fd00::1", "fd00::4", 1515, nil), 0, "fd00::4", 1500, 242},
		{"IPv6, by a gateway", longPacket(t, mac4, "fd00::1", "2001:db8::7", 1515, nil), 0, "fd00::4", 1500, 242},
		{"UDP", longPacket(t, mac3, "10.0.0.1", "10.0.0.3", 1515, func(l []gopacket.SerializableLayer) { l[1].(*layers.IPv4).Protocol = 17 }), 0, "10.0.0.3", 1500, 242},
		{"the first fragment", longPacket(t, mac3, "10.0.0.1", "10.0.0.3", 1515, func(l []gopacket.SerializableLayer) { l[1].(*layers.IPv4).Flags |= layers.IPv4MoreFragments }), 0, "10.0.0.3", 1500, 242},
		{"quoted as far as 576 bytes go", longPacket(t, mac3, "10.0.0.1", "10.0.0.3", 1515, nil), 0, "10.0.0.3", 1500, 548},
		{"quoted as far as 1280 bytes go", longPacket(t, mac4, "fd00::1", "fd00::4", 1515, nil), 0, "fd00::4", 1500, 1232},
		{"ping", longPacket(t, mac3, "10.0.0.1", "10.0.0.3", 1515, func(l []gopacket.SerializableLayer) {
			l[1].(*layers.IPv4).Protocol, l[2] = 1, &layers.ICMPv4{TypeCode: 8 << 8}
		})[:1515], 0, "10.0.0.3", 1500, 242},
	} {
		for _, spoof := range []bool{false, true} {
			l, up, a := roomy(t, spoof)
			p := dataplanetest.Packet{Bytes: c.packet, Head: c.quoted + wire.EthernetLen, Piece: 500}
			if c.quoted > 242 {
				p.Head = 0 // as much as there is
			}
			if c.gso != 0 {
				p.GSO = frame.GSO{Type: frame.GSOTCP4, Size: c.gso}
				p.Checksum = frame.Checksum{Needed: true, Start: 34, Offset: 16}
			}
			a.Feed(p)
			l.settle()
			l.got(up)
			l.dropped(a, DropOverMTU, 1)
			sent := a.Sent()
			if len(sent) != 1 {
				t.Fatalf("%s: %d messages; %v", c.name, len(sent), drops(a))
			}
			checkTooBig(t, c.name, c.packet, sent[0].Bytes, c.from, c.mtu, c.quoted)
			l.balanced()
		}
	}
}

// checkTooBig judges a message by gopacket.
func checkTooBig(t *testing.T, name string, packet, message []byte, from string, mtu, quoted int) {
	t.Helper()
	p := gopacket.NewPacket(message, layers.LayerTypeEthernet, gopacket.Default)
	e := p.LinkLayer().(*layers.Ethernet)
	if !bytes.Equal(e.DstMAC, packet[6:12]) || !bytes.Equal(e.SrcMAC, packet[:6]) {
		t.Errorf("%s: from %v to %v", name, e.SrcMAC, e.DstMAC)
	}
	var about []byte
	switch ip := p.NetworkLayer().(type) {
	case *layers.IPv4:
		m, _ := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
		if m == nil || m.TypeCode != 3<<8|4 || int(m.Seq) != mtu || m.Id != 0 || ip.SrcIP.String() != from || !bytes.Equal(ip.DstIP, packet[26:30]) || int(ip.Length) != len(message)-14 || len(message)-14 > 576 {
			t.Fatalf("%s: %v", name, p)
		}
		if wire.Sum(0, ip.Contents) != 0xffff || wire.Sum(0, ip.Payload) != 0xffff {
			t.Errorf("%s: checksums", name)
		}
		about = m.Payload
	case *layers.IPv6:
		m, _ := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
		if m == nil || m.TypeCode != 2<<8 || int(binary.BigEndian.Uint32(ip.Payload[4:])) != mtu || ip.SrcIP.String() != from || !bytes.Equal(ip.DstIP, packet[22:38]) || int(ip.Length) != len(message)-54 || len(message)-14 > 1280 {
			t.Fatalf("%s: %v", name, p)
		}
		if sumICMPv6(message) != 0 {
			t.Errorf("%s: checksum", name)
		}
		about = ip.Payload[8:]
	}
	if len(about) != quoted || !bytes.HasPrefix(packet[14:], about) {
		t.Errorf("%s: quotes %d bytes, want %d: % x", name, len(about), quoted, about)
	}
}

func TestNotTold(t *testing.T) {
	v4 := func(change func(l []gopacket.SerializableLayer)) []byte {
		return longPacket(t, mac3, "10.0.0.1", "10.0.0.3", 1515, change)
	}
	v6 := func(change func(l []gopacket.SerializableLayer)) []byte {
		return longPacket(t, mac4, "fd00::1", "fd00::4", 1515, change)
	}
	icmp4 := func(kind uint8) func(l []gopacket.SerializableLayer) {
		return func(l []gopacket.SerializableLayer) {
			l[1].(*layers.IPv4).Protocol, l[2] = 1, &layers.ICMPv4{TypeCode: layers.ICMPv4TypeCode(uint16(kind) << 8)}
			l[3] = append(l[3].(gopacket.Payload), make([]byte, 12)...)
		}
	}
	icmp6 := func(kind uint8) func(l []gopacket.SerializableLayer) {
		return func(l []gopacket.SerializableLayer) {
			l[1].(*layers.IPv6).NextHeader = 58
			l[3] = append(gopacket.Payload{kind, 0, 0, 0}, append(l[3].(gopacket.Payload), make([]byte, 16)...)...)
			l[2] = gopacket.Payload{}
		}
	}
	plain, plain6 := v4(nil), longPacket(t, mac4, "fd00::1", "fd00::4", 1519, nil)
	for name, b := range map[string][]byte{
		"may be cut":           v4(func(l []gopacket.SerializableLayer) { l[1].(*layers.IPv4).Flags = 0 }),
		"later fragment":       v4(func(l []gopacket.SerializableLayer) { l[1].(*layers.IPv4).FragOffset = 5 }),
		"unreachable":          v4(icmp4(3)),
		"source quench":        v4(icmp4(4)),
		"redirect":             v4(icmp4(5)),
		"time exceeded":        v4(icmp4(11)),
		"parameter problem":    v4(icmp4(12)),
		"to a group":           longPacket(t, mac3, "10.0.0.1", "224.0.0.5", 1515, nil),
		"to everybody":         longPacket(t, mac3, "10.0.0.1", "255.255.255.255", 1515, nil),
		"to a group's MAC":     longPacket(t, wire.Broadcast, "10.0.0.1", "10.0.0.3", 1515, nil),
		"from nobody":          longPacket(t, mac3, "0.0.0.0", "10.0.0.3", 1515, nil),
		"from a group":         longPacket(t, mac3, "239.0.0.1", "10.0.0.3", 1515, nil),
		"from itself":          longPacket(t, mac3, "127.0.0.1", "10.0.0.3", 1515, nil),
		"tagged":               append(append(bytes.Clone(plain[:12]), 0x81, 0, 0, 1), plain[12:]...),
		"IPv6, tagged":         append(append(bytes.Clone(plain6[:12]), 0x81, 0, 0, 1), plain6[12:]...),
		"not configured":       longPacket(t, macX, "10.0.0.1", "10.0.0.7", 1515, nil),
		"not of this version":  longPacket(t, mac3, "fd00::1", "fd00::7", 1515, nil),
		"no IP":                ethernetFrame(mac3, mac1, make([]byte, 1501)...),
		"IPv6, packet too big": v6(icmp6(2)),
		"IPv6, an error":       v6(icmp6(127)),
		"IPv6, from nobody":    longPacket(t, mac4, "::", "fd00::4", 1515, nil),
		"IPv6, from a group":   longPacket(t, mac4, "ff02::1", "fd00::4", 1515, nil),
		"IPv6, to a group":     longPacket(t, mac4, "fd00::1", "ff02::4", 1515, nil),
		"IPv6, later fragment": v6(func(l []gopacket.SerializableLayer) {
			l[1].(*layers.IPv6).NextHeader = 44
			l[2] = gopacket.Payload{6, 0, 1, 0, 0, 0, 0, 1}
			l[3] = append(l[3].(gopacket.Payload), make([]byte, 12)...)
		}),
	} {
		l, up, a := roomy(t, false)
		a.Feed(dataplanetest.Packet{Bytes: b, Head: 256})
		l.settle()
		l.dropped(a, DropOverMTU, 1)
		l.got(up)
		if n := len(a.Sent()); n != 0 {
			t.Errorf("%s: %d messages", name, n)
		}
	}
	// An informational message is told of; what the switch sends is not oversize itself.
	l, _, a := roomy(t, false)
	a.Feed(dataplanetest.Packet{Bytes: v6(icmp6(128)), Head: 256})
	l.settle()
	if len(a.Sent()) != 1 {
		t.Error("an echo request was not told of")
	}
	// From the wire nobody is told.
	l, up, a := roomy(t, false)
	l.send(up, tunnelPacket(t, host4, peer4, 100, longPacket(t, mac1, "10.0.0.3", "10.0.0.1", 1515, nil), nil))
	l.dropped(up, DropOverMTU, 1)
	l.got(up)
	l.got(a)
}

func TestTellableEdges(t *testing.T) {
	nw := fuzzKnown()
	v4, v6 := longPacket(t, mac2, "10.0.0.1", "10.0.0.2", 400, nil), longPacket(t, mac2, "fd00::1", "fd00::2", 400, nil)
	for _, c := range []struct {
		head []byte
		mtu  int
		want bool
	}{
		{v4[:42], 68, true}, {v4[:41], 68, false}, {v4[:14], 68, false}, {v4[:13], 68, false},
		{v6[:62], 1280, true}, {v6[:61], 1280, false}, {v6[:62], 1279, false}, {v6[:20], 1280, false},
	} {
		if got := nw.tellable(c.head, c.mtu); got != c.want {
			t.Errorf("%d bytes, MTU %d: %v", len(c.head), c.mtu, got)
		}
	}
}

// Messages are few, for each port; all that is dropped is counted.
func TestTooBigPace(t *testing.T) {
	l, _, a := roomy(t, false)
	b := longPacket(t, mac3, "10.0.0.1", "10.0.0.3", 1515, nil)
	const n = 400
	for range n {
		a.Feed(dataplanetest.Packet{Bytes: b, Head: 256})
	}
	l.settle()
	l.dropped(a, DropOverMTU, n)
	if got := len(a.Sent()); got < paceBurst || got > n/2 {
		t.Errorf("%d messages", got)
	}
	l.balanced()
	var p pace
	sent := 0
	for now := int64(0); now < 1e9; now += 1e6 {
		if p.pass(now) {
			sent++
		}
	}
	if want := paceBurst + int(1e9/paceGap); sent < want-1 || sent > want+1 {
		t.Errorf("%d messages in a second, want %d", sent, want)
	}
	if !p.pass(1e9 + paceGap) {
		t.Error("none after a pause")
	}
}

// No frame free for the message: none, and nothing else changes.
func TestTooBigWithoutFrame(t *testing.T) {
	l, _, a := roomy(t, false)
	b := longPacket(t, mac3, "10.0.0.1", "10.0.0.3", 1515, nil)
	pool := l.worker.Pool()
	var taken []*frame.Frame
	for pool.Len() > 1 {
		taken = append(taken, pool.Get())
	}
	a.Feed(dataplanetest.Packet{Bytes: b, Head: 256})
	l.settle()
	l.dropped(a, DropOverMTU, 1)
	if n := len(a.Sent()); n != 0 {
		t.Errorf("%d messages", n)
	}
	pool.PutAll(taken)
	l.balanced()
}

// oversize are packets that FuzzTooBig begins with.
func oversize(t interface{ Fatal(...any) }) map[string][]byte {
	return map[string][]byte{
		"ipv4": longPacket(t, mac2, "10.0.0.1", "10.0.0.2", 400, nil)[:256], "ipv6": longPacket(t, mac2, "fd00::1", "fd00::2", 400, nil)[:256],
		"ipv4-options": append(append([]byte{}, spoil(longPacket(t, mac2, "10.0.0.1", "10.0.0.2", 200, nil), func(b []byte) { b[14] = 0x46 })...), 1, 2, 3),
		"ipv6-extension": func() []byte {
			b := longPacket(t, mac2, "fd00::1", "fd00::2", 200, nil)
			b[20], b[54], b[55] = wire.ProtoDestOptions, 6, 1
			return b
		}(),
		"short": longPacket(t, mac2, "10.0.0.1", "10.0.0.2", 100, nil)[:42],
	}
}

// FuzzTooBig holds that no head makes a message panic, and that each message there is, to gopacket, is a right one about that packet: to its unicast source,
// quoting it, about nothing that must not be told of.
func FuzzTooBig(f *testing.F) {
	for _, b := range oversize(f) {
		f.Add(b, uint16(1400))
	}
	nw, pool := fuzzKnown(), fuzzPool(f, 1)
	f.Fuzz(func(t *testing.T, head []byte, mtu uint16) {
		head = head[:min(len(head), 3000)]
		if !nw.tellable(head, int(mtu)) {
			return
		}
		g := pool.Get()
		defer pool.Put(g)
		nw.tell(g, head, int(mtu))
		p := gopacket.NewPacket(head, layers.LayerTypeEthernet, gopacket.NoCopy)
		switch ip := p.NetworkLayer().(type) {
		case *layers.IPv4:
			if m, ok := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4); ok {
				switch m.TypeCode.Type() {
				case 3, 4, 5, 11, 12:
					t.Fatalf("about an error: %v", p)
				}
			}
			if ip.Version == 0 && head[14] != 0x45 {
				break // options that gopacket wants to understand
			}
			if ip.Flags&layers.IPv4DontFragment == 0 || ip.FragOffset != 0 || ip.SrcIP.IsMulticast() || ip.DstIP.IsMulticast() || ip.SrcIP.IsUnspecified() || ip.SrcIP.IsLoopback() {
				t.Fatalf("%v", p)
			}
			checkTooBig(t, "IPv4", head, g.Head(), nw.speaker(head).String(), int(mtu), min(len(head)-14, 548))
		case *layers.IPv6:
			if m, ok := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6); ok && m.TypeCode.Type() < 128 {
				t.Fatalf("about an error: %v", p)
			}
			if ip.SrcIP.IsMulticast() || ip.DstIP.IsMulticast() || ip.SrcIP.IsUnspecified() || mtu < 1280 {
				t.Fatalf("%v", p)
			}
			checkTooBig(t, "IPv6", head, g.Head(), nw.speaker(head).String(), int(mtu), min(len(head)-14, 1232))
		default:
			t.Fatalf("about %v", p)
		}
	})
}

// TestTooBigCorpus holds that what is checked in is what the tests make; SHUNT_WRITE_CORPUS=1 writes it.
func TestTooBigCorpus(t *testing.T) {
	for name, b := range oversize(t) {
		checkIn(t, "FuzzTooBig", name, fmt.Sprintf("[]byte(%s)\nuint16(1400)\n", quote(b)))
	}
	for _, s := range []struct {
		name string
		b    []byte
	}{{"ipv4", udpFrame(t, mac1, mac3, "10.0.0.1", "10.0.0.3", nil)}, {"ipv6", udpFrame(t, mac1, mac3, "fd00::1", "fd00::3", nil)}} {
		for ecn := range uint8(4) {
			b := bytes.Clone(s.b)
			b[15] |= ecn << (4 * (b[14] >> 5 & 1))
			checkIn(t, "FuzzECN", fmt.Sprintf("%s-%d", s.name, ecn), fmt.Sprintf("[]byte(%s)\nbyte('\\x03')\n", quote(b)))
		}
	}
}

func TestTooBigAllocatesNothing(t *testing.T) {
	nw, pool := fuzzKnown(), fuzzPool(t, 1)
	var p pace
	now := int64(0)
	for name, b := range oversize(t) {
		if n := testing.AllocsPerRun(100, func() {
			now += paceGap
			if g := pool.Get(); nw.tellable(b, 1400) && p.pass(now) {
				nw.tell(g, b, 1400)
				pool.Put(g)
			} else {
				pool.Put(g)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
