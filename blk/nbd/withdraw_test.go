package nbd

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/blk/blktest"
)

// promptly is how long giving a request back may take, as blk.Lane says.
const promptly = 50 * time.Millisecond

// withdraw takes requests back, and holds that they come in time. It measures by the worker's clock from the withdrawal to the last Done.
func (u *user) withdraw(requests ...*asked) {
	u.b.tb.Helper()
	var began, ended time.Time
	u.b.worker.Do(func() {
		began = time.Now()
		for _, a := range requests {
			u.lane.Withdraw(&a.Request)
		}
	})
	for _, a := range requests {
		if u.ends(a, blk.Withdrawn); a.at.After(ended) {
			ended = a.at
		}
	}
	if took := ended.Sub(began); took > 4*promptly { // the machine may be busy with other things
		u.b.tb.Errorf("%d requests came back after %v", len(requests), took)
	}
}

// TestWithdrawRead withdraws a read at every stage of its answer. What comes later comes to no memory of it, and what follows is in step.
func TestWithdrawRead(t *testing.T) {
	const length = 256 << 10
	data := make([]byte, length)
	for i := range data {
		data[i] = 1
	}
	for _, sent := range []int{0, 3, 19, 20, 27, 28, 29, 5000, 65536, 200000, length + 27} {
		t.Run(fmt.Sprint(sent), func(t *testing.T) {
			m := newMock(t).serve()
			u := newBench(t).use(open(t, m.options()))
			client := m.client()
			a := ask(blk.OpRead, 4096, u.memory[:100000], u.memory[1<<20:][:length-100000])
			u.submit(a)
			g := client.next()
			answer := dataChunk(g, chunkDone, 4096, data)
			client.send(answer[:sent])
			u.settle(client)
			u.withdraw(a)
			for i := range u.memory {
				u.memory[i] = blktest.Canary
			}
			client.send(answer[sent:])
			next := ask(blk.OpRead, 0, u.memory[4<<20:][:4096])
			u.submit(next)
			client.send(dataChunk(client.next(), chunkDone, 0, data[:4096]))
			u.ends(next, blk.OK)
			same(t, "what follows", u.memory[4<<20:][:4096], data[:4096])
			for i, b := range u.memory {
				if b != blktest.Canary && (i < 4<<20 || i >= 4<<20+4096) {
					t.Fatalf("byte %d was written to after the read was given back", i)
				}
			}
			if len(u.downs()) > 0 {
				t.Errorf("the connection broke: %v", u.downs())
			}
		})
	}
}

// settle waits until the lane has taken all that was sent to it, which the socket knows.
func (u *user) settle(c *mockConn) {
	u.b.tb.Helper()
	for end := time.Now().Add(patient); outstanding(u.b.tb, c.Conn) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			u.b.tb.Fatal("the lane does not read")
		}
	}
	u.b.worker.Do(func() {})
	u.b.worker.Do(func() {})
}

// TestWithdrawWrite withdraws a write while the server does not read. It gets all of the bytes that it had before, and what follows is in step.
func TestWithdrawWrite(t *testing.T) {
	for _, length := range []int{4096, 512 << 10, 4 << 20} {
		t.Run(fmt.Sprint(length), func(t *testing.T) {
			m := newMock(t).serve()
			u := newBench(t).use(open(t, m.options()))
			client := m.client()
			fill(rand.New(rand.NewPCG(3, 4)), u.memory)
			was := append([]byte(nil), u.memory...)
			clog := ask(blk.OpWrite, 0, u.memory[:128<<10]) // so that nothing of the others is sent whole
			a := ask(blk.OpWrite, 1<<20, u.memory[128<<10:][:length])
			after := ask(blk.OpWrite, 8<<20, u.memory[7<<20:][:8192])
			u.submit(clog, a, after)
			time.Sleep(5 * time.Millisecond) // as much as the socket takes
			u.withdraw(a)
			for i := range length {
				u.memory[128<<10+i] = blktest.Canary
			}
			// What the server gets of it is what there was, or it gets the end of the connection.
			ends := map[uint64]bool{}
			for {
				client.SetReadDeadline(time.Now().Add(patient))
				g, err := client.header()
				if err != nil {
					break
				}
				payload := make([]byte, g.length)
				if _, err := client.full(payload); err != nil {
					break
				}
				from := map[uint64]int{0: 0, 1 << 20: 128 << 10, 8 << 20: 7 << 20}[g.offset]
				same(t, "what the server got", payload, was[from:][:g.length])
				ends[g.offset] = true
				client.send(none(g))
				if g.offset == 8<<20 {
					break
				}
			}
			if ends[8<<20] {
				u.ends(clog, blk.OK)
				u.ends(after, blk.OK)
				if len(u.downs()) > 0 {
					t.Errorf("the connection broke: %v", u.downs())
				}
				return
			}
			if length < 1<<20 {
				t.Errorf("the connection broke: %v", u.downs())
			}
			u.await("the end of the connection", func() bool { return len(u.why) > 0 })
			u.ends(after, blk.Lost)
		})
	}
}

