package vxlan

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/dataplanetest"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/wire"
)

const (
	mac1 wire.MAC = 0x5254_0000_0001 + iota
	mac2
	mac3
	mac4
	macX
)

// blue is a network of two guests here and one behind peer4.
func blue(l *lab) (up, a, b *dataplanetest.Port) {
	up = l.uplink("up0", host4)
	l.network(Network{Name: "blue", VNI: 100, Uplink: "up0", Learning: true, Flood: []netip.Addr{peer4},
		Entries: []Entry{{MAC: mac3, VTEP: peer4}}})
	a = l.attach(Port{Name: "a", Network: "blue", MAC: mac1, AntiSpoof: true})
	b = l.attach(Port{Name: "b", Network: "blue", MAC: mac2, AntiSpoof: true})
	return up, a, b
}

func TestGuestToGuest(t *testing.T) {
	l := newLab(t)
	up, a, b := blue(l)
	f := ethernetFrame(mac2, mac1, 1, 2, 3)
	l.send(a, f)
	l.got(b, f)
	l.got(a)
	l.got(up)
	l.send(a, ethernetFrame(mac1, mac1))
	l.dropped(a, DropHairpin, 1)
	l.balanced()
}

func TestGuestToWireAndBack(t *testing.T) {
	for _, c := range []struct {
		name       string
		host, peer netip.Addr
	}{{"IPv4", host4, peer4}, {"IPv6", host6, peer6}} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t)
			up := l.uplink("up0", c.host)
			l.network(Network{Name: "blue", VNI: 0xabcdef, Uplink: "up0", Entries: []Entry{{MAC: mac3, VTEP: c.peer}}})
			a := l.attach(Port{Name: "a", Network: "blue", MAC: mac1, AntiSpoof: true})
			for _, n := range []int{1, 18, 400, 401, 1400} {
				f := udpFrame(t, mac3, mac1, "10.0.0.3", "10.0.0.1", bytes.Repeat([]byte{0x5a, 1, 2}, n)[:n])
				for _, head := range []int{0, 60, 256} { // whole, and with a borrowed body in odd pieces
					a.Feed(dataplanetest.Packet{Bytes: f, Head: head, Piece: 101})
					l.settle()
					sent := up.Sent()
					if len(sent) != 1 {
						t.Fatalf("%d packets, dropped %v", len(sent), drops(a))
					}
					to, vni, _, inner := unwrapped(t, sent[0].Bytes)
					if to != c.peer || vni != 0xabcdef || !bytes.Equal(inner, f) {
						t.Fatalf("to %v, VNI %#x, % x", to, vni, inner)
					}
				}
			}
			back := udpFrame(t, mac1, mac3, "10.0.0.1", "10.0.0.3", []byte("hello"))
			l.send(up, tunnelPacket(t, c.host, c.peer, 0xabcdef, back, nil))
			l.got(a, back)
			l.balanced()
		})
	}
}

// TestEncapsulationBytes holds the wire format against bytes: RFC 7348 section 5 with VNI 100.
func TestEncapsulationBytes(t *testing.T) {
	l := newLab(t)
	up, a, _ := blue(l)
	f := ethernetFrame(mac3, mac1, 9)
	l.send(a, f)
	b := up.Sent()[0].Bytes
	hash := wire.FlowHash(f, 7)
	want := []byte{
		0x02, 0, 0, 0, 0, 0xf2, 0x02, 0, 0, 0, 0, 0xf1, 0x08, 0x00,
		0x45, 0, 0, 96, 0, 0, 0x40, 0, 64, 17, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2,
		0, 0, 0x12, 0xb5, 0, 76, 0, 0,
		0x08, 0, 0, 0, 0, 0, 100, 0,
	}
	binary.BigEndian.PutUint16(want[24:], ^wire.Sum(0, want[14:34]))
	binary.BigEndian.PutUint16(want[34:], 49152+uint16(hash>>18))
	if !bytes.Equal(b[:50], want) || !bytes.Equal(b[50:], f) {
		t.Fatalf("% x\nwant % x", b[:50], want)
	}
}

