package bpf

import (
	"net"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/shuntio/shunt/tools/lab/netlab"
)

// What the kernel's enum xdp_action calls the two ends of a frame we see here.
const (
	xdpDrop     = 1
	xdpPass     = 2
	xdpRedirect = 4
)

const (
	knownVNI   = 100
	otherVNI   = 101
	workerVNI  = 0xabcdef // served by worker
	worker     = 3
	queue      = 1
	emptyQueue = 0
)

var (
	guestMAC   = [6]byte{0x52, 0x54, 0, 0, 0, 1}
	stationMAC = [6]byte{0x52, 0x54, 0, 0, 0, 7}
	hostMAC    = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	peerMAC    = net.HardwareAddr{2, 0, 0, 0, 0, 2}
	vtep4      = netip.MustParseAddr("192.0.2.1")
	vtep6      = netip.MustParseAddr("2001:db8::1")
	other4     = netip.MustParseAddr("192.0.2.9")
	other6     = netip.MustParseAddr("2001:db8::9")
	inner      = gopacket.Payload("\x52\x54\x00\x00\x00\x01\x52\x54\x00\x00\x00\x02\x08\x06 an inner frame")
	toStation  = gopacket.Payload("\x52\x54\x00\x00\x00\x07\x52\x54\x00\x00\x00\x02\x08\x06 an inner frame")
	fragments  = &layers.IPv6Fragment{NextHeader: layers.IPProtocolUDP, MoreFragments: true}
)

// rig is a program that is loaded but attached to nothing, and runs on frames
// as if they came from the queues of an interface.
type rig struct {
	*Program
	ns    *netlab.Namespace
	index uint32
}

// newRig loads the program for an interface of two queues.
func newRig(t testing.TB, port uint16) *rig {
	t.Helper()
	ns, index := interfaceWithQueues(t, 2)
	p := &Program{}
	p.queues = 2
	if err := p.load(port); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.objs.Close() })
	return &rig{p, ns, index}
}

// program is a rig with full tables, and sockets on one of its queues.
func program(t testing.TB) *rig {
	t.Helper()
	p := newRig(t, 0)
	for _, err := range []error{
		p.AddVTEP(vtep4), p.AddVTEP(vtep6), p.AddVNI(knownVNI, 0), p.AddVNI(workerVNI, worker), p.AddMAC(guestMAC, []int{0}),
		p.AddStation(knownVNI, stationMAC, []int{0, worker}),
		p.AddSocket(queue, 0, xdpSocket(t)), p.AddSocket(queue, worker, xdpSocket(t)),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// xdpMd is struct xdp_md, the context of a run.
type xdpMd struct {
	Data, DataEnd, DataMeta, IngressIfindex, RxQueueIndex, EgressIfindex uint32
}

// run gives the program a frame from a queue and returns its action and the
// verdict it counted.
func (p *rig) run(t testing.TB, prog *ebpf.Program, frame []byte, queue uint32) (action uint32, verdict string) {
	t.Helper()
	before, err := p.Counters()
	if err != nil {
		t.Fatal(err)
	}
	md := xdpMd{DataEnd: uint32(len(frame)), IngressIfindex: p.index, RxQueueIndex: queue}
	err = p.ns.Do(func() (err error) {
		action, err = prog.Run(&ebpf.RunOptions{Data: frame, Context: md})
		return err
	})
	if err != nil {
		t.Fatalf("%d bytes: %v", len(frame), err)
	}
	after, err := p.Counters()
	if err != nil {
		t.Fatal(err)
	}
	for i := range after {
		packets, bytes := after[i].Packets-before[i].Packets, after[i].Bytes-before[i].Bytes
		if packets == 0 && bytes == 0 {
			continue
		}
		if verdict != "" || packets != 1 || bytes != uint64(len(frame)) {
			t.Errorf("verdict %s counted %d packets, %d bytes after %q; the frame has %d", after[i].Verdict, packets, bytes, verdict, len(frame))
		}
		verdict = after[i].Verdict
	}
	return action, verdict
}

func serialize(t testing.TB, parts ...gopacket.SerializableLayer) []byte {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true}, parts...); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func ethernet(typ layers.EthernetType) *layers.Ethernet {
	return &layers.Ethernet{SrcMAC: peerMAC, DstMAC: hostMAC, EthernetType: typ}
}

func ipv4(dst netip.Addr) *layers.IPv4 {
	return &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: net.IP{192, 0, 2, 2}, DstIP: dst.AsSlice()}
}

