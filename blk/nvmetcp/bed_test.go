package nvmetcp

import (
	"context"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/blk/blktest"
	"github.com/shuntio/shunt/blk/nvmetcp/nvmetcptest"
	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/uring"
)

// testKATO is long enough for a busy machine, and what some tests must wait for.
const testKATO = 3 * time.Second

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

func TestMain(m *testing.M) { blktest.Main(m) }

// workbench is a worker with a ring.
type workbench struct {
	worker *dataplane.Worker
	ring   *uring.Ring
}

func newWorkbench(t testing.TB) *workbench {
	t.Helper()
	h := blktest.Run(t, 1)[0]
	return &workbench{h.Worker, h.Ring}
}

// client uses one lane as a Gate does, its requests from a test's goroutines.
type client struct {
	t      testing.TB
	bench  *workbench
	lane   blk.Lane
	memory []byte // the guest's

	mu    sync.Mutex
	up    bool
	kept  []bool // of each Up
	downs []error
	rooms int
	news  chan struct{} // something happened; has room for one
}

// open makes a client with a lane of a store.
func (b *workbench) open(t testing.TB, s *Store) *client {
	t.Helper()
	m, err := uring.NewMemory(8 << 20)
	if err != nil {
		t.Fatal(err)
	}
	c := &client{t: t, bench: b, memory: m.Bytes(), news: make(chan struct{}, 1)}
	if c.lane, err = s.Open(blk.Host{Worker: b.worker, Ring: b.ring}, c); err != nil {
		t.Fatal(err)
	}
	b.worker.Do(func() { b.worker.Add(c) })
	t.Cleanup(func() { m.Free() })
	t.Cleanup(c.close)
	return c
}

func (c *client) close() {
	c.bench.worker.Do(func() {
		if c.lane != nil {
			c.bench.worker.Remove(c)
			c.lane.Close()
			c.lane = nil
		}
	})
}

func (c *client) Poll() int          { return 0 }
func (c *client) Flush()             { c.lane.Flush() }
func (c *client) Arm() time.Duration { return dataplane.Forever }
func (c *client) Pending() bool      { return false }
func (c *client) Disarm()            {}

func (c *client) Up(kept bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.up, c.kept = true, append(c.kept, kept)
	poke(c.news)
}

func (c *client) Down(why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.up, c.downs = false, append(c.downs, why)
	poke(c.news)
}

func (c *client) Room() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rooms++
	poke(c.news)
}

// await waits for a condition on what the client heard.
func (c *client) await(what string, condition func() bool) {
	c.t.Helper()
	deadline := time.After(patience)
	for {
		c.mu.Lock()
		ok := condition()
		c.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-c.news:
		case <-time.After(5 * time.Millisecond):
		case <-deadline:
			c.mu.Lock()
			defer c.mu.Unlock()
			c.t.Fatalf("not within %v: %s (up %v, %d times down, last %v)", patience, what, c.up, len(c.downs), last(c.downs))
		}
	}
}

func (c *client) awaitUp() { c.t.Helper(); c.await("the lane is up", func() bool { return c.up }) }

// job is a request of a test, and its end.
type job struct {
	blk.Request
	done chan blk.Outcome
	at   time.Time // when it ended, by the worker's clock
}

func (j *job) Done(_ *blk.Request, o blk.Outcome) {
	j.at = time.Now()
	j.done <- o
}

// job makes a request on a part of the client's memory, in pieces.
func (c *client) job(op blk.Op, offset, length uint64, at int, pieces ...int) *job {
	j := &job{Request: blk.Request{Op: op, Offset: offset, Length: length}, done: make(chan blk.Outcome, 1)}
	j.Handler = j
	if op == blk.OpRead || op == blk.OpWrite {
		b := c.memory[at:][:length]
		for _, n := range pieces {
			if n < len(b) {
				j.Buffers = append(j.Buffers, b[:n:n])
				b = b[n:]
			}
		}
		j.Buffers = append(j.Buffers, b)
	}
	return j
}

// submit gives it to the lane, as soon as that takes it.
func (c *client) submit(j *job) {
	c.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		ok := false
		c.bench.worker.Do(func() { ok = c.lane.Submit(&j.Request) })
		if ok {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("a %v was not taken within %v: %v", j.Op, patience, last(c.downs))
		}
		time.Sleep(time.Millisecond)
	}
}

func (c *client) end(j *job) blk.Outcome {
	c.t.Helper()
	select {
	case o := <-j.done:
		return o
	case <-time.After(patience):
		c.t.Fatalf("a %v of %d bytes did not end within %v", j.Op, j.Length, patience)
		return 0
	}
}

// run submits and waits, again if it was lost.
func (c *client) run(j *job) blk.Outcome {
	c.t.Helper()
	for {
		c.submit(j)
		if o := c.end(j); o != blk.Lost {
			return o
		}
	}
}

func (c *client) must(j *job) {
	c.t.Helper()
	if o := c.run(j); o != blk.OK {
		c.t.Fatalf("%v of %d bytes at %d: outcome %d", j.Op, j.Length, j.Offset, o)
	}
}

// options for a target, with times for tests.
func options(t *nvmetcptest.Target) Options {
	return Options{Address: t.Address(), NQN: nvmetcptest.NQN, HostNQN: "nqn.2026-11.io.shunt:host", HostID: [16]byte{1}, KATO: testKATO,
		ConnectTimeout: 10 * time.Second, ReconnectDelay: 100 * time.Millisecond}
}

// connect opens a store, closed with the test. Where a short ConnectTimeout is wanted for later, a busy machine has several attempts.
func connect(t testing.TB, o Options) *Store {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s, err := Open(ctx, o)
	for o.ConnectTimeout < time.Second && err != nil && ctx.Err() == nil && strings.Contains(err.Error(), "within") {
		s, err = Open(ctx, o)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func fillRandom(b []byte, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 1))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
}

func last(errs []error) error {
	if len(errs) == 0 {
		return nil
	}
	return errs[len(errs)-1]
}
