package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/config"
	"github.com/shuntio/shunt/tools/control/controltest"
)

// endless is a capture that writes until it may not, and counts those of its kind that run.
type endless struct {
	running *atomic.Int32
	left    chan error
}

func (e *endless) Run(ctx context.Context, out io.Writer) error {
	e.running.Add(1)
	defer e.running.Add(-1)
	for ctx.Err() == nil {
		if _, err := out.Write(make([]byte, 10000)); err != nil {
			e.left <- err
			return err
		}
		time.Sleep(time.Millisecond)
	}
	_, err := io.WriteString(out, "the end")
	e.left <- err
	return err
}

func (e *endless) Counters() control.CaptureCounters {
	return control.CaptureCounters{Packets: 1, Missed: 2}
}

// captureServer serves endless captures with short timeouts.
func captureServer(t *testing.T) (c *Client, s *Server, running *atomic.Int32, left chan error) {
	running, left = &atomic.Int32{}, make(chan error, 100)
	engine := &controltest.Engine{Capturer: func(control.CaptureOptions) (control.Capture, error) { return &endless{running, left}, nil }}
	s = NewServer(control.New(engine, &config.Config{}, slog.New(slog.DiscardHandler)), slog.New(slog.DiscardHandler))
	s.http.ReadTimeout, s.http.WriteTimeout, s.stall = 200*time.Millisecond, 200*time.Millisecond, 300*time.Millisecond
	socket := filepath.Join(t.TempDir(), "s")
	l, err := Listen(socket, "")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	c = NewClient(socket)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := errors.Join(s.Shutdown(ctx), <-served); err != nil {
			t.Error(err)
		}
		c.Close()
		if running.Load() != 0 {
			t.Error("captures run on without a server")
		}
	})
	return c, s, running, left
}

func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// A capture outlives the timeouts of other requests, and ends in good order when it is told to.
func TestCaptureEnds(t *testing.T) {
	c, _, running, left := captureServer(t)
	stream, err := c.Capture(t.Context(), control.CaptureOptions{Filter: "tcp"})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	for begin := time.Now(); time.Since(begin) < time.Second; { // as long as five timeouts
		if _, err := io.CopyN(io.Discard, stream, 10000); err != nil {
			t.Fatal(err)
		}
	}
	list, err := c.Captures(t.Context())
	if err != nil || len(list) != 1 || list[0].ID != stream.ID || list[0].Filter != "tcp" || list[0].Direction != control.CaptureBoth || list[0].Missed != 2 {
		t.Errorf("%+v %v", list, err)
	}
	if err := c.EndCapture(t.Context(), stream.ID); err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(stream)
	if err != nil || !strings.HasSuffix(string(text), "the end") {
		t.Errorf("%d bytes, then %v", len(text), err)
	}
	if n, whole := stream.Counters(); !whole || n.Packets != 1 || n.Missed != 2 {
		t.Errorf("counters %+v %v", n, whole)
	}
	if err := <-left; err != nil || running.Load() != 0 {
		t.Errorf("it ended with %v", err)
	}
	if err := c.EndCapture(t.Context(), stream.ID); err == nil || err.Error() != fmt.Sprintf("there is no capture %d", stream.ID) {
		t.Errorf("ended twice: %v", err)
	}
}

// Callers that stall or die are left, and their captures end; there are only so many at a time.
func TestCaptureCallers(t *testing.T) {
	c, _, running, left := captureServer(t)
	dying, cancel := context.WithCancel(t.Context())
	var streams []*CaptureStream
	for range 8 {
		stream, err := c.Capture(dying, control.CaptureOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer stream.Close()
		streams = append(streams, stream)
	}
	var refused *Error
	if _, err := c.Capture(t.Context(), control.CaptureOptions{}); !errors.As(err, &refused) || refused.Code != CodeConflict {
		t.Errorf("one too many: %v", err)
	}
	if err := <-left; err == nil { // nobody reads
		t.Error("a caller that stalled is not left")
	}
	cancel() // as if killed
	for range 7 {
		<-left
	}
	await(t, "the end of all captures", func() bool { return running.Load() == 0 })
	list, err := c.Captures(t.Context())
	if err != nil || len(list) != 0 {
		t.Errorf("%+v %v", list, err)
	}
	_, err = io.ReadAll(streams[0])
	if _, whole := streams[0].Counters(); err == nil || whole {
		t.Error("a capture that broke off looks like a whole one")
	}
}

// The daemon stops: captures end in good order first.
func TestCaptureAtShutdown(t *testing.T) {
	c, s, _, left := captureServer(t)
	stream, err := c.Capture(t.Context(), control.CaptureOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	text := make(chan string, 1)
	go func() {
		all, _ := io.ReadAll(stream)
		text <- string(all)
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	if err := <-left; err != nil {
		t.Errorf("the capture ended with %v", err)
	}
	if !strings.HasSuffix(<-text, "the end") {
		t.Error("its stream broke off")
	}
}

func TestCaptureRefused(t *testing.T) {
	c, _, _, _ := captureServer(t)
	for _, test := range []struct{ body, want string }{
		{`{"filtre": "tcp"}`, `unknown field \"filtre\"`},
		{`{} {}`, "something comes after them"},
		{`[]`, "the body is no capture's options"},
		{`{"count": -1}`, "the body is no capture's options"},
		{`{"snaplen": -1}`, "below zero"},
		{`{"direction": "sideways"}`, "is not in, out, both or none"},
	} {
		r, err := c.send(t.Context(), http.MethodPost, "/v1/captures", []byte(test.body))
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r.Body)
		if r.Body.Close(); err != nil || r.StatusCode != http.StatusBadRequest || !strings.Contains(string(text), test.want) {
			t.Errorf("%s: %s %s %v", test.body, r.Status, text, err)
		}
	}
}
