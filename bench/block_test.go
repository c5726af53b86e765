package bench

import (
	"fmt"
	"math"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk/driver"
	"github.com/shuntio/shunt/blk/driver/drivertest"
	"github.com/shuntio/shunt/tools/need"
)

func TestMain(m *testing.M) {
	Child()
	os.Exit(m.Run())
}

func bed(tb testing.TB, add ...func(*BlockBed) error) *BlockBed {
	tb.Helper()
	b, err := NewBlockBed(tb.TempDir())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := b.Close(); err != nil {
			tb.Error(err)
		}
	})
	for _, f := range add {
		if err := f(b); err != nil {
			tb.Fatal(err)
		}
	}
	return b
}

// TestBlock: every cell is measured with every peer, and the figures are not nonsense. The time is too short for fio's CPU time to mean anything.
func TestBlock(t *testing.T) {
	need.Program(t, "fio", drivertest.Program)
	b := bed(t, (*BlockBed).Null, (*BlockBed).Memory, buffered((*BlockBed).File), buffered((*BlockBed).StorageDaemon), buffered((*BlockBed).Fio))
	all, err := Block(t.Context(), BlockOptions{Duration: 20 * time.Millisecond, Turns: 1, GuestCPU: 1}, b.Peers)
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != len(b.Peers)*len(BlockCells()) {
		t.Errorf("%d results", len(all))
	}
	for _, r := range all {
		t.Logf("%-19v %-16v %8.0f a second, %8.0f a second of CPU, %v", r.Peer, r.Cell, r.Rate(), r.PerCPU(), &r.Latency)
		if r.Requests == 0 || r.Peer != "fio" && (r.CPU <= 0 || r.CPU > 4*r.Elapsed || r.Latency.Count() != r.Requests) {
			t.Errorf("%+v: %d requests, %v of CPU in %v", r.Cell, r.Requests, r.CPU, r.Elapsed)
		}
	}
}

// TestBlockFile holds what is promised of a file in the page cache: random reads of 4 KiB, many at a time, take at most 1/1.3 of the CPU time
// that qemu-storage-daemon takes, and no thread of the kernel's.
func TestBlockFile(t *testing.T) {
	need.Program(t, drivertest.Program)
	b := bed(t, buffered((*BlockBed).File), buffered((*BlockBed).StorageDaemon))
	o := BlockOptions{Duration: 100 * time.Millisecond, GuestCPU: 1, Cells: []BlockCell{{Bytes: 4 << 10, Depth: 32}, {Bytes: 4 << 10, Depth: 32, Sequential: true}}}
	if testing.Short() {
		o.Duration, o.Turns = 20*time.Millisecond, 1
	}
	for n := 1; ; n++ {
		all, err := Block(t.Context(), o, b.Peers)
		if err != nil {
			t.Fatal(err)
		}
		worst := math.Inf(1)
		for i := 0; i < len(all); i += 2 {
			ratio := all[i].PerCPU() / all[i+1].PerCPU()
			worst = min(worst, ratio)
			t.Logf("%-16v %.0f a second of CPU, %.2f times %s", all[i].Cell, all[i].PerCPU(), ratio, all[i+1].Peer)
		}
		if workers, err := ioWorkers(b.Peers[0].PID); err != nil || workers > 0 {
			t.Errorf("%d io-wq threads, %v", workers, err)
		}
		if worst >= 1.3 || testing.Short() {
			return
		}
		if n == tries {
			t.Fatalf("%.2f times the requests of %s per CPU time, want 1.3", worst, drivertest.Program)
		}
	}
}

// TestBlockIdle: a disk that nobody uses takes no CPU time.
func TestBlockIdle(t *testing.T) {
	b := bed(t, (*BlockBed).Null)
	if _, err := Block(t.Context(), BlockOptions{Duration: time.Millisecond, Turns: 1, GuestCPU: 1, Cells: []BlockCell{{Bytes: 4096, Depth: 1}}}, b.Peers); err != nil {
		t.Fatal(err)
	}
	d, err := driver.Dial(t.Context(), b.Peers[0].Socket, driver.Options{EventIdx: true})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	span := 10 * time.Second
	if testing.Short() {
		span = time.Second
	}
	const settled = 200 * time.Millisecond
	time.Sleep(settled) // what the connection costs
	before, err := processTime(b.Peers[0].PID)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(span) // the measurement
	after, err := processTime(b.Peers[0].PID)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%v of CPU time in %v", after-before, span)
	if after-before > span/1000 {
		t.Errorf("%v of CPU time in %v without a request", after-before, span)
	}
}

// ioWorkers counts the io-wq threads of a process: requests that could not be done at once are given to them.
func ioWorkers(pid int) (n int, err error) {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	for _, t := range tasks {
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/comm", pid, t.Name()))
		if err == nil && strings.HasPrefix(string(name), "iou-wrk") {
			n++
		}
	}
	return n, err
}
