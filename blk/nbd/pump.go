package nbd

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// pump stands between a lane and a TLS connection:
//
//	lane ── socketpair ── pump: two goroutines ── tls.Conn ── TCP ── server
//
// so that a lane has a plain socket always, and cryptography is no work of a worker's. What a guest may still write to while it is sent has been copied by
// the socketpair before it is encrypted. When one side ends, both do, whatever the other goroutine waits for:
//
//	the server ends, or breaks TLS      at once: the lane reads to the end what has come
//	the lane gives the connection up    at once (abort). What is on its way then goes nowhere, or a server that has stopped could come to it at any time
//	the lane says goodbye               when that is sent, and TLS' own goodbye, within farewell (leave): a server need not read
type pump struct {
	lane   net.Conn // our end of the socketpair
	server *tls.Conn
	once   sync.Once
}

const (
	// pumpBuffer is how much moves at once: some records.
	pumpBuffer = 128 << 10
	// farewell is how long a goodbye may take.
	farewell = time.Second
)

// newPump makes one, and returns the lane's end. On error the connection stays the caller's.
func newPump(c *tls.Conn) (*pump, int, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, -1, fmt.Errorf("socketpair of a TLS connection: %w", err)
	}
	file := os.NewFile(uintptr(pair[1]), "pump")
	ours, err := net.FileConn(file)
	file.Close()
	if err != nil {
		unix.Close(pair[0])
		return nil, -1, fmt.Errorf("socketpair of a TLS connection: %w", err)
	}
	p := &pump{lane: ours, server: c}
	go p.receive()
	go p.send()
	return p, pair[0], nil
}

func (p *pump) receive() {
	defer p.end()
	move(p.lane, p.server) //nolint:errcheck // the lane sees the end
}

func (p *pump) send() {
	defer p.end()
	if err := move(p.server, p.lane); err != nil {
		return
	}
	p.leave()
	if t, ok := p.server.NetConn().(*net.TCPConn); ok {
		t.SetLinger(-1) //nolint:errcheck // the goodbye arrives most of the time
	}
	p.server.Close() //nolint:errcheck // it is over either way
}

// move copies until one side ends. Only by Read and Write, or the runtime would splice where nothing can be spliced.
func move(to, from net.Conn) error {
	_, err := io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, make([]byte, pumpBuffer))
	return err
}

// end ends both sides. Not by TLS' own Close, which would wait for a server that does not read.
func (p *pump) end() {
	p.once.Do(func() {
		p.lane.Close()
		p.server.NetConn().Close()
	})
}

// abort ends the connection, and what it has still to send, on any goroutine: whoever waits for it ends both sides.
func (p *pump) abort() {
	if t, ok := p.server.NetConn().(*net.TCPConn); ok {
		t.SetLinger(0) //nolint:errcheck // it is so, but where a goodbye takes too long
	}
	p.server.NetConn().Close()
}

// leave gives what is on its way, a goodbye, some time.
func (p *pump) leave() { time.AfterFunc(farewell, p.abort) }
