package nbd

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/blk/blktest"
	"golang.org/x/sys/unix"
)

// mock is a server that does what a test wants, on a unix socket.
type mock struct {
	tb       testing.TB
	listener net.Listener
	size     uint64
	flags    uint16
	plain    bool                     // no structured replies
	clients  chan *mockConn           // that have come to the transmission phase
	infos    []mockInfoReply          // beside the size
	secure   *tls.Config              // with STARTTLS
	asked    func()                   // before the end of an answer to INFO; nil: nobody wants to know
	seal     func(*tls.Conn) net.Conn // takes over what is sent; nil: nobody does
	mu       sync.Mutex               // of what change changes, from serve on, and of what follows
	accepted map[net.Conn]bool        // until they are closed: one that nobody has in his hands any more the garbage collector would close
}

// change has the next clients find another server.
func (m *mock) change(fn func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	fn()
}

type mockInfoReply []byte

const mockFlags = flagHasFlags | flagFlush | flagFUA | flagTrim | flagWriteZeroes | flagFastZero

func newMock(tb testing.TB) *mock {
	tb.Helper()
	l, err := net.Listen("unix", socketPath(tb, "mock"))
	if err != nil {
		tb.Fatal(err)
	}
	m := &mock{tb: tb, listener: l, size: imageSize, flags: mockFlags, clients: make(chan *mockConn, 16), accepted: map[net.Conn]bool{}}
	tb.Cleanup(func() {
		_ = l.Close()
		m.mu.Lock()
		defer m.mu.Unlock()
		for c := range m.accepted {
			_ = c.Close()
		}
	})
	return m
}

func (m *mock) options() Options {
	return Options{URI: "nbd+unix:///?socket=" + m.listener.Addr().String(), Quiesce: -1}
}

// serve accepts connections until the test ends.
func (m *mock) serve() *mock {
	go func() {
		for {
			c, err := m.listener.Accept()
			if err != nil {
				return
			}
			go m.greet(c)
		}
	}()
	return m
}

// client is the next one that has come to the transmission phase.
func (m *mock) client() *mockConn {
	m.tb.Helper()
	select {
	case c := <-m.clients:
		return c
	case <-time.After(patient):
		m.tb.Fatal("nobody connects")
		return nil
	}
}

func optReply(option, kind uint32, data ...byte) []byte {
	b := binary.BigEndian.AppendUint64(nil, optReplyMagic)
	b = binary.BigEndian.AppendUint32(b, option)
	b = binary.BigEndian.AppendUint32(b, kind)
	return append(binary.BigEndian.AppendUint32(b, uint32(len(data))), data...)
}

func hello(flags uint16) []byte {
	b := binary.BigEndian.AppendUint64(nil, initMagic)
	b = binary.BigEndian.AppendUint64(b, optionMagic)
	return binary.BigEndian.AppendUint16(b, flags)
}

func exportInfo(size uint64, flags uint16) []byte {
	b := binary.BigEndian.AppendUint16(nil, infoExport)
	b = binary.BigEndian.AppendUint64(b, size)
	return binary.BigEndian.AppendUint16(b, flags)
}

// readOption takes one option from a client.
func readOption(c net.Conn) (option uint32, err error) {
	var head [16]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return 0, err
	}
	_, err = io.CopyN(io.Discard, c, int64(binary.BigEndian.Uint32(head[12:])))
	return binary.BigEndian.Uint32(head[8:]), err
}

// greet is a handshake as it should be.
func (m *mock) greet(c net.Conn) {
	raw := c
	m.mu.Lock()
	m.accepted[c] = true
	size, flags, plain := m.size, m.flags, m.plain
	m.mu.Unlock()
	c.Write(hello(flagFixedNewstyle | flagNoZeroes))
	io.CopyN(io.Discard, c, 4)
	for {
		option, err := readOption(c)
		if err != nil {
			c.Close()
			return
		}
		switch option {
		case optStartTLS:
			c.Write(optReply(option, repAck))
			secure := tls.Server(c, m.secure)
			if c = secure; m.seal != nil {
				c = m.seal(secure)
			}
		case optStructuredReply:
			if plain {
				c.Write(optReply(option, repErrUnsup))
			} else {
				c.Write(optReply(option, repAck))
			}
		case optGo, optInfo:
			for _, i := range m.infos {
				c.Write(optReply(option, repInfo, i...))
			}
			c.Write(optReply(option, repInfo, exportInfo(size, flags)...))
			if option == optInfo && m.asked != nil {
				m.asked()
			}
			c.Write(optReply(option, repAck))
			if option == optGo {
				m.clients <- &mockConn{Conn: c, tb: m.tb, gone: func() { m.change(func() { delete(m.accepted, raw) }) }}
				return
			}
		default:
			c.Write(optReply(option, repAck))
			c.Close()
			return
		}
	}
}

