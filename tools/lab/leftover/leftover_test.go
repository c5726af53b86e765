package leftover

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/tools/lab/netlab"
	"github.com/shuntio/shunt/tools/need"
)

// Each kind of thing that a test could leave behind is told, and nothing when it is gone.
func TestOf(t *testing.T) {
	need.Root(t)
	t.Setenv(variable, strconv.Itoa(os.Getpid()))
	if left := Of(os.Getpid()); len(left) > 0 {
		t.Fatalf("at the begin there are %q", left)
	}
	ns, err := netlab.NewNamespace("left")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	left := strings.Join(Of(os.Getpid()), "\n")
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait()
	if err := ns.Close(); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"process " + strconv.Itoa(cmd.Process.Pid) + ": sleep 1000", "/run/netns/" + ns.Name, "/run/shunt-lab/" + ns.Name, "mount " + ns.BPF()} {
		if !strings.Contains(left, want) {
			t.Errorf("%q is not told of:\n%s", want, left)
		}
	}
	if left := settle(func() []string { return Of(os.Getpid()) }); len(left) > 0 {
		t.Errorf("behind all there are %q", left)
	}
}

// What tests change of the process is told.
func TestChanged(t *testing.T) {
	was := process()
	if all := changed(was, process()); len(all) > 0 {
		t.Errorf("nothing was changed, but %q", all)
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(was.procs + 1))
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); err != nil {
		t.Fatal(err)
	}
	less := limit
	less.Cur = limit.Cur/2 + 1
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &less); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Setrlimit(unix.RLIMIT_CORE, &limit) }()
	t.Chdir(t.TempDir())
	want := 3
	pinned, done := make(chan error), make(chan struct{})
	if runtime.NumCPU() > 1 {
		want++
		go func() {
			runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
			var one unix.CPUSet
			one.Set(0)
			pinned <- unix.SchedSetaffinity(0, &one)
			<-done
		}()
		if err := <-pinned; err != nil {
			t.Fatal(err)
		}
	}
	if all := changed(was, process()); len(all) != want {
		t.Errorf("%d things were changed, told are %q", want, all)
	}
	close(done)
}

// Of folders for temporary files those of processes that ended are removed, and no others.
func TestBegin(t *testing.T) {
	below := t.TempDir()
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", os.TempDir())
	t.Setenv(variable, "")
	for _, name := range []string{prefix + strconv.Itoa(dead.Process.Pid) + "/deep", prefix + "1/deep", "labels/deep", prefix + "notes/deep"} {
		if err := os.MkdirAll(filepath.Join(below, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	dir, err := begin(below)
	if err != nil || os.TempDir() != dir {
		t.Fatalf("temporary files are in %s, not %s (%v)", os.TempDir(), dir, err)
	}
	var have []string
	for _, path := range files(below) {
		have = append(have, filepath.Base(path))
	}
	want := []string{prefix + strconv.Itoa(os.Getpid()), prefix + "1", prefix + "notes", "labels"}
	slices.Sort(want)
	slices.Sort(have)
	if !slices.Equal(have, want) {
		t.Errorf("there are %q, want %q", have, want)
	}
}
