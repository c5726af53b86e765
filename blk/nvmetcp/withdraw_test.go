package nvmetcp

import (
	"bytes"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/blk/nvmetcp/nvmetcptest"
)

// soon is what Withdraw promises, and what a busy machine adds.
const soon = 50*time.Millisecond + time.Second

func withdrawn(t *testing.T, c *client, j *job) {
	t.Helper()
	var began time.Time
	c.bench.worker.Do(func() {
		began = time.Now()
		c.lane.Withdraw(&j.Request)
	})
	if o := c.end(j); o != blk.Withdrawn {
		t.Errorf("outcome %d, want Withdrawn", o)
	}
	if d := j.at.Sub(began); d > soon {
		t.Errorf("withdrawn after %v", d)
	}
}

// A read that the target has is taken back: its data, when it comes, goes nowhere, and the lane stays up.
func TestWithdrawRead(t *testing.T) {
	target := nvmetcptest.New(t, nvmetcptest.Options{InCapsule: 8 << 10})
	s := connect(t, options(target))
	c := newWorkbench(t).open(t, s)
	c.awaitUp()
	target.Do(func() { fillRandom(target.Disk()[:1<<20], 9) })
	for _, size := range []uint64{4096, 128 << 10} {
		target.Hold(only(0x02))
		j := c.job(blk.OpRead, 0, size, 0)
		c.submit(j)
		c.await("the read is held", func() bool { return target.Held() == 1 })
		withdrawn(t, c, j)
		clear(c.memory[:size])
		target.Release()
		c.must(c.job(blk.OpRead, 0, size, 1<<20)) // comes behind the data of the first
		if !bytes.Equal(c.memory[:size], make([]byte, size)) {
			t.Errorf("data of a read of %d bytes arrived after it was given back", size)
		}
	}
	if len(c.downs) != 0 {
		t.Errorf("the lane went down: %v", c.downs)
	}
}

// A read is taken back while its data comes, directly into the guest's memory.
func TestWithdrawReadUnderWay(t *testing.T) {
	target := nvmetcptest.New(t, nvmetcptest.Options{InCapsule: 8 << 10})
	s := connect(t, options(target))
	c := newWorkbench(t).open(t, s)
	c.awaitUp()
	const size = 256 << 10
	data := make([]byte, size)
	fillRandom(data, 4)
	var rest func()
	halfway := make(chan bool, 1)
	target.Intercept(func(q *nvmetcptest.Queue, e []byte) bool {
		if e[0] != 0x02 || rest != nil {
			return false
		}
		pdu := q.Data(le.Uint16(e[2:]), 0, data, flagLast|flagSuccess)
		q.Raw(pdu[:size/2])
		rest = func() { q.Raw(pdu[size/2:]) }
		halfway <- true
		return true
	})
	j := c.job(blk.OpRead, 0, size, 0, 5000, 60000)
	c.submit(j)
	<-halfway
	c.await("the first half is there", func() bool { return bytes.Equal(c.memory[:size/2-24], data[:size/2-24]) })
	withdrawn(t, c, j)
	clear(c.memory[:size])
	rest()
	c.must(c.job(blk.OpRead, 0, 4096, 1<<20))
	if !bytes.Equal(c.memory[:size], make([]byte, size)) {
		t.Error("data arrived after the read was given back")
	}
	if len(c.downs) != 0 {
		t.Errorf("the lane went down: %v", c.downs)
	}
}

