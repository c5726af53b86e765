package wire

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"pgregory.net/rapid"
)

// naive is RFC 1071's definition, word by word.
func naive(b []byte) uint16 {
	var s uint32
	for ; len(b) >= 2; b = b[2:] {
		s += uint32(b[0])<<8 | uint32(b[1])
		s = s>>16 + s&0xffff
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

func TestSumExamples(t *testing.T) {
	for _, c := range []struct {
		name string
		in   []byte
		want uint16
	}{
		{"RFC 1071, section 3", []byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}, 0xddf2},
		{"nothing", nil, 0},
		{"one byte", []byte{0xab}, 0xab00},
		{"three bytes", []byte{0, 1, 2}, 0x0201},
		{"carries all the way", bytes.Repeat([]byte{0xff}, 129), 0xff00},
		{"all ones", bytes.Repeat([]byte{0xff}, 128), 0xffff},
	} {
		if got := Sum(0, c.in); got != c.want {
			t.Errorf("%s: %#04x, want %#04x", c.name, got, c.want)
		}
	}
}

// same compares sums as numbers modulo 0xffff: a ones' complement zero has two notations.
func same(a, b uint16) bool { return a%0xffff == b%0xffff }

func TestSumAgainstNaive(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOfN(rapid.Byte(), 0, 700).Draw(t, "bytes")
		start := rapid.Uint16().Draw(t, "start")
		if got, want := Sum(start, b), Add(start, naive(b)); !same(got, want) || (got == 0) != (want == 0) {
			t.Fatalf("Sum %#04x, want %#04x", got, want)
		}
		if len(b) >= 20 && sum20((*[20]byte)(b)) != Sum(0, b[:20]) {
			t.Fatalf("sum20 %#04x, Sum %#04x", sum20((*[20]byte)(b)), Sum(0, b[:20]))
		}
	})
}

// cut draws a division of b into a head and pieces, empty and odd ones among them.
func cut(t *rapid.T, b []byte, minHead int) (head []byte, body [][]byte) {
	n := rapid.IntRange(min(minHead, len(b)), len(b)).Draw(t, "head")
	head, b = bytes.Clone(b[:n]), b[n:]
	for len(b) > 0 {
		n := rapid.IntRange(0, len(b)).Draw(t, "piece")
		body, b = append(body, b[:n]), b[n:]
		if len(body) == 8 {
			body, b = append(body, b), nil
		}
	}
	return head, body
}

func TestSumPieces(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "bytes")
		head, body := cut(t, b, 0)
		if got, want := SumPieces(0, head, body), Sum(0, b); !same(got, want) {
			t.Fatalf("in pieces %#04x, whole %#04x", got, want)
		}
	})
}

func TestUpdate(t *testing.T) {
	// RFC 1624, section 4: the example on which RFC 1141's equation fails.
	if got := Update(0xdd2f, 0x5555, 0x3285); got != 0x0000 {
		t.Errorf("RFC 1624 example: %#04x, want 0", got)
	}
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOfN(rapid.Byte(), 20, 20).Draw(t, "header")
		old := ^Sum(0, b)
		at := 2 * rapid.IntRange(0, 9).Draw(t, "word")
		from, to := binary.BigEndian.Uint16(b[at:]), rapid.Uint16().Draw(t, "to")
		binary.BigEndian.PutUint16(b[at:], to)
		if got, want := Update(old, from, to), ^Sum(0, b); !same(got, want) {
			t.Fatalf("updated %#04x, recomputed %#04x", got, want)
		}
	})
}

// transportPacket is a packet with a complete checksum, by gopacket, from its IP header on; at is where the checksum's
// header begins, offset where in it the checksum lies.
func transportPacket(t *rapid.T, v6, tcp bool, payload []byte) (packet []byte, at, offset int) {
	var network gopacket.NetworkLayer
	var first gopacket.SerializableLayer
	proto := layers.IPProtocolUDP
	if tcp {
		proto = layers.IPProtocolTCP
	}
	at = 20
	if v6 {
		at = 40
		ip := &layers.IPv6{Version: 6, NextHeader: proto, HopLimit: 64,
			SrcIP: rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "src"), DstIP: rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "dst")}
		network, first = ip, ip
	} else {
		ip := &layers.IPv4{Version: 4, Protocol: proto, TTL: 64,
			SrcIP: rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "src"), DstIP: rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "dst")}
		network, first = ip, ip
	}
	var transport gopacket.SerializableLayer
	if tcp {
		l := &layers.TCP{SrcPort: 1, DstPort: 2, Seq: rapid.Uint32().Draw(t, "seq"), ACK: true}
		l.SetNetworkLayerForChecksum(network)
		transport, offset = l, 16
	} else {
		l := &layers.UDP{SrcPort: 1, DstPort: layers.UDPPort(rapid.Uint16().Draw(t, "port"))}
		l.SetNetworkLayerForChecksum(network)
		transport, offset = l, 6
	}
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
		first, transport, gopacket.Payload(payload)); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes(), at, offset
}

