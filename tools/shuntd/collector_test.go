package main

import (
	"runtime"
	"runtime/debug"
	"testing"
)

// A host of many guests has more on the heap than the collector's limit: it is not collected all the time for that.
func TestCollectorLeavesWhatIsLive(t *testing.T) {
	const least, piece = 32 << 20, 1 << 20
	defer tameCollector(least, func() float64 { return 1 })()
	live := make([][]byte, 96)
	for i := range live {
		live[i] = make([]byte, piece)
	}
	runtime.GC()
	await(t, "a limit above what is live", func() bool { return debug.SetMemoryLimit(-1) > 2*96*piece })
	before := read("/gc/cycles/total:gc-cycles")
	for range 64 { // garbage
		live[0] = make([]byte, piece)
	}
	if n := read("/gc/cycles/total:gc-cycles") - before; n > 3 {
		t.Errorf("%d collections for 64 MiB of garbage beside 96 MiB that are live", n)
	}
	runtime.KeepAlive(live)
}
