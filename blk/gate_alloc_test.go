package blk_test

import (
	"testing"
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/blk/blktest"
)

// Nothing is allocated for a request, whichever way it takes.
func TestGateAllocatesNothing(t *testing.T) {
	for name, c := range map[string]struct {
		store  blktest.Options
		policy blk.Policy
		lose   bool
	}{
		"straight":  {},
		"timeout":   {policy: blk.Policy{Timeout: time.Second}},
		"limited":   {policy: blk.Policy{Limits: blk.LimitOptions{IOPS: 10_000, BPS: 1 << 20, Burst: time.Millisecond}}},
		"full lane": {store: blktest.Options{Depth: 3}},
		"fua":       {policy: blk.Policy{Durability: blk.DurabilityFUA}},
		"no fua":    {store: blktest.Options{NoFUA: true}, policy: blk.Policy{Durability: blk.DurabilityFUA}},
		"lost":      {lose: true},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 1, c.store, c.policy)
			var asks []*ask
			for i := range 32 {
				a := &ask{Request: blk.Request{Op: blk.Op(i % 2), Length: 512, Buffers: [][]byte{make([]byte, 512)}}}
				if i%8 == 0 {
					a.Request = blk.Request{Op: blk.OpFlush}
				}
				asks = append(asks, a)
			}
			once := func() {
				for _, a := range asks {
					a.done, a.FUA = 0, false
					r.send(0, a)
				}
				if r.rounds(1); c.lose {
					r.gates[0].Withdraw()
				}
				for range 1000 {
					r.pass(time.Millisecond)
					if r.gates[0].Busy() == 0 {
						return
					}
				}
				t.Error("requests are not done after a second")
			}
			once()
			if n := testing.AllocsPerRun(20, once); n != 0 {
				t.Errorf("%v allocations for %d requests", n, len(asks))
			}
		})
	}
}

func BenchmarkGate(b *testing.B) {
	for name, p := range map[string]blk.Policy{"bare": {}, "timeout": {Timeout: time.Minute}, "limited": {Limits: blk.LimitOptions{IOPS: 1 << 40}}} {
		b.Run(name, func(b *testing.B) {
			r := newRig(b, 1, blktest.Options{Null: true}, p)
			var asks [32]*ask
			for i := range asks {
				asks[i] = &ask{rig: r, Request: blk.Request{Op: blk.OpRead, Length: 512}}
			}
			for n := 0; n < b.N; n += len(asks) {
				for _, a := range asks {
					a.Handler = a
					r.gates[0].Submit(&a.Request)
				}
				r.gates[0].Flush()
				r.workers[0].Round()
			}
		})
	}
}
