package netlab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/tools/need"
)

func namespace(t *testing.T, name string) *Namespace {
	t.Helper()
	need.Root(t)
	ns, err := NewNamespace(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ns.Close(); err != nil {
			t.Error(err)
		}
	})
	return ns
}

func TestVethCarriesTraffic(t *testing.T) {
	need.Program(t, "ping")
	a, b := namespace(t, "a"), namespace(t, "b")
	err := Veth(
		End{Namespace: a, Name: "left", MAC: "02:00:00:00:00:01", MTU: 2000, Addrs: []string{"10.0.0.1/24", "fd00::1/64"}},
		End{Namespace: b, Name: "right", Addrs: []string{"10.0.0.2/24", "fd00::2/64"}}, 2)
	if err != nil {
		t.Fatal(err)
	}
	for _, peer := range []string{"10.0.0.2", "fd00::2"} {
		if out, err := a.Run(t.Context(), "ping", "-c1", "-W5", peer); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	}
	err = a.Do(func() error {
		dev, err := net.InterfaceByName("left")
		if err != nil {
			return err
		}
		if dev.MTU != 2000 || dev.HardwareAddr.String() != "02:00:00:00:00:01" {
			t.Errorf("left has MTU %d and address %s, want 2000 and 02:00:00:00:00:01", dev.MTU, dev.HardwareAddr)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	// The namespace's own /sys, seen by programs run inside.
	out, err := b.Run(t.Context(), "ls", "/sys/class/net/right/queues")
	if err != nil || strings.Join(strings.Fields(out), " ") != "rx-0 rx-1 tx-0 tx-1" {
		t.Errorf("queues of right: %q, %v", out, err)
	}
}

func TestVethRefusesBadEnds(t *testing.T) {
	ns := namespace(t, "bad")
	good := End{Namespace: ns, Name: "good"}
	for name, end := range map[string]End{
		"long name":   {Namespace: ns, Name: "sixteen-bytes-ab"},
		"no name":     {Namespace: ns},
		"bad MAC":     {Namespace: ns, Name: "x", MAC: "nonsense"},
		"bad address": {Namespace: ns, Name: "x", Addrs: []string{"10.0.0.300/24"}},
		"gone":        {Namespace: &Namespace{Name: "shunt-never-made"}, Name: "x"},
	} {
		if err := Veth(good, end, 0); err == nil {
			t.Errorf("%s: no error", name)
		}
		err := ns.Do(func() error { _, err := net.InterfaceByName("good"); return err })
		if err == nil {
			t.Fatalf("%s: the other end is left behind", name)
		}
	}
}

// Many goroutines enter and leave; none may come back to another network.
func TestDoLeavesThreadsAsTheyWere(t *testing.T) {
	a, b := namespace(t, "a"), namespace(t, "b")
	own := inode(t)
	var all sync.WaitGroup
	for i := range 40 {
		ns := []*Namespace{a, b}[i%2]
		all.Go(func() {
			err := ns.Do(func() error {
				runtime.Gosched()
				var want unix.Stat_t
				if err := unix.Stat(ns.Path(), &want); err != nil {
					return err
				}
				if got := inode(t); got != want.Ino {
					return fmt.Errorf("inside %s the namespace is %d, want %d", ns.Name, got, want.Ino)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
			if got := inode(t); got != own {
				t.Errorf("after Do the namespace is %d, want %d", got, own)
			}
		})
	}
	all.Wait()
}

// inode identifies the network namespace of the thread this runs on.
func inode(t *testing.T) uint64 {
	var st unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &st); err != nil {
		t.Error(err)
	}
	return st.Ino
}

func TestDoHandsBackErrorsAndPanics(t *testing.T) {
	ns := namespace(t, "do")
	want := errors.New("from inside")
	if err := ns.Do(func() error { return want }); err != want {
		t.Errorf("Do returned %v, want %v", err, want)
	}
	if err := ns.Do(func() error { runtime.Goexit(); return nil }); err == nil {
		t.Error("Do of a function that ended its goroutine returned no error")
	}
	defer func() {
		if r := recover(); r != "at the disco" {
			t.Errorf("recovered %v", r)
		}
	}()
	_ = ns.Do(func() error { panic("at the disco") })
}

func TestRunSaysWhatFailed(t *testing.T) {
	ns := namespace(t, "run")
	_, err := ns.Run(t.Context(), "sh", "-c", "echo the reason >&2; exit 3")
	if err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "the reason") {
		t.Errorf("error is %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	// The sleep is a grandchild: the whole group has to go.
	if _, err = ns.Run(ctx, "sh", "-c", "sleep 1000; true"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error is %v, want a deadline exceeded", err)
	}
	if pids, err := processesIn(ns.Path()); err != nil || len(pids) != 0 {
		t.Errorf("processes left: %v, %v", pids, err)
	}
}

func TestPinsBelongToTheirNamespace(t *testing.T) {
	a, b := namespace(t, "a"), namespace(t, "b")
	if _, err := a.Run(t.Context(), "mkdir", "/sys/fs/bpf/pinned"); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Run(t.Context(), "test", "-d", "/sys/fs/bpf/pinned"); err != nil {
		t.Errorf("a later process of a does not see it: %v", err)
	}
	if _, err := b.Run(t.Context(), "test", "!", "-e", "/sys/fs/bpf/pinned"); err != nil {
		t.Errorf("b sees it: %v", err)
	}
	if _, err := os.Stat(filepath.Join(a.BPF(), "pinned")); err != nil {
		t.Error(err)
	}
}

func TestCloseEndsWhatRunsInside(t *testing.T) {
	ns := namespace(t, "close")
	cmd := ns.Command(context.Background(), "sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	waitInside(t, ns, cmd)
	if err := ns.Close(); err != nil {
		t.Error(err)
	}
	var exit *exec.ExitError
	if err := <-ended; !errors.As(err, &exit) || exit.ExitCode() != -1 {
		t.Errorf("the process ended with %v, want killed", err)
	}
	for _, path := range []string{ns.Path(), filepath.Dir(ns.BPF())} {
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
	if err := ns.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

func TestSweepTakesOnlyWhatTheDeadLeft(t *testing.T) {
	need.Root(t)
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	ours := namespace(t, "alive")
	left := &Namespace{Name: fmt.Sprintf("shunt-%d-1-left", dead.Process.Pid)}
	t.Cleanup(func() { _ = left.Close() })
	if err := left.create(); err != nil {
		t.Fatal(err)
	}
	cmd := left.Command(context.Background(), "sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	waitInside(t, left, cmd)
	if err := Sweep(); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait()
	if _, err := os.Stat(left.Path()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the dead process's namespace is left: %v", err)
	}
	if _, err := os.Stat(ours.Path()); err != nil {
		t.Errorf("the living process's namespace: %v", err)
	}
}

// waitInside waits until a started command has entered its namespace.
func waitInside(t *testing.T, ns *Namespace, cmd *exec.Cmd) {
	t.Helper()
	for {
		pids, err := processesIn(ns.Path())
		if err != nil {
			t.Fatal(err)
		}
		for _, pid := range pids {
			if pid == cmd.Process.Pid {
				return
			}
		}
		if t.Context().Err() != nil {
			t.Fatal("the command never entered its namespace")
		}
		runtime.Gosched()
	}
}
