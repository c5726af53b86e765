package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/shuntio/shunt/dataplane/shm"
	"github.com/shuntio/shunt/tools/control/config"
	"golang.org/x/sys/unix"
)

// A worker that polls never lets go of its thread, so all of them at once must leave some to the control side.
func TestMakeRoom(t *testing.T) {
	was := runtime.GOMAXPROCS(3)
	defer runtime.GOMAXPROCS(was)
	for _, test := range []struct{ workers, want int }{{1, 3}, {8, 10}, {2, 10}} {
		if makeRoom(test.workers); runtime.GOMAXPROCS(0) != test.want {
			t.Errorf("with %d workers, Go runs %d threads at once, want %d", test.workers, runtime.GOMAXPROCS(0), test.want)
		}
	}
}

// An engine that cannot have all the files it needs, and fails at one after the other, leaves neither memory nor files nor goroutines behind.
func TestEngineThatDoesNotStart(t *testing.T) {
	was := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(was)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	allow := func(files uint64) {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: files, Max: limit.Max}); err != nil {
			t.Fatal(err)
		}
	}
	defer allow(limit.Cur)
	c := config.Workers{CPUs: someCPUs(t, 2), Idle: config.IdleInterrupt, HugePages: config.ToggleOff}
	if err := shm.OpenSignals(); err != nil { // once in a process, and for ever
		t.Fatal(err)
	}
	files, memory, goroutines := openFiles(t), sharedMappings(t), runtime.NumGoroutine()
	for more := uint64(0); ; more++ {
		allow(nextFile(t) + more)
		e, err := newEngine(c, slog.New(slog.DiscardHandler))
		allow(limit.Cur)
		if err == nil {
			if err := e.Close(t.Context()); err != nil {
				t.Error(err)
			}
			if more < 2 && len(c.CPUs) == 2 {
				t.Errorf("with %d files more it starts: nothing was tried", more)
			}
		}
		await(t, fmt.Sprintf("files, memory and goroutines with %d files more, %v", more, err), func() bool {
			return openFiles(t) <= files && sharedMappings(t) == memory && runtime.NumGoroutine() <= goroutines
		})
		if err == nil || t.Failed() {
			return
		}
		if !errors.Is(err, unix.EMFILE) {
			t.Fatal(err)
		}
	}
}

// someCPUs are as many as n of those that the process's first thread may run on.
func someCPUs(t *testing.T, n int) (cpus config.CPUs) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(os.Getpid(), &set); err != nil {
		t.Fatal(err)
	}
	for cpu := 0; cpu < 8192 && len(cpus) < n; cpu++ {
		if set.IsSet(cpu) {
			cpus = append(cpus, cpu)
		}
	}
	return cpus
}

func openFiles(t *testing.T) int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// nextFile is the number that the next file gets.
func nextFile(t *testing.T) uint64 {
	d, err := os.Open("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	return uint64(d.Fd())
}

// sharedMappings counts the anonymous shared mappings of this process, which frame memory is.
func sharedMappings(t *testing.T) int {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(maps), "/dev/zero")
}
