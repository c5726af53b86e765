package main

import (
	"bytes"
	"flag"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/shuntio/shunt/bpf"
	"github.com/shuntio/shunt/tools/control"
)

var update = flag.Bool("update", false, "write the golden files anew")

// key is how the daemon's API, too, names what it tells.
var key = regexp.MustCompile(`"([^"]*)":`)
var goodKey = regexp.MustCompile(`^[a-z]+(-[a-z]+)*$`)

// What people and programs are told.
func TestOutput(t *testing.T) {
	two := 2
	status := []bpf.Attachment{
		{
			Interface: "eth1", Mode: bpf.Native, Program: bpf.ProgramInfo{ID: 41, Name: "shunt_steer", Tag: "0123456789abcdef"}, Link: 7,
			Pin: "/sys/fs/bpf/shunt/eth1", Owner: 1234, OwnerName: "shuntd",
			Maps:     []bpf.MapInfo{{ID: 5, Name: "vnis", Type: "Hash", Entries: &two, MaxEntries: 4096}, {ID: 6, Name: "sockets", Type: "XSKMap", MaxEntries: 64}},
			Counters: []bpf.Counter{{Verdict: "redirect", Packets: 3, Bytes: 450}, {Verdict: "pass-other", Packets: 1, Bytes: 60}},
		},
		{Interface: "eth2", Mode: bpf.Generic, Program: bpf.ProgramInfo{ID: 42, Name: "stranger", Tag: "fedcba9876543210"}, Maps: []bpf.MapInfo{}},
	}
	load := &loaded{Name: "shunt_steer", Tag: "0123456789abcdef", Instructions: 900, Verified: 4000, Jited: 5000, Maps: 6, Pin: "/sys/fs/bpf/p"}
	refused := &attached{Interface: "eth1", Mode: bpf.Generic, NativeRefused: "the driver has no XDP", Pin: "/sys/fs/bpf/shunt/eth1"}
	for _, test := range []struct {
		name  string
		value any
		table func(io.Writer)
	}{
		{"status", status, func(w io.Writer) { statusTable(w, nil, status) }},
		{"load", load, load.table},
		{"attach", refused, refused.table},
	} {
		for _, output := range []string{"table", "json"} {
			var out bytes.Buffer
			if err := (&options{output: output}).print(&out, test.value, test.table); err != nil {
				t.Fatal(err)
			}
			golden(t, test.name+"."+output+".golden", out.String())
			if output != "json" {
				continue
			}
			for _, k := range key.FindAllStringSubmatch(out.String(), -1) {
				if !goodKey.MatchString(k[1]) {
					t.Errorf("%s: the key %q is not written as those of the API are", test.name, k[1])
				}
			}
		}
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", name, diff)
	}
}

func TestVersion(t *testing.T) {
	var out bytes.Buffer
	cmd := newCommand()
	cmd.SetArgs([]string{"--version"})
	cmd.SetOut(&out)
	if err := cmd.Execute(); err != nil || out.String() != "shuntbpf "+control.Version()+"\n" {
		t.Errorf("%q %v", out.String(), err)
	}
}

// The shell offers interfaces where one is wanted.
func TestCompletion(t *testing.T) {
	for _, args := range [][]string{{"attach", ""}, {"detach", ""}, {"status", ""}, {"pin", ""}} {
		var out bytes.Buffer
		cmd := newCommand()
		cmd.SetArgs(append([]string{"__complete"}, args...))
		cmd.SetOut(&out)
		cmd.SetErr(io.Discard)
		if err := cmd.Execute(); err != nil || !bytes.HasPrefix(out.Bytes(), []byte("lo\n")) {
			t.Errorf("%v: %q %v", args, out.String(), err)
		}
	}
}
