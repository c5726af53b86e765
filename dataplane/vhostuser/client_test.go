package vhostuser

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// connectFake serves a fake device as a client until the test ends.
func connectFake(t *testing.T, d *fakeDevice, o Options) *Backend {
	t.Helper()
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	b, err := Connect(o, d)
	must(t, err)
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func listenFrontend(t *testing.T, path string) *Listener {
	t.Helper()
	l, err := ListenFrontend(path)
	must(t, err)
	t.Cleanup(func() { l.Close() })
	return l
}

func accept(t *testing.T, l *Listener) *Frontend {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	f, err := l.Accept(ctx)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// TestClient: a front-end may come after its back-end, leave, and come again; each time it is served like any other.
func TestClient(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) {
			d, g := newFake(t), newGuest(t)
			path := filepath.Join(t.TempDir(), "s")
			log := &lines{}
			b := connectFake(t, d, Options{Path: path, Log: slog.New(slog.NewTextHandler(log, nil))})
			eventually(t, "a few attempts", func() bool { return b.Status().Attempts >= 3 })
			if s := b.Status(); s.State != Connecting || !s.Client || s.Session != nil || s.Unreached != "no such file or directory" {
				t.Errorf("%+v", s)
			}
			if n := len(log.all()); n != 1 {
				t.Errorf("%d lines for one reason: %v", n, log.all())
			}
			l := listenFrontend(t, path)
			for round := 1; round <= 3; round++ {
				came := time.Now()
				f := accept(t, l)
				if took := time.Since(came); took > 2*dialMost {
					t.Errorf("the back-end came after %v", took)
				}
				must(t, f.Negotiate(mode.features, mode.protocol))
				must(t, f.SetMemory(g.region()))
				must(t, f.StartVring(g.ring(0)))
				must(t, f.Barrier())
				if s := b.Status(); s.State != Connected || s.Attempts != 0 || s.Unreached != "" || !s.Session.Vrings[0].Running {
					t.Errorf("%+v", s)
				}
				must(t, f.Close())
				eventually(t, "disconnected", func() bool { return d.disconnects() == round })
			}
			must(t, l.Close())
			eventually(t, "gone again", func() bool { s := b.Status(); return s.State == Connecting && s.Attempts > 0 })
			must(t, b.Close())
			if s := b.Status(); s.State != Closed {
				t.Errorf("%+v", s)
			}
		})
	}
}

// TestClientPace: whoever listens only to hang up is not called all day.
func TestClientPace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	must(t, err)
	defer l.Close()
	d := newFake(t)
	b := connectFake(t, d, Options{Path: path})
	began := time.Now()
	for n := range 6 { // waits of 10, 20, 40, 80, 160 ms between them
		c, err := l.Accept()
		must(t, err)
		must(t, c.Close())
		eventually(t, "ended", func() bool { return d.disconnects() > n })
	}
	if took := time.Since(began); took < 300*time.Millisecond {
		t.Errorf("six calls in %v", took)
	}
	must(t, b.Close())
}

// TestClientCloses wherever it is: between two attempts, and in a session.
func TestClientCloses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	b := connectFake(t, newFake(t), Options{Path: path})
	must(t, b.Close())
	l := listenFrontend(t, path)
	d, g := newFake(t), newGuest(t)
	b = connectFake(t, d, Options{Path: path})
	f := accept(t, l)
	must(t, f.Negotiate(wantAll, wantAll))
	must(t, f.SetMemory(g.region()))
	must(t, f.StartVring(g.ring(0)))
	b.Disconnect() // and the front-end is called again
	f = accept(t, l)
	must(t, f.Barrier())
	must(t, b.Close())
	if err := f.Barrier(); err == nil {
		t.Error("connection is still served")
	}
	if _, running := d.running(0); running || d.disconnects() != 2 {
		t.Errorf("ring runs: %v, %d disconnects", running, d.disconnects())
	}
}

func TestConnectRefuses(t *testing.T) {
	for _, c := range []struct {
		o      Options
		reason string
	}{{Options{}, "no path"}, {Options{Path: "/x", Mode: 0o600}, "is the front-end's"}, {Options{Path: "/x", Group: 3}, "is the front-end's"}} {
		if _, err := Connect(c.o, newFake(t)); err == nil || !strings.Contains(err.Error(), c.reason) {
			t.Errorf("%+v: %v", c.o, err)
		}
	}
}

func TestAcceptGivesUp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l := listenFrontend(t, path)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := l.Accept(ctx); err == nil {
		t.Error("accepted nobody")
	}
	connectFake(t, newFake(t), Options{Path: path})
	must(t, accept(t, l).Barrier())
}
