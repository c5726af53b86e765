package vxlan

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/dataplanetest"
	"github.com/shuntio/shunt/dataplane/wire"
)

const (
	hostMAC wire.MAC = 0x0200_0000_00f1
	peerMAC wire.MAC = 0x0200_0000_00f2
)

var (
	host4, peer4, other4 = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3")
	host6, peer6         = netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
)

// lab is a switch on workers that a test drives round by round. Most tests have one.
type lab struct {
	tb      testing.TB
	worker  *dataplane.Worker // the first
	workers []*dataplane.Worker
	sw      *Switch
	ports   map[string]*dataplanetest.Port
	links   map[string]*dataplane.Link
	frames  int // in each pool, all told
}

func newLab(tb testing.TB) *lab { return newLabOf(tb, 512, Options{Seed: 7}) }

func newLabOf(tb testing.TB, frames int, o Options) *lab { return newLabWith(tb, 1, frames, o) }

// newLabWith makes a lab of n workers.
func newLabWith(tb testing.TB, n, frames int, o Options) *lab {
	ws := dataplanetest.NewWorkers(tb, n, frames)
	l := &lab{tb: tb, worker: ws[0], workers: ws, sw: NewSwitch(ws, o), ports: map[string]*dataplanetest.Port{}, links: map[string]*dataplane.Link{}, frames: frames}
	tb.Cleanup(l.sw.Close)
	return l
}

func (l *lab) must(err error) {
	l.tb.Helper()
	if err != nil {
		l.tb.Fatal(err)
	}
}

func (l *lab) join(name string, link *dataplane.Link, port *dataplanetest.Port) *dataplanetest.Port {
	l.ports[name], l.links[name] = port, link
	l.worker.Do(func() { l.worker.Add(link) })
	return port
}

// uplink adds one whose every VTEP is behind peerMAC.
func (l *lab) uplink(name string, local netip.Addr) *dataplanetest.Port {
	l.tb.Helper()
	return l.uplinkOf(Uplink{Name: name, Resolver: &Fixed{End: Local{Address: local, MAC: hostMAC, MTU: 1600}, Gateway: peerMAC}})
}

func (l *lab) uplinkOf(u Uplink) *dataplanetest.Port {
	l.tb.Helper()
	link, port := dataplanetest.NewLink(u.Name)
	l.must(l.sw.AddUplink(u, []*dataplane.Link{link}, []*dataplane.Link{link}))
	return l.join(u.Name, link, port)
}

func (l *lab) network(n Network) {
	l.tb.Helper()
	l.must(l.sw.SetNetwork(n))
}

func (l *lab) attach(p Port) *dataplanetest.Port {
	l.tb.Helper()
	link, port := dataplanetest.NewLink(p.Name)
	l.must(l.sw.AttachPort(p, []*dataplane.Link{link}))
	return l.join(p.Name, link, port)
}

// detach is what the daemon does with a port that goes.
func (l *lab) detach(name string) {
	l.tb.Helper()
	l.must(l.sw.DetachPorts(name))
	l.worker.Do(func() { l.worker.Remove(l.links[name]) })
}

// settle drives all workers until none finds anything to do.
func (l *lab) settle() {
	for work := 1; work > 0; {
		work = 0
		for _, w := range l.workers {
			work += w.Round()
		}
	}
}

// send feeds frames to a port and drives the worker until they are through.
func (l *lab) send(from *dataplanetest.Port, frames ...[]byte) {
	from.FeedBytes(frames...)
	l.settle()
}

// got checks what a port was sent, in order.
func (l *lab) got(port *dataplanetest.Port, want ...[]byte) {
	l.tb.Helper()
	sent := port.Sent()
	if len(sent) != len(want) {
		l.tb.Fatalf("%d frames, want %d", len(sent), len(want))
	}
	for i, s := range sent {
		if !bytes.Equal(s.Bytes, want[i]) {
			l.tb.Fatalf("frame %d: % x\nwant % x", i, s.Bytes, want[i])
		}
		if s.Checksum.Needed {
			l.tb.Fatalf("frame %d: a checksum is left open", i)
		}
	}
}

