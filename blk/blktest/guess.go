package blktest

import (
	"math/rand/v2"
	"time"

	"github.com/shuntio/shunt/blk"
	"golang.org/x/sys/unix"
)

// Guess has requests come to a lane and be taken back, while a server that knows all its commands, sent and unsent, says anything about them. Each request ends once, whatever is said when,
// and from then on not a byte of its memory changes.
type Guess struct {
	*Rig
	*rand.Rand
	// Seed is what the generator began with, Ended how many requests have ended, Connections how many the lane had.
	Seed               uint64
	Ended, Connections int

	lane   blk.Lane
	server Guesser
	jobs   [guessed]job
}

// Guesser is a server of one protocol, and what it knows of the lane.
type Guesser interface {
	// Connected tells whether the lane has a connection; Connect gives it one; Disconnected looks whether it has forgotten all that was on it.
	Connected() bool
	Connect()
	Disconnected()
	// Say is the next message, nil: none for now; and whose it is, asked while it is sent, which may be nobody's.
	Say() (message []byte, about func() *blk.Request)
	// Dear tells whether it costs the connection to take such a request back, which is seldom done then.
	Dear(op blk.Op) bool
	// Look is called after each round.
	Look()
}

// guessed is how many requests there are at once.
const guessed = 48

// Canary is what memory is filled with that nobody may write to.
const Canary = 0xa5

type job struct {
	blk.Request
	guess  *Guess
	memory []byte
	under  bool
}

// NewGuess begins with a seed of its own; requests have up to size bytes.
func NewGuess(r *Rig, l blk.Lane, s Guesser, size int) *Guess {
	g := &Guess{Rig: r, Seed: rand.Uint64(), lane: l, server: s}
	g.Rand = rand.New(rand.NewPCG(g.Seed, 1))
	memory := r.Memory(guessed * size)
	for i := range memory {
		memory[i] = Canary
	}
	for i := range g.jobs {
		g.jobs[i] = job{guess: g, memory: memory[i*size:][:size]}
	}
	return g
}

// Done implements blk.Handler.
func (j *job) Done(*blk.Request, blk.Outcome) {
	if !j.under {
		j.guess.Errorf("a %v ended twice", j.Op)
	}
	j.under = false
	j.guess.Ended++
	for i := range j.memory {
		j.memory[i] = Canary
	}
}

func (j *job) check() {
	for i, b := range j.memory {
		if b != Canary {
			j.guess.Fatalf("byte %d of a %v's memory has changed after its end", i, j.Op)
		}
	}
}

// Run goes on so long, longer where the machine has little time for it, and ends all that is under way.
func (g *Guess) Run(d time.Duration) {
	enough := func() bool { return g.Ended >= 200 && g.Connections >= 2 }
	for began := time.Now(); time.Since(began) < d || !enough() && time.Since(began) < 20*time.Second; {
		if !g.server.Connected() {
			g.Connections++
			g.server.Connect()
		}
		g.act()
		if g.server.Connected() && g.IntN(3) == 0 {
			g.say()
		}
	}
	g.rest()
	for i := range g.jobs {
		g.jobs[i].check()
	}
	g.Logf("seed %d: %d requests ended, %d connections", g.Seed, g.Ended, g.Connections)
	if !enough() {
		g.Error("that is too little to show anything")
	}
}

// act does what is no answer.
func (g *Guess) act() {
	switch n := g.IntN(6); {
	case n < 3:
		g.submit(&g.jobs[g.IntN(guessed)])
	case n == 3:
		g.takeBack(&g.jobs[g.IntN(guessed)].Request, 6)
	case n == 4:
		unix.Recvfrom(g.Peer, make([]byte, 1+g.IntN(64<<10)), unix.MSG_DONTWAIT)
	}
	g.round()
}

func (g *Guess) round() {
	g.Round(g.lane)
	g.server.Look()
}

func (g *Guess) submit(j *job) {
	if j.under {
		return
	}
	j.check()
	length := (1 + g.IntN(len(j.memory)>>9)) << 9
	j.Request = blk.Request{Op: blk.Op(g.IntN(int(blk.Ops))), Offset: uint64(g.IntN(64)) << 9, Length: uint64(length), Handler: j}
	switch j.Op {
	case blk.OpFlush:
		j.Offset, j.Length = 0, 0
	case blk.OpRead, blk.OpWrite:
		j.Buffers = Scatter(g.Rand, j.memory[:length])
	}
	j.under = g.lane.Submit(&j.Request)
}

// takeBack withdraws a request once in so many times.
func (g *Guess) takeBack(r *blk.Request, times int) {
	if g.server.Dear(r.Op) {
		times *= 20
	}
	if j, ok := r.Handler.(*job); ok && j.under && g.IntN(times) == 0 {
		g.lane.Withdraw(r)
	}
}

// say sends a message, in pieces, while other things happen.
func (g *Guess) say() {
	b, about := g.server.Say()
	for len(b) > 0 {
		cut := len(b)
		if g.IntN(2) == 0 {
			cut = 1 + g.IntN(len(b))
		}
		n, err := unix.SendmsgN(g.Peer, b[:cut], nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		if err != nil || n < cut {
			g.rest() // the lane does not listen any more
			return
		}
		b = b[cut:]
		g.round()
		if r := about(); r != nil {
			g.takeBack(r, 20)
		}
		if g.IntN(3) == 0 {
			g.act()
		}
	}
}

// rest ends the connection, and waits until the lane has given back what it had.
func (g *Guess) rest() {
	g.Helper()
	unix.Shutdown(g.Peer, unix.SHUT_RDWR)
	g.Turn(g.lane, func() bool { return !g.server.Connected() })
	for i := range g.jobs {
		if j := &g.jobs[i]; j.under {
			g.Errorf("a %v has not ended with the connection", j.Op)
		}
	}
	g.server.Disconnected()
}

// Scatter cuts memory into pieces of many lengths, as a guest's buffers are.
func Scatter(r *rand.Rand, b []byte) (pieces [][]byte) {
	for len(b) > 0 {
		n := min(len(b), 1+r.IntN(9000))
		if r.IntN(3) == 0 {
			n = min(len(b), 4096)
		}
		pieces = append(pieces, b[:n:n])
		b = b[n:]
	}
	return pieces
}
