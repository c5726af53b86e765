package bench

import (
	"os"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk/driver/drivertest"
	"github.com/shuntio/shunt/tools/need"
)

// storageDaemon is QEMU's, on a file that lies in the page cache as a whole.
func storageDaemon(tb testing.TB, file string, direct bool) BlockPeer {
	tb.Helper()
	need.Program(tb, drivertest.Program)
	s, err := drivertest.Start(drivertest.Options{Dir: tb.TempDir(), File: file, Uring: true, Direct: direct, Log: os.Stderr})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = s.Kill() })
	return BlockPeer{Name: drivertest.Program, Socket: s.Socket, PID: s.PID()}
}

// image is a file of n written bytes.
func image(tb testing.TB, n int) string {
	tb.Helper()
	name := tb.TempDir() + "/disk.raw"
	if err := os.WriteFile(name, make([]byte, n), 0o600); err != nil {
		tb.Fatal(err)
	}
	return name
}

// TestBlock: every cell is measured with every peer, and the figures are not nonsense. The time is too short for fio's CPU time to mean anything.
func TestBlock(t *testing.T) {
	file := image(t, 64<<20)
	need.Program(t, "fio")
	peers := []BlockPeer{storageDaemon(t, file, false), {Name: "fio", File: file}}
	all, err := Block(t.Context(), BlockOptions{Duration: 20 * time.Millisecond, Turns: 1, GuestCPU: 1}, peers)
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 2*len(BlockCells()) {
		t.Errorf("%d results", len(all))
	}
	for _, r := range all {
		t.Logf("%-19v %-16v %8.0f a second, %8.0f a second of CPU, %v", r.Peer, r.Cell, r.Rate(), r.PerCPU(), &r.Latency)
		if r.Requests == 0 || r.Peer != "fio" && (r.CPU <= 0 || r.CPU > 4*r.Elapsed || r.Latency.Count() != r.Requests) {
			t.Errorf("%+v: %d requests, %v of CPU in %v", r.Cell, r.Requests, r.CPU, r.Elapsed)
		}
	}
}
