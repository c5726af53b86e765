package netlab

import (
	"context"
	"strings"
	"syscall"
	"testing"
)

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
