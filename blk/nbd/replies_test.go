package nbd

import (
	"bytes"
	"maps"
	"math/rand/v2"
	"runtime/debug"
	"testing"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/blk/blktest"
)

// TestCover compares what a part knows of its answer with a bitmap.
func TestCover(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	for range 3000 {
		p := &part{length: 64}
		var have [64]bool
		for range 40 {
			from := r.Uint32N(64)
			to := from + 1 + r.Uint32N(min(64-from, 12))
			overlaps := false
			for _, b := range have[from:to] {
				overlaps = overlaps || b
			}
			err := p.cover(from, to)
			if (err != nil) != overlaps {
				t.Fatalf("%d..%d: %v; there is %v", from, to, err, have)
			}
			if err != nil {
				continue
			}
			all := true
			for i := range have {
				have[i] = have[i] || uint32(i) >= from && uint32(i) < to
				all = all && have[i]
			}
			if p.covered() != all {
				t.Fatalf("%v is said to be all: %v", have, p.covered())
			}
			n := 0
			for i := range have {
				if have[i] && (i == 0 || !have[i-1]) {
					n++
				}
			}
			if n != p.extents {
				t.Fatalf("%d extents for %v", p.extents, have)
			}
		}
	}
}

// pieces of a receive, as a vector that the test fills.
type receives [][]byte

func (s *receives) Add(b []byte) bool {
	if len(*s) == 5 { // few, so that this is reached, too
		return false
	}
	if len(b) > 0 {
		*s = append(*s, b)
	}
	return true
}

// fuzzed is a table with some requests on their way, and the memory that they are for.
type fuzzed struct {
	table
	fresh   table // nothing is on its way yet
	replies replies
	memory  []byte
	ended   map[uint64]blk.Outcome // by offset
	tb      testing.TB
}

func (f *fuzzed) Done(r *blk.Request, o blk.Outcome) {
	at := r.Offset + uint64(r.Op)
	if _, twice := f.ended[at]; twice {
		f.tb.Fatal("a request ends twice")
	}
	f.ended[at] = o
}

// The memory: 16 areas of 4 KiB and some gaps between them that nothing is for.
func newFuzzed(tb testing.TB, structured bool) *fuzzed {
	f := &fuzzed{memory: make([]byte, len(untouched)), ended: map[uint64]blk.Outcome{}}
	f.replies = replies{table: &f.table, inbox: make([]byte, inboxSize)}
	f.fresh.open()
	f.renew(tb, structured)
	return f
}

// renew begins anew, in the same memory: it is large.
func (f *fuzzed) renew(tb testing.TB, structured bool) {
	f.tb = tb
	clear(f.ended)
	copy(f.memory, untouched)
	f.table = f.fresh
	f.replies.begin(structured)
	for _, a := range []struct {
		op      blk.Op
		at, len int
		orphan  bool
	}{{blk.OpRead, 4096, 4096, false}, {blk.OpRead, 16384, 17000, false}, {blk.OpWrite, 0, 4096, false}, {blk.OpFlush, 0, 0, false}, {blk.OpRead, 40960, 512, true}} {
		r := &blk.Request{Op: a.op, Offset: uint64(a.at), Length: uint64(a.len), Handler: f}
		for b := f.memory[a.at:][:a.len]; len(b) > 0 && a.op == blk.OpRead; b = b[min(len(b), 3000):] {
			r.Buffers = append(r.Buffers, b[:min(len(b), 3000)])
		}
		k := f.take(r)
		k.command, k.share = [...]uint16{blk.OpRead: cmdRead, blk.OpWrite: cmdWrite, blk.OpFlush: cmdFlush}[a.op], share
		k.next = k.end()
		p := f.issue(k, k.command, 0, r.Offset, uint32(r.Length), 0)
		f.out.pop()
		p.waiting = false
		if a.orphan {
			f.abandon(k)
			f.finish(k, blk.Withdrawn)
		}
	}
}

// untouched is what the memory is full of, and guards are where it stays so.
var (
	untouched = bytes.Repeat([]byte{blktest.Canary}, 64<<10)
	guards    = [...][2]int{{0, 4096}, {8192, 16384}, {16384 + 17000, 64 << 10}}
)

