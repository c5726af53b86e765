package vxlan

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/dataplanetest"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/wire"
)

// attachTo attaches a port with a link on each of the workers named.
func (l *lab) attachTo(p Port, workers ...int) (ports []*dataplanetest.Port, links []*dataplane.Link) {
	l.tb.Helper()
	for range workers {
		link, port := dataplanetest.NewLink(p.Name)
		ports, links = append(ports, port), append(links, link)
	}
	l.must(l.sw.AttachPort(p, links))
	for i, w := range workers {
		l.workers[w].Do(func() { l.workers[w].Add(links[i]) })
	}
	l.sw.Refresh()
	l.ports[p.Name], l.links[p.Name] = ports[0], links[0]
	return ports, links
}

// move has another worker poll a link.
func (l *lab) move(link *dataplane.Link, to int) {
	from := link.Owner()
	from.Do(func() { from.Remove(link) })
	l.workers[to].Do(func() { l.workers[to].Add(link) })
}

// What one worker learns all know: of a port, of its moving, of a VTEP.
func TestWorkersTellEachOther(t *testing.T) {
	l := newLabWith(t, 2, 256, Options{Seed: 7})
	up := l.uplink("up0", host4)
	l.network(Network{Name: "blue", VNI: 100, Uplink: "up0", Learning: true, Flood: []netip.Addr{peer4}})
	a, _ := l.attachTo(Port{Name: "a", Network: "blue", MAC: mac1}, 1)
	b, _ := l.attachTo(Port{Name: "b", Network: "blue"}, 0)
	c, _ := l.attachTo(Port{Name: "c", Network: "blue"}, 0)
	quiet := func() { a[0].Sent(); b[0].Sent(); c[0].Sent(); up.Sent() }
	hello, answer := ethernetFrame(mac1, macX), ethernetFrame(macX, mac1)
	l.send(b[0], hello)
	l.got(a[0], hello)
	l.send(a[0], answer)
	l.got(b[0], answer)
	l.got(c[0])
	l.got(up)
	l.send(c[0], hello) // it moves
	quiet()
	l.send(a[0], answer)
	l.got(c[0], answer)
	l.got(b[0])
	l.send(up, tunnelPacket(t, host4, peer4, 100, hello, nil)) // and leaves the machine
	quiet()
	l.send(a[0], answer)
	if n := len(up.Sent()); n != 1 {
		t.Errorf("%d packets to the VTEP", n)
	}
	l.got(c[0])
	l.send(b[0], hello)
	quiet()
	if fdb := l.sw.FDB(); len(fdb) != 2 || fdb[1].Port != "b" {
		t.Errorf("%+v", fdb)
	}
	l.must(l.sw.DetachPorts("b"))
	for i := range l.workers {
		if at := l.sw.networks["blue"].learned[i].place(macX, 0); at != nowhere {
			t.Errorf("worker %d has not forgotten the port", i)
		}
	}
}

// An address whose frames one worker sees grows old on no other, and without frames on all.
func TestAgeAcrossWorkers(t *testing.T) {
	clock := new(atomic.Uint32)
	l := newLabWith(t, 2, 256, Options{Seed: 7, clock: clock})
	l.network(Network{Name: "blue", Learning: true, Age: 10 * time.Second})
	a, _ := l.attachTo(Port{Name: "a", Network: "blue", MAC: mac1}, 1)
	b, _ := l.attachTo(Port{Name: "b", Network: "blue"}, 0)
	c, _ := l.attachTo(Port{Name: "c", Network: "blue"}, 0)
	for range 60 {
		l.send(b[0], ethernetFrame(mac1, macX))
		clock.Add(ticks(10*time.Second) / 10)
		l.send(a[0], ethernetFrame(macX, mac1))
		if n := len(c[0].Sent()); n > 0 {
			t.Fatal("flooded: the address grew old")
		}
	}
	clock.Add(ticks(10 * time.Second))
	l.send(a[0], ethernetFrame(macX, mac1))
	if n := len(c[0].Sent()); n != 1 {
		t.Error("an address that is silent did not grow old")
	}
}

// A note that finds no room is told with a later frame.
func TestNoteWithoutRoom(t *testing.T) {
	l := newLabWith(t, 2, 256, Options{Seed: 7})
	l.network(Network{Name: "blue", Learning: true})
	a, _ := l.attachTo(Port{Name: "a", Network: "blue", MAC: mac1}, 1)
	b, _ := l.attachTo(Port{Name: "b", Network: "blue"}, 0)
	c, _ := l.attachTo(Port{Name: "c", Network: "blue"}, 0)
	for n := (dataplane.Note{}); l.worker.Tell(1, &n); {
	}
	noise := ethernetFrame(mac2, macX) // of which worker 1 gets nothing, so it hears nothing
	b[0].FeedBytes(noise)
	l.worker.Round()
	a[0].FeedBytes(ethernetFrame(macX, mac1))
	l.settle()
	if n := len(c[0].Sent()); n != 2 {
		t.Fatalf("%d frames, want the two that were flooded", n)
	}
	l.send(b[0], noise)
	l.send(a[0], ethernetFrame(macX, mac1))
	if n := len(c[0].Sent()); n != 1 {
		t.Error("the address was not told again")
	}
}

