package nbd

import (
	"context"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/blk/blktest"
	"github.com/shuntio/shunt/tools/need"
)

// guesser is a server that answers any command of a lane, in part or as a whole, sent or not.
type guesser struct {
	*blktest.Guess
	lane   *lane
	export export
	downs  int
}

func (g *guesser) Up(bool)    {}
func (g *guesser) Down(error) { g.downs++ }
func (g *guesser) Room()      {}

func newGuesser(t testing.TB) *guesser {
	t.Helper()
	r := blktest.NewRig(t)
	g := &guesser{export: export{size: imageSize, flags: mockFlags, minimum: sector, preferred: 4096, maximum: 32 << 10, structured: true}}
	s := &Store{options: Options{Timeout: time.Hour, Quiesce: -1}}
	var err error
	if g.lane, err = newLane(s, r.Host, g); err != nil {
		t.Fatal(err)
	}
	g.lane.ctx, g.lane.cancel = context.WithCancel(context.Background())
	g.lane.cancel() // no keeper: the test makes its connections
	g.lane.status.Store(&status{})
	t.Cleanup(func() {
		g.lane.Close()
		if g.lane.memory != nil {
			t.Error("the lane has kept its memory")
		}
	})
	g.Guess = blktest.NewGuess(r, g.lane, g, 40<<10)
	return g
}

func (g *guesser) Connected() bool     { return g.lane.fd >= 0 }
func (g *guesser) Dear(op blk.Op) bool { return false }

func (g *guesser) Connect() {
	e := g.export
	if err := g.lane.attach(&link{fd: g.Pair(true), export: &e}, true); err != nil {
		g.Fatal(err)
	}
}

func (g *guesser) Disconnected() {
	if l := g.lane; l.freeTasks.n != maxTasks || l.freeParts.n != maxParts || l.inflight != 0 || l.orphans != 0 || l.leaving != 0 || l.large != 0 || l.ready.n != 0 || l.store.withdrawn.Load() != 0 {
		g.Errorf("%d tasks and %d parts are free, %d commands on their way, %d of them large, %d orphans, %d tasks leaving, %d ready, %d withdrawn",
			l.freeTasks.n, l.freeParts.n, l.inflight, l.large, l.orphans, l.leaving, l.ready.n, l.store.withdrawn.Load())
	}
}

func (g *guesser) Look() {
	if p := g.lane.replies.owner; p != nil && !p.used && g.lane.dropping == nil {
		g.Fatal("an answer is coming for a command that is not on its way any more")
	}
}

// Say answers one that was sent, or now and then one that was not.
func (g *guesser) Say() (b []byte, about func() *blk.Request) {
	p := g.guess()
	if p == nil {
		return nil, nil
	}
	about = func() *blk.Request {
		if p.task == nil {
			return nil
		}
		return p.task.r
	}
	c := got{command: p.command, cookie: p.cookie, offset: p.offset, length: p.length}
	from := uint64(0)
	if p.extents > 0 && p.from[0] == 0 {
		from = uint64(p.to[0])
	}
	left := int(uint64(p.length) - from)
	switch n := g.IntN(40); {
	case n < 3:
		b = errorChunk(c, uint16(g.IntN(2)), 5, "no")
	case n == 3:
		b = dataChunk(c, uint16(g.IntN(2)), c.offset+uint64(g.IntN(3))*256, make([]byte, 1+g.IntN(64<<10)))
	case n == 4 && g.IntN(10) == 0:
		b = chunkOf(c, uint16(g.IntN(2)), uint16(g.Uint32()), 8, be64(g.Uint64()))
	case c.command != cmdRead:
		b = simpleReply(c, []uint32{0, 0, 0, 5}[n%4])
	case left == 0:
		b = none(c)
	case n < 10:
		b = holeChunk(c, 0, c.offset+from, 1+g.IntN(left))
	case n < 20:
		b = dataChunk(c, 0, c.offset+from, make([]byte, 1+g.IntN(left)))
	default:
		b = dataChunk(c, chunkDone, c.offset+from, make([]byte, left))
	}
	return b, about
}

// guess is a command to speak of; nil: none is found.
func (g *guesser) guess() *part {
	for range 4 * maxParts {
		if p := &g.lane.parts[g.IntN(maxParts)]; p.used && !p.replied && (!p.waiting || g.IntN(100) == 0) {
			return p
		}
	}
	return nil
}

// TestGuesses: each request ends once, whatever a server says when, and from then on not a byte of its memory changes.
func TestGuesses(t *testing.T) {
	limit := time.Second
	if need.Soak() {
		limit = time.Minute
	}
	g := newGuesser(t)
	if g.Run(limit); g.downs < 2 {
		t.Errorf("%d connections have ended: that is too little to show anything", g.downs)
	}
}
