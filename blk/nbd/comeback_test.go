package nbd

import (
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk"
	"golang.org/x/sys/unix"
)

// TestComesBackWithLess: a server in the place of another that has less goes on, as far as a guest can. Without what a guest cannot do without, it is not taken.
func TestComesBackWithLess(t *testing.T) {
	m := newMock(t)
	w := make(watcher, 8)
	o := m.options()
	o.Watcher = w
	m.serve()
	s := open(t, o)
	u := newBench(t).use(s)
	m.change(func() { m.size, m.flags, m.plain = imageSize/2, flagHasFlags|flagFlush, true })
	m.client().Close()
	client := m.client()
	u.await("the lane", func() bool { return len(u.ups) == 2 })
	if i := <-w; i.Size != imageSize/2 || i.Discard || i.WriteZeroes || i.FUA || !i.Flush || i.BlockSize != 512 && i.BlockSize != 1 {
		t.Errorf("changed to %+v", i)
	}
	discard, zeroes := ask(blk.OpDiscard, 0), ask(blk.OpWriteZeroes, 0)
	discard.Length, zeroes.Length = 4096, 4096
	stable := ask(blk.OpWrite, 0, u.memory[:512])
	stable.FUA = true
	u.run(blk.Unsupported, discard, zeroes, stable)
	flush := ask(blk.OpFlush, 0)
	u.submit(flush)
	client.send(simpleReply(client.next(), 0))
	u.ends(flush, blk.OK)

	m.change(func() { m.flags = flagHasFlags })
	client.Close()
	for end := time.Now().Add(patient); !errors.Is(s.State().Why, ErrChanged); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the store says %+v", s.State())
		}
	}
	if len(u.upped()) != 2 {
		t.Error("it is up without flush")
	}
}

// TestNeverThere: a lane whose first connection cannot be made says so, once; it is up when that is made after all.
func TestNeverThere(t *testing.T) {
	m := newMock(t)
	m.flags |= flagMultiConn
	m.serve()
	b := newBench(t)
	s := open(t, m.options())
	b.use(s)
	path := m.listener.Addr().String()
	m.listener.Close() // and the socket's name with it
	u := &user{b: b, store: s}
	u.cond = sync.NewCond(&u.mu)
	lane, err := s.Open(blk.Host{Worker: b.worker, Ring: b.ring}, u)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.worker.Do(lane.Close) })
	u.await("word of the connection that is not there", func() bool { return len(u.why) > 0 })
	if m.listener, err = net.Listen("unix", path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.listener.Close() })
	m.serve()
	u.await("the lane", func() bool { return len(u.ups) > 0 })
	if downs := u.downs(); len(downs) != 1 || len(s.(*Store).lanes) != 2 {
		t.Errorf("down %v", downs)
	}
}

// TestUnsent: when a connection ends, as it does with a process that is killed, what its server has not taken yet never gets there.
func TestUnsent(t *testing.T) {
	m := newMock(t)
	m.listener.Close()
	var err error
	if m.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.listener.Close() })
	m.serve()
	s := open(t, Options{URI: "nbd://" + m.listener.Addr().String()}).(*Store)
	client := m.client()
	sent, b := 0, make([]byte, 64<<10)
	for full := false; !full; {
		n, err := unix.SendmsgN(s.spare.fd, b, nil, nil, unix.MSG_DONTWAIT)
		if full = err == unix.EAGAIN; !full && err != nil {
			t.Fatal(err)
		}
		sent += max(n, 0)
	}
	s.Close()
	client.SetReadDeadline(time.Now().Add(patient))
	came, err := io.Copy(io.Discard, client)
	if t.Logf("%d bytes of %d came", came, sent); !errors.Is(err, unix.ECONNRESET) || came >= int64(sent) {
		t.Errorf("%d bytes of %d came, and then %v", came, sent, err)
	}
}

// TestBackoff: attempts come more and more slowly up to a limit, and begin anew after a connection that has answered something.
func TestBackoff(t *testing.T) {
	var b backoff
	for want := firstWait; want < 4*longest; want *= 2 {
		is := min(want, longest)
		if d := b.next(); b != backoff(is) || d < is/2 || d >= is+is/2 {
			t.Errorf("waits %v of %v, where %v was due", d, time.Duration(b), is)
		}
	}
	m := newMock(t).serve()
	u := newBench(t).use(open(t, m.options()))
	waited := func() (d time.Duration) {
		u.b.worker.Do(func() { d = time.Duration(u.lane.(*laneType).backoff) })
		return d
	}
	ups := 1
	broken := func() time.Duration {
		m.client().Close()
		ups++
		u.await("the lane", func() bool { return len(u.ups) == ups })
		return waited()
	}
	for _, want := range []time.Duration{firstWait, 2 * firstWait, 4 * firstWait} {
		if d := broken(); d != want {
			t.Errorf("after connections that answer nothing it waits %v, want %v", d, want)
		}
	}
	client := m.client()
	flush := ask(blk.OpFlush, 0)
	u.submit(flush)
	client.send(simpleReply(client.next(), 0))
	u.ends(flush, blk.OK)
	m.clients <- client
	if d := broken(); d != firstWait {
		t.Errorf("after a connection that has answered it waits %v", d)
	}
}

// A server stops for longer than Quiesce, with a write in its socket. When it goes on it has that and our next connection at once, so the time counts from then.
func TestComesBackFromStop(t *testing.T) {
	const quiesce = 300 * time.Millisecond
	m := newMock(t).serve()
	o := m.options()
	o.Timeout, o.Quiesce = 100*time.Millisecond, quiesce
	u := newBench(t).use(open(t, o))
	old := m.client()
	var goesOn time.Time
	m.change(func() { // nobody is greeted
		a := ask(blk.OpWrite, 0, u.memory[:4096])
		u.submit(a)
		u.ends(a, blk.Lost)
		time.Sleep(2 * quiesce)
		goesOn = time.Now()
	})
	m.client()
	u.await("the lane", func() bool { return len(u.ups) == 2 })
	if d := time.Since(goesOn); d < quiesce {
		t.Errorf("the lane is up %v after a server goes on that had stopped with a write", d)
	}
	if g := old.next(); g.command != cmdWrite {
		t.Errorf("%+v", g)
	}
}
