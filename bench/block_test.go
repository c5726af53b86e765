package bench

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk/driver"
	"github.com/shuntio/shunt/tools/lab/leftover"
)

func TestMain(m *testing.M) {
	Child()
	os.Exit(leftover.Run(m.Run))
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

// TestBlock: every cell is measured with every peer, and the figures are not nonsense.
func TestBlock(t *testing.T) {
	b := bed(t, (*BlockBed).Null, (*BlockBed).Memory)
	all, err := Block(t.Context(), BlockOptions{Duration: 20 * time.Millisecond, Turns: 1, GuestCPU: 1}, b.Peers)
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != len(b.Peers)*len(BlockCells()) {
		t.Errorf("%d results", len(all))
	}
	t.Log("\n" + BlockTable(all, len(b.Peers)))
	for _, r := range all {
		if r.Requests == 0 || r.CPU <= 0 || r.CPU > 4*r.Elapsed || r.Latency.Count() != r.Requests {
			t.Errorf("%+v: %d requests, %v of CPU in %v", r.Cell, r.Requests, r.CPU, r.Elapsed)
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
