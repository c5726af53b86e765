package vxlan

import (
	"bytes"
	"encoding/binary"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/dataplanetest"
	"github.com/shuntio/shunt/dataplane/wire"
	"github.com/shuntio/shunt/vxlan/acl"
)

// guarded is a port "a" on worker 0 whose rules let out UDP, TCP and pings and nothing in, and a port "b" on worker 1 without rules.
type guarded struct {
	*lab
	a, b  *dataplanetest.Port
	links [2]*dataplane.Link // theirs
	clock *atomic.Uint32
}

const outOnly = "allow out udp\nallow out tcp\nallow out icmp type 8\nallow out icmpv6 type 128"

// eachWay runs a test with the cache and without.
func eachWay(t *testing.T, rules string, test func(t *testing.T, g *guarded)) {
	for name, uncached := range map[string]bool{"cached": false, "uncached": true} {
		t.Run(name, func(t *testing.T) {
			g := &guarded{clock: new(atomic.Uint32)}
			g.clock.Store(5000)
			g.lab = newLabWith(t, 2, 256, Options{Seed: 7, clock: g.clock, uncached: uncached})
			g.network(Network{Name: "blue", Learning: true})
			a, at := g.attachTo(Port{Name: "a", Network: "blue", MAC: mac1, AntiSpoof: true, ACL: parsePolicy(rules), FlowLimit: 64}, 0)
			b, bt := g.attachTo(Port{Name: "b", Network: "blue", MAC: mac2}, 1)
			g.a, g.b, g.links = a[0], b[0], [2]*dataplane.Link{at[0], bt[0]}
			test(t, g)
			g.balanced()
		})
	}
}

// out and in send a frame either way and tell whether it came; twice, so that the cache has its say.
func (g *guarded) out(f []byte) bool { return g.passes(g.a, g.b, f) }
func (g *guarded) in(f []byte) bool  { return g.passes(g.b, g.a, f) }

func (g *guarded) passes(from, to *dataplanetest.Port, f []byte) bool {
	g.tb.Helper()
	g.send(from, f)
	n := len(to.Sent())
	g.send(from, f)
	if m := len(to.Sent()); m != n {
		g.tb.Fatalf("the same frame twice: %d frames came, then %d", n, m)
	}
	return n == 1
}

func (g *guarded) udp(out bool, there, here uint16) []byte {
	if out {
		return withPorts(udpFrame(g.tb, mac2, mac1, "10.0.0.2", "10.0.0.1", nil), here, there)
	}
	return withPorts(udpFrame(g.tb, mac1, mac2, "10.0.0.1", "10.0.0.2", nil), there, here)
}

func withPorts(f []byte, from, to uint16) []byte {
	binary.BigEndian.PutUint16(f[34:], from)
	binary.BigEndian.PutUint16(f[36:], to)
	return f
}

func (g *guarded) tcp(out bool, flags uint8) []byte {
	if out {
		return tcpFrame(g.tb, mac2, mac1, "10.0.0.2", "10.0.0.1", 1000, 80, flags, nil)
	}
	return tcpFrame(g.tb, mac1, mac2, "10.0.0.1", "10.0.0.2", 80, 1000, flags, nil)
}

func (g *guarded) later(by time.Duration) { g.clock.Add(ticks(by)) }

func (g *guarded) want(got, want bool, what string) {
	g.tb.Helper()
	if got != want {
		g.tb.Fatalf("%s: passed is %v; dropped %v, %v", what, got, drops(g.a), drops(g.b))
	}
}

func TestReplies(t *testing.T) {
	eachWay(t, outOnly, func(t *testing.T, g *guarded) {
		g.want(g.in(g.udp(false, 53, 1000)), false, "unasked")
		g.dropped(g.a, DropACLIn, 2)
		g.want(g.out(g.udp(true, 53, 1000)), true, "question")
		g.want(g.in(g.udp(false, 53, 1000)), true, "answer, at another worker")
		g.want(g.in(g.udp(false, 53, 1001)), false, "answer to another port")
		g.want(g.in(g.udp(false, 54, 1000)), false, "answer from another port")
		g.later(2 * time.Minute)
		g.want(g.in(g.udp(false, 53, 1000)), true, "late answer")
		g.later(4 * time.Minute)
		g.want(g.in(g.udp(false, 53, 1000)), false, "answer too late")
		g.want(g.out(ethernetFrame(mac2, mac1)), false, "a protocol without a rule")
		g.dropped(g.a, DropACLOut, 2)
		hits, err := g.sw.ACLHits("a")
		if err != nil || hits.Rules[0] != 6 || hits.Default != 10 {
			t.Errorf("%+v", hits)
		}
	})
}

