package vhostuser

import (
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/dataplane/shm"
)

// How many connections are turned away, or served, without a pause, and how many a second after that.
// A front-end that connects and leaves all day waits in the listen queue and costs nothing.
var (
	turnPace  = bucket{burst: 16, interval: 100 * time.Millisecond}
	servePace = bucket{burst: 32, interval: 50 * time.Millisecond}
)

// server is a Backend's listening socket.
//
//	accept ──free?──────▶ serve: session.run ──▶ wait for the next
//	   │  └─leaving?─▶ waits until it is gone
//	   └────────────busy?──▶ closed, counted, logged
type server struct {
	identity fs.FileInfo // of the socket file, so that nobody else's is removed
	listener *net.UnixListener
	incoming chan *net.UnixConn // from accept to serve
}

// Listen creates the socket and serves d on it until Close. A taken path is ErrInUse; the socket file of a dead
// process is replaced.
func Listen(o Options, d Device) (*Backend, error) {
	if err := shm.OpenSignals(); err != nil {
		return nil, err
	}
	l, identity, err := listen(o)
	if err != nil {
		return nil, err
	}
	b := newBackend(o, d)
	b.server = &server{identity: identity, listener: l, incoming: make(chan *net.UnixConn)}
	b.counts.State = Listening
	b.stopped.Add(2)
	go b.accept()
	go b.serve()
	return b, nil
}

// close removes the socket.
func (v *server) close(path string) {
	if now, err := os.Lstat(path); err == nil && os.SameFile(now, v.identity) {
		_ = os.Remove(path)
	}
	_ = v.listener.Close()
}

// accept hands connections to serve, and turns them away while it is busy.
func (b *Backend) accept() {
	defer b.stopped.Done()
	defer close(b.server.incoming)
	pace := turnPace
	for {
		c, err := b.server.listener.AcceptUnix()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			b.log.write(slog.LevelError, "vhost-user accept failed", "reason", err) // out of descriptors
			b.pause(time.Second)
			continue
		}
		if b.busy() {
			b.turnAway(c)
			for !pace.take(time.Now()) && b.pause(pace.interval) {
			}
			continue
		}
		select {
		case b.server.incoming <- c: // at once, or when the one that is leaving is gone
		case <-b.stopping:
			_ = c.Close()
		}
	}
}

// busy tells whether a front-end is being served that has not hung up. One that has is gone as soon as the session sees it;
// a front-end that reconnects at once must not be turned away for its own former self.
func (b *Backend) busy() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.conn != nil && !hungUp(b.conn)
}

func hungUp(c *net.UnixConn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return true
	}
	gone := true
	_ = raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		n, err := unix.Poll(p, 0)
		gone = err == nil && n > 0
	})
	return gone
}

func (b *Backend) turnAway(c *net.UnixConn) {
	pid, uid := peer(c)
	b.mu.Lock()
	b.counts.TurnedAway++
	b.mu.Unlock()
	_ = c.Close() // after it was counted: whoever sees the end finds the count
	b.log.write(slog.LevelWarn, "vhost-user front-end turned away: another one is connected", "pid", pid, "uid", uid)
}

// serve runs one session after the other.
func (b *Backend) serve() {
	defer b.stopped.Done()
	pace := servePace
	for c := range b.server.incoming {
		b.serveOne(c)
		for !pace.take(time.Now()) && b.pause(pace.interval) {
		}
	}
}
