package file

import (
	"bytes"
	"os"
	"testing"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/blk/file/filetest"
	"github.com/shuntio/shunt/dataplane/uring"
	"golang.org/x/sys/unix"
)

// needsWriter opens a lane that has one.
func needsWriter(t *testing.T) (u *user, l *lane, path string, content []byte) {
	t.Helper()
	path, content = makeFile(t, t.TempDir(), 1<<20)
	s := openStore(t, path, Options{})
	s.shape.waits = true // also where the file system can do without
	u = newBed(t, uring.Options{}).open(s)
	return u, u.lane.(*lane), path, content
}

// Which writes are done as one: those that go on where the one before ends, in the same way, and have not been taken back.
func TestNeighbours(t *testing.T) {
	vector := func(n int) *uring.Vector {
		v, err := uring.NewVector(1)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = v.Close() })
		v.Add(memory(t, n))
		return v
	}
	type ask struct {
		offset int64
		length int
		flags  int32
		taken  bool
	}
	page := func(n int64) ask { return ask{offset: n << 12, length: 4096} }
	for name, c := range map[string]struct {
		asked []ask
		want  []uint32 // how many at once, 0: passed over
	}{
		"one":         {[]ask{page(7)}, []uint32{1}},
		"neighbours":  {[]ask{page(1), page(2), {3 << 12, 8192, 0, false}, page(5)}, []uint32{4}},
		"a gap":       {[]ask{page(1), page(3), page(4)}, []uint32{1, 2}},
		"backwards":   {[]ask{page(2), page(1)}, []uint32{1, 1}},
		"the same":    {[]ask{page(1), page(1)}, []uint32{1, 1}},
		"flags":       {[]ask{page(1), {2 << 12, 4096, unix.RWF_DSYNC, false}, {3 << 12, 4096, unix.RWF_DSYNC, false}}, []uint32{1, 2}},
		"taken first": {[]ask{{1 << 12, 4096, 0, true}, page(2), page(3)}, []uint32{0, 2}},
		"taken":       {[]ask{page(1), page(2), {3 << 12, 4096, 0, true}, page(4)}, []uint32{2, 0, 1}},
		"too much":    {[]ask{{0, 1 << 20, 0, false}, {1 << 20, 4096, 0, false}}, []uint32{1, 1}},
	} {
		w := &writer{tasks: make([]task, len(c.asked))}
		w.asked.slots, w.written.slots = make([]uint32, 8), make([]uint32, 8)
		var err error
		if w.joined, err = uring.NewVector(8); err != nil {
			t.Fatal(err)
		}
		for i, a := range c.asked {
			if w.ask(i, vector(a.length), a.offset, a.flags); a.taken && !w.takeBack(i) {
				t.Errorf("%s: %d was not taken back", name, i)
			}
		}
		for _, want := range c.want {
			before := w.begun
			n, joined := w.claim()
			if n != want || joined && n < 2 {
				t.Errorf("%s: %d at once, joined %v, want %d", name, n, joined, want)
			}
			bytes := 0
			for i := range n {
				bytes += w.tasks[w.asked.at(before+i)].vector.Len()
			}
			if joined && w.joined.Len() != bytes {
				t.Errorf("%s: joined %d of %d bytes", name, w.joined.Len(), bytes)
			}
			for range n {
				w.pass(0)
			}
		}
		if w.begun != uint32(len(c.asked)) {
			t.Errorf("%s: %d of %d were passed", name, w.begun, len(c.asked))
		}
		_ = w.joined.Close()
	}
}

// Of writes that are done as one, one has memory that is gone: it fails, and those before and behind it are done.
func TestNeighbourFails(t *testing.T) {
	u, _, path, content := needsWriter(t)
	m := memory(t, 5*4096)
	random(m, 3)
	gone, err := unix.Mmap(-1, 0, 4096, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(gone)
	var all []*request
	for i := range 5 {
		b := m[i*4096:][:4096]
		if i == 2 {
			b = gone
		} else {
			copy(content[i*4096:], b)
		}
		all = append(all, newRequest(blk.OpWrite, uint64(i)*4096, 4096, b))
		u.submit(all[i])
	}
	u.until("all of them", func() bool {
		for _, q := range all {
			if q.done == 0 {
				return false
			}
		}
		return true
	})
	for i, q := range all {
		if want := map[bool]blk.Outcome{true: blk.Failed, false: blk.OK}[i == 2]; q.outcome != want || q.done != 1 {
			t.Errorf("write %d: outcome %d, done %d times", i, q.outcome, q.done)
		}
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, content) {
		t.Errorf("other bytes in the file, %v", err)
	}
}

// A write that the thread has not begun comes back at once, and is not done.
func TestTakenBack(t *testing.T) {
	u, l, path, content := needsWriter(t)
	m := memory(t, 4096)
	q := newRequest(blk.OpWrite, 8192, 4096, m)
	u.until("rest", l.writer.resting.Load)
	u.submit(q)
	u.lane.Withdraw(&q.Request)
	if q.done != 1 || q.outcome != blk.Withdrawn {
		t.Errorf("done %d times, outcome %d", q.done, q.outcome)
	}
	u.until("its slot", func() bool { return len(l.free) == len(l.slots) })
	if got, err := os.ReadFile(path); q.done != 1 || err != nil || !bytes.Equal(got, content) {
		t.Errorf("done %d times; other bytes in the file, or %v", q.done, err)
	}
	u.io(blk.OpWrite, 8192, m)
}

// While the thread waits for a file system, io-wq is not nudged, which has nothing to do with it.
func TestWriterWaits(t *testing.T) {
	fs := filetest.Mount(t)
	s := openStore(t, fs.Disk(0), Options{})
	s.shape.waits = true
	u := newBed(t, uring.Options{}).open(s)
	l, h := u.lane.(*lane), hang(fs, "write")
	u.worker.Round()
	before := u.ring.Stats().Operations.Load()
	q := newRequest(blk.OpWrite, 0, 4096, memory(t, 4096))
	u.submit(q)
	u.lane.Flush()
	u.until("somebody looks, twice", func() bool { return l.wait > leastWait+leastWait/4 })
	if n := u.ring.Stats().Operations.Load() - before; n != 0 || q.done != 0 {
		t.Errorf("%d operations; done %d times", n, q.done)
	}
	if !h.goOn() {
		t.Error("all that took until the file system went on")
	}
	u.until("it is written", func() bool { return q.done == 1 })
}