// mockConn is the server's end of a connection.
type mockConn struct {
	net.Conn
	tb   testing.TB
	gone func() // tells the mock; nil: there is none
}

func (c *mockConn) Close() error {
	if c.gone != nil {
		c.gone()
	}
	return c.Conn.Close()
}

// got is a command that came.
type got struct {
	flags, command uint16
	cookie, offset uint64
	length         uint32
	payload        []byte
}

func (c *mockConn) header() (g got, err error) {
	var b [requestSize]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return g, err
	}
	if binary.BigEndian.Uint32(b[:]) != requestMagic {
		return g, errors.New("a request without its magic number")
	}
	return got{
		flags: binary.BigEndian.Uint16(b[4:]), command: binary.BigEndian.Uint16(b[6:]), cookie: binary.BigEndian.Uint64(b[8:]),
		offset: binary.BigEndian.Uint64(b[16:]), length: binary.BigEndian.Uint32(b[24:]),
	}, nil
}

// next is the next command, with its payload.
func (c *mockConn) next() got {
	c.tb.Helper()
	c.SetReadDeadline(time.Now().Add(patient))
	g, err := c.header()
	if err == nil && g.command == cmdWrite {
		g.payload = make([]byte, g.length)
		_, err = io.ReadFull(c, g.payload)
	}
	if err != nil {
		c.tb.Fatalf("mock: %v", err)
	}
	return g
}

// sign answers a read, by which a sign of life is asked for, with zeroes.
func (c *mockConn) sign(g got) { c.send(dataChunk(g, chunkDone, g.offset, make([]byte, g.length))) }

func (c *mockConn) send(parts ...[]byte) {
	var b []byte
	for _, p := range parts {
		b = append(b, p...)
	}
	c.Write(b)
}

func simpleReply(g got, errno uint32, data ...byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, simpleMagic)
	b = binary.BigEndian.AppendUint32(b, errno)
	return append(binary.BigEndian.AppendUint64(b, g.cookie), data...)
}

func chunkOf(g got, flags, kind uint16, length int, data ...[]byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, structuredMagic)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, kind)
	b = binary.BigEndian.AppendUint64(b, g.cookie)
	b = binary.BigEndian.AppendUint32(b, uint32(length))
	for _, d := range data {
		b = append(b, d...)
	}
	return b
}

func be64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }
func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
func be16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }

func dataChunk(g got, flags uint16, offset uint64, data []byte) []byte {
	return chunkOf(g, flags, chunkOffsetData, 8+len(data), be64(offset), data)
}

func holeChunk(g got, flags uint16, offset uint64, n int) []byte {
	return chunkOf(g, flags, chunkOffsetHole, 12, be64(offset), be32(uint32(n)))
}

func errorChunk(g got, flags uint16, errno uint32, message string) []byte {
	return chunkOf(g, flags, chunkErrorBit+1, 6+len(message), be32(errno), be16(uint16(len(message))), []byte(message))
}

func none(g got) []byte { return chunkOf(g, chunkDone, chunkNone, 0) }

