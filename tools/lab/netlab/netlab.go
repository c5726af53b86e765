// Package netlab makes small networks out of network namespaces and veth
// pairs, on one machine, for tests and for the demo:
//
//	+-- Namespace ----------+           +-- Namespace ----------+
//	| lo                    |   Veth    | lo                    |
//	| End a  10.0.0.1/24  <-+-----------+-> End b  10.0.0.2/24  |
//	| /sys, /sys/fs/bpf     |           | /sys, /sys/fs/bpf     |
//	+-----------------------+           +-----------------------+
//
// A [Namespace] plays a machine. Beside its network it has a BPF file system
// of its own, so two daemons that pin the same names do not meet, and a pin
// survives the process that made it, as on a machine. Processes started with
// [Namespace.Command] see that file system at /sys/fs/bpf and the namespace's
// own devices in /sys/class/net; files and sockets elsewhere are shared with
// the caller.
//
// Everything is named after the process that made it. [Namespace.Close] ends
// what still runs inside and removes it; what a killed process left behind is
// removed by the next process that makes a namespace, or by [Sweep].
package netlab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	// netnsDir is where iproute2 looks for named namespaces, so that
	// "ip netns exec" works on ours while a test is being looked into.
	netnsDir = "/run/netns"
	// stateDir holds one directory a namespace, with its BPF file system.
	stateDir = "/run/shunt-lab"
)

// made numbers the namespaces of this process.
var made atomic.Uint32

// Namespace is a network namespace with a BPF file system of its own.
type Namespace struct {
	// Name is what "ip netns" lists: shunt-PID-NUMBER-NAME.
	Name string
}

// NewNamespace makes a namespace whose name ends in name, with lo up and IPv6
// duplicate address detection off, so that addresses are usable at once. It
// needs root. The first call of a process sweeps what dead processes left.
func NewNamespace(name string) (*Namespace, error) {
	sweepOnce()
	ns := &Namespace{Name: fmt.Sprintf("shunt-%d-%d-%s", os.Getpid(), made.Add(1), name)}
	if err := ns.create(); err != nil {
		if errors.Is(err, fs.ErrPermission) {
			err = fmt.Errorf("%w: run as root", err)
		}
		return nil, errors.Join(fmt.Errorf("make namespace %s: %w", ns.Name, err), ns.Close())
	}
	return ns, nil
}

func (ns *Namespace) create() error {
	if err := shareNetnsDir(); err != nil {
		return fmt.Errorf("prepare %s: %w", netnsDir, err)
	}
	if err := makeNamed(ns.Name); err != nil {
		return err
	}
	if err := os.MkdirAll(ns.BPF(), 0o755); err != nil {
		return err
	}
	if err := unix.Mount("bpf", ns.BPF(), "bpf", 0, ""); err != nil {
		return fmt.Errorf("mount a BPF file system on %s: %w", ns.BPF(), err)
	}
	return ns.Do(func() error {
		for _, conf := range []string{"all", "default"} {
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+conf+"/accept_dad", []byte("0"), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("find lo: %w", err)
		}
		return netlink.LinkSetUp(lo)
	})
}

// shareNetnsDir does to the directory what iproute2 does when it makes its
// first namespace: mount it on itself, shared. Done later, over namespaces that
// are there, it would hide their mounts from everyone who wants to undo them.
func shareNetnsDir() error {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return err
	}
	dir, err := os.Open(netnsDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil { // as iproute2 does
		return err
	}
	err = unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if err != unix.EINVAL { // EINVAL: it is no mount yet
		return err
	}
	if err := unix.Mount(netnsDir, netnsDir, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	return unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, "")
}

// makeNamed makes a named namespace on a thread that is given back only when
// it is in its old namespace again; otherwise it dies with its goroutine.
func makeNamed(name string) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		old, err := netns.Get()
		if err != nil {
			done <- fmt.Errorf("find the current namespace: %w", err)
			return
		}
		defer old.Close()
		made, err := netns.NewNamed(name)
		if err == nil {
			made.Close()
		}
		if netns.Set(old) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// Path is the file that stands for the namespace, for setns(2) and nsenter(1).
func (ns *Namespace) Path() string { return filepath.Join(netnsDir, ns.Name) }

// BPF is where the namespace's /sys/fs/bpf is seen from outside.
func (ns *Namespace) BPF() string { return filepath.Join(stateDir, ns.Name, "bpf") }

// Do runs fn inside the namespace, on an OS thread that is locked meanwhile.
// Sockets fn opens stay in the namespace after it returned. Goroutines fn
// starts do not run inside, and files under /sys are still the caller's: ask
// for devices through sockets. A nil namespace is the caller's own.
func (ns *Namespace) Do(fn func() error) error {
	if ns == nil {
		return fn()
	}
	type result struct {
		err   error
		panic any
	}
	done := make(chan result, 1)
	go func() {
		var r result
		// A Goexit in fn (a failed test's) must not leave the caller waiting.
		finished := false
		runtime.LockOSThread()
		defer func() {
			if !finished {
				if r.panic = recover(); r.panic == nil {
					r.err = fmt.Errorf("the function run inside %s ended its goroutine", ns.Name)
				}
			}
			done <- r
		}()
		r.err = ns.enterAnd(fn)
		finished = true
	}()
	r := <-done
	if r.panic != nil {
		panic(r.panic)
	}
	return r.err
}

// enterAnd moves the locked thread into the namespace, runs fn, and unlocks
// the thread when it is back.
func (ns *Namespace) enterAnd(fn func() error) error {
	old, err := netns.Get()
	if err != nil {
		return fmt.Errorf("find the current namespace: %w", err)
	}
	defer old.Close()
	inside, err := netns.GetFromPath(ns.Path())
	if err != nil {
		return fmt.Errorf("open namespace %s: %w", ns.Name, err)
	}
	defer inside.Close()
	if err := netns.Set(inside); err != nil {
		return fmt.Errorf("enter namespace %s: %w", ns.Name, err)
	}
	defer func() {
		if netns.Set(old) == nil {
			runtime.UnlockOSThread()
		}
	}()
	return fn()
}

// Close kills the processes that run inside, removes the devices and the
// namespace with its BPF file system. A second call does nothing.
func (ns *Namespace) Close() error {
	if ns == nil {
		return nil
	}
	return remove(ns.Name)
}