func TestCompleteAgainstGopacket(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v6, tcp := rapid.Bool().Draw(t, "v6"), rapid.Bool().Draw(t, "tcp")
		payload := rapid.SliceOfN(rapid.Byte(), 0, 400).Draw(t, "payload")
		packet, at, offset := transportPacket(t, v6, tcp, payload)
		want := binary.BigEndian.Uint16(packet[at+offset:])

		// What a guest leaves in the field: the sum of the pseudo header.
		source, destination, proto := packet[12:16], packet[16:20], packet[9]
		if v6 {
			source, destination, proto = packet[8:24], packet[24:40], packet[6]
		}
		binary.BigEndian.PutUint16(packet[at+offset:], SumPseudo(source, destination, proto, uint32(len(packet)-at)))
		head, body := cut(t, packet, at+offset+2)
		if !Complete(head, body, uint16(at), uint16(offset)) {
			t.Fatal("Complete refused a checksum inside the head")
		}
		got := binary.BigEndian.Uint16(head[at+offset:])
		if !same(got, want) || got == 0 {
			t.Fatalf("completed %#04x, gopacket has %#04x", got, want)
		}
	})
}

// TestCompleteNeverZero holds the one value that UDP gives another meaning.
func TestCompleteNeverZero(t *testing.T) {
	b := []byte{0xff, 0xff, 0, 0}
	if !Complete(b, nil, 0, 2) || b[2] != 0xff || b[3] != 0xff {
		t.Errorf("got % x, want the field 0xffff", b)
	}
}

func FuzzComplete(f *testing.F) {
	f.Add([]byte{1, 2, 3, 4, 5}, []byte{6}, uint16(0), uint16(2))
	f.Add([]byte{1, 2, 3, 4}, []byte{}, uint16(3), uint16(0))
	f.Add([]byte{}, []byte{1}, uint16(0xffff), uint16(0xffff))
	f.Add(bytes.Repeat([]byte{0xff}, 64), bytes.Repeat([]byte{0xff}, 65), uint16(34), uint16(6))
	f.Fuzz(func(t *testing.T, head, rest []byte, start, offset uint16) {
		before := head
		head = bytes.Clone(head) // the engine's bytes must stay as they are
		cut := len(rest) / 3
		ok := Complete(head, [][]byte{rest[:cut], rest[cut:]}, start, offset)
		at := int(start) + int(offset)
		if inside := int(start) <= len(head) && at+2 <= len(head); ok != inside {
			t.Fatalf("accepted: %v, inside: %v", ok, inside)
		}
		if !ok {
			if !bytes.Equal(head, before) {
				t.Fatal("refused, but written")
			}
			return
		}
		want := ^naive(append(bytes.Clone(before[start:]), rest...))
		if got := binary.BigEndian.Uint16(head[at:]); !same(got, want) || got == 0 {
			t.Fatalf("%#04x, want %#04x", got, want)
		}
	})
}

var sink uint16

func BenchmarkSum(b *testing.B) {
	for _, n := range []int{20, 64, 256, 1500, 4096, 65536} {
		data := bytes.Repeat([]byte{0x5a, 0xa7, 0x11}, n/3+1)[:n]
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.SetBytes(int64(n))
			for b.Loop() {
				sink = Sum(sink, data)
			}
		})
	}
}

func BenchmarkIPv4ChecksumValid(b *testing.B) {
	h := IPv4(make([]byte, 20))
	h.Set(IPv4Fields{TotalLen: 100, TTL: 64, Protocol: ProtoUDP})
	for b.Loop() {
		if !h.ChecksumValid() {
			b.Fatal("not valid")
		}
	}
}

func TestChecksumsAllocateNothing(t *testing.T) {
	head, body := make([]byte, 256), [][]byte{make([]byte, 1001), make([]byte, 3)}
	if n := testing.AllocsPerRun(100, func() {
		Complete(head, body, 34, 6)
		sink = Update(SumPseudo(head[:4], head[4:8], 17, 1000), 1, 2)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
