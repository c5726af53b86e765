package vxlan

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/shuntio/shunt/dataplane/dataplanetest"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/wire"
)

// figure4 is RFC 6040's: by the inner and the outer field; -1: dropped. The fields are numbered as on the wire: not-ECT, ECT(1), ECT(0), CE.
var figure4 = [4][4]int{
	notECT: {notECT: notECT, ect0: notECT, ect1: notECT, ce: -1},
	ect0:   {notECT: ect0, ect0: ect0, ect1: ect1, ce: ce},
	ect1:   {notECT: ect1, ect0: ect1, ect1: ect1, ce: ce},
	ce:     {notECT: ce, ect0: ce, ect1: ce, ce: ce},
}

// tosOf and withTOS read and write the TOS or traffic class of a packet, by gopacket.
func tosOf(t *testing.T, b []byte) uint8 {
	t.Helper()
	switch ip := gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.NoCopy).NetworkLayer().(type) {
	case *layers.IPv4:
		if wire.Sum(0, ip.Contents) != 0xffff {
			t.Errorf("IPv4 header checksum of % x", ip.Contents)
		}
		return ip.TOS
	case *layers.IPv6:
		return ip.TrafficClass
	}
	t.Fatalf("no IP packet: % x", b)
	return 0
}

func withTOS(t *testing.T, b []byte, tos uint8) []byte {
	t.Helper()
	b = bytes.Clone(b)
	at, old := trafficClass(b)
	if at == 0 || old != tosOf(t, b) {
		t.Fatalf("IP header at %d with %#02x, gopacket has %#02x", at, old, tosOf(t, b))
	}
	if b[at]>>4 == 4 {
		wire.IPv4(b[at:]).SetTOS(tos)
	} else {
		wire.IPv6(b[at:]).SetTrafficClass(tos)
	}
	if tosOf(t, b) != tos {
		t.Fatalf("%#02x written, gopacket reads %#02x", tos, tosOf(t, b))
	}
	return b
}

// inners are packets of a guest: both IP versions, without and with tags.
func inners(t *testing.T) map[string][]byte {
	all := map[string][]byte{}
	for name, addresses := range map[string][2]string{"IPv4": {"10.0.0.1", "10.0.0.3"}, "IPv6": {"fd00::1", "fd00::3"}} {
		b := udpFrame(t, mac1, mac3, addresses[0], addresses[1], []byte("hello"))
		tagged := append(append(bytes.Clone(b[:12]), 0x81, 0, 0, 5), b[12:]...)
		all[name], all[name+", tagged"] = b, tagged
		all[name+", two tags"] = append(append(bytes.Clone(b[:12]), 0x88, 0xa8, 0, 9), tagged[12:]...)
	}
	return all
}

func TestDecapsulateECN(t *testing.T) {
	for name, inner := range inners(t) {
		for _, local := range []netip.Addr{host4, host6} {
			l := newLab(t)
			peer := peer4
			if local.Is6() {
				peer = peer6
			}
			up := l.uplink("up0", local)
			l.network(Network{Name: "blue", VNI: 100, Uplink: "up0"})
			a := l.attach(Port{Name: "a", Network: "blue", MAC: mac1})
			drops := uint64(0)
			for in := range uint8(4) {
				for out := range uint8(4) {
					f := withTOS(t, inner, 0xb8|in) // expedited forwarding, which must stay
					packet := withTOS(t, tunnelPacket(t, local, peer, 100, f, nil), 0x28|out)
					l.send(up, packet)
					sent := a.Sent()
					want := figure4[in][out]
					if want < 0 {
						drops++
						if len(sent) != 0 || up.Counters.Drops(DropCongestion) != drops {
							t.Errorf("%s from %v, inner %d, outer %d: delivered", name, peer, in, out)
						}
						continue
					}
					if len(sent) != 1 || !bytes.Equal(sent[0].Bytes, withTOS(t, f, 0xb8|uint8(want))) {
						t.Errorf("%s from %v, inner %d, outer %d: %d frames, want ECN %d", name, peer, in, out, len(sent), want)
					}
				}
			}
			l.balanced()
		}
	}
}

