package nvmetcp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/blk/nvmetcp/nvmetcptest"
)

func only(opcodes ...byte) func(e []byte) bool {
	return func(e []byte) bool { return bytes.IndexByte(opcodes, e[0]) >= 0 }
}

// An IO connection breaks, and the admin queue lives: the controller is reset over it, so nothing waits, and nothing was lost.
func TestQueueBreaks(t *testing.T) {
	target := nvmetcptest.New(t, nvmetcptest.Options{InCapsule: 8 << 10, Cache: true})
	o := options(target)
	o.KATO = time.Minute
	s := connect(t, o)
	c := newWorkbench(t).open(t, s)
	c.awaitUp()
	target.Hold(only(0x01))
	j := c.job(blk.OpWrite, 0, 4096, 0)
	c.submit(j)
	c.await("the write is held", func() bool { return target.Held() == 1 })
	target.Break(false)
	if got := c.end(j); got != blk.Lost {
		t.Fatalf("outcome %d, want Lost", got)
	}
	c.await("the lane is up again", func() bool { return len(c.kept) == 2 })
	if !c.kept[1] || len(c.downs) != 1 || s.State().Reconnects != 1 {
		t.Errorf("kept %v, downs %v, state %+v", c.kept, c.downs, s.State())
	}
	target.Release() // of a controller that may not execute any more
	target.Do(func() {
		if !bytes.Equal(target.Disk()[:4096], make([]byte, 4096)) {
			t.Error("the old write was executed after all")
		}
	})
	carried := func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.current.carried.Load()
	}
	if carried() {
		t.Error("an association that has carried nothing would have the next attempt made at once")
	}
	fillRandom(c.memory[:4096], 3)
	c.must(j)
	if !carried() {
		t.Error("an association that has carried a write would not")
	}
}

// A target that is started anew: what was flushed is there, the lane says what may not be, and comes up only when the old controller's time is over.
func TestRestart(t *testing.T) {
	t.Parallel()
	for _, cache := range []bool{true, false} {
		t.Run(fmt.Sprintf("cache %v", cache), func(t *testing.T) {
			t.Parallel()
			restart(t, cache)
		})
	}
}

func restart(t *testing.T, cache bool) {
	target := nvmetcptest.New(t, nvmetcptest.Options{InCapsule: 8 << 10, Cache: cache})
	s := connect(t, options(target))
	c := newWorkbench(t).open(t, s)
	c.awaitUp()
	fillRandom(c.memory[:4096], 3)
	c.must(c.job(blk.OpWrite, 0, 4096, 0))
	c.must(c.job(blk.OpFlush, 0, 0, 0))
	target.Hold(only(0x02))
	j := c.job(blk.OpRead, 0, 4096, 8192)
	c.submit(j)
	c.await("the read is held", func() bool { return target.Held() == 1 })
	began := time.Now()
	target.Restart(nil)
	c.await("the lane is up again", func() bool { return len(c.kept) == 2 })
	if waited := time.Since(began); waited < testKATO {
		t.Errorf("up after %v, with a keep-alive timeout of %v and an old controller that says nothing", waited, testKATO)
	}
	if c.kept[1] != !cache {
		t.Errorf("kept %v, volatile cache %v", c.kept[1], cache)
	}
	if o := c.end(j); o != blk.Lost {
		t.Errorf("outcome %d, want Lost", o)
	}
	c.must(j)
	if !bytes.Equal(c.memory[:4096], c.memory[8192:][:4096]) {
		t.Error("flushed data is not there")
	}
}

// A target that hangs, with a write in it, and goes on later. By the time the write may be submitted again, and overtaken by a newer one, the old one is dead.
func TestHangs(t *testing.T) {
	t.Parallel()
	target := nvmetcptest.New(t, nvmetcptest.Options{InCapsule: 8 << 10})
	o := options(target)
	o.ConnectTimeout = 300 * time.Millisecond
	s := connect(t, o)
	c := newWorkbench(t).open(t, s)
	c.awaitUp()
	target.Hold(only(0x01))
	fillRandom(c.memory[:8192], 5)
	old := c.job(blk.OpWrite, 0, 4096, 0)
	c.submit(old)
	c.await("the write is held", func() bool { return target.Held() == 1 })
	target.Pause()
	if got := c.end(old); got != blk.Lost {
		t.Fatalf("outcome %d, want Lost", got)
	}
	c.await("attempts are made", func() bool { return s.State().Why != nil && strings.Contains(s.State().Why.Error(), "was not ready") })
	target.Hold(nil)
	target.Resume()
	c.await("the lane is up again", func() bool { return len(c.kept) == 2 })
	if target.Expired.Load() != 1 {
		t.Errorf("%d controllers had expired when the lane came up, want 1", target.Expired.Load())
	}
	c.must(old)
	newer := c.job(blk.OpWrite, 0, 4096, 4096)
	c.must(newer)
	target.Release()
	target.Do(func() {
		if !bytes.Equal(target.Disk()[:4096], c.memory[4096:8192]) {
			t.Error("the old write was executed after the newer one")
		}
	})
}

