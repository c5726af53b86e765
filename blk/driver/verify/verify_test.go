package verify

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk/driver"
	"github.com/shuntio/shunt/blk/driver/drivertest"
	"github.com/shuntio/shunt/tools/need"
)

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// options of a load that a slow machine can bear.
func options(o Options) Options {
	o.MaxBytes, o.Depth, o.Fresh, o.Stall = 256<<10, 8, true, 30*time.Second
	return o
}

func load(tb testing.TB, path string, d driver.Options, o Options) *Load {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	d.Memory = Memory(max(d.Queues, 1), o)
	disk, err := driver.Dial(ctx, path, d)
	must(tb, err)
	tb.Cleanup(func() { must(tb, disk.Close()) })
	o.Disk = disk
	l, err := New(o)
	must(tb, err)
	return l
}

const diskBytes = 4 << 20

// bed is a Backend that can be killed and replaced.
type bed struct {
	tb      testing.TB
	o       drivertest.BackendOptions
	backend *drivertest.Backend
}

func newBed(tb testing.TB, queues int, f drivertest.Faults) *bed {
	b := &bed{tb: tb, o: drivertest.BackendOptions{Path: filepath.Join(tb.TempDir(), "blk.sock"), Content: drivertest.NewContent(diskBytes),
		Queues: queues, Faults: f}}
	b.serve()
	tb.Cleanup(b.kill)
	return b
}

func (b *bed) serve() {
	var err error
	b.backend, err = drivertest.Serve(b.o)
	must(b.tb, err)
}

func (b *bed) kill() {
	must(b.tb, b.backend.Kill())
	if err := b.backend.Err(); err != nil {
		b.tb.Error(err)
	}
}

// shapes of rings and loads.
func shapes() map[string]driver.Options {
	all := map[string]driver.Options{
		"split":         {},
		"split all":     {Indirect: true, EventIdx: true, Clock: true},
		"split queues":  {EventIdx: true, Queues: 3, Size: 64},
		"packed":        {Packed: true},
		"packed all":    {Packed: true, Indirect: true, EventIdx: true},
		"packed queues": {Packed: true, Queues: 3, Size: 64},
	}
	if testing.Short() { // those in which most happens at once
		for _, name := range []string{"split", "packed", "packed all"} {
			delete(all, name)
		}
	}
	return all
}

// TestHonest: a device without faults passes, whatever the ring and the load are.
func TestHonest(t *testing.T) {
	for name, d := range shapes() {
		for _, overlap := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " overlap=", overlap), func(t *testing.T) {
				b := newBed(t, max(d.Queues, 1), drivertest.Faults{})
				l := load(t, b.o.Path, d, options(Options{Overlap: overlap}))
				for range 2 {
					r, err := l.Run(t.Context(), 400)
					must(t, err)
					if r.Requests() != 400 {
						t.Errorf("%d requests", r.Requests())
					}
				}
				must(t, l.Check(t.Context()))
				must(t, l.CheckFile(b.o.Content))
			})
		}
	}
}

// TestFaults: each is found.
func TestFaults(t *testing.T) {
	for name, c := range map[string]struct {
		f    drivertest.Faults
		want error
	}{
		"dropped write":    {drivertest.Faults{DropWrite: 20}, ErrData},
		"torn write":       {drivertest.Faults{TearWrite: 20}, ErrData},
		"misplaced write":  {drivertest.Faults{MisplaceWrite: 20}, ErrData},
		"stale read":       {drivertest.Faults{StaleRead: 10}, ErrData},
		"answered twice":   {drivertest.Faults{AnswerTwice: 20}, driver.ErrLedger},
		"without a status": {drivertest.Faults{NoStatus: 20}, driver.ErrLedger},
		"never answered":   {drivertest.Faults{NoAnswer: 20}, driver.ErrTimeout},
		"no call":          {drivertest.Faults{NoCall: 1}, driver.ErrTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, 1, c.f)
			o := options(Options{})
			if c.want == driver.ErrTimeout {
				o.Stall = 200 * time.Millisecond
			}
			l := load(t, b.o.Path, driver.Options{}, o)
			_, err := l.Run(t.Context(), 2000)
			if err == nil {
				err = l.Check(t.Context())
			}
			if !errors.Is(err, c.want) {
				t.Fatalf("%v, not %v", err, c.want)
			}
			t.Log(err)
		})
	}
}

