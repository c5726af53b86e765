package vhostuser

import (
	"context"
	"log/slog"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func next(t *testing.T, c *FrontendChannel) BackendRequest {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r, err := c.Next(ctx, 0)
	must(t, err)
	return r
}

// TestChannel: news arrives, with and without acknowledgements, and a channel given later takes the place of the first.
func TestChannel(t *testing.T) {
	for _, mode := range modes[:2] {
		t.Run(mode.name, func(t *testing.T) {
			d := newFake(t)
			b := listenFake(t, d, Options{})
			b.ConfigChanged() // nobody is there
			f := dial(t, b)
			must(t, f.Negotiate(mode.features, mode.protocol))
			must(t, f.Barrier())
			b.ConfigChanged() // no channel yet
			for range 2 {
				c, err := f.OpenChannel()
				must(t, err)
				must(t, f.Barrier())
				for range 3 {
					b.ConfigChanged()
					if r := next(t, c); r != BackendConfigChange {
						t.Fatalf("request %d", r)
					}
				}
				defer c.Close()
			}
		})
	}
}

// TestDeafChannel: a front-end that reads nothing delays neither those who have news nor the session, and is heard no more.
func TestDeafChannel(t *testing.T) {
	log := &lines{}
	b := listenFake(t, newFake(t), Options{Log: slog.New(slog.NewTextHandler(log, nil))})
	f := dial(t, b)
	must(t, f.Negotiate(wantAll, wantAll))
	c, err := f.OpenChannel()
	must(t, err)
	began := time.Now()
	for range 100000 {
		b.ConfigChanged()
	}
	must(t, f.Barrier())
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("100000 notes took %v", took)
	}
	must(t, c.Close())
	eventually(t, "a line about it", func() bool { return len(log.all()) >= 2 })
	b.ConfigChanged()
	must(t, f.Barrier())
}

// TestBlockingChannel: the front-end keeps our end, makes it blocking and full. The session still ends at once.
func TestBlockingChannel(t *testing.T) {
	d := newFake(t)
	b := listenFake(t, d, Options{})
	before := steadyFDs(t, b)
	f, err := Dial(b.path)
	must(t, err)
	must(t, f.Negotiate(wantAll, wantAll))
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	for _, full := range []bool{true, false} { // it waits for room, or for the acknowledgement
		must(t, f.Do(SetBackendReqFD, nil, fds[1]))
		for full {
			if _, err := unix.SendmsgN(fds[1], make([]byte, 4096), nil, nil, unix.MSG_DONTWAIT); err != nil {
				break
			}
		}
		must(t, unix.SetNonblock(fds[1], false))
		b.ConfigChanged()
		time.Sleep(20 * time.Millisecond) // so that it waits
		began := time.Now()
		must(t, f.Do(SetBackendReqFD, nil, fds[1])) // the first one ends
		if took := time.Since(began); took > time.Second {
			t.Errorf("full %v: the session waited %v", full, took)
		}
		for full {
			if _, _, err := unix.Recvfrom(fds[0], make([]byte, 65536), unix.MSG_DONTWAIT); err != nil {
				break
			}
		}
	}
	unix.Close(fds[0])
	unix.Close(fds[1])
	must(t, f.Close())
	eventually(t, "disconnected", func() bool { return d.disconnects() == 2 })
	if now := steadyFDs(t, b); now != before {
		t.Errorf("%d descriptors open, before %d", now, before)
	}
}

func TestBadChannels(t *testing.T) {
	f := dial(t, listenFake(t, newFake(t), Options{}))
	must(t, f.Negotiate(wantAll, wantAll))
	datagrams, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	lonely, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer tcp.Close()
	file, err := tcp.(*net.TCPListener).File()
	must(t, err)
	defer file.Close()
	t.Cleanup(func() { unix.Close(datagrams[0]); unix.Close(datagrams[1]); unix.Close(lonely) })
	for name, fd := range map[string]int{"datagrams": datagrams[0], "not connected": lonely, "TCP": int(file.Fd()), "eventfd": eventfd(t), "file": devNull(t)} {
		if err := f.Do(SetBackendReqFD, nil, fd); err == nil {
			t.Errorf("%s accepted", name)
		}
	}
	refused(t, f.Do(SetBackendReqFD, nil))
}

// TestChannelIsToldLies: an answer that is none ends the channel and nothing else; descriptors in it are closed.
func TestChannelIsToldLies(t *testing.T) {
	b := listenFake(t, newFake(t), Options{})
	f := dial(t, b)
	must(t, f.Negotiate(wantAll, wantAll))
	for _, lie := range [][]byte{whole(Request(BackendConfigChange), make([]byte, 8)), raw(2, 5, 1<<30), raw(3, 5, 8, make([]byte, 8)...), make([]byte, 500)} {
		c, err := f.OpenChannel()
		must(t, err)
		must(t, c.link.send(lie, []int{devNull(t)}))
		b.ConfigChanged()
		eventually(t, "its end", func() bool { return hungUp(c.conn) })
		must(t, f.Barrier())
		must(t, c.Close())
	}
}
