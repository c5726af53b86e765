package vhostuser

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A trace is a conversation as a file of lines: direction (> from the front-end, < reply), number of descriptors, bytes in
// hexadecimal, and the request's name for readers. Those of real front-ends lie in testdata/traces; with
// RECORD_TRACES=1 the interoperability tests write them anew.

type traced struct {
	fromFrontend bool
	fds          int
	bytes        []byte
}

func readTrace(tb testing.TB, path string) (trace []traced) {
	tb.Helper()
	b, err := os.ReadFile(path)
	must(tb, err)
	lines := bufio.NewScanner(bytes.NewReader(b))
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "#") {
			continue
		}
		var dir, digits string
		var m traced
		if _, err := fmt.Sscan(lines.Text(), &dir, &m.fds, &digits); err != nil {
			tb.Fatalf("%s: %q: %v", path, lines.Text(), err)
		}
		m.fromFrontend = dir == ">"
		m.bytes, err = hex.DecodeString(digits)
		must(tb, err)
		trace = append(trace, m)
	}
	return trace
}

// recorder writes down what goes through a transport.
type recorder struct {
	transport
	mu      sync.Mutex
	current traced
	trace   []traced
}

func (r *recorder) tap(link transport) transport {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.transport = link
	return r
}

func (r *recorder) receive(p []byte, fds []int) (int, []int, error) {
	before := len(fds)
	n, fds, err := r.transport.receive(p, fds)
	r.mu.Lock()
	defer r.mu.Unlock()
	c := &r.current
	c.fromFrontend = true
	c.fds += len(fds) - before
	c.bytes = append(c.bytes, p[:max(n, 0)]...)
	if len(c.bytes) >= headerSize && len(c.bytes) == headerSize+payloadSize(c.bytes) {
		r.trace = append(r.trace, *c)
		*c = traced{}
	}
	return n, fds, err
}

func (r *recorder) send(b []byte, fds []int) error {
	r.mu.Lock()
	r.trace = append(r.trace, traced{bytes: append([]byte(nil), b...), fds: len(fds)})
	r.mu.Unlock()
	return r.transport.send(b, fds)
}

func (m traced) request() Request { return Request(m.bytes[0]) | Request(m.bytes[1])<<8 }

// save writes the trace where RECORD_TRACES asks for it.
func (r *recorder) save(tb testing.TB, name, comment string) {
	if os.Getenv("RECORD_TRACES") == "" {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var b strings.Builder
	fmt.Fprintf(&b, "# %s\n", comment)
	for _, m := range r.trace {
		dir := "<"
		if m.fromFrontend {
			dir = ">"
		}
		fmt.Fprintf(&b, "%s %d %x %v\n", dir, m.fds, m.bytes, m.request())
	}
	must(tb, os.MkdirAll("testdata/traces", 0o755))
	must(tb, os.WriteFile(filepath.Join("testdata/traces", name+".txt"), []byte(b.String()), 0o644))
}

// TestTraces replays what real front-ends said: nothing is refused, the replies are of the recorded kind, and rings run.
func TestTraces(t *testing.T) {
	files, err := filepath.Glob("testdata/traces/*.txt")
	must(t, err)
	if len(files) < 3 {
		t.Fatalf("only %d traces", len(files))
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			d := newFake(t)
			d.offer.Vrings, d.offer.QueueNum = 4, 2
			d.offer.Features = wantAll
			d.offer.ProtocolFeatures &^= ProtocolConfig
			m := newMemoryLink(t)
			trace := readTrace(t, file)
			for _, msg := range trace {
				if msg.fromFrontend {
					m.queue(msg.bytes, m.kindOf(msg.request()), msg.fds)
				}
			}
			s := newSession(m, d, newLogger(nil, "trace"))
			if err := s.run(); err != io.EOF {
				t.Fatal(err)
			}
			var replies []Request
			for _, msg := range trace {
				if !msg.fromFrontend {
					replies = append(replies, msg.request())
				}
			}
			if fmt.Sprint(m.replies) != fmt.Sprint(replies) {
				t.Errorf("replies %v, recorded %v", m.replies, replies)
			}
			if s.refused != 0 {
				t.Error(s.lastRefusal)
			}
			if !strings.Contains(fmt.Sprint(d.seen()), "start 1") {
				t.Errorf("ring 1 never ran: %v", d.seen())
			}
		})
	}
}

// memoryLink is a transport without a socket: messages wait in it with descriptors that are duplicates of a few, made
// when they are received.
type memoryLink struct {
	input   []byte // records: descriptors (low half of a byte: number, high half: kind), message
	rest    int    // bytes of the current message not yet received
	replies []Request
	pool    [5]int // by kind: eventfd, memory, a device node, memory too small for most, a connected socket
}

const (
	kindEvent = iota
	kindMemory
	kindNull
	kindSmall
	kindSocket
)

func newMemoryLink(tb testing.TB) *memoryLink {
	var m memoryLink
	m.pool[kindEvent] = eventfd(tb)
	for kind, size := range map[int]int64{kindMemory: 1 << 40, kindSmall: pageSize} {
		fd, err := unix.MemfdCreate("link", unix.MFD_CLOEXEC)
		must(tb, err)
		must(tb, unix.Ftruncate(fd, size))
		m.pool[kind] = fd
	}
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	must(tb, err)
	m.pool[kindNull] = null
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(tb, err)
	m.pool[kindSocket] = pair[0]
	tb.Cleanup(func() {
		for _, fd := range append(m.pool[kindMemory:], pair[1]) {
			unix.Close(fd)
		}
	})
	return &m
}

func (m *memoryLink) kindOf(r Request) int {
	switch r {
	case SetMemTable, AddMemReg, SetLogBase, SetInflightFD:
		return kindMemory
	case SetBackendReqFD:
		return kindSocket
	}
	return kindEvent
}

func (m *memoryLink) queue(b []byte, kind, fds int) {
	m.input = append(append(m.input, byte(kind<<4|fds)), b...)
}

func (m *memoryLink) receive(p []byte, fds []int) (int, []int, error) {
	if m.rest == 0 {
		if len(m.input) == 0 {
			return 0, fds, io.EOF
		}
		spec := m.input[0]
		m.input = m.input[1:]
		for range spec & 15 {
			fd, err := unix.FcntlInt(uintptr(m.pool[int(spec>>4&7)%len(m.pool)]), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				return 0, fds, err
			}
			fds = append(fds, fd)
		}
		m.rest = headerSize
		if len(m.input) >= headerSize {
			m.rest += min(payloadSize(m.input), maxPayload)
		}
	}
	n := copy(p, m.input[:min(len(m.input), m.rest)])
	m.input, m.rest = m.input[n:], m.rest-n
	return n, fds, nil
}

func (m *memoryLink) send(b []byte, _ []int) error {
	m.replies = append(m.replies, traced{bytes: b}.request())
	return nil
}

func (m *memoryLink) deadline(time.Time) {}
