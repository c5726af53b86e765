package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/shuntio/shunt/bench"
	"github.com/shuntio/shunt/tools/control"
)

func execute(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	cmd := newCommand()
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
	var all []listed
	out, err = execute(t, "list", "-o", "json")
	if err := errors.Join(err, json.Unmarshal([]byte(out), &all)); err != nil || len(all) != len(bench.Scenarios()) || all[0].Help == "" {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{
		{"run", "nothing-such"}, {"run", "-o", "xml"}, {"run", "--frame", "many"}, {"run", "--frame", "-1"}, {"run", "--frame", "9000"}, {"run", "--duration", "0s"}, {"run", "--worker-cpu", "-1"},
		{"nothing-such"}, {"list", "all"}, {"list", "-o", "xml"}, {"compare", "one"}, {"compare", "/nonexistent", "/nonexistent"},
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
	other := filepath.Join(t.TempDir(), "other")
	if err := os.WriteFile(other, []byte(`[{"scenario": "s", "metrics": [{"name": "rate", "unit": "Mpps", "value": 0}, {"name": "more", "unit": "ns", "value": 1}]}]`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		old, now, table, json string
	}{
		{file("old", "4"), file("new", "5"), "s rate Mpps 4.00 5.00 1.25\n", `[{"scenario":"s","metric":"rate","unit":"Mpps","old":4,"new":5,"ratio":1.25}]`},
		{other, file("new", "5"), "s rate Mpps 0.00 5.00 -\ns more ns 1.00 - -\n", `[{"scenario":"s","metric":"rate","unit":"Mpps","old":0,"new":5},` +
			`{"scenario":"s","metric":"more","unit":"ns","old":1}]`},
	} {
		out, err := execute(t, "compare", test.old, test.now)
		_, rows, _ := strings.Cut(regexp.MustCompile(` +`).ReplaceAllString(out, " "), "\n")
		if err != nil || rows != test.table {
			t.Errorf("%v\n%s", err, out)
		}
		out, err = execute(t, "compare", test.old, test.now, "-o", "json")
		var compact bytes.Buffer
		if err := errors.Join(err, json.Compact(&compact, []byte(out))); err != nil || compact.String() != test.json+"\n" && compact.String() != test.json {
			t.Errorf("%v\n%s", err, out)
		}
	}
}

func TestVersion(t *testing.T) {
	if out, err := execute(t, "--version"); err != nil || out != "shuntbench "+control.Version()+"\n" {
		t.Errorf("%q %v", out, err)
	}
}

func TestCompletion(t *testing.T) {
	out, err := execute(t, "__complete", "run", "guest-to-guest", "")
	if err != nil || !strings.Contains(out, "guest-to-wire\t") || strings.Contains(out, "guest-to-guest\t") {
		t.Errorf("%q %v", out, err)
	}
}
