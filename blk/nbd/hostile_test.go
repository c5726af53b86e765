package nbd

import (
	"context"
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/dataplanetest"
	"github.com/shuntio/shunt/dataplane/uring"
	"github.com/shuntio/shunt/tools/need"
	"golang.org/x/sys/unix"
)

// guess is a lane whose requests come and are taken back, on a worker that the test turns by hand, and a server at the other end of its socket that knows all commands, sent and
// unsent, and says anything about them.
type guess struct {
	t      testing.TB
	r      *rand.Rand
	worker *dataplane.Worker
	ring   *uring.Ring
	lane   *lane
	peer   int
	e      export
	jobs   [guessJobs]guessJob
	over   int // requests that have ended
	downs  int
}

const (
	guessJobs = 48
	guessSize = 40 << 10 // of memory, for a request
)

type guessJob struct {
	blk.Request
	g      *guess
	memory []byte
	under  bool
}

func (g *guess) Up(bool)    {}
func (g *guess) Down(error) { g.downs++ }
func (g *guess) Room()      {}

// Done implements blk.Handler: from now on not a byte of its memory may change.
func (j *guessJob) Done(*blk.Request, blk.Outcome) {
	if !j.under {
		j.g.t.Errorf("a %v ended twice", j.Op)
	}
	j.under = false
	j.g.over++
	for i := range j.memory {
		j.memory[i] = canary
	}
}

func (g *guess) check(j *guessJob) {
	for i, b := range j.memory {
		if b != canary {
			g.t.Fatalf("byte %d of a %v's memory has changed after its end", i, j.Op)
		}
	}
}

func newGuess(t testing.TB, seed uint64) *guess {
	t.Helper()
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	before := debug.SetPanicOnFault(true)
	t.Cleanup(func() { debug.SetPanicOnFault(before) })
	g := &guess{t: t, r: rand.New(rand.NewPCG(seed, 1)), worker: dataplanetest.NewWorker(t, 16), peer: -1}
	g.e = export{size: imageSize, flags: mockFlags, minimum: sector, preferred: 4096, maximum: 32 << 10, structured: true}
	var err error
	if g.ring, err = uring.Open(uring.Options{Entries: 64}); err != nil {
		need.Missing(t, "io_uring: %v", err)
	}
	if err := g.ring.Enable(); err != nil {
		t.Fatal(err)
	}
	g.worker.Do(func() { g.worker.Add(g.ring) })
	m, err := uring.NewMemory(guessJobs * guessSize)
	if err != nil {
		t.Fatal(err)
	}
	for i := range g.jobs {
		g.jobs[i] = guessJob{g: g, memory: m.Bytes()[i*guessSize:][:guessSize], under: true}
		g.jobs[i].Done(nil, blk.OK)
	}
	g.over = 0
	s := &Store{options: Options{Timeout: time.Hour, Quiesce: -1}}
	if g.lane, err = newLane(s, blk.Host{Worker: g.worker, Ring: g.ring}, g); err != nil {
		t.Fatal(err)
	}
	var end context.CancelFunc
	g.lane.ctx, end = context.WithCancel(context.Background())
	g.lane.cancel = end
	end() // no keeper: the test makes its connections
	g.lane.status.Store(&status{})
	t.Cleanup(func() {
		g.lane.Close()
		if err := g.ring.Close(); err != nil {
			t.Error(err)
		}
		if g.lane.memory != nil {
			t.Error("the lane has kept its memory")
		}
		m.Free()
	})
	return g
}

// open gives the lane a connection.
func (g *guess) open() {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		g.t.Fatal(err)
	}
	unix.SetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_SNDBUF, 1) // so that sends wait
	if g.peer >= 0 {
		unix.Close(g.peer)
	}
	g.peer = fds[1]
	e := g.e
	if err := g.lane.attach(&link{fd: fds[0], export: &e}, true); err != nil {
		g.t.Fatal(err)
	}
}

func (g *guess) round() {
	g.lane.Flush()
	g.worker.Round()
	if p := g.lane.replies.owner; p != nil && !p.used && g.lane.dropping == nil {
		g.t.Fatal("an answer is coming for a command that is not on its way any more")
	}
}

