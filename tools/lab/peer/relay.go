package peer

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
)

// Relay stands between clients and their server, on unix sockets or TCP, as a network does that can lose its ends:
//
//	client ─▶ requests ─▶ server      either way can be held: what comes then waits in the relay,
//	       ◀─ answers  ◀─             also when the client is gone, and goes on when it is let go
type Relay struct {
	listener net.Listener
	server   string
	all      sync.WaitGroup

	mu     sync.Mutex
	now    *Ways
	cut    []*Ways
	closed bool
}

// Ways are the two directions of the connections between two cuts, of all of them together.
type Ways struct {
	Requests, Answers *Way

	relay            *Relay
	clients, servers []net.Conn // under the relay's lock
	over             atomic.Int64
}

// Way is one direction of a relay.
type Way struct {
	mu      sync.Mutex
	changed *sync.Cond
	room    int64 // bytes that may pass; negative: any number
	waited  int64
}

func newWay() *Way {
	w := &Way{room: -1}
	w.changed = sync.NewCond(&w.mu)
	return w
}

// Hold lets n more bytes pass, and no more after them.
func (w *Way) Hold(n int64) {
	w.mu.Lock()
	w.room = n
	w.mu.Unlock()
}

// LetGo lets everything pass.
func (w *Way) LetGo() {
	w.mu.Lock()
	w.room = -1
	w.mu.Unlock()
	w.changed.Broadcast()
}

// Held is how many bytes wait, as far as the relay has taken them.
func (w *Way) Held() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.waited
}

// take waits until some of n bytes may pass, and tells how many.
func (w *Way) take(n int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waited += int64(n)
	for w.room == 0 {
		w.changed.Wait()
	}
	w.waited -= int64(n)
	if w.room > 0 {
		n = int(min(int64(n), w.room))
		w.room -= int64(n)
	}
	return n
}

// NewRelay listens at one address and connects to another; the network is "unix" or "tcp".
func NewRelay(network, listen, server string) (*Relay, error) {
	l, err := net.Listen(network, listen)
	if err != nil {
		return nil, fmt.Errorf("relay to %s: %w", server, err)
	}
	r := &Relay{listener: l, server: server}
	r.now = r.ways()
	r.all.Go(r.serve)
	return r, nil
}

// Addr is where it listens.
func (r *Relay) Addr() string { return r.listener.Addr().String() }

func (r *Relay) ways() *Ways { return &Ways{Requests: newWay(), Answers: newWay(), relay: r} }

// Now are the ways of the connections there are, and of those that are made until the next cut.
func (r *Relay) Now() *Ways {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.now
}

func (r *Relay) serve() {
	for {
		client, err := r.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial(r.listener.Addr().Network(), r.server)
		if err != nil {
			client.Close()
			continue
		}
		r.mu.Lock()
		w, closed := r.now, r.closed
		if !closed {
			w.clients, w.servers = append(w.clients, client), append(w.servers, server)
		}
		r.mu.Unlock()
		if closed {
			client.Close()
			server.Close()
			return
		}
		r.all.Go(func() {
			if err := carry(w.Requests, client, server); !errors.Is(err, net.ErrClosed) && r.Now() == w {
				server.Close() // it was the client that went, and not because others of it were cut
			}
		})
		r.all.Go(func() {
			if err := carry(w.Answers, server, client); !errors.Is(err, net.ErrClosed) {
				w.over.Add(1)
			}
			client.Close()
		})
	}
}

// carry brings bytes from one to the other until the first ends; what the second does not take is lost.
func carry(w *Way, from, to net.Conn) error {
	b := make([]byte, 64<<10)
	for {
		n, err := from.Read(b)
		for p := b[:n]; len(p) > 0; {
			k := w.take(len(p))
			_, _ = to.Write(p[:k])
			p = p[k:]
		}
		if err != nil {
			return err
		}
	}
}

// Cut has all clients see the end of their connections, and makes new ways for those who come again. The servers see nothing of it: they get what is held on the old ways
// when that is let go.
func (r *Relay) Cut() (old *Ways) {
	r.mu.Lock()
	defer r.mu.Unlock()
	old, r.now = r.now, r.ways()
	r.cut = append(r.cut, old)
	for _, c := range old.clients {
		c.Close()
	}
	return old
}

// Connections is how many were made.
func (w *Ways) Connections() int {
	w.relay.mu.Lock()
	defer w.relay.mu.Unlock()
	return len(w.clients)
}

// Over is how many connections their servers have ended.
func (w *Ways) Over() int { return int(w.over.Load()) }

// End has the servers of ways that were cut see the end, too.
func (w *Ways) End() {
	for _, c := range w.servers {
		c.Close()
	}
	w.Requests.LetGo()
	w.Answers.LetGo()
}

// Close ends the relay and all its connections.
func (r *Relay) Close() {
	r.Cut()
	r.mu.Lock()
	r.closed = true
	r.listener.Close()
	for _, w := range r.cut {
		w.End()
	}
	r.mu.Unlock()
	r.all.Wait()
}
