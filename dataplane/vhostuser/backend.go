package vhostuser

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Options of a Backend.
type Options struct {
	// Path of the unix socket; at most 107 bytes.
	Path string
	// Mode of the socket. Zero: 0600.
	Mode fs.FileMode
	// Owner and Group of the socket, by number. Zero: those of this process.
	Owner, Group int
	// Log takes what operators want to know, at most about a line a second per socket. Nil: slog.Default.
	Log *slog.Logger

	tap func(transport) transport // tests listen in
}

// Backend serves a Device to the front-ends that connect to its socket, one at a time. A front-end that comes back is
// a new connection, as is another one after it.
//
//	accept ──free?──────▶ serve: session.run ──▶ wait for the next
//	   │  └─leaving?─▶ waits until it is gone
//	   └────────────busy?──▶ closed, counted, logged
type Backend struct {
	device   Device
	log      *logger
	path     string
	tap      func(transport) transport
	identity fs.FileInfo // of the socket file, so that nobody else's is removed
	listener *net.UnixListener
	incoming chan *net.UnixConn // from accept to serve
	stopping chan struct{}
	stopped  sync.WaitGroup // accept and serve
	closing  sync.Once

	mu      sync.Mutex // guards the rest
	conn    *net.UnixConn
	session *session
	counts  Status
}

// How many connections are turned away, or served, without a pause, and how many a second after that.
// A front-end that connects and leaves all day waits in the listen queue and costs nothing.
var (
	turnPace  = bucket{burst: 16, interval: 100 * time.Millisecond}
	servePace = bucket{burst: 32, interval: 50 * time.Millisecond}
)

// closeTime is how long Close waits for the connection's goroutine, which may be in a device call.
const closeTime = 5 * time.Second

// Listen creates the socket and serves d on it until Close. A taken path is ErrInUse; the socket file of a dead
// process is replaced.
func Listen(o Options, d Device) (*Backend, error) {
	l, identity, err := listen(o)
	if err != nil {
		return nil, err
	}
	b := &Backend{
		device: d, log: newLogger(o.Log, o.Path), path: o.Path, tap: o.tap, identity: identity, listener: l,
		incoming: make(chan *net.UnixConn), stopping: make(chan struct{}),
	}
	b.stopped.Add(2)
	go b.accept()
	go b.serve()
	return b, nil
}

// Close removes the socket, ends the connection and returns when the device was told. It fails where that takes too long:
// the device hangs in a call, or a descriptor of the front-end's does when it is closed.
func (b *Backend) Close() error {
	var err error
	b.closing.Do(func() { err = b.close() })
	return err
}

func (b *Backend) close() error {
	if now, err := os.Lstat(b.path); err == nil && os.SameFile(now, b.identity) {
		_ = os.Remove(b.path)
	}
	close(b.stopping)
	_ = b.listener.Close()
	b.mu.Lock()
	if b.conn != nil {
		_ = b.conn.Close()
	}
	b.mu.Unlock()
	done := make(chan struct{})
	go func() { b.stopped.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-time.After(closeTime):
		return fmt.Errorf("socket %s: the connection did not end within %v of its close", b.path, closeTime)
	}
}

// Status may be called at any time.
func (b *Backend) Status() Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.counts
	s.Path = b.path
	if b.session != nil {
		s.Session = b.session.snapshot()
	}
	return s
}

// accept hands connections to serve, and turns them away while it is busy.
func (b *Backend) accept() {
	defer b.stopped.Done()
	defer close(b.incoming)
	pace := turnPace
	for {
		c, err := b.listener.AcceptUnix()
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
		case b.incoming <- c: // at once, or when the one that is leaving is gone
		case <-b.stopping:
			_ = c.Close()
		}
	}
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
	for c := range b.incoming {
		b.serveOne(c)
		for !pace.take(time.Now()) && b.pause(pace.interval) {
		}
	}
}

func (b *Backend) serveOne(c *net.UnixConn) {
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
		return
	}
	b.log.write(slog.LevelWarn, "vhost-user connection closed", "reason", err)
}

func (b *Backend) enter(c *net.UnixConn, s *session) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.conn, b.session = c, s
	b.counts.Connections++
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