func TestSourcePorts(t *testing.T) {
	l := newLab(t)
	up, a, _ := blue(l)
	seen := map[uint16]bool{}
	for i := range 64 {
		f := udpFrame(t, mac3, mac1, "10.0.0.3", "10.0.0.1", nil)
		binary.BigEndian.PutUint16(f[34:], uint16(i))
		l.send(a, f, f)
		s := up.Sent()
		_, _, port1, _ := unwrapped(t, s[0].Bytes)
		_, _, port2, _ := unwrapped(t, s[1].Bytes)
		if port1 != port2 {
			t.Fatal("one flow has two source ports")
		}
		seen[port1] = true
	}
	if len(seen) < 60 {
		t.Errorf("64 flows have %d source ports", len(seen))
	}
}

func TestFlood(t *testing.T) {
	l := newLab(t)
	up := l.uplink("up0", host4)
	l.network(Network{Name: "blue", VNI: 100, Uplink: "up0", Flood: []netip.Addr{peer4, other4}})
	a := l.attach(Port{Name: "a", Network: "blue", MAC: mac1, AntiSpoof: true})
	b := l.attach(Port{Name: "b", Network: "blue", MAC: mac2, AntiSpoof: true})
	c := l.attach(Port{Name: "c", Network: "blue", MAC: mac4})
	everybody := ethernetFrame(wire.Broadcast, mac1, 1)
	a.Feed(dataplanetest.Packet{Bytes: everybody, Head: 20, Piece: 7})
	l.settle()
	l.got(b, everybody)
	l.got(c, everybody)
	l.got(a)
	sent := up.Sent()
	var to []netip.Addr
	for _, s := range sent {
		vtep, _, _, inner := unwrapped(t, s.Bytes)
		if !bytes.Equal(inner, everybody) {
			t.Fatal("the copy differs")
		}
		to = append(to, vtep)
	}
	if len(to) != 2 || to[0] != peer4 || to[1] != other4 {
		t.Fatalf("replicated to %v", to)
	}

	// Unknown unicast: to the VTEPs and to the port that may have more addresses; not to b, whose only address is known.
	unknown := ethernetFrame(macX, mac1, 1)
	l.send(a, unknown)
	l.got(b)
	l.got(c, unknown)
	if n := len(up.Sent()); n != 2 {
		t.Fatalf("%d packets", n)
	}

	// From the wire: to ports only.
	back := ethernetFrame(wire.Broadcast, mac3, 1)
	l.send(up, tunnelPacket(t, host4, peer4, 100, back, nil))
	l.got(a, back)
	l.got(b, back)
	l.got(c, back)
	l.got(up)
	l.balanced()
}

func TestSplitHorizon(t *testing.T) {
	l := newLab(t)
	up, _, _ := blue(l)
	l.send(up, tunnelPacket(t, host4, other4, 100, ethernetFrame(mac3, macX), nil)) // mac3 is behind peer4
	l.dropped(up, DropSplitHorizon, 1)
	l.send(up, tunnelPacket(t, host4, other4, 100, ethernetFrame(0x5254_0000_0077, macX), nil))
	l.dropped(up, DropNoDestination, 1)
	l.got(up)
	l.balanced()
}

func TestChecksumsLeftOpen(t *testing.T) {
	l := newLab(t)
	up, a, b := blue(l)
	c := l.attach(Port{Name: "c", Network: "blue", MAC: mac4})
	l.links["c"].Offloads.Store(dataplane.OffloadChecksum)
	open := func(to wire.MAC) (complete []byte, p dataplanetest.Packet) {
		complete = udpFrame(t, to, mac1, "10.0.0.3", "10.0.0.1", bytes.Repeat([]byte{7}, 333))
		partial := bytes.Clone(complete)
		binary.BigEndian.PutUint16(partial[40:], wire.SumPseudo(partial[26:30], partial[30:34], 17, uint32(len(partial)-34)))
		return complete, dataplanetest.Packet{Bytes: partial, Checksum: frame.Checksum{Start: 34, Offset: 6, Needed: true}, Head: 64, Piece: 33}
	}
	want, p := open(mac2)
	a.Feed(p)
	l.settle()
	l.got(b, want)
	want, p = open(mac3)
	a.Feed(p)
	l.settle()
	if _, _, _, inner := unwrapped(t, up.Sent()[0].Bytes); !bytes.Equal(inner, want) {
		t.Error("not completed before encapsulation")
	}
	want, p = open(wire.Broadcast)
	a.Feed(p)
	l.settle()
	l.got(b, want)
	l.got(c, want)
	_, p = open(mac4)
	a.Feed(p)
	l.settle()
	if s := c.Sent(); len(s) != 1 || !s[0].Checksum.Needed || !bytes.Equal(s[0].Bytes, p.Bytes) {
		t.Error("a guest that takes open checksums was not given one")
	}
	_, p = open(mac2)
	p.Checksum.Start = 63
	a.Feed(p)
	l.settle()
	l.dropped(a, DropHeadTooShort, 1)
	l.balanced()
}

