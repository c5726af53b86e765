package offload

import (
	"bytes"
	"encoding/binary"
	"net/netip"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/shuntio/shunt/dataplane/frame"
)

type fataler interface{ Fatal(...any) }

func newPool(t fataler, frames int) *frame.Pool {
	memory, err := frame.NewMemory(make([]byte, frames*frame.ChunkSize))
	if err != nil {
		t.Fatal(err)
	}
	pool, err := memory.NewPool(0, frames)
	if err != nil {
		t.Fatal(err)
	}
	return pool
}

// whole is a frame's bytes.
func whole(f *frame.Frame) []byte {
	b := bytes.Clone(f.Head())
	for _, piece := range f.Body() {
		b = append(b, piece...)
	}
	return b
}

// counting is n bytes that are not alike.
func counting(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

// spec is a TCP packet as tests write it.
type spec struct {
	is6     bool
	tags    int
	tos     uint8
	ttl     uint8
	id      uint16
	df      bool
	ipOpts  []layers.IPv4Option
	flow    int // makes its ports
	seq     uint32
	ack     uint32
	window  uint16
	flags   uint8
	urgent  uint16
	options []byte // a multiple of four bytes
	payload []byte
}

// usual is a segment in the middle of a connection.
func usual(is6 bool, payload int) spec {
	return spec{is6: is6, ttl: 64, id: 0xfffe, df: true, seq: 0xffff_fc00, ack: 77, window: 501, flags: 0x10,
		options: []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2}, payload: counting(payload)}
}

// packet is the packet that gopacket makes of a spec, with right lengths and checksums.
func (s spec) packet(t fataler) []byte {
	tcp := &layers.TCP{SrcPort: layers.TCPPort(1000 + s.flow), DstPort: 443, Seq: s.seq, Ack: s.ack, Window: s.window, Urgent: s.urgent}
	for i, flag := range []*bool{&tcp.FIN, &tcp.SYN, &tcp.RST, &tcp.PSH, &tcp.ACK, &tcp.URG, &tcp.ECE, &tcp.CWR} {
		*flag = s.flags>>i&1 != 0
	}
	ethernet := layers.EthernetTypeIPv4
	if s.is6 {
		ethernet = layers.EthernetTypeIPv6
	}
	ls := []gopacket.SerializableLayer{&layers.Ethernet{SrcMAC: []byte{2, 0, 0, 0, 0, 1}, DstMAC: []byte{2, 0, 0, 0, 0, 2}, EthernetType: ethernet}}
	for i := range s.tags {
		if i == 0 {
			ls[0].(*layers.Ethernet).EthernetType = layers.EthernetTypeDot1Q
		} else {
			ls[i].(*layers.Dot1Q).Type = layers.EthernetTypeDot1Q
		}
		ls = append(ls, &layers.Dot1Q{VLANIdentifier: uint16(5 + i), Type: ethernet})
	}
	if s.is6 {
		ip := &layers.IPv6{Version: 6, TrafficClass: s.tos, FlowLabel: 0x12345, HopLimit: s.ttl, NextHeader: layers.IPProtocolTCP,
			SrcIP: netip.MustParseAddr("2001:db8::1").AsSlice(), DstIP: netip.MustParseAddr("2001:db8::2").AsSlice()}
		_ = tcp.SetNetworkLayerForChecksum(ip)
		ls = append(ls, ip)
	} else {
		ip := &layers.IPv4{Version: 4, IHL: 5, TOS: s.tos, TTL: s.ttl, Id: s.id, Protocol: layers.IPProtocolTCP, Options: s.ipOpts,
			SrcIP: []byte{10, 0, 0, 1}, DstIP: []byte{10, 0, 0, 2}}
		if s.df {
			ip.Flags = layers.IPv4DontFragment
		}
		_ = tcp.SetNetworkLayerForChecksum(ip)
		ls = append(ls, ip)
	}
	buf := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
		append(ls, tcp, gopacket.Payload(append(bytes.Clone(s.options), s.payload...)))...)
	if err != nil {
		t.Fatal(err)
	}
	b := bytes.Clone(buf.Bytes())[:s.headers()+len(s.payload)] // gopacket pads short ones
	// The options are payload to gopacket, which would write them its own way; the data offset takes them in, and the checksum follows.
	at := s.transport()
	b[at+12] += byte(len(s.options) / 4 << 4)
	sum := uint32(^binary.BigEndian.Uint16(b[at+16:])) + uint32(len(s.options)/4)<<12
	binary.BigEndian.PutUint16(b[at+16:], ^uint16(sum+sum>>16))
	return b
}

