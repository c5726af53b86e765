package netlab

import (
	"context"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/tools/lab/leftover"
)

func TestMain(m *testing.M) { os.Exit(leftover.Run(m.Run)) }

func TestProcess(t *testing.T) {
	var here *Namespace
	start := func(script string) *Process {
		t.Helper()
		p, err := Start(here.Command(context.Background(), "sh", "-c", script))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Kill)
		return p
	}
	p := start("echo out; echo err >&2; exit 4")
	if status, err := p.Result(); status != 4 || err == nil || p.Running() {
		t.Errorf("status %d, %v", status, err)
	}
	if out := p.Output(); !strings.Contains(out, "out\n") || !strings.Contains(out, "err\n") {
		t.Errorf("output %q", out)
	}
	p.Signal(syscall.SIGTERM) // of no effect, and no error

	p = start("sleep 1000; true") // the sleep must go too, or Wait hangs on its output
	p.Kill()
	if status, err := p.Result(); status != -1 || err == nil {
		t.Errorf("status %d, %v", status, err)
	}
	if _, err := Start(here.Command(context.Background(), "/nonexistent")); err == nil {
		t.Error("a program that is not there was started")
	}
}

// A process outlives the thread that asked for it.
func TestProcessOutlivesThread(t *testing.T) {
	started := make(chan *Process)
	gone := make(chan int, 1)
	go func() {
		runtime.LockOSThread() // until the goroutine ends, and the thread with it
		gone <- unix.Gettid()
		var none *Namespace
		p, err := Start(none.Command(context.Background(), "sleep", "1000"))
		if err != nil {
			t.Error(err)
		}
		started <- p
	}()
	thread, p := <-gone, <-started
	if p == nil {
		return
	}
	defer p.Kill()
	for unix.Tgkill(os.Getpid(), thread, 0) == nil { // it takes a moment to end
		time.Sleep(time.Millisecond)
	}
	select {
	case <-p.Exited():
		t.Error("the process ended with the thread")
	case <-time.After(50 * time.Millisecond): // the kernel kills at once
	}
}
