package dataplane_test

import (
	"bytes"
	"encoding/binary"
	"runtime/debug"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/shm"
)

var (
	dropTapA = dataplane.NewReason("test-tap-a", "of a test")
	dropTapB = dataplane.NewReason("test-tap-b", "of a test")
)

func tapPool(t testing.TB) *frame.Pool {
	t.Helper()
	m, err := frame.NewMemory(make([]byte, 64*frame.ChunkSize))
	if err != nil {
		t.Fatal(err)
	}
	p, err := m.NewPool(0, 64)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// tapFrame has a private head and a borrowed body of the same bytes.
func tapFrame(p *frame.Pool, head, body int, fill byte) *frame.Frame {
	f := p.Get()
	for i := range f.Append(head) {
		f.Head()[i] = fill
	}
	if body > 0 {
		b := bytes.Repeat([]byte{fill}, body)
		f.Borrow([][]byte{b[:body/2], b[body/2:]}, body)
	}
	return f
}

// What a capture's reader gets is what was shown, in order, and what there was no room for is counted.
func TestCaptureIsAQueue(t *testing.T) {
	pool := tapPool(t)
	rapid.Check(t, func(t *rapid.T) {
		snaplen := rapid.SampledFrom([]int{0, 14, 60, 1500}).Draw(t, "snaplen")
		c := dataplane.NewCapture(dataplane.CaptureOptions{Workers: 1, Snaplen: snaplen, Room: 4096})
		p := c.Point(dataplane.PointOptions{ID: 7, In: true})
		tap := dataplane.NewTap(p)
		type shown struct {
			length int
			fill   byte
		}
		var want []shown
		var seen, fill byte
		read := func(t *rapid.T) {
			var r dataplane.Record
			missed := p.Missed()
			if !c.Read(&r) {
				if len(want) > int(missed) {
					t.Fatalf("%d of %d records came out, %d are missed", 0, len(want), missed)
				}
				return
			}
			for len(want) > 0 && want[0].fill != r.Data[0] {
				want = want[1:] // missed; that there are not too many is told by the counters
			}
			if len(want) == 0 {
				t.Fatalf("a record of %#x was never shown", r.Data[0])
			}
			kept := want[0].length
			if snaplen > 0 {
				kept = min(kept, snaplen)
			}
			if r.Point != 7 || r.Length != want[0].length || !bytes.Equal(r.Data, bytes.Repeat([]byte{want[0].fill}, kept)) {
				t.Fatalf("record of %d bytes, %d kept, want %d and %d", r.Length, len(r.Data), want[0].length, kept)
			}
			want = want[1:]
		}
		t.Repeat(map[string]func(*rapid.T){
			"show": func(t *rapid.T) {
				fill++
				head, body := rapid.IntRange(1, 300).Draw(t, "head"), rapid.SampledFrom([]int{0, 0, 1, 700, 30000}).Draw(t, "body")
				f := tapFrame(pool, head, body, fill)
				tap.Frames(0, dataplane.In, []*frame.Frame{nil, f})
				pool.Put(f)
				want = append(want, shown{head + body, fill})
				if seen++; byte(p.Seen()) != seen {
					t.Fatalf("%d seen, want %d", p.Seen(), seen)
				}
			},
			"read": read,
			"": func(t *rapid.T) {
				if p.Missed() > p.Seen() {
					t.Fatalf("%d of %d missed", p.Missed(), p.Seen())
				}
			},
		})
	})
}

// Several workers write while one reader reads: every frame is in one record, whole, or counted as missed.
func TestCaptureOfManyWorkers(t *testing.T) {
	const workers, each = 3, 20000
	c := dataplane.NewCapture(dataplane.CaptureOptions{Workers: workers, Room: 1 << 16})
	p := c.Point(dataplane.PointOptions{In: true, Out: true})
	tap := dataplane.NewTap(p)
	var done sync.WaitGroup
	for w := range workers {
		pool := tapPool(t)
		done.Go(func() {
			for i := range each {
				f := pool.Get()
				b := f.Append(16 + i%200)
				for j := range b {
					b[j] = byte(i)
				}
				binary.LittleEndian.PutUint32(b, uint32(w))
				binary.LittleEndian.PutUint32(b[4:], uint32(i))
				tap.Frames(w, dataplane.Direction(i%2), []*frame.Frame{f})
				pool.Put(f)
			}
		})
	}
	ended := make(chan struct{})
	go func() { done.Wait(); close(ended) }()
	var next [workers]uint32
	records, last := uint64(0), false
	for {
		var r dataplane.Record
		if !c.Read(&r) {
			if last {
				break
			}
			select {
			case <-ended:
				last = true // once more, for what came since
			default:
				time.Sleep(50 * time.Microsecond)
			}
			continue
		}
		records++
		w, i := binary.LittleEndian.Uint32(r.Data), binary.LittleEndian.Uint32(r.Data[4:])
		if w >= workers || i < next[w] || i >= each {
			t.Fatalf("frame %d of worker %d, after %v", i, w, next)
		}
		next[w] = i + 1
		if r.Length != 16+int(i)%200 || r.Direction != dataplane.Direction(i%2) || !bytes.Equal(r.Data[8:], bytes.Repeat([]byte{byte(i)}, r.Length-8)) {
			t.Fatalf("frame %d of worker %d is damaged", i, w)
		}
	}
	if p.Seen() != workers*each || records+p.Missed() != p.Seen() || records == 0 {
		t.Errorf("%d records and %d missed of %d, want %d", records, p.Missed(), p.Seen(), workers*each)
	}
}

type byLength int

func (l byLength) Match(_ []byte, length int) bool { return length == int(l) }

// Each capture gets what it asked for, of the directions, the reasons and its filter.
func TestTapChooses(t *testing.T) {
	pool := tapPool(t)
	in := dataplane.NewCapture(dataplane.CaptureOptions{Filter: byLength(60)})
	out := dataplane.NewCapture(dataplane.CaptureOptions{Snaplen: 20})
	drops := dataplane.NewCapture(dataplane.CaptureOptions{})
	reasons := [dataplane.MaxReasons]bool{}
	reasons[dropTapB] = true
	tap := dataplane.NewTap(in.Point(dataplane.PointOptions{ID: 1, In: true}), out.Point(dataplane.PointOptions{ID: 2, Out: true}),
		drops.Point(dataplane.PointOptions{ID: 3, Drops: reasons}))
	short, long := tapFrame(pool, 60, 0, 1), tapFrame(pool, 200, 1000, 2)
	begin := time.Now().UnixNano()
	tap.Frames(0, dataplane.In, []*frame.Frame{short, long})
	tap.Frames(0, dataplane.Out, []*frame.Frame{long})
	tap.Dropped(0, short, dropTapA)
	tap.Dropped(0, long, dropTapB)
	owned := tapFrame(pool, 200, 1000, 3)
	if !owned.Own(pool) {
		t.Fatal("no frame free")
	}
	tap.Dropped(0, owned, dropTapB)
	end := time.Now().UnixNano()
	for _, want := range []struct {
		c    *dataplane.Capture
		r    dataplane.Record
		data int
		fill byte
	}{
		{in, dataplane.Record{Point: 1, Direction: dataplane.In, Length: 60}, 60, 1},
		{out, dataplane.Record{Point: 2, Direction: dataplane.Out, Length: 1200}, 20, 2},
		{drops, dataplane.Record{Point: 3, Dropped: true, Reason: dropTapB, Length: 1200}, 200, 2}, // its body is the guest's, and not looked at
		{drops, dataplane.Record{Point: 3, Dropped: true, Reason: dropTapB, Length: 1200}, 1200, 3},
	} {
		var r dataplane.Record
		if !want.c.Read(&r) {
			t.Fatalf("no record like %+v", want.r)
		}
		if r.Time < begin || r.Time > end {
			t.Errorf("taken at %d, between %d and %d", r.Time, begin, end)
		}
		if !bytes.Equal(r.Data, bytes.Repeat([]byte{want.fill}, want.data)) {
			t.Errorf("%d bytes, want %d of %d", len(r.Data), want.data, want.fill)
		}
		if r.Time, r.Data = 0, nil; r.Point != want.r.Point || r.Direction != want.r.Direction || r.Dropped != want.r.Dropped || r.Reason != want.r.Reason || r.Length != want.r.Length {
			t.Errorf("got %+v, want %+v", r, want.r)
		}
	}
	for i, c := range []*dataplane.Capture{in, out, drops} {
		if c.Read(&dataplane.Record{}) {
			t.Errorf("capture %d has more", i)
		}
	}
	if dataplane.NewTap() != nil {
		t.Error("a tap of nothing")
	}
}

// A worker that the capture does not know, and a ring that is full, cost a frame of the capture and nothing else.
func TestCaptureMisses(t *testing.T) {
	pool := tapPool(t)
	c := dataplane.NewCapture(dataplane.CaptureOptions{Workers: 1, Snaplen: 1000, Room: 4096})
	p := c.Point(dataplane.PointOptions{In: true})
	tap := dataplane.NewTap(p)
	f := tapFrame(pool, 1000, 0, 9)
	for range 10 {
		tap.Frames(0, dataplane.In, []*frame.Frame{f})
	}
	if p.Seen() != 10 || p.Missed() != 7 { // three records of 1032 bytes in 4096
		t.Errorf("%d of %d missed", p.Missed(), p.Seen())
	}
	tap.Frames(1, dataplane.In, []*frame.Frame{f})
	tap.Frames(-1, dataplane.In, []*frame.Frame{f})
	if p.Seen() != 12 || p.Missed() != 9 {
		t.Errorf("%d of %d missed", p.Missed(), p.Seen())
	}
	// Once read, there is room again, for ever.
	var r dataplane.Record
	for i := range 100 {
		for c.Read(&r) {
		}
		missed := p.Missed()
		tap.Frames(0, dataplane.In, []*frame.Frame{f, f})
		if p.Missed() != missed {
			t.Fatalf("turn %d: no room in an empty ring", i)
		}
	}
}

// A body that is gone ends Frames with a fault, as any touch of a guest's memory, and the capture goes on as if it had not begun.
func TestCaptureOfMemoryThatWentAway(t *testing.T) {
	fd, err := unix.MemfdCreate("tap-test", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, 8192); err != nil {
		t.Fatal(err)
	}
	m, err := shm.Map(shm.MapOptions{FD: fd, Length: 8192})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := m.Free(); err != nil {
			t.Error(err)
		}
	}()
	pool := tapPool(t)
	c := dataplane.NewCapture(dataplane.CaptureOptions{Room: 4096, Snaplen: 512})
	p := c.Point(dataplane.PointOptions{In: true})
	tap := dataplane.NewTap(p)
	good, bad := tapFrame(pool, 100, 0, 5), tapFrame(pool, 100, 0, 6)
	bad.Borrow([][]byte{m.Bytes()[:1000]}, 1000)
	if err := unix.Ftruncate(fd, 0); err != nil {
		t.Fatal(err)
	}
	show := func(frames ...*frame.Frame) (faulted bool) {
		defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
		defer func() { _, faulted = dataplane.FaultAddress(recover()) }()
		tap.Frames(0, dataplane.In, frames)
		return false
	}
	for range 20 {
		if !show(good, bad) || show(good) {
			t.Fatal("the fault was not where it had to be")
		}
		for range 2 {
			var r dataplane.Record
			if !c.Read(&r) || r.Length != 100 || !bytes.Equal(r.Data, good.Head()) {
				t.Fatalf("record %+v", r)
			}
		}
		if c.Read(&dataplane.Record{}) {
			t.Fatal("a record of the frame that was not copied")
		}
	}
	if p.Seen() != 40 || p.Missed() != 0 {
		t.Errorf("%d seen, %d missed", p.Seen(), p.Missed())
	}
}

