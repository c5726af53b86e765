package leftover

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// state is what a test could change of the process for those after it.
type state struct {
	procs   int
	limits  [16]unix.Rlimit // RLIMIT_CPU to RLIMIT_RTTIME
	threads []unix.CPUSet   // the CPUs of each, without doubles
	dir     string
}

func process() (s state) {
	s.procs = runtime.GOMAXPROCS(0)
	for which := range s.limits {
		_ = unix.Getrlimit(which, &s.limits[which])
	}
	threads, _ := filepath.Glob("/proc/self/task/*")
	for _, thread := range threads {
		tid, _ := strconv.Atoi(filepath.Base(thread))
		var set unix.CPUSet
		if unix.SchedGetaffinity(tid, &set) == nil && !slices.Contains(s.threads, set) {
			s.threads = append(s.threads, set)
		}
	}
	s.dir, _ = os.Getwd()
	return s
}

// changed says what is not as it was.
func changed(was, is state) (all []string) {
	if is.procs != was.procs {
		all = append(all, fmt.Sprintf("GOMAXPROCS %d, not %d", is.procs, was.procs))
	}
	for which, limit := range is.limits {
		if limit != was.limits[which] {
			all = append(all, fmt.Sprintf("resource limit %d (sys/resource.h) at %+v, not %+v", which, limit, was.limits[which]))
		}
	}
	for _, set := range is.threads {
		if !slices.Contains(was.threads, set) {
			all = append(all, fmt.Sprintf("a thread on %d CPUs, %v", set.Count(), set[:1]))
		}
	}
	if is.dir != was.dir {
		all = append(all, "the working directory "+is.dir)
	}
	return all
}
