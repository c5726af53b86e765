package vhostuser

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"
)

// ErrRefused says that the back-end answered a request with a failure; its own log has the reason.
var ErrRefused = errors.New("back-end refused")

// Frontend is the other side: the owner of rings and memory, which a hypervisor is in life. Load generators,
// tests and attacks are front-ends.
//
//	Dial, or ListenFrontend and Accept,
//	     ─▶ Negotiate ─▶ SetMemory ─▶ StartVring for each ring ─▶ ... ─▶ StopVring ─▶ Close
//
// Where REPLY_ACK was negotiated every request waits for its acknowledgement; otherwise requests are only sent, in the classic
// way, and Barrier waits until all were handled. A Frontend belongs to one goroutine.
type Frontend struct {
	// Timeout for each reply. Zero: 5 s.
	Timeout time.Duration

	conn     *net.UnixConn
	link     *socket
	features uint64
	protocol uint64
	message  message
	out      []byte
}

// Dial connects to a back-end that listens.
func Dial(path string) (*Frontend, error) {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("connect to vhost-user back-end: %w", err)
	}
	return NewFrontend(c), nil
}

// DialWait connects as soon as the back-end listens, or gives up when ctx is done.
func DialWait(ctx context.Context, path string) (*Frontend, error) {
	for {
		f, err := Dial(path)
		if err == nil {
			return f, nil
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// NewFrontend speaks on a connection that exists, and closes it in the end.
func NewFrontend(c *net.UnixConn) *Frontend {
	return &Frontend{conn: c, link: newSocket(c)}
}

// Close hangs up. The back-end stops all rings and gives up all memory.
func (f *Frontend) Close() error {
	f.message.closeFDs()
	return f.conn.Close()
}

// Features and Protocol are what was negotiated.
func (f *Frontend) Features() uint64 { return f.features }

// Protocol features that were negotiated.
func (f *Frontend) Protocol() uint64 { return f.protocol }

// Negotiate opens the session as QEMU does and accepts what both the back-end offers and the caller wants.
// Without FeatureProtocol in features no protocol feature is negotiated, as an old front-end would.
func (f *Frontend) Negotiate(features, protocol uint64) error {
	if err := f.Do(SetOwner, nil); err != nil {
		return err
	}
	offered, err := f.GetFeatures()
	if err != nil {
		return err
	}
	if features &= offered; features&FeatureProtocol != 0 {
		have, err := f.getU64(GetProtocolFeatures)
		if err != nil {
			return err
		}
		if err := f.Do(SetProtocolFeatures, appendU64(nil, have&protocol)); err != nil {
			return err
		}
		f.protocol = have & protocol
	}
	return f.AcceptFeatures(features)
}

// GetFeatures asks what the back-end offers.
func (f *Frontend) GetFeatures() (uint64, error) { return f.getU64(GetFeatures) }

// AcceptFeatures tells what the driver accepted. Negotiate does so; after a reset of the device it is due again.
func (f *Frontend) AcceptFeatures(features uint64) error {
	if err := f.Do(SetFeatures, appendU64(nil, features)); err != nil {
		return err
	}
	f.features = features
	return nil
}

// Barrier returns when the back-end has handled all that was sent before.
func (f *Frontend) Barrier() error {
	_, err := f.getU64(GetFeatures)
	return err
}

// Do sends a request without an answer of its own, and waits for the acknowledgement where that was negotiated.
// Descriptors stay the caller's.
func (f *Frontend) Do(r Request, payload []byte, fds ...int) error {
	if f.protocol&ProtocolReplyAck == 0 {
		return f.Send(r, payload, fds...)
	}
	if err := f.write(r, flagVersion|flagNeedReply, payload, fds); err != nil {
		return err
	}
	reply, err := f.Receive(r)
	if err != nil {
		return err
	}
	if len(reply) != 8 {
		return fmt.Errorf("%v: acknowledgement of %d bytes instead of 8", r, len(reply))
	}
	if v := binary.NativeEndian.Uint64(reply); v != 0 {
		return fmt.Errorf("%v: %w with %d", r, ErrRefused, v)
	}
	return nil
}

// Ask sends a request with an answer of its own and returns that, valid until the next.
func (f *Frontend) Ask(r Request, payload []byte) ([]byte, error) {
	if err := f.Send(r, payload); err != nil {
		return nil, err
	}
	return f.Receive(r)
}

// Send sends a request and waits for nothing.
func (f *Frontend) Send(r Request, payload []byte, fds ...int) error {
	return f.write(r, flagVersion, payload, fds)
}

// SendRaw sends bytes as they are, for attacks.
func (f *Frontend) SendRaw(b []byte, fds ...int) error {
	f.conn.SetWriteDeadline(f.until())
	return f.link.send(b, fds)
}

// Receive waits for the reply to a request and returns its payload, valid until the next.
func (f *Frontend) Receive(r Request) ([]byte, error) {
	f.message.closeFDs()
	f.conn.SetReadDeadline(f.until())
	if err := readMessage(patient{f.link}, &f.message); err != nil {
		return nil, fmt.Errorf("%v: reply: %w", r, err)
	}
	m := &f.message
	if m.request != r || m.flags&flagReply == 0 {
		return nil, fmt.Errorf("%v: the reply is %v with flags %#x", r, m.request, m.flags)
	}
	return m.payload, nil
}

// patient keeps the deadline that Receive set.
type patient struct{ *socket }

func (patient) deadline(time.Time) {}

func (f *Frontend) until() time.Time {
	if f.Timeout == 0 {
		return time.Now().Add(5 * time.Second)
	}
	return time.Now().Add(f.Timeout)
}

func (f *Frontend) write(r Request, flags uint32, payload []byte, fds []int) error {
	f.out = seal(append(appendHeader(f.out[:0], r, flags), payload...))
	if err := f.SendRaw(f.out, fds...); err != nil {
		return fmt.Errorf("%v: send: %w", r, err)
	}
	return nil
}

func (f *Frontend) getU64(r Request) (uint64, error) {
	reply, err := f.Ask(r, nil)
	if err != nil {
		return 0, err
	}
	if len(reply) != 8 {
		return 0, fmt.Errorf("%v: reply of %d bytes instead of 8", r, len(reply))
	}
	return binary.NativeEndian.Uint64(reply), nil
}
