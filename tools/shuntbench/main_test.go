package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shuntio/shunt/bench"
)

func execute(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	cmd := command()
	cmd.SetArgs(args)
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

func TestList(t *testing.T) {
	out, err := execute(t, "list")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range bench.Scenarios() {
		if !strings.Contains(out, s.Name+" ") {
			t.Errorf("%s is not listed:\n%s", s.Name, out)
		}
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{
		{"run", "nothing-such"}, {"run", "-o", "xml"}, {"run", "--frame", "many"}, {"run", "--frame", "-1"}, {"run", "--frame", "9000"}, {"run", "--duration", "0s"}, {"run", "--worker-cpu", "-1"},
		{"nothing-such"}, {"list", "all"}, {"compare", "one"}, {"compare", "/nonexistent", "/nonexistent"},
	} {
		_, err := execute(t, args...)
		var usage usageError
		if !errors.As(err, &usage) {
			t.Errorf("%v: %v, want a usage error", args, err)
		}
	}
	if _, err := execute(t, "run", "guest-to-guest", "--worker-cpu", "0", "--guest-cpu", "0"); err == nil {
		t.Error("worker and guest on one CPU: no error")
	}
}

func TestCompare(t *testing.T) {
	file := func(name, rate string) string {
		path := filepath.Join(t.TempDir(), name)
		text := `[{"scenario": "s", "metrics": [{"name": "rate", "unit": "Mpps", "value": ` + rate + `, "better": 1}]}]`
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	out, err := execute(t, "compare", file("old", "4"), file("new", "5"))
	if err != nil || !strings.Contains(out, "1.25") {
		t.Errorf("%v\n%s", err, out)
	}
}