// whileRunning runs a load and meanwhile, again and again, f; then it checks everything.
func whileRunning(t *testing.T, l *Load, times int, f func()) *Report {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	type result struct {
		r   *Report
		err error
	}
	ended := make(chan result, 1)
	early := func() { // a load that failed has nothing more to wait for
		select {
		case res := <-ended:
			t.Fatal(res.err)
		default:
		}
	}
	go func() {
		r, err := l.Run(ctx, -1)
		ended <- result{r, err}
	}()
	for range times {
		progress(t, l, 50, early)
		f()
	}
	progress(t, l, 50, early)
	stop()
	res := <-ended
	must(t, res.err)
	must(t, l.Check(t.Context()))
	return res.r
}

// progress waits until so many more requests were answered.
func progress(t *testing.T, l *Load, n uint64, early func()) {
	t.Helper()
	count := func() (all uint64) {
		for i := range l.o.Disk.Queues() {
			all += l.o.Disk.Queue(i).Stats().Completed
		}
		return all
	}
	from := count()
	for end := time.Now().Add(40 * time.Second); count() < from+n; time.Sleep(time.Millisecond) {
		early()
		if time.Now().After(end) {
			t.Fatalf("%d requests answered in 40 s: %s", count()-from, l.o.Disk.Queue(0).Stuck())
		}
	}
}

// TestKilledBackend: with an in-flight area, and without, nothing is lost and nothing answered twice.
func TestKilledBackend(t *testing.T) {
	for name, d := range shapes() {
		for _, inflight := range []bool{false, true} {
			if inflight && d.Packed {
				continue // the fake does not keep one for those
			}
			t.Run(fmt.Sprint(name, " inflight=", inflight), func(t *testing.T) {
				b := newBed(t, max(d.Queues, 1), drivertest.Faults{})
				d.Inflight, d.Reconnect = inflight, true
				l := load(t, b.o.Path, d, options(Options{}))
				r := whileRunning(t, l, 5, func() { b.kill(); b.serve() })
				if r.Reconnects == 0 { // those that died before all rings ran are not counted
					t.Errorf("%d reconnects", r.Reconnects)
				}
				must(t, l.CheckFile(b.o.Content))
			})
		}
	}
}

// TestServerCrash: what was not flushed may be gone when the next flush says so; when it does not, that is found.
func TestServerCrash(t *testing.T) {
	for _, told := range []bool{true, false} {
		t.Run(fmt.Sprint("told=", told), func(t *testing.T) {
			b := newBed(t, 2, drivertest.Faults{})
			o := options(Options{Seed: 3})
			o.Mix = Mix{Read: 60, Write: 38, Flush: 2}
			l := load(t, b.o.Path, driver.Options{Queues: 2}, o)
			var err error
			for range 10 {
				if _, err = l.Run(t.Context(), 300); err != nil {
					break
				}
				must(t, l.ServerCrash(func() error { b.o.Content.Crash(told); return nil }))
				if err = l.Check(t.Context()); err != nil {
					break
				}
			}
			if told != (err == nil) || !told && !errors.Is(err, ErrData) {
				t.Error(err)
			}
		})
	}
}

// TestLyingFlush: a flush that does nothing is found after a crash.
func TestLyingFlush(t *testing.T) {
	b := newBed(t, 1, drivertest.Faults{LieFlush: 1})
	l := load(t, b.o.Path, driver.Options{}, options(Options{}))
	_, err := l.Run(t.Context(), 300)
	must(t, err)
	must(t, l.ServerCrash(func() error { b.o.Content.Crash(true); return nil }))
	if err := l.Check(t.Context()); !errors.Is(err, ErrData) {
		t.Errorf("not found: %v", err)
	}
}

// TestStorageDaemon: the same load on a device that is not ours, which is killed meanwhile; at the end the image is looked at.
func TestStorageDaemon(t *testing.T) {
	need.Time(t, "kills another daemon again and again")
	need.Program(t, drivertest.Program)
	for name, d := range shapes() {
		if d.Packed {
			continue
		}
		t.Run(name, func(t *testing.T) {
			s, err := drivertest.Start(drivertest.Options{Dir: t.TempDir(), Size: 32 << 20, Queues: max(d.Queues, 1), Log: os.Stderr})
			must(t, err)
			t.Cleanup(func() { must(t, s.Kill()) })
			d.Reconnect = true
			l := load(t, s.Socket, d, options(Options{}))
			l.Assume(true) // QEMU 7.2 says at first that its cache is off
			kills := 3
			if need.Soak() {
				kills = 50
			}
			r := whileRunning(t, l, kills, func() { must(t, s.Kill()); must(t, s.Restart()) })
			t.Log(r)
			f, err := os.Open(s.File)
			must(t, err)
			defer f.Close()
			must(t, l.CheckFile(f))
		})
	}
}
