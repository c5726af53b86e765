package tidy

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/shuntio/shunt/tools/need"
)

// clangVersion is the compiler of the checked-in BPF objects, Debian 12's. Another
// one makes other bytes of the same source, so nothing is compared under it.
const clangVersion = "clang version 14."

// directive is a //go:generate line that runs bpf2go.
type directive struct {
	pkg, file string
	dir       string   // below the root
	args      []string // the command, split
}

func bpf2goDirectives(t *testing.T) []directive {
	t.Helper()
	var found []directive
	for _, f := range moduleFiles(t) {
		for _, group := range f.ast.Comments {
			for _, c := range group.List {
				command, ok := strings.CutPrefix(c.Text, "//go:generate ")
				if ok && strings.Contains(command, "bpf2go") {
					args, err := words(command)
					if err != nil {
						t.Fatal(f.at(c, "%v", err))
					}
					found = append(found, directive{f.ast.Name.Name, filepath.Base(f.name), f.dir(), args})
				}
			}
		}
	}
	return found
}

// words splits a command as go generate does: at blanks, with Go strings kept whole.
func words(command string) ([]string, error) {
	var args []string
	for rest := strings.TrimSpace(command); rest != ""; rest = strings.TrimSpace(rest) {
		if rest[0] != '"' {
			word, after, _ := strings.Cut(rest, " ")
			args, rest = append(args, word), after
			continue
		}
		quoted, err := strconv.QuotedPrefix(rest)
		if err != nil {
			return nil, fmt.Errorf("go:generate: %w in %s", err, rest)
		}
		word, err := strconv.Unquote(quoted)
		if err != nil {
			return nil, fmt.Errorf("go:generate: %w in %s", err, rest)
		}
		args, rest = append(args, word), rest[len(quoted):]
	}
	return args, nil
}

func TestWords(t *testing.T) {
	args, err := words(`go  tool bpf2go -cflags "-O2 -g" steer steer.bpf.c `)
	if want := []string{"go", "tool", "bpf2go", "-cflags", "-O2 -g", "steer", "steer.bpf.c"}; err != nil || !slices.Equal(args, want) {
		t.Errorf("%q, %v; want %q", args, err, want)
	}
	if _, err := words(`go "tool`); err == nil {
		t.Error("an open quote is accepted")
	}
}

// The checked-in BPF objects and their Go are what bpf2go makes of the sources, so
// that building needs no clang and yet runs what one reads.
func TestGeneratedBPFIsFresh(t *testing.T) {
	directives := bpf2goDirectives(t)
	if len(directives) == 0 {
		t.Fatal("no package runs bpf2go, so this test holds nothing")
	}
	if testing.Short() {
		t.Skip("compiles BPF")
	}
	need.Program(t, "clang", "llvm-strip")
	version, err := exec.Command("clang", "--version").Output()
	if err != nil {
		t.Fatalf("clang --version: %v", err)
	}
	if !bytes.Contains(version, []byte(clangVersion)) {
		first, _, _ := bytes.Cut(version, []byte("\n"))
		need.Missing(t, "the BPF objects are compared under Debian 12's %s0 only, this is %s", clangVersion, first)
	}
	root, err := root()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range directives {
		t.Run(d.dir, func(t *testing.T) { compareGenerated(t, filepath.Join(root, d.dir), d) })
	}
}

// compareGenerated runs d into a folder of its own and compares what comes out.
func compareGenerated(t *testing.T, dir string, d directive) {
	out := t.TempDir()
	cmd := exec.Command(d.args[0], withOutputDir(d.args, out)[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOPACKAGE="+d.pkg, "GOFILE="+d.file)
	if log, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(d.args, " "), err, log)
	}
	made, err := os.ReadDir(out)
	if err != nil {
		t.Fatal(err)
	}
	if len(made) == 0 {
		t.Fatalf("%s made nothing", strings.Join(d.args, " "))
	}
	for _, entry := range made {
		want, err := os.ReadFile(filepath.Join(out, entry.Name()))
		if err != nil {
			t.Fatal(err)
		}
		have, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s/%s is missing; run make generate and commit it", d.dir, entry.Name())
		} else if err != nil {
			t.Fatal(err)
		} else if !bytes.Equal(have, want) {
			t.Errorf("%s/%s is stale; run make generate and commit it", d.dir, entry.Name())
		}
	}
}

// withOutputDir returns args with bpf2go's output sent to dir.
func withOutputDir(args []string, dir string) []string {
	var with []string
	for i, arg := range args {
		with = append(with, arg)
		if strings.HasSuffix(arg, "bpf2go") && len(with) == i+1 {
			with = append(with, "-output-dir", dir)
		}
	}
	return with
}
