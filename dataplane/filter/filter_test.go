package filter_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"github.com/shuntio/shunt/dataplane/filter"
	"github.com/shuntio/shunt/dataplane/wire"
	"github.com/shuntio/shunt/tools/need"
)

var (
	macs = []wire.MAC{0x525400000001, 0x525400000002, wire.Broadcast, 0x01005e000001}
	ip4s = []string{"10.0.0.1", "10.0.0.2", "10.1.2.3", "192.0.2.9", "255.255.255.255"}
	ip6s = []string{"2001:db8::1", "2001:db8::2", "2001:db8:1::1", "fe80::1"}
	nums = []uint16{22, 53, 80, 443, 4789, 5000, 65535}
)

func pick[T any](r *rand.Rand, from []T) T { return from[r.IntN(len(from))] }

// randomFrame is one of the kinds of frames that expressions tell apart, without tags or tunnels.
func randomFrame(r *rand.Rand) []byte {
	f := make([]byte, 14, 200)
	kind := r.IntN(10)
	etherType := uint16(wire.EtherTypeIPv4)
	transport := func(protocol uint8) []byte {
		b := make([]byte, 20+r.IntN(60))
		switch protocol {
		case wire.ProtoTCP, wire.ProtoUDP, 132:
			binary.BigEndian.PutUint16(b, pick(r, nums))
			binary.BigEndian.PutUint16(b[2:], pick(r, nums))
		}
		return b
	}
	switch {
	case kind == 0:
		etherType = pick(r, []uint16{0x88cc, 0x8035, 0x1234})
		f = append(f, make([]byte, 46)...)
	case kind == 1:
		etherType = wire.EtherTypeARP
		a := make(wire.ARP, 46)
		a.Set(wire.ARPRequest, macs[0], netip.MustParseAddr(pick(r, ip4s)), macs[1], netip.MustParseAddr(pick(r, ip4s)))
		f = append(f, a...)
	case kind < 7:
		protocol := pick(r, []uint8{wire.ProtoTCP, wire.ProtoUDP, wire.ProtoICMPv4, 132, 47})
		body := transport(protocol)
		h := make(wire.IPv4, 20)
		h[0], h[8], h[9] = 0x45, 64, protocol
		binary.BigEndian.PutUint16(h[2:], uint16(20+len(body)))
		if r.IntN(4) == 0 {
			binary.BigEndian.PutUint16(h[6:], pick(r, []uint16{0x2000, 0x2010, 0x0010, 0x4000}))
		}
		s, d := netip.MustParseAddr(pick(r, ip4s)).As4(), netip.MustParseAddr(pick(r, ip4s)).As4()
		copy(h[12:], s[:])
		copy(h[16:], d[:])
		f = append(append(f, h...), body...)
	default:
		etherType = wire.EtherTypeIPv6
		protocol := pick(r, []uint8{wire.ProtoTCP, wire.ProtoUDP, wire.ProtoICMPv6, 132})
		body := transport(protocol)
		h := make(wire.IPv6, 40)
		h.Set(wire.IPv6Fields{PayloadLen: uint16(len(body)), NextHeader: protocol, HopLimit: 64,
			Source: netip.MustParseAddr(pick(r, ip6s)).As16(), Destination: netip.MustParseAddr(pick(r, ip6s)).As16()})
		f = append(append(f, h...), body...)
	}
	wire.Ethernet(f).Set(pick(r, macs), macs[r.IntN(2)], etherType)
	return f
}

