package xsk

import (
	"bytes"
	"encoding/binary"
	"net"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/wire"
	"pgregory.net/rapid"
)

// transport makes a frame with a transport header, and tells where that and its checksum lie; all checksums are right.
func transport(t *rapid.T) (packet []byte, at, offset int) {
	v6, tcp := rapid.Bool().Draw(t, "v6"), rapid.Bool().Draw(t, "tcp")
	payload := rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "payload")
	eth := &layers.Ethernet{SrcMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, DstMAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}}
	all, tagged := []gopacket.SerializableLayer{eth}, rapid.Bool().Draw(t, "tagged")
	typ := layers.EthernetTypeIPv4
	if v6 {
		typ = layers.EthernetTypeIPv6
	}
	eth.EthernetType, at = typ, 14
	if tagged {
		eth.EthernetType, at = layers.EthernetTypeDot1Q, 18
		all = append(all, &layers.Dot1Q{VLANIdentifier: 7, Type: typ})
	}
	protocol := layers.IPProtocolUDP
	if tcp {
		protocol = layers.IPProtocolTCP
	}
	address := func(n int, name string) net.IP { return rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, name) }
	var network interface {
		gopacket.SerializableLayer
		gopacket.NetworkLayer
	}
	if v6 {
		at += 40
		network = &layers.IPv6{Version: 6, NextHeader: protocol, HopLimit: 9, SrcIP: address(16, "from"), DstIP: address(16, "to")}
	} else {
		at += 20
		network = &layers.IPv4{Version: 4, Protocol: protocol, TTL: 9, SrcIP: address(4, "from"), DstIP: address(4, "to")}
	}
	all = append(all, network)
	if tcp {
		offset = 16
		l := &layers.TCP{SrcPort: layers.TCPPort(rapid.Uint16().Draw(t, "port")), DstPort: 80, Seq: rapid.Uint32().Draw(t, "sequence"), ACK: true, Window: 100}
		l.SetNetworkLayerForChecksum(network)
		all = append(all, l)
	} else {
		offset = 6
		l := &layers.UDP{SrcPort: layers.UDPPort(rapid.Uint16().Draw(t, "port")), DstPort: 53}
		l.SetNetworkLayerForChecksum(network)
		all = append(all, l)
	}
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, append(all, gopacket.Payload(payload))...); err != nil {
		t.Fatal(err)
	}
	n := at + 8 + len(payload)
	if tcp {
		n += 12
	}
	packet = b.Bytes()[:n] // gopacket pads short frames, a veth does not
	if sum := packet[at+offset : at+offset+2]; sum[0] == 0 && sum[1] == 0 {
		sum[0], sum[1] = 0xff, 0xff // which is the same, and what wire.Complete writes
	}
	return packet, at, offset
}

// open puts the pseudo header's sum where the checksum is, as a kernel does that leaves it to others.
func open(packet []byte, at, offset int) {
	protocol := uint8(wire.ProtoUDP)
	if offset == 16 {
		protocol = wire.ProtoTCP
	}
	l := wire.Locate(packet)
	from, to := packet[l.Network+12:l.Network+16], packet[l.Network+16:l.Network+20]
	if l.EtherType == wire.EtherTypeIPv6 {
		from, to = packet[l.Network+8:l.Network+24], packet[l.Network+24:l.Network+40]
	}
	binary.BigEndian.PutUint16(packet[at+offset:], wire.SumPseudo(from, to, protocol, uint32(len(packet)-at)))
}

// Every open checksum is found, and completing what is found makes the packet what it was; complete ones are left alone but by chance.
func TestFindPartial(t *testing.T) {
	_, pool := newUMEM(t, 8)
	found, chance := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		packet, at, offset := transport(t)
		whole := bytes.Clone(packet)
		opened := rapid.Bool().Draw(t, "open")
		if opened {
			open(packet, at, offset)
		}
		f := pool.Get()
		defer pool.Put(f)
		head := min(len(packet), rapid.IntRange(at+20, 400).Draw(t, "head"))
		copy(f.Append(head), packet)
		if head < len(packet) {
			g := pool.Get()
			copy(g.Append(len(packet)-head), packet[head:])
			f.Attach(g, 0)
		}
		findPartial(f)
		if opened && !f.Checksum.Needed {
			t.Fatalf("not found in % x", packet)
		}
		if !f.Checksum.Needed {
			return
		}
		found++
		if !opened {
			chance++
		}
		if int(f.Checksum.Start) != at || int(f.Checksum.Offset) != offset {
			t.Fatalf("found at %+v, it is at %d+%d", f.Checksum, at, offset)
		}
		if !f.Gather() || !wire.Complete(f.Head(), nil, f.Checksum.Start, f.Checksum.Offset) || !bytes.Equal(f.Head(), whole) {
			t.Fatalf("completed to % x, it was % x", f.Head(), whole)
		}
	})
	if found == 0 || chance > found/10 {
		t.Errorf("%d found, %d of them by chance", found, chance)
	}
}

