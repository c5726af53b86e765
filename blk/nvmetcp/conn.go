package nvmetcp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/shuntio/shunt/blk"
	"golang.org/x/sys/unix"
)

// conn is a connection that goroutines drive: an admin queue all its life, an IO queue until its worker gets the socket.
type conn struct {
	*net.TCPConn
	terms terms
}

// dial connects and agrees on terms (ICReq, ICResp). All of it ends by the deadline of ctx.
func dial(ctx context.Context, o *Options) (*conn, error) {
	var d net.Dialer
	n, err := d.DialContext(ctx, "tcp", o.Address)
	if err != nil {
		return nil, fmt.Errorf("connect to the NVMe/TCP controller at %s: %w", o.Address, blk.Unreached(err, "it", "host and port"))
	}
	c := &conn{TCPConn: n.(*net.TCPConn)}
	c.SetLinger(0) // whatever ends us, what was not sent yet is not sent any more
	defer c.bounded(ctx)()
	if err := c.initialize(o); err != nil {
		c.Close()
		return nil, fmt.Errorf("NVMe/TCP handshake with %s: %w", o.Address, explain(err))
	}
	return c, nil
}

// bounded lets ctx's end end what the connection waits for, until the function it returns is called.
func (c *conn) bounded(ctx context.Context) func() {
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	if deadline, ok := ctx.Deadline(); ok {
		c.SetDeadline(deadline)
	}
	return func() {
		if stop() {
			c.SetDeadline(time.Time{})
		}
	}
}

// explain says what a broken handshake may mean.
func explain(err error) error {
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, unix.ECONNRESET):
		return fmt.Errorf("the other side hung up (%w); it may speak another protocol, or want TLS, which shunt does not have for NVMe/TCP", err)
	}
	return err
}

func (c *conn) initialize(o *Options) error {
	request := make([]byte, initLength)
	var digests byte
	if o.HeaderDigest {
		digests |= 1
	}
	if o.DataDigest {
		digests |= 2
	}
	request[11] = digests // PFV 0, HPDA 0: data may follow a header at any multiple of four; MAXR2T 0: one R2T at a time for each command
	header(request).common(pduICReq, 0, initLength, 0, initLength)
	if _, err := c.Write(request); err != nil {
		return err
	}
	answer := make([]byte, initLength)
	if _, err := io.ReadFull(c, answer[:commonLength]); err != nil {
		return err
	}
	h := header(answer)
	if h.kind() == pduC2HTermReq && h.plen() >= headerLength && h.plen() <= maxTermLength {
		if _, err := io.ReadFull(c, answer[commonLength:headerLength]); err != nil {
			return err
		}
		return terminated(h)
	}
	if h.kind() != pduICResp || h.hlen() != initLength || h.plen() != initLength {
		return fmt.Errorf("the answer is no ICResp (type %#x, HLEN %d, PLEN %d); is this an NVMe/TCP port? correct host and port if it is not", h.kind(), h.hlen(), h.plen())
	}
	if _, err := io.ReadFull(c, answer[commonLength:]); err != nil {
		return err
	}
	return c.agree(answer, digests)
}

func (c *conn) agree(answer []byte, digests byte) error {
	if pfv := le.Uint16(answer[8:]); pfv != 0 {
		return fmt.Errorf("the controller speaks PDU format version %d, shunt version 0", pfv)
	}
	if answer[10] > 31 {
		return fmt.Errorf("the controller wants data aligned to %d dwords (CPDA), and 32 is the most", int(answer[10])+1)
	}
	if answer[11] != digests {
		return fmt.Errorf("the controller answers digests %s where %s were asked for", digestNames(answer[11]), digestNames(digests))
	}
	c.terms = terms{headerDigest: digests&1 != 0, dataDigest: digests&2 != 0, align: 4 * (int(answer[10]) + 1), maxH2CData: le.Uint32(answer[12:])}
	if c.terms.maxH2CData < minH2CData || c.terms.maxH2CData%4 != 0 {
		return fmt.Errorf("the controller takes %d bytes in an H2CData PDU (MAXH2CDATA); at least %d, in multiples of four, is legal", c.terms.maxH2CData, minH2CData)
	}
	return nil
}

func digestNames(d byte) string {
	return [4]string{"none", "header", "data", "header and data"}[d&3]
}

// send writes a command capsule with data in it, which may be nothing.
func (c *conn) send(e sqe, data []byte) error {
	b := make([]byte, maxDataOffset, maxDataOffset+len(data)+digestLength)
	copy(b[commonLength:], e)
	n := c.terms.seal(b, pduCapsuleCmd, 0, commandLength, uint32(len(data)))
	b = append(b[:n], data...)
	if c.terms.dataDigest && len(data) > 0 {
		b = le.AppendUint32(b, crc32c(data))
	}
	_, err := c.Write(b)
	return err
}