// A reply that was denied passes as soon as the question has come, in the same tick.
// A guest that has the same addresses in several VLANs has a flow in each.
func TestFlowsOfVLANs(t *testing.T) {
	const vlan, qinq = uint16(wire.EtherTypeVLAN), uint16(wire.EtherTypeQinQ)
	tags := map[string][]uint16{
		"none": nil, "7": {vlan, 7}, "8": {vlan, 8}, "service 7": {qinq, 7}, "7 in 8": {qinq, 8, vlan, 7}, "8 in 7": {qinq, 7, vlan, 8}, "7 in 7": {qinq, 7, vlan, 7},
	}
	eachWay(t, outOnly, func(t *testing.T, g *guarded) {
		with := func(f []byte, tags []uint16) []byte {
			b := bytes.Clone(f[:12])
			for _, word := range tags {
				b = binary.BigEndian.AppendUint16(b, word)
			}
			return append(b, f[12:]...)
		}
		port := uint16(1000)
		fragment := func(f []byte, offset uint16) []byte {
			binary.BigEndian.PutUint16(f[18:], port)
			binary.BigEndian.PutUint16(f[20:], offset)
			wire.IPv4(f[14:]).SetChecksum()
			return f
		}
		for name, tagged := range tags {
			port++ // a flow that is alive in one VLAN alone
			g.want(g.out(with(g.udp(true, 53, port), tagged)), true, "question in "+name)
			about := icmpFrame(t, mac1, mac2, "10.0.0.1", "10.0.0.2", 3, 0, g.udp(true, 53, port)[14:])
			for other, tags := range tags {
				g.want(g.in(with(g.udp(false, 53, port), tags)), other == name, "answer in "+other+" to what was asked in "+name)
				g.want(g.in(with(about, tags)), other == name, "error in "+other+" about what was sent in "+name)
			}
			g.want(g.in(with(fragment(g.udp(false, 53, port), 0x2000), tagged)), true, "first fragment in "+name)
			for other, tags := range tags {
				g.want(g.in(with(fragment(g.udp(false, 53, port), 3), tags)), other == name, "later fragment in "+other+", the first in "+name)
			}
		}
		// A tag that is there for its priority changes nothing.
		g.want(g.out(with(g.udp(true, 53, 999), []uint16{vlan, 3 << 13})), true, "question with a priority")
		g.want(g.in(g.udp(false, 53, 999)), true, "answer without one")
		g.want(g.out(with(g.udp(true, 54, 999), []uint16{vlan, 3<<13 | 9})), true, "question in 9 with a priority")
		g.want(g.in(with(g.udp(false, 54, 999), []uint16{vlan, 9})), true, "answer in 9 without one")
	})
}

func TestRepliesOut(t *testing.T) {
	eachWay(t, "allow in udp to any port 2000", func(t *testing.T, g *guarded) {
		g.want(g.out(g.udp(true, 53, 2000)), false, "reply to nothing")
		g.want(g.in(g.udp(false, 53, 2000)), true, "question")
		g.want(g.out(g.udp(true, 53, 2000)), true, "reply")
		g.want(g.out(g.udp(true, 54, 2000)), false, "reply to another one")
	})
}

func TestTCPConnections(t *testing.T) {
	const syn, ack, fin, rst = wire.TCPSyn, wire.TCPAck, wire.TCPFin, wire.TCPRst
	eachWay(t, outOnly, func(t *testing.T, g *guarded) {
		g.want(g.in(g.tcp(false, syn)), false, "opened from outside")
		g.want(g.in(g.tcp(false, ack)), false, "in the middle")
		g.want(g.out(g.tcp(true, syn)), true, "opened")
		g.want(g.in(g.tcp(false, syn|ack)), true, "accepted")
		g.want(g.out(g.tcp(true, ack)), true, "data")
		g.want(g.in(g.tcp(false, syn)), false, "opened the other way between the same ports")
		g.want(g.in(g.tcp(false, ack)), true, "more data")
		g.later(time.Hour)
		g.want(g.in(g.tcp(false, ack)), true, "idle for an hour")
		g.want(g.out(g.tcp(true, fin|ack)), true, "closed")
		g.want(g.in(g.tcp(false, ack)), true, "half closed")
		g.later(time.Hour)
		g.want(g.in(g.tcp(false, fin|ack)), true, "closed from outside")
		g.want(g.out(g.tcp(true, ack)), true, "last")
		g.later(90 * time.Second)
		g.want(g.in(g.tcp(false, ack)), false, "after the end")
		g.want(g.out(g.tcp(true, ack)), true, "goes on: the rules allow it")
		g.want(g.in(g.tcp(false, ack)), true, "and is answered")
		g.want(g.in(g.tcp(false, rst)), true, "reset")
		g.later(90 * time.Second)
		g.want(g.in(g.tcp(false, ack)), false, "after the reset")
		g.want(g.out(g.tcp(true, rst)), true, "a reset of nothing")
		g.want(g.in(g.tcp(false, ack)), false, "which begins nothing")
	})
}