// Another namespace where ours was, or one that does not say which it is: nothing is written to it.
func TestReplaced(t *testing.T) {
	t.Parallel()
	for _, change := range []func(*nvmetcptest.Target){(*nvmetcptest.Target).Replace, (*nvmetcptest.Target).Forget} {
		target := nvmetcptest.New(t, nvmetcptest.Options{InCapsule: 8 << 10})
		o := options(target)
		o.KATO = time.Second
		s := connect(t, o)
		c := newWorkbench(t).open(t, s)
		c.awaitUp()
		target.Restart(func() { change(target) })
		c.await("it is noticed", func() bool { return errors.Is(s.State().Why, ErrReplaced) || len(c.kept) > 1 })
		c.await("the lane is down", func() bool { return !c.up && len(c.downs) == 1 })
	}
}

func TestGivesUp(t *testing.T) {
	t.Parallel()
	target := nvmetcptest.New(t, nvmetcptest.Options{InCapsule: 8 << 10})
	o := options(target)
	o.CtrlLossTimeout = 200 * time.Millisecond
	s := connect(t, o)
	var why error
	target.Restart(func() {
		deadline := time.Now().Add(patience)
		for time.Now().Before(deadline) {
			if why = s.State().Why; why != nil && strings.Contains(why.Error(), "given up after 200ms") {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Errorf("why %v", why)
	})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := s.Refresh(ctx); err != nil { // somebody wants it after all
		t.Error(err)
	}
}

func TestCloseWhileAway(t *testing.T) {
	target := nvmetcptest.New(t, nvmetcptest.Options{InCapsule: 8 << 10})
	o := options(target)
	o.KATO = time.Hour
	s := connect(t, o)
	c := newWorkbench(t).open(t, s)
	c.awaitUp()
	target.Close()
	c.await("the lane is down", func() bool { return !c.up })
	c.close()
	began := time.Now()
	s.Close()
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("closing took %v", d)
	}
	if _, err := s.Refresh(context.Background()); !errors.Is(err, ErrClosed) {
		t.Errorf("refresh: %v", err)
	}
}

// A store is closed while its controller leaves a lane's new connection without an answer.
func TestCloseWhileConnecting(t *testing.T) {
	t.Parallel()
	target := nvmetcptest.New(t, nvmetcptest.Options{})
	o := options(target)
	o.KATO = time.Hour
	s := connect(t, o)
	target.Pause()
	c := newWorkbench(t).open(t, s)
	c.await("the lane connects", func() bool { return target.Connections() == 2 })
	c.close()
	began := time.Now()
	s.Close()
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("closing took %v", d)
	}
}

// A lane that is not up to begin with says so, once, whatever the reason; it is up when there is none any more.
func TestNeverUp(t *testing.T) {
	t.Parallel()
	for name, without := range map[string]func(target *nvmetcptest.Target, s *Store, while func()){
		"no target": func(target *nvmetcptest.Target, _ *Store, while func()) { target.Restart(while) },
		"no access": func(target *nvmetcptest.Target, s *Store, while func()) {
			target.SetAccess(3)
			for end := time.Now().Add(patience); s.State().Up && time.Now().Before(end); time.Sleep(time.Millisecond) {
			}
			while()
			target.SetAccess(1)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			target := nvmetcptest.New(t, nvmetcptest.Options{InCapsule: 8 << 10, ANA: true})
			s := connect(t, options(target))
			var c *client
			without(target, s, func() {
				c = newWorkbench(t).open(t, s)
				c.await("the lane says why it is not up", func() bool { return len(c.downs) > 0 })
			})
			c.awaitUp()
			if len(c.downs) != 1 || len(c.kept) != 1 {
				t.Errorf("down %v, up %v", c.downs, c.kept)
			}
			c.must(c.job(blk.OpWrite, 0, 4096, 0))
		})
	}
}