// Invented addresses cost other workers no more notes than the port may have entries, each tick.
func TestNotesAreBounded(t *testing.T) {
	l := newLabWith(t, 2, 256, Options{Seed: 7})
	l.network(Network{Name: "blue", Learning: true})
	b, _ := l.attachTo(Port{Name: "b", Network: "blue", LearnLimit: 8}, 0)
	l.attachTo(Port{Name: "a", Network: "blue", MAC: mac1}, 1)
	for i := range wire.MAC(200) {
		b[0].FeedBytes(ethernetFrame(mac1, macX+i))
	}
	l.settle()
	known := 0
	for i := range wire.MAC(200) {
		if l.sw.networks["blue"].learned[1].place(macX+i, 0) != nowhere {
			known++
		}
	}
	if known == 0 || known > 8 {
		t.Errorf("the other worker knows %d addresses, want some of at most 8", known)
	}
}

// A worker prefers links of its own, keeps each flow on one, and crosses to others only where it has none. A link that moves goes on working.
func TestLinksOfSeveralWorkers(t *testing.T) {
	l := newLabWith(t, 2, 512, Options{Seed: 7})
	l.network(Network{Name: "blue"})
	a0, _ := l.attachTo(Port{Name: "a0", Network: "blue", MAC: mac1}, 0)
	a1, _ := l.attachTo(Port{Name: "a1", Network: "blue", MAC: mac4}, 1)
	b, links := l.attachTo(Port{Name: "b", Network: "blue", MAC: mac2}, 0, 1, 1, 1)
	flows := func(from wire.MAC) (frames [][]byte) {
		for i := range 64 {
			f := udpFrame(t, mac2, from, "10.0.0.2", "10.0.0.1", nil)
			binary.BigEndian.PutUint16(f[34:], uint16(i))
			frames = append(frames, f)
		}
		return frames
	}
	count := func() (n [4]int) {
		for i := range b {
			n[i] = len(b[i].Sent())
		}
		return n
	}
	crossed := func() uint64 { return l.workers[0].Stats().Crossed.Load() + l.workers[1].Stats().Crossed.Load() }
	l.send(a0[0], flows(mac1)...)
	if n := count(); n != [4]int{64} {
		t.Errorf("worker 0 sent by %v", n)
	}
	l.send(a1[0], flows(mac4)...)
	first := count()
	if first[0] != 0 || first[1] < 8 || first[2] < 8 || first[3] < 8 || crossed() != 0 {
		t.Errorf("worker 1 sent by %v, %d crossed", first, crossed())
	}
	l.send(a1[0], flows(mac4)...)
	if n := count(); n != first {
		t.Errorf("the same flows went by %v and by %v", first, n)
	}
	links[1].Ready.Store(true) // the guest has started one queue pair
	l.send(a0[0], flows(mac1)...)
	l.send(a1[0], flows(mac4)...)
	if n := count(); n != [4]int{1: 128} || crossed() != 64 {
		t.Errorf("with one pair ready, by %v, %d crossed", n, crossed())
	}
	links[3].Ready.Store(true)
	l.send(a1[0], flows(mac4)...)
	if n := count(); n[1] < 16 || n[3] < 16 || n[1]+n[3] != 64 {
		t.Errorf("with two pairs ready, by %v", n)
	}
	links[1].Ready.Store(false)
	links[3].Ready.Store(false)
	l.move(links[0], 1) // and the switch does not know
	l.send(a0[0], flows(mac1)...)
	if n := count(); n != [4]int{64} || crossed() != 128 {
		t.Errorf("after the move by %v, %d crossed", n, crossed())
	}
	l.sw.Refresh()
	l.send(a0[0], flows(mac1)...)
	if n := count(); n[0] == 0 || n[0] == 64 || n[0]+n[1]+n[2]+n[3] != 64 {
		t.Errorf("after Refresh by %v", n)
	}
	l.balanced()
}

// large is a TCP packet of n bytes of payload, to be cut by size.
func large(t testing.TB, to, from wire.MAC, n, size int) dataplanetest.Packet {
	b := tcpFrame(t, to, from, "10.0.0.2", "10.0.0.1", 1000, 80, wire.TCPAck|wire.TCPPsh, bytes.Repeat([]byte("large "), n/6+1)[:n])
	binary.BigEndian.PutUint16(b[50:], wire.SumPseudo(b[26:30], b[30:34], wire.ProtoTCP, uint32(len(b)-34)))
	return dataplanetest.Packet{Bytes: b, Head: 256, Piece: 1000, Checksum: frame.Checksum{Start: 34, Offset: 16, Needed: true}, GSO: frame.GSO{Type: frame.GSOTCP4, Size: uint16(size)}}
}

