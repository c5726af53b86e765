package offload

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gopacket/gopacket/layers"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/wire"
)

// request is what a guest asks for, as the fuzzer makes it: the head, how much follows it, and the virtio-net header's fields.
type request struct {
	head          []byte
	body          uint16
	kind          uint8
	ecn           bool
	size          uint16
	start, offset uint16
}

// seeds are requests that are granted, and some that are not.
func seeds(t fataler) map[string]request {
	of := func(p spec, private int) request {
		r := request{head: p.packet(t), kind: 1, size: 1448, start: uint16(p.transport()), offset: 16}
		if p.is6 {
			r.kind = 2
		}
		r.body = uint16(len(r.head) - private)
		r.head = r.head[:private]
		return r
	}
	large4, large6 := usual(false, 9000), usual(true, 9000)
	tagged, optioned, urgent := large6, large4, large4
	tagged.tags = 2
	optioned.ipOpts = []layers.IPv4Option{{OptionType: 7, OptionLength: 8, OptionData: make([]byte, 6)}}
	urgent.flags, urgent.urgent = 0xb9, 3000
	all := map[string]request{
		"ipv4": of(large4, 256), "ipv6": of(large6, 256), "tags": of(tagged, 200), "ip-options": of(optioned, 256), "flags": of(urgent, 256),
		"nothing-but-headers": of(large4, large4.headers()), "one-segment": of(usual(false, 1000), 256), "no-payload": of(usual(true, 0), 86),
	}
	change := func(name, of string, by func(r *request)) {
		r := all[of]
		r.head = bytes.Clone(r.head)
		by(&r)
		all[name] = r
	}
	change("size-0", "ipv4", func(r *request) { r.size = 0 })
	change("size-8", "ipv4", func(r *request) { r.size, r.body = 8, 4000 })
	change("jumbo", "ipv6", func(r *request) { r.size, r.body = 8900, 65000 })
	change("longest", "ipv4", func(r *request) { r.size, r.body = 65535, 65535 })
	change("wrong-type", "ipv4", func(r *request) { r.kind = 2 })
	change("wrong-start", "ipv4", func(r *request) { r.start = 14 })
	change("cut-in-tcp", "ipv4", func(r *request) { r.head = r.head[:50] })
	change("data-offset", "ipv4", func(r *request) { r.head[46] = 0xf0 })
	change("extension", "ipv6", func(r *request) {
		h := append(append(bytes.Clone(r.head[:54]), 6, 0, 0, 0, 0, 0, 0, 0), r.head[54:]...)
		h[20] = wire.ProtoDestOptions
		r.head, r.start = h[:256], 62
	})
	change("fragment", "ipv6", func(r *request) {
		h := append(append(bytes.Clone(r.head[:54]), 6, 0, 0, 1, 0, 0, 0, 0), r.head[54:]...)
		h[20] = wire.ProtoFragment
		r.head, r.start = h[:256], 62
	})
	return all
}

