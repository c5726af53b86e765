package xsk

import (
	"fmt"
	"testing"
	"time"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
)

// TestSharedUMEM moves frames through two queues and several devices that share one registration of one UMEM.
func TestSharedUMEM(t *testing.T) {
	a, b := newPair(t, 2, 1500)
	c, d := newPair(t, 1, 1500)
	u, pool := newUMEM(t, 10*RingSize)
	var ports []*Port
	for _, e := range []*end{a, b, c, d} {
		e.redirect(t, 0)
	}
	for _, at := range []struct {
		e     *end
		queue int
	}{{a, 0}, {a, 1}, {b, 0}, {b, 1}, {c, 0}, {d, 0}} {
		o := SocketOptions{Queue: at.queue, Mode: ModeCopy, Fill: 512, Rx: 512, Tx: 512, Completion: 512}
		ports = append(ports, newPort(t, at.e.open(t, u, o), pool))
	}
	if n := len(u.sockets); n != 6 {
		t.Fatalf("%d sockets open, want 6", n)
	}
	into := make([]*frame.Frame, dataplane.Quantum)
	for _, x := range [][2]int{{0, 2}, {1, 3}, {4, 5}, {5, 4}, {2, 0}} { // a tx queue leads to the rx queue of the same number
		from, to := ports[x[0]], ports[x[1]]
		const frames = 1000
		var sent uint64
		received := 0
		until(t, fmt.Sprintf("%d frames from %d to %d", frames, x[0], x[1]), func() bool {
			if sent < frames {
				transmit(from, pool, numbered(pool, 200, sent))
				sent++
			}
			from.Flush()
			from.Receive(nil, pool)
			n := to.Receive(into, pool)
			for _, f := range into[:n] {
				if _, ok := number(f); ok {
					received++
				}
			}
			pool.PutAll(into[:n])
			return received == frames
		})
	}
}

// TestSharedQueue binds two receivers to one queue, as two workers will: the second has no fill ring of its own.
func TestSharedQueue(t *testing.T) {
	a, b := newPair(t, 1, 1500)
	a.redirect(t, 0)
	b.redirect(t, 0)
	u, pool := newUMEM(t, 4*RingSize)
	from, owner := newPort(t, a.open(t, u, SocketOptions{}), pool), newPort(t, b.open(t, u, SocketOptions{}), pool)
	second := b.open(t, u, SocketOptions{Owner: owner.s, Tx: -1}) // replaces the owner in the XSKMAP
	if second.Fill.Len() != 0 || second.Completion.Len() != 0 || second.Tx.Len() != 0 {
		t.Error("the second socket has rings of the owner's")
	}
	transmit(from, pool, numbered(pool, 100, 42))
	from.Flush()
	until(t, "the frame at the second socket", func() bool {
		n := second.Rx.Peek(8)
		found := false
		for i := range n {
			d := second.Rx.At(i)
			f, off := u.take(d.Addr, owner.in.from, false)
			if f == nil || !f.SetHead(off, d.Len) {
				t.Fatalf("%+v is not one of the owner's chunks", d)
			}
			at, ok := number(f)
			found = found || ok && at == 42
			pool.Put(f)
			owner.filled--
		}
		second.Rx.Release(n)
		return found
	})
	if _, err := b.tryOpen(u, SocketOptions{Owner: from.s}); err == nil {
		t.Error("an owner on another device was accepted")
	}
}

// TestCloseGivesFramesBack closes sockets with frames in all four rings.
func TestCloseGivesFramesBack(t *testing.T) {
	a, b := newPair(t, 1, 1500)
	a.redirect(t, 0)
	b.redirect(t, 0)
	const frames = 3*RingSize + 100
	u, pool := newUMEM(t, frames)
	for round := range 3 { // each finds its queues free: Open waits until the kernel let go
		from, to := newPort(t, a.open(t, u, SocketOptions{Fill: 512, Rx: 512}), pool), newPort(t, b.open(t, u, SocketOptions{Fill: 512, Rx: 512}), pool)
		for i := range 100 {
			transmit(from, pool, numbered(pool, 100, uint64(i)))
		}
		from.Flush()
		until(t, "packets in the rx ring", to.Pending)
		for i := range 50 {
			transmit(from, pool, numbered(pool, 100, uint64(i))) // stay in the tx ring
		}
		back := 0
		for _, p := range []*Port{from, to} {
			if err := p.Close(); err != nil {
				t.Fatal(err)
			}
			back += p.Reclaim(pool)
		}
		if pool.Len() != frames || back < 1024+150 {
			t.Fatalf("round %d: %d frames came back, %d of %d are free", round, back, pool.Len(), frames)
		}
		if from.Receive(make([]*frame.Frame, 4), pool) != 0 || from.Pending() {
			t.Error("a closed port receives")
		}
	}
	if err := a.Namespace.Do(func() error {
		d, err := LookupDevice(a.Name)
		if err != nil {
			return err
		}
		return awaitFree(d, 0, 10*time.Second)
	}); err != nil {
		t.Error(err)
	}
}
