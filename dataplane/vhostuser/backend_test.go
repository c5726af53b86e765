package vhostuser

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/tools/need"
)

// lines is a log that tests can read while it is written.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Split(strings.TrimSpace(l.b.String()), "\n")
}

func TestSecondFrontendIsTurnedAway(t *testing.T) {
	d := newFake(t)
	b := listenFake(t, d, Options{})
	first := dial(t, b)
	must(t, first.Barrier())
	for range 3 {
		if err := dial(t, b).Barrier(); err == nil {
			t.Fatal("two front-ends served")
		}
	}
	must(t, first.Barrier())
	if s := b.Status(); s.TurnedAway != 3 || s.Connections != 1 || s.Session.PID != os.Getpid() {
		t.Errorf("%+v", s)
	}
}

// TestReconnectAtOnce: a front-end that comes back is never turned away for its former self, nor is its successor.
func TestReconnectAtOnce(t *testing.T) {
	d, g := newFake(t), newGuest(t)
	b := listenFake(t, d, Options{})
	for range 40 { // more than go without a pause
		f, err := Dial(b.path)
		must(t, err)
		must(t, f.Negotiate(wantAll, wantAll))
		must(t, f.SetMemory(g.region()))
		must(t, f.StartVring(g.ring(0)))
		must(t, f.Close())
	}
	eventually(t, "all ended", func() bool { return d.disconnects() == 40 })
	if s := b.Status(); s.TurnedAway != 0 {
		t.Errorf("%d turned away", s.TurnedAway)
	}
}

// TestConnectFlood: thousands of connections beside an honest one cost no goroutine, few log lines, and no service.
func TestConnectFlood(t *testing.T) {
	log := &lines{}
	d := newFake(t)
	b := listenFake(t, d, Options{Log: slog.New(slog.NewTextHandler(log, nil))})
	honest := dial(t, b)
	must(t, honest.Negotiate(wantAll, wantAll))
	before := openFDs(t)
	for range 20000 {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		must(t, err)
		_ = unix.Connect(fd, &unix.SockaddrUnix{Name: b.path}) // EAGAIN once the queue is full
		unix.Close(fd)
	}
	must(t, honest.Barrier())
	if n := len(log.all()); n > 30 {
		t.Errorf("%d log lines", n)
	}
	eventually(t, "no descriptor kept", func() bool { return openFDs(t) == before })
	must(t, honest.Barrier())
}

// TestErrorsAreToldOnce: one line a failure, with socket and reason, and never a flood of them.
func TestErrorsAreToldOnce(t *testing.T) {
	log := &lines{}
	b := listenFake(t, newFake(t), Options{Log: slog.New(slog.NewTextHandler(log, nil))})
	f := dial(t, b)
	must(t, f.SendRaw(raw(PostcopyListen, 1, 0)))
	eventually(t, "ended", func() bool { return b.Status().LastEnd != "" && len(log.all()) == 2 })
	if got := log.all()[1]; !strings.Contains(got, "socket="+b.path) || !strings.Contains(got, `reason="POSTCOPY_LISTEN: not supported"`) {
		t.Error(got)
	}
	f = dial(t, b)
	must(t, f.Negotiate(wantAll, wantAll))
	for range 1000 {
		refused(t, f.SetMTU(1))
	}
	if n := len(log.all()); n > 20 {
		t.Errorf("%d lines for 1000 refused messages", n)
	}
	if s := b.Status().Session; s.Refused != 1000 || !strings.Contains(s.LastRefusal, "MTU 1 ") {
		t.Errorf("%+v", s)
	}
}

func TestSocketFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	b, err := Listen(Options{Path: path, Mode: 0o640, Log: slog.New(slog.DiscardHandler)}, newFake(t))
	must(t, err)
	info, err := os.Lstat(path)
	must(t, err)
	if info.Mode().Perm() != 0o640 {
		t.Errorf("mode %v", info.Mode())
	}
	if _, err := Listen(Options{Path: path}, newFake(t)); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), path) {
		t.Errorf("second listener: %v", err)
	}
	must(t, b.Close())
	must(t, b.Close())
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("socket is still there: %v", err)
	}

	// A killed daemon leaves its socket behind, and the next one takes the place.
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	must(t, err)
	stale.SetUnlinkOnClose(false)
	must(t, stale.Close())
	b = listenFake(t, newFake(t), Options{Path: path})
	if info, err := os.Lstat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}

	// What a successor made in the meantime is not ours to remove.
	must(t, os.Remove(path))
	must(t, os.WriteFile(path, nil, 0o600))
	must(t, b.Close())
	if _, err := os.Lstat(path); err != nil {
		t.Error(err)
	}
}

func TestSocketOwner(t *testing.T) {
	need.Root(t)
	path := filepath.Join(t.TempDir(), "s")
	listenFake(t, newFake(t), Options{Path: path, Owner: 12, Group: 34})
	info, err := os.Lstat(path)
	must(t, err)
	if st := info.Sys().(*syscall.Stat_t); st.Uid != 12 || st.Gid != 34 {
		t.Errorf("owner %d:%d", st.Uid, st.Gid)
	}
}

