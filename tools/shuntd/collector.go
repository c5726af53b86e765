package main

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// heapLimit is where the collector starts to run whatever the load is. The engine allocates nothing per frame, so only configuration,
	// API calls and netlink messages fill the heap; frames and guests' memory are mappings outside of it.
	heapLimit = 256 << 20
	// idleGarbage is worth collecting while the worker is idle, and idleShare is what counts as idle.
	idleGarbage = 32 << 20
	idleShare   = 0.05
	idleCheck   = 10 * time.Second
)

// tameCollector keeps garbage collections away from a busy worker: each would stop it twice, for a fraction of a millisecond if
// all goes well. It returns a function that ends the watch.
func tameCollector(busy func() float64) (stop func()) {
	percent := debug.SetGCPercent(-1)
	limit := debug.SetMemoryLimit(heapLimit)
	quit := make(chan struct{})
	go func() {
		tick := time.NewTicker(idleCheck)
		defer tick.Stop()
		live := heapBytes()
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
				now := heapBytes()
				live = min(live, now) // a collection at the limit
				if busy() < idleShare && now > live+idleGarbage {
					runtime.GC()
					live = heapBytes()
				}
			}
		}
	}()
	return func() {
		close(quit)
		debug.SetGCPercent(percent)
		debug.SetMemoryLimit(limit)
	}
}

func heapBytes() uint64 {
	s := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}
