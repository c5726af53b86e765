package vxlan

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/dataplanetest"
	"github.com/shuntio/shunt/dataplane/wire"
	"github.com/shuntio/shunt/vxlan/acl"
	"pgregory.net/rapid"
)

// twin is two switches of two workers each that are told and sent the same, one without flow cache.
type twin struct {
	labs  [2]*lab
	ports [2]map[string][]*dataplanetest.Port // by name, one for each link
	links [2]map[string][]*dataplane.Link
	clock *atomic.Uint32
}

func newTwin(tb testing.TB) *twin {
	t := &twin{clock: new(atomic.Uint32)}
	t.clock.Store(1000)
	for i := range t.labs {
		t.labs[i] = newLabWith(tb, 2, 64, Options{Seed: 7, Flows: 16, clock: t.clock, uncached: i == 1})
		t.ports[i], t.links[i] = map[string][]*dataplanetest.Port{}, map[string][]*dataplane.Link{}
		up := t.labs[i].uplink("up0", host4)
		t.ports[i]["up0"] = []*dataplanetest.Port{up}
	}
	return t
}

func (t *twin) both(do func(i int, l *lab)) {
	for i, l := range t.labs {
		do(i, l)
	}
}

func (t *twin) attach(p Port, workers ...int) {
	t.both(func(i int, l *lab) { t.ports[i][p.Name], t.links[i][p.Name] = l.attachTo(p, workers...) })
}

func (t *twin) detach(name string) {
	t.both(func(i int, l *lab) {
		l.must(l.sw.DetachPorts(name))
		for _, link := range t.links[i][name] {
			w := link.Owner()
			w.Do(func() { w.Remove(link) })
		}
		delete(t.ports[i], name)
	})
}

// same fails if the two have sent or dropped anything else.
func (t *twin) same(tb interface{ Fatalf(string, ...any) }, what string) {
	for name := range t.ports[0] {
		for k := range t.ports[0][name] {
			a, b := t.ports[0][name][k], t.ports[1][name][k]
			x, y := sentBytes(a), sentBytes(b)
			if len(x) != len(y) {
				tb.Fatalf("%s: %s was sent %d frames, without cache %d; dropped %v, %v", what, name, len(x), len(y), t.drops(0), t.drops(1))
			}
			for i := range x {
				if !bytes.Equal(x[i], y[i]) {
					tb.Fatalf("%s: %s was sent % x\nwithout cache % x", what, name, x[i], y[i])
				}
			}
		}
	}
	if a, b := t.drops(0), t.drops(1); a != b {
		tb.Fatalf("%s: dropped %s, without cache %s", what, a, b)
	}
	if a, b := t.hits(0), t.hits(1); a != b {
		tb.Fatalf("%s: counted %s, without cache %s", what, a, b)
	}
}

func (t *twin) drops(i int) string {
	all := map[string]string{}
	for name, ports := range t.ports[i] {
		for _, p := range ports {
			all[name] += fmt.Sprint(drops(p))
		}
	}
	return fmt.Sprint(all)
}

func (t *twin) hits(i int) string {
	all := map[string]string{}
	for name, p := range t.labs[i].sw.ports {
		if p.filter != nil {
			all[name] = fmt.Sprint(p.filter.rules.Hits())
		}
	}
	return fmt.Sprint(all)
}

var policies = []*acl.Policy{
	nil,
	parsePolicy("allow out udp\nallow in tcp to any port 80"),
	parsePolicy("allow out any\nallow out ether any\ndeny in udp from any port 7\ndefault deny"),
	parsePolicy("default allow\ndeny in tcp to any port 80\ndeny out udp"),
	parsePolicy("deny out tcp\nallow in any\nallow out udp to any port 7-9"),
	{},
}

func parsePolicy(text string) *acl.Policy {
	p, err := acl.ParsePolicy(text)
	if err != nil {
		panic(err)
	}
	return &p
}

// sending is a frame and where it comes from.
type sending struct {
	from  string
	link  int
	frame []byte
}