// A write that the target has is taken back: it must not be executed any more once newer ones may be.
func TestWithdrawWrite(t *testing.T) {
	for _, inCapsule := range []int{8 << 10, 0} {
		target := nvmetcptest.New(t, nvmetcptest.Options{InCapsule: inCapsule})
		o := options(target)
		o.KATO = time.Minute
		s := connect(t, o)
		c := newWorkbench(t).open(t, s)
		c.awaitUp()
		fillRandom(c.memory[:8192], 4)
		target.Hold(only(0x01))
		j := c.job(blk.OpWrite, 0, 4096, 0)
		bystander := c.job(blk.OpRead, 0, 4096, 1<<20)
		c.submit(j)
		c.await("the write is held", func() bool { return target.Held() == 1 })
		target.Hold(only(0x01, 0x02))
		c.submit(bystander)
		c.await("the read is held", func() bool { return target.Held() == 2 })
		withdrawn(t, c, j)
		if o := c.end(bystander); o != blk.Lost {
			t.Errorf("outcome of the bystander %d, want Lost", o)
		}
		c.await("the lane is up again", func() bool { return len(c.kept) == 2 })
		target.Release()
		target.Do(func() {
			if !bytes.Equal(target.Disk()[:4096], make([]byte, 4096)) {
				t.Error("the write was executed after it was taken back")
			}
		})
		c.must(c.job(blk.OpWrite, 0, 4096, 4096))
		if !c.kept[1] {
			t.Error("kept: false")
		}
	}
}

// Linux' target is disabled (CC.EN = 0) and goes on with what its queues had. It hangs up when that has been executed, so that is waited for, but not for ever.
func TestWithdrawWriteLingers(t *testing.T) {
	t.Parallel()
	for _, never := range []bool{false, true} {
		target := nvmetcptest.New(t, nvmetcptest.Options{InCapsule: 8 << 10, Lingers: true})
		o := options(target)
		o.KATO = time.Minute
		if never {
			o.KATO, o.CommandTimeout = time.Second, 10*time.Millisecond
		}
		s := connect(t, o)
		c := newWorkbench(t).open(t, s)
		c.awaitUp()
		fillRandom(c.memory[:8192], 4)
		target.Hold(only(0x01))
		j := c.job(blk.OpWrite, 0, 4096, 0)
		c.submit(j)
		c.await("the write is held", func() bool { return target.Held() == 1 })
		target.Hold(nil)
		withdrawn(t, c, j)
		if !never {
			time.AfterFunc(200*time.Millisecond, target.Release)
		}
		c.await("the lane is up again", func() bool { return len(c.kept) == 2 })
		if n := target.Held(); n != 0 && !never {
			t.Error("the lane is up while an older write may still be executed")
		}
		c.must(c.job(blk.OpWrite, 0, 4096, 4096))
		target.Do(func() {
			if !bytes.Equal(target.Disk()[:4096], c.memory[4096:8192]) {
				t.Error("the newer write is not there")
			}
		})
	}
}

// The target takes no bytes any more, in the midst of a write; that is taken back all the same.
func TestWithdrawWriteStuck(t *testing.T) {
	target := nvmetcptest.New(t, nvmetcptest.Options{MaxH2CData: 4 << 20})
	o := options(target)
	o.KATO = 2 * time.Second
	s := connect(t, o)
	c := newWorkbench(t).open(t, s)
	c.awaitUp()
	target.Hold(only(0x01))
	var jobs []*job
	for i := range 6 { // more than the sockets' buffers hold
		j := c.job(blk.OpWrite, uint64(i)<<20, 1<<20, i<<20)
		c.submit(j)
		jobs = append(jobs, j)
	}
	c.await("the writes are held", func() bool { return target.Held() == len(jobs) })
	target.Pause()
	target.Release() // asks for all the data, and takes none
	lane := c.lane.(*lane)
	c.await("the socket takes no more", func() bool {
		stuck := false
		c.bench.worker.Do(func() { stuck = lane.send.Busy() && len(lane.wire) > 0 && lane.out.Len() > 0 && lane.line.n < 6 })
		return stuck
	})
	c.bench.worker.Do(func() {
		for _, j := range jobs {
			c.lane.Withdraw(&j.Request)
		}
	})
	began := time.Now()
	for _, j := range jobs {
		if o := c.end(j); o != blk.Withdrawn {
			t.Errorf("outcome %d, want Withdrawn", o)
		}
	}
	if d := time.Since(began); d > soon {
		t.Errorf("withdrawn after %v", d)
	}
	target.Resume()
	c.await("the lane is up again", func() bool { return len(c.kept) == 2 })
}
