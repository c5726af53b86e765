package vhostuser

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Options of a Backend.
type Options struct {
	// Path of the unix socket; at most 107 bytes.
	Path string
	// Mode of the socket that Listen makes. Zero: 0600.
	Mode fs.FileMode
	// Owner and Group of that socket, by number. Zero: those of this process.
	Owner, Group int
	// Log takes what operators want to know, at most about a line a second per socket. Nil: slog.Default.
	Log *slog.Logger

	tap func(transport) transport // tests listen in
}

// Backend serves a Device to one front-end at a time: to those that connect to its socket (Listen, server.go), or to the one that listens on it
// (Connect, client.go). A front-end that comes back is a new connection, as is another one after it.
type Backend struct {
	device   Device
	log      *logger
	path     string
	tap      func(transport) transport
	server   *server // nil: a client
	stopping chan struct{}
	stopped  sync.WaitGroup // every goroutine of its own
	closing  sync.Once

	mu      sync.Mutex // guards the rest
	conn    *net.UnixConn
	session *session
	counts  Status
}

func newBackend(o Options, d Device) *Backend {
	return &Backend{device: d, log: newLogger(o.Log, o.Path), path: o.Path, tap: o.tap, stopping: make(chan struct{})}
}

// closeTime is how long Close waits for the connection's goroutine, which may be in a device call.
const closeTime = 5 * time.Second

// Close ends the connection, and the socket where it is ours, and returns when the device was told. It fails where that takes too long:
// the device hangs in a call, or a descriptor of the front-end's does when it is closed.
func (b *Backend) Close() error {
	var err error
	b.closing.Do(func() { err = b.close() })
	return err
}

func (b *Backend) close() error {
	close(b.stopping)
	if b.server != nil {
		b.server.close(b.path)
	}
	b.Disconnect()
	done := make(chan struct{})
	go func() { b.stopped.Wait(); close(done) }()
	select {
	case <-done:
		b.enterState(Closed)
		return nil
	case <-time.After(closeTime):
		return fmt.Errorf("socket %s: the connection did not end within %v of its close", b.path, closeTime)
	}
}

// Disconnect ends the connection there is, if any, and goes on as before: for a device that gave up on its front-end. One
// that comes back begins anew.
func (b *Backend) Disconnect() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.conn != nil {
		_ = b.conn.Close()
	}
}

// current is the session being served, or nil.
func (b *Backend) current() *session {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.session
}

func (b *Backend) enterState(s State) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.counts.State = s
}

// Status may be called at any time.
func (b *Backend) Status() Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.counts
	s.Path, s.Client = b.path, b.server == nil
	if b.session != nil {
		s.State = Connected
		s.Session = b.session.snapshot()
	}
	return s
}

// pause waits, and returns false when the Backend closes meanwhile.
func (b *Backend) pause(d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-b.stopping:
		return false
	}
}

// serveOne runs a session, and returns whether the front-end got as far as to agree on features.
func (b *Backend) serveOne(c *net.UnixConn) (useful bool) {
	defer c.Close()
	var link transport = newSocket(c)
	if b.tap != nil {
		link = b.tap(link)
	}
	s := newSession(link, b.device, b.log)
	s.published.PID, s.published.UID = peer(c)
	b.log.write(slog.LevelInfo, "vhost-user front-end connected", "pid", s.published.PID, "uid", s.published.UID)
	b.enter(c, s)
	err := s.run()
	if errors.Is(err, net.ErrClosed) { // our own Close
		err = nil
	}
	b.leave(err)
	if orderly(err) {
		b.log.write(slog.LevelInfo, "vhost-user front-end disconnected")
	} else {
		b.log.write(slog.LevelWarn, "vhost-user connection closed", "reason", err)
	}
	return s.negotiated
}

func (b *Backend) enter(c *net.UnixConn, s *session) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.conn, b.session = c, s
	b.counts.Connections++
	b.counts.Attempts, b.counts.Unreached = 0, ""
	select {
	case <-b.stopping: // close has looked already, and found nobody
		_ = c.Close()
	default:
	}
}

func (b *Backend) leave(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.conn, b.session = nil, nil
	b.counts.LastEnd = ""
	if !orderly(err) {
		b.counts.LastEnd = err.Error()
	}
}

// peer tells who connected.
func peer(c *net.UnixConn) (pid, uid int) {
	pid, uid = -1, -1
	raw, err := c.SyscallConn()
	if err != nil {
		return pid, uid
	}
	_ = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid, uid = int(cred.Pid), int(cred.Uid)
		}
	})
	return pid, uid
}
