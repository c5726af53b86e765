package blk_test

import (
	"math"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/blk/blktest"
)

// load keeps so many requests under way at each gate, and counts them.
func (r *rig) load(depth, length int, done []int) {
	for g := range r.gates {
		for range depth {
			a := &ask{Request: blk.Request{Op: blk.OpRead, Length: uint64(length), Buffers: [][]byte{make([]byte, length)}}}
			a.then = func(a *ask) {
				if a.o == blk.OK {
					done[g]++
					a.done = 0
					r.send(g, a)
				}
			}
			r.send(g, a)
		}
	}
}

// A limit holds its rate within 5 %, beside its burst, and gates get the same share of it, whatever workers they are on.
func TestLimits(t *testing.T) {
	for name, c := range map[string]struct {
		own, group blk.LimitOptions
		length     int
		rate       float64 // of requests
		burst      float64
	}{
		"requests":          {own: blk.LimitOptions{IOPS: 500}, length: 512, rate: 500, burst: 50},
		"bytes":             {own: blk.LimitOptions{BPS: 4096 * 300}, length: 4096, rate: 300, burst: 30},
		"more than burst":   {own: blk.LimitOptions{BPS: 4096 * 100, Burst: time.Millisecond}, length: 16384, rate: 25, burst: 1},
		"group":             {group: blk.LimitOptions{IOPS: 400, Burst: 10 * time.Millisecond}, length: 512, rate: 400, burst: 4},
		"both, own tight":   {own: blk.LimitOptions{IOPS: 200}, group: blk.LimitOptions{IOPS: 1000}, length: 512, rate: 200, burst: 20},
		"both, bytes tight": {own: blk.LimitOptions{IOPS: 1000}, group: blk.LimitOptions{BPS: 4096 * 100}, length: 4096, rate: 100, burst: 10},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 4, blktest.Options{}, blk.Policy{Limits: c.own, Group: blk.NewLimit(c.group)})
			done := make([]int, 4)
			r.load(8, c.length, done)
			const seconds = 10
			for range seconds * 4 {
				r.pass(time.Second / 4)
			}
			all := 0
			for _, n := range done {
				all += n
			}
			if want := c.rate*seconds + c.burst; math.Abs(float64(all)-want) > want/20 {
				t.Errorf("%d requests in %d seconds, want %.0f", all, seconds, want)
			}
			for _, n := range done {
				if math.Abs(float64(n-all/4)) > float64(all)/40+2 {
					t.Errorf("gates had %d requests", done)
				}
			}
			if s := r.volume.Stats(); s.Limited == 0 || s.Waiting != 32 {
				t.Errorf("%d were limited, %d wait", s.Limited, s.Waiting)
			}
		})
	}
}

// While requests wait for their turn nothing happens but a timer a turn.
func TestLimitCostsNothing(t *testing.T) {
	r := newRig(t, 1, blktest.Options{}, blk.Policy{Limits: blk.LimitOptions{IOPS: 2, Burst: time.Millisecond}})
	r.load(16, 512, make([]int, 1))
	r.rounds(4)
	expired := 0
	for range 10 {
		at, ok := r.watch.next()
		if !ok || at-r.watch.now < int64(400*time.Millisecond) {
			t.Fatalf("the next turn is in %v", time.Duration(at-r.watch.now))
		}
		r.watch.now = at
		r.watch.expire()
		expired++
		r.rounds(4)
		if n := r.workers[0].Round(); n != 0 {
			t.Fatalf("there is work while everything waits: %d", n)
		}
	}
	if s := r.volume.Stats(); s.Ops[blk.OpRead].Done != uint64(expired)+1 {
		t.Errorf("%d requests in %d turns", s.Ops[blk.OpRead].Done, expired)
	}
}

// A limit is replaced under load: what waits goes by the new one at once.
func TestLimitIsReplaced(t *testing.T) {
	r := newRig(t, 2, blktest.Options{}, blk.Policy{Limits: blk.LimitOptions{IOPS: 1, Burst: time.Millisecond}})
	done := make([]int, 2)
	r.load(4, 512, done)
	r.pass(time.Second)
	if done[0]+done[1] > 3 {
		t.Fatalf("%d requests at one a second", done)
	}
	r.volume.SetPolicy(blk.Policy{Limits: blk.LimitOptions{IOPS: 1000}})
	before := done[0] + done[1]
	r.pass(time.Second)
	if n := done[0] + done[1] - before; n < 1000 || n > 1150 {
		t.Errorf("%d requests in a second at 1000", n)
	}
	r.volume.SetPolicy(blk.Policy{})
	before = done[0] + done[1]
	r.rounds(100)
	if n := done[0] + done[1] - before; n < 700 {
		t.Errorf("%d requests in 100 rounds without a limit", n)
	}
	r.volume.SetPolicy(blk.Policy{Limits: blk.LimitOptions{IOPS: 10}})
	before = done[0] + done[1]
	r.pass(time.Second)
	if n := done[0] + done[1] - before; n > 20 {
		t.Errorf("%d requests in a second at 10", n)
	}
}

// Where something else than the limits is changed, turns stay whose they are: what waits is not put off each time.
func TestLimitStays(t *testing.T) {
	p := blk.Policy{Limits: blk.LimitOptions{IOPS: 10, Burst: time.Millisecond}}
	r := newRig(t, 1, blktest.Options{}, p)
	done := make([]int, 1)
	r.load(4, 512, done)
	for i := range 40 {
		p.Timeout = time.Duration(1+i) * time.Minute
		r.volume.SetPolicy(p)
		r.pass(50 * time.Millisecond)
	}
	if done[0] < 19 || done[0] > 22 {
		t.Errorf("%d requests in two seconds at 10 a second", done[0])
	}
}

// A timeout counts from when the limits let a request go: a guest that asks for more than it may have gets no errors.
func TestLimitIsNoTimeout(t *testing.T) {
	r := newRig(t, 1, blktest.Options{}, blk.Policy{Timeout: 100 * time.Millisecond, Limits: blk.LimitOptions{IOPS: 10, Burst: time.Millisecond}})
	var asks []*ask
	for range 30 {
		asks = append(asks, r.submit(0, blk.OpRead, 0, sectors(1, 0)))
	}
	r.pass(4 * time.Second)
	for _, a := range asks {
		r.ended(a, blk.OK)
	}
}
