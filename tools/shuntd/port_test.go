package main

import (
	"io/fs"
	"os"
	"testing"

	"github.com/shuntio/shunt/tools/control/config"
)

// A socket's mode changes under its guest, and not if the port is refused for another reason.
func TestPortChangesItsSocket(t *testing.T) {
	defer func(was []string) { statePaths = was }(statePaths)
	statePaths = nil
	e := newTestEngine(t, 1)
	if err := e.AddNetwork(t.Context(), config.Network{Name: "blue", MTU: 1500, LearnLimit: 8}); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	a, b := testPort("a", dir, 1), testPort("b", dir, 2)
	for _, c := range []config.Port{a, b} {
		if err := e.AddPort(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := remove(t, e, c.Name, false); err != nil {
				t.Error(err)
			}
		}()
	}
	mode := func(want fs.FileMode) {
		t.Helper()
		if info, err := os.Lstat(a.Socket); err != nil || info.Mode().Perm() != want {
			t.Errorf("%v, %v, want %v", info.Mode(), err, want)
		}
	}
	a.Mode = 0o640
	if err := e.UpdatePort(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	mode(0o640)
	a.Mode, a.MAC = 0o666, b.MAC
	if err := e.UpdatePort(t.Context(), a); err == nil {
		t.Fatal("two ports have one address")
	}
	mode(0o640)
}