// expressions mean the same to tcpdump.
var expressions = []string{
	"", "ip", "ip6", "arp", "rarp", "tcp", "udp", "sctp", "icmp", "icmp6", "not ip", "!tcp",
	"host 10.0.0.1", "src host 10.0.0.1", "dst host 10.0.0.1", "src or dst host 10.0.0.2", "src and dst host 10.0.0.2",
	"src 10.0.0.1 or dst 10.1.2.3", "src 10.0.0.1 and not dst 10.0.0.2", "ip host 10.0.0.1", "arp host 10.0.0.1", "host 10.0.0.1 or 10.0.0.2",
	"host 2001:db8::1", "ip6 host 2001:db8::1", "net 2001:db8::/48", "src net 2001:db8::/32", "net fe80::/10", "dst net 2001:db8:1::/64",
	"net 10.0.0.0/8", "src net 10.0.0.0/24", "dst net 10.0.0.0/16 or src net 192.0.2.0/24",
	"port 80", "src port 80", "dst port 443", "tcp port 80", "udp port 53", "tcp dst port 443", "tcp or udp", "port 80 or 443", "not port 22",
	"portrange 80-443", "tcp portrange 0-100", "udp src portrange 5000-65535", "src and dst port 80", "src or dst port 80",
	"tcp port 80 or 443 or 22", "tcp and (port 80 or port 443) and not host 10.0.0.1", "(udp and port 53) or arp", "not (tcp or udp)",
	"ip proto 6", "ip6 proto 17", "ip proto 47", "proto 132", "ether host 52:54:00:00:00:01", "ether src 52:54:00:00:00:01", "ether dst 52:54:00:00:00:02",
	"ether proto 0x88cc", "ether proto 0x0800", "ether broadcast", "ether multicast", "broadcast", "multicast", "less 60", "greater 90", "greater 60 and less 80",
	"tcp and not port 22 || udp && port 53", "not not tcp", "((tcp))", "! (host 10.0.0.1 && tcp)", "not host 10.0.0.1 and not 10.0.0.2",
	"icmp or icmp6 or arp", "src host 10.0.0.1 and dst port 80", "arp or tcp and port 80", "port 80 and tcp or udp", "arp or ip6 and not tcp or icmp", "dst 10.0.0.2 and udp",
}

// TestAgainstTcpdump lets both judge the same frames.
func TestAgainstTcpdump(t *testing.T) {
	need.Program(t, "tcpdump")
	r := rand.New(rand.NewPCG(1, 2))
	frames := make([][]byte, 3000)
	dir := t.TempDir()
	in := filepath.Join(dir, "in.pcap")
	file, err := os.Create(in)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	w := pcapgo.NewWriter(file)
	if err := w.WriteFileHeader(65535, layers.LinkTypeEthernet); err != nil {
		t.Fatal(err)
	}
	for i := range frames {
		frames[i] = randomFrame(r)
		info := gopacket.CaptureInfo{Timestamp: time.Unix(int64(i), 0), CaptureLength: len(frames[i]), Length: len(frames[i])}
		if err := w.WritePacket(info, frames[i]); err != nil {
			t.Fatal(err)
		}
	}
	for _, e := range expressions {
		f, err := filter.Compile(e)
		if err != nil {
			t.Errorf("%s: %v", e, err)
			continue
		}
		want := tcpdump(t, in, filepath.Join(dir, "out.pcap"), e)
		matched := 0
		for i, frame := range frames {
			got := f.Match(frame, len(frame))
			if got != want[i] {
				t.Errorf("%q of frame %d: %v, tcpdump says %v\n%x", e, i, got, want[i], frame)
				break
			}
			if got {
				matched++
			}
		}
		if matched == 0 {
			t.Errorf("%q matches none of the frames, so nothing is shown by it", e)
		}
	}
}

func tcpdump(t *testing.T, in, out, expression string) map[int]bool {
	t.Helper()
	if log, err := exec.CommandContext(t.Context(), "tcpdump", "-Z", "root", "-n", "-r", in, "-w", out, expression).CombinedOutput(); err != nil {
		t.Fatalf("tcpdump %q: %v\n%s", expression, err, log)
	}
	file, err := os.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	r, err := pcapgo.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	matched := map[int]bool{}
	for {
		_, info, err := r.ReadPacketData()
		if err != nil {
			return matched
		}
		matched[int(info.Timestamp.Unix())] = true
	}
}

// tagged puts VLAN tags into a frame.
func tagged(frame []byte, ids ...uint16) []byte {
	out := append([]byte{}, frame[:12]...)
	for _, id := range ids {
		out = binary.BigEndian.AppendUint16(out, wire.EtherTypeVLAN)
		out = binary.BigEndian.AppendUint16(out, id|0x6000)
	}
	return append(out, frame[12:]...)
}

// tunnelled puts a frame into VXLAN.
func tunnelled(inner []byte, vni uint32, port uint16) []byte {
	f := make([]byte, 14+20+8+8, 50+len(inner))
	wire.Ethernet(f).Set(macs[1], macs[0], wire.EtherTypeIPv4)
	h := wire.IPv4(f[14:])
	h[0], h[9] = 0x45, wire.ProtoUDP
	binary.BigEndian.PutUint16(h[2:], uint16(36+len(inner)))
	copy(h[12:], []byte{192, 0, 2, 1})
	copy(h[16:], []byte{192, 0, 2, 2})
	wire.UDP(f[34:]).Set(40000, port, uint16(16+len(inner)), 0)
	wire.VXLAN(f[42:]).Set(vni)
	return append(f, inner...)
}