// anySending draws one of few flows, so that many are replies to others.
func anySending(t *rapid.T) (s sending) {
	s.from = rapid.SampledFrom([]string{"a", "b", "c", "c", "up0"}).Draw(t, "from")
	if s.from == "b" {
		s.link = rapid.IntRange(0, 1).Draw(t, "link")
	}
	own := map[string][]wire.MAC{"a": {mac1, mac1, macX}, "b": {mac2, mac2, macX}, "c": {mac4, macX, macX, macX + 1}, "up0": {mac3, macX, macX, macX + 1}}
	from := rapid.SampledFrom(own[s.from]).Draw(t, "source")
	to := rapid.SampledFrom([]wire.MAC{mac1, mac2, mac3, macX, macX, wire.Broadcast}).Draw(t, "to")
	ips := rapid.SampledFrom([][]string{{"10.0.0.1", "10.0.0.2"}, {"10.0.0.2", "10.0.0.1"}, {"fd00::1", "fd00::2"}, {"fd00::2", "fd00::1"}}).Draw(t, "ips")
	ports := rapid.SampledFrom([][]uint16{{7, 80}, {80, 7}, {1000, 80}, {80, 1000}}).Draw(t, "ports")
	at := 34
	if len(ips[0]) == 7 {
		at = 54
	}
	payload := []byte{1, 2, 3, 4}
	switch rapid.IntRange(0, 11).Draw(t, "kind") {
	case 0:
		s.frame = ethernetFrame(to, from, payload...)
	case 1:
		s.frame = tag(udpFrame(t, to, from, ips[1], ips[0], payload), 1)
	case 2:
		s.frame = udpFrame(t, to, from, "10.0.0.1", "10.0.0.2", payload)
		binary.BigEndian.PutUint16(s.frame[20:], rapid.SampledFrom([]uint16{0x2000, 2, 0x4000}).Draw(t, "fragment"))
		wire.IPv4(s.frame[14:]).SetChecksum()
	case 3:
		s.frame = icmpFrame(t, to, from, ips[1], ips[0], rapid.SampledFrom([]uint8{0, 8, 3}).Draw(t, "type"), 5, payload)
	case 4, 5, 6, 7:
		flags := rapid.SampledFrom([]uint8{wire.TCPAck, wire.TCPAck, wire.TCPSyn, wire.TCPSyn | wire.TCPAck, wire.TCPFin | wire.TCPAck, wire.TCPRst}).Draw(t, "flags")
		s.frame = tcpFrame(t, to, from, ips[1], ips[0], ports[0], ports[1], flags, payload)
	default:
		s.frame = udpFrame(t, to, from, ips[1], ips[0], payload)
		binary.BigEndian.PutUint16(s.frame[at:], ports[0])
		binary.BigEndian.PutUint16(s.frame[at+2:], ports[1])
	}
	return s
}

// TestCacheDecidesAlike does the same to two switches, one without cache: configuration changes, time, links that move, frames of few flows from guests
// and VTEPs. Each frame goes the same ways, is dropped for the same reasons and counted by the same rules.
func TestCacheDecidesAlike(tb *testing.T) {
	recalled := 0
	rapid.Check(tb, func(t *rapid.T) {
		var cleanups cleanups
		w := newTwin(scope{tb, &cleanups})
		defer cleanups.run()
		network := func() Network {
			return Network{Name: "blue", VNI: 100, Uplink: "up0", MTU: rapid.SampledFrom([]int{100, 1450}).Draw(t, "mtu"),
				Learning: rapid.IntRange(0, 3).Draw(t, "learning") > 0, Age: 2 * time.Second, LearnLimit: 2, DropTagged: rapid.Bool().Draw(t, "tagged"),
				Flood: []netip.Addr{peer4, other4}, Entries: []Entry{{MAC: mac3, VTEP: peer4}}}
		}
		port := func(name string, mac wire.MAC) Port {
			return Port{Name: name, Network: "blue", MAC: mac, LearnLimit: rapid.IntRange(1, 3).Draw(t, "limit"),
				AntiSpoof: mac != 0 && rapid.Bool().Draw(t, "anti-spoof"), ACL: policies[max(0, rapid.IntRange(-6, len(policies)-1).Draw(t, "policy"))]}
		}
		n := network()
		w.both(func(_ int, l *lab) { l.network(n) })
		w.attach(port("a", mac1), 0)
		w.attach(port("b", mac2), 1, 0)
		w.attach(port("c", 0), 1)
		frames := make([]sending, rapid.IntRange(1, 8).Draw(t, "flows"))
		for i := range frames {
			frames[i] = anySending(t)
		}
		for range rapid.IntRange(1, 100).Draw(t, "steps") {
			what := "frame"
			switch step := rapid.IntRange(0, 39).Draw(t, "step"); step {
			case 0:
				what = "network"
				n := network()
				w.both(func(_ int, l *lab) { l.network(n) })
			case 1, 2:
				what = "port"
				p := port("a", mac1)
				if step == 2 {
					p = port("c", rapid.SampledFrom([]wire.MAC{0, mac4}).Draw(t, "mac"))
				}
				w.both(func(_ int, l *lab) { l.must(l.sw.SetPort(p)) })
			case 3:
				what = "another port"
				w.detach("b")
				w.attach(port("b", rapid.SampledFrom([]wire.MAC{0, mac2}).Draw(t, "mac")), 1, 0)
			case 4, 5:
				what = "time"
				w.clock.Add(rapid.SampledFrom([]uint32{1, 2, 8, 16, 17, ticks(time.Minute) + 1}).Draw(t, "ticks"))
			case 6:
				what = "move"
				w.both(func(i int, l *lab) {
					link := w.links[i]["c"][0]
					l.move(link, 1-link.Owner().Index())
					l.sw.Refresh()
				})
			default:
				s := rapid.SampledFrom(frames).Draw(t, "which")
				f := s.frame
				if rapid.IntRange(0, 9).Draw(t, "long") == 0 {
					f = append(bytes.Clone(f), make([]byte, 100)...)
				}
				if s.from == "up0" {
					f = tunnelPacket(t, host4, rapid.SampledFrom([]netip.Addr{peer4, other4}).Draw(t, "vtep"), 100, f, nil)
				}
				w.both(func(i int, l *lab) { l.send(w.ports[i][s.from][s.link], f) })
			}
			w.same(t, what)
		}
		w.both(func(_ int, l *lab) { l.balanced() })
		for _, l := range w.labs[0].sw.lanes {
			recalled += l.recalled
		}
	})
	if recalled == 0 {
		tb.Error("nothing was ever recalled")
	}
}