func TestPingsAndErrors(t *testing.T) {
	for _, c := range []struct {
		name, here, there string
		at                int // of what follows the IP header
		unreachable       uint8
	}{{"IPv4", "10.0.0.1", "10.0.0.2", 34, 3}, {"IPv6", "fd00::1", "fd00::2", 54, 1}} {
		t.Run(c.name, func(t *testing.T) {
			eachWay(t, outOnly, func(t *testing.T, g *guarded) {
				ping := func(out bool, kind uint8, id uint16) []byte {
					if out {
						return icmpFrame(t, mac2, mac1, c.there, c.here, kind, id, nil)
					}
					return icmpFrame(t, mac1, mac2, c.here, c.there, kind, id, nil)
				}
				g.want(g.in(ping(false, 0, 7)), false, "reply to nothing")
				g.want(g.out(ping(true, 8, 7)), true, "request")
				g.want(g.in(ping(false, 0, 7)), true, "reply")
				g.want(g.in(ping(false, 0, 8)), false, "reply to another request")
				g.want(g.in(ping(false, 8, 7)), false, "request from outside")
				g.want(g.out(ping(true, 0, 9)), false, "a reply that nobody asked for")

				about := func(f []byte) []byte { return icmpFrame(t, mac1, mac2, c.here, c.there, c.unreachable, 0, f[14:]) }
				u := udpFrame(t, mac2, mac1, c.there, c.here, nil)
				g.want(g.in(about(u)), false, "error about a packet that was not sent")
				g.want(g.out(u), true, "packet")
				g.want(g.in(about(u)), true, "error about it")
				g.want(g.in(about(u)[:c.at+8+c.at-14+4]), false, "that quotes too little")
				g.want(g.in(about(ping(true, 8, 7))), true, "error about a request")
				other := udpFrame(t, mac2, mac1, c.there, c.here, nil)
				other[c.at+1]++
				g.want(g.in(about(other)), false, "error about another port")
			})
		})
	}
}

// A flow of one kind of question says nothing of another kind: rules that let pings in let no timestamp request in behind them, nor its reply out.
func TestQuestionsAreNotMixedUp(t *testing.T) {
	eachWay(t, "allow in icmp type 8", func(t *testing.T, g *guarded) {
		in := func(kind uint8) bool {
			return g.in(icmpFrame(t, mac1, mac2, "10.0.0.1", "10.0.0.2", kind, 7, make([]byte, 12)))
		}
		out := func(kind uint8) bool {
			return g.out(icmpFrame(t, mac2, mac1, "10.0.0.2", "10.0.0.1", kind, 7, make([]byte, 12)))
		}
		const reply, request, timestamp, timestampReply = 0, 8, 13, 14
		g.want(in(request), true, "ping")
		g.want(out(timestampReply), false, "the reply to another question")
		g.want(in(timestamp), false, "another question of the same identifier")
		g.want(out(reply), true, "reply")
	})
	eachWay(t, "allow in icmp type 13", func(t *testing.T, g *guarded) {
		const timestamp, timestampReply = 13, 14
		g.want(g.in(icmpFrame(t, mac1, mac2, "10.0.0.1", "10.0.0.2", timestamp, 7, make([]byte, 12))), true, "question")
		p := g.sw.ports["a"].config
		p.ACL = parsePolicy("allow in icmp type 13\nallow in udp")
		g.must(g.sw.SetPort(p))
		g.want(g.out(icmpFrame(t, mac2, mac1, "10.0.0.2", "10.0.0.1", timestampReply, 7, make([]byte, 12))), true, "reply, judged anew by what began it")
	})
}