// A namespace that this controller does not reach for a while.
func TestAccess(t *testing.T) {
	target := nvmetcptest.New(t, nvmetcptest.Options{InCapsule: 8 << 10, ANA: true})
	s := connect(t, options(target))
	c := newWorkbench(t).open(t, s)
	c.awaitUp()
	c.must(c.job(blk.OpWrite, 0, 4096, 0))
	target.SetAccess(3)
	c.await("the lane is down", func() bool { return !c.up })
	if !strings.Contains(c.downs[0].Error(), "ANA state inaccessible") {
		t.Errorf("why %v", c.downs[0])
	}
	target.SetAccess(2)
	c.await("the lane is up again", func() bool { return c.up && len(c.kept) == 2 })
	c.must(c.job(blk.OpWrite, 0, 4096, 0))
	if s.State().Reconnects != 0 {
		t.Error("it has reconnected for that")
	}
}

// What the controller says may be tried again is; what it says not is not.
func TestRetries(t *testing.T) {
	t.Parallel()
	target := nvmetcptest.New(t, nvmetcptest.Options{InCapsule: 8 << 10, CRDT: 2})
	s := connect(t, options(target))
	c := newWorkbench(t).open(t, s)
	c.awaitUp()
	for _, k := range []struct {
		name   string
		status uint16
		times  int
		want   blk.Outcome
		asked  uint64
	}{
		{"not ready, twice", 0x082, 2, blk.OK, 3},
		{"not ready, with a delay", 0x082 | 1<<11, 2, blk.OK, 3},
		{"not ready, for ever", 0x082 | 1<<11, 1000, blk.Failed, maxTries},
		{"not ready, do not retry", 0x082 | 1<<14, 1, blk.Failed, 1},
		{"media error, do not retry", 0x281 | 1<<14, 1, blk.Failed, 1},
		{"write protected", 0x020, 1, blk.Failed, 1},
		{"invalid opcode", 0x001, 1, blk.Unsupported, 1},
		{"inaccessible for a moment", 0x302, 1, blk.OK, 2},
	} {
		left := k.times
		target.Intercept(func(q *nvmetcptest.Queue, e []byte) bool {
			if e[0] != 0x02 || left == 0 {
				return false
			}
			left--
			q.Raw(q.Response(le.Uint16(e[2:]), 0, k.status))
			return true
		})
		before := target.Commands[0x02].Load()
		o := c.run(c.job(blk.OpRead, 0, 4096, 0))
		if asked := target.Commands[0x02].Load() - before; o != k.want || asked != k.asked {
			t.Errorf("%s: outcome %d after %d commands, want %d after %d", k.name, o, asked, k.want, k.asked)
		}
	}
}

// A command that does not end is aborted, and when that does not help either, the association is given up.
func TestTimeout(t *testing.T) {
	t.Parallel()
	target := nvmetcptest.New(t, nvmetcptest.Options{InCapsule: 8 << 10})
	o := options(target)
	o.CommandTimeout = 200 * time.Millisecond
	s := connect(t, o)
	c := newWorkbench(t).open(t, s)
	c.awaitUp()
	target.Hold(only(0x02))
	j := c.job(blk.OpRead, 0, 4096, 0)
	c.submit(j)
	if got := c.end(j); got != blk.Lost {
		t.Errorf("outcome %d, want Lost", got)
	}
	if target.Admin[0x08].Load() == 0 {
		t.Error("nobody asked for an abort")
	}
	target.Release()
	c.await("the lane is up again", func() bool { return len(c.kept) == 2 })
	if !strings.Contains(c.downs[0].Error(), "nor was its abort") {
		t.Errorf("why %v", c.downs[0])
	}
	c.must(j)
}

// A worker that finds a command late by hours, since it has stood still itself, asks for its abort first, and waits for what comes of that.
func TestTimeoutOfWorker(t *testing.T) {
	r, limits := newRig(t, false), rigLimits()
	limits.timeout = time.Minute
	r.attach(r.Pair(false), limits)
	l := r.lane
	q := &blk.Request{Op: blk.OpRead, Length: 512, Buffers: [][]byte{r.memory[:512]}, Handler: r}
	if !l.Submit(q) {
		t.Fatal("refused")
	}
	r.read(make([]byte, commandLength))
	i := slices.IndexFunc(l.commands, func(c command) bool { return c.begun })
	c := &l.commands[i]
	c.since -= int64(time.Hour)
	for range 2 {
		if l.findLate(); !l.connected() || len(l.association.aborts) != 1 {
			t.Fatalf("%d aborts were asked for; %v", len(l.association.aborts), r.why)
		}
	}
	c.late -= int64(time.Hour)
	if l.findLate(); l.connected() {
		t.Error("a command that ends in no way is waited for")
	}
}
