package api_test

import (
	"errors"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/tools/control/api"
	"github.com/shuntio/shunt/tools/control/config"
	"github.com/shuntio/shunt/tools/need"
)

func TestListen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "shunt")
	path := filepath.Join(dir, "s")
	l, err := api.Listen(path, "")
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("the socket is %v %v", info.Mode(), err)
	}
	if _, err := api.Listen(path, ""); !errors.Is(err, api.ErrTaken) || !strings.Contains(err.Error(), path) {
		t.Errorf("a second daemon: %v", err)
	}
	for range 2 {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory that Listen made: %v", err)
	}
}

// Whoever may read the socket's directory cannot keep a daemon from starting, daemons that start together find one socket, and nothing is left of that.
func TestListenTogether(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	const daemons = 16
	listeners, errs := [daemons]*api.Listener{}, [daemons]error{}
	var starting sync.WaitGroup
	for i := range daemons {
		starting.Go(func() { listeners[i], errs[i] = api.Listen(path, "") })
	}
	starting.Wait()
	listening := 0
	for i, err := range errs {
		switch {
		case err == nil:
			listening++
			defer listeners[i].Close()
		case !errors.Is(err, api.ErrTaken):
			t.Error(err)
		}
	}
	if listening != 1 {
		t.Errorf("%d daemons listen", listening)
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 {
		t.Errorf("beside the socket: %v %v", left, err)
	}
}

func TestListenAfterDeath(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	l, err := api.Listen(path, "")
	if err != nil {
		t.Fatal(err)
	}
	// Somebody else's file in our place is not removed.
	if err := errors.Join(os.Remove(path), os.WriteFile(path, nil, 0o600), l.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Error(err)
	}
	if _, err := api.Listen(path, ""); err == nil || !strings.Contains(err.Error(), "is not a socket: remove it") {
		t.Errorf("on a file: %v", err)
	}
}

func TestListenRefused(t *testing.T) {
	dir := t.TempDir()
	for _, test := range []struct {
		path  string
		group config.Account
		want  string
	}{
		{filepath.Join(dir, "no", "such", "s"), "", "/no/such/s cannot be made (no such file or directory): create the directory, or choose another path with control.socket"},
		{filepath.Join(dir, "new", "s"), "no-such-group", "control.group: this host has no group no-such-group: create it, or name another"},
		{filepath.Join(dir, "new", strings.Repeat("x", 108)), "", "cannot be made (invalid argument): choose another path with control.socket"},
	} {
		if l, err := api.Listen(test.path, test.group); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v %v, want %s", l, err, test.want)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func TestListenGroup(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := api.Listen(path, "0")
	if errors.Is(err, fs.ErrPermission) {
		need.Root(t) // a file cannot be given to group 0
	}
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if info, err := os.Lstat(path); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("%v %v", info.Mode(), err)
	}
}

func TestNoDaemon(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	c := dial(t, path)
	_, err := c.Status(t.Context())
	if !errors.Is(err, api.ErrNoDaemon) || err.Error() != "no shuntd answers on "+path+": start it, or name its socket with --socket" {
		t.Error(err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	other := http.Server{Handler: http.NotFoundHandler(), ReadHeaderTimeout: time.Second}
	defer other.Close()
	go func() { _ = other.Serve(l) }()
	if _, err = c.Status(t.Context()); err == nil || !strings.Contains(err.Error(), "is no shuntd") {
		t.Error(err)
	}
}
