package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

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
		recall(t, file)
		if err := remove(t, e, a.Name, again); err != nil {
			t.Fatal(err)
		}
		there(again, "removed")
	}
	if err := e.AddPort(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	recall(t, file)
	if err := errors.Join(e.removeAll(t.Context())...); err != nil {
		t.Fatal(err)
	}
	there(true, "stopped")
}

// recall makes a file one that holds the place of a packed ring.
func recall(t *testing.T, file string) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt([]byte{7: 1 << 7}, 4096)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// A daemon that begins forgets the ports that it had and is not told of any more, and no other daemon's.
func TestRingStatesOfEarlierPorts(t *testing.T) {
	dir := ringStates(t)
	var missing []config.Port
	begin := func(name string, ports ...config.Port) (end func()) {
		e := newTestEngine(t, 1)
		e.name = name
		if err := e.AddNetwork(t.Context(), config.Network{Name: "blue", MTU: 1500, LearnLimit: 8}); err != nil {
			t.Fatal(err)
		}
		for _, p := range ports {
			if err := e.AddPort(t.Context(), p); err != nil {
				t.Fatal(err)
			}
			file, err := stateFile(p.Socket)
			if err != nil {
				t.Fatal(err)
			}
			recall(t, file)
		}
		e.Settle(&config.Config{Ports: missing})
		return func() {
			e.Settle(&config.Config{}) // as when what was missing is deleted
			if err := errors.Join(e.removeAll(t.Context())...); err != nil {
				t.Error(err)
			}
		}
	}
	there := func(want string) {
		t.Helper()
		files, err := os.ReadDir(statePaths[0])
		got := ""
		for _, f := range files {
			got += f.Name()[len(f.Name())-1:]
		}
		if err != nil || got != want {
			t.Errorf("there are files of %q, want %q (%v)", got, want, err)
		}
	}
	port := func(name string, i byte) config.Port {
		p := testPort(name, dir, i)
		p.Socket = filepath.Join(dir, name)
		return p
	}
	a, b, c := port("a", 1), port("b", 2), port("c", 3)
	begin("/run/one", a, b)()
	other := begin("/run/two", c)
	there("abc")
	missing = []config.Port{a}
	end := begin("/run/one", b)
	there("abc") // for one that failed and is still to come
	missing = nil
	end()
	there("bc")
	begin("/run/one", a, b)()
	there("abc")
	begin("/run/one", b)()
	there("bc") // of c somebody else has the file
	other()
	begin("/run/one")()
	there("c") // or will have it again
	begin("/run/two", a)()
	there("a")
}

// A path of letters that are long when they are escaped has a file, and a port whose file finds no room leaves none.
func TestRingStatesOfOddPorts(t *testing.T) {
	need.Root(t)
	dir := ringStates(t)
	rings := statePaths[0]
	if err := errors.Join(os.MkdirAll(rings, 0o700), unix.Mount("none", rings, "tmpfs", 0, "size=4k")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(rings, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	e := newTestEngine(t, 1)
	if err := e.AddNetwork(t.Context(), config.Network{Name: "blue", MTU: 1500, LearnLimit: 8}); err != nil {
		t.Fatal(err)
	}
	a, b := testPort("a", dir, 1), testPort("b", dir, 2)
	a.Socket = filepath.Join(dir, strings.Repeat("\u00e4", (100-len(dir))/2))
	if err := e.AddPort(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	if err := e.AddPort(t.Context(), b); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a second file in a page: %v", err)
	}
	if there, err := os.ReadDir(rings); err != nil || len(there) != 1 {
		t.Errorf("there are %v (%v)", there, err)
	}
	if err := errors.Join(e.removeAll(t.Context())...); err != nil {
		t.Error(err)
	}
}