func ipv6(dst netip.Addr) *layers.IPv6 {
	return &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolUDP, SrcIP: net.ParseIP("2001:db8::2"), DstIP: dst.AsSlice()}
}

func udp(port uint16) *layers.UDP {
	return &layers.UDP{SrcPort: 50000, DstPort: layers.UDPPort(port)}
}

func vxlan(vni uint32) *layers.VXLAN { return &layers.VXLAN{ValidIDFlag: true, VNI: vni} }

// with changes a layer on the way into a packet.
func with[L any](layer L, change func(L)) L {
	change(layer)
	return layer
}

// frames has a frame for each way through the program, with its verdict.
func frames(t testing.TB) map[string]struct {
	frame   []byte
	verdict string
} {
	e4, e6 := ethernet(layers.EthernetTypeIPv4), ethernet(layers.EthernetTypeIPv6)
	options := []layers.IPv4Option{{OptionType: 1}, {OptionType: 1}, {OptionType: 1}, {OptionType: 1}}
	cases := map[string]struct {
		frame   []byte
		verdict string
	}{}
	add := func(name, verdict string, parts ...gopacket.SerializableLayer) {
		cases[name] = struct {
			frame   []byte
			verdict string
		}{serialize(t, parts...), verdict}
	}
	add("vxlan over IPv4", "redirect", e4, ipv4(vtep4), udp(4789), vxlan(knownVNI), inner)
	add("vxlan over IPv6", "redirect", e6, ipv6(vtep6), udp(4789), vxlan(knownVNI), inner)
	add("vxlan to a station", "redirect-station", e4, ipv4(vtep4), udp(4789), vxlan(knownVNI), toStation)
	add("vxlan over IPv6 to a station", "redirect-station", e6, ipv6(vtep6), udp(4789), vxlan(knownVNI), toStation)
	add("the station's MAC in another network", "redirect", e4, ipv4(vtep4), udp(4789), vxlan(workerVNI), toStation)
	add("the station's MAC in an unknown network", "pass-unknown-vni", e4, ipv4(vtep4), udp(4789), vxlan(otherVNI), toStation)
	add("vxlan of another worker", "redirect", e4, ipv4(vtep4), udp(4789), vxlan(workerVNI), inner)
	add("vxlan behind IPv4 options", "redirect", e4,
		with(ipv4(vtep4), func(ip *layers.IPv4) { ip.Options = options }), udp(4789), vxlan(knownVNI), inner)
	add("vxlan behind the longest IPv4 header", "redirect", e4,
		with(ipv4(vtep4), func(ip *layers.IPv4) {
			for range 40 {
				ip.Options = append(ip.Options, options[0])
			}
		}), udp(4789), vxlan(knownVNI), inner)
	add("vxlan without an inner frame", "redirect", e4, ipv4(vtep4), udp(4789), vxlan(knownVNI))
	add("vxlan with don't fragment", "redirect", e4,
		with(ipv4(vtep4), func(ip *layers.IPv4) { ip.Flags = layers.IPv4DontFragment }), udp(4789), vxlan(knownVNI), inner)

	add("IPv4 unknown VNI", "pass-unknown-vni", e4, ipv4(vtep4), udp(4789), vxlan(otherVNI), inner)
	add("IPv6 unknown VNI", "pass-unknown-vni", e6, ipv6(vtep6), udp(4789), vxlan(otherVNI), inner)
	add("IPv4 other address", "pass-other-address", e4, ipv4(other4), udp(4789), vxlan(knownVNI), inner)
	add("IPv6 other address", "pass-other-address", e6, ipv6(other6), udp(4789), vxlan(knownVNI), inner)
	add("IPv4-mapped destination", "pass-other-address", e6, ipv6(netip.AddrFrom16(vtep4.As16())), udp(4789), vxlan(knownVNI), inner)

	add("no I flag", "pass-not-vxlan", e4, ipv4(vtep4), udp(4789),
		with(vxlan(knownVNI), func(v *layers.VXLAN) { v.ValidIDFlag = false }), inner)
	add("other port", "pass-not-vxlan", e4, ipv4(vtep4), udp(8472), vxlan(knownVNI), inner)
	add("IPv6 other port", "pass-not-vxlan", e6, ipv6(vtep6), udp(8472), vxlan(knownVNI), inner)
	add("our port as the source", "pass-not-vxlan", e4, ipv4(vtep4),
		with(udp(8472), func(u *layers.UDP) { u.SrcPort = 4789 }), vxlan(knownVNI), inner)
	add("TCP", "pass-not-vxlan", e4, with(ipv4(vtep4), func(ip *layers.IPv4) { ip.Protocol = layers.IPProtocolTCP }), udp(4789), vxlan(knownVNI), inner)
	add("IPv6 extension header", "pass-not-vxlan", e6,
		with(ipv6(vtep6), func(ip *layers.IPv6) { ip.NextHeader = layers.IPProtocolIPv6Destination }), udp(4789), vxlan(knownVNI), inner)

	add("IPv4 first fragment", "pass-fragment", e4,
		with(ipv4(vtep4), func(ip *layers.IPv4) { ip.Flags = layers.IPv4MoreFragments }), udp(4789), vxlan(knownVNI), inner)
	add("IPv4 last fragment", "pass-fragment", e4,
		with(ipv4(vtep4), func(ip *layers.IPv4) { ip.FragOffset = 185 }), udp(4789), vxlan(knownVNI), inner)
	add("IPv6 fragment", "pass-fragment", e6,
		with(ipv6(vtep6), func(ip *layers.IPv6) { ip.NextHeader = layers.IPProtocolIPv6Fragment }), fragments, udp(4789), vxlan(knownVNI), inner)

	add("ARP", "pass-not-ip", ethernet(layers.EthernetTypeARP), inner)
	add("IPv4 of version 5", "pass-not-ip", e4, with(ipv4(vtep4), func(ip *layers.IPv4) { ip.Version = 5 }), udp(4789), vxlan(knownVNI), inner)
	add("IPv6 of version 5", "pass-not-ip", e6, with(ipv6(vtep6), func(ip *layers.IPv6) { ip.Version = 5 }), udp(4789), vxlan(knownVNI), inner)
	shortIHL := serialize(t, e4, ipv4(vtep4), udp(4789), vxlan(knownVNI), inner)
	shortIHL[14] = 0x44
	add("IPv4 header of 16 bytes", "pass-not-ip", gopacket.Payload(shortIHL))

	add("802.1Q", "pass-tagged", ethernet(layers.EthernetTypeDot1Q), &layers.Dot1Q{VLANIdentifier: 5, Type: layers.EthernetTypeIPv4},
		ipv4(vtep4), udp(4789), vxlan(knownVNI), inner)
	add("802.1ad", "pass-tagged", ethernet(layers.EthernetTypeQinQ), &layers.Dot1Q{VLANIdentifier: 5, Type: layers.EthernetTypeIPv4},
		ipv4(vtep4), udp(4789), vxlan(knownVNI), inner)
	return cases
}

