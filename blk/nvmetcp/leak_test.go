package nvmetcp

import (
	"testing"
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/blk/blktest"
	"github.com/shuntio/shunt/blk/nvmetcp/nvmetcptest"
	"github.com/shuntio/shunt/tools/need"
)

// TestReconnectsLeaveNothing breaks connections again and again.
func TestReconnectsLeaveNothing(t *testing.T) {
	times := 50
	if need.Soak() {
		times = 1000
	}
	target := nvmetcptest.New(t, nvmetcptest.Options{InCapsule: 8 << 10})
	o := options(target)
	o.KATO = time.Minute
	s := connect(t, o)
	c := newWorkbench(t).open(t, s)
	reconnect := func(n int) {
		t.Helper()
		for range n {
			ups := 0
			c.await("the lane is up", func() bool { ups = len(c.kept); return c.up })
			c.must(c.job(blk.OpRead, 0, 4096, 0))
			target.Break(false)
			c.await("the lane is up again", func() bool { return len(c.kept) > ups })
		}
		c.must(c.job(blk.OpRead, 0, 4096, 0))
	}
	reconnect(10)
	before := blktest.Hold(t)
	reconnect(times)
	var now blktest.Holdings
	c.await("nothing is left of old connections", func() bool { now = blktest.Hold(t); return now.Back(before) })
	t.Logf("%d reconnects: %+v, then %+v", times, before, now)
}
