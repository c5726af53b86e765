package driver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk/driver/drivertest"
	"github.com/shuntio/shunt/dataplane/virtq"
	"github.com/shuntio/shunt/tools/need"
)

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			tb.Fatalf("not within 20 s: %s", what)
		}
	}
}

// daemon starts a qemu-storage-daemon that the test's end kills.
func daemon(tb testing.TB, o drivertest.Options) *drivertest.StorageDaemon {
	tb.Helper()
	need.Program(tb, drivertest.Program)
	if o.Dir == "" {
		o.Dir = tb.TempDir()
	}
	if o.Size == 0 {
		o.Size = 16 << 20
	}
	o.Log = os.Stderr
	s, err := drivertest.Start(o)
	must(tb, err)
	tb.Cleanup(func() { must(tb, s.Kill()) })
	return s
}

func dial(tb testing.TB, path string, o Options) *Disk {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	d, err := Dial(ctx, path, o)
	must(tb, err)
	tb.Cleanup(func() { must(tb, d.Close()) })
	return d
}

// shapes are the rings that qemu-storage-daemon has: split ones.
func shapes() map[string]Options {
	return map[string]Options{
		"plain":     {},
		"event":     {EventIdx: true},
		"indirect":  {Indirect: true},
		"all":       {Indirect: true, EventIdx: true},
		"all of 4":  {Indirect: true, EventIdx: true, Queues: 4},
		"plain of4": {Queues: 4, Size: 64},
	}
}

// TestStorageDaemon does everything there is once on each queue, and looks into the file.
func TestStorageDaemon(t *testing.T) {
	for name, o := range shapes() {
		t.Run(name, func(t *testing.T) {
			s := daemon(t, drivertest.Options{Queues: max(o.Queues, 1)})
			d := dial(t, s.Socket, o)
			c := d.Config()
			if d.Size() != 16<<20 || c.BlkSize != 512 || int(c.NumQueues) != d.Queues() || c.SegMax == 0 || c.MaxDiscardSectors == 0 ||
				c.MaxWriteZeroesSectors == 0 || c.MaxDiscardSeg == 0 {
				t.Errorf("configuration %+v", c)
			}
			for i := range d.Queues() {
				everything(t, d, i, s.File)
			}
		})
	}
}

func everything(t *testing.T, d *Disk, queue int, file string) {
	t.Helper()
	y, err := d.NewSync(queue, 64<<10)
	must(t, err)
	data, back := make([]byte, 256<<10), make([]byte, 256<<10)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	at := int64(queue) << 20
	_, err = y.WriteAt(data, at)
	must(t, err)
	must(t, y.Flush())
	_, err = y.ReadAt(back, at)
	must(t, err)
	if !bytes.Equal(data, back) {
		t.Error("what was read is not what was written")
	}
	must(t, y.WriteZeroes(Range{Sector: uint64(at)/512 + 8, Sectors: 16, Unmap: true}))
	clear(data[4096:][:8192])
	must(t, y.Discard(Range{Sector: uint64(at)/512 + 128, Sectors: 64}))
	_, err = y.ReadAt(back, at)
	must(t, err)
	if !bytes.Equal(data[:64<<10], back[:64<<10]) {
		t.Error("zeroes are not where they were written, or elsewhere")
	}
	f, err := os.Open(file)
	must(t, err)
	defer f.Close()
	_, err = f.ReadAt(data, at)
	must(t, err)
	if !bytes.Equal(data, back) {
		t.Error("the file has something else")
	}
	id, err := y.ID()
	must(t, err)
	if id == "" {
		t.Error("the disk has no serial")
	}
	r := &Request{Op: In, Sector: uint64(d.Config().Capacity), Data: []virtq.Buffer{y.buffer.Segment(0, 512)}}
	must(t, y.Do(r))
	if r.Status != IOErr {
		t.Errorf("a sector beyond the end: %v", r.Status)
	}
	r = &Request{Op: 77, Data: []virtq.Buffer{y.buffer.Segment(0, 512)}}
	must(t, y.Do(r))
	if r.Status != Unsupported {
		t.Errorf("a type that there is not: %v", r.Status)
	}
	r = &Request{Op: In, Sector: 3, HeaderParts: 5, Data: []virtq.Buffer{y.buffer.Segment(0, 512), y.buffer.Segment(1024, 1024)}}
	must(t, y.Do(r))
	if r.Status != OK || r.Written != 512+1024+1 {
		t.Errorf("a header in five parts: %v, %d bytes", r.Status, r.Written)
	}
}

// TestLacks: what the back-end has not is said, and not waited for.
func TestLacks(t *testing.T) {
	s := daemon(t, drivertest.Options{})
	for _, o := range []Options{{Packed: true}, {Queues: 2}, {Inflight: true}} {
		d, err := Dial(t.Context(), s.Socket, o)
		if !errors.Is(err, ErrLacks) {
			t.Errorf("%+v: %v", o, err)
		}
		if err == nil {
			must(t, d.Close())
		}
	}
}

