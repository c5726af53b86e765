package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/tools/need"
)

// allowed is what the process began with. Asked later, the process answers with what its first thread has, and a test may have left that one pinned.
var allowed = func() (set unix.CPUSet) {
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		panic(err)
	}
	return set
}()

// confine lets a process, this one with all that it starts included, run on one CPU alone until the end of the test.
func confine(t *testing.T, pid, cpu int) {
	t.Helper()
	var one unix.CPUSet
	one.Set(cpu)
	all := func(set *unix.CPUSet) {
		for changed := true; changed; { // a thread that another began meanwhile has its CPUs from that
			changed = false
			threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
			for _, thread := range threads {
				tid, _ := strconv.Atoi(filepath.Base(thread))
				var has unix.CPUSet
				err := unix.SchedGetaffinity(tid, &has)
				if err == nil && has != *set {
					changed, err = true, unix.SchedSetaffinity(tid, set)
				}
				if err != nil && !errors.Is(err, unix.ESRCH) {
					t.Fatal(err)
				}
			}
		}
	}
	all(&one)
	if pid == os.Getpid() {
		t.Cleanup(func() { all(&allowed) })
	}
}

func TestConfineEnds(t *testing.T) {
	if runtime.NumCPU() < 2 {
		need.Missing(t, "two CPUs; widen what taskset leaves")
	}
	var first unix.CPUSet
	first.Set(0)
	if err := unix.SchedSetaffinity(os.Getpid(), &first); err != nil { // the first thread alone
		t.Fatal(err)
	}
	t.Run("confined", func(t *testing.T) { confine(t, os.Getpid(), 1) })
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var has unix.CPUSet
	if err := unix.SchedGetaffinity(0, &has); err != nil || has != allowed {
		t.Errorf("after a test that confined the process, its threads may run on %v (%v), not on %v", has, err, allowed)
	}
}

// With a single CPU for the daemon, its guests, the test and the softirqs of the wire, everything goes on, even if workers never sleep: two that were sent to one
// CPU, which give each other what crosses, and one of a daemon that finds but this CPU.
func TestOneCore(t *testing.T) {
	n := uint64(3000)
	if need.Soak() {
		n = 100_000
	}
	const cpu = 1
	talk := func(t *testing.T, ctx context.Context, c *crew) {
		t.Helper()
		c.listen(t, echoPort, true)
		for _, g := range c.guests {
			begin, hungry := time.Now(), starved(c.d.PID())
			g.conversation(t, ctx, n)
			t.Logf("%d questions of %s were answered in %v, of which the daemon's threads were waiting for the CPU for %v",
				n, g.port, time.Since(begin).Round(time.Millisecond), (starved(c.d.PID()) - hungry).Round(time.Millisecond))
		}
		if d := c.count(t, ctx); d.dropped != 0 {
			t.Errorf("%d packets were dropped:\n%s", d.dropped, c.shuntctl(t, ctx, "drops"))
		}
	}
	for _, idle := range []string{"adaptive", "poll", "interrupt"} {
		t.Run("two workers, "+idle, func(t *testing.T) {
			ctx := within(t, 2*time.Minute)
			c := newCrew(t, ctx, 1, "workers: {cpus: [0, 1], idle: "+idle+"}", "0", "1")
			confine(t, c.d.PID(), cpu)
			confine(t, os.Getpid(), cpu)
			talk(t, ctx, c)
		})
	}
	t.Run("one worker, poll", func(t *testing.T) {
		ctx := within(t, 2*time.Minute)
		confine(t, os.Getpid(), cpu)
		c := newCrew(t, ctx, 1, "workers: {idle: poll}", "0", "0", "0")
		status, err := c.d.API().Status(ctx)
		if err != nil || len(status.Workers) != 1 || status.Workers[0].CPU != cpu {
			t.Fatalf("with CPU %d alone there are the workers %+v (%v)", cpu, status.Workers, err)
		}
		talk(t, ctx, c)
	})
}
