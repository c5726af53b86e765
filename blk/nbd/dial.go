package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/shuntio/shunt/blk"
	"golang.org/x/sys/unix"
)

// link is a connection that has come to the transmission phase.
type link struct {
	fd     int // a plain socket that blocks, as io_uring needs it
	export *export
	begun  time.Time // then it was dialled
	behind *pump     // stands behind the socket; nil: nothing does
}

// close ends one that no lane has.
func (c *link) close() {
	if c.behind != nil {
		c.behind.abort()
	}
	unix.Close(c.fd)
}

// greetingLimit is how long dialling and the handshake may take.
const greetingLimit = 10 * time.Second

// dial connects, and does what comes before the export is named.
func (s *Store) dial(ctx context.Context) (*session, error) {
	secure, err := s.options.TLS.config(s.address)
	if err != nil {
		return nil, err
	}
	limit := s.options.Timeout
	d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: max(limit/4, time.Second), Interval: max(limit/8, time.Second), Count: 3,
	}}
	c, err := d.DialContext(ctx, s.address.network, s.address.address)
	if err != nil {
		where := "host and port"
		if s.address.network == "unix" {
			where = "the socket's path"
		}
		return nil, blk.Unreached(err, "the server", where)
	}
	deadline, _ := ctx.Deadline()
	c.SetDeadline(deadline) //nolint:errcheck // it has one
	if t, ok := c.(*net.TCPConn); ok {
		if err := noticeDeath(t, limit); err != nil {
			c.Close()
			return nil, err
		}
		t.SetLinger(0) //nolint:errcheck // whatever ends us, what was not sent yet is not sent any more: the server may be busy until after others have written there
	}
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) }) //nolint:errcheck // as above
	n, err := greet(ctx, c, secure)
	stop()
	if err != nil {
		c.Close()
		return nil, err
	}
	return n, nil
}

// noticeDeath lets the kernel end a connection whose other end acknowledges nothing, which it would otherwise try for a quarter of an hour.
func noticeDeath(c *net.TCPConn, limit time.Duration) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(limit.Milliseconds()))
	})
	return errors.Join(err, failed)
}

// connect makes a connection and opens the export.
func (s *Store) connect(ctx context.Context) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, greetingLimit)
	defer cancel()
	begun := time.Now()
	n, err := s.dial(ctx)
	if err != nil {
		return nil, s.say(ctx, err)
	}
	defer func() { n.Close() }()                                              // whatever its Conn is by then
	stop := context.AfterFunc(ctx, func() { n.SetDeadline(time.Unix(1, 0)) }) //nolint:errcheck // only to hurry
	e, err := n.enter(optGo, s.address.export)
	stop()
	if err != nil {
		return nil, s.say(ctx, err)
	}
	c := &link{export: e, begun: begun}
	if c.behind, c.fd, err = n.detach(); err != nil {
		return nil, s.say(ctx, err)
	}
	return c, nil
}

// say puts the URI before an error, and says in words that it was too late.
func (s *Store) say(ctx context.Context, err error) error {
	if cause := ctx.Err(); errors.Is(cause, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
		err = errors.New("the server does not answer: see that it runs, and that nothing between drops its packets")
	} else if cause != nil {
		err = cause
	}
	return fmt.Errorf("%s: %w", s.options.URI, err)
}

// detach takes the socket out of Go's hands; with TLS, the end of a pump that stands before it.
func (n *session) detach() (*pump, int, error) {
	c, ok := n.Conn.(*tls.Conn)
	if !ok {
		fd, err := socketOf(n.Conn)
		return nil, fd, err
	}
	c.SetDeadline(time.Time{}) //nolint:errcheck // none is left
	p, fd, err := newPump(c)
	if err == nil {
		n.Conn = taken{c} // the pump's from now on
	}
	return p, fd, err
}

// socketOf is a connection's socket, as io_uring needs it, beside Go's own.
func socketOf(c net.Conn) (int, error) {
	f, ok := c.(interface {
		SyscallConn() (syscall.RawConn, error)
	})
	if !ok {
		return -1, fmt.Errorf("a connection of type %T has no socket", c)
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd, failed := -1, error(nil)
	err = raw.Control(func(of uintptr) { fd, failed = unix.FcntlInt(of, unix.F_DUPFD_CLOEXEC, 0) })
	if err := errors.Join(err, failed); err != nil {
		return -1, fmt.Errorf("the connection's socket: %w", err)
	}
	// io_uring takes a file that does not block at its word, and would report that there is nothing instead of waiting for it.
	if err := unix.SetNonblock(fd, false); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("the connection's socket: %w", err)
	}
	return fd, nil
}

// taken is a connection that somebody else closes.
type taken struct{ net.Conn }

// Close does nothing.
func (taken) Close() error { return nil }
