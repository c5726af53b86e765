package wire

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"pgregory.net/rapid"
)

// build serialises layers with gopacket.
func build(t interface{ Fatal(...any) }, ls ...gopacket.SerializableLayer) []byte {
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true}, ls...); err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(buf.Bytes())
}

var (
	macA = []byte{2, 0, 0, 0, 0, 1}
	macB = []byte{2, 0, 0, 0, 0, 2}
	ip4A = []byte{10, 0, 0, 1}
	ip4B = []byte{10, 0, 0, 2}
	ip6A = append([]byte{0xfd}, make([]byte, 15)...)
	ip6B = append([]byte{0xfd, 1}, make([]byte, 14)...)
)

func eth(t layers.EthernetType) *layers.Ethernet {
	return &layers.Ethernet{SrcMAC: macA, DstMAC: macB, EthernetType: t}
}

// extension is an IPv6 extension header of n*8 bytes that names what follows.
func extension(next uint8, n int) gopacket.Payload {
	b := make([]byte, n*8)
	b[0], b[1] = next, uint8(n-1)
	return b
}

// chain is an IPv6 packet with count extension headers of the kind and then UDP.
func chain(t interface{ Fatal(...any) }, kind uint8, count int) []byte {
	ls := []gopacket.SerializableLayer{eth(layers.EthernetTypeIPv6),
		&layers.IPv6{Version: 6, SrcIP: ip6A, DstIP: ip6B, NextHeader: layers.IPProtocol(kind)}}
	for i := range count {
		next := kind
		if i == count-1 {
			next = ProtoUDP
		}
		ls = append(ls, extension(next, 1))
	}
	return build(t, append(ls, gopacket.Payload{0, 1, 0, 2, 0, 8, 0, 0})...)
}