func tcpFrame(from, to string, sport, dport uint16) []byte {
	f := make([]byte, 54)
	wire.Ethernet(f).Set(macs[1], macs[0], wire.EtherTypeIPv4)
	h := wire.IPv4(f[14:])
	h[0], h[9] = 0x45, wire.ProtoTCP
	binary.BigEndian.PutUint16(h[2:], 40)
	s, d := netip.MustParseAddr(from).As4(), netip.MustParseAddr(to).As4()
	copy(h[12:], s[:])
	copy(h[16:], d[:])
	binary.BigEndian.PutUint16(f[34:], sport)
	binary.BigEndian.PutUint16(f[36:], dport)
	return f
}

// What tcpdump does not have, or does otherwise.
func TestTagsAndTunnels(t *testing.T) {
	plain := tcpFrame("10.0.0.1", "10.0.0.2", 1000, 80)
	tunnel := tunnelled(plain, 100, 4789)
	for _, test := range []struct {
		expression string
		frame      []byte
		want       bool
	}{
		{"10.0.0.2", plain, true}, {"10.0.0.0/24", plain, true}, {"52:54:00:00:00:01", plain, true}, {"10.0.0.3", plain, false}, {"vlan", plain, false}, {"vlan", tagged(plain, 5), true}, {"vlan 5", tagged(plain, 5), true}, {"vlan 6", tagged(plain, 5), false},
		{"vlan 6", tagged(plain, 5, 6), true}, {"vlan 1-5", tagged(plain, 5), true}, {"vlan 0", tagged(plain, 5), false}, {"vlan 6 or 5", tagged(plain, 5), true},
		{"tcp port 80", tagged(plain, 5), true}, {"host 10.0.0.1 and not vlan 5", tagged(plain, 5), false},
		{"vxlan", plain, false}, {"vxlan", tunnel, true}, {"vni", tunnel, true}, {"vni 100", tunnel, true}, {"vni 101", tunnel, false},
		{"vni 99-101", tunnel, true}, {"vni 5 or 100", tunnel, true}, {"not vni 100", tunnel, false}, {"not vni 100", plain, true},
		{"tcp", tunnel, false}, {"inner tcp", tunnel, true}, {"inner tcp", plain, false}, {"inner not tcp", plain, false}, {"not inner tcp", plain, true},
		{"inner host 10.0.0.1", tunnel, true}, {"inner host 192.0.2.1", tunnel, false}, {"host 192.0.2.1 and inner (tcp and dst port 80)", tunnel, true},
		{"inner port 443 or 80", tunnel, false}, // the second is of the outer frame
		{"inner (port 443 or 80)", tunnel, true}, {"inner greater 54", tunnel, true}, {"inner greater 55", tunnel, false}, {"greater 104", tunnel, true},
		{"inner vlan 7", tunnelled(tagged(plain, 7), 1, 4789), true}, {"vlan 7", tunnelled(tagged(plain, 7), 1, 4789), false},
		{"vni", tunnelled(plain, 100, 8472), false}, {"udp dst port 8472", tunnelled(plain, 100, 8472), true},
		{"inner tcp", tunnel[:60], false}, {"inner ip", tunnel[:63], false}, {"inner ip", tunnel[:84], true}, {"vni 100", tunnel[:50], true}, {"vni 100", tunnel[:49], false},
	} {
		f, err := filter.Compile(test.expression)
		if err != nil {
			t.Errorf("%s: %v", test.expression, err)
			continue
		}
		if got := f.Match(test.frame, len(test.frame)); got != test.want {
			t.Errorf("%q of %x: %v", test.expression, test.frame, got)
		}
	}
	f, err := filter.Compile("vni 100", 4789, 8472)
	if err != nil || !f.Match(tunnelled(plain, 100, 8472), 104) || !f.Match(tunnel, 104) {
		t.Errorf("two ports: %v", err)
	}
	// IPv6 extension headers are looked through.
	f, err = filter.Compile("udp port 53")
	six := make([]byte, 14+40+8+8)
	wire.Ethernet(six).Set(1, 2, wire.EtherTypeIPv6)
	wire.IPv6(six[14:]).Set(wire.IPv6Fields{PayloadLen: 16, NextHeader: wire.ProtoDestOptions})
	six[54], six[63] = wire.ProtoUDP, 53
	if err != nil || !f.Match(six, len(six)) {
		t.Errorf("extension header: %v", err)
	}
}