func action(verdict string) uint32 {
	switch verdict {
	case "redirect", "redirect-station", "redirect-flat":
		return xdpRedirect
	case "drop-no-socket":
		return xdpDrop
	}
	return xdpPass
}

func TestVerdicts(t *testing.T) {
	p := program(t)
	for name, c := range frames(t) {
		for variant, prog := range map[string]*ebpf.Program{"frags": p.objs.ShuntSteer, "linear": p.objs.ShuntSteerLin} {
			got, verdict := p.run(t, prog, c.frame, queue)
			if verdict != c.verdict || got != action(c.verdict) {
				t.Errorf("%s, %s: action %d, verdict %s, want %d, %s", name, variant, got, verdict, action(c.verdict), c.verdict)
			}
			// The same on a queue without sockets.
			want := c.verdict
			if action(want) == xdpRedirect {
				want = "drop-no-socket"
			}
			if got, verdict := p.run(t, prog, c.frame, emptyQueue); verdict != want || got != action(want) {
				t.Errorf("%s, %s, no socket: action %d, verdict %s, want %d, %s", name, variant, got, verdict, action(want), want)
			}
		}
	}
}

func TestFlatNetwork(t *testing.T) {
	p := program(t)
	to := func(dst [6]byte, typ layers.EthernetType) []byte {
		return serialize(t, &layers.Ethernet{SrcMAC: peerMAC, DstMAC: dst[:], EthernetType: typ}, inner)
	}
	broadcast := [6]byte{255, 255, 255, 255, 255, 255}
	vxlanToHost := serialize(t, ethernet(layers.EthernetTypeIPv4), ipv4(vtep4), udp(4789), vxlan(knownVNI), inner)
	for _, c := range []struct {
		name     string
		frame    []byte
		on, off  string
		oneQueue string // on, on the queue without sockets
	}{
		{"to a guest", to(guestMAC, layers.EthernetTypeARP), "redirect-flat", "pass-not-ip", "drop-no-socket"},
		{"to a guest, 802.3", to(guestMAC, 0x40), "redirect-flat", "pass-not-ip", "drop-no-socket"},
		{"to a guest, tagged", to(guestMAC, layers.EthernetTypeDot1Q), "pass-tagged", "pass-tagged", "pass-tagged"},
		{"to the host", to([6]byte(hostMAC), layers.EthernetTypeARP), "pass-not-ip", "pass-not-ip", "pass-not-ip"},
		{"broadcast", to(broadcast, layers.EthernetTypeARP), "pass-not-ip", "pass-not-ip", "pass-not-ip"},
		{"vxlan beside it", vxlanToHost, "redirect", "redirect", "drop-no-socket"},
	} {
		for on, want := range map[bool]string{true: c.on, false: c.off} {
			if err := p.SetFlat(on); err != nil {
				t.Fatal(err)
			}
			if got, verdict := p.run(t, p.objs.ShuntSteer, c.frame, queue); verdict != want || got != action(want) {
				t.Errorf("%s, flat %v: action %d, verdict %s, want %s", c.name, on, got, verdict, want)
			}
		}
		if err := p.SetFlat(true); err != nil {
			t.Fatal(err)
		}
		if got, verdict := p.run(t, p.objs.ShuntSteer, c.frame, emptyQueue); verdict != c.oneQueue || got != action(c.oneQueue) {
			t.Errorf("%s, no socket: action %d, verdict %s, want %s", c.name, got, verdict, c.oneQueue)
		}
	}
}