func TestEncapsulateTOS(t *testing.T) {
	for name, inner := range inners(t) {
		for _, local := range []netip.Addr{host4, host6} {
			for _, mode := range []DSCP{DSCPCopy, DSCPZero} {
				l := newLab(t)
				peer := peer4
				if local.Is6() {
					peer = peer6
				}
				up := l.uplink("up0", local)
				l.network(Network{Name: "blue", VNI: 100, Uplink: "up0", DSCP: mode, Entries: []Entry{{MAC: mac1, VTEP: peer}}})
				a := l.attach(Port{Name: "a", Network: "blue", MAC: mac3})
				for _, tos := range []uint8{0, 1, 2, 3, 0xb8, 0xff, 0xfd} {
					f := withTOS(t, inner, tos)
					a.Feed(dataplanetest.Packet{Bytes: f, Head: 90, Piece: 7})
					l.settle()
					want := tos
					if mode == DSCPZero {
						want &= 3
					}
					b := up.Sent()[0].Bytes
					if got := tosOf(t, b); got != want {
						t.Errorf("%s to %v, mode %d: outer %#02x, want %#02x", name, peer, mode, got, want)
					}
					if !bytes.HasSuffix(b, f) {
						t.Errorf("%s to %v: the inner frame changed", name, peer)
					}
					if local.Is6() {
						unwrapped(t, b) // the UDP checksum
					}
				}
			}
		}
	}
	// What is no IP packet has no class, whatever its bytes.
	for _, b := range [][]byte{ethernetFrame(mac2, mac1, bytes.Repeat([]byte{0x45, 0xff}, 30)...), ethernetFrame(mac2, mac1)[:14], withTOS(t, inners(t)["IPv6"], 0xff)[:53]} {
		if at, tos := trafficClass(b); at != 0 || tos != 0 {
			t.Errorf("% x: class %#02x at %d", b, tos, at)
		}
	}
}

// A mark reaches frames that are no IP packets without changing them.
func TestMarkWithoutIP(t *testing.T) {
	l := newLab(t)
	up, a, _ := blue(l)
	f := ethernetFrame(mac1, mac3, bytes.Repeat([]byte{0x45}, 60)...)
	l.send(up, withTOS(t, tunnelPacket(t, host4, peer4, 100, f, nil), ce))
	l.got(a, f)
}

func TestNetworkRefusesDSCP(t *testing.T) {
	n := Network{Name: "blue", DSCP: 2}
	if n.validate() == nil {
		t.Error("accepted")
	}
}

// FuzzECN holds that no frame makes the marking panic or changes anything but the two bits, and the header's checksum by what they make.
func FuzzECN(f *testing.F) {
	for _, s := range [][]byte{udpFrame(f, mac1, mac3, "10.0.0.1", "10.0.0.3", nil), udpFrame(f, mac1, mac3, "fd00::1", "fd00::3", nil)} {
		for ecn := range uint8(4) {
			b := bytes.Clone(s)
			b[15] |= ecn << (4 * (b[14] >> 5 & 1)) // IPv6's lie higher
			f.Add(b, uint8(3))
		}
	}
	memory, err := frame.NewMemory(make([]byte, frame.ChunkSize))
	if err != nil {
		f.Fatal(err)
	}
	pool, err := memory.NewPool(0, 1)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte, outer uint8) {
		fr := pool.Get()
		defer pool.Put(fr)
		if copy(fr.Append(min(len(b), 2000)), b) < wire.EthernetLen {
			return
		}
		before := bytes.Clone(fr.Head())
		at, inner := trafficClass(before)
		_, ok := congestion(fr, outer)
		want := inner
		if at != 0 {
			w := figure4[inner&3][outer&3]
			if ok == (w < 0) {
				t.Fatalf("inner %d, outer %d: %v", inner&3, outer&3, ok)
			}
			if ok {
				want = inner&^3 | uint8(w)
			}
		}
		_, is := trafficClass(fr.Head())
		if is != want {
			t.Fatalf("class %#02x, want %#02x", is, want)
		}
		after := bytes.Clone(fr.Head())
		if at != 0 && before[at]>>4 == 4 {
			if sum := func(b []byte) uint16 { return wire.Sum(0, b[at:at+20]) % 0xffff }; sum(before) != sum(after) {
				t.Fatal("the checksum was right, and is not, or the reverse")
			}
			copy(after[at+10:], before[at+10:at+12])
			after[at+1] = before[at+1]
		} else if at != 0 {
			wire.IPv6(after[at:]).SetTrafficClass(inner)
		}
		if !bytes.Equal(before, after) {
			t.Fatal("something else changed")
		}
	})
}

func BenchmarkTrafficClass(b *testing.B) {
	f := udpFrame(b, mac1, mac3, "10.0.0.1", "10.0.0.3", nil)
	var sum int
	for b.Loop() {
		at, tos := trafficClass(f)
		sum += at + int(tos)
	}
	if sum == 0 {
		b.Fatal(fmt.Sprint(sum))
	}
}
