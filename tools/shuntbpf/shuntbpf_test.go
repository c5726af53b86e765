package main

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/shuntio/shunt/bpf"
	"github.com/shuntio/shunt/tools/lab/netlab"
	"github.com/shuntio/shunt/tools/need"
)

// machine is a namespace with an interface "up0" whose peer 192.0.2.2 sends to it.
type machine struct{ *netlab.Namespace }

func newMachine(t *testing.T) machine {
	t.Helper()
	need.Root(t)
	ns, err := netlab.NewNamespace("shuntbpf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ns.Close(); err != nil {
			t.Error(err)
		}
	})
	err = netlab.Veth(
		netlab.End{Namespace: ns, Name: "up0"},
		netlab.End{Namespace: ns, Name: "peer0", Addrs: []string{"192.0.2.2/24"}}, 1)
	if err != nil {
		t.Fatal(err)
	}
	return machine{ns}
}

// shuntbpf runs a command on the machine and returns its output and exit status.
func (m machine) shuntbpf(args ...string) (out string, status int, err error) {
	cmd := newCommand()
	cmd.SetArgs(append(args, "--pin-path", m.pins()))
	var buf bytes.Buffer
	cmd.SetOut(&buf)
	cmd.SetErr(&buf)
	if err = m.Do(cmd.Execute); err != nil {
		return buf.String(), exitStatus(err), err
	}
	return buf.String(), 0, nil
}

func (m machine) pins() string { return m.BPF() + "/shunt" }

// must wants the command to succeed.
func (m machine) must(t *testing.T, args ...string) string {
	t.Helper()
	out, _, err := m.shuntbpf(args...)
	if err != nil {
		t.Fatalf("%v: %v", args, err)
	}
	return out
}

// fails wants an exit status, and every word in the message, which is one line.
func (m machine) fails(t *testing.T, status int, words string, args ...string) {
	t.Helper()
	_, got, err := m.shuntbpf(args...)
	if got != status || err == nil {
		t.Errorf("%v: exit status %d, error %v, want status %d", args, got, err, status)
		return
	}
	if !strings.Contains(err.Error(), words) || strings.Contains(err.Error(), "\n") {
		t.Errorf("%v: %q, want one line with %q", args, err, words)
	}
}

func (m machine) status(t *testing.T, args ...string) []bpf.Attachment {
	t.Helper()
	var all []struct {
		bpf.Attachment
		Mode string `json:"mode"`
	}
	out := m.must(t, append([]string{"status", "-o", "json"}, args...)...)
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	attachments := make([]bpf.Attachment, len(all))
	for i, a := range all {
		attachments[i] = a.Attachment
		if attachments[i].Mode, _ = bpf.ParseMode(a.Mode); attachments[i].Mode.String() != a.Mode {
			t.Errorf("mode %q", a.Mode)
		}
	}
	return attachments
}

// other compiles the programs that are not ours.
func other(t *testing.T) string {
	t.Helper()
	need.Program(t, "clang")
	object := filepath.Join(t.TempDir(), "other.o")
	out, err := exec.Command("clang", "-O2", "-g", "-target", "bpfel", "-I/usr/include/x86_64-linux-gnu", "-I/usr/include/aarch64-linux-gnu",
		"-c", "testdata/other.bpf.c", "-o", object).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return object
}

