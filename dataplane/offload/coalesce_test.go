package offload

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/gopacket/gopacket/layers"
	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/wire"
	"pgregory.net/rapid"
)

// all is a port that takes everything.
const all = dataplane.OffloadChecksum | dataplane.OffloadTSO4 | dataplane.OffloadTSO6 | dataplane.OffloadECN

// received is a frame as it came from the wire, whole in its chunk.
func received(t fataler, pool *frame.Pool, b []byte) *frame.Frame {
	f := pool.Get()
	fill(f, b, len(b), 0)
	return f
}

// expand cuts what was merged, so that it can be compared with what there was before.
func expand(t fataler, pool *frame.Pool, vector []*frame.Frame) (packets [][]byte) {
	var s Segmenter
	for _, f := range vector {
		if f.GSO.Type == frame.GSONone {
			packets = append(packets, whole(f))
			continue
		}
		for _, g := range cut(t, &s, f, pool) {
			packets = append(packets, whole(g))
			pool.Put(g)
		}
	}
	return packets
}

// What was cut is merged to what it was, in one frame as far as that has room for the pieces.
func TestRoundTrip(t *testing.T) {
	pool := newPool(t, 600)
	var s Segmenter
	var c Coalescer
	rapid.Check(t, func(t *rapid.T) {
		p := usual(rapid.Bool().Draw(t, "IPv6"), rapid.IntRange(2, 40000).Draw(t, "payload"))
		p.tags, p.df, p.id = rapid.IntRange(0, 2).Draw(t, "tags"), rapid.Bool().Draw(t, "df"), rapid.Uint16().Draw(t, "id")
		p.tos, p.seq = rapid.Byte().Draw(t, "tos"), rapid.Uint32().Draw(t, "seq")
		p.flags = 0x10 | rapid.Byte().Draw(t, "flags")&0x48
		segments := rapid.IntRange(2, 33).Draw(t, "segments")
		size := (len(p.payload) + segments - 1) / segments
		if size < MinSize || len(p.payload) <= size {
			t.Skip()
		}
		f := p.large(t, pool, size, 256, 5000)
		vector := cut(t, &s, f, pool)
		for _, g := range vector {
			g.Checksum.Valid = rapid.Bool().Draw(t, "valid")
		}
		n := len(vector)
		if left := c.Merge(vector, pool, all); left != 1 {
			t.Fatalf("%d frames of %d are left", left, n)
		}
		for _, g := range vector[1:] {
			if g != nil {
				t.Fatal("a slot behind is not empty")
			}
		}
		g := vector[0]
		want := p.packet(t)
		binary.BigEndian.PutUint16(want[p.transport()+16:], binary.BigEndian.Uint16(f.Head()[p.transport()+16:]))
		if !same(whole(g), want, p.transport()) {
			t.Fatalf("% x\nwant\n% x", whole(g)[:p.headers()], want[:p.headers()])
		}
		if g.GSO != f.GSO || g.Checksum != f.Checksum {
			t.Fatalf("%+v %+v, want %+v %+v", g.GSO, g.Checksum, f.GSO, f.Checksum)
		}
		pool.Put(f)
		if pool.Put(g); pool.Len() != 600 {
			t.Fatalf("%d frames of 600", pool.Len())
		}
	})
}