// network and transport are where the headers begin.
func (s spec) network() int { return 14 + 4*s.tags }
func (s spec) transport() int {
	if s.is6 {
		return s.network() + 40
	}
	n := 20
	for _, o := range s.ipOpts {
		n += int(o.OptionLength)
	}
	return s.network() + n
}
func (s spec) headers() int { return s.transport() + 20 + len(s.options) }

// large puts the packet into a frame that is to be cut into segments of size bytes. head bytes of it are private, the rest lies in pieces.
func (s spec) large(t fataler, pool *frame.Pool, size, head, piece int) *frame.Frame {
	b := s.packet(t)
	at := s.transport()
	f := pool.Get()
	f.GSO = frame.GSO{Type: frame.GSOTCP4, Size: uint16(size), ECN: s.flags&0x80 != 0}
	if s.is6 {
		f.GSO.Type = frame.GSOTCP6
	}
	f.Checksum = frame.Checksum{Needed: true, Start: uint16(at), Offset: 16}
	binary.BigEndian.PutUint16(b[at+16:], pseudo(b, s.network(), at, s.is6))
	fill(f, b, head, piece)
	return f
}

// pseudo is the sum of the pseudo header as a driver leaves it.
func pseudo(b []byte, network, transport int, is6 bool) uint16 {
	from, to := network+12, network+20
	if is6 {
		from, to = network+8, network+40
	}
	return uint16(naive(b[from:to], uint64(6+len(b)-transport)) % 0xffff)
}

// naive adds 16-bit words, and nothing of package wire.
func naive(b []byte, sum uint64) uint64 {
	for i, c := range b {
		sum += uint64(c) << (8 * (1 - i%2))
	}
	return sum
}

// fill copies head bytes and lends the rest in pieces.
func fill(f *frame.Frame, b []byte, head, piece int) {
	head = min(head, len(b), f.Room())
	copy(f.Append(head), b)
	if rest := b[head:]; len(rest) > 0 {
		var pieces [][]byte
		for r := rest; len(r) > 0; r = r[min(piece, len(r)):] {
			pieces = append(pieces, r[:min(piece, len(r))])
		}
		f.Borrow(pieces, len(rest))
	}
}

// intact verifies with gopacket that a packet is what its headers say, with right checksums, and returns its TCP header.
func intact(t interface{ Fatalf(string, ...any) }, b []byte) *layers.TCP {
	p := gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.NoCopy)
	if p.ErrorLayer() != nil || p.Metadata().Truncated {
		t.Fatalf("%v: % x", p.ErrorLayer(), b[:min(len(b), 100)])
	}
	network := len(b)
	for _, l := range p.Layers() {
		switch l := l.(type) {
		case *layers.IPv4:
			if int(l.Length) != network || naive(l.Contents, 0)%0xffff != 0 {
				t.Fatalf("IPv4 length %d of %d, checksum %#04x", l.Length, network, l.Checksum)
			}
		case *layers.IPv6:
			if int(l.Length)+40 != network {
				t.Fatalf("IPv6 length %d of %d", l.Length, network-40)
			}
		case *layers.TCP:
			flow := p.NetworkLayer().NetworkFlow()
			sum := naive(flow.Dst().Raw(), naive(flow.Src().Raw(), uint64(6+network)))
			if (naive(l.Payload, naive(l.Contents, sum)))%0xffff != 0 {
				t.Fatalf("TCP checksum %#04x", l.Checksum)
			}
			return l
		}
		network -= len(l.LayerContents())
	}
	t.Fatalf("no TCP in % x", b[:min(len(b), 100)])
	return nil
}