// Long echo requests and replies come in fragments.
func TestPingsInFragments(t *testing.T) {
	eachWay(t, outOnly, func(t *testing.T, g *guarded) {
		ping := func(out bool, kind uint8, datagram, offset uint16) []byte {
			f := icmpFrame(t, mac1, mac2, "10.0.0.1", "10.0.0.2", kind, 7, make([]byte, 32))
			if out {
				f = icmpFrame(t, mac2, mac1, "10.0.0.2", "10.0.0.1", kind, 7, make([]byte, 32))
			}
			binary.BigEndian.PutUint16(f[18:], datagram)
			binary.BigEndian.PutUint16(f[20:], offset)
			wire.IPv4(f[14:]).SetChecksum()
			return f
		}
		const more = 0x2000
		g.want(g.in(ping(false, 0, 1, more)), false, "reply to nothing")
		g.want(g.in(ping(false, 0, 1, 5)), false, "its rest")
		g.want(g.out(ping(true, 8, 2, more)), true, "request")
		g.want(g.out(ping(true, 8, 2, 5)), true, "its rest")
		g.want(g.in(ping(false, 0, 3, more)), true, "reply")
		g.want(g.in(ping(false, 0, 3, 5)), true, "its rest")
		g.want(g.in(ping(false, 0, 4, 5)), false, "the rest of another one")
	})
}

func TestFragmentsOfAFlow(t *testing.T) {
	eachWay(t, "allow in udp to any port 2000\nallow in udp from any port 7 to any port 2000", func(t *testing.T, g *guarded) {
		fragment := func(id, offset uint16, port uint16) []byte {
			f := withPorts(udpFrame(t, mac1, mac2, "10.0.0.1", "10.0.0.2", make([]byte, 32)), 1000, port)
			binary.BigEndian.PutUint16(f[18:], id)
			binary.BigEndian.PutUint16(f[20:], offset)
			wire.IPv4(f[14:]).SetChecksum()
			return f
		}
		const more = 0x2000
		g.want(g.in(fragment(1, 3, 2000)), false, "later one without the first")
		g.want(g.in(fragment(1, more, 2000)), true, "first")
		g.want(g.in(fragment(1, 3, 0)), true, "later one")
		g.want(g.in(fragment(2, 3, 0)), false, "of another datagram")
		g.want(g.in(fragment(3, more, 2001)), false, "first of one that is denied")
		g.want(g.in(fragment(3, 3, 2000)), false, "later one of it")
		g.later(time.Minute)
		g.want(g.in(fragment(1, 3, 0)), false, "too late")

		long := udpFrame(t, mac1, mac2, "fd00::1", "fd00::2", make([]byte, 32))
		v6 := func(id byte, offset uint16) []byte {
			f := append(bytes.Clone(long[:54]), wire.ProtoUDP, 0, byte(offset>>8), byte(offset), 0, 0, 0, id)
			f[20] = wire.ProtoFragment
			binary.BigEndian.PutUint16(f[18:], uint16(len(long)-54+8))
			return append(f, long[54:]...)
		}
		g.want(g.in(v6(1, 1)), true, "first, IPv6")
		g.want(g.in(v6(1, 24)), true, "later one, IPv6")
		g.want(g.in(v6(2, 24)), false, "of another datagram, IPv6")

		tiny := tcpFrame(t, mac1, mac2, "10.0.0.1", "10.0.0.2", 1, 2000, wire.TCPAck, make([]byte, 40))
		binary.BigEndian.PutUint16(tiny[20:], 1)
		wire.IPv4(tiny[14:]).SetChecksum()
		g.send(g.b, tiny)
		g.dropped(g.b, DropMalformed, 1)
	})
}