// segments checks what a large packet became, and returns how many frames.
func segments(t *testing.T, p dataplanetest.Packet, got [][]byte) {
	t.Helper()
	var payload []byte
	for i, b := range got {
		ip := wire.IPv4(b[14:])
		sum := wire.Sum(wire.SumPseudo(ip.Source(), ip.Destination(), wire.ProtoTCP, uint32(len(b)-34)), b[34:])
		if !ip.ChecksumValid() || sum != 0xffff || len(b)-54 > int(p.GSO.Size) {
			t.Fatalf("segment %d of %d bytes: checksums %v %#x", i, len(b), ip.ChecksumValid(), sum)
		}
		payload = append(payload, b[54:]...)
	}
	if !bytes.Equal(payload, p.Bytes[54:]) {
		t.Fatalf("%d segments hold another payload", len(got))
	}
}

func sentBytes(p *dataplanetest.Port) (all [][]byte) {
	for _, s := range p.Sent() {
		all = append(all, s.Bytes)
	}
	return all
}

// A packet longer than the path goes whole to a port that takes it; to others, and into a tunnel, its segments do.
func TestLargePackets(t *testing.T) {
	for _, c := range []struct {
		name             string
		host, peer       netip.Addr
		overhead, single int
	}{{"IPv4", host4, peer4, overhead4, 1550}, {"IPv6", host6, peer6, overhead6, 1530}} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t)
			up := l.uplink("up0", c.host)
			l.network(Network{Name: "blue", VNI: 100, Uplink: "up0", MTU: 1500, Flood: []netip.Addr{c.peer}, Entries: []Entry{{MAC: mac3, VTEP: c.peer}}})
			a := l.attach(Port{Name: "a", Network: "blue", MAC: mac1, AntiSpoof: true})
			b := l.attach(Port{Name: "b", Network: "blue", MAC: mac2, AntiSpoof: true})
			d := l.attach(Port{Name: "d", Network: "blue", MAC: mac4})
			l.links["d"].Offloads.Store(dataplane.OffloadChecksum | dataplane.OffloadTSO4)
			l.links["up0"].Offloads.Store(dataplane.OffloadTSO4) // not in a tunnel
			feed := func(p dataplanetest.Packet) dataplanetest.Packet {
				a.Feed(p)
				l.settle()
				return p
			}
			p := feed(large(t, mac4, mac1, 20000, 1400))
			if s := d.Sent(); len(s) != 1 || s[0].GSO != p.GSO || !bytes.Equal(s[0].Bytes, p.Bytes) {
				t.Error("a guest that takes large packets was not given one")
			}
			p = feed(large(t, mac2, mac1, 20000, 1400))
			got := sentBytes(b)
			if len(got) != 15 {
				t.Fatalf("%d segments; dropped %v", len(got), drops(a))
			}
			segments(t, p, got)
			inner := func() (all [][]byte) {
				for _, s := range sentBytes(up) {
					to, _, _, in := unwrapped(t, s)
					if to != c.peer {
						t.Error("went to ", to)
					}
					all = append(all, in)
				}
				return all
			}
			p = feed(large(t, mac3, mac1, 20000, 1400))
			segments(t, p, inner())
			p = feed(large(t, macX, mac1, 20000, 1400)) // unknown: to the VTEP, and to d, which may have more addresses
			segments(t, p, inner())
			segments(t, p, sentBytes(d))

			feed(large(t, mac2, mac1, 20000, 1461)) // 1501 bytes
			l.dropped(a, DropOverMTU, 1)
			if packets, n := l.sw.Cut(0); packets != 3 || n != 45 {
				t.Errorf("%d packets were cut into %d segments", packets, n)
			}
			bad := large(t, mac2, mac1, 20000, 1400)
			bad.Checksum.Start = 30
			feed(bad)
			if n := len(b.Sent()); n != 0 || len(drops(a)) != 2 {
				t.Errorf("%d frames, drops %v", n, drops(a))
			}
			l.balanced()
		})
	}
}

// Where there are frames for some segments only, the others are counted.
func TestSegmentsWithoutFrames(t *testing.T) {
	l := newLabOf(t, 9, Options{Seed: 7})
	l.network(Network{Name: "blue", MTU: 1500})
	a := l.attach(Port{Name: "a", Network: "blue", MAC: mac1, AntiSpoof: true})
	b := l.attach(Port{Name: "b", Network: "blue", MAC: mac2, AntiSpoof: true})
	a.Feed(large(t, mac2, mac1, 20000, 1400))
	l.settle()
	if n := len(b.Sent()); n != 8 || dropCount(a) != 7 {
		t.Errorf("%d segments, drops %v", n, drops(a))
	}
	l.balanced()
}