// rest ends the connection, and waits until the lane has given back what it had.
func (g *guess) rest() {
	unix.Shutdown(g.peer, unix.SHUT_RDWR)
	for i := 0; g.lane.fd >= 0; i++ {
		if i > 1e6 {
			g.t.Fatal("the lane does not give the connection up")
		}
		g.round()
	}
	for i := range g.jobs {
		if j := &g.jobs[i]; j.under {
			g.t.Errorf("a %v has not ended with the connection", j.Op)
		}
	}
	if l := g.lane; l.freeTasks.n != maxTasks || l.freeParts.n != maxParts || l.inflight != 0 || l.orphans != 0 || l.leaving != 0 || l.large != 0 || l.ready.n != 0 || l.store.withdrawn.Load() != 0 {
		g.t.Errorf("%d tasks and %d parts are free, %d commands on their way, %d of them large, %d orphans, %d tasks leaving, %d ready, %d withdrawn",
			l.freeTasks.n, l.freeParts.n, l.inflight, l.large, l.orphans, l.leaving, l.ready.n, l.store.withdrawn.Load())
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
		j.Buffers = scatter(g.r, j.memory[:length])
	}
	j.under = true
	if !g.lane.Submit(&j.Request) {
		j.under = false
	}
}

// takeBack withdraws a request now and then.
func (g *guess) takeBack() {
	if j := &g.jobs[g.r.IntN(guessJobs)]; j.under && g.r.IntN(6) == 0 {
		g.lane.Withdraw(&j.Request)
	}
}

// say answers a command, in part or as a whole: one that was sent, or now and then one that was not.
func (g *guess) say() {
	l := g.lane
	p := &l.parts[g.r.IntN(maxParts)]
	for tries := 0; !p.used || p.replied || p.waiting && g.r.IntN(100) > 0; tries++ {
		if tries == 4*maxParts {
			return
		}
		p = &l.parts[g.r.IntN(maxParts)]
	}
	c := got{command: p.command, cookie: p.cookie, offset: p.offset, length: p.length}
	from := uint64(0)
	if p.extents > 0 && p.from[0] == 0 {
		from = uint64(p.to[0])
	}
	left := int(uint64(p.length) - from)
	var b []byte
	switch n := g.r.IntN(40); {
	case n < 3:
		b = errorChunk(c, uint16(g.r.IntN(2)), 5, "no")
	case n == 3:
		b = dataChunk(c, uint16(g.r.IntN(2)), c.offset+uint64(g.r.IntN(3))*256, make([]byte, 1+g.r.IntN(64<<10)))
	case n == 4 && g.r.IntN(10) == 0:
		b = chunkOf(c, uint16(g.r.IntN(2)), uint16(g.r.Uint32()), 8, be64(g.r.Uint64()))
	case c.command != cmdRead:
		b = simpleReply(c, []uint32{0, 0, 0, 5}[n%4])
	case left == 0:
		b = none(c)
	case n < 10:
		b = holeChunk(c, 0, c.offset+from, 1+g.r.IntN(left))
	case n < 20:
		b = dataChunk(c, 0, c.offset+from, make([]byte, 1+g.r.IntN(left)))
	default:
		b = dataChunk(c, chunkDone, c.offset+from, make([]byte, left))
	}
	for len(b) > 0 {
		cut := len(b)
		if g.r.IntN(2) == 0 {
			cut = 1 + g.r.IntN(len(b))
		}
		n, err := unix.SendmsgN(g.peer, b[:cut], nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		if err != nil || n < cut {
			g.rest() // the lane does not listen any more
			return
		}
		b = b[cut:]
		g.round()
		if t := p.task; t != nil && t.r != nil && g.r.IntN(20) == 0 { // whose answer is coming
			l.Withdraw(t.r)
		}
		if g.r.IntN(3) == 0 {
			g.act()
		}
	}
}

// act does what is no answer.
func (g *guess) act() {
	j := &g.jobs[g.r.IntN(guessJobs)]
	switch n := g.r.IntN(6); {
	case n < 3 && !j.under:
		g.submit(j)
	case n == 3:
		g.takeBack()
	case n == 4:
		unix.Recvfrom(g.peer, make([]byte, 1+g.r.IntN(64<<10)), unix.MSG_DONTWAIT)
	}
	g.round()
}

// TestGuesses: each request ends once, whatever a server says when, and from then on not a byte of its memory changes.
func TestGuesses(t *testing.T) {
	limit := time.Second
	if need.Soak() {
		limit = time.Minute
	}
	seed := rand.Uint64()
	g := newGuess(t, seed)
	connections := 0
	for end := time.Now().Add(limit); time.Now().Before(end); {
		if g.lane.fd < 0 {
			connections++
			g.open()
		}
		g.act()
		if g.lane.fd >= 0 && g.r.IntN(3) == 0 {
			g.say()
		}
	}
	g.rest()
	unix.Close(g.peer)
	for i := range g.jobs {
		g.check(&g.jobs[i])
	}
	t.Logf("seed %d: %d requests ended, %d connections", seed, g.over, connections)
	if g.over < 200 || connections < 2 || g.downs < 2 {
		t.Error("that is too little to show anything")
	}
}