// FuzzSegment holds that no request makes the Segmenter panic or lose a frame; and that what it makes of those it grants are
// no more segments than allowed, of the size asked for, whole in length and checksum, in order, with all of the payload and nothing else.
func FuzzSegment(f *testing.F) {
	for _, r := range seeds(f) {
		f.Add(r.head, r.body, r.kind, r.ecn, r.size, r.start, r.offset)
	}
	pool := newPool(f, MaxSegments+2)
	rest := counting(1 << 16)
	var s Segmenter
	f.Fuzz(func(t *testing.T, head []byte, body uint16, kind uint8, ecn bool, size, start, offset uint16) {
		fr := pool.Get()
		defer func() {
			if pool.Put(fr); pool.Len() != MaxSegments+2 {
				t.Fatalf("%d frames of %d", pool.Len(), MaxSegments+2)
			}
		}()
		head = head[:min(len(head), frame.HeadLen)]
		copy(fr.Append(len(head)), head)
		if body > 0 {
			half := body / 3
			fr.Borrow([][]byte{rest[:half], rest[half:body]}, int(body))
		}
		fr.GSO = frame.GSO{Type: frame.GSOType(kind), ECN: ecn, Size: size}
		fr.Checksum = frame.Checksum{Needed: true, Start: start, Offset: offset}
		longest, why, ok := Check(fr)
		if why2, ok2 := s.Start(fr); ok2 != ok || why2 != why {
			t.Fatalf("judged %v, then %v", why, why2)
		}
		if !ok {
			if s.Left() != 0 {
				t.Fatal("refused, and something is left")
			}
			return
		}
		tcp := int(start)
		headers := tcp + int(head[tcp+12]>>4)*4
		payload := append(bytes.Clone(head[headers:]), rest[:body]...)
		want := max(1, (len(payload)+int(size)-1)/int(size))
		if s.Left() != want || want > MaxSegments || longest != headers+min(int(size), len(payload)) {
			t.Fatalf("%d segments, want %d; longest %d", s.Left(), want, longest)
		}
		// The sum of the pseudo header is the sender's affair: how far its field is off, all its segments are.
		l := wire.Locate(head)
		off := offBy(head, l, len(payload)+headers)
		var all []byte
		for i := range want {
			g, ok := s.Next(pool)
			if !ok {
				t.Fatalf("segment %d of %d is missing", i, want)
			}
			b := whole(g)
			pool.Put(g)
			if len(b) > longest || binary.BigEndian.Uint32(b[tcp+4:]) != binary.BigEndian.Uint32(head[tcp+4:])+uint32(len(all)) {
				t.Fatalf("segment %d has %d bytes, and sequence number %d", i, len(b), binary.BigEndian.Uint32(b[tcp+4:]))
			}
			if ip := b[l.Network:]; kind == 1 && (!wire.IPv4(ip).ChecksumValid() || int(wire.IPv4(ip).TotalLen()) != len(ip)) ||
				kind == 2 && int(wire.IPv6(ip).PayloadLen()) != len(ip)-wire.IPv6Len {
				t.Fatalf("segment %d: IP header % x of %d bytes", i, ip[:wire.IPv4MinLen], len(ip))
			}
			if sum := naive(b[tcp:], uint64(6+len(b)-tcp)+addresses(b, l)); (sum+off)%0xffff != 0 {
				t.Fatalf("segment %d: checksum off by %#04x", i, sum%0xffff)
			}
			all = append(all, b[headers:]...)
		}
		if _, ok := s.Next(pool); ok || !bytes.Equal(all, payload) {
			t.Fatalf("%d bytes of payload, were %d", len(all), len(payload))
		}
	})
}

// addresses is the sum of the pseudo header's.
func addresses(b []byte, l wire.Layers) uint64 {
	if l.EtherType == wire.EtherTypeIPv6 {
		return naive(b[l.Network+8:l.Network+40], 0)
	}
	return naive(b[l.Network+12:l.Network+20], 0)
}

// offBy is what the sum that the sender left is more than that of the pseudo header.
func offBy(head []byte, l wire.Layers, length int) uint64 {
	n := length - int(l.Transport)
	right := (addresses(head, l) + 6 + uint64(n>>16) + uint64(n&0xffff)) % 0xffff
	return uint64(binary.BigEndian.Uint16(head[l.Transport+16:])) + 0xffff - right
}

// FuzzMerge holds that no vector makes the Coalescer panic or lose a frame, and that cut again it is what it was, flow by flow.
func FuzzMerge(f *testing.F) {
	for _, b := range vectors(f) {
		f.Add(b, uint16(all))
	}
	pool := newPool(f, 160)
	var c Coalescer
	f.Fuzz(func(t *testing.T, b []byte, takes uint16) {
		var vector []*frame.Frame
		before := map[string][][]byte{}
		for len(vector) < 64 && len(b) >= 2 {
			n := min(int(binary.BigEndian.Uint16(b))%2048, len(b)-2)
			packet := b[2 : 2+n]
			b = b[2+n:]
			vector = append(vector, received(t, pool, packet))
			before[station(packet)] = append(before[station(packet)], packet)
		}
		n := c.Merge(vector, pool, uint32(takes))
		after := map[string][][]byte{}
		for _, p := range expand(t, pool, vector[:n]) {
			after[station(p)] = append(after[station(p)], p)
		}
		for flow, want := range before {
			got := after[flow]
			if len(got) != len(want) {
				t.Fatalf("%d packets, were %d", len(got), len(want))
			}
			for i := range want {
				if !alike(got[i], want[i]) {
					t.Fatalf("packet %d:\n% x\nwas\n% x", i, got[i], want[i])
				}
			}
		}
		pool.PutAll(vector)
		if pool.Len() != 160 {
			t.Fatalf("%d frames of 160", pool.Len())
		}
	})
}

