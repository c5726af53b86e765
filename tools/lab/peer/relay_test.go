package peer

import (
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"
)

// A relay carries bytes, holds them, loses a client, and brings the server all the same what was on its way.
func TestRelay(t *testing.T) {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "server"))
	must(err)
	defer l.Close()
	r, err := NewRelay("unix", filepath.Join(dir, "relay"), filepath.Join(dir, "server"))
	must(err)
	defer r.Close()
	pair := func() (client, server net.Conn) {
		t.Helper()
		client, err := net.Dial("unix", r.Addr())
		must(err)
		server, err = l.Accept()
		must(err)
		must(client.SetDeadline(time.Now().Add(20 * time.Second)))
		must(server.SetDeadline(time.Now().Add(20 * time.Second)))
		return client, server
	}
	says := func(c net.Conn, words string) {
		t.Helper()
		_, err := c.Write([]byte(words))
		must(err)
	}
	hears := func(c net.Conn, words string) {
		t.Helper()
		b := make([]byte, len(words))
		if n, err := io.ReadFull(c, b); err != nil || string(b) != words {
			t.Fatalf("%q came instead of %q: %v", b[:n], words, err)
		}
	}
	ends := func(c net.Conn) {
		t.Helper()
		if n, err := c.Read(make([]byte, 1)); n > 0 || err == nil {
			t.Fatal("the connection has not ended")
		}
	}
	client, server := pair()
	says(client, "question")
	hears(server, "question")
	r.Now().Answers.Hold(3)
	says(server, "answer")
	hears(client, "ans")
	for r.Now().Answers.Held() != 3 {
		time.Sleep(time.Millisecond)
	}
	r.Now().Answers.LetGo()
	hears(client, "wer")
	r.Now().Requests.Hold(0)
	says(client, "late")
	for r.Now().Requests.Held() != 4 {
		time.Sleep(time.Millisecond)
	}
	old := r.Cut()
	ends(client)
	next, other := pair()
	says(next, "new")
	hears(other, "new")
	old.Requests.LetGo()
	hears(server, "late")
	old.End()
	ends(server)
	next.Close()
	ends(other)
}
