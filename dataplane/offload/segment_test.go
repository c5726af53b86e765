package offload

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/gopacket/gopacket/layers"
	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"pgregory.net/rapid"
)

// cut is all segments of a frame, which must be one that can be cut.
func cut(t fataler, s *Segmenter, f *frame.Frame, pool *frame.Pool) (segments []*frame.Frame) {
	if why, ok := s.Start(f); !ok {
		t.Fatal(why)
	}
	for {
		g, ok := s.Next(pool)
		if !ok {
			break
		}
		segments = append(segments, g)
	}
	if s.Left() != 0 {
		t.Fatal(s.Left(), "segments not made")
	}
	return segments
}

// Every segment is the packet that its sender would have made of that part of the payload.
func TestSegments(t *testing.T) {
	pool := newPool(t, 600)
	var s Segmenter
	rapid.Check(t, func(t *rapid.T) {
		p := usual(rapid.Bool().Draw(t, "IPv6"), rapid.IntRange(0, 65000).Draw(t, "payload"))
		p.tags, p.df = rapid.IntRange(0, 2).Draw(t, "tags"), rapid.Bool().Draw(t, "df")
		p.tos, p.id, p.seq = rapid.Byte().Draw(t, "tos"), rapid.Uint16().Draw(t, "id"), rapid.Uint32().Draw(t, "seq")
		p.flags = 0x10 | rapid.Byte().Draw(t, "flags")&0xe9 // FIN, PSH, URG, ECE, CWR
		p.options = p.options[:4*rapid.IntRange(0, 3).Draw(t, "options")]
		for i := range p.options {
			p.options[i] = 1
		}
		if !p.is6 && rapid.Bool().Draw(t, "IP options") {
			p.ipOpts = []layers.IPv4Option{{OptionType: 7, OptionLength: 8, OptionData: make([]byte, 6)}}
		}
		if p.flags&0x20 != 0 {
			p.urgent = uint16(rapid.IntRange(1, 65000).Draw(t, "urgent"))
		}
		size := rapid.IntRange(max(MinSize, (len(p.payload)+MaxSegments-1)/MaxSegments), 9000).Draw(t, "size")
		f := p.large(t, pool, size, rapid.IntRange(p.headers(), 300).Draw(t, "head"), rapid.IntRange(1, 70000).Draw(t, "piece"))
		f.Hash = 7
		if longest, why, ok := Check(f); !ok || longest != p.headers()+min(size, len(p.payload)) {
			t.Fatal(longest, why, ok)
		}
		segments := cut(t, &s, f, pool)
		at := 0
		for i, g := range segments {
			n := min(size, len(p.payload)-at)
			q := p
			q.payload, q.seq, q.id = p.payload[at:at+n], p.seq+uint32(at), p.id+uint16(i)
			if i < len(segments)-1 {
				q.flags &^= 0x09
			}
			if i > 0 {
				q.flags &^= 0x80
			}
			if q.urgent = 0; int(p.urgent) > at {
				q.urgent = p.urgent - uint16(at)
			} else {
				q.flags &^= 0x20
			}
			if !same(whole(g), q.packet(t), q.transport()) {
				t.Fatalf("segment %d at %d:\n% x\nwant\n% x", i, at, whole(g)[:p.headers()], q.packet(t)[:p.headers()])
			}
			intact(t, whole(g))
			if g.Hash != 7 || !g.Checksum.Valid || g.Checksum.Needed || g.GSO.Type != 0 {
				t.Fatalf("segment %d: %+v", i, g)
			}
			at += n
		}
		if at != len(p.payload) {
			t.Fatalf("%d bytes of %d", at, len(p.payload))
		}
		pool.PutAll(segments)
		if pool.Put(f); pool.Len() != 600 {
			t.Fatalf("%d frames of 600", pool.Len())
		}
	})
}

// same compares packets; a TCP checksum of zero has two notations.
func same(a, b []byte, transport int) bool {
	x, y := bytes.Clone(a), bytes.Clone(b)
	for _, p := range [][]byte{x, y} {
		if binary.BigEndian.Uint16(p[transport+16:]) == 0xffff {
			binary.BigEndian.PutUint16(p[transport+16:], 0)
		}
	}
	return bytes.Equal(x, y)
}