// station tells packets apart that may overtake each other: by their MAC addresses, their tags, and their ports if they have any.
func station(b []byte) string {
	l := wire.Locate(b)
	if int(l.Transport)+4 > len(b) || l.Transport == 0 || l.Fragment {
		return "?" + string(b)
	}
	return string(b[:l.Network]) + string(b[l.Transport:l.Transport+4])
}

// alike compares packets, but for the identification of those not to be fragmented, the notations of zero in checksums, and urgent pointers that
// nobody looks at.
func alike(a, b []byte) bool {
	if len(a) != len(b) {
		return false
	}
	x, y := bytes.Clone(a), bytes.Clone(b)
	l := wire.Locate(a)
	if l.EtherType == wire.EtherTypeIPv4 && l.Protocol == wire.ProtoTCP && l.Transport != 0 && !l.Broken && a[l.Network+6]&0x40 != 0 {
		for _, p := range [][]byte{x, y} {
			copy(p[l.Network+4:], []byte{0, 0})
			copy(p[l.Network+10:], []byte{0, 0})
		}
	}
	if l.Protocol == wire.ProtoTCP && l.Transport != 0 && len(a) >= int(l.Transport)+20 {
		for _, p := range [][]byte{x, y} {
			if at := p[l.Transport+16:]; at[0] == 0xff && at[1] == 0xff {
				at[0], at[1] = 0, 0
			}
		}
	}
	return bytes.Equal(x, y)
}

// vectors are what FuzzMerge begins with: frames, each behind its length in two bytes.
func vectors(t fataler) map[string][]byte {
	all := map[string][]byte{}
	for _, is6 := range []bool{false, true} {
		for _, tags := range []int{0, 1} {
			var b []byte
			for i := range 4 {
				p := usual(is6, 100+60*(1-i/3))
				p.tags, p.seq, p.id = tags, p.seq+uint32(160*i), p.id+uint16(i)
				q := p.packet(t)
				b = append(binary.BigEndian.AppendUint16(b, uint16(len(q))), q...)
			}
			all[fmt.Sprintf("ipv%d-tags-%d", 4+2*boolInt(is6), tags)] = b
		}
	}
	var b []byte
	for i := range 6 {
		p := usual(i%2 == 1, 40)
		p.seq, p.flags = p.seq+uint32(i/2*40), 0x10|uint8(i/4*8)
		q := p.packet(t)
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(q))), q...)
	}
	all["mixed"] = b
	return all
}

// TestCorpus holds that what is checked in is what seeds and vectors make; SHUNT_WRITE_CORPUS=1 writes it.
func TestCorpus(t *testing.T) {
	for name, r := range seeds(t) {
		checkIn(t, "FuzzSegment", name, fmt.Sprintf("[]byte(%s)\nuint16(%d)\nbyte('\\x%02x')\nbool(%v)\nuint16(%d)\nuint16(%d)\nuint16(%d)\n",
			quote(r.head), r.body, r.kind, r.ecn, r.size, r.start, r.offset))
	}
	for name, b := range vectors(t) {
		checkIn(t, "FuzzMerge", name, fmt.Sprintf("[]byte(%s)\nuint16(%d)\n", quote(b), all))
	}
}

func checkIn(t *testing.T, target, name, values string) {
	t.Helper()
	path, text := filepath.Join("testdata", "fuzz", target, name), "go test fuzz v1\n"+values
	if os.Getenv("SHUNT_WRITE_CORPUS") != "" {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if is, err := os.ReadFile(path); err != nil || string(is) != text {
		t.Errorf("%s is not what the test makes (%v): write it with SHUNT_WRITE_CORPUS=1", path, err)
	}
}

// quote writes bytes as a Go string literal, each as it is.
func quote(b []byte) string {
	var s strings.Builder
	for _, c := range b {
		fmt.Fprintf(&s, `\x%02x`, c)
	}
	return `"` + s.String() + `"`
}
