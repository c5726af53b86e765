package nvmetcp

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/tools/need"
	"golang.org/x/sys/unix"
)

// guess is a lane whose requests come and are taken back, and a controller at the other end of its socket that knows all commands, sent and unsent, and says anything about them.
type guess struct {
	*rig
	r    *rand.Rand
	jobs [guessJobs]guessJob
	over int // requests that have ended
}

const (
	guessJobs = 48
	guessSize = 20 << 10 // of memory, for a request
)

type guessJob struct {
	blk.Request
	g      *guess
	memory []byte
	under  bool
}

// Done implements blk.Handler: from now on not a byte of its memory may change.
func (j *guessJob) Done(*blk.Request, blk.Outcome) {
	if !j.under {
		j.g.t.Errorf("a %v ended twice", j.Op)
	}
	j.under = false
	j.g.over++
	for i := range j.memory {
		j.memory[i] = 0xa5
	}
}

func (g *guess) check(j *guessJob) {
	for i, b := range j.memory {
		if b != 0xa5 {
			g.t.Fatalf("byte %d of a %v's memory has changed after its end", i, j.Op)
		}
	}
}

func (g *guess) submit(j *guessJob) {
	g.check(j)
	op := blk.Op(g.r.IntN(int(blk.Ops)))
	length := (1 + g.r.IntN(guessSize>>9)) << 9
	j.Request = blk.Request{Op: op, Offset: uint64(g.r.IntN(64)) << 9, Length: uint64(length), Handler: j}
	switch op {
	case blk.OpFlush:
		j.Offset, j.Length = 0, 0
	case blk.OpRead, blk.OpWrite:
		for b := j.memory[:length]; len(b) > 0; {
			n := min(len(b), 1+g.r.IntN(9000))
			j.Buffers = append(j.Buffers, b[:n:n])
			b = b[n:]
		}
	}
	j.under = g.lane.Submit(&j.Request)
}

// takeBack withdraws a request now and then; seldom one that ends the association by that.
func (g *guess) takeBack() {
	if j := &g.jobs[g.r.IntN(guessJobs)]; j.under && (j.Op == blk.OpRead && g.r.IntN(3) == 0 || g.r.IntN(60) == 0) {
		g.lane.Withdraw(&j.Request)
	}
}

// say sends a PDU about a command.
func (g *guess) say() {
	l, t := g.lane, &g.lane.limits.terms
	c := &l.commands[g.r.IntN(l.limits.depth)]
	for tries := 0; !c.begun || c.answered; tries++ {
		if tries == 100 {
			if g.r.IntN(500) > 0 {
				return
			}
			break // there is none
		}
		c = &l.commands[g.r.IntN(l.limits.depth)]
	}
	h, data, flags := make([]byte, maxDataOffset), []byte(nil), byte(0)
	le.PutUint16(h[8:], c.cid)
	wrong := g.r.IntN(200) == 0
	some := func(left uint32) uint32 { // of what is left
		switch {
		case wrong:
			return uint32(g.r.IntN(40 << 10))
		case g.r.IntN(2) == 0 && left > 4:
			return 1 + uint32(g.r.IntN(int(left)))
		}
		return left
	}
	kind := byte(pduCapsuleResp)
	switch n := g.r.IntN(6); {
	case c.op == blk.OpRead && n < 4 && (wrong || c.received < c.length):
		kind = pduC2HData
		data = make([]byte, some(c.length-c.received))
		le.PutUint32(h[12:], c.received)
		if c.received+uint32(len(data)) == c.length {
			flags = [3]byte{0, flagLast, flagLast | flagSuccess}[g.r.IntN(3)]
		}
		le.PutUint32(h[16:], uint32(len(data)))
	case c.sends() && n < 4 && (wrong || c.capsule == 0 && c.asked < c.length):
		kind = pduR2T
		le.PutUint16(h[10:], uint16(g.r.Uint32()))
		le.PutUint32(h[12:], c.asked)
		le.PutUint32(h[16:], some(c.length-c.asked))
	default:
		clear(h[8:])
		le.PutUint32(h[8:], g.r.Uint32())
		le.PutUint16(h[16:], uint16(g.r.Uint32())) // SQHD
		le.PutUint16(h[20:], c.cid)
		if g.r.IntN(4) == 0 || !wrong && (c.received < c.length && c.op == blk.OpRead || c.sends() && c.capsule == 0 && c.asked < c.length) {
			le.PutUint16(h[22:], []uint16{0x281, 0x082, 0x001, 0x080}[g.r.IntN(4)]<<1|1<<15*uint16(g.r.IntN(2)))
		}
	}
	n := t.seal(h, kind, flags, headerLength, uint32(len(data)))
	b := append(h[:n:n], data...)
	if t.dataDigest && len(data) > 0 {
		b = le.AppendUint32(b, crc32c(data)^uint32(g.r.IntN(20)/19))
	}
	for len(b) > 0 {
		cut := len(b)
		if g.r.IntN(2) == 0 {
			cut = 1 + g.r.IntN(len(b))
		}
		if k, err := unix.SendmsgN(g.peer, b[:cut], nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL); err != nil || k < cut {
			g.rest() // the lane does not listen any more
			return
		}
		b = b[cut:]
		g.round()
		g.takeBack()
	}
}