func TestTapAllocatesNothing(t *testing.T) {
	pool := tapPool(t)
	c := dataplane.NewCapture(dataplane.CaptureOptions{Filter: byLength(1200)})
	reasons := [dataplane.MaxReasons]bool{}
	reasons[dropTapA] = true
	tap := dataplane.NewTap(c.Point(dataplane.PointOptions{In: true, Drops: reasons}), c.Point(dataplane.PointOptions{In: true}))
	frames := []*frame.Frame{tapFrame(pool, 200, 1000, 1), tapFrame(pool, 60, 0, 1)}
	var r dataplane.Record
	if n := testing.AllocsPerRun(200, func() {
		tap.Frames(0, dataplane.In, frames)
		tap.Dropped(0, frames[0], dropTapA)
		for c.Read(&r) {
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkTap(b *testing.B) {
	pool := tapPool(b)
	c := dataplane.NewCapture(dataplane.CaptureOptions{Workers: 1})
	tap := dataplane.NewTap(c.Point(dataplane.PointOptions{In: true}))
	frames := make([]*frame.Frame, dataplane.Quantum/2)
	for i := range frames {
		frames[i] = tapFrame(pool, 64, 0, byte(i))
	}
	var r dataplane.Record
	for b.Loop() {
		tap.Frames(0, dataplane.In, frames)
		for c.Read(&r) {
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(frames)), "ns/frame")
}
