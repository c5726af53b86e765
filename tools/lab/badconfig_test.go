package lab

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestWrongValues starts the program with configurations that have one thing wrong. Each of them stands in the file of the
// test with the sentence that must refuse it as its first line, a comment.
func TestWrongValues(t *testing.T) {
	ctx := within(t, time.Minute)
	binary := shuntd(t)
	all, err := os.ReadFile("testdata/wrong-values.txt")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "shunt.yaml")
	count := 0
	for text := range strings.SplitSeq(string(all), "\n\n") {
		count++
		if err := os.WriteFile(file, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(ctx, binary, "--config", file)
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET} // where it would harm nobody
		out, err := cmd.CombinedOutput()
		first, _, _ := strings.Cut(text, "\n")
		if want := file + ":" + strings.TrimPrefix(first, "# ") + "\n"; string(out) != want || exitStatus(err) != 2 {
			t.Errorf("%s\nexit status %d:\n%swant 2:\n%s", text, exitStatus(err), out, want)
		}
	}
	if count < 40 {
		t.Errorf("the file has %d configurations, of which some got lost", count)
	}
}

// exitStatus of a program, -1 when it could not be run or was killed.
func exitStatus(err error) int {
	if err == nil {
		return 0
	}
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return -1
}