// The socket's mode and owner change while it is in use, and nobody else's file is taken for it.
func TestPermit(t *testing.T) {
	need.Root(t)
	path := filepath.Join(t.TempDir(), "s")
	b := listenFake(t, newFake(t), Options{Path: path, Mode: 0o660, Owner: 12, Group: 34})
	f := dial(t, b)
	for _, want := range []struct {
		mode         fs.FileMode
		owner, group uint32
	}{{0o640, 12, 56}, {0o600, 0, 0}} {
		must(t, b.Permit(want.mode, int(want.owner), int(want.group)))
		info, err := os.Lstat(path)
		must(t, err)
		if st := info.Sys().(*syscall.Stat_t); info.Mode().Perm() != want.mode || st.Uid != want.owner || st.Gid != want.group {
			t.Errorf("%v %d:%d", info.Mode(), st.Uid, st.Gid)
		}
	}
	must(t, f.Do(SetOwner, nil))

	precious := filepath.Join(t.TempDir(), "precious")
	must(t, os.WriteFile(precious, nil, 0o600))
	must(t, os.Remove(path))
	must(t, os.Symlink(precious, path))
	if err := b.Permit(0o666, 12, 34); err == nil || !strings.Contains(err.Error(), "not there any more") {
		t.Error(err)
	}
	if info, err := os.Stat(precious); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("somebody's file: %v, %v", info.Mode(), err)
	}
}

func TestBadPaths(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	must(t, os.WriteFile(file, []byte("precious"), 0o600))
	for path, reason := range map[string]string{
		"":                                "no path",
		"@abstract":                       "abstract",
		"a\x00b":                          "zero byte",
		strings.Repeat("x", 108):          "at most 107",
		filepath.Join(dir, "none", "s"):   "has no directory (no such file or directory): create it",
		file:                              "is no socket",
		filepath.Join(file, "s"):          "has no directory (not a directory): create it",
		strings.Repeat("x", 107) + "\x00": "at most 107",
	} {
		before := openFDs(t)
		if _, err := Listen(Options{Path: path}, newFake(t)); err == nil || !strings.Contains(err.Error(), reason) {
			t.Errorf("%q: %v", path, err)
		}
		if openFDs(t) != before {
			t.Errorf("%q leaks a descriptor", path)
		}
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "precious" {
		t.Error("a file was touched")
	}
}

// TestClose ends what there is, and says so when the device does not let go.
func TestClose(t *testing.T) {
	t.Parallel()
	t.Run("running", func(t *testing.T) {
		d := newFake(t)
		b, f, _ := started(t, d)
		must(t, b.Close())
		if _, ok := d.running(0); ok || d.disconnects() != 1 {
			t.Error("device still has the ring")
		}
		if err := f.Barrier(); err == nil {
			t.Error("connection is still served")
		}
	})
	t.Run("device hangs", func(t *testing.T) {
		t.Parallel()
		d := newFake(t)
		hold := make(chan struct{})
		b, err := Listen(Options{Path: filepath.Join(t.TempDir(), "s"), Log: slog.New(slog.DiscardHandler)}, d)
		must(t, err)
		f, g := dial(t, b), newGuest(t)
		must(t, f.Negotiate(wantAll, wantAll))
		must(t, f.SetMemory(g.region()))
		must(t, f.StartVring(g.ring(0)))
		d.set(func() { d.hold = hold })
		if err := b.Close(); err == nil || !strings.Contains(err.Error(), b.path) {
			t.Errorf("close: %v", err)
		}
		close(hold)
		eventually(t, "disconnected", func() bool { return d.disconnects() == 1 })
	})
}

func TestBucket(t *testing.T) {
	b := bucket{burst: 2, interval: time.Second}
	now := time.Unix(1000, 0)
	var got []bool
	for _, after := range []time.Duration{0, 0, 0, time.Second, 0, time.Hour, 0, 0} {
		now = now.Add(after)
		got = append(got, b.take(now))
	}
	if want := "[true true false true false true true false]"; fmt.Sprint(got) != want {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestNames(t *testing.T) {
	if got := fmt.Sprint(ProtocolNames(ProtocolMemSlots | ProtocolStatus | ProtocolMQ | 1<<63)); got != "[MQ CONFIGURE_MEM_SLOTS STATUS bit 63]" {
		t.Error(got)
	}
	if got := fmt.Sprint(SetVringKick, Request(0), Request(99)); got != "SET_VRING_KICK request 0 request 99" {
		t.Error(got)
	}
}

// Whoever may write in the socket's directory puts a link in its place, between its making and its mode: the file that the link leads to stays as it is.
func TestListenFollowsNoLink(t *testing.T) {
	dir := t.TempDir()
	secret, link, path := filepath.Join(dir, "secret"), filepath.Join(dir, "link"), filepath.Join(dir, "socket")
	must(t, os.WriteFile(secret, nil, 0o600))
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
			}
			_ = os.Symlink(secret, link)
			if _, err := os.Lstat(path); err == nil {
				_ = os.Rename(link, path)
			}
		}
	}()
	for range 200 {
		if l, _, err := listen(Options{Path: path, Mode: 0o666}); err == nil {
			_ = l.Close()
		}
		_ = os.Remove(path)
	}
	close(stop)
	<-stopped
	if info, err := os.Stat(secret); err != nil || info.Mode() != 0o600 {
		t.Errorf("the file that the link leads to has mode %v now (%v)", info.Mode(), err)
	}
}