func TestErrors(t *testing.T) {
	for _, test := range []struct{ expression, want string }{
		{"host", `column 5: "" is not an address`},
		{"host banana", `column 6: "banana" is not an address such as 10.0.0.1`},
		{"host fe80::1%eth0", "is not an address"},
		{"net 10.0.0.1/8", "column 5: 10.0.0.1/8 has bits beyond its length: is it 10.0.0.0/8?"},
		{"port 99999", "column 6: a port 99999 is not within 0 and 65535"},
		{"port http", `column 6: a port needs a number, not "http"`},
		{"port 80-90", "needs a number"},
		{"portrange 9-1", "the lower number first"},
		{"portrange 010-0x20-3", "needs a range"},
		{"tcp and", "column 8: a test is missing"},
		{"tcp or or udp", `column 8: "or" is no test`},
		{"tcp udp", `column 5: "udp" comes after the end of the expression`},
		{"(tcp", "column 5: a closing parenthesis is missing"},
		{"tcp)", `column 4: ")" comes after the end`},
		{"((((", "a test is missing"},
		{"banana", `column 1: "banana" is no test: try host`},
		{"443", `"443" is no test`},
		{"tcp src", `column 8: "" does not go with`},
		{"src tcp", `"tcp" is no test`},
		{"vlan 5000", "vlan 5000 is not within 0 and 4095"},
		{"vni 16777216", "is not within 0 and 16777215"},
		{"proto 300", "not within 0 and 255"},
		{"ether host 10.0.0.1", "is not an Ethernet address"},
		{"inner inner tcp", "column 7: inner is within inner"},
		{"inner vni 5", "vni is within inner"},
		{"tcp & udp", `"&" comes after`},
		{"less", "less needs a number"},
		{"tcp[13] = 2", `"tcp[13]" is no test`},
		{strings.Repeat("(", 100) + "tcp" + strings.Repeat(")", 100), "nested deeper than 64"},
		{strings.Repeat("not ", 100) + "tcp", "nested deeper than 64"},
		{strings.Repeat("tcp or ", 300) + "tcp", "more than 256 tests"},
		{strings.Repeat(" ", 5000), "longer than 4096 bytes"},
	} {
		f, err := filter.Compile(test.expression)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%.40q: %v %v, want %s", test.expression, f, err, test.want)
		}
	}
}

func TestMatchAllocatesNothing(t *testing.T) {
	f, err := filter.Compile("not (vlan 7 or net 10.1.0.0/16 or ether host 52:54:00:00:00:09) and inner (tcp and portrange 1-100)")
	if err != nil {
		t.Fatal(err)
	}
	frame := tunnelled(tcpFrame("10.0.0.1", "10.0.0.2", 1000, 80), 100, 4789)
	if n := testing.AllocsPerRun(100, func() {
		if !f.Match(frame, len(frame)) {
			t.Fatal("no match")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// Whatever is typed and whatever arrives, there is an answer.
func FuzzFilter(f *testing.F) {
	plain := tcpFrame("10.0.0.1", "10.0.0.2", 1000, 80)
	for i, e := range expressions {
		f.Add(e, randomFrame(rand.New(rand.NewPCG(uint64(i), 1))))
	}
	f.Add("vlan 5 and inner (tcp or vlan)", tunnelled(tagged(plain, 7), 1, 4789))
	f.Add("vni 1-9 or not inner 10.0.0.1", tunnelled(plain, 1, 4789))
	f.Fuzz(func(t *testing.T, expression string, frame []byte) {
		compiled, err := filter.Compile(expression)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "filter, column ") {
				t.Error(err)
			}
			return
		}
		is := compiled.Match(frame, len(frame))
		if strings.TrimSpace(expression) == "" {
			return
		}
		opposite, err := filter.Compile(fmt.Sprintf("not (%s)", expression))
		if err != nil {
			return // too long, or too deep by now
		}
		if opposite.Match(frame, len(frame)) == is {
			t.Errorf("%q and its opposite: both %v", expression, is)
		}
	})
}

func BenchmarkMatch(b *testing.B) {
	frame := tunnelled(tcpFrame("10.0.0.1", "10.0.0.2", 1000, 80), 100, 4789)
	for _, e := range []string{"udp port 53", "vni 100 and inner host 10.0.0.9"} {
		f, err := filter.Compile(e)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(e, func(b *testing.B) {
			for b.Loop() {
				f.Match(frame, len(frame))
			}
		})
	}
}