// icmpFrame is an ICMP or ICMPv6 message with an identifier; of types of errors, the payload is what they quote.
func icmpFrame(tb interface{ Fatal(...any) }, to, from wire.MAC, destination, source string, kind uint8, id uint16, payload []byte) []byte {
	f := udpFrame(tb, to, from, destination, source, payload) // eight bytes of header, too
	d := netip.MustParseAddr(destination)
	at, start := 34, uint16(0)
	if d.Is4() {
		f[23] = wire.ProtoICMPv4
		wire.IPv4(f[14:]).SetChecksum()
	} else {
		at = 54
		f[20] = wire.ProtoICMPv6
		if kind == 8 {
			kind = wire.ICMPv6EchoRequest
		} else if kind == 0 {
			kind = wire.ICMPv6EchoReply
		}
		start = wire.SumPseudo(f[22:38], f[38:54], wire.ProtoICMPv6, uint32(len(f)-at))
	}
	copy(f[at:], []byte{kind, 0, 0, 0, byte(id >> 8), byte(id), 0, 1})
	binary.BigEndian.PutUint16(f[at+2:], ^wire.Sum(start, f[at:]))
	return f
}

// The hash of a flow does not depend on where it was computed.
func TestFlowKeys(t *testing.T) {
	var k flowKey
	kept := map[string][]byte{
		"UDP": udpFrame(t, mac2, mac1, "10.0.0.2", "10.0.0.1", nil), "UDP on IPv6": udpFrame(t, mac2, mac1, "fd00::2", "fd00::1", nil),
		"TCP":         tcpFrame(t, mac2, mac1, "10.0.0.2", "10.0.0.1", 1, 2, wire.TCPAck, nil),
		"TCP on IPv6": tcpFrame(t, mac2, mac1, "fd00::2", "fd00::1", 1, 2, wire.TCPAck, nil), "no IP": ethernetFrame(mac2, mac1),
	}
	for name, f := range kept {
		if !k.read(f) || !k.ok {
			t.Errorf("%s: has no key", name)
		}
		for cut := range len(f) {
			k.read(f[:cut]) // reads nothing beyond
		}
	}
	arp := bytes.Clone(kept["no IP"])
	binary.BigEndian.PutUint16(arp[12:], wire.EtherTypeARP)
	fragment := bytes.Clone(kept["UDP"])
	fragment[20] = 0x20
	short := bytes.Clone(kept["TCP"])
	short[17] = 39
	for name, f := range map[string][]byte{"ARP": arp, "tag": tag(kept["UDP"], 1), "fragment": fragment, "short": short,
		"ICMP": icmpFrame(t, mac2, mac1, "10.0.0.2", "10.0.0.1", 8, 1, nil)} {
		if k.read(f) || k.ok {
			t.Errorf("%s: has a key", name)
		}
	}
	tos := bytes.Clone(kept["UDP"])
	tos[15] = 3
	k.read(kept["UDP"])
	same := k
	if k.read(tos); k != same {
		t.Error("ECN makes another flow")
	}
}

// A flood of flows evicts only flows of the port it comes from.
func TestFlowsOfOthersStay(t *testing.T) {
	clock := new(atomic.Uint32)
	l := newLabOf(t, 256, Options{Seed: 7, Flows: 16, clock: clock})
	l.network(Network{Name: "blue"})
	a := l.attach(Port{Name: "a", Network: "blue", MAC: mac1, AntiSpoof: true})
	b := l.attach(Port{Name: "b", Network: "blue", MAC: mac2, AntiSpoof: true})
	f := udpFrame(t, mac2, mac1, "10.0.0.2", "10.0.0.1", nil)
	l.send(a, f)
	before := l.sw.lanes[0].recalled
	for i := range 1000 {
		g := udpFrame(t, mac1, mac2, "10.0.0.1", "10.0.0.2", nil)
		binary.BigEndian.PutUint16(g[34:], uint16(i))
		b.FeedBytes(g)
	}
	l.settle()
	l.send(a, f)
	if n := l.sw.lanes[0].recalled - before; n != 1 {
		t.Errorf("%d frames were recalled, want the one of the flow that was there", n)
	}
	if got := len(b.Sent()); got != 2 {
		t.Errorf("%d frames", got)
	}
}
