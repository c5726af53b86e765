package blk_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/blk/blktest"
	"github.com/shuntio/shunt/dataplane"
)

// longRound is a source that holds its worker within a round, once.
type longRound struct {
	wanted       atomic.Bool
	began, ended chan struct{}
}

func (s *longRound) Poll() int {
	if !s.wanted.CompareAndSwap(true, false) {
		return 0
	}
	close(s.began)
	<-s.ended
	return 1
}

func (s *longRound) Flush()             {}
func (s *longRound) Arm() time.Duration { return dataplane.Forever }
func (s *longRound) Pending() bool      { return s.wanted.Load() }
func (s *longRound) Disarm()            {}

// A driver that has chosen write-through flushes nothing any more: when it is told that this is so, no write is taken any more by the old choice, as in a round
// that began before.
func TestWriteThroughHoldsAtOnce(t *testing.T) {
	v, _ := openVolume(t, blktest.Options{Size: 1 << 20}, blk.VolumeOptions{})
	hosts := blktest.Run(t, 2)
	d, err := blk.NewDevice(blk.DeviceOptions{Volume: v, Queues: hosts})
	check(t, err)
	d.Start()
	d.Offer()
	s := &longRound{began: make(chan struct{}), ended: make(chan struct{})}
	w := hosts[1].Worker
	w.Do(func() { w.Add(s); s.wanted.Store(true) })
	<-s.began
	told := make(chan error)
	go func() { told <- d.WriteConfig(32, []byte{0}, false) }()
	select {
	case err := <-told:
		t.Errorf("the driver was told while a round was under way that has the old choice: %v", err)
		close(s.ended)
	case <-time.After(50 * time.Millisecond):
		close(s.ended)
		check(t, <-told)
	}
	if !d.State().WriteThrough {
		t.Error("it is not write-through")
	}
	w.Do(func() { w.Remove(s) })
	check(t, d.Close())
	check(t, v.Close())
}