func TestRefused(t *testing.T) {
	pool := newPool(t, 4)
	for _, c := range []struct {
		name  string
		want  dataplane.Reason
		spoil func(f *frame.Frame)
	}{
		{"size 0", DropBadGSO, func(f *frame.Frame) { f.GSO.Size = 0 }},
		{"size 1", DropBadGSO, func(f *frame.Frame) { f.GSO.Size = 1 }},
		{"size 8", DropTooManySegments, func(f *frame.Frame) { f.GSO.Size = 8 }},
		{"no type", DropBadGSO, func(f *frame.Frame) { f.GSO.Type = frame.GSONone }},
		{"IPv6's type", DropBadGSO, func(f *frame.Frame) { f.GSO.Type = frame.GSOTCP6 }},
		{"unknown type", DropBadGSO, func(f *frame.Frame) { f.GSO.Type = 77 }},
		{"checksum complete", DropBadGSO, func(f *frame.Frame) { f.Checksum.Needed = false }},
		{"checksum starts elsewhere", DropBadGSO, func(f *frame.Frame) { f.Checksum.Start-- }},
		{"checksum is elsewhere", DropBadGSO, func(f *frame.Frame) { f.Checksum.Offset = 6 }},
		{"UDP", DropBadGSO, func(f *frame.Frame) { f.Head()[23] = 17 }},
		{"fragment", DropBadGSO, func(f *frame.Frame) { f.Head()[20] = 0x20 }},
		{"later fragment", DropBadGSO, func(f *frame.Frame) { f.Head()[21] = 1 }},
		{"IP version", DropBadGSO, func(f *frame.Frame) { f.Head()[14] = 0x65 }},
		{"IP header shorter than one", DropBadGSO, func(f *frame.Frame) { f.Head()[14] = 0x44 }},
		{"IP options where TCP is", DropBadGSO, func(f *frame.Frame) { f.Head()[14] = 0x4f }},
		{"TCP header shorter than one", DropBadGSO, func(f *frame.Frame) { f.Head()[46] = 0x40 }},
		{"SYN", DropBadGSO, func(f *frame.Frame) { f.Head()[47] = 2 }},
		{"RST", DropBadGSO, func(f *frame.Frame) { f.Head()[47] = 4 }},
		{"ARP", DropBadGSO, func(f *frame.Frame) { f.Head()[13] = 6 }},
	} {
		f := usual(false, 8000).large(t, pool, 1000, 200, 3000)
		c.spoil(f)
		var s Segmenter
		if why, ok := s.Start(f); ok || why != c.want {
			t.Errorf("%s: %v %v", c.name, why, ok)
		}
		if g, ok := s.Next(pool); ok || s.Left() != 0 {
			t.Errorf("%s: refused, and cut: %v", c.name, g)
		}
		pool.Put(f)
	}
	for n, want := range map[int]bool{14 + 20 + 20 + 12: true, 14 + 20 + 20 + 11: false, 14 + 20 + 19: false, 14 + 20: false, 14 + 19: false, 13: false, 0: false} {
		f := usual(false, 8000).large(t, pool, 1000, n, 3000)
		if _, _, ok := Check(f); ok != want {
			t.Errorf("private head of %d bytes: %v", n, ok)
		}
		pool.Put(f)
	}
	// Headers that lie in the head, but are too long all the same.
	b := usual(true, 1000).packet(t)
	extended := append(bytes.Clone(b[:54]), make([]byte, 240)...)
	extended[20], extended[54], extended[55] = 60, 6, 29
	f := pool.Get()
	fill(f, append(extended, b[54:]...), 1500, 0)
	f.GSO, f.Checksum = frame.GSO{Type: frame.GSOTCP6, Size: 500}, frame.Checksum{Needed: true, Start: 294, Offset: 16}
	if _, why, ok := Check(f); ok || why != DropBadGSO {
		t.Errorf("headers of 326 bytes: %v %v", why, ok)
	}
	pool.Put(f)
}

// Without frames there is an end; what has been made is right, and what is not is counted.
func TestPoolRunsOut(t *testing.T) {
	for _, size := range []int{1000, 9000} { // in one chunk, and in three
		pool := newPool(t, 6)
		var s Segmenter
		f := usual(true, 50000).large(t, pool, size, 256, 5000)
		if _, ok := s.Start(f); !ok {
			t.Fatal("refused")
		}
		total := s.Left()
		var made []*frame.Frame
		for g, ok := s.Next(pool); ok; g, ok = s.Next(pool) {
			intact(t, whole(g))
			made = append(made, g)
		}
		if len(made) == 0 || s.Left() != total-len(made) {
			t.Errorf("%d made, %d left of %d", len(made), s.Left(), total)
		}
		if _, n := s.Cut(); int(n) != len(made) {
			t.Errorf("%d counted, %d made", n, len(made))
		}
		if s.Start(made[0]); s.Left() != 0 {
			t.Error("a frame that is refused leaves the one before it half cut")
		}
		pool.PutAll(made)
		if pool.Put(f); pool.Len() != 6 {
			t.Errorf("%d frames of 6 are back", pool.Len())
		}
	}
}

// The payload is copied once, and what a guest does to it afterwards is no matter.
func TestSegmentsArePrivate(t *testing.T) {
	pool := newPool(t, 8)
	f := usual(false, 3000).large(t, pool, 1500, 100, 1000)
	var s Segmenter
	segments := cut(t, &s, f, pool)
	for _, piece := range f.Body() {
		clear(piece)
	}
	for _, g := range segments {
		intact(t, whole(g))
		if g.Borrowed() {
			t.Error("borrowed")
		}
	}
}

func TestSegmenterAllocatesNothing(t *testing.T) {
	pool := newPool(t, 64)
	small, long := usual(false, 60000).large(t, pool, 1448, 256, 20000), usual(true, 60000).large(t, pool, 9000, 256, 20000)
	var s Segmenter
	for _, f := range []*frame.Frame{small, long} {
		if n := testing.AllocsPerRun(100, func() {
			s.Start(f)
			for g, ok := s.Next(pool); ok; g, ok = s.Next(pool) {
				pool.Put(g)
			}
		}); n != 0 {
			t.Errorf("%v allocations", n)
		}
	}
}

func BenchmarkSegment(b *testing.B) {
	for _, payload := range []int{2896, 14480, 64000} {
		b.Run(fmt.Sprint(payload), func(b *testing.B) {
			pool := newPool(b, 64)
			f := usual(false, payload).large(b, pool, 1448, 256, payload)
			var s Segmenter
			b.SetBytes(int64(payload))
			segments := 0
			for b.Loop() {
				s.Start(f)
				for g, ok := s.Next(pool); ok; g, ok = s.Next(pool) {
					pool.Put(g)
					segments++
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(segments), "ns/segment")
		})
	}
}
