package driver

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk/driver/drivertest"
)

// TestLoad: each kind of load is answered, and what it takes to make one is not allocated by the request.
func TestLoad(t *testing.T) {
	s := daemon(t, drivertest.Options{})
	for _, o := range []LoadOptions{{}, {Depth: 32}, {Op: Out, Depth: 32, Sequential: true}, {Bytes: 128 << 10, Depth: 32, Poll: true}} {
		t.Run(fmt.Sprintf("%v %d %d", o.Op, o.Bytes, o.Depth), func(t *testing.T) {
			o.Disk = dial(t, s.Socket, Options{EventIdx: true, Indirect: true, Clock: true})
			l, err := NewLoad(o)
			must(t, err)
			var stop atomic.Bool
			for d := 50 * time.Millisecond; ; d *= 2 { // until the machine has time for some, and allocates nothing else
				var r *LoadResult
				n := testing.AllocsPerRun(1, func() {
					r, err = l.Run(&stop, d)
					must(t, err)
				})
				if r.Latency.Count() != r.Requests {
					t.Errorf("%d requests, %d latencies", r.Requests, r.Latency.Count())
				}
				if r.Requests >= 8 && n <= 8 {
					break
				}
				if t.Logf("%d requests in %v, %v allocations in all", r.Requests, r.Elapsed, n); d > time.Second {
					t.Error("so few, or so many")
					break
				}
			}
			must(t, o.Disk.Close())
		})
	}
}