// Every frame cut at every length: what lost a header is passed as truncated,
// what kept them is judged as the whole.
func TestTruncatedFrames(t *testing.T) {
	p := program(t)
	for name, c := range frames(t) {
		for n := 14; n < len(c.frame); n++ { // the kernel runs nothing shorter
			got, verdict := p.run(t, p.objs.ShuntSteer, c.frame[:n], queue)
			want := c.verdict
			switch at := judgedAt(c.frame); {
			case n < at:
				want = "pass-truncated"
			case n < at+6 && want == "redirect-station": // its inner destination is cut off
				want = "redirect"
			}
			if verdict != want || got != action(want) {
				t.Errorf("%s, %d of %d bytes: action %d, verdict %s, want %s", name, n, len(c.frame), got, verdict, want)
			}
		}
	}
}

// judgedAt is how many bytes of a frame its verdict needs.
func judgedAt(frame []byte) int {
	var udp int
	switch typ := uint16(frame[12])<<8 | uint16(frame[13]); typ {
	case 0x0800:
		if ip := frame[14:]; ip[0] < 0x45 || ip[0] > 0x4f || ip[6]&0x3f != 0 || ip[7] != 0 || ip[9] != 17 {
			return 34
		}
		udp = 14 + int(frame[14]&15)*4
	case 0x86dd:
		if frame[14]>>4 != 6 || frame[20] != 17 {
			return 54
		}
		udp = 54
	default:
		return 14
	}
	if frame[udp+2] != 4789>>8 || frame[udp+3] != 4789&0xff {
		return udp + 8
	}
	return udp + 16
}

func TestTablesAreFollowed(t *testing.T) {
	p := program(t)
	frame := frames(t)["vxlan over IPv4"].frame
	see := func(want string) {
		t.Helper()
		if _, verdict := p.run(t, p.objs.ShuntSteer, frame, queue); verdict != want {
			t.Errorf("verdict %s, want %s", verdict, want)
		}
	}
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	see("redirect")
	do(p.AddVNI(knownVNI, worker+1)) // which has no socket
	see("drop-no-socket")
	do(p.AddVNI(knownVNI, worker))
	see("redirect")
	do(p.RemoveVNI(knownVNI))
	see("pass-unknown-vni")
	do(p.RemoveVNI(knownVNI)) // twice is once
	do(p.AddVNI(knownVNI, 0))
	do(p.RemoveVTEP(vtep4))
	see("pass-other-address")
	do(p.AddVTEP(netip.AddrFrom16(vtep4.As16()))) // the mapped form is the same address
	see("redirect")
	do(p.RemoveMAC(guestMAC))
}