// New rules take effect on flows that run: those they would not let begin end, the others go on.
func TestRulesChange(t *testing.T) {
	eachWay(t, outOnly, func(t *testing.T, g *guarded) {
		set := func(rules string) {
			p := g.sw.ports["a"].config
			p.ACL = nil
			if rules != "" {
				p.ACL = parsePolicy(rules)
			}
			g.must(g.sw.SetPort(p))
		}
		g.want(g.out(g.udp(true, 53, 1000)), true, "question")
		g.want(g.out(g.tcp(true, wire.TCPSyn)), true, "connection")
		set("deny out udp to any port 53\n" + outOnly)
		g.want(g.in(g.udp(false, 53, 1000)), false, "reply to what may not be asked any more")
		g.want(g.out(g.udp(true, 53, 1000)), false, "nor may it")
		g.want(g.in(g.tcp(false, wire.TCPSyn|wire.TCPAck)), true, "of a flow that may be")
		if hits := g.sw.ports["a"].filter.rules.Hits(); hits.Rules[1] != 2 || hits.Rules[0] != 2 || hits.Rules[2] != 4 {
			t.Errorf("%+v", hits)
		}
		set(outOnly)
		g.want(g.in(g.udp(false, 53, 1000)), false, "a flow that ended")
		set("")
		g.want(g.in(g.udp(false, 53, 1000)), true, "without rules")
		set("default allow\ndeny in udp")
		g.want(g.in(g.udp(false, 53, 1000)), false, "denied")
		g.want(g.in(g.tcp(false, wire.TCPSyn)), true, "allowed")
	})
}

// Nobody in the network that a port moves to is answered: whoever has the same address there is somebody else.
func TestFlowsEndWithTheNetwork(t *testing.T) {
	eachWay(t, outOnly, func(t *testing.T, g *guarded) {
		g.network(Network{Name: "red"})
		c, _ := g.attachTo(Port{Name: "c", Network: "red", MAC: mac2}, 1)
		g.want(g.out(g.udp(true, 53, 1000)), true, "question")
		p := g.sw.ports["a"].config
		p.Network = "red"
		g.must(g.sw.SetPort(p))
		g.want(g.passes(c[0], g.a, g.udp(false, 53, 1000)), false, "reply by another network's station")
		g.want(g.passes(g.a, c[0], g.udp(true, 53, 1000)), true, "question there")
		g.want(g.passes(c[0], g.a, g.udp(false, 53, 1000)), true, "reply")
	})
}

// What goes to everybody is judged for each; ARP and neighbour discovery pass.
func TestFilteredFlood(t *testing.T) {
	eachWay(t, "allow in udp to any port 2000", func(t *testing.T, g *guarded) {
		c, _ := g.attachTo(Port{Name: "c", Network: "blue", MAC: mac3, ACL: &acl.Policy{}}, 1)
		g.send(g.b, udpFrame(t, wire.Broadcast, mac2, "10.0.0.255", "10.0.0.2", nil), udpFrame(t, macX, mac2, "10.0.0.9", "10.0.0.2", nil))
		if n := len(g.a.Sent()); n != 1 {
			t.Errorf("%d frames to a port that allows the broadcast", n)
		}
		g.got(c[0])
		g.dropped(g.b, DropACLIn, 0)
		g.dropped(c[0], DropACLIn, 2) // the unknown one c alone might have got
		arp := ethernetFrame(wire.Broadcast, mac2)
		binary.BigEndian.PutUint16(arp[12:], wire.EtherTypeARP)
		nd := icmpFrame(t, wire.Broadcast, mac2, "ff02::1:ff00:1", "fd00::2", wire.ICMPv6NeighborSolicitation, 0, make([]byte, 20))
		g.send(g.b, arp, nd)
		if n, m := len(g.a.Sent()), len(c[0].Sent()); n != 2 || m != 2 {
			t.Errorf("%d and %d of ARP and neighbour solicitation", n, m)
		}
	})
}

// What a port's rules refuse is counted at that port, whoever sent it, and a capture sees it there.
func TestDenialsCountAtWhoDenies(t *testing.T) {
	eachWay(t, "allow in udp to any port 1000\nallow out udp to any port 53", func(t *testing.T, g *guarded) {
		capture := dataplane.NewCapture(dataplane.CaptureOptions{Workers: 2})
		var both [dataplane.MaxReasons]bool
		both[DropACLIn], both[DropACLOut] = true, true
		for i, link := range g.links {
			link.Tap.Store(dataplane.NewTap(capture.Point(dataplane.PointOptions{ID: uint32(i), Drops: both})))
		}
		const times = 5 // the first is decided, the others are recalled
		for range times {
			g.passes(g.b, g.a, g.udp(false, 53, 1000))
			g.passes(g.b, g.a, g.udp(false, 53, 1001)) // denied in
			g.passes(g.a, g.b, g.udp(true, 53, 1000))
			g.passes(g.a, g.b, g.udp(true, 54, 1001)) // denied out
		}
		in, out := g.a.Counters.Drops(DropACLIn), g.a.Counters.Drops(DropACLOut)
		if in == 0 || out == 0 || len(drops(g.b)) > 0 {
			t.Errorf("dropped %v at who denies, %v at the other", drops(g.a), drops(g.b))
		}
		if came, went := g.a.Counters.RxPackets.Load()+g.b.Counters.RxPackets.Load(), g.a.Counters.TxPackets.Load()+g.b.Counters.TxPackets.Load(); came != went+in+out {
			t.Errorf("%d came, %d went, %d were dropped", came, went, in+out)
		}
		seen := map[dataplane.Reason]uint64{}
		for r := (dataplane.Record{}); capture.Read(&r); {
			if !r.Dropped || r.Point != 0 {
				t.Fatalf("captured %+v", r)
			}
			seen[r.Reason]++
		}
		if seen[DropACLIn] != in || seen[DropACLOut] != out {
			t.Errorf("captured %v, dropped %v", seen, drops(g.a))
		}
	})
}