func TestLocate(t *testing.T) {
	udp := gopacket.Payload{0, 1, 0, 2, 0, 8, 0, 0}
	v4 := build(t, eth(layers.EthernetTypeIPv4), &layers.IPv4{Version: 4, IHL: 5, SrcIP: ip4A, DstIP: ip4B, Protocol: 17}, udp)
	fragment := func(field uint16) []byte {
		b := bytes.Clone(v4)
		binary.BigEndian.PutUint16(b[20:], field)
		return b
	}
	tagged := build(t, eth(layers.EthernetTypeDot1Q), &layers.Dot1Q{VLANIdentifier: 5, Type: layers.EthernetTypeIPv4},
		&layers.IPv4{Version: 4, IHL: 5, SrcIP: ip4A, DstIP: ip4B, Protocol: 6}, gopacket.Payload(make([]byte, 20)))
	three := append(append(append(bytes.Clone(v4[:12]), 0x81, 0, 0, 1, 0x81, 0, 0, 1), 0x81, 0, 0, 1), v4[12:]...)
	fragment6 := func(field uint16) []byte {
		b := chain(t, ProtoFragment, 1)
		binary.BigEndian.PutUint16(b[14+40+2:], field)
		return b
	}
	for _, c := range []struct {
		name string
		in   []byte
		want Layers
	}{
		{"IPv4", v4, Layers{EtherType: EtherTypeIPv4, Protocol: ProtoUDP, Network: 14, Transport: 34}},
		{"IPv4, first fragment", fragment(0x2000), Layers{EtherType: EtherTypeIPv4, Protocol: ProtoUDP, Network: 14, Transport: 34, Fragment: true}},
		{"IPv4, later fragment", fragment(0x0010), Layers{EtherType: EtherTypeIPv4, Protocol: ProtoUDP, Network: 14, Fragment: true}},
		{"tagged", tagged, Layers{EtherType: EtherTypeIPv4, Tags: 1, Protocol: ProtoTCP, Network: 18, Transport: 38}},
		{"three tags", three, Layers{EtherType: EtherTypeVLAN, Tags: 2}},
		{"ARP", arpRequest, Layers{EtherType: EtherTypeARP, Network: 14}},
		{"ends in the IPv4 header", v4[:33], Layers{EtherType: EtherTypeIPv4, Network: 14, Broken: true}},
		{"eight extensions", chain(t, ProtoDestOptions, 8), Layers{EtherType: EtherTypeIPv6, Protocol: ProtoUDP, Network: 14, Transport: 54 + 64}},
		{"nine extensions", chain(t, ProtoDestOptions, 9), Layers{EtherType: EtherTypeIPv6, Protocol: ProtoUDP, Network: 14, Broken: true}},
		{"ends in an extension", chain(t, ProtoDestOptions, 2)[:54+9], Layers{EtherType: EtherTypeIPv6, Protocol: ProtoDestOptions, Network: 14, Broken: true}},
		{"IPv6, first fragment", fragment6(0x0001), Layers{EtherType: EtherTypeIPv6, Protocol: ProtoUDP, Network: 14, Transport: 62, Fragment: true}},
		{"IPv6, later fragment", fragment6(0x0008), Layers{EtherType: EtherTypeIPv6, Protocol: ProtoUDP, Network: 14, Fragment: true}},
		{"IPv6, atomic fragment", fragment6(0), Layers{EtherType: EtherTypeIPv6, Protocol: ProtoUDP, Network: 14, Transport: 62}},
		{"runt", v4[:13], Layers{}},
	} {
		if got := Locate(c.in); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

// FuzzLocate holds that no head makes it panic, that what it names lies where gopacket has it, and that every packet of a flow
// hashes alike whatever follows the headers.
func FuzzLocate(f *testing.F) {
	f.Add(arpRequest)
	f.Add(chain(f, ProtoDestOptions, 3))
	f.Add(chain(f, ProtoFragment, 1))
	f.Add(chain(f, ProtoAH, 1))
	f.Add(build(f, eth(layers.EthernetTypeIPv4), &layers.IPv4{Version: 4, IHL: 5, SrcIP: ip4A, DstIP: ip4B, Protocol: 17}, &layers.UDP{SrcPort: 7}))
	f.Add(build(f, eth(layers.EthernetTypeDot1Q), &layers.Dot1Q{Type: layers.EthernetTypeIPv6},
		&layers.IPv6{Version: 6, SrcIP: ip6A, DstIP: ip6B, NextHeader: 6}, &layers.TCP{SrcPort: 7, DataOffset: 5}))
	f.Fuzz(func(t *testing.T, b []byte) {
		l := Locate(b)
		if h := FlowHash(b, 1); h == 0 || h != FlowHashAt(b, l, 1) {
			t.Fatalf("hash %d, the long way %d; zero means none", h, FlowHashAt(b, l, 1))
		}
		if l.Transport != 0 && l.Network == 0 || l.Transport != 0 && l.Broken {
			t.Fatalf("%+v", l)
		}
		p := gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.NoCopy)
		if p.ErrorLayer() != nil {
			return // the layer that failed is there, with fields that were never set
		}
		var at int // of the layer, as gopacket walks
		for _, layer := range p.Layers() {
			switch layer := layer.(type) {
			case *layers.IPv4:
				if at == int(l.Network) && l.EtherType == EtherTypeIPv4 && !l.Broken && uint8(layer.Protocol) != l.Protocol {
					t.Fatalf("protocol %d, gopacket %d", l.Protocol, layer.Protocol)
				}
			case *layers.UDP:
				if l.EtherType == EtherTypeIPv4 && l.Tags == 0 && l.Protocol == ProtoUDP && p.Layers()[1].LayerType() == layers.LayerTypeIPv4 &&
					p.Layers()[2] == gopacket.Layer(layer) && at != int(l.Transport) {
					t.Fatalf("UDP at %d, gopacket at %d", l.Transport, at)
				}
			}
			at += len(layer.LayerContents())
		}
	})
}

func TestFlowHash(t *testing.T) {
	packet := func(sport layers.UDPPort, payload byte) []byte {
		return build(t, eth(layers.EthernetTypeIPv4), &layers.IPv4{Version: 4, IHL: 5, SrcIP: ip4A, DstIP: ip4B, Protocol: 17, Id: uint16(payload)},
			&layers.UDP{SrcPort: sport, DstPort: 9}, gopacket.Payload{payload})
	}
	if FlowHash(packet(1, 1), 5) != FlowHash(packet(1, 2), 5) {
		t.Error("two packets of one flow differ")
	}
	if FlowHash(packet(1, 1), 5) == FlowHash(packet(1, 1), 6) {
		t.Error("the seed does nothing")
	}
	// Flows spread: 4096 source ports fill 16384 values (as many as VXLAN source ports) like random numbers would, about 3600
	// different ones.
	seen := map[uint32]bool{}
	for port := range 4096 {
		seen[FlowHash(packet(layers.UDPPort(port), 0), 5)>>18] = true
	}
	if len(seen) < 3400 {
		t.Errorf("4096 flows have %d different values of 16384", len(seen))
	}
	// Fragments of one datagram stay together.
	first, later := packet(1, 1), packet(2, 1)
	binary.BigEndian.PutUint16(first[20:], 0x2000)
	binary.BigEndian.PutUint16(later[20:], 0x0010)
	if FlowHash(first, 5) != FlowHash(later, 5) {
		t.Error("fragments of one datagram differ")
	}
}

func TestFlowHashPrefix(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := chain(t, ProtoDestOptions, rapid.IntRange(1, 8).Draw(t, "extensions"))
		more := append(bytes.Clone(b), rapid.SliceOf(rapid.Byte()).Draw(t, "more")...)
		if FlowHash(b, 3) != FlowHash(more, 3) {
			t.Fatal("what follows the headers changes the hash")
		}
	})
}

var hashSink uint32

func BenchmarkFlowHash(b *testing.B) {
	v4 := build(b, eth(layers.EthernetTypeIPv4), &layers.IPv4{Version: 4, IHL: 5, SrcIP: ip4A, DstIP: ip4B, Protocol: 17}, &layers.UDP{SrcPort: 7})
	v6 := build(b, eth(layers.EthernetTypeIPv6), &layers.IPv6{Version: 6, SrcIP: ip6A, DstIP: ip6B, NextHeader: 17}, &layers.UDP{SrcPort: 7})
	for name, p := range map[string][]byte{"IPv4": v4, "IPv6": v6} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				hashSink ^= FlowHash(p, 9)
			}
		})
	}
}
