// Package leftover holds a test binary to leaving its machine as it found it, and lets no test change the process for those after it:
//
//	Run -> a folder for temporary files of its own, what killed runs left of theirs is removed
//	       the package's tests
//	    -> what is there that was not: processes, namespaces, mounts, pins, cgroups, huge pages, files;
//	       threads on other CPUs than before, other limits, another GOMAXPROCS
//
// Processes are told by a variable that they inherit, so also those that the kernel gave another parent; all else by the number of the process, or by
// being in its folder. What others do on the machine at the same time is not counted.
package leftover

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// prefix of the folder for temporary files, before the number of its process. It is short, for the sake of sockets' paths.
	prefix = "lab-"
	// variable marks the processes of a run.
	variable = "SHUNT_TEST_RUN"
	// patience is how long the kernel may take to remove what belongs to processes that ended.
	patience = 5 * time.Second
)

// The first thread is the main goroutine's, which runs no test: Go keeps that thread when a goroutine ends that is locked to it, with the CPUs that it was
// pinned to, and for the kernel those are the process's.
func init() { runtime.LockOSThread() }

// Run runs a package's tests, as the run function of a testing.M does, and returns the exit status: 1 also if they leave something behind, which is then
// told on standard error.
func Run(tests func() int) int {
	dir, err := begin(os.TempDir())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	was := process()
	status := tests()
	left := append(settle(func() []string { return append(Of(os.Getpid()), changed(was, process())...) }), files(dir)...)
	if err := os.RemoveAll(dir); err != nil {
		left = append(left, err.Error())
	}
	if len(left) > 0 {
		fmt.Fprintf(os.Stderr, "The tests left behind:\n\t%s\n", strings.Join(left, "\n\t"))
		return max(status, 1)
	}
	return status
}

// begin makes the folder for temporary files, below another, and removes those of processes that are no more.
func begin(below string) (dir string, err error) {
	sweep(below)
	dir = filepath.Join(below, prefix+strconv.Itoa(os.Getpid()))
	err = errors.Join(os.Mkdir(dir, 0o755), os.Chmod(dir, 0o755), os.Setenv("TMPDIR", dir), os.Setenv(variable, strconv.Itoa(os.Getpid())))
	return dir, err
}

// sweep removes what processes that are no more had below a folder, and what DPDK made for them.
func sweep(below string) {
	old, _ := filepath.Glob(filepath.Join(below, prefix+"*"))
	dpdk, _ := filepath.Glob("/run/dpdk/shunt-*")
	for _, dir := range append(old, dpdk...) {
		number, isOurs := strings.CutPrefix(filepath.Base(dir), prefix)
		if !isOurs {
			number, _, _ = strings.Cut(strings.TrimPrefix(filepath.Base(dir), "shunt-"), "-")
		}
		pid, err := strconv.Atoi(number)
		if err != nil || pid != os.Getpid() && !errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
			continue
		}
		for _, mount := range mounts(dir + "/") {
			_ = unix.Unmount(mount, unix.MNT_DETACH)
		}
		_ = os.RemoveAll(dir)
	}
}

// settle asks until nothing is left, or for so long that it stays.
func settle(ask func() []string) (left []string) {
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		if left = ask(); len(left) == 0 || time.Now().After(deadline) {
			return left
		}
	}
}

// Of lists what a process that runs tests has on the machine, but for files.
func Of(pid int) (left []string) {
	number := strconv.Itoa(pid)
	for _, p := range PIDs(pid) {
		command, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p))
		left = append(left, fmt.Sprintf("process %d: %s", p, strings.TrimSpace(strings.ReplaceAll(string(command), "\x00", " "))))
	}
	for _, pattern := range []string{
		"/run/netns/shunt-" + number + "-*", "/run/shunt-lab/shunt-" + number + "-*", // namespaces, and their BPF file systems
		"/run/shunt-lab-hugepages/" + number,
		"/sys/fs/cgroup/shunt-lab-" + number + "-*", "/sys/fs/cgroup/*/shunt-lab-" + number + "-*",
		"/run/dpdk/shunt-" + number + "-*",
	} {
		found, _ := filepath.Glob(pattern)
		left = append(left, found...)
	}
	for _, part := range []string{"/shunt-" + number + "-", "/" + prefix + number + "/"} {
		for _, mount := range mounts(part) {
			left = append(left, "mount "+mount)
		}
	}
	return left
}

// PIDs are those of the processes that a process which runs tests has started, itself not among them.
func PIDs(of int) (found []int) {
	environments, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, path := range environments {
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		text, err := os.ReadFile(path)
		if err == nil && pid != os.Getpid() && slices.Contains(strings.Split(string(text), "\x00"), variable+"="+strconv.Itoa(of)) {
			found = append(found, pid)
		}
	}
	return found
}

// mounts are the places of those with a part of a path in theirs.
func mounts(part string) (found []string) {
	text, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && strings.Contains(f[1], part) {
			found = append(found, f[1])
		}
	}
	return found
}

// files are those in a folder that should be empty.
func files(dir string) (left []string) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		left = append(left, err.Error())
	}
	for _, e := range entries {
		left = append(left, filepath.Join(dir, e.Name()))
	}
	return left
}