func TestOurProgram(t *testing.T) {
	m := newMachine(t)
	if out := m.must(t, "load"); !strings.Contains(out, "shunt_steer") {
		t.Errorf("load: %s", out)
	}
	if out := m.must(t, "status"); !strings.Contains(out, "no XDP program on any interface") {
		t.Errorf("status: %s", out)
	}
	if out := m.must(t, "attach", "up0", "--mode", "generic", "--vtep", "192.0.2.1,2001:db8::1", "--vni", "100", "--vni", "200"); !strings.Contains(out, "generic") {
		t.Errorf("attach: %s", out)
	}
	if _, err := m.Run(t.Context(), "ping", "-c1", "-W1", "192.0.2.3"); err == nil { // an ARP request at least
		t.Error("somebody answers for 192.0.2.3")
	}
	all := m.status(t)
	if len(all) != 1 || all[0].Interface != "up0" || all[0].Mode != bpf.Generic || all[0].Program.Name != "shunt_steer" ||
		all[0].Link == 0 || all[0].Owner != 0 || !strings.HasPrefix(all[0].Pin, m.pins()) {
		t.Fatalf("status: %+v", all)
	}
	entries := map[string]int{}
	for _, table := range all[0].Maps {
		if table.Entries != nil {
			entries[table.Name] = *table.Entries
		}
	}
	if entries["vteps4"] != 1 || entries["vteps6"] != 1 || entries["networks"] != 2 || entries["macs"] != 0 {
		t.Errorf("entries: %v", entries)
	}
	var notIP uint64
	for _, c := range all[0].Counters {
		if c.Verdict == "pass-not-ip" {
			notIP = c.Packets
		}
	}
	if notIP == 0 {
		t.Errorf("the ARP request was not counted: %+v", all[0].Counters)
	}
	table := m.must(t, "status", "up0")
	for _, want := range []string{"shunt_steer", "generic", "networks", "65536", "pass-unknown-vni", "drop-no-socket"} {
		if !strings.Contains(table, want) {
			t.Errorf("status has no %s:\n%s", want, table)
		}
	}
	// A second attach goes on from the first, with tables of its own.
	m.must(t, "attach", "up0", "--vni", "300")
	for _, table := range m.status(t, "up0")[0].Maps {
		if table.Name == "networks" && *table.Entries != 1 || table.Name == "vteps4" && *table.Entries != 0 {
			t.Errorf("%d entries in %s after the second attach", *table.Entries, table.Name)
		}
	}
	m.must(t, "detach", "up0")
	m.fails(t, 1, "no XDP program", "detach", "up0")
	m.clean(t)
}

func (m machine) clean(t *testing.T) {
	t.Helper()
	if all := m.status(t); len(all) != 0 {
		t.Errorf("left: %+v", all)
	}
	if _, err := os.Stat(m.pins()); err == nil {
		t.Errorf("%s is left", m.pins())
	}
}

func TestOtherPrograms(t *testing.T) {
	m, object := newMachine(t), other(t)
	m.fails(t, 2, "choose one with --program: pass_all, unverifiable", "load", "--object", object)
	m.fails(t, 2, `no XDP program "no_xdp"`, "load", "--object", object, "--program", "no_xdp")
	m.fails(t, 1, "--log shows why", "load", "--object", object, "--program", "unverifiable")
	if _, _, err := m.shuntbpf("load", "--object", object, "--program", "unverifiable", "--log"); err == nil || !strings.Contains(err.Error(), "r0 = *(u32 *)(r1") {
		t.Errorf("the verifier's log: %v", err)
	}
	pinned := m.BPF() + "/loaded"
	m.must(t, "load", "--object", object, "--program", "pass_all", "--pin", pinned)
	m.fails(t, 1, "file exists", "load", "--pin", pinned)
	if pins := under(t, pinned); pins != "maps maps/seen program" {
		t.Errorf("pins: %s", pins)
	}
	m.must(t, "attach", "up0", "--pinned", pinned)
	all := m.status(t)
	if len(all) != 1 || all[0].Program.Name != "pass_all" || len(all[0].Maps) != 1 || all[0].Counters != nil {
		t.Errorf("status: %+v", all)
	}
	// Ours does not push it away unasked, nor the other way round.
	m.fails(t, 1, "pass_all", "attach", "up0")
	m.must(t, "attach", "up0", "--replace")
	m.fails(t, 1, "shunt_steer", "attach", "up0", "--object", object, "--program", "pass_all")
	m.must(t, "attach", "up0", "--replace", "--object", object, "--program", "pass_all")
	m.must(t, "pin", "up0", m.BPF()+"/attached")
	m.must(t, "detach", "up0")
	m.must(t, "attach", "up0", "--pinned", m.BPF()+"/attached/program", "--mode", "generic")
	m.must(t, "detach", "up0")
	m.fails(t, 1, "no XDP program", "pin", "up0", m.BPF()+"/nothing")
	m.clean(t)
}

