package pinning

import (
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// onThread runs fn on a thread of its own and gives the thread its mask back: it may
// be the main thread, whose mask stands for the process.
func onThread(t *testing.T, fn func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		before := unix.NewCPUSet(MaxCPUs)
		if err := unix.SchedGetaffinityDynamic(0, before); err != nil {
			t.Errorf("save the mask: %v", err)
			return
		}
		defer func() {
			if err := unix.SchedSetaffinityDynamic(0, before); err != nil {
				t.Errorf("restore the mask: %v", err)
			}
		}()
		fn()
	}()
	<-done
}

// runningOn is the CPU the calling thread runs on, by the kernel's own account.
func runningOn(t *testing.T) string {
	text, err := os.ReadFile("/proc/thread-self/stat")
	if err != nil {
		t.Errorf("%v", err)
		return ""
	}
	// The second field, the name, may hold blanks; the third follows its parenthesis.
	_, rest, _ := strings.Cut(string(text), ") ")
	return strings.Fields(rest)[39-3]
}

func TestApply(t *testing.T) {
	cpus, err := affinity(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for _, cpu := range cpus {
		onThread(t, func() {
			if err := Apply(cpu); err != nil {
				t.Errorf("%v", err)
				return
			}
			if on := runningOn(t); on != FormatList([]int{cpu}) {
				t.Errorf("pinned to CPU %d, running on %s", cpu, on)
			}
		})
	}
}

func TestApplyRefuses(t *testing.T) {
	for cpu, want := range map[int]string{
		-1:          "there is no such CPU",
		MaxCPUs:     "there is no such CPU",
		MaxCPUs - 1: "does not exist, is offline or outside the cgroup's cpuset",
	} {
		onThread(t, func() {
			if err := Apply(cpu); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("CPU %d: %v, want %q", cpu, err, want)
			}
		})
	}
}

// A mask narrowed on purpose holds; one that merely lacks the isolated CPUs does not.
func TestWiden(t *testing.T) {
	for _, tc := range []struct{ mask, permitted, isolated, want []int }{
		{span(0, 1), span(0, 3), span(2, 3), span(0, 3)},
		{span(0, 0), span(0, 3), span(2, 3), span(0, 0)},
		{span(2, 2), span(0, 3), span(2, 3), span(2, 2)},
		{span(0, 3), span(0, 3), span(2, 3), span(0, 3)},
		{span(0, 1), span(0, 2), span(2, 3), span(0, 2)}, // the cpuset holds back one
	} {
		if got := widen(tc.mask, tc.permitted, tc.isolated); !slices.Equal(got, tc.want) {
			t.Errorf("mask %v of %v with %v isolated: %v, want %v", tc.mask, tc.permitted, tc.isolated, got, tc.want)
		}
	}
}

// permitted sees through a narrowed mask, and changes no thread but its own.
func TestPermitted(t *testing.T) {
	want, err := permitted()
	if err != nil {
		t.Fatal(err)
	}
	onThread(t, func() {
		narrow := unix.NewCPUSet(MaxCPUs)
		narrow.Set(want[0])
		if err := unix.SchedSetaffinityDynamic(0, narrow); err != nil {
			t.Errorf("%v", err)
			return
		}
		got, err := permitted()
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("permitted under a narrow mask is %v, %v; want %v", got, err, want)
		}
		if mine, _ := affinity(0); !slices.Equal(mine, want[:1]) {
			t.Errorf("the thread's mask became %v", mine)
		}
	})
}