// changes are what keeps a segment from being merged with the one before it. at is where TCP begins.
var changes = []struct {
	name   string
	change func(p *spec)
	bytes  func(b []byte, p *spec)
}{
	{name: "a gap", change: func(p *spec) { p.seq++ }},
	{name: "an overlap", change: func(p *spec) { p.seq-- }},
	{name: "acknowledgment", change: func(p *spec) { p.ack++ }},
	{name: "window", change: func(p *spec) { p.window++ }},
	{name: "FIN", change: func(p *spec) { p.flags |= wire.TCPFin }},
	{name: "SYN", change: func(p *spec) { p.flags |= wire.TCPSyn }},
	{name: "RST", change: func(p *spec) { p.flags |= wire.TCPRst }},
	{name: "URG", change: func(p *spec) { p.flags |= wire.TCPUrg; p.urgent = 5 }},
	{name: "an urgent pointer", change: func(p *spec) { p.urgent = 5 }},
	{name: "ECE", change: func(p *spec) { p.flags |= wire.TCPEce }},
	{name: "CWR", change: func(p *spec) { p.flags |= wire.TCPCwr }},
	{name: "no ACK", change: func(p *spec) { p.flags &^= wire.TCPAck }},
	{name: "a reserved bit", bytes: func(b []byte, p *spec) { b[p.transport()+12] |= 1; fixTCP(b, p) }},
	{name: "timestamp", change: func(p *spec) { p.options = bytes.Clone(p.options); p.options[7]++ }},
	{name: "fewer options", change: func(p *spec) { p.options = nil }},
	{name: "nothing in it", change: func(p *spec) { p.payload = nil }},
	{name: "more in it", change: func(p *spec) { p.payload = counting(len(p.payload) + 1) }},
	{name: "DSCP", change: func(p *spec) { p.tos ^= 0x20 }},
	{name: "congestion experienced", change: func(p *spec) { p.tos |= 3 }},
	{name: "TTL", change: func(p *spec) { p.ttl-- }},
	{name: "a tag", change: func(p *spec) { p.tags++ }},
	{name: "don't fragment", change: func(p *spec) { p.df = !p.df }},
	{name: "source MAC", bytes: func(b []byte, _ *spec) { b[6] ^= 4 }},
	{name: "a wrong checksum", bytes: func(b []byte, p *spec) { b[p.transport()+16]++ }},
	{name: "a spoilt byte", bytes: func(b []byte, _ *spec) { b[len(b)-1]++ }},
	{name: "a wrong IP checksum", bytes: func(b []byte, p *spec) { b[p.network()+10] ^= byte(boolInt(!p.is6)) }},
	{name: "padding", bytes: func(b []byte, p *spec) { // the packet ends before the frame does
		b[p.network()+3+boolInt(p.is6)*2]--
		if !p.is6 {
			wire.IPv4(b[p.network():]).SetChecksum()
		}
	}},
	{name: "IP version", bytes: func(b []byte, p *spec) { b[p.network()] ^= 0x70 }},
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// fixTCP makes the checksum right after a change of the byte with the data offset.
func fixTCP(b []byte, p *spec) {
	at := p.transport()
	sum := uint32(^binary.BigEndian.Uint16(b[at+16:])) + 0x100
	binary.BigEndian.PutUint16(b[at+16:], ^uint16(sum+sum>>16))
}

// A segment that says anything else than the one before it stays, as it was and in its place; those around it are merged.
func TestNotMerged(t *testing.T) {
	for _, is6 := range []bool{false, true} {
		for _, c := range changes {
			pool := newPool(t, 16)
			var vector []*frame.Frame
			var before [][]byte
			for i := range 6 {
				p := usual(is6, 1000)
				p.seq, p.id = p.seq+uint32(1000*i), p.id+uint16(i)
				if i == 2 && c.change != nil {
					c.change(&p)
				}
				b := p.packet(t)
				if i == 2 && c.bytes != nil {
					c.bytes(b, &p)
				}
				before = append(before, b)
				vector = append(vector, received(t, pool, b))
			}
			odd := vector[2]
			var co Coalescer
			left := co.Merge(vector, pool, all)
			merged := 0
			for _, f := range vector[:left] {
				if f.GSO.Type != frame.GSONone {
					merged++
				}
			}
			if only4 := c.name == "don't fragment" || c.name == "a wrong IP checksum"; !only4 || !is6 {
				if odd.GSO.Type != frame.GSONone || odd.Len() != len(before[2]) || odd.Owns() {
					t.Errorf("IPv6 %v, %s: merged", is6, c.name)
				}
				if merged == 0 || left > 5 {
					t.Errorf("IPv6 %v, %s: its neighbours are not merged: %d frames, %d merged", is6, c.name, left, merged)
				}
			}
			after := expand(t, pool, vector[:left])
			apart := c.name == "source MAC" || c.name == "a tag" || c.name == "IP version" // another flow, that may be overtaken
			for i := range before {
				if !apart && (len(after) != 6 || !bytes.Equal(after[i], before[i])) {
					t.Errorf("IPv6 %v, %s: segment %d changed, or is not in its place", is6, c.name, i)
				}
			}
			pool.PutAll(vector)
			if pool.Len() != 16 {
				t.Errorf("%s: %d frames of 16", c.name, pool.Len())
			}
		}
	}
}

func TestNotTaken(t *testing.T) {
	for _, is6 := range []bool{false, true} {
		for _, takes := range []uint32{0, dataplane.OffloadChecksum, dataplane.OffloadTSO4 | dataplane.OffloadTSO6, dataplane.OffloadChecksum | dataplane.OffloadTSO4, dataplane.OffloadChecksum | dataplane.OffloadTSO6} {
			pool := newPool(t, 4)
			p := usual(is6, 500)
			first := p.packet(t)
			p.seq += 500
			p.id++
			vector := []*frame.Frame{received(t, pool, first), received(t, pool, p.packet(t))}
			want := 2
			if takes == dataplane.OffloadChecksum|dataplane.OffloadTSO4 && !is6 || takes == dataplane.OffloadChecksum|dataplane.OffloadTSO6 && is6 {
				want = 1
			}
			var c Coalescer
			if n := c.Merge(vector, pool, takes); n != want {
				t.Errorf("IPv6 %v, takes %#x: %d frames are left, want %d", is6, takes, n, want)
			}
		}
	}
}

// IPv4's identification counts only where the packet may be fragmented.
func TestIdentification(t *testing.T) {
	for _, c := range []struct {
		df   bool
		step uint16
		want int
	}{{true, 1, 1}, {true, 0, 1}, {true, 77, 1}, {false, 1, 1}, {false, 0, 4}, {false, 2, 4}} {
		pool := newPool(t, 8)
		var vector []*frame.Frame
		for i := range 4 {
			p := usual(false, 300)
			p.df, p.id, p.seq = c.df, p.id+uint16(i)*c.step, p.seq+uint32(300*i)
			vector = append(vector, received(t, pool, p.packet(t)))
		}
		var co Coalescer
		if n := co.Merge(vector, pool, all); n != c.want {
			t.Errorf("%+v: %d frames", c, n)
		}
	}
}

// What ends a flow: a short segment, PSH, an IP packet's longest, the pieces a body may have.
func TestEnds(t *testing.T) {
	for _, c := range []struct {
		name    string
		lengths []int
		push    int
		want    []int // segments in each frame
	}{
		{"equal", []int{1000, 1000, 1000}, -1, []int{3}},
		{"short last", []int{1000, 1000, 999, 1000, 1000}, -1, []int{3, 2}},
		{"PSH", []int{1000, 1000, 1000, 1000}, 1, []int{2, 2}},
		{"PSH first", []int{1000, 1000, 1000, 1000}, 0, []int{1, 3}},
		{"short first", []int{999, 1000, 1000}, -1, []int{1, 2}},
		{"too small", []int{7, 7, 7}, -1, []int{1, 1, 1}},
		{"small, copied", []int{100, 100, 100, 50}, -1, []int{4}},
		{"longest", []int{3000, 3000, 3000, 3000, 3000, 3000, 3000, 3000, 3000, 3000, 3000, 3000, 3000, 3000, 3000, 3000, 3000, 3000, 3000, 3000, 3000, 3000, 3000}, -1, []int{21, 2}},
	} {
		pool := newPool(t, 64)
		var vector []*frame.Frame
		p := usual(false, 0)
		for i, n := range c.lengths {
			p.payload, p.flags = counting(n), 0x10
			if i == c.push {
				p.flags |= wire.TCPPsh
			}
			vector = append(vector, received(t, pool, p.packet(t)))
			p.seq += uint32(n)
			p.id++
		}
		var co Coalescer
		n := co.Merge(vector, pool, all)
		var got []int
		for _, f := range vector[:n] {
			segments := 1
			if f.GSO.Type != frame.GSONone {
				segments = (f.Len() - p.headers() + int(f.GSO.Size) - 1) / int(f.GSO.Size)
			}
			got = append(got, segments)
		}
		if fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// Flows that come mixed are merged each; more of them than there is room for lose nothing. Frames of one flow keep their order, whatever comes between.
func TestFlowsMixed(t *testing.T) {
	pool := newPool(t, 256)
	var c Coalescer
	rapid.Check(t, func(t *rapid.T) {
		flows := make([]spec, rapid.IntRange(1, 12).Draw(t, "flows"))
		for i := range flows {
			flows[i] = usual(i%2 == 1, 0)
			flows[i].flow = i
		}
		var vector []*frame.Frame
		before := map[string][][]byte{}
		for range rapid.IntRange(2, 64).Draw(t, "frames") {
			p := &flows[rapid.IntRange(0, len(flows)-1).Draw(t, "flow")]
			p.payload, p.flags = counting(rapid.SampledFrom([]int{0, 20, 100, 1400, 1400, 1400, 1400}).Draw(t, "length")), 0x10
			if rapid.IntRange(0, 9).Draw(t, "push") == 0 {
				p.flags |= wire.TCPPsh
			}
			q := *p
			if !p.is6 && rapid.IntRange(0, 19).Draw(t, "IP options") == 0 {
				q.ipOpts = []layers.IPv4Option{{OptionType: 7, OptionLength: 8, OptionData: make([]byte, 6)}}
			}
			b := q.packet(t)
			switch rapid.IntRange(0, 19).Draw(t, "kind") {
			case 0: // a fragment: no flow
				if !p.is6 {
					b[p.network()+6] |= 0x20
					wire.IPv4(b[p.network():]).SetChecksum()
				}
			case 1:
				b = b[:rapid.IntRange(14, len(b)).Draw(t, "cut off")]
			}
			p.seq += uint32(len(p.payload))
			p.id++
			f := pool.Get()
			fill(f, b, rapid.SampledFrom([]int{len(b), 200}).Draw(t, "private"), 700)
			vector = append(vector, f)
			before[flowOf(b)] = append(before[flowOf(b)], b)
		}
		n := c.Merge(vector, pool, all)
		after := map[string][][]byte{}
		for _, b := range expand(t, pool, vector[:n]) {
			after[flowOf(b)] = append(after[flowOf(b)], b)
		}
		for flow, want := range before {
			got := after[flow]
			if len(got) != len(want) {
				t.Fatalf("flow %x: %d packets, were %d", flow, len(got), len(want))
			}
			for i := range want {
				if !bytes.Equal(got[i], want[i]) {
					t.Fatalf("flow %x, packet %d:\n% x\nwas\n% x", flow, i, got[i], want[i])
				}
			}
		}
		pool.PutAll(vector)
		if pool.Len() != 256 {
			t.Fatalf("%d frames of 256", pool.Len())
		}
	})
	if merged, absorbed := c.Counts(); merged == 0 || absorbed <= merged {
		t.Errorf("%d merged, %d absorbed: the test showed little", merged, absorbed)
	}
}

// flowOf is what a packet without options has where the addresses and the ports are, which is all tests need.
func flowOf(b []byte) string {
	switch {
	case len(b) >= 38 && b[12] == 8:
		at := 14 + int(b[14]&15)*4
		return string(b[26:34]) + string(b[min(at, len(b)):min(at+4, len(b))])
	case len(b) >= 58 && b[12] == 0x86:
		return string(b[22:58])
	}
	return ""
}

// A segment whose checksum is to be filled in never left this machine, unless what is to be filled in is another's.
func TestOpenChecksums(t *testing.T) {
	for _, c := range []struct {
		open frame.Checksum
		want int
	}{
		{frame.Checksum{Needed: true, Start: 34, Offset: 16}, 1},
		{frame.Checksum{Needed: true, Start: 34, Offset: 6}, 3},
		{frame.Checksum{Needed: true, Start: 30, Offset: 16}, 3},
		{frame.Checksum{}, 3},
	} {
		pool := newPool(t, 4)
		var vector []*frame.Frame
		for i := range 3 {
			p := usual(false, 500)
			p.seq, p.id = p.seq+uint32(500*i), p.id+uint16(i)
			b := p.packet(t)
			b[50]++
			f := received(t, pool, b)
			f.Checksum = c.open
			vector = append(vector, f)
		}
		var co Coalescer
		if n := co.Merge(vector, pool, all); n != c.want {
			t.Errorf("%+v: %d frames, want %d", c.open, n, c.want)
		}
	}
}

func TestCoalescerAllocatesNothing(t *testing.T) {
	pool := newPool(t, 70)
	packets := bulk(t, 32)
	vector := make([]*frame.Frame, 64)
	var c Coalescer
	if n := testing.AllocsPerRun(100, func() {
		for i := range vector {
			vector[i] = pool.Get()
			copy(vector[i].Append(len(packets[i])), packets[i])
		}
		if c.Merge(vector, pool, all) != 2 {
			t.Fatal("not merged")
		}
		pool.PutAll(vector)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// bulk is a vector of two flows, run frames of one, then of the other.
func bulk(t fataler, run int) (packets [][]byte) {
	flows := []spec{usual(false, 1448), usual(true, 1428)}
	flows[1].flow = 1
	for i := range 64 {
		p := &flows[i/run%2]
		packets = append(packets, p.packet(t))
		p.seq += uint32(len(p.payload))
		p.id++
	}
	return packets
}

func BenchmarkMerge(b *testing.B) {
	for _, run := range []int{1, 32} {
		for _, valid := range []bool{true, false} {
			b.Run(fmt.Sprintf("runs of %d, verified %v", run, valid), func(b *testing.B) {
				pool := newPool(b, 70)
				packets := bulk(b, run)
				frames := make([]*frame.Frame, 64)
				for i := range frames {
					frames[i] = received(b, pool, packets[i])
				}
				saved := [2][]byte{bytes.Clone(packets[0][:66]), bytes.Clone(packets[run][:86])}
				var c Coalescer
				vector := make([]*frame.Frame, 64)
				for b.Loop() {
					// The same frames again: put back and taken out, which a worker does, too.
					for i := range vector {
						vector[i] = frames[i]
						vector[i].Checksum.Valid = valid
					}
					if c.Merge(vector, pool, all) != 2 {
						b.Fatal("not merged")
					}
					pool.PutAll(vector)
					for range frames {
						pool.Get()
					}
					for i, f := range frames {
						f.Append(len(packets[i]))
					}
					copy(frames[0].Head(), saved[0])
					copy(frames[run].Head(), saved[1])
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/64, "ns/segment")
			})
		}
	}
}
