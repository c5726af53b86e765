package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/config"
	"github.com/shuntio/shunt/tools/control/controltest"
)

// Of the process that has most connections the oldest goes that is not being answered.
func TestCrowdChooses(t *testing.T) {
	c := newCrowd(nil, 4)
	enter := func(peer int32) (m, victim *member) {
		conn, _ := net.Pipe()
		return c.enter(conn, peer)
	}
	operator, _ := enter(1)
	first, _ := enter(2)
	second, _ := enter(2)
	third, _ := enter(2)
	watch(first, http.StateActive)
	if _, victim := enter(2); victim != second {
		t.Errorf("member %d of process %d goes", victim.number, victim.peer)
	}
	watch(third, http.StateActive)
	watch(first, http.StateIdle)
	if _, victim := enter(3); victim != first {
		t.Errorf("member %d of process %d goes", victim.number, victim.peer)
	}
	if len(c.here) != 4 {
		t.Errorf("%d are here", len(c.here))
	}
	for range 2 {
		if err := operator.Close(); err != nil {
			t.Error(err)
		}
	}
	if len(c.here) != 3 {
		t.Errorf("%d are here after one left", len(c.here))
	}
	if _, victim := enter(4); victim != nil {
		t.Errorf("member %d goes though there is room", victim.number)
	}
}

// Hundreds of callers who say nothing, or begin and do not go on, are kept to a bound, and an operator is answered among them.
func TestCrowdIsBounded(t *testing.T) {
	running, err := config.Parse("test.yaml", []byte("networks: [{name: blue}]"))
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "s")
	l, err := Listen(socket, "")
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(control.New(&controltest.Engine{}, running, slog.New(slog.DiscardHandler)), slog.New(slog.DiscardHandler))
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = s.Shutdown(ctx) // those that stall are cut off
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	operator := NewClient(socket)
	t.Cleanup(operator.Close)
	answered := func(when string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if _, err := operator.Status(ctx); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	const callers = 4 * maxCallers
	open := make([]net.Conn, 0, callers)
	for i := range callers {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		open = append(open, conn)
		_, _ = io.WriteString(conn, []string{"", "GET /v1/sta", "PUT /v1/config HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{", "GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n"}[i%4])
		if i%100 == 0 {
			answered(fmt.Sprintf("after %d callers", i))
		}
	}
	answered("in the end")
	left := callers
	for deadline := time.Now().Add(10 * time.Second); left > maxCallers && time.Now().Before(deadline); { // some may wait to be accepted
		left = 0
		for _, conn := range open {
			_ = conn.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
			if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
				left++
			}
		}
	}
	if left > maxCallers || left < maxCallers/2 {
		t.Errorf("%d connections are open of %d, want no more than %d, and not many fewer", left, callers, maxCallers)
	}
}

// A few large bodies are read at a time, however many callers have one; small ones do not wait for them.
func TestLargeBodiesTakeTurns(t *testing.T) {
	s := NewServer(nil, slog.New(slog.DiscardHandler))
	read := func(size int) (int, error) {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "/", strings.NewReader(strings.Repeat("x", size)))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		body, err := s.read(r.WithContext(ctx))
		return len(body), err
	}
	for range largeBodies {
		s.large <- struct{}{}
	}
	if n, err := read(smallBody); n != smallBody || err != nil {
		t.Errorf("a small body: %d bytes, %v", n, err)
	}
	if n, err := read(smallBody + 1); err == nil {
		t.Errorf("a large body of %d bytes beside %d others", n, largeBodies)
	}
	<-s.large
	for range 3 {
		if n, err := read(config.MaxDocument); n != config.MaxDocument || err != nil {
			t.Errorf("a large body in its turn: %d bytes, %v", n, err)
		}
	}
	if _, err := read(config.MaxDocument + 1); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("a body that is too large: %v", err)
	}
}