// TestLongHole: a few bytes say that megabytes are zero. Those are written a part at a time, so that others on the worker have their turn; nothing behind them is taken before, and a
// request that is taken back meanwhile is not written to.
func TestLongHole(t *testing.T) {
	const length = 4 << 20
	for _, withdrawn := range []bool{false, true} {
		f := &fuzzed{memory: bytes.Repeat([]byte{blktest.Canary}, length), ended: map[uint64]blk.Outcome{}, tb: t}
		f.replies = replies{table: &f.table, inbox: make([]byte, inboxSize)}
		f.table.open()
		f.replies.begin(true)
		r := &blk.Request{Op: blk.OpRead, Length: length, Handler: f, Buffers: [][]byte{f.memory[:length/3], f.memory[length/3:]}}
		k := f.take(r)
		k.command, k.share, k.next = cmdRead, share, length
		p := f.issue(k, cmdRead, 0, 0, length, 0)
		f.out.pop()
		p.waiting = false
		g := got{cookie: p.cookie}
		var err error
		say := func(stream []byte) {
			for len(stream) > 0 && err == nil {
				var v receives
				f.replies.aim(&v)
				n := copy(v[0], stream)
				stream, err = stream[n:], f.replies.arrived(n)
			}
		}
		say(holeChunk(g, 0, 0, length))
		goes := 1
		for ; err == nil && f.replies.gap > 0; err, goes = f.replies.parse(), goes+1 {
			for _, b := range f.memory[goes*mostZeroed:] {
				if b != blktest.Canary {
					t.Fatalf("go %d has written more than %d bytes", goes, mostZeroed)
				}
			}
			if withdrawn && goes == 3 {
				f.abandon(k)
				f.finish(k, blk.Withdrawn)
			}
		}
		say(none(g))
		want, zeroed := blk.OK, length
		if withdrawn {
			want, zeroed = blk.Withdrawn, 3*mostZeroed
		}
		if o, ended := f.ended[0]; err != nil || !ended || o != want {
			t.Errorf("after %d goes: %v, ended %v as %v", goes, err, ended, o)
		}
		if !bytes.Equal(f.memory[:zeroed], make([]byte, zeroed)) || withdrawn && f.memory[zeroed] != blktest.Canary {
			t.Errorf("withdrawn %v: what is zero is not the first %d bytes", withdrawn, zeroed)
		}
	}
}

// A stream is written in short, or whoever mutates and shortens it would see little but payload: escape, two bytes of a count, and what comes so many times.
const escape = 0xe5

// unfold is the stream as a server says it; as much of it as all requests could take, and some more.
func unfold(short []byte) (stream []byte) {
	for len(short) > 0 && len(stream) < 1<<17 {
		if short[0] != escape || len(short) < 4 {
			stream, short = append(stream, short[0]), short[1:]
			continue
		}
		for range int(short[1])<<8 | int(short[2]) {
			stream = append(stream, short[3])
		}
		short = short[4:]
	}
	return stream
}

// fold is the short way to write it.
func fold(stream []byte) (short []byte) {
	for len(stream) > 0 {
		n := 1
		for n < min(len(stream), 1<<16-1) && stream[n] == stream[0] {
			n++
		}
		if n > 4 || stream[0] == escape {
			short = append(short, escape, byte(n>>8), byte(n), stream[0])
		} else {
			short = append(short, stream[:n]...)
		}
		stream = stream[n:]
	}
	return short
}

func TestFold(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 1000 {
		var stream []byte
		for range r.IntN(20) {
			stream = append(stream, bytes.Repeat([]byte{byte(r.IntN(2)) * escape}, r.IntN(1<<r.IntN(13)))...)
		}
		if got := unfold(fold(stream)); !bytes.Equal(got, stream) {
			t.Fatalf("%x comes back as %x", stream, got)
		}
	}
}

