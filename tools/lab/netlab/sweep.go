package netlab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// killWait bounds how long Close waits for a killed process to be gone; the
// kernel's own teardown of AF_XDP sockets and guests stays far below it.
const killWait = 10 * time.Second

var sweepOnce = sync.OnceFunc(func() { _ = Sweep() })

// Sweep removes the namespaces of processes that no longer live, with what
// still runs inside.
func Sweep() error {
	var errs []error
	seen := map[string]bool{}
	for _, dir := range []string{netnsDir, stateDir} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue // never made, so nothing to sweep
		}
		for _, e := range entries {
			if name := e.Name(); !seen[name] && ownerDied(name) {
				seen[name] = true
				errs = append(errs, remove(name))
			}
		}
	}
	return errors.Join(errs...)
}

// ownerDied says whether name is one of ours whose maker is gone. A number
// this process has not given out yet belongs to an earlier one of its pid.
func ownerDied(name string) bool {
	parts := strings.SplitN(name, "-", 4)
	if len(parts) != 4 || parts[0] != "shunt" {
		return false
	}
	pid, err1 := strconv.Atoi(parts[1])
	number, err2 := strconv.ParseUint(parts[2], 10, 32)
	if err1 != nil || err2 != nil || pid <= 0 {
		return false
	}
	if pid == os.Getpid() {
		return uint32(number) > made.Load()
	}
	return errors.Is(unix.Kill(pid, 0), unix.ESRCH)
}

// remove takes a namespace down in the order its parts depend on each other:
// processes, devices (so that a veth's other end is gone on return), the BPF
// file system, the name.
func remove(name string) error {
	path := filepath.Join(netnsDir, name)
	var errs []error
	if inside, err := netns.GetFromPath(path); err == nil {
		errs = append(errs, killInside(path), deleteVeths(inside))
		inside.Close()
	}
	state := filepath.Join(stateDir, name)
	if err := unix.Unmount(filepath.Join(state, "bpf"), unix.MNT_DETACH); err != nil && !errors.Is(err, fs.ErrNotExist) && err != unix.EINVAL {
		errs = append(errs, fmt.Errorf("unmount the BPF file system of %s: %w", name, err))
	}
	_ = os.Remove(filepath.Join(state, "bpf")) // never RemoveAll: a failed unmount must not delete pins one by one
	_ = os.Remove(state)
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, fs.ErrNotExist) && err != unix.EINVAL {
		errs = append(errs, fmt.Errorf("unmount namespace %s: %w", name, err))
	}
	// Busy is a name whose mount somebody hid, see shareNetnsDir. It cannot be
	// undone from here, and no later namespace has that name.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.EBUSY) {
		errs = append(errs, fmt.Errorf("remove namespace %s: %w", name, err))
	}
	return errors.Join(errs...)
}

func deleteVeths(inside netns.NsHandle) error {
	handle, err := netlink.NewHandleAt(inside, unix.NETLINK_ROUTE)
	if err != nil {
		return nil // not a namespace: a name that was never bound to one
	}
	defer handle.Close()
	links, err := handle.LinkList()
	if err != nil {
		return fmt.Errorf("list devices: %w", err)
	}
	var errs []error
	for _, link := range links {
		if link.Type() != "veth" {
			continue
		}
		if err := handle.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("delete device %s: %w", link.Attrs().Name, err))
		}
	}
	return errors.Join(errs...)
}

// killInside kills every process in the namespace and waits until none is
// left. It looks again after each round, as a dying process may have forked.
func killInside(path string) error {
	deadline := time.Now().Add(killWait)
	for {
		pids, err := processesIn(path)
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			if err := killAndWait(pid, time.Until(deadline)); err != nil {
				return err
			}
		}
	}
}

// killAndWait goes through a pidfd, so that a pid reused meanwhile is safe.
func killAndWait(pid int, wait time.Duration) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil // gone already
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		return nil
	}
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, max(0, int(wait.Milliseconds())))
	if n == 0 && err == nil {
		return fmt.Errorf("process %d was killed but did not end within %v", pid, killWait)
	}
	return nil
}

// processesIn lists the processes of a namespace, without this one. A zombie
// is in no namespace and so is not listed.
func processesIn(path string) ([]int, error) {
	var want, have unix.Stat_t
	if err := unix.Stat(path, &want); err != nil {
		return nil, fmt.Errorf("look at %s: %w", path, err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if unix.Stat("/proc/"+e.Name()+"/ns/net", &have) == nil && have.Ino == want.Ino && have.Dev == want.Dev {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}
