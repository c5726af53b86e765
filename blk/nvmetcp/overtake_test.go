package nvmetcp

import (
	"bytes"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/blk/nvmetcp/nvmetcptest"
)

// A write is taken back on one queue, and may still be carried out. The guest hears of that before another worker hears that the association ends: what it asks for over that one's queue then
// is not done before the controller is disabled.
func TestOvertaking(t *testing.T) {
	target := nvmetcptest.New(t, nvmetcptest.Options{InCapsule: 8 << 10})
	o := options(target)
	o.KATO = time.Minute
	s := connect(t, o)
	one, other := newWorkbench(t).open(t, s), newWorkbench(t).open(t, s)
	one.awaitUp()
	other.awaitUp()
	fillRandom(one.memory[:4096], 1)
	fillRandom(other.memory[:4096], 2)
	old, newer := one.job(blk.OpWrite, 0, 4096, 0), other.job(blk.OpWrite, 0, 4096, 0)
	target.Hold(only(0x01))
	one.submit(old)
	one.await("the write is held", func() bool { return target.Held() == 1 })
	target.Hold(nil)

	s.mu.Lock() // the store has no CPU
	withdrawn(t, one, old)
	taken := false
	other.bench.worker.Do(func() { taken = other.lane.Submit(&newer.Request) })
	if taken {
		t.Errorf("the other queue has taken a newer write: outcome %d", other.end(newer))
		target.Release()
		target.Do(func() {
			if bytes.Equal(target.Disk()[:4096], one.memory[:4096]) {
				t.Error("the old write was carried out after it")
			}
		})
	}
	s.mu.Unlock()

	for _, c := range []*client{one, other} {
		c.await("its lane is up again", func() bool { return len(c.kept) == 2 })
	}
	other.must(newer)
	target.Release()
	target.Do(func() {
		if !bytes.Equal(target.Disk()[:4096], other.memory[:4096]) {
			t.Error("the newer write is not there")
		}
	})
}

// The same, and that queue is closed before the manager has come to it: its write is waited for all the same, and its socket goes.
func TestOvertakingClosed(t *testing.T) {
	target := nvmetcptest.New(t, nvmetcptest.Options{InCapsule: 8 << 10, Lingers: true})
	o := options(target)
	o.KATO = time.Minute
	s := connect(t, o)
	one, other := newWorkbench(t).open(t, s), newWorkbench(t).open(t, s)
	one.awaitUp()
	other.awaitUp()
	old := one.job(blk.OpWrite, 0, 4096, 0)
	target.Hold(only(0x01))
	one.submit(old)
	one.await("the write is held", func() bool { return target.Held() == 1 })
	target.Hold(nil)

	s.mu.Lock()
	withdrawn(t, one, old)
	l, closed := one.lane.(*lane), make(chan struct{})
	go func() {
		defer close(closed)
		one.close()
	}()
	time.Sleep(10 * time.Millisecond) // so that it is before the manager's next steps, most of the time
	s.mu.Unlock()
	<-closed
	if l.fd >= 0 {
		t.Error("its socket is left open")
	}
	time.AfterFunc(200*time.Millisecond, target.Release)
	other.await("the other lane is up again", func() bool { return len(other.kept) == 2 })
	if target.Held() != 0 {
		t.Error("the other lane is up while an older write may still be executed")
	}
}
