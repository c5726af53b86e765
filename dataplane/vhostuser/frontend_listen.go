package vhostuser

import (
	"context"
	"fmt"
	"net"
	"os"
	"time"
)

// Listener is a socket on which a front-end waits for back-ends that are clients.
type Listener struct{ listener *net.UnixListener }

// ListenFrontend creates the socket. A file that is there is refused.
func ListenFrontend(path string) (*Listener, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen for vhost-user back-ends: %w", err)
	}
	return &Listener{l}, nil
}

// Accept waits for the next back-end, or until ctx is done.
func (l *Listener) Accept(ctx context.Context) (*Frontend, error) {
	release := interruptible(ctx, l.listener.SetDeadline)
	c, err := l.listener.AcceptUnix()
	release()
	if err != nil {
		return nil, fmt.Errorf("wait for a vhost-user back-end: %w", err)
	}
	return NewFrontend(c), nil
}

// Close removes the socket.
func (l *Listener) Close() error { return l.listener.Close() }

// interruptible has what waits on a socket end when ctx is done, until release is called.
func interruptible(ctx context.Context, deadline func(time.Time) error) (release func()) {
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = deadline(time.Unix(1, 0))
		close(interrupted)
	})
	return func() {
		if !stop() {
			<-interrupted
			_ = deadline(time.Time{})
		}
	}
}

// FrontendChannel is the front-end's end of a back-end's own channel.
type FrontendChannel struct {
	conn    *net.UnixConn
	link    *socket
	message message
}

// Next waits for the back-end's next request, or until ctx is done, and answers with result where an answer is wanted.
func (c *FrontendChannel) Next(ctx context.Context, result uint64) (BackendRequest, error) {
	defer interruptible(ctx, c.conn.SetReadDeadline)()
	m := &c.message
	err := readMessage(patient{c.link}, m)
	m.closeFDs()
	if err != nil {
		return 0, fmt.Errorf("wait for a back-end's request: %w", err)
	}
	if m.flags&flagNeedReply != 0 {
		reply := seal(appendU64(appendHeader(nil, m.request, flagVersion|flagReply), result))
		if err := c.link.send(reply, nil); err != nil {
			return 0, fmt.Errorf("answer a back-end's request: %w", err)
		}
	}
	return BackendRequest(m.request), nil
}

// Close hangs up.
func (c *FrontendChannel) Close() error { return c.conn.Close() }

// connOf makes a connection of a socket's descriptor, which it takes over.
func connOf(fd int) (*net.UnixConn, error) {
	file := os.NewFile(uintptr(fd), "socket")
	defer file.Close()
	c, err := net.FileConn(file)
	if err != nil {
		return nil, fmt.Errorf("use a unix socket: %w", err)
	}
	conn, ok := c.(*net.UnixConn)
	if !ok {
		_ = c.Close()
		return nil, errNotSocket
	}
	return conn, nil
}