// receive reads the next PDU's header, and its data into what where returns for it: as long as the header says, or an error.
func (c *conn) receive(where func(header) ([]byte, error)) (header, error) {
	h := make(header, headerLength+digestLength)
	if _, err := io.ReadFull(c, h[:commonLength]); err != nil {
		return nil, err
	}
	n, bad := c.terms.expect(h)
	if bad != nil {
		return nil, c.terminate(bad)
	}
	if _, err := io.ReadFull(c, h[commonLength:n]); err != nil {
		return nil, err
	}
	padding, bad := c.terms.check(h)
	if bad != nil {
		return nil, c.terminate(bad)
	}
	if h.kind() == pduC2HTermReq {
		return nil, terminated(h)
	}
	data, err := where(h[:headerLength])
	if err != nil || h.kind() != pduC2HData {
		return h, err
	}
	var around [maxDataOffset]byte
	if _, err := io.ReadFull(c, around[:padding]); err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(c, data); err != nil {
		return nil, err
	}
	if c.terms.dataDigest {
		if _, err := io.ReadFull(c, around[:digestLength]); err != nil {
			return nil, err
		}
		if sum := crc32c(data); sum != le.Uint32(around[:]) {
			return nil, fmt.Errorf("the data digest of a C2HData PDU is wrong: %#x, the data's is %#x", le.Uint32(around[:]), sum)
		}
	}
	return h, nil
}

// terminate tells the controller what it did wrong, as far as that goes without waiting.
func (c *conn) terminate(bad *violation) error {
	c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	c.SetLinger(-1)
	c.Write(bad.termReq())
	c.CloseWrite()
	return bad
}

// roundTrip is one command on a connection that has no other under way.
func (c *conn) roundTrip(e sqe, data []byte) (cqe, error) {
	if err := c.send(e, data); err != nil {
		return cqe{}, err
	}
	h, err := c.receive(func(h header) ([]byte, error) {
		if h.kind() != pduCapsuleResp {
			return nil, c.terminate(breach(fesSequence, 0, h, "PDU type %#x in answer to a command without data", h.kind()))
		}
		return nil, nil
	})
	if err != nil {
		return cqe{}, err
	}
	r := parseCQE(h[commonLength:])
	if r.cid != e.cid() {
		return r, c.terminate(breach(fesSequence, 0, h[:headerLength], "an answer to command %#x, which is not under way", r.cid))
	}
	return r, nil
}

// connect makes the connection queue qid of a controller (Fabrics Connect); cntlid FFFFh asks for a new controller. entries is the size of the queue.
func (c *conn) connect(o *Options, qid uint16, entries int, cntlid uint16, kato time.Duration) (uint16, error) {
	e := make(sqe, sqeLength)
	e.begin(opFabrics, 0)
	e[4] = fabricsConnect
	le.PutUint16(e[42:], qid)
	le.PutUint16(e[44:], uint16(entries-1))
	le.PutUint32(e[48:], uint32(kato/time.Millisecond))
	data := make([]byte, 1024)
	copy(data, o.HostID[:])
	le.PutUint16(data[16:], cntlid)
	copy(data[256:511], o.NQN)
	copy(data[512:767], o.HostNQN)
	e.inCapsule(uint32(len(data)))
	r, err := c.roundTrip(e, data)
	if err != nil {
		return 0, fmt.Errorf("connect queue %d to %s: %w", qid, o.NQN, explain(err))
	}
	if !r.status.ok() {
		return 0, fmt.Errorf("connect queue %d to %s: %w", qid, o.NQN, o.refusal(r))
	}
	if r.result>>16&0xffff != 0 {
		return 0, ErrAuthentication
	}
	return uint16(r.result), nil
}

// refusal says what a Connect that failed means.
func (o *Options) refusal(r cqe) error {
	switch r.status.code() {
	case scAuthenticate:
		return ErrAuthentication
	case scInvalidHost:
		return fmt.Errorf("the subsystem does not admit host %s; allow it there", o.HostNQN)
	case scBusy:
		return errors.New("the controller is busy: it has no queue left; disconnect another host, or raise their number at the target")
	case scConnectInvalid:
		name := "a parameter"
		if r.result>>16&1 != 0 { // of the data
			switch r.result & 0xffff {
			case 0:
				name = "host identifier"
			case 16:
				name = "controller identifier"
			case 256:
				name = "subsystem name: there is none of that name here"
			case 512:
				name = "host name"
			}
		} else {
			switch r.result & 0xffff {
			case 42:
				name = "queue number"
			case 44:
				name = "queue size"
			case 48:
				name = "keep-alive timeout"
			}
		}
		return fmt.Errorf("the controller does not accept the %s: correct it in the source, or look into the target's log", name)
	}
	return fmt.Errorf("the controller refused: %v", r.status)
}

// detach takes the socket out of Go's hands, ready for io_uring: blocking, since otherwise the ring would answer EAGAIN instead of waiting; and no longer known to
// the runtime's poller, which would wake for every segment.
func (c *conn) detach() (fd int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	var dup error
	if err := raw.Control(func(f uintptr) { fd, dup = unix.FcntlInt(f, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return -1, err
	}
	if dup != nil {
		return -1, fmt.Errorf("duplicate the connection's file: %w", dup)
	}
	c.SetDeadline(time.Time{})
	if err := c.Close(); err != nil {
		unix.Close(fd)
		return -1, err
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}
