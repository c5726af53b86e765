package lab

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// attackControl does to the control socket what somebody in its group could: bodies without end, callers that say nothing or read nothing, noise, and
// thousands of connections. Others are answered meanwhile.
func attackControl(t *testing.T, a *arena) {
	dial := func() net.Conn {
		t.Helper()
		c, err := (&net.Dialer{}).DialContext(within(t, 30*time.Second), "unix", a.d.Socket())
		must(t, err)
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		return c
	}
	answers := func(what string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if _, err := a.d.API().Status(ctx); err != nil {
			t.Errorf("during %s: %v", what, err)
		}
	}
	var open []net.Conn
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()

	status := func(head string, body io.Reader) int {
		t.Helper()
		c := dial()
		defer c.Close()
		go func() {
			_, _ = io.WriteString(c, head)
			_, _ = io.Copy(c, body)
		}()
		answer, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return 0
		}
		return answer.StatusCode
	}
	put := func(n int) string {
		return fmt.Sprintf("PUT /v1/config HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", n)
	}
	const huge = 256 << 20
	for what, try := range map[string]struct {
		head string
		body io.Reader
		want []int // 0: the connection ends without an answer
	}{
		"a body of 256 MiB":           {put(huge), io.LimitReader(endless('x'), huge), []int{0, 413}},
		"a body of 2^62":              {put(1 << 62), io.LimitReader(endless('['), 64<<20), []int{0, 413}},
		"a body that is negative":     {put(-1), strings.NewReader(""), []int{0, 400}},
		"four million brackets":       {put(4 << 20), io.LimitReader(endless('['), 4<<20), []int{400, 413, 422}},
		"four million openings":       {put(4 << 20), io.LimitReader(cycle(`{"a":`), 4<<20), []int{400, 413, 422}},
		"a header without end":        {"GET / HTTP/1.1\r\nX: ", io.LimitReader(endless('x'), 8<<20), []int{0, 431}},
		"noise":                       {"\x00\x01\x02\x03", io.LimitReader(endless(0xff), 1<<16), []int{0, 400, 431}},
		"a path of escapes":           {"GET /v1/ports/" + strings.Repeat("%2e%2e%2f", 500) + " HTTP/1.1\r\nHost: x\r\n\r\n", strings.NewReader(""), []int{400, 404, 301, 307}},
		"chunks that are not numbers": {"PUT /v1/config HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", io.LimitReader(endless('z'), 1<<16), []int{0, 400}},
	} {
		got, right := status(try.head, try.body), false
		for _, want := range try.want {
			right = right || got == want
		}
		if !right {
			t.Errorf("%s: status %d, want one of %v", what, got, try.want)
		}
		answers(what)
	}

	// Questions without end, whose answers nobody reads.
	deaf := dial()
	open = append(open, deaf)
	_ = deaf.SetWriteDeadline(time.Now().Add(time.Second))
	for {
		if _, err := io.WriteString(deaf, strings.Repeat("GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n", 100)); err != nil {
			break
		}
	}
	answers("questions without end")

	// Thousands that say nothing, or a byte now and then.
	const callers = 2000
	for n := range callers {
		c, err := net.DialTimeout("unix", a.d.Socket(), time.Second)
		if err != nil {
			t.Logf("%d connections were taken: %v", n, err)
			break
		}
		open = append(open, c)
		if n%2 == 0 {
			_, _ = io.WriteString(c, "GET /v1/sta")
		}
	}
	answers(fmt.Sprintf("%d connections", callers))
	port, i := a.next(t)
	a.serves(t, port, i) // there are descriptors left
}

// endless is a reader of one byte again and again.
type endless byte

func (e endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(e)
	}
	return len(p), nil
}

// cycle is a reader of a text again and again.
func cycle(text string) io.Reader { return &cycler{text: text} }

type cycler struct {
	text string
	at   int
}

func (c *cycler) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = c.text[c.at%len(c.text)]
		c.at++
	}
	return len(p), nil
}
