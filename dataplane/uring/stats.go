package uring

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"
)

// Stats are counters of a ring, written by its worker and read by anybody.
type Stats struct {
	// Operations counts those pushed, Completions what came of them: several of a multishot one. Enters counts system calls.
	Operations, Completions, Enters atomic.Uint64
	// Punted counts operations that the kernel always hands to io-wq: fsync, fallocate, ReadvApart. Of others (writes through the page cache of most file systems, see
	// WritesWait; everything on tmpfs) it does not tell; IOWorkers sees the threads at work.
	Punted atomic.Uint64
	// Overflows counts how often the CQ was found full; nothing is lost by that. Full counts pushes that found no room.
	Overflows, Full atomic.Uint64
	// Stale counts completions of operations that nobody waited for.
	Stale atomic.Uint64
}

// counts are the same, as the worker counts them.
type counts struct {
	operations, completions, enters, punted, overflows, full, stale uint64
}

// Stats may be read by anybody.
func (r *Ring) Stats() *Stats { return &r.stats }

// publish shows the counts to others, if they are not what they were.
func (r *Ring) publish() {
	if r.counts == r.shown {
		return
	}
	c, s := &r.counts, &r.stats
	r.shown = *c
	s.Operations.Store(c.operations)
	s.Completions.Store(c.completions)
	s.Enters.Store(c.enters)
	s.Punted.Store(c.punted)
	s.Overflows.Store(c.overflows)
	s.Full.Store(c.full)
	s.Stale.Store(c.stale)
}

// IOWorkers is how many io-wq threads this process has now, and the CPU time that these have used. For people and tests: it reads /proc.
func IOWorkers() (threads int, cpu time.Duration, err error) {
	names, err := filepath.Glob("/proc/self/task/*/stat")
	if err != nil {
		return 0, 0, err
	}
	for _, name := range names {
		stat, err := os.ReadFile(name)
		if err != nil {
			continue // a thread that has ended meanwhile
		}
		before, after, _ := strings.Cut(string(stat), ") ")
		if !strings.Contains(before, "(iou-wrk-") {
			continue
		}
		threads++
		// After the name and the state come ten numbers, then utime and stime (proc_pid_stat(5)), in ticks of 10 ms.
		fields := strings.Fields(after)
		var user, system int64
		if len(fields) < 13 {
			return 0, 0, fmt.Errorf("%s has only %d fields", name, len(fields))
		}
		if _, err := fmt.Sscan(fields[11]+" "+fields[12], &user, &system); err != nil {
			return 0, 0, fmt.Errorf("%s: %w", name, err)
		}
		cpu += time.Duration(user+system) * 10 * time.Millisecond
	}
	return threads, cpu, nil
}