func TestGuestRefused(t *testing.T) {
	l := newLab(t)
	_, a, _ := blue(l)
	l.send(a, []byte{1, 2, 3})
	l.dropped(a, DropMalformed, 1)
	l.send(a, ethernetFrame(mac2, macX))
	l.dropped(a, DropSpoofedMAC, 1)
	l.send(a, append(ethernetFrame(mac2, mac1), make([]byte, 1450)...))
	l.dropped(a, DropOverMTU, 1)

	l.network(Network{Name: "lonely", MTU: 100})
	c := l.attach(Port{Name: "c", Network: "lonely", MAC: mac4})
	l.send(c, ethernetFrame(mac2, 0x0100_0000_0001))
	l.dropped(c, DropMalformed, 1)
	l.send(c, ethernetFrame(macX, mac4), ethernetFrame(wire.Broadcast, mac4))
	l.dropped(c, DropNoDestination, 2)
	exactly := append(ethernetFrame(macX, mac4), make([]byte, 100+14-60)...)
	tagged := append(append(bytes.Clone(exactly[:12]), 0x81, 0, 0, 5), exactly[12:]...)
	l.send(c, exactly, tagged)
	l.dropped(c, DropNoDestination, 4)
	l.send(c, append(tagged, 0))
	l.dropped(c, DropOverMTU, 1)
	l.network(Network{Name: "lonely", MTU: 100, DropTagged: true})
	l.send(c, tagged)
	l.dropped(c, DropTagged, 1)
	l.balanced()
}

func TestNoNextHop(t *testing.T) {
	l := newLab(t)
	l.uplinkOf(Uplink{Name: "up0", Resolver: &Fixed{End: Local{Address: host4, MAC: hostMAC}, Neighbors: map[netip.Addr]wire.MAC{other4: peerMAC}}})
	l.network(Network{Name: "blue", VNI: 100, Uplink: "up0", Entries: []Entry{{MAC: mac3, VTEP: peer4}, {MAC: mac4, VTEP: other4}}})
	a := l.attach(Port{Name: "a", Network: "blue", MAC: mac1, AntiSpoof: true})
	l.send(a, ethernetFrame(mac3, mac1))
	l.dropped(a, DropNoNextHop, 1)
	l.send(a, ethernetFrame(mac4, mac1))
	if len(l.ports["up0"].Sent()) != 1 {
		t.Error("the VTEP with a next hop got nothing")
	}
}

// TestNoFreeFrame floods when there is no frame for copies: the last destination gets the frame, the others are counted.
func TestNoFreeFrame(t *testing.T) {
	l := newLabOf(t, 1, Options{Seed: 7})
	l.network(Network{Name: "blue"})
	a := l.attach(Port{Name: "a", Network: "blue", MAC: mac1})
	l.attach(Port{Name: "b", Network: "blue", MAC: mac2})
	c := l.attach(Port{Name: "c", Network: "blue", MAC: mac3})
	f := ethernetFrame(wire.Broadcast, mac1)
	l.send(a, f)
	l.got(c, f)
	l.dropped(a, DropNoClone, 1)
	l.balanced()
}