// TestMalformed has a server say one wrong thing in answer to a read of 8 KiB in the middle of memory. It is disconnected with a sentence that says why, the read
// comes back as lost, and nothing outside of it was touched.
func TestMalformed(t *testing.T) {
	t.Parallel()
	const at, length = 1 << 20, 8192
	data := make([]byte, length)
	for _, c := range []struct {
		name  string
		plain bool
		write bool
		say   func(g got) []byte
		want  string
	}{
		{name: "wrong magic", say: func(g got) []byte { return be64(0x1234567812345678) }, want: "begins with 0x12345678"},
		{name: "old magic", say: func(g got) []byte { return append(be32(0x96744668), make([]byte, 12)...) }, want: "begins with"},
		{name: "unknown handle", say: func(g got) []byte { g.cookie ^= 1 << 40; return none(g) }, want: "was not sent"},
		{name: "handle of a free slot", say: func(g got) []byte { g.cookie++; return none(g) }, want: "was not sent"},
		{name: "handle out of range", say: func(g got) []byte { g.cookie |= 0xffff; return none(g) }, want: "was not sent"},
		{name: "simple reply to a read", say: func(g got) []byte { return simpleReply(g, 0, data...) }, want: "simple reply"},
		{name: "structured, not agreed", plain: true, say: func(g got) []byte { return dataChunk(g, chunkDone, at, data) }, want: "begins with"},
		{name: "before the read", say: func(g got) []byte { return dataChunk(g, chunkDone, at-512, data) }, want: "is answered with"},
		{name: "beyond the read", say: func(g got) []byte { return dataChunk(g, chunkDone, at+512, data) }, want: "is answered with"},
		{name: "longer than the read", say: func(g got) []byte { return dataChunk(g, chunkDone, at, append(data, 1)) }, want: "is answered with"},
		{name: "length that wraps", say: func(g got) []byte { return chunkOf(g, 0, chunkOffsetData, 1<<32-1, be64(at), data) }, want: "is answered with"},
		{name: "offset that wraps", say: func(g got) []byte { return dataChunk(g, 0, 1<<64-512, data) }, want: "is answered with"},
		{name: "no data", say: func(g got) []byte { return chunkOf(g, 0, chunkOffsetData, 8, be64(at)) }, want: "a chunk of data has 8"},
		{name: "data shorter than its offset", say: func(g got) []byte { return chunkOf(g, 0, chunkOffsetData, 3, be64(at)) }, want: "a chunk of data has 3"},
		{name: "twice the same", say: func(g got) []byte {
			return append(dataChunk(g, 0, at, data[:512]), dataChunk(g, 0, at, data[:512])...)
		}, want: "twice"},
		{name: "overlap", say: func(g got) []byte {
			return append(dataChunk(g, 0, at+512, data[:1024]), dataChunk(g, 0, at, data[:513])...)
		}, want: "twice"},
		{name: "hole over data", say: func(g got) []byte { return append(dataChunk(g, 0, at, data[:512]), holeChunk(g, 0, at, 8192)...) }, want: "twice"},
		{name: "empty hole", say: func(g got) []byte { return holeChunk(g, 0, at, 0) }, want: "a hole has no bytes"},
		{name: "long hole", say: func(g got) []byte { return holeChunk(g, 0, at, length+1) }, want: "is answered with"},
		{name: "hole of a wrong length", say: func(g got) []byte { return chunkOf(g, 0, chunkOffsetHole, 16, be64(at), be64(1)) }, want: "that is a hole has 16"},
		{name: "done too early", say: func(g got) []byte { return append(dataChunk(g, 0, at, data[:512]), none(g)...) }, want: "left out"},
		{name: "done at once", say: none, want: "left out"},
		{name: "nothing with a payload", say: func(g got) []byte { return chunkOf(g, chunkDone, chunkNone, 4, be32(0)) }, want: "chunk of nothing"},
		{name: "nothing, not done", say: func(g got) []byte { return chunkOf(g, 0, chunkNone, 0) }, want: "chunk of nothing"},
		{name: "block status", say: func(g got) []byte { return chunkOf(g, chunkDone, 5, 12, be32(1), be64(1)) }, want: "chunk of type 5"},
		{name: "data for a write", write: true, say: func(g got) []byte { return dataChunk(g, chunkDone, at, data) }, want: "answers a write with a chunk"},
		{name: "error of number 0", say: func(g got) []byte { return errorChunk(g, chunkDone, 0, "") }, want: "number 0"},
		{name: "error without its fields", say: func(g got) []byte { return chunkOf(g, chunkDone, chunkErrorBit+1, 4, be32(5)) }, want: "error of 4 bytes"},
		{name: "endless error", say: func(g got) []byte { return chunkOf(g, 0, chunkErrorBit+1, 1<<30, be32(5), be16(0)) }, want: "error of 1073741824"},
		{name: "message longer than its chunk", say: func(g got) []byte { return chunkOf(g, 0, chunkErrorBit+1, 8, be32(5), be16(100), be16(0)) }, want: "message of 100"},
		{name: "never-ending errors", say: func(g got) []byte {
			return []byte(strings.Repeat(string(errorChunk(g, 0, 5, "again")), 1000))
		}, want: "more than 64 errors"},
		{name: "scattered", say: func(g got) (b []byte) {
			for i := range 40 {
				b = append(b, dataChunk(g, 0, at+uint64(i*2), data[:1])...)
			}
			return b
		}, want: "scattered"},
		{name: "twice done", say: func(g got) []byte { b := dataChunk(g, chunkDone, at, data); return append(b, none(g)...) }, want: "was not sent"},
		{name: "shutdown", say: func(g got) []byte { return errorChunk(g, chunkDone, errnoShutdown, "bye") }, want: "shutting down"},
		{name: "the end", say: func(g got) []byte { return nil }, want: "closed the connection"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := newMock(t)
			m.plain = c.plain
			m.serve()
			u := newBench(t).use(open(t, m.options()))
			for i := range u.memory {
				u.memory[i] = blktest.Canary
			}
			client := m.client()
			op := blk.OpRead
			if c.write {
				op = blk.OpWrite
			}
			a := ask(op, at, u.memory[4096:][:4096], u.memory[16384:][:4096])
			other := ask(blk.OpFlush, 0)
			u.submit(a, other)
			g := client.next()
			client.next()
			client.send(c.say(g))
			if c.want == errHungUp.Error() || c.name == "the end" {
				client.Close()
			}
			u.await("the end of the connection", func() bool { return len(u.why) > 0 })
			if why := u.downs()[0].Error(); !strings.Contains(why, c.want) || strings.Contains(why, "\n") {
				t.Errorf("it says %q, which has no %q", why, c.want)
			}
			t.Log(u.downs()[0])
			if c.name == "twice done" {
				u.ends(a, blk.OK)
			} else {
				u.ends(a, blk.Lost)
			}
			u.ends(other, blk.Lost)
			u.await("another connection", func() bool { return len(u.ups) > 1 })
			if u.upped()[1] {
				t.Error("it claims to know the server")
			}
			for i, b := range u.memory {
				if b != blktest.Canary && (i < 4096 || i >= 8192 && i < 16384 || i >= 20480) {
					t.Fatalf("byte %d outside of the read was written to", i)
				}
			}
			m.client()
		})
	}
}

