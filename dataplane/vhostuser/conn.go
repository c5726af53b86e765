package vhostuser

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// messageTime is how long one message may take from its first to its last byte, and how long a reply may wait
// for room in the socket. Honest peers take microseconds.
const messageTime = 5 * time.Second

// Errors that end a connection.
var (
	// ErrMalformed says that the byte stream is no sequence of vhost-user messages; there is no way to find the next one.
	ErrMalformed = errors.New("malformed message")
	errTruncated = fmt.Errorf("%w: more descriptors came than a message may carry, or than this process may open", ErrMalformed)
)

// transport moves bytes and the descriptors that travel with them. A unix socket in life, memory under the fuzzer.
type transport interface {
	// receive fills at most p and appends descriptors to fds, which the caller owns, also beside an error.
	receive(p []byte, fds []int) (int, []int, error)
	send(b []byte, fds []int) error
	deadline(t time.Time)
}

// socket is the transport of life.
type socket struct {
	conn *net.UnixConn
	oob  []byte
}

func newSocket(c *net.UnixConn) *socket {
	return &socket{conn: c, oob: make([]byte, unix.CmsgSpace(maxFDs*4))}
}

func (s *socket) receive(p []byte, fds []int) (int, []int, error) {
	n, oobn, flags, _, err := s.conn.ReadMsgUnix(p, s.oob) // sets MSG_CMSG_CLOEXEC
	if oobn > 0 {
		fds = appendRights(fds, s.oob[:oobn])
	}
	switch {
	case errors.Is(err, io.EOF):
		err = io.EOF // without net's wrapping
	case err == nil && flags&unix.MSG_CTRUNC != 0:
		err = errTruncated
	}
	return n, fds, err
}

func (s *socket) send(b []byte, fds []int) error {
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	for len(b) > 0 {
		n, _, err := s.conn.WriteMsgUnix(b, oob, nil)
		if err != nil {
			return err
		}
		b, oob = b[n:], nil // descriptors travel with the first byte
	}
	return nil
}

func (s *socket) deadline(t time.Time) { _ = s.conn.SetDeadline(t) }

// appendRights collects the descriptors of every SCM_RIGHTS in the ancillary data.
func appendRights(fds []int, oob []byte) []int {
	controls, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return fds
	}
	for i := range controls {
		if rights, err := unix.ParseUnixRights(&controls[i]); err == nil {
			fds = append(fds, rights...)
		}
	}
	return fds
}

// readMessage reads the next message into m, whose earlier descriptors must be closed. It waits for the first byte as long as
// it takes, and messageTime for the rest. io.EOF, and only that, says that the peer left between two messages.
// After any error the stream is lost; descriptors received by then are in m.
func readMessage(t transport, m *message) error {
	m.fds = m.stored[:0]
	head := m.buffer[:headerSize]
	n, err := receiveSome(t, m, head)
	if err != nil {
		return err
	}
	size := -1
	if n == headerSize {
		size = payloadSize(head)
	}
	if size != 0 {
		t.deadline(time.Now().Add(messageTime))
		defer t.deadline(time.Time{})
	}
	if err := receiveAll(t, m, head[n:]); err != nil {
		return err
	}
	m.request = Request(binary.NativeEndian.Uint32(head))
	m.flags = binary.NativeEndian.Uint32(head[4:])
	if v := m.flags & flagVersionMask; v != flagVersion {
		return fmt.Errorf("%w: %v has version %d, only 1 is known", ErrMalformed, m.request, v)
	}
	if size = payloadSize(head); size > maxPayload {
		return fmt.Errorf("%w: %v announces %d bytes, at most %d are known", ErrMalformed, m.request, uint32(size), maxPayload)
	}
	m.payload = m.buffer[headerSize : headerSize+size]
	return receiveAll(t, m, m.payload)
}

func payloadSize(head []byte) int { return int(binary.NativeEndian.Uint32(head[8:])) }

func receiveAll(t transport, m *message, p []byte) error {
	for len(p) > 0 {
		n, err := receiveSome(t, m, p)
		switch {
		case err == io.EOF:
			return fmt.Errorf("%w: the peer left in the middle of one", ErrMalformed)
		case errors.Is(err, os.ErrDeadlineExceeded):
			return fmt.Errorf("%w: the peer began one and did not finish it in %v", ErrMalformed, messageTime)
		case err != nil:
			return err
		}
		p = p[n:]
	}
	return nil
}

// receiveSome reads once. Descriptors belong to the message whether they come with its head or its payload.
func receiveSome(t transport, m *message, p []byte) (int, error) {
	var store [maxFDs]int
	n, fds, err := t.receive(p, store[:0])
	for _, fd := range fds {
		if len(m.fds) < maxFDs {
			m.fds = append(m.fds, fd)
			continue
		}
		closeFD(fd)
		err = errTruncated
	}
	if err == nil && n == 0 {
		err = io.EOF
	}
	return n, err
}