// under lists what lies below a directory.
func under(t *testing.T, dir string) string {
	t.Helper()
	var names []string
	err := fs.WalkDir(os.DirFS(dir), ".", func(path string, _ fs.DirEntry, err error) error {
		if path != "." {
			names = append(names, path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	return strings.Join(names, " ")
}

// What somebody else attached is shown by name, and taken off only by force.
func TestForeignProgram(t *testing.T) {
	m, object := newMachine(t), other(t)
	if _, err := m.Run(t.Context(), "ip", "link", "set", "up0", "xdp", "object", object, "program", "pass_all"); err != nil {
		t.Fatal(err)
	}
	all := m.status(t)
	if len(all) != 1 || all[0].Program.Name != "pass_all" || all[0].Link != 0 || all[0].Pin != "" {
		t.Errorf("status: %+v", all)
	}
	if table := m.must(t, "status"); !strings.Contains(table, "pass_all") {
		t.Errorf("status: %s", table)
	}
	m.fails(t, 1, "pass_all", "attach", "up0")
	m.fails(t, 1, "pass_all", "detach", "up0")
	m.must(t, "detach", "up0", "--force")
	m.clean(t)
}

func TestLivingOwnerIsShownAndRespected(t *testing.T) {
	m := newMachine(t)
	var p *bpf.Program
	err := m.Do(func() (err error) {
		p, err = bpf.Attach(bpf.Options{Interface: "up0", PinPath: m.pins()})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if all := m.status(t); len(all) != 1 || all[0].Owner != os.Getpid() || all[0].OwnerName == "" {
		t.Errorf("status: %+v", all)
	}
	m.fails(t, 1, "belongs to process", "attach", "up0", "--replace")
	m.fails(t, 1, "belongs to process", "detach", "up0")
	m.must(t, "detach", "up0", "--force")
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	m.clean(t)
}

func TestBadInput(t *testing.T) {
	m := newMachine(t)
	nothing := filepath.Join(t.TempDir(), "nothing.o")
	// What is attached must survive every mistake.
	m.must(t, "attach", "up0", "--vni", "100")
	before := m.status(t)[0].Program
	for _, c := range []struct {
		words string
		args  []string
	}{
		{"wants INTERFACE", []string{"attach"}},
		{"wants INTERFACE and DIRECTORY", []string{"pin", "up0"}},
		{"takes no argument", []string{"load", "up0"}},
		{"takes no argument", []string{"nonsense"}},
		{"unknown flag", []string{"attach", "up0", "--nonsense"}},
		{"neither table nor json", []string{"status", "-o", "xml"}},
		{"none of auto", []string{"attach", "up0", "--mode", "fast"}},
		{"nonesuch0", []string{"attach", "nonesuch0"}},
		{"nonesuch0", []string{"detach", "nonesuch0"}},
		{"nonesuch0", []string{"status", "nonesuch0"}},
		{"nonesuch0", []string{"pin", "nonesuch0", m.BPF() + "/x"}},
		{"24 bits", []string{"attach", "up0", "--vni", "16777216"}},
		{"24 bits", []string{"attach", "up0", "--vni", "18446744073709551615"}},
		{"unable to parse", []string{"attach", "up0", "--vtep", "here"}},
		{"unicast", []string{"attach", "up0", "--vtep", "239.0.0.1"}},
		{"invalid argument", []string{"attach", "up0", "--port", "65536"}},
		{"exclude each other", []string{"attach", "up0", "--object", "a", "--pinned", "b"}},
		{"exclude each other", []string{"attach", "up0", "--program", "a", "--pinned", "b"}},
		{"belongs to --object", []string{"attach", "up0", "--program", "a"}},
		{"built-in program", []string{"attach", "up0", "--object", "a", "--vni", "1"}},
		{"no such file", []string{"attach", "up0", "--object", nothing}},
		{"no BPF object file", []string{"load", "--object", "testdata/other.bpf.c"}},
		{"mount -t bpf", []string{"load", "--pin", nothing}},
	} {
		m.fails(t, 2, c.words, c.args...)
	}
	if after := m.status(t); len(after) != 1 || after[0].Program != before {
		t.Errorf("%+v became %+v", before, after)
	}
	m.must(t, "detach", "up0")
	m.clean(t)
}

// explained is a flag's line in a help text: its name, its type, what it does.
var explained = regexp.MustCompile(`^ +(-\w, +)?--[\w-]+( \w+)? {3,}\w`)

// Every command explains itself and every flag of it.
func TestHelp(t *testing.T) {
	var check func(cmd *cobra.Command)
	check = func(cmd *cobra.Command) {
		if cmd.Short == "" || cmd.Long == "" && cmd.Name() != "help" {
			t.Errorf("%s lacks a description", cmd.CommandPath())
		}
		for line := range strings.Lines(cmd.Flags().FlagUsages()) {
			if !explained.MatchString(line) {
				t.Errorf("%s: a flag has no help: %s", cmd.CommandPath(), line)
			}
		}
		for _, c := range cmd.Commands() {
			check(c)
		}
	}
	check(newCommand())
}
