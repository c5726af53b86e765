package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestCheck runs the program itself: what a unit file or a deployment script sees of it.
func TestCheck(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "shuntd")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, test := range []struct {
		text, out string
		status    int
	}{
		{"networks: [{name: blue}]\n", "shunt.yaml: the configuration is good\n", 0},
		{"networks: [{name: Blue}]\n", `shunt.yaml:1:19: networks[0].name: "Blue" is not a name`, 2},
		{"networks: [{name: blue]\n", "shunt.yaml:1:23: this is not YAML: ", 2},
	} {
		if err := os.WriteFile(filepath.Join(dir, "shunt.yaml"), []byte(test.text), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), program, "--check", "--config", "shunt.yaml")
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		status := 0
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			status = exit.ExitCode()
		} else if err != nil {
			t.Fatal(err)
		}
		if status != test.status || !strings.HasPrefix(string(out), test.out) {
			t.Errorf("%q: status %d, %s\nwant %d, %s", test.text, status, out, test.status, test.out)
		}
	}
}
