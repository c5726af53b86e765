package nvmetcp

import (
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/blk/nvmetcp/nvmetcptest"
	"github.com/shuntio/shunt/tools/need"
)

// holdings are what a process has of what reconnects could leave behind.
type holdings struct{ files, goroutines int }

func hold(t *testing.T) holdings {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return holdings{len(files), runtime.NumGoroutine()}
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

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
	before, memory := hold(t), heap()
	reconnect(times)
	c.await("nothing is left of old connections", func() bool {
		now := hold(t)
		return now.files <= before.files && now.goroutines <= before.goroutines
	})
	t.Logf("%d reconnects: %+v, then %+v; heap %d, then %d bytes", times, before, hold(t), memory, heap())
	if now := heap(); now > memory+memory/4+256<<10 {
		t.Errorf("%d bytes of heap, %d before %d reconnects", now, memory, times)
	}
}