// dropped checks that a port's frames were dropped for a reason since the last time, and no others.
func (l *lab) dropped(port *dataplanetest.Port, why dataplane.Reason, n uint64) {
	l.tb.Helper()
	if got := port.Counters.Drops(why); got != n {
		l.tb.Fatalf("%d frames dropped as %v, want %d; all: %v", got, why, n, drops(port))
	}
}

func drops(port *dataplanetest.Port) map[string]uint64 {
	all := map[string]uint64{}
	for _, r := range dataplane.Reasons() {
		if n := port.Counters.Drops(r); n > 0 {
			all[r.String()] = n
		}
	}
	return all
}

// balanced checks that no frame is held by anybody.
func (l *lab) balanced() {
	l.tb.Helper()
	l.settle() // frames go home at the end of a round
	l.settle()
	free := 0
	for _, w := range l.workers {
		free += w.Pool().Len()
	}
	if all := l.frames * len(l.workers); free != all {
		l.tb.Fatalf("%d frames of %d are free", free, all)
	}
}

func serialize(tb interface{ Fatal(...any) }, ls ...gopacket.SerializableLayer) []byte {
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ls...); err != nil {
		tb.Fatal(err)
	}
	return bytes.Clone(buf.Bytes())
}

func hw(m wire.MAC) []byte { b := m.Bytes(); return b[:] }

// ethernetFrame is an Ethernet frame of a protocol nobody judges.
func ethernetFrame(to, from wire.MAC, payload ...byte) []byte {
	b := make([]byte, wire.EthernetLen, wire.EthernetLen+len(payload)+46)
	wire.Ethernet(b).Set(to, from, 0x88b5) // local experimental
	return append(append(b, payload...), make([]byte, max(0, 46-len(payload)))...)
}

// udpFrame is an IPv4 or IPv6 UDP packet.
func udpFrame(tb interface{ Fatal(...any) }, to, from wire.MAC, destination, source string, payload []byte) []byte {
	d, s := netip.MustParseAddr(destination), netip.MustParseAddr(source)
	u := &layers.UDP{SrcPort: 1000, DstPort: 2000}
	if d.Is4() {
		ip := &layers.IPv4{Version: 4, IHL: 5, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: s.AsSlice(), DstIP: d.AsSlice()}
		u.SetNetworkLayerForChecksum(ip)
		return serialize(tb, &layers.Ethernet{DstMAC: hw(to), SrcMAC: hw(from), EthernetType: layers.EthernetTypeIPv4}, ip, u, gopacket.Payload(payload))
	}
	ip := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolUDP, SrcIP: s.AsSlice(), DstIP: d.AsSlice()}
	u.SetNetworkLayerForChecksum(ip)
	return serialize(tb, &layers.Ethernet{DstMAC: hw(to), SrcMAC: hw(from), EthernetType: layers.EthernetTypeIPv6}, ip, u, gopacket.Payload(payload))
}

// tcpFrame is an IPv4 or IPv6 TCP packet.
func tcpFrame(tb interface{ Fatal(...any) }, to, from wire.MAC, destination, source string, sourcePort, port uint16, flags uint8, payload []byte) []byte {
	d, s := netip.MustParseAddr(destination), netip.MustParseAddr(source)
	h := &layers.TCP{SrcPort: layers.TCPPort(sourcePort), DstPort: layers.TCPPort(port), Window: 1000,
		FIN: flags&wire.TCPFin != 0, SYN: flags&wire.TCPSyn != 0, RST: flags&wire.TCPRst != 0, PSH: flags&wire.TCPPsh != 0, ACK: flags&wire.TCPAck != 0}
	if d.Is4() {
		ip := &layers.IPv4{Version: 4, IHL: 5, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: s.AsSlice(), DstIP: d.AsSlice()}
		h.SetNetworkLayerForChecksum(ip)
		return serialize(tb, &layers.Ethernet{DstMAC: hw(to), SrcMAC: hw(from), EthernetType: layers.EthernetTypeIPv4}, ip, h, gopacket.Payload(payload))
	}
	ip := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolTCP, SrcIP: s.AsSlice(), DstIP: d.AsSlice()}
	h.SetNetworkLayerForChecksum(ip)
	return serialize(tb, &layers.Ethernet{DstMAC: hw(to), SrcMAC: hw(from), EthernetType: layers.EthernetTypeIPv6}, ip, h, gopacket.Payload(payload))
}