// FuzzReplies lets a server say anything, cut anywhere. Nothing is written outside of what is read, nothing twice, and what ended well was answered whole.
func FuzzReplies(f *testing.F) {
	first := func(slot int) got { return got{cookie: uint64(slot+1)<<16 | uint64(slot)} }
	data := make([]byte, 17000)
	f.Add(true, byte(0), fold(dataChunk(first(0), chunkDone, 4096, data[:4096])))
	f.Add(true, byte(9), fold(append(holeChunk(first(0), 0, 4096, 96), dataChunk(first(0), chunkDone, 4192, data[:4000])...)))
	f.Add(true, byte(77), fold(append(dataChunk(first(1), 0, 16384, data), append(none(first(1)), simpleReply(first(2), 0)...)...)))
	f.Add(true, byte(200), fold(append(dataChunk(first(4), 0, 40960, data[:512]), append(errorChunk(first(4), chunkDone, 5, "no"), errorChunk(first(3), chunkDone, 95, "")...)...)))
	f.Add(false, byte(3), fold(append(simpleReply(first(1), 0, data...), simpleReply(first(0), 5)...)))
	f.Add(false, byte(100), fold(append(simpleReply(first(4), 0, data[:512]...), simpleReply(first(3), 0)...)))
	f.Add(true, byte(1), fold(errorChunk(first(2), chunkDone, errnoShutdown, "bye")))
	whole, cut := newFuzzed(f, true), newFuzzed(f, true)
	f.Fuzz(func(t *testing.T, structured bool, seed byte, short []byte) {
		defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
		stream := unfold(short)
		r := rand.New(rand.NewPCG(uint64(seed), 1))
		whole.renew(t, structured)
		cut.renew(t, structured)
		whole.feed(stream, func() int { return len(stream) })
		cut.feed(stream, func() int { return 1 + r.IntN(1<<r.IntN(15)) })
		if !bytes.Equal(whole.memory, cut.memory) {
			t.Error("memory depends on how the stream is cut")
		}
		if !maps.Equal(whole.ended, cut.ended) {
			t.Errorf("cut in pieces it ends as %v, else as %v", cut.ended, whole.ended)
		}
	})
}

// feed gives it the stream, as much at once as there is room for and cut says, and looks at what became of it.
func (f *fuzzed) feed(stream []byte, cut func() int) {
	for len(stream) > 0 && f.inflight > 0 {
		var v receives
		f.replies.aim(&v)
		room := 0
		for _, b := range v {
			room += len(b)
		}
		if room == 0 {
			f.tb.Fatal("there is no room for what comes")
		}
		n := min(len(stream), room, cut())
		left := stream[:n]
		for _, b := range v {
			left = left[copy(b, left):]
		}
		stream = stream[n:]
		if f.replies.arrived(n) != nil {
			break
		}
	}
	for _, g := range guards {
		if !bytes.Equal(f.memory[g[0]:g[1]], untouched[g[0]:g[1]]) {
			f.tb.Fatalf("something in %d..%d was written to", g[0], g[1])
		}
	}
	used := 0
	for i := range f.parts {
		if f.parts[i].used {
			used++
		}
	}
	if used != f.inflight || f.freeParts.n != maxParts-used || used+len(f.ended) < 5 || len(f.ended) > 5 {
		f.tb.Fatalf("%d parts are used, %d on their way, %d free; %d requests ended", used, f.inflight, f.freeParts.n, len(f.ended))
	}
}

// FuzzHandshake lets a server say anything before the transmission phase.
func FuzzHandshake(f *testing.F) {
	fine := append(hello(flagFixedNewstyle|flagNoZeroes), optReply(optStructuredReply, repAck)...)
	fine = append(fine, optReply(optGo, repInfo, exportInfo(1<<20, mockFlags)...)...)
	f.Add(false, append(fine, optReply(optGo, repAck)...))
	f.Add(false, append(fine, optReply(optGo, repErrUnknown, []byte("no")...)...))
	old := append(hello(flagFixedNewstyle|flagNoZeroes), optReply(optStructuredReply, repErrUnsup)...)
	f.Add(false, append(append(old, optReply(optGo, repErrUnsup)...), append(be64(1<<20), 0, 1)...))
	f.Add(true, append(append(hello(flagFixedNewstyle), optReply(optList, repServer, append(be32(3), "abcd"...)...)...), optReply(optList, repAck)...))
	f.Fuzz(func(t *testing.T, list bool, said []byte) {
		c := &saying{rest: said}
		s, err := greet(t.Context(), c, nil)
		if err != nil {
			return
		}
		if list {
			exports, err := s.list()
			if err == nil && len(exports) > maxReplies {
				t.Errorf("%d exports", len(exports))
			}
			return
		}
		e, err := s.enter(optGo, "x")
		if err != nil {
			return
		}
		if e.minimum < sector || e.minimum > maxMinimum || e.maximum == 0 || e.maximum%e.minimum != 0 || e.size > 1<<63-1 || e.preferred < e.minimum {
			t.Errorf("it is taken as %+v", e)
		}
	})
}
