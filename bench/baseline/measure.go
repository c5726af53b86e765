package main

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// jobs is what there is to do, in the order of the table.
var jobs = []job{transmitJob, nopJob, readJob, decodeJob, encapsulateJob}

// job is something several contenders can do.
type job struct {
	name       string
	contenders []contender // ours first, where there is ours
}

// contender is one way to do a job.
type contender struct {
	name string
	ours bool // what shunt uses; the others are compared with it
	open func() (worker, error)
}

// worker does a contender's job, on one thread.
type worker interface {
	// Do does at least n operations, or fails, and returns how many.
	Do(n int) (int, error)
	// Close takes down what open made.
	Close() error
}

// chunk is how many operations a worker does between looks at the clock.
const chunk = 1024

// turn is what one contender did in one turn.
type turn struct {
	ops       int
	wall, cpu time.Duration
	allocs    uint64
}

func (t turn) cpuPerOp() float64  { return float64(t.cpu.Nanoseconds()) / float64(t.ops) }
func (t turn) wallPerOp() float64 { return float64(t.wall.Nanoseconds()) / float64(t.ops) }

// run lets the contenders take turns and returns the turns of each.
func (j job) run(rounds int, length time.Duration) (results [][]turn, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	results = make([][]turn, len(j.contenders))
	workers := make([]worker, len(j.contenders))
	defer func() {
		for _, w := range slices.Backward(workers) {
			if w != nil {
				err = errors.Join(err, w.Close())
			}
		}
	}()
	for i, c := range j.contenders {
		if workers[i], err = c.open(); err != nil {
			return nil, fmt.Errorf("%s: open %s: %w", j.name, c.name, err)
		}
		if _, err := workers[i].Do(chunk); err != nil { // warm
			return nil, fmt.Errorf("%s: %s: %w", j.name, c.name, err)
		}
	}
	for range rounds {
		for i, c := range j.contenders {
			t, err := takeTurn(workers[i], length)
			if err != nil {
				return nil, fmt.Errorf("%s: %s: %w", j.name, c.name, err)
			}
			results[i] = append(results[i], t)
		}
	}
	return results, nil
}

func takeTurn(w worker, length time.Duration) (turn, error) {
	var t turn
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	cpu, err := threadTime()
	if err != nil {
		return t, err
	}
	for start := time.Now(); t.wall < length; t.wall = time.Since(start) {
		n, err := w.Do(chunk)
		if err != nil {
			return t, err
		}
		t.ops += n
	}
	now, err := threadTime()
	t.cpu = now - cpu
	runtime.ReadMemStats(&after)
	t.allocs = after.Mallocs - before.Mallocs
	return t, err
}

// threadTime is the CPU time of the calling thread, the kernel's work for it included.
func threadTime() (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		return 0, fmt.Errorf("read the thread's CPU time: %w", err)
	}
	return time.Duration(ts.Nano()), nil
}

func median(turns []turn, value func(turn) float64) float64 {
	values := make([]float64, len(turns))
	for i, t := range turns {
		values[i] = value(t)
	}
	slices.Sort(values)
	return values[len(values)/2]
}

// ratio is the median, over the rounds, of a contender's CPU time in ours.
func ratio(theirs, ours []turn) float64 {
	values := make([]float64, len(theirs))
	for i := range theirs {
		values[i] = theirs[i].cpuPerOp() / ours[i].cpuPerOp()
	}
	slices.Sort(values)
	return values[len(values)/2]
}

func printTable(w io.Writer, j job, results [][]turn) {
	ours := slices.IndexFunc(j.contenders, func(c contender) bool { return c.ours })
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(tw, "%s\tCPU ns/op\tns/op\tMop/s\tallocs/op\ttimes ours\n", j.name)
	for i, c := range j.contenders {
		wall := median(results[i], turn.wallPerOp)
		allocs := median(results[i], func(t turn) float64 { return float64(t.allocs) / float64(t.ops) })
		times := "-"
		if ours >= 0 {
			times = fmt.Sprintf("%.2f", ratio(results[i], results[ours]))
		}
		fmt.Fprintf(tw, "  %s\t%.1f\t%.1f\t%.2f\t%.1f\t%s\n",
			c.name, median(results[i], turn.cpuPerOp), wall, 1e3/wall, allocs, times)
	}
	fmt.Fprintln(tw)
	tw.Flush()
}