func TestFlatNetwork(t *testing.T) {
	l := newLab(t)
	up := l.uplink("up0", host4)
	l.network(Network{Name: "flat", Flat: true, Uplink: "up0", Learning: true})
	l.network(Network{Name: "blue", VNI: 100, Uplink: "up0"})
	a := l.attach(Port{Name: "a", Network: "flat", MAC: mac1, AntiSpoof: true})
	b := l.attach(Port{Name: "b", Network: "flat", MAC: mac2, AntiSpoof: true})
	c := l.attach(Port{Name: "c", Network: "blue", MAC: mac1, AntiSpoof: true})

	out, group := ethernetFrame(macX, mac1), ethernetFrame(wire.Broadcast, mac1)
	l.send(a, out, group)
	l.got(up, out, group)
	l.got(b, group)
	in, group := ethernetFrame(mac2, macX), ethernetFrame(wire.Broadcast, macX)
	l.send(up, in, group)
	l.got(b, in, group)
	l.got(a, group)
	l.send(up, ethernetFrame(mac4, macX))
	l.dropped(up, DropNoDestination, 1)
	l.send(up, ethernetFrame(hostMAC, macX)) // the host's own: only VXLAN is ours
	l.dropped(up, DropNotOurs, 1)

	// A VXLAN packet that a flat guest gets is its own affair.
	forged := tunnelPacket(t, host4, peer4, 100, ethernetFrame(mac1, macX), nil)
	copy(forged, hw(mac1))
	l.send(up, forged)
	l.got(a, forged)
	l.got(c)
	l.balanced()
}

// An entry of a flat network says that a station is on the wire, so that no port has to be asked, and none can attract its frames.
func TestFlatEntries(t *testing.T) {
	l := newLab(t)
	up := l.uplink("up0", host4)
	l.network(Network{Name: "flat", Flat: true, Uplink: "up0", Learning: true, Entries: []Entry{{MAC: macX}, {MAC: mac2}}})
	a := l.attach(Port{Name: "a", Network: "flat", MAC: mac1, AntiSpoof: true})
	b := l.attach(Port{Name: "b", Network: "flat", MAC: mac2})
	l.send(b, ethernetFrame(wire.Broadcast, macX)) // claims to be the station on the wire
	l.got(a, ethernetFrame(wire.Broadcast, macX))
	l.got(up, ethernetFrame(wire.Broadcast, macX))
	l.send(a, ethernetFrame(macX, mac1), ethernetFrame(mac2, mac1))
	l.got(up, ethernetFrame(macX, mac1))
	l.got(b, ethernetFrame(mac2, mac1)) // the port wins over the entry
	l.send(up, ethernetFrame(macX, mac3))
	l.dropped(up, DropSplitHorizon, 1)
	l.balanced()
	for _, e := range l.sw.FDB() {
		if e.MAC == macX && (e.Kind != KindStatic || e.VTEP.IsValid() || e.Port != "") {
			t.Errorf("%+v", e)
		}
	}
}

func TestDetach(t *testing.T) {
	l := newLab(t)
	l.network(Network{Name: "blue", Learning: true})
	a := l.attach(Port{Name: "a", Network: "blue", MAC: mac1})
	b := l.attach(Port{Name: "b", Network: "blue"})
	l.send(b, ethernetFrame(mac1, macX))
	l.got(a, ethernetFrame(mac1, macX))
	l.send(a, ethernetFrame(macX, mac1))
	l.got(b, ethernetFrame(macX, mac1))
	l.must(l.sw.DetachPorts("b"))
	l.send(b, ethernetFrame(mac1, macX))
	l.dropped(b, DropDetached, 1)

	// Another port takes b's slot, and nothing that b taught leads to it.
	c := l.attach(Port{Name: "c", Network: "blue", MAC: mac3, AntiSpoof: true})
	l.send(a, ethernetFrame(macX, mac1))
	l.got(c)
	l.dropped(a, DropNoDestination, 1)
	for _, e := range l.sw.FDB() {
		if e.Kind == KindLearned {
			t.Errorf("still learned: %+v", e)
		}
	}
	if err := l.sw.RemoveNetwork("blue"); !errors.Is(err, ErrInUse) {
		t.Errorf("removed a network with ports: %v", err)
	}
	l.detach("a")
	l.detach("c")
	l.must(l.sw.RemoveNetwork("blue"))
	l.balanced()
}

// TestLookupWhileDetaching looks an address up when its port has left the snapshot and its learned entries are still there, as they are
// until the worker is told to forget them.
func TestLookupWhileDetaching(t *testing.T) {
	l := newLab(t)
	l.network(Network{Name: "blue", Learning: true})
	a := l.attach(Port{Name: "a", Network: "blue", MAC: mac1, AntiSpoof: true})
	b := l.attach(Port{Name: "b", Network: "blue"})
	l.send(b, ethernetFrame(mac1, macX))
	l.sw.mu.Lock()
	delete(l.sw.ports, "b")
	l.sw.publish()
	l.sw.mu.Unlock()
	l.send(a, ethernetFrame(macX, mac1))
	l.got(b)
	l.dropped(a, DropNoDestination, 1)
	l.balanced()
}

