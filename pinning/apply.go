package pinning

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"
)

// Apply pins the calling thread to one CPU and asks the kernel whether it is so. When
// it returns the thread already runs there. The caller has locked its goroutine to
// the thread (runtime.LockOSThread) and never unlocks it, for the mask would stay with
// the thread and bind whatever goroutine comes next.
func Apply(cpu int) error {
	if cpu < 0 || cpu >= MaxCPUs {
		return fmt.Errorf("pin this thread to CPU %d: there is no such CPU; choose one that nproc counts", cpu)
	}
	mask := unix.NewCPUSet(MaxCPUs)
	mask.Set(cpu)
	err := unix.SchedSetaffinityDynamic(0, mask)
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("pin this thread to CPU %d: it does not exist, is offline or outside the cgroup's cpuset; choose another: %w", cpu, err)
	}
	if err != nil {
		return fmt.Errorf("pin this thread to CPU %d: %w", cpu, err)
	}
	now, err := affinity(0)
	if err != nil {
		return err
	}
	if !slices.Equal(now, []int{cpu}) {
		return fmt.Errorf("pin this thread to CPU %d: the kernel lets it run on %s instead; choose a CPU of the process's cpuset", cpu, FormatList(now))
	}
	return nil
}

// allowed returns the CPUs this process may use.
//
// isolcpus= takes the isolated CPUs out of the mask every process starts with, though
// a process may still move there, as workers shall. So where the mask is just what
// the cpuset permits without the isolated CPUs, nobody narrowed it on purpose, and
// they belong to it.
func allowed(isolated []int) ([]int, error) {
	mask, err := affinity(os.Getpid())
	if err != nil {
		return nil, err
	}
	if len(isolated) == 0 {
		return mask, nil
	}
	permitted, err := permitted()
	if err != nil {
		return nil, err
	}
	return widen(mask, permitted, isolated), nil
}

// widen is the judgement of allowed.
func widen(mask, permitted, isolated []int) []int {
	start := slices.DeleteFunc(slices.Clone(permitted), func(cpu int) bool { return slices.Contains(isolated, cpu) })
	if slices.Equal(mask, start) {
		return permitted
	}
	return mask
}

// permitted returns the CPUs the cpuset allows: what is left of a mask of all. It asks
// for them on a thread that gets its own mask back, or else is never used again.
func permitted() (cpus []int, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		var restored bool
		if cpus, restored, err = tryAll(); restored {
			runtime.UnlockOSThread()
		}
	}()
	<-done
	return cpus, err
}

// tryAll gives the calling thread a mask of all CPUs, reads what became of it, and
// restores the mask it had.
func tryAll() (cpus []int, restored bool, err error) {
	before, all := unix.NewCPUSet(MaxCPUs), unix.NewCPUSet(MaxCPUs)
	all.Fill()
	if err = unix.SchedGetaffinityDynamic(0, before); err == nil {
		err = unix.SchedSetaffinityDynamic(0, all)
	}
	if err != nil {
		return nil, true, fmt.Errorf("ask which CPUs the cpuset permits: %w", err)
	}
	cpus, err = affinity(0)
	return cpus, unix.SchedSetaffinityDynamic(0, before) == nil, err
}

// affinity returns the CPUs of a thread's mask, ascending; 0 is the calling thread.
func affinity(tid int) ([]int, error) {
	set := unix.NewCPUSet(MaxCPUs)
	if err := unix.SchedGetaffinityDynamic(tid, set); err != nil {
		return nil, fmt.Errorf("read the CPU affinity mask: %w", err)
	}
	var cpus []int
	for cpu := range MaxCPUs {
		if set.IsSet(cpu) {
			cpus = append(cpus, cpu)
		}
	}
	return cpus, nil
}
