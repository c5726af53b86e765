package lab

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// queue tells how long threads have waited for a CPU so far: the workers of a daemon, and the one that asks, which must be locked to its goroutine.
type queue struct{ files []*os.File }

func newQueue(t *testing.T, daemon int) *queue {
	t.Helper()
	q := &queue{}
	paths := []string{fmt.Sprintf("/proc/self/task/%d", unix.Gettid())}
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", daemon))
	for _, thread := range threads {
		tid, _ := strconv.Atoi(filepath.Base(thread))
		var set unix.CPUSet
		if unix.SchedGetaffinity(tid, &set) == nil && set.Count() == 1 { // none but workers are pinned
			paths = append(paths, thread)
		}
	}
	if len(paths) < 2 {
		t.Fatalf("none of %d threads is a worker", len(threads))
	}
	for _, path := range paths {
		f, err := os.Open(path + "/schedstat")
		must(t, err)
		t.Cleanup(func() { f.Close() })
		q.files = append(q.files, f)
	}
	return q
}

// waited is the sum of all.
func (q *queue) waited() (sum time.Duration) {
	var b [64]byte
	for _, f := range q.files {
		n, _ := f.ReadAt(b[:], 0)
		if fields := bytes.Fields(b[:n]); len(fields) > 1 {
			ns, _ := strconv.ParseInt(string(fields[1]), 10, 64)
			sum += time.Duration(ns)
		}
	}
	return sum
}

// others tells what part of the machine's CPUs other processes than this one and those named have had from now until it is asked, the host's other machines
// among them.
func others(t *testing.T, pids ...int) func() float64 {
	t.Helper()
	pids = append(pids, os.Getpid())
	ours := func() (sum time.Duration) {
		for _, pid := range pids {
			const sched = 2
			var used unix.Timespec // by all threads, those that have ended too: a process's clock, clock_getcpuclockid(3)
			must(t, unix.ClockGettime(int32(^pid<<3|sched), &used))
			sum += time.Duration(used.Nano())
		}
		return sum
	}
	begin, all, our := time.Now(), busyCPU(t), ours()
	return func() float64 {
		t.Helper()
		theirs := busyCPU(t) - all - (ours() - our)
		return theirs.Seconds() / time.Since(begin).Seconds() / float64(runtime.NumCPU())
	}
}

// busyCPU is how long all CPUs were not idle, proc_stat(5).
func busyCPU(t *testing.T) (sum time.Duration) {
	t.Helper()
	text, err := os.ReadFile("/proc/stat")
	must(t, err)
	line, _, _ := strings.Cut(string(text), "\n")
	for i, field := range strings.Fields(line)[1:] {
		if n, err := strconv.ParseInt(field, 10, 64); err == nil && i < 8 && i != 3 && i != 4 { // idle, and waiting for a disk
			sum += time.Duration(n) * 10 * time.Millisecond
		}
	}
	return sum
}