// tunnelPacket is what a peer sends: the inner frame in VXLAN, made by gopacket. change may spoil the outer layers.
func tunnelPacket(tb interface{ Fatal(...any) }, to, from netip.Addr, vni uint32, inner []byte, change func(v *layers.VXLAN, u *layers.UDP)) []byte {
	v := &layers.VXLAN{ValidIDFlag: true, VNI: vni}
	u := &layers.UDP{SrcPort: 50000, DstPort: 4789}
	if change != nil {
		change(v, u)
	}
	e := &layers.Ethernet{DstMAC: hw(hostMAC), SrcMAC: hw(peerMAC), EthernetType: layers.EthernetTypeIPv4}
	if to.Is4() {
		ip := &layers.IPv4{Version: 4, IHL: 5, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: from.AsSlice(), DstIP: to.AsSlice()}
		u.SetNetworkLayerForChecksum(ip)
		return serialize(tb, e, ip, u, v, gopacket.Payload(inner))
	}
	e.EthernetType = layers.EthernetTypeIPv6
	ip := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolUDP, SrcIP: from.AsSlice(), DstIP: to.AsSlice()}
	u.SetNetworkLayerForChecksum(ip)
	return serialize(tb, e, ip, u, v, gopacket.Payload(inner))
}

// unwrapped decodes an encapsulated packet with gopacket, checks every outer field that is fixed, and returns where it goes, its VNI,
// source port and inner frame.
func unwrapped(tb testing.TB, b []byte) (to netip.Addr, vni uint32, port uint16, inner []byte) {
	tb.Helper()
	p := gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.Default)
	e := p.Layer(layers.LayerTypeEthernet).(*layers.Ethernet)
	if !bytes.Equal(e.SrcMAC, hw(hostMAC)) || !bytes.Equal(e.DstMAC, hw(peerMAC)) {
		tb.Fatalf("outer Ethernet %v > %v", e.SrcMAC, e.DstMAC)
	}
	u, ok := p.Layer(layers.LayerTypeUDP).(*layers.UDP)
	if !ok {
		tb.Fatalf("no outer UDP in % x", b)
	}
	if ip, ok := p.NetworkLayer().(*layers.IPv4); ok {
		if int(ip.Length) != len(b)-14 || ip.TTL != 64 || ip.Flags != layers.IPv4DontFragment || ip.TOS != 0 || !wire.IPv4(b[14:]).ChecksumValid() {
			tb.Fatalf("outer IPv4 %+v", ip)
		}
		if u.Checksum != 0 {
			tb.Fatalf("outer UDP checksum %#04x over IPv4", u.Checksum)
		}
		to, _ = netip.AddrFromSlice(ip.DstIP.To4())
	} else {
		ip := p.NetworkLayer().(*layers.IPv6)
		if int(ip.Length) != len(b)-54 || ip.HopLimit != 64 {
			tb.Fatalf("outer IPv6 %+v", ip)
		}
		u.SetNetworkLayerForChecksum(ip)
		if err, r := u.VerifyChecksum(); err != nil || !r.Valid || u.Checksum == 0 {
			tb.Fatalf("outer UDP checksum over IPv6: %v %+v", err, r)
		}
		to, _ = netip.AddrFromSlice(ip.DstIP)
	}
	if u.DstPort != 4789 || u.SrcPort < 49152 || int(u.Length) != len(u.Payload)+8 {
		tb.Fatalf("outer UDP %+v", u)
	}
	v, ok := p.Layer(layers.LayerTypeVXLAN).(*layers.VXLAN)
	if !ok || !v.ValidIDFlag {
		tb.Fatal("no VXLAN header with a VNI")
	}
	return to, v.VNI, uint16(u.SrcPort), v.LayerPayload()
}
