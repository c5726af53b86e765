package nvmetcp

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// adminEntries is the size of the admin queue: one command of each kind we send at once, and one event request.
const adminEntries = 32

// errGone is why calls end when the admin queue does.
var errGone = errors.New("the admin queue is gone")

// admin is an admin queue: callers write their commands, one goroutine reads and hands out the answers.
type admin struct {
	*conn
	write sync.Mutex // held while a PDU is written

	mu      sync.Mutex
	last    uint16
	pending map[uint16]*call
	sent    time.Time // when the last command began to go out: the controller may count its keep-alive timeout from later than this, never from earlier than it arrives
	err     error     // set when nothing more comes
	gone    chan struct{}
}

// call is a command under way.
type call struct {
	data     []byte // to fill
	received int
	answer   chan cqe // takes one
}

func newAdmin(c *conn) *admin {
	a := &admin{conn: c, pending: map[uint16]*call{}, gone: make(chan struct{}), sent: time.Now()}
	go a.read()
	return a
}

// read hands out what comes until the connection ends.
func (a *admin) read() {
	for {
		h, err := a.receive(a.where)
		if err != nil {
			a.end(err)
			return
		}
		switch {
		case h.kind() == pduCapsuleResp:
			err = a.answer(parseCQE(h[commonLength:]), h)
		case h.flags()&flagSuccess != 0:
			err = a.answer(cqe{cid: h.cccid()}, h)
		}
		if err != nil {
			a.end(err)
			return
		}
	}
}

// where finds the place for a data PDU.
func (a *admin) where(h header) ([]byte, error) {
	if h.kind() == pduR2T {
		return nil, a.terminate(breach(fesSequence, 0, h, "R2T on the admin queue, where all data is in capsules"))
	}
	if h.kind() != pduC2HData {
		return nil, nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.pending[h.cccid()]
	if c == nil {
		return nil, a.terminate(breach(fesSequence, 0, h, "data for admin command %#x, which is not under way", h.cccid()))
	}
	if int64(h.offset()) != int64(c.received) || int64(h.length()) > int64(len(c.data)-c.received) {
		return nil, a.terminate(breach(fesOutOfRange, h.offset(), h, "admin data at %d, %d bytes; due were %d of %d", h.offset(), h.length(), c.received, len(c.data)))
	}
	part := c.data[c.received:][:h.length()]
	c.received += len(part)
	return part, nil
}

func (a *admin) answer(r cqe, h header) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.pending[r.cid]
	if c == nil {
		return a.terminate(breach(fesSequence, 0, h[:headerLength], "an answer to admin command %#x, which is not under way", r.cid))
	}
	if r.status.ok() && c.received != len(c.data) {
		return a.terminate(breach(fesSequence, 0, h[:headerLength], "an admin command succeeded with %d of %d bytes of data", c.received, len(c.data)))
	}
	delete(a.pending, r.cid)
	c.answer <- r
	return nil
}

// end makes every call fail, now and later.
func (a *admin) end(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err != nil {
		return
	}
	a.err = fmt.Errorf("%w: %w", errGone, explainEnd(err))
	close(a.gone)
	a.Close()
}

// explainEnd puts the end of a connection in words.
func explainEnd(err error) error {
	if err == nil {
		return errors.New("it was closed")
	}
	return err
}

// lastSent is when the last command went out.
func (a *admin) lastSent() time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.sent
}

// do sends a command and waits for its end: an error is about the connection, or ctx; the command's own success is in the answer. data is filled by a
// command that succeeds; the caller has it for this command alone.
func (a *admin) do(ctx context.Context, e sqe, data []byte) (cqe, error) {
	if len(data) > 0 {
		e.transport(uint32(len(data)))
	} else if e[39] == 0 {
		e.transport(0)
	}
	c := &call{data: data, answer: make(chan cqe, 1)}
	if err := a.begin(e, c); err != nil {
		return cqe{}, err
	}
	select {
	case r := <-c.answer:
		return r, nil
	case <-a.gone:
		return cqe{}, a.err
	case <-ctx.Done():
		// It stays in pending, with data that nobody else has: an answer may still come.
		return cqe{}, fmt.Errorf("no answer to admin command %#x: %w", e[0], context.Cause(ctx))
	}
}

