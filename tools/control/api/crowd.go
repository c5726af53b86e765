package api

import (
	"net"
	"net/http"
	"sync"

	"golang.org/x/sys/unix"
)

// maxCallers is how many connections the control socket has at a time: some hundred bytes of the kernel's and a goroutine each, and with most of them
// asleep an answer takes no longer.
const maxCallers = 128

// crowd bounds a server's connections. Whoever comes is let in; when there is no room, another one goes for him: of the process that has the most, one
// that is not being answered, the oldest of those. So a program that opens connections without end closes its own.
//
//	Accept ─▶ member ─▶ http.Server ─▶ Close: it leaves
//	   └─ full: a victim is closed
type crowd struct {
	net.Listener
	most int

	mu    sync.Mutex
	count uint64 // of all that ever came
	here  map[*member]struct{}
}

// member is a connection of the crowd. What follows the connection is guarded by crowd.mu, except peer and number, which never change.
type member struct {
	net.Conn
	crowd   *crowd
	peer    int32  // the process that connected; 0: not known
	number  uint64 // grows from one to the next
	serving bool   // a request of it is being read or answered
}

func newCrowd(l net.Listener, most int) *crowd {
	return &crowd{Listener: l, most: most, here: map[*member]struct{}{}}
}

// Accept implements net.Listener.
func (c *crowd) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err != nil {
		return nil, err
	}
	m, victim := c.enter(conn, peerOf(conn))
	if victim != nil {
		_ = victim.Close()
	}
	return m, nil
}

// enter lets a connection in, and says which one is to be closed for it.
func (c *crowd) enter(conn net.Conn, peer int32) (m, victim *member) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.here) >= c.most {
		victim = c.victim()
		delete(c.here, victim)
	}
	c.count++
	m = &member{Conn: conn, crowd: c, peer: peer, number: c.count}
	c.here[m] = struct{}{}
	return m, victim
}

// victim chooses who goes. With mu held.
func (c *crowd) victim() (victim *member) {
	of := map[int32]int{}
	for m := range c.here {
		of[m.peer]++
	}
	before := func(m, o *member) bool {
		switch {
		case of[m.peer] != of[o.peer]:
			return of[m.peer] > of[o.peer]
		case m.serving != o.serving:
			return o.serving
		}
		return m.number < o.number
	}
	for m := range c.here {
		if victim == nil || before(m, victim) {
			victim = m
		}
	}
	return victim
}

// Close implements net.Conn.
func (m *member) Close() error {
	m.crowd.mu.Lock()
	delete(m.crowd.here, m)
	m.crowd.mu.Unlock()
	return m.Conn.Close()
}

// watch is the server's ConnState.
func watch(conn net.Conn, state http.ConnState) {
	if m, is := conn.(*member); is {
		m.crowd.mu.Lock()
		m.serving = state == http.StateActive
		m.crowd.mu.Unlock()
	}
}

// peerOf is the process at the other end of a unix socket.
func peerOf(conn net.Conn) int32 {
	unixConn, is := conn.(*net.UnixConn)
	if !is {
		return 0
	}
	raw, err := unixConn.SyscallConn()
	if err != nil {
		return 0
	}
	peer := int32(0)
	_ = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			peer = cred.Pid
		}
	})
	return peer
}