// TestMoveToOtherNetwork changes a port's network while it is attached.
func TestMoveToOtherNetwork(t *testing.T) {
	l := newLab(t)
	l.network(Network{Name: "blue", Learning: true})
	l.network(Network{Name: "red", Learning: true})
	a := l.attach(Port{Name: "a", Network: "blue", MAC: mac1})
	b := l.attach(Port{Name: "b", Network: "blue"})
	c := l.attach(Port{Name: "c", Network: "red", MAC: mac3})
	l.send(b, ethernetFrame(mac1, macX))
	a.Sent()
	l.must(l.sw.SetPort(Port{Name: "b", Network: "red", MAC: mac2, AntiSpoof: true}))
	l.send(a, ethernetFrame(macX, mac1), ethernetFrame(mac2, mac1))
	l.got(b)
	l.send(c, ethernetFrame(mac2, mac3))
	l.got(b, ethernetFrame(mac2, mac3))
	l.balanced()
}

// TestSetUplink changes an uplink's address and next hops under its networks.
func TestSetUplink(t *testing.T) {
	l := newLab(t)
	up, a, _ := blue(l)
	err := l.sw.SetUplink(Uplink{Name: "up0", Resolver: &Fixed{End: Local{Address: host4, MAC: hostMAC, MTU: 1499}, Gateway: peerMAC}})
	if !errors.Is(err, ErrMTU) || !strings.Contains(err.Error(), "1449 or less") {
		t.Errorf("%v", err)
	}
	if err := l.sw.SetUplink(Uplink{Name: "up0", Resolver: &Fixed{End: Local{Address: host6}}}); !errors.Is(err, ErrInvalid) {
		t.Errorf("%v", err)
	}
	moved := netip.MustParseAddr("192.0.2.77")
	l.must(l.sw.SetUplink(Uplink{Name: "up0", Address: moved, Resolver: &Fixed{End: Local{Address: host4, MAC: hostMAC, MTU: 1600}, Gateway: mac4}}))
	l.send(a, ethernetFrame(mac3, mac1))
	b := up.Sent()[0].Bytes
	if wire.Ethernet(b).Destination() != mac4 || !bytes.Equal(b[26:30], moved.AsSlice()) {
		t.Errorf("% x", b[:50])
	}
	l.send(up, tunnelPacket(t, moved, peer4, 100, ethernetFrame(mac1, mac3), nil), tunnelPacket(t, host4, peer4, 100, ethernetFrame(mac1, mac3), nil))
	l.got(a, ethernetFrame(mac1, mac3))
	l.dropped(up, DropNotOurs, 1)
}