// What the head does not show is not judged.
func TestUnjudged(t *testing.T) {
	eachWay(t, "allow in any\nallow out any", func(t *testing.T, g *guarded) {
		f := udpFrame(t, mac1, mac2, "10.0.0.1", "10.0.0.2", make([]byte, 100))
		short := bytes.Clone(f[:36])
		binary.BigEndian.PutUint16(short[16:], 22)
		g.send(g.b, short)
		g.dropped(g.b, DropMalformed, 1)
		g.b.Feed(dataplanetest.Packet{Bytes: f, Head: 36})
		g.settle()
		g.dropped(g.b, DropHeadTooShort, 1)
		g.send(g.b, f, tag(f, 2))
		if n := len(g.a.Sent()); n != 2 {
			t.Errorf("%d frames", n)
		}
	})
}

// A flood of flows ends flows of its own port only, and those that are answered last.
func TestFlowsAreBounded(t *testing.T) {
	eachWay(t, outOnly+"\nallow in udp to any port 2000", func(t *testing.T, g *guarded) {
		for i := range uint16(16) {
			g.want(g.out(g.udp(true, 53, 1000+i)), true, "question")
			g.want(g.in(g.udp(false, 53, 1000+i)), true, "answer")
		}
		g.later(10 * time.Second)
		for i := range uint16(5000) {
			g.send(g.b, g.udp(false, 3000+i, 2000))
		}
		if n := len(g.a.Sent()); n != 5000 {
			t.Fatalf("%d of the flood", n)
		}
		for i := range uint16(16) {
			g.want(g.in(g.udp(false, 53, 1000+i)), true, "answer after the flood")
		}
	})
}

// TestConnsConcurrently has workers begin, find, touch and end the same few flows: whoever finds one finds its own.
func TestConnsConcurrently(t *testing.T) {
	c := newConns(16, 7)
	var group sync.WaitGroup
	for w := range uint64(4) {
		group.Go(func() {
			for i := range uint64(20000) {
				k := connKey{here: acl.Address{Lo: 1}, there: acl.Address{Lo: (i*7 + w) % 64}, last: (i*7+w)%64<<48 | wire.ProtoUDP<<8 | connIPv4}
				tick := uint32(i / 64)
				if e, s := c.find(&k, tick); e != nil {
					e.touch(s, connAnswered, tick)
				} else {
					c.begin(&k, 0, 1, tick)
				}
				if i%50 == 0 {
					c.end(&k, tick)
				}
			}
		})
	}
	group.Wait()
	for i := range c.sets {
		for j := range c.sets[i] {
			e := &c.sets[i][j]
			if e.guard.Load()&1 != 0 || e.key[4].Load() != 0 && e.key[3].Load() != e.key[4].Load()>>48 {
				t.Fatalf("an entry is of two flows: %d, %#x", e.key[3].Load(), e.key[4].Load())
			}
		}
	}
}

// TestFilteredFlowsAllocateNothing goes the long way each time.
func TestFilteredFlowsAllocateNothing(t *testing.T) {
	for _, o := range []Options{{}, {uncached: true}} {
		for _, way := range []string{"guest", "wire", "learned"} {
			d := flowDriver(t, way, true, 64, o)
			d.forward()
			if n := testing.AllocsPerRun(20, d.forward); n != 0 {
				t.Errorf("%s: %v allocations", way, n)
			}
			if len(drops(d.l.ports["a"])) > 0 {
				t.Errorf("%s: dropped %v", way, drops(d.l.ports["a"]))
			}
		}
	}
}