// TestOverlap: what is withdrawn and writes can still be carried out, so nothing is sent by any lane until it is answered.
func TestOverlap(t *testing.T) {
	m := newMock(t)
	m.flags |= flagMultiConn
	m.serve()
	s := open(t, m.options())
	one, two := newBench(t).use(s), newBench(t).use(s)
	client, other := m.client(), m.client()
	a := ask(blk.OpWrite, 0, one.memory[:4096])
	one.submit(a)
	g := client.next()
	one.withdraw(a)
	newer, newest := ask(blk.OpWrite, 0, one.memory[:4096]), ask(blk.OpWrite, 0, two.memory[:4096])
	one.submit(newer)
	two.submit(newest)
	for _, c := range []*mockConn{client, other} {
		c.SetReadDeadline(time.Now().Add(30 * time.Millisecond))
		if g, err := c.header(); !os.IsTimeout(err) {
			t.Fatalf("a %s is sent (%v) while an older one may still be carried out", commandName(g.command), err)
		}
	}
	if st := s.State(); !st.Up || st.Why == nil {
		t.Errorf("the store does not say why nothing is sent: %+v", st)
	}
	client.send(none(g))
	client.send(none(client.next()))
	other.send(none(other.next()))
	one.ends(newer, blk.OK)
	two.ends(newest, blk.OK)
	if st := s.State(); !st.Up || st.Why != nil {
		t.Errorf("when all is answered: %+v", st)
	}
}

// TestOverlapBroken: a connection breaks under a write, which a guest may be told has failed, and writes anew on another lane. The server may still have the first one in its hands, so
// that waits; but not for a lane that does not come back.
func TestOverlapBroken(t *testing.T) {
	const quiesce = 300 * time.Millisecond
	for _, back := range []bool{true, false} {
		m := newMock(t)
		m.flags |= flagMultiConn
		m.serve()
		o := m.options()
		o.Quiesce = quiesce
		s := open(t, o)
		one, two := newBench(t).use(s), newBench(t).use(s)
		client, other := m.client(), m.client()
		a := ask(blk.OpWrite, 0, one.memory[:4096])
		one.submit(a)
		client.next()
		if !back {
			_ = m.listener.Close()
		}
		began := time.Now()
		client.Close()
		one.ends(a, blk.Lost)
		newest := ask(blk.OpWrite, 0, two.memory[:4096])
		two.submit(newest)
		g := other.next()
		for ; g.command == cmdRead; g = other.next() { // a sign of life is asked for
			other.sign(g)
		}
		if d := time.Since(began); d < quiesce {
			t.Errorf("a write is sent %v after a connection broke under an older one", d)
		}
		other.send(none(g))
		two.ends(newest, blk.OK)
		go func() { // or it is asked for now
			for g, err := other.header(); err == nil; g, err = other.header() {
				if g.command == cmdRead {
					other.sign(g)
				}
			}
		}()
	}
}

// TestOverlapStopped: a server stops with a write, and its connection is given up. What another lane writes then is not sent before the server is known to go on and has had its time, or it
// would find both at once; nor does it wait for a lane that does not come back.
func TestOverlapStopped(t *testing.T) {
	const quiesce = 300 * time.Millisecond
	for _, back := range []bool{true, false} {
		m := newMock(t)
		m.flags |= flagMultiConn
		m.serve()
		o := m.options()
		o.Quiesce, o.Timeout = quiesce, 200*time.Millisecond
		s := open(t, o)
		one, two := newBench(t).use(s), newBench(t).use(s)
		client, other := m.client(), m.client()
		came := make(chan time.Time, 8)
		serve := func(c *mockConn) {
			for g, err := c.header(); err == nil; g, err = c.header() {
				if g.command == cmdRead {
					c.sign(g)
				} else if g.command == cmdWrite {
					came <- time.Now()
					_, _ = io.CopyN(io.Discard, c, int64(g.length))
					c.send(none(g))
				}
			}
		}
		var goesOn time.Time
		arrives := func() {
			select {
			case at := <-came:
				if d := at.Sub(goesOn); d < quiesce {
					t.Errorf("the lane comes back %v: a newer write is sent %v after the server goes on", back, d)
				}
			case <-time.After(patient):
				t.Fatalf("the lane comes back %v: a newer write is not sent", back)
			}
		}
		newest := ask(blk.OpWrite, 8192, two.memory[:4096])
		m.change(func() { // nobody is greeted
			old := ask(blk.OpWrite, 0, one.memory[:4096])
			one.submit(old)
			client.next()
			one.ends(old, blk.Lost)
			two.submit(newest)
			if back {
				time.Sleep(2 * quiesce)
			}
			goesOn = time.Now()
			go serve(other)
			if !back {
				arrives()
			}
		})
		go func() {
			for c := range m.clients {
				go serve(c)
			}
		}()
		for o := range newest.end { // until it is done
			if o == blk.OK {
				break
			}
			taken := false
			for end := time.Now().Add(patient); !taken && time.Now().Before(end); time.Sleep(time.Millisecond) {
				two.b.worker.Do(func() { taken = two.lane.Submit(&newest.Request) })
			}
		}
		if back {
			arrives()
		}
	}
}