func TestRefusedConfigurations(t *testing.T) {
	l := newLab(t)
	blue(l)
	l.network(Network{Name: "flat", Flat: true, Uplink: "up0", MTU: 1500})
	ip := netip.MustParseAddr
	for _, c := range []struct {
		err  error
		want error
		say  string
	}{
		{l.sw.SetNetwork(Network{Name: "n", VNI: 1, Uplink: "up0", MTU: 1551}), ErrMTU, "1550 or less"},
		{l.sw.SetNetwork(Network{Name: "n", VNI: 1, Uplink: "none"}), ErrNotFound, "uplink none"},
		{l.sw.SetNetwork(Network{Name: "n", VNI: 100, Uplink: "up0"}), ErrConflict, "network blue"},
		{l.sw.SetNetwork(Network{Name: "n", VNI: 1 << 24, Uplink: "up0"}), ErrInvalid, "1 to 16777215"},
		{l.sw.SetNetwork(Network{Name: "n", Flat: true, Uplink: "up0"}), ErrConflict, "flat network flat"},
		{l.sw.SetNetwork(Network{Name: "n", VNI: 1, Uplink: "up0", Flood: []netip.Addr{host4}}), ErrInvalid, "own address"},
		{l.sw.SetNetwork(Network{Name: "n", VNI: 1, Uplink: "up0", Flood: []netip.Addr{peer6}}), ErrInvalid, "other IP version"},
		{l.sw.SetNetwork(Network{Name: "n", VNI: 1, Uplink: "up0", Flood: []netip.Addr{ip("224.0.0.1")}}), ErrInvalid, "unicast"},
		{l.sw.SetNetwork(Network{Name: "n", VNI: 1, Uplink: "up0", Entries: []Entry{{MAC: mac1, VTEP: peer4}, {MAC: mac1, VTEP: other4}}}), ErrConflict, "two entries"},
		{l.sw.SetNetwork(Network{Name: "n", MTU: 20}), ErrInvalid, "MTU 20"},
		{l.sw.AttachPort(Port{Name: "z", Network: "none"}, []*dataplane.Link{l.links["a"]}), ErrNotFound, "network none"},
		{l.sw.AttachPort(Port{Name: "z", Network: "blue", MAC: mac1}, []*dataplane.Link{l.links["a"]}), ErrConflict, "port a"},
		{l.sw.AttachPort(Port{Name: "a", Network: "blue"}, []*dataplane.Link{l.links["a"]}), ErrConflict, "port a"},
		{l.sw.AttachPort(Port{Name: "z", Network: "blue", AntiSpoof: true}, []*dataplane.Link{l.links["a"]}), ErrInvalid, "needs the guest's MAC"},
		{l.sw.AttachPort(Port{Name: "z", Network: "blue", MAC: wire.Broadcast}, []*dataplane.Link{l.links["a"]}), ErrInvalid, "group"},
		{l.sw.DetachPorts("z"), ErrNotFound, "port z"},
		{l.sw.RemoveUplink("up0"), ErrInUse, "by network"},
		{l.sw.RemoveUplink("up9"), ErrNotFound, "up9"},
	} {
		if !errors.Is(c.err, c.want) || !strings.Contains(c.err.Error(), c.say) {
			t.Errorf("%v: want %v, saying %q", c.err, c.want, c.say)
		}
	}
}

// TestHold enters networks and ports in one snapshot. Before it nothing is sent to them or by them, and nothing breaks.
func TestHold(t *testing.T) {
	l := newLab(t)
	l.network(Network{Name: "blue", Learning: true})
	a := l.attach(Port{Name: "a", Network: "blue", MAC: mac1})
	before := l.sw.current.Load()
	l.sw.Hold()
	l.must(l.sw.SetNetwork(Network{Name: "red"}))
	b := l.attach(Port{Name: "b", Network: "blue", MAC: mac2})
	c := l.attach(Port{Name: "c", Network: "red", MAC: mac3})
	d := l.attach(Port{Name: "d", Network: "red", MAC: macX})
	l.must(l.sw.SetPort(Port{Name: "c", Network: "red", MAC: mac3, AntiSpoof: false}))
	if l.sw.current.Load() != before {
		t.Error("a snapshot was made for each")
	}
	l.send(b, ethernetFrame(mac1, mac2))
	l.dropped(b, DropDetached, 1)
	l.send(a, ethernetFrame(mac2, mac1))
	l.got(b)
	l.sw.Release()
	once := l.sw.current.Load()
	l.sw.Release() // nothing waits
	if l.sw.current.Load() != once {
		t.Error("a snapshot was made for nothing")
	}
	l.send(b, ethernetFrame(mac1, mac2))
	l.got(a, ethernetFrame(mac1, mac2))
	l.send(c, ethernetFrame(macX, mac3))
	l.got(d, ethernetFrame(macX, mac3))

	// What has to be in force when it returns is, and what is asked is told as it will be.
	l.sw.Hold()
	e := l.attach(Port{Name: "e", Network: "blue", MAC: 0x0200_0000_00ee})
	l.detach("b")
	l.send(e, ethernetFrame(mac1, 0x0200_0000_00ee))
	l.got(a, ethernetFrame(mac1, 0x0200_0000_00ee))
	l.attach(Port{Name: "f", Network: "red", MAC: 0x0200_0000_00ff})
	if fdb := l.sw.FDB("red"); len(fdb) != 3 || fdb[0].Network != "red" {
		t.Errorf("%+v", fdb)
	}
	l.sw.Release()
	if err := l.sw.DetachPorts("a", "nothing", "f"); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	if fdb := l.sw.FDB(); len(fdb) != 3 {
		t.Errorf("%+v", fdb)
	}
	l.balanced()
}
