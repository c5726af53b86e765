package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/shuntio/shunt/tools/control/config"
	"github.com/shuntio/shunt/tools/need"
)

// ringStates makes the files that outlive ports a test's own, in a directory that it returns.
func ringStates(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "shunt")
	if err != nil {
		need.Missing(t, "no tmpfs at /dev/shm: %v", err)
	}
	was := statePaths
	t.Cleanup(func() { statePaths = was; os.RemoveAll(dir) })
	statePaths = []string{filepath.Join(dir, "shunt", "rings")}
	return dir
}

// The file of a port's rings stays for who serves its guest next: the port as it will be, or the next daemon. It goes when nobody will.
func TestRingStatesGoWithTheirPort(t *testing.T) {
	dir := ringStates(t)
	e := newTestEngine(t, 1)
	if err := e.AddNetwork(t.Context(), config.Network{Name: "blue", MTU: 1500, LearnLimit: 8}); err != nil {
		t.Fatal(err)
	}
	a := testPort("a", dir, 1)
	file, err := stateFile(a.Socket)
	if err != nil {
		t.Fatal(err)
	}
	there := func(want bool, when string) {
		t.Helper()
		if _, err := os.Stat(file); (err == nil) != want || err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v, want it there: %v", when, err, want)
		}
	}
	if err := os.Mkdir(a.Socket, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := e.AddPort(t.Context(), a); err == nil {
		t.Fatal("a socket in the place of a directory")
	}
	there(false, "refused")
	if err := os.Remove(a.Socket); err != nil {
		t.Fatal(err)
	}
	for _, again := range []bool{true, false} {
		if err := e.AddPort(t.Context(), a); err != nil {
			t.Fatal(err)
		}
		there(true, "added")
		if err := e.RemovePort(t.Context(), a.Name, again); err != nil {
			t.Fatal(err)
		}
		there(again, "removed")
	}
	if err := e.AddPort(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(e.removeAll(t.Context())...); err != nil {
		t.Fatal(err)
	}
	there(true, "stopped")
}