// TestWithdrawAll takes back what is under way at a real server under load, again and again; what was not withdrawn is done, and right.
func TestWithdrawAll(t *testing.T) {
	_, o := nbdkit(t, "--filter=delay", "memory", "16M", "rdelay=3ms", "wdelay=3ms")
	u := newBench(t).use(open(t, o))
	r := rand.New(rand.NewPCG(5, 6))
	pattern := u.memory[6<<20:][:1<<20]
	fill(r, pattern)
	u.run(blk.OK, ask(blk.OpWrite, 8<<20, pattern))
	for range 30 {
		var going, staying []*asked
		for i := range 60 {
			n := 4096 << r.IntN(5)
			at := uint64(r.IntN((1<<20-n)/4096) * 4096)
			b := u.memory[i*64<<10:][:n]
			switch {
			case i%3 == 0:
				going = append(going, ask(blk.OpWrite, at, b))
			case i%3 == 1:
				going = append(going, ask(blk.OpRead, 8<<20+at, b))
			default:
				staying = append(staying, ask(blk.OpRead, 8<<20+at, b))
			}
		}
		all := append(append([]*asked(nil), going...), staying...)
		r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		u.submit(all...)
		time.Sleep(time.Duration(r.IntN(6)) * time.Millisecond)
		u.b.worker.Do(func() {
			for _, a := range going {
				u.lane.Withdraw(&a.Request)
			}
		})
		for _, a := range going {
			if got := <-a.end; got != blk.Withdrawn && got != blk.OK {
				t.Fatalf("a request that was withdrawn ended as %d", got)
			}
		}
		for _, a := range staying {
			u.ends(a, blk.OK)
			same(t, "a read", a.Buffers[0], pattern[a.Offset-8<<20:][:a.Length])
		}
	}
	if len(u.downs()) > 0 {
		t.Errorf("the connection broke: %v", u.downs())
	}
}

// TestWithdrawGuessed: a server reads nothing, and begins to answer a read that waits behind a write: it guesses the cookie. The read is taken back, and what comes then of its answer meets
// no other request that has its place by now.
func TestWithdrawGuessed(t *testing.T) {
	m := newMock(t)
	m.plain = true
	m.serve()
	u := newBench(t).use(open(t, m.options()))
	client := m.client()
	write, read := ask(blk.OpWrite, 0, u.memory[:4<<20]), ask(blk.OpRead, 0, u.memory[4<<20:][:4096])
	u.submit(write)
	u.submit(read)
	client.send(simpleReply(got{cookie: 2<<16 | 1}, 0, make([]byte, 100)...))
	begun := func() (is bool) {
		u.b.worker.Do(func() { o := u.lane.(*laneType).replies.owner; is = o != nil && o.slot == 1 })
		return is
	}
	for end := time.Now().Add(patient); !begun(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the answer is not taken")
		}
	}
	u.b.worker.Do(func() { u.lane.Withdraw(&read.Request) })
	u.ends(read, blk.Withdrawn)
	var others []*asked
	u.b.worker.Do(func() {
		for range maxParts - 1 { // of which the last one has its place
			a := ask(blk.OpRead, 0, u.memory[5<<20:][:512])
			if !u.lane.Submit(&a.Request) {
				break
			}
			others = append(others, a)
		}
	})
	for i := range u.memory[5<<20:][:8192] {
		u.memory[5<<20+i] = blktest.Canary
	}
	client.send(make([]byte, 4096-100))
	u.await("the end of the connection", func() bool { return len(u.why) == 1 })
	if why := u.downs()[0].Error(); !strings.Contains(why, "that it was not sent") {
		t.Error(why)
	}
	for _, a := range append(others, write) {
		u.ends(a, blk.Lost)
	}
	for i, b := range u.memory[5<<20:][:8192] {
		if b != blktest.Canary {
			t.Fatalf("byte %d of another request's memory was written to", i)
		}
	}
}
