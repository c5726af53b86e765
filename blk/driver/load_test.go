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
			var r *LoadResult
			n := testing.AllocsPerRun(1, func() {
				r, err = l.Run(&stop, 50*time.Millisecond)
				must(t, err)
			})
			if r.Requests < 8 || r.Latency.Count() != r.Requests || n > 8 {
				t.Errorf("%d requests, %d latencies, %v allocations in all", r.Requests, r.Latency.Count(), n)
			}
			must(t, o.Disk.Close())
		})
	}
}