// What only looks like an open checksum is left alone: a packet with padding behind it, a fragment, a datagram shorter than its packet.
func TestFindPartialRefuses(t *testing.T) {
	_, pool := newUMEM(t, 4)
	udp := func() []byte {
		b := make([]byte, 14+20+8+10)
		copy(b, header)
		binary.BigEndian.PutUint16(b[12:], wire.EtherTypeIPv4)
		wire.IPv4(b[14:]).Set(wire.IPv4Fields{TotalLen: 38, TTL: 9, Protocol: wire.ProtoUDP, Source: [4]byte{10, 0, 0, 1}, Destination: [4]byte{10, 0, 0, 2}})
		binary.BigEndian.PutUint16(b[38:], 18)
		open(b, 34, 6)
		return b
	}
	for name, change := range map[string]func(b []byte) []byte{
		"nothing":                   func(b []byte) []byte { return b },
		"padding":                   func(b []byte) []byte { return append(b, 0, 0, 0, 0, 0, 0, 0, 0) },
		"a byte missing":            func(b []byte) []byte { return b[:len(b)-1] },
		"a fragment":                func(b []byte) []byte { b[20] |= 0x20; return b },
		"a datagram too short":      func(b []byte) []byte { b[39]--; return b },
		"another protocol":          func(b []byte) []byte { b[23] = 132; return b },
		"no checksum":               func(b []byte) []byte { b[40], b[41] = 0, 0; return b },
		"cut in the transport":      func(b []byte) []byte { return b[:38] },
		"cut in the network":        func(b []byte) []byte { return b[:30] },
		"nothing but MAC addresses": func(b []byte) []byte { return b[:14] },
	} {
		f := pool.Get()
		b := change(udp())
		copy(f.Append(len(b)), b)
		if findPartial(f); f.Checksum.Needed != (name == "nothing") {
			t.Errorf("%s: %+v", name, f.Checksum)
		}
		pool.Put(f)
	}
	f := pool.Get()
	b := udp()
	copy(f.Append(len(b)), b)
	if n := testing.AllocsPerRun(100, func() { findPartial(f) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestKernelLeavesChecksumsOpen receives what a container's kernel sends: every checksum is open, found, and right once completed.
func TestKernelLeavesChecksumsOpen(t *testing.T) {
	a, b := newPair(t, 1, 1500)
	b.redirect(t, 0)
	a.run(t, "ip", "neigh", "add", "10.9.0.2", "lladdr", b.MAC, "dev", a.Name)
	u, pool := newUMEM(t, 1024)
	s := b.open(t, u, SocketOptions{Fill: 256, Rx: 256, Tx: 64, Completion: 64})
	p, err := NewPort(PortOptions{Socket: s, Pool: pool, Counters: new(dataplane.Counters), CompletePartial: true})
	if err != nil {
		t.Fatal(err)
	}
	var conn *net.UDPConn
	a.do(t, func() (err error) {
		conn, err = net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.IPv4(10, 9, 0, 2), Port: 7})
		return err
	})
	defer conn.Close()
	into := make([]*frame.Frame, 8)
	for i := range 100 {
		if _, err := conn.Write(make([]byte, 1+13*i)); err != nil {
			t.Fatal(err)
		}
		until(t, "the datagram", func() bool {
			n := p.Receive(into, pool)
			defer pool.PutAll(into[:n])
			for _, f := range into[:n] {
				if l := wire.Locate(f.Head()); l.Protocol != wire.ProtoUDP {
					continue
				}
				if !f.Checksum.Needed {
					t.Fatal("a checksum that the kernel left open was not found")
				}
				if !wire.Complete(f.Head(), f.Body(), f.Checksum.Start, f.Checksum.Offset) {
					t.Fatal("cannot complete")
				}
				ip := wire.IPv4(f.Head()[14:])
				if wire.Sum(wire.SumPseudo(ip.Source(), ip.Destination(), wire.ProtoUDP, uint32(len(ip)-20)), ip[20:]) != 0xffff {
					t.Fatalf("the completed checksum is wrong: % x", f.Head())
				}
				return true
			}
			return false
		})
	}
}
