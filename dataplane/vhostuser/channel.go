package vhostuser

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// BackendRequest is the type of a message that goes the other way, from back-end to front-end, on a socket of its own.
type BackendRequest uint32

// BackendConfigChange (VHOST_USER_BACKEND_CONFIG_CHANGE_MSG) says that the device's configuration changed.
const BackendConfigChange BackendRequest = 2

// channel is the back-end's own way to the front-end (SET_BACKEND_REQ_FD).
//
//	anybody ──notify──▶ wake ──▶ its goroutine ──message──▶ front-end
//	                                   ◀──acknowledgement──┘
//
// Whoever has something to say leaves a note and goes on; a note that was not read yet is worth as much as two. Only the channel's own goroutine waits,
// messageTime at most, and never in the kernel: the front-end may have kept our end of the socket and made it blocking, so every call says
// MSG_DONTWAIT.
type channel struct {
	conn    *net.UnixConn
	raw     *dontWait
	ack     bool // acknowledgements were negotiated
	log     *logger
	wake    chan struct{} // room for one: the configuration changed
	closing chan struct{}
	closed  chan struct{}
}

// openChannel takes over a socket; the descriptor stays the caller's.
func openChannel(fd int, ack bool, log *logger) (*channel, error) {
	if err := checkSocket(fd); err != nil {
		return nil, err
	}
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate the socket: %w", err)
	}
	conn, err := connOf(dup)
	if err != nil {
		return nil, err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	c := &channel{
		conn: conn, raw: &dontWait{raw: raw, oob: make([]byte, unix.CmsgSpace(maxFDs*4))}, ack: ack, log: log,
		wake: make(chan struct{}, 1), closing: make(chan struct{}), closed: make(chan struct{}),
	}
	go c.run()
	return c, nil
}

var errNotSocket = errors.New("descriptor is no connected unix stream socket")

// checkSocket asks the kernel alone, like CheckEventfd.
func checkSocket(fd int) error {
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return fmt.Errorf("look at descriptor: %w", err)
	}
	if !strings.HasPrefix(name, "socket:[") {
		return errNotSocket
	}
	for option, want := range map[int]int{unix.SO_DOMAIN: unix.AF_UNIX, unix.SO_TYPE: unix.SOCK_STREAM, unix.SO_ACCEPTCONN: 0} {
		if have, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, option); err != nil || have != want {
			return errNotSocket
		}
	}
	if _, err := unix.Getpeername(fd); err != nil {
		return errNotSocket
	}
	return nil
}

// notify says that the configuration changed. It never waits. A nil channel has nobody to tell.
func (c *channel) notify() {
	if c == nil {
		return
	}
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// close ends the channel and returns when its goroutine has.
func (c *channel) close() {
	if c == nil {
		return
	}
	close(c.closing)
	_ = c.conn.Close()
	<-c.closed
}

func (c *channel) run() {
	defer close(c.closed)
	for {
		select {
		case <-c.closing:
			return
		case <-c.wake:
		}
		if err := c.tell(BackendConfigChange); err != nil {
			if !errors.Is(err, net.ErrClosed) {
				c.log.write(slog.LevelWarn, "vhost-user back-end's channel is out of use", "reason", err)
			}
			_ = c.conn.Close()
			return
		}
	}
}

// tell sends a message without a payload, and waits for the acknowledgement where there is one. What it says is the front-end's affair: many have
// no use for the news.
func (c *channel) tell(r BackendRequest) error {
	flags := uint32(flagVersion)
	if c.ack {
		flags |= flagNeedReply
	}
	if err := c.conn.SetDeadline(time.Now().Add(messageTime)); err != nil {
		return err
	}
	if err := c.raw.send(appendHeader(nil, Request(r), flags), nil); err != nil || !c.ack {
		return err
	}
	var m message
	err := readMessage(c.raw, &m)
	m.closeFDs()
	switch {
	case err != nil:
		return fmt.Errorf("acknowledgement: %w", err)
	case m.request != Request(r) || m.flags&flagReply == 0 || len(m.payload) != 8:
		return fmt.Errorf("%w: request %d with flags %#x and %d bytes is no acknowledgement", ErrMalformed, m.request, m.flags, len(m.payload))
	}
	return nil
}

// dontWait is a transport whose file somebody else shares. Waiting is the runtime's, not the kernel's.
type dontWait struct {
	raw interface {
		Read(func(fd uintptr) bool) error
		Write(func(fd uintptr) bool) error
	}
	oob []byte
}

func (d *dontWait) receive(p []byte, fds []int) (n int, _ []int, err error) {
	oobn := 0
	wait := d.raw.Read(func(fd uintptr) bool {
		n, oobn, _, _, err = unix.Recvmsg(int(fd), p, d.oob, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
		return err != unix.EAGAIN && err != unix.EINTR
	})
	if wait != nil {
		return 0, fds, wait
	}
	if oobn > 0 {
		fds = appendRights(fds, d.oob[:oobn])
	}
	return max(n, 0), fds, err
}

func (d *dontWait) send(b []byte, _ []int) error {
	for len(b) > 0 {
		var n int
		var err error
		wait := d.raw.Write(func(fd uintptr) bool {
			n, err = unix.SendmsgN(int(fd), b, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
			return err != unix.EAGAIN && err != unix.EINTR
		})
		if wait != nil || err != nil {
			return errors.Join(wait, err)
		}
		b = b[n:]
	}
	return nil
}

// deadline keeps the one that tell set, for question and answer together.
func (d *dontWait) deadline(time.Time) {}

// setBackendReqFD opens the channel, in place of the one before.
func (s *session) setBackendReqFD(m *message) ([]byte, error) {
	if len(m.fds) != 1 {
		return nil, errors.New("no descriptor came with it")
	}
	c, err := openChannel(m.fds[0], s.protocol&ProtocolReplyAck != 0, s.log)
	if err != nil {
		return nil, err
	}
	s.exchangeChannel(c)
	return nil, nil
}

func (s *session) exchangeChannel(c *channel) {
	s.mu.Lock()
	old := s.channel
	s.channel = c
	s.mu.Unlock()
	old.close()
}

// ConfigChanged tells the front-end, where it takes such news, to read the device's configuration again. It does not wait for it.
func (b *Backend) ConfigChanged() {
	if s := b.current(); s != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.channel.notify()
	}
}