func TestNobodyListens(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Dial(ctx, t.TempDir()+"/none", Options{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

func TestReadOnly(t *testing.T) {
	s := daemon(t, drivertest.Options{ReadOnly: true})
	d := dial(t, s.Socket, Options{})
	if d.Features()&FeatureRO == 0 {
		t.Errorf("features %#x", d.Features())
	}
	y, err := d.NewSync(0, 4096)
	must(t, err)
	if _, err := y.WriteAt(make([]byte, 512), 0); !errors.Is(err, ErrStatus) {
		t.Error(err)
	}
}

// TestWriteback: the driver turns the cache off and on.
func TestWriteback(t *testing.T) {
	s := daemon(t, drivertest.Options{})
	d := dial(t, s.Socket, Options{})
	for _, on := range []bool{false, true} {
		must(t, d.SetWriteback(on))
		if (d.Config().Writeback == 1) != on {
			t.Errorf("writeback %d", d.Config().Writeback)
		}
	}
}

// TestStopStart: rings go on where they stood; a reset begins them anew.
func TestStopStart(t *testing.T) {
	s := daemon(t, drivertest.Options{Queues: 2})
	d := dial(t, s.Socket, Options{Queues: 2, EventIdx: true, Size: 8})
	for i := range 20 {
		for q := range 2 {
			y := Sync{disk: d, queue: d.Queue(q), buffer: Buffer{Bytes: d.memory.bytes[d.memory.tables:][:4096], Addr: buffersGuest}}
			want := fmt.Appendf(nil, "%512d", i)
			_, err := y.WriteAt(want, 0)
			must(t, err)
		}
		must(t, d.Stop())
		if i%3 == 0 {
			must(t, d.Reset())
		} else {
			must(t, d.Start())
		}
	}
}

// TestIdle: a queue that waits sleeps, and is woken once a request.
func TestIdle(t *testing.T) {
	for _, event := range []bool{false, true} {
		s := daemon(t, drivertest.Options{})
		d := dial(t, s.Socket, Options{EventIdx: event})
		q := d.Queue(0)
		early := 0
		for quiet := 0; quiet < 2; quiet++ {
			if q.Wait(20 * time.Millisecond) {
				early, quiet = early+1, -1
			}
			if early > 1 { // one costs nothing, whenever it comes
				t.Fatal("woken for nothing")
			}
		}
		y, err := d.NewSync(0, 4096)
		must(t, err)
		for range 100 {
			must(t, y.Flush())
		}
		if k := q.Stats(); k.Sleeps > 250 || k.Kicks > 100 || k.Submitted != 100 || k.Completed != 100 {
			t.Errorf("%+v", k)
		}
	}
}

// TestKilled: requests under way when the back-end is killed are answered by the next one, each once.
func TestKilled(t *testing.T) {
	for name, o := range shapes() {
		t.Run(name, func(t *testing.T) {
			s := daemon(t, drivertest.Options{Queues: max(o.Queues, 1)})
			o.Reconnect = true
			d := dial(t, s.Socket, o)
			b, err := d.Alloc(4096)
			must(t, err)
			for round := range 3 {
				must(t, s.Kill())
				requests := make([]Request, 16)
				for i := range requests {
					requests[i] = Request{Op: In, Sector: uint64(i), Data: []virtq.Buffer{b.Segment(0, 512)}}
					must(t, d.Queue(i%d.Queues()).Submit(&requests[i]))
					d.Queue(i % d.Queues()).Kick()
				}
				must(t, s.Restart())
				eventually(t, "reconnected", func() bool { return d.Reconnects() == uint64(round+1) })
				done := make([]*Request, 16)
				for q := range d.Queues() {
					for d.Queue(q).Under() > 0 {
						if !d.Queue(q).Wait(10 * time.Second) {
							t.Fatal(d.Queue(q).Stuck())
						}
						_, err := d.Queue(q).Poll(done)
						must(t, err)
					}
				}
			}
		})
	}
}

// TestGone: without Reconnect the end is told to who waits.
func TestGone(t *testing.T) {
	s := daemon(t, drivertest.Options{})
	d := dial(t, s.Socket, Options{})
	failed := make(chan error)
	go func() {
		q := d.Queue(0)
		for {
			q.Wait(-1)
			if _, err := q.Poll(nil); err != nil {
				failed <- err
				return
			}
		}
	}()
	must(t, s.Kill())
	if err := <-failed; !errors.Is(err, ErrGone) {
		t.Error(err)
	}
	if err := d.Stop(); !errors.Is(err, ErrGone) {
		t.Error(err)
	}
	impatient := daemon(t, drivertest.Options{})
	d = dial(t, impatient.Socket, Options{Reconnect: true, Patience: 50 * time.Millisecond})
	must(t, impatient.Kill())
	eventually(t, "patience ends", func() bool { return d.Queue(0).Submit(&Request{Op: Flush}) != nil })
}

// TestNothingAllocated on the way of a request.
func TestNothingAllocated(t *testing.T) {
	for name, o := range shapes() {
		t.Run(name, func(t *testing.T) {
			s := daemon(t, drivertest.Options{Queues: max(o.Queues, 1)})
			o.Clock = true
			d := dial(t, s.Socket, o)
			b, err := d.Alloc(8192)
			must(t, err)
			q, done := d.Queue(0), make([]*Request, 8)
			requests := make([]Request, 8)
			for i := range requests {
				requests[i] = Request{Op: In, Data: []virtq.Buffer{b.Segment(0, 512), b.Segment(4096, 512)}, HeaderParts: 1 + i%3}
			}
			runtime.GC()
			n := testing.AllocsPerRun(50, func() {
				for i := range requests {
					if err := q.Submit(&requests[i]); err != nil {
						t.Fatal(err)
					}
				}
				for q.Under() > 0 {
					q.Wait(time.Second)
					if _, err := q.Poll(done); err != nil {
						t.Fatal(err)
					}
				}
			})
			if n != 0 {
				t.Errorf("%v allocations a round", n)
			}
		})
	}
}