func TestTablesRefuse(t *testing.T) {
	p := program(t)
	for name, err := range map[string]error{
		"VNI of 25 bits":      p.AddVNI(1<<24, 0),
		"negative worker":     p.AddVNI(1, -1),
		"worker beyond":       p.AddMAC(guestMAC, []int{MaxWorkers}),
		"multicast MAC":       p.AddMAC([6]byte{1}, []int{0}),
		"no workers":          p.AddMAC(guestMAC, nil),
		"nine workers":        p.AddStation(knownVNI, guestMAC, make([]int, MaxSpread+1)),
		"multicast station":   p.AddStation(knownVNI, [6]byte{1}, []int{0}),
		"unknown network":     p.AddStation(otherVNI, guestMAC, []int{0}),
		"no address":          p.AddVTEP(netip.Addr{}),
		"multicast address":   p.AddVTEP(netip.MustParseAddr("239.1.1.1")),
		"address with zone":   p.AddVTEP(netip.MustParseAddr("fe80::1%eth0")),
		"unspecified":         p.AddVTEP(netip.IPv6Unspecified()),
		"queue beyond":        p.AddSocket(2, 0, xdpSocket(t)),
		"negative queue":      p.AddSocket(-1, 0, xdpSocket(t)),
		"socket's worker":     p.AddSocket(0, MaxWorkers, xdpSocket(t)),
		"not a socket":        p.AddSocket(0, 0, 0),
		"removing no address": p.RemoveVTEP(netip.Addr{}),
		"more than 64 VTEPs":  addVTEPs(p.Program, 65),
	} {
		if err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func addVTEPs(p *Program, n int) error {
	for i := range n {
		if err := p.AddVTEP(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})); err != nil {
			return err
		}
	}
	return nil
}

// A jumbo frame reaches a program in several buffers, and counts whole.
func TestJumboFrame(t *testing.T) {
	p := program(t)
	frame := append(frames(t)["vxlan over IPv4"].frame, make([]byte, 9000)...)
	if got, verdict := p.run(t, p.objs.ShuntSteer, frame, queue); got != xdpRedirect || verdict != "redirect" {
		t.Errorf("action %d, verdict %s, want redirect", got, verdict)
	}
}

func TestPortIsAConstantOfTheProgram(t *testing.T) {
	p := newRig(t, 8472)
	for name, want := range map[string]string{"vxlan over IPv4": "pass-not-vxlan", "other port": "pass-other-address"} {
		if _, verdict := p.run(t, p.objs.ShuntSteer, frames(t)[name].frame, 0); verdict != want {
			t.Errorf("%s: verdict %s, want %s", name, verdict, want)
		}
	}
}

// The names userspace shows are those of the program's source.
func TestVerdictNames(t *testing.T) {
	p := program(t)
	want := []string{"redirect", "redirect-station", "redirect-flat", "drop-no-socket", "pass-truncated", "pass-tagged", "pass-not-ip",
		"pass-not-vxlan", "pass-fragment", "pass-other-address", "pass-unknown-vni"}
	if diff := cmp.Diff(want, p.names); diff != "" {
		t.Error(diff)
	}
}

func BenchmarkVerdict(b *testing.B) {
	p := program(b)
	for _, name := range []string{"vxlan to a station", "vxlan over IPv4", "vxlan over IPv6", "IPv4 unknown VNI", "TCP", "ARP"} {
		b.Run(name, func(b *testing.B) {
			frame := frames(b)[name].frame
			md := xdpMd{DataEnd: uint32(len(frame)), IngressIfindex: p.index, RxQueueIndex: queue}
			err := p.ns.Do(func() error {
				_, err := p.objs.ShuntSteer.Run(&ebpf.RunOptions{Data: frame, Context: md, Repeat: uint32(b.N)})
				return err
			})
			if err != nil {
				b.Fatal(err)
			}
		})
	}
}
