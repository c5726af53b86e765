package verify

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/blk/driver"
	"github.com/shuntio/shunt/blk/driver/drivertest"
	"github.com/shuntio/shunt/tools/need"
)

func TestMain(m *testing.M) {
	drivertest.Child()
	os.Exit(m.Run())
}

// engine is our own back-end in this process.
func engine(t *testing.T, o drivertest.EngineOptions) *drivertest.Engine {
	t.Helper()
	e, err := drivertest.StartEngine(o)
	must(t, err)
	t.Cleanup(func() { must(t, e.Close()) })
	return e
}

func socket(t *testing.T) string { return filepath.Join(t.TempDir(), "blk.sock") }

func image(t *testing.T, n int64) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "disk.raw")
	f, err := os.Create(name)
	must(t, err)
	must(t, f.Truncate(n))
	must(t, f.Close())
	return name
}

// TestEngine: our own device passes as it is, in memory and on a file.
func TestEngine(t *testing.T) {
	for name, d := range shapes() {
		for _, onFile := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " file=", onFile), func(t *testing.T) {
				o := drivertest.EngineOptions{Socket: socket(t), Size: 32 << 20, Queues: max(d.Queues, 1), Workers: 2}
				if onFile {
					o.File = image(t, 32<<20)
				}
				engine(t, o)
				d.Inflight = true
				l := load(t, o.Socket, d, options(Options{Overlap: true}))
				r, err := l.Run(t.Context(), 1000)
				must(t, err)
				t.Log(r)
				must(t, l.Check(t.Context()))
			})
		}
	}
}

// TestKilledEngine: kill -9, again and again, under load; the in-flight area has what is to be finished.
func TestKilledEngine(t *testing.T) {
	for name, d := range shapes() {
		for _, direct := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " direct=", direct), func(t *testing.T) {
				if !direct {
					need.Time(t, "is the same without O_DIRECT")
				}
				o := drivertest.EngineOptions{Socket: socket(t), File: image(t, 32<<20), Queues: max(d.Queues, 1), Workers: 2, Direct: direct}
				p, err := drivertest.Spawn(o)
				must(t, err)
				t.Cleanup(func() { must(t, p.Kill()) })
				d.Inflight, d.Reconnect = true, true
				l := load(t, o.Socket, d, options(Options{}))
				kills := 5
				switch {
				case need.Soak():
					kills = 50
				case testing.Short():
					kills = 2
				}
				r := whileRunning(t, l, kills, func() { must(t, p.Kill()); must(t, p.Restart()) })
				t.Log(r)
				f, err := os.Open(o.File)
				must(t, err)
				defer f.Close()
				must(t, l.CheckFile(f))
			})
		}
	}
}

// TestStoppedEngine: rings are stopped and started again under load, each at once although the store takes its time, or answers not at all.
func TestStoppedEngine(t *testing.T) {
	stops := 10
	if testing.Short() {
		stops = 4
	}
	for name, d := range shapes() {
		for _, inflight := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " inflight=", inflight), func(t *testing.T) {
				o := drivertest.EngineOptions{Socket: socket(t), Size: 4 << 20, Queues: max(d.Queues, 1), Workers: 2, Delay: time.Millisecond}
				e := engine(t, o)
				d.Inflight = inflight
				l := load(t, o.Socket, d, options(Options{}))
				longest, late, silent := time.Duration(0), 0, false
				whileRunning(t, l, stops, func() {
					silent = !silent
					e.Store.Silence(silent)
					began := time.Now()
					must(t, l.o.Disk.Stop())
					took := time.Since(began)
					if longest = max(longest, took); took > time.Second { // 100 ms is what is promised, on a machine with a CPU to spare
						late++
					}
					e.Store.Silence(false)
					must(t, l.o.Disk.Start())
				})
				if late > stops/4 { // each second one is with a silent store
					t.Errorf("%d stops of %d took more than a second, one %v", late, stops, longest)
				}
				t.Logf("longest stop %v of %d rings", longest, l.o.Disk.Queues())
				must(t, l.CheckFile(content{e}))
			})
		}
	}
}

// content is a store in memory.
type content struct{ e *drivertest.Engine }

func (c content) ReadAt(p []byte, at int64) (int, error) {
	return copy(p, c.e.Store.Content(int(at), len(p))), nil
}

// TestServerCrashEngine: a server that loses what was not flushed: the next flush fails, nothing else does, and nothing is lost that was vouched for. Where every write
// is to be stable, nothing at all.
func TestServerCrashEngine(t *testing.T) {
	for _, durability := range []blk.Durability{blk.DurabilityFlush, blk.DurabilityFUA} {
		for _, queues := range []int{1, 3} {
			t.Run(fmt.Sprint("durability=", durability, " queues=", queues), func(t *testing.T) {
				o := drivertest.EngineOptions{Socket: socket(t), Size: 8 << 20, Queues: queues, Workers: 2, Delay: 200 * time.Microsecond,
					Policy: blk.Policy{Durability: durability}}
				e := engine(t, o)
				l := load(t, o.Socket, driver.Options{Queues: queues, EventIdx: true}, options(Options{}))
				if durability == blk.DurabilityFUA {
					l.Assume(false)
				}
				r := whileRunning(t, l, 20, func() {
					must(t, l.ServerCrash(func() error {
						e.Store.Break(errors.New("it was killed"))
						e.Store.Restore(false)
						return nil
					}))
				})
				t.Log(r)
				for i, c := range r.Ops {
					if kindNames[i] != "flushes" && c.Errors > 0 || durability == blk.DurabilityFUA && c.Errors > 0 {
						t.Errorf("%d of the %s failed", c.Errors, kindNames[i])
					}
				}
			})
		}
	}
}

// TestResizedEngine: the driver hears of it, and uses what is new, while everything goes on.
func TestResizedEngine(t *testing.T) {
	o := drivertest.EngineOptions{Socket: socket(t), Size: 4 << 20}
	e := engine(t, o)
	l := load(t, o.Socket, driver.Options{}, options(Options{}))
	size := uint64(4 << 20)
	whileRunning(t, l, 3, func() {
		size += 1 << 20
		e.Store.Resize(size)
		for end := time.Now().Add(10 * time.Second); l.o.Disk.Size() != int64(size); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("the driver has not heard of it: %d", l.o.Disk.Size())
			}
		}
	})
}