func (a *admin) begin(e sqe, c *call) error {
	a.mu.Lock()
	if a.err != nil {
		a.mu.Unlock()
		return a.err
	}
	if len(a.pending) >= adminEntries-1 {
		a.mu.Unlock()
		return errors.New("the admin queue is full")
	}
	for {
		a.last = (a.last + 1) & 0x7fff
		if a.pending[a.last] == nil {
			break
		}
	}
	e.setCID(a.last)
	a.pending[a.last] = c
	a.sent = time.Now()
	a.mu.Unlock()

	a.write.Lock()
	defer a.write.Unlock()
	a.SetWriteDeadline(time.Now().Add(writeTime))
	if err := a.send(e, nil); err != nil {
		a.end(err)
		return a.err
	}
	return nil
}

// writeTime bounds how long a command may take to go out.
const writeTime = 5 * time.Second

// command is do for a command whose failure is an error.
func (a *admin) command(ctx context.Context, what string, e sqe, data []byte) (cqe, error) {
	r, err := a.do(ctx, e, data)
	if err == nil && !r.status.ok() {
		err = &commandError{r.status}
	}
	if err != nil {
		return r, fmt.Errorf("%s: %w", what, err)
	}
	return r, nil
}

// commandError is a command that the controller ended with a status.
type commandError struct{ status status }

func (e *commandError) Error() string { return "the controller answered " + e.status.String() }

func (a *admin) property(ctx context.Context, offset uint32, wide bool) (uint64, error) {
	e := make(sqe, sqeLength)
	e.begin(opFabrics, 0)
	e[4] = fabricsPropertyGet
	if wide {
		e[40] = 1
	}
	le.PutUint32(e[44:], offset)
	r, err := a.command(ctx, fmt.Sprintf("read property %#x", offset), e, nil)
	if !wide {
		r.result &= 0xffffffff
	}
	return r.result, err
}

func (a *admin) setProperty(ctx context.Context, offset uint32, v uint32) error {
	e := make(sqe, sqeLength)
	e.begin(opFabrics, 0)
	e[4] = fabricsPropertySet
	le.PutUint32(e[44:], offset)
	le.PutUint64(e[48:], uint64(v))
	_, err := a.command(ctx, fmt.Sprintf("write property %#x", offset), e, nil)
	return err
}

func (a *admin) identify(ctx context.Context, what string, cns byte, nsid uint32) ([]byte, error) {
	e := make(sqe, sqeLength)
	e.begin(opIdentify, nsid)
	e.setCDW(10, uint32(cns))
	b := make([]byte, pageLength)
	_, err := a.command(ctx, "identify "+what, e, b)
	return b, err
}

// logPage reads n bytes of a log page from an offset on.
func (a *admin) logPage(ctx context.Context, what string, page uint32, nsid uint32, offset int64, n int) ([]byte, error) {
	e := make(sqe, sqeLength)
	e.begin(opGetLogPage, nsid)
	dwords := uint32(n/4 - 1)
	e.setCDW(10, page|dwords<<16)
	e.setCDW(11, dwords>>16)
	e.setCDW64(12, offset)
	b := make([]byte, n)
	_, err := a.command(ctx, "read log page "+what, e, b)
	return b, err
}

func (a *admin) setFeature(ctx context.Context, what string, feature byte, v uint32) (uint32, error) {
	e := make(sqe, sqeLength)
	e.begin(opSetFeatures, 0)
	e.setCDW(10, uint32(feature))
	e.setCDW(11, v)
	r, err := a.command(ctx, "set feature "+what, e, nil)
	return uint32(r.result), err
}