func (g *guess) round() {
	g.lane.Flush()
	g.worker.Round()
}

// rest ends the connection, and waits until the lane has given back what it had.
func (g *guess) rest() {
	unix.Shutdown(g.peer, unix.SHUT_RDWR)
	g.turn(func() bool { return g.lane.state == laneDown })
	g.hangUp()
	for i := range g.jobs {
		if j := &g.jobs[i]; j.under {
			g.t.Errorf("a %v has not ended with the connection", j.Op)
		}
	}
	if l := g.lane; len(l.idle) != len(l.tasks) || !l.waiting.empty() {
		g.t.Errorf("%d of %d tasks are free, %d wait", len(l.idle), len(l.tasks), l.waiting.n)
	}
}

// open gives the lane a connection, and hangUp ends both of its sides.
func (g *guess) open(l limits) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		g.t.Fatal(err)
	}
	unix.SetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_SNDBUF, 1) // so that sends wait
	g.peer, g.lane.quiet = fds[1], make(chan struct{})
	if err := g.lane.attach(newAssociation(), fds[0], l, true, true); err != nil {
		g.t.Fatal(err)
	}
}

func (g *guess) hangUp() {
	if g.peer >= 0 {
		unix.Close(g.peer)
	}
	g.peer = -1
	if fd := g.lane.bury(); fd >= 0 {
		unix.Close(fd)
	}
}

// TestGuesses: each request ends once, whatever a controller says when, and from then on not a byte of its memory changes.
func TestGuesses(t *testing.T) {
	limit := time.Second
	if need.Soak() {
		limit = time.Minute
	}
	seed := rand.Uint64()
	for _, digest := range []bool{false, true} {
		g := &guess{rig: newRig(t, digest), r: rand.New(rand.NewPCG(seed, 1))}
		g.peer = -1
		g.memory = g.memory[:guessJobs*guessSize]
		for i := range g.memory {
			g.memory[i] = 0xa5
		}
		for i := range g.jobs {
			g.jobs[i] = guessJob{g: g, memory: g.memory[i*guessSize:][:guessSize]}
		}
		limits := rigLimits()
		limits.terms.dataDigest, limits.most, limits.terms.maxH2CData = digest, 32<<10, 4096
		connections, scratch := 0, make([]byte, 64<<10)
		for end := time.Now().Add(limit / 2); time.Now().Before(end) || g.lane.state != laneDown; {
			if !time.Now().Before(end) {
				g.rest()
				break
			}
			if g.lane.state == laneDown {
				g.hangUp()
				connections++
				g.open(limits)
			}
			j := &g.jobs[g.r.IntN(guessJobs)]
			switch n := g.r.IntN(8); {
			case n < 3 && !j.under:
				g.submit(j)
			case n == 3:
				g.takeBack()
			case n == 4:
				unix.Recvfrom(g.peer, scratch[:1+g.r.IntN(len(scratch))], unix.MSG_DONTWAIT)
			case n > 4:
				if g.lane.connected() {
					g.say()
				}
			}
			g.round()
		}
		for i := range g.jobs {
			g.check(&g.jobs[i])
		}
		t.Logf("seed %d, digest %v: %d requests ended, %d connections", seed, digest, g.over, connections)
		if g.over < 200 || connections < 2 {
			t.Error("that is too little to show anything")
		}
	}
}
