package main

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"
)

const (
	// heapLimit is where the collector starts to run whatever the load is, as long as what is live takes no more than a headroom'th of that. The engine
	// allocates nothing per frame, so only configuration, API calls and netlink messages fill the heap; frames and guests' memory are mappings outside of it.
	heapLimit = 256 << 20
	// headroom is how many times what is live the limit is at the least. Flow caches are live, a quarter of a MiB for each port and worker, so that
	// a host of many guests has more of that than heapLimit.
	headroom = 2
	// idleGarbage is worth collecting while the worker is idle, and idleShare is what counts as idle.
	idleGarbage = 32 << 20
	idleShare   = 0.05
	idleCheck   = 10 * time.Second
)

// tameCollector keeps garbage collections away from a busy worker: each would stop it twice, for a fraction of a millisecond if
// all goes well. It returns a function that ends the watch.
func tameCollector(least int64, busy func() float64) (stop func()) {
	percent := debug.SetGCPercent(-1)
	limit := &memoryLimit{least: least, now: least}
	before := debug.SetMemoryLimit(least)
	limit.watch()
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
		limit.end()
		debug.SetGCPercent(percent)
		debug.SetMemoryLimit(before)
	}
}

// memoryLimit keeps the collector's limit above what is live. Otherwise it would run all the time, and find nothing.
type memoryLimit struct {
	least int64

	mu    sync.Mutex
	now   int64
	ended bool
}

// watch has the next collection set the limit, and the one after that.
func (l *memoryLimit) watch() {
	runtime.SetFinalizer(&collected{l}, func(c *collected) {
		if c.limit.follow() {
			c.limit.watch()
		}
	})
}

// collected is garbage from the start: the collector tells that it was there.
type collected struct{ limit *memoryLimit }

// follow sets the limit by what the last collection left, as long as it is watched. What changes little is left alone, since a change stops all threads.
func (l *memoryLimit) follow() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return false
	}
	if want := max(l.least, headroom*int64(read("/gc/heap/live:bytes"))); want > l.now || want < l.now-l.now/8 {
		l.now = want + want/8
		debug.SetMemoryLimit(l.now)
	}
	return true
}

func (l *memoryLimit) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
}

func heapBytes() uint64 { return read("/memory/classes/heap/objects:bytes") }

func read(metric string) uint64 {
	s := []metrics.Sample{{Name: metric}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}
