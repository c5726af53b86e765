package lab

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shuntio/shunt/tools/lab/netlab"
)

// session is a TCP session between the kernels of two namespaces, as somebody
// who is logged in over the same uplink would have: a line every few
// milliseconds, each answered. It must not notice what shuntd does beside it.
type session struct {
	conn    net.Conn
	stop    chan struct{}
	ended   chan error
	lines   atomic.Int64
	slowest atomic.Int64 // round trip, in nanoseconds
}

// tolerance is how long a line may take. TCP repeats a lost segment after
// 200 ms, and the machine is busy; a broken uplink takes for ever.
const tolerance = 5 * time.Second

// undisturbed keeps a session open until the test ends, and fails it if a line
// was not answered in time.
func undisturbed(t *testing.T, from, to *netlab.Namespace, address string) *session {
	t.Helper()
	var listener net.Listener
	err := to.Do(func() (err error) {
		listener, err = net.Listen("tcp", net.JoinHostPort(address, "2222"))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		conn, err := listener.Accept()
		if err == nil {
			_, _ = io.Copy(conn, conn)
			conn.Close()
		}
	}()
	s := &session{stop: make(chan struct{}), ended: make(chan error, 1)}
	err = from.Do(func() (err error) {
		s.conn, err = net.Dial("tcp", listener.Addr().String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	go func() { s.ended <- s.talk() }()
	t.Cleanup(func() {
		close(s.stop)
		err := <-s.ended
		s.conn.Close()
		if err != nil {
			t.Errorf("the kernel's own session over the uplink broke after %d lines: %v", s.lines.Load(), err)
		}
		t.Logf("the kernel's own session: %d lines, the slowest took %v", s.lines.Load(), time.Duration(s.slowest.Load()))
	})
	return s
}

func (s *session) talk() error {
	in := bufio.NewReader(s.conn)
	pause := time.NewTicker(5 * time.Millisecond)
	defer pause.Stop()
	for n := 0; ; n++ {
		select {
		case <-s.stop:
			if n == 0 {
				return fmt.Errorf("no line was sent")
			}
			return nil
		case <-pause.C:
		}
		begin := time.Now()
		if err := s.conn.SetDeadline(begin.Add(tolerance)); err != nil {
			return err
		}
		line := fmt.Sprintf("line %d\n", n)
		if _, err := io.WriteString(s.conn, line); err != nil {
			return err
		}
		if got, err := in.ReadString('\n'); err != nil || got != line {
			return fmt.Errorf("the answer to %q is %q: %w", line, got, err)
		}
		s.lines.Add(1)
		s.slowest.Store(max(s.slowest.Load(), int64(time.Since(begin))))
	}
}
