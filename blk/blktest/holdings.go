package blktest

import (
	"os"
	"runtime"
	"testing"
)

// Holdings are what this process has of what a store's connections could leave behind.
type Holdings struct {
	Files, Goroutines int
	Heap              uint64 // bytes, of what is reachable
}

// Hold counts them.
func Hold(tb testing.TB) Holdings {
	tb.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		tb.Fatal(err)
	}
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return Holdings{len(files), runtime.NumGoroutine(), m.HeapAlloc}
}

// Back tells whether nothing is left that was not there before: of the heap, whose contents vary, no more than a quarter and 256 KiB.
func (h Holdings) Back(before Holdings) bool {
	return h.Files <= before.Files && h.Goroutines <= before.Goroutines && h.Heap <= before.Heap+before.Heap/4+256<<10
}