// TestChunks answers reads in all ways that are allowed.
func TestChunks(t *testing.T) {
	const at, length = 1 << 20, 64 << 10
	data := make([]byte, length)
	for i := range data {
		data[i] = byte(i ^ i>>8)
	}
	zeroed := append([]byte(nil), data...)
	clear(zeroed[4096:12288])
	for _, c := range []struct {
		name string
		say  func(g got) []byte
		want []byte
		end  blk.Outcome
	}{
		{"one", func(g got) []byte { return dataChunk(g, chunkDone, at, data) }, data, blk.OK},
		{"one, and done", func(g got) []byte { return append(dataChunk(g, 0, at, data), none(g)...) }, data, blk.OK},
		{"backwards", func(g got) (b []byte) {
			for i := length - 512; i >= 0; i -= 512 {
				b = append(b, dataChunk(g, 0, at+uint64(i), data[i:][:512])...)
			}
			return append(b, none(g)...)
		}, data, blk.OK},
		{"a hole", func(g got) []byte {
			b := append(holeChunk(g, 0, at+4096, 8192), dataChunk(g, 0, at, data[:4096])...)
			return append(b, dataChunk(g, chunkDone|0x8000, at+12288, data[12288:])...)
		}, zeroed, blk.OK},
		{"nothing but a hole", func(g got) []byte { return holeChunk(g, chunkDone, at, length) }, make([]byte, length), blk.OK},
		{"an error", func(g got) []byte { return errorChunk(g, chunkDone, 5, "a bad sector") }, nil, blk.Failed},
		{"an error of a kind to come", func(g got) []byte {
			return chunkOf(g, chunkDone, chunkErrorBit+77, 20, be32(5), be16(1), []byte("abcdefghijklmn"))
		}, nil, blk.Failed},
		{"an error after the data", func(g got) []byte {
			b := append(dataChunk(g, 0, at, data), chunkOf(g, 0, chunkErrorOffset, 14, be32(5), be16(0), be64(at+512))...)
			return append(b, none(g)...)
		}, nil, blk.Failed},
		{"not supported", func(g got) []byte { return errorChunk(g, chunkDone, errnoNotSupported, "") }, nil, blk.Unsupported},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMock(t).serve()
			u := newBench(t).use(open(t, m.options()))
			client := m.client()
			for step := range []int{0, 1, 2} {
				b := u.memory[:length]
				clear(u.memory)
				b[5] = 1
				a := ask(blk.OpRead, at, b[:100], b[100:5000], b[5000:])
				u.submit(a)
				answer := c.say(client.next())
				switch step {
				case 0:
					client.send(answer)
				case 1: // byte by byte around the headers
					for len(answer) > 0 {
						n := min(1+len(answer)%37, len(answer))
						if len(answer) > 4096 {
							n = 3001
						}
						client.send(answer[:n])
						answer = answer[n:]
					}
				case 2: // with the answer to another
					f := ask(blk.OpFlush, 0)
					u.submit(f)
					client.send(simpleReply(client.next(), 0), answer)
					u.ends(f, blk.OK)
				}
				u.ends(a, c.end)
				if c.end == blk.OK {
					same(t, c.name, b, c.want)
				}
			}
			if len(u.downs()) > 0 {
				t.Errorf("the connection broke: %v", u.downs())
			}
		})
	}
}

func (c *mockConn) full(b []byte) (int, error) { return io.ReadFull(c, b) }

// outstanding is how much of what was sent the other end has not read.
func outstanding(tb testing.TB, c net.Conn) (n int) { return queue(tb, c, unix.SIOCOUTQ) }

// unread is how much of what the other end has sent was not read.
func unread(tb testing.TB, c net.Conn) (n int) { return queue(tb, c, unix.SIOCINQ) }

func queue(tb testing.TB, c net.Conn, which uint) (n int) {
	tb.Helper()
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		tb.Fatal(err)
	}
	if e := raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), which) }); e != nil || err != nil {
		tb.Fatal(e, err)
	}
	return n
}
