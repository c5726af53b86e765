package nbd

import (
	"encoding/binary"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/tools/need"
)

// guesser is a server that answers what it was asked and what it was not yet, in part or as a whole, rightly or not, and reads when it likes.
type guesser struct {
	net.Conn
	r    *rand.Rand
	seen []got
	last uint64 // cookie
	skip int    // of a write's payload that is not read
}

func (g *guesser) run() {
	defer g.Close()
	for range 20 + g.r.IntN(300) {
		ok := true
		switch n := g.r.IntN(16); {
		case n < 7:
			ok = g.read()
		case n < 13 && len(g.seen) > 0:
			i := g.r.IntN(len(g.seen))
			ok = g.answer(g.seen[i], g.r.IntN(20) > 0)
			if g.r.IntN(8) > 0 {
				g.seen = append(g.seen[:i], g.seen[i+1:]...)
			}
		case n == 13:
			ok = g.answer(g.guess(), true)
		case n == 14:
			time.Sleep(time.Duration(g.r.IntN(3000)) * time.Microsecond)
		}
		if !ok {
			return
		}
	}
}

// read takes some of what was sent.
func (g *guesser) read() bool {
	g.SetReadDeadline(time.Now().Add(200 * time.Microsecond))
	var b [requestSize]byte
	if g.skip > 0 {
		n, _ := g.Conn.Read(make([]byte, min(g.skip, 1+g.r.IntN(200<<10))))
		g.skip -= n
		return true
	}
	for have := 0; have < len(b); {
		n, err := g.Conn.Read(b[have:])
		if have += n; err != nil && have == 0 {
			return true // nothing yet
		} else if err != nil {
			g.SetReadDeadline(time.Now().Add(time.Second))
		}
		if n == 0 && have > 0 && err != nil && !isTimeout(err) {
			return false
		}
	}
	c := got{command: binary.BigEndian.Uint16(b[6:]), cookie: binary.BigEndian.Uint64(b[8:]), offset: binary.BigEndian.Uint64(b[16:]), length: binary.BigEndian.Uint32(b[24:])}
	if c.command == cmdWrite {
		g.skip = int(c.length)
	}
	g.last = c.cookie
	g.seen = append(g.seen, c)
	return true
}

func isTimeout(err error) bool {
	e, ok := err.(net.Error)
	return ok && e.Timeout()
}

// guess is a command that it has not seen.
func (g *guesser) guess() got {
	by := uint64(1 + g.r.IntN(6))
	cookie := (g.last>>16+by)<<16 | (g.last+by)&0xff
	return got{command: cmdRead, cookie: cookie, offset: uint64(g.r.IntN(64)) << 12, length: uint32(1+g.r.IntN(64)) << 9}
}

// answer says something in answer to a command.
func (g *guesser) answer(c got, whole bool) bool {
	var b []byte
	switch n := g.r.IntN(12); {
	case n == 0:
		b = errorChunk(c, uint16(g.r.IntN(2)), 5, "no")
	case c.command != cmdRead || n == 1:
		b = simpleReply(c, 0)
	case n == 2:
		b = append(holeChunk(c, 0, c.offset, int(c.length/2)), dataChunk(c, chunkDone, c.offset+uint64(c.length/2), make([]byte, c.length-c.length/2))...)
	case n == 3:
		b = dataChunk(c, 0, c.offset, make([]byte, c.length)) // not done
	case n == 4:
		b = dataChunk(c, chunkDone, c.offset+uint64(g.r.IntN(3))*256, make([]byte, c.length))
	default:
		b = dataChunk(c, chunkDone, c.offset, make([]byte, c.length))
	}
	if !whole {
		b = b[:g.r.IntN(len(b))]
	}
	g.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	_, err := g.Write(b)
	return err == nil
}

// TestGuesses: requests of all kinds and sizes are submitted and withdrawn, and a server guesses. Each request ends once, and from then on not a byte of its memory changes.
func TestGuesses(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	limit := 2 * time.Second
	if need.Soak() {
		limit = time.Minute
	}
	m := newMock(t)
	m.listener.(*net.UnixListener).SetUnlinkOnClose(true)
	o := m.options()
	o.Timeout = 300 * time.Millisecond
	m.serve()
	go func() {
		for n := uint64(0); ; n++ {
			select {
			case c := <-m.clients:
				go (&guesser{Conn: c.Conn, r: rand.New(rand.NewPCG(seed, n))}).run()
			case <-t.Context().Done():
				return
			}
		}
	}()
	u := newBench(t).use(open(t, o))
	r := rand.New(rand.NewPCG(seed, 1<<63))
	const slots, size = 64, 128 << 10 // of memory, one for a request
	type one struct {
		*asked
		memory []byte
	}
	var under [slots]*one
	ended := 0
	check := func(memory []byte) {
		for i, b := range memory {
			if b != canary {
				t.Fatalf("byte %d of a request's memory has changed after its end", i)
			}
		}
	}
	fresh := func(memory []byte) {
		for i := range memory {
			memory[i] = canary
		}
	}
	fresh(u.memory)
	for end := time.Now().Add(limit); time.Now().Before(end); {
		i := r.IntN(slots)
		memory := u.memory[i*size:][:size]
		if under[i] == nil {
			check(memory)
			length := (1 + r.IntN(8)) << 9
			if r.IntN(3) == 0 {
				length = (1 + r.IntN(size>>9)) << 9
			}
			op := []blk.Op{blk.OpRead, blk.OpRead, blk.OpRead, blk.OpWrite, blk.OpWrite, blk.OpFlush, blk.OpWriteZeroes}[r.IntN(7)]
			a := ask(op, uint64(r.IntN(64))<<12)
			if op == blk.OpRead || op == blk.OpWrite {
				a = ask(op, a.Offset, scatter(r, memory[:length])...)
			} else if op == blk.OpWriteZeroes {
				a.Length = uint64(length)
			}
			taken := false
			u.b.do(func() { taken = u.lane.Submit(&a.Request) })
			if taken {
				under[i] = &one{a, memory}
			}
			continue
		}
		if r.IntN(4) == 0 {
			u.b.do(func() {
				if len(under[i].end) == 0 { // nobody withdraws what has ended
					u.lane.Withdraw(&under[i].Request)
				}
			})
			u.b.do(func() {})
		}
		select {
		case <-under[i].end:
			fresh(memory)
			under[i] = nil
			ended++
		default:
		}
	}
	t.Logf("%d requests ended; %d connections", ended, len(u.upped()))
	for i := range under {
		if under[i] == nil {
			check(u.memory[i*size:][:size])
		}
	}
	m.listener.Close()
	if ended < 20 || len(u.upped()) < 2 {
		t.Error("that is too few to show anything")
	}
	u.b.do(func() {
		for _, x := range under {
			if x != nil && len(x.end) == 0 {
				u.lane.Withdraw(&x.Request)
			}
		}
	})
	for _, x := range under {
		if x != nil {
			select {
			case <-x.end:
			case <-time.After(patient):
				t.Fatalf("%v of %d bytes does not end", x.Op, x.Length)
			}
			if len(x.end) > 0 {
				t.Errorf("%v of %d bytes ended twice", x.Op, x.Length)
			}
		}
	}
}
