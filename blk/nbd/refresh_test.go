package nbd

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk"
)

// TestRefreshJudges: what a server says of an export when it is opened anew is judged as it was the first time, whatever it has said when it was only asked.
func TestRefreshJudges(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(m *mock)
		is     error
		want   string
	}{
		{"without flush", func(m *mock) { m.flags &^= flagFlush }, ErrChanged, "it lacks flush"},
		{"read-only", func(m *mock) { m.flags |= flagReadOnly }, ErrReadOnly, "read-only"},
		{"half a block", func(m *mock) { m.size += 100 }, ErrSize, "no multiple of the block size, 512"},
		{"another size", func(m *mock) { m.size += 512 }, ErrChanged, "it has become 33554432 bytes, and 33554944 a moment later"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMock(t)
			m.asked = func() { m.change(func() { c.change(m) }) }
			m.serve()
			s := open(t, m.options())
			u := newBench(t).use(s)
			client := m.client()
			m.change(func() { m.size = 2 * imageSize })
			i, err := s.Refresh(context.Background())
			if !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("it says %v, which has no %q", err, c.want)
			}
			if i.Size != imageSize || s.Info().Size != imageSize {
				t.Errorf("guests are told of %d bytes", s.Info().Size)
			}
			flush := ask(blk.OpFlush, 0)
			u.submit(flush)
			client.send(simpleReply(client.next(), 0)) // on the connection there was
			u.ends(flush, blk.OK)
		})
	}
}

// TestRefreshWithoutLanes: the connection that Open made does not serve the first lane when the export has grown meanwhile.
func TestRefreshWithoutLanes(t *testing.T) {
	m := newMock(t).serve()
	w := make(watcher, 8)
	o := m.options()
	o.Watcher = w
	s := open(t, o)
	m.client()
	m.change(func() { m.size = 2 * imageSize })
	if i, err := s.Refresh(context.Background()); err != nil || i.Size != 2*imageSize {
		t.Fatalf("refreshed: %d bytes, %v", i.Size, err)
	}
	u := newBench(t).use(s)
	if size := s.Info().Size; size != 2*imageSize || len(w) > 0 {
		t.Errorf("guests are told of %d bytes, %d times", size, len(w))
	}
	client := m.client()
	a := ask(blk.OpWrite, 2*imageSize-512, u.memory[:512])
	u.submit(a)
	client.send(simpleReply(client.next(), 0))
	u.ends(a, blk.OK)
}

// TestGrownMeanwhile: one lane comes back and finds a larger export. By the time guests hear of it the other lane has a connection that knows it, too.
func TestGrownMeanwhile(t *testing.T) {
	m := newMock(t)
	m.flags |= flagMultiConn
	m.serve()
	w := make(watcher, 8)
	o := m.options()
	o.Watcher = w
	s := open(t, o)
	one, two := newBench(t).use(s), newBench(t).use(s)
	first, second := m.client(), m.client()
	m.change(func() { m.size = 2 * imageSize })
	go func() { // the old connection of the other lane tells that the server is alive, and then says goodbye
		for {
			g, err := second.header()
			if err != nil || g.command == cmdDisc {
				second.Close()
				return
			}
			second.send(dataChunk(g, chunkDone, 0, make([]byte, 512)))
		}
	}()
	first.Close()
	if i := <-w; i.Size != 2*imageSize {
		t.Errorf("changed to %+v", i)
	}
	if size := two.lane.(*laneType).status.Load().size; size != 2*imageSize {
		t.Errorf("guests are told, and the other lane's connection is one to %d bytes", size)
	}
	one.await("the lane", func() bool { return len(one.ups) == 2 })
	if len(two.downs()) > 0 || len(two.upped()) != 1 {
		t.Errorf("the other lane was up %v, down %v", two.upped(), two.downs())
	}
}

// TestRenewedIsNoWitness: a lane that has gone over to a new connection after another one's broke does not know which server there was before.
func TestRenewedIsNoWitness(t *testing.T) {
	m := newMock(t)
	m.flags |= flagMultiConn
	m.serve()
	o := m.options()
	o.Quiesce = time.Second
	s := open(t, o).(*Store)
	one, two := newBench(t).use(s), newBench(t).use(s)
	first, second := m.client(), m.client()
	a := ask(blk.OpWrite, 0, one.memory[:512])
	one.submit(a)
	first.next()
	first.Close()
	one.ends(a, blk.Lost)
	m.client() // its next one, which rests now
	renewed := make(chan error)
	go func() { renewed <- s.renew(context.Background(), two.lane.(*laneType), imageSize) }()
	if g := second.next(); g.command != cmdDisc {
		t.Errorf("%+v", g)
	}
	if err := <-renewed; err != nil {
		t.Fatal(err)
	}
	third := m.client()
	go func() {
		if g, err := third.header(); err == nil {
			third.send(dataChunk(g, chunkDone, 0, make([]byte, 512)))
		}
	}()
	one.await("the lane", func() bool { return len(one.ups) == 2 })
	if one.upped()[1] {
		t.Error("a server that nobody knows is taken for the same")
	}
}
