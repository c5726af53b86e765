package blk_test

import (
	"bytes"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/blk/blktest"
)

var errCable = errors.New("somebody pulled the cable")

func TestGatePasses(t *testing.T) {
	r := newRig(t, 1, blktest.Options{}, blk.Policy{})
	w := r.submit(0, blk.OpWrite, 1024, sectors(2, 7))
	r.rounds(2)
	r.ended(w, blk.OK)
	into := sectors(2, 0)
	read := r.submit(0, blk.OpRead, 1024, into)
	r.rounds(2)
	if r.ended(read, blk.OK); !bytes.Equal(into, sectors(2, 7)) {
		t.Error("what was written is not read")
	}
	r.store.Fail(blk.OpWrite, 1, blk.Failed)
	good, bad := r.submit(0, blk.OpWrite, 0, sectors(1, 1)), r.submit(0, blk.OpWrite, 512, sectors(1, 1))
	r.rounds(2)
	r.ended(good, blk.OK)
	r.ended(bad, blk.Failed)
	s := r.volume.Stats()
	if w := s.Ops[blk.OpWrite]; w.Done != 2 || w.Failed != 1 || w.Bytes != 1536 || w.Total.Count() != 3 || w.Store.Count() != 3 {
		t.Errorf("counted %d, %d, %d bytes", w.Done, w.Failed, w.Bytes)
	}
}

// What is lost on the way is submitted again, by age, as is what came meanwhile.
func TestGateWaits(t *testing.T) {
	for _, kept := range []bool{true, false} {
		r := newRig(t, 2, blktest.Options{Delay: time.Millisecond, Depth: 4}, blk.Policy{})
		var asks []*ask
		var order []uint64 // of gate 0, in sectors
		for i := range 10 {
			asks = append(asks, r.submit(0, blk.OpWrite, i*512, sectors(1, byte(i+1))))
		}
		r.store.Break(errCable)
		for i := range 10 {
			asks = append(asks, r.submit(i%2, blk.OpWrite, (10+i)*512, sectors(1, byte(i+11))))
		}
		for i, a := range asks {
			if i < 10 || i%2 == 0 {
				a.then = func(a *ask) { order = append(order, a.Offset) }
			}
		}
		r.pass(time.Minute)
		for _, a := range asks {
			r.open(a)
		}
		if s := r.volume.Stats(); s.Waiting != 20 || s.InFlight != 0 || s.Disconnects != 2 {
			t.Errorf("%d wait, %d are under way, %d lanes went away", s.Waiting, s.InFlight, s.Disconnects)
		}
		r.store.Restore(kept)
		r.pass(10 * time.Millisecond)
		for i, a := range asks {
			if r.ended(a, blk.OK); !bytes.Equal(r.store.Content(i*512, 512), sectors(1, byte(i+1))) {
				t.Errorf("write %d is not there", i)
			}
		}
		if !slices.IsSorted(order) || len(order) != 15 {
			t.Errorf("requests of one gate were submitted again in the order %d", order)
		}
		if s := r.volume.Stats(); s.Retries != 4 || s.Reconnects != 2 || s.Losses != 0 {
			t.Errorf("%d retries, %d reconnects, %d losses", s.Retries, s.Reconnects, s.Losses)
		}
	}
}

// After the timeout requests fail, wherever they are. One that the store has is called back.
func TestGateTimeout(t *testing.T) {
	for _, on := range []blk.OnError{blk.Wait, blk.Fail} {
		r := newRig(t, 1, blktest.Options{Depth: 1}, blk.Policy{OnError: on, Timeout: time.Second})
		r.store.Silence(true)
		has, full := r.submit(0, blk.OpWrite, 0, sectors(1, 1)), r.submit(0, blk.OpRead, 0, sectors(1, 0))
		r.pass(900 * time.Millisecond)
		late := r.submit(0, blk.OpFlush, 0, nil)
		r.open(has)
		r.open(full)
		r.pass(101 * time.Millisecond)
		r.ended(has, blk.Failed)
		r.ended(full, blk.Failed)
		r.open(late)
		r.store.Break(errCable)
		r.open(late)
		r.pass(time.Second)
		r.ended(late, blk.Failed)
		if s := r.volume.Stats(); s.Timeouts != 3 {
			t.Errorf("%d timeouts", s.Timeouts)
		}
	}
}

// With on-error: fail and no timeout nothing waits for a store that has gone; but for one that is not there yet.
func TestGateFails(t *testing.T) {
	r := newRig(t, 1, blktest.Options{Away: true, Depth: 2}, blk.Policy{OnError: blk.Fail})
	early := r.submit(0, blk.OpRead, 0, sectors(1, 0))
	r.pass(time.Minute)
	r.open(early)
	r.store.Restore(true)
	r.rounds(2)
	r.ended(early, blk.OK)
	var asks []*ask
	for range 4 {
		asks = append(asks, r.submit(0, blk.OpRead, 0, sectors(1, 0)))
	}
	r.store.Break(errCable)
	for _, a := range asks {
		r.ended(a, blk.Failed)
	}
	a := r.submit(0, blk.OpRead, 0, sectors(1, 0))
	r.rounds(1)
	r.ended(a, blk.Failed)
	r.store.Restore(true)
	a = r.submit(0, blk.OpRead, 0, sectors(1, 0))
	r.rounds(2)
	r.ended(a, blk.OK)
}

func TestGateWithdraws(t *testing.T) {
	r := newRig(t, 1, blktest.Options{Depth: 2, NoFUA: true}, blk.Policy{Durability: blk.DurabilityFUA, Limits: blk.LimitOptions{IOPS: 10, Burst: time.Second}})
	written := r.submit(0, blk.OpWrite, 0, sectors(1, 1))
	r.workers[0].Round() // it is written, and waits for its flush
	r.store.Silence(true)
	asks := []*ask{written}
	for range 20 {
		asks = append(asks, r.submit(0, blk.OpRead, 0, sectors(1, 0)))
	}
	r.rounds(1)
	for _, a := range asks {
		r.open(a)
	}
	r.gates[0].Withdraw()
	r.rounds(2)
	for _, a := range asks {
		r.ended(a, blk.Withdrawn)
	}
	if n := r.gates[0].Busy(); n != 0 {
		t.Errorf("%d requests are left", n)
	}
	r.store.Silence(false)
	r.pass(10 * time.Second)
	again := r.submit(0, blk.OpWrite, 0, sectors(1, 1))
	r.rounds(4)
	r.ended(again, blk.OK)
}

// Requests that the lane has no room for go when it has, those of both gates.
func TestGatesShareALane(t *testing.T) {
	r := newRig(t, 4, blktest.Options{Depth: 2, Delay: time.Millisecond}, blk.Policy{})
	var asks []*ask
	for i := range 40 {
		asks = append(asks, r.submit(i%4, blk.OpRead, 0, sectors(1, 0)))
	}
	r.pass(time.Second)
	for _, a := range asks {
		r.ended(a, blk.OK)
	}
}

// A disk that has become smaller is not made larger again by writes that had to wait.
func TestShrinksMeanwhile(t *testing.T) {
	r := newRig(t, 1, blktest.Options{Size: 8192}, blk.Policy{Limits: blk.LimitOptions{IOPS: 1, Burst: time.Millisecond}})
	first, behind, within := r.submit(0, blk.OpWrite, 7680, sectors(1, 1)), r.submit(0, blk.OpWrite, 7680, sectors(1, 2)), r.submit(0, blk.OpWrite, 3584, sectors(1, 3))
	r.pass(time.Millisecond)
	r.ended(first, blk.OK)
	r.store.Become(func(i *blk.Info) { i.Size = 4096 })
	r.pass(3 * time.Second)
	r.ended(behind, blk.Failed)
	r.ended(within, blk.OK)
	if n := r.store.Count(blk.OpWrite); n != 2 {
		t.Errorf("%d writes were done", n)
	}
}

// A flush that comes after writes were acknowledged that the store has lost fails, and no other one.
func TestLossIsTold(t *testing.T) {
	r := newRig(t, 2, blktest.Options{}, blk.Policy{})
	flush := func(gate int, o blk.Outcome) {
		t.Helper()
		f := r.submit(gate, blk.OpFlush, 0, nil)
		r.rounds(3)
		r.ended(f, o)
	}
	lose := func(kept bool) {
		r.store.Break(errCable)
		r.store.Restore(kept)
	}
	write := func(gate int) {
		w := r.submit(gate, blk.OpWrite, 0, sectors(1, 1))
		r.rounds(2)
		r.ended(w, blk.OK)
	}
	lose(false)
	flush(0, blk.OK) // nothing had been written
	write(0)
	if n := r.volume.Stats().Unflushed; n != 1 {
		t.Errorf("%d writes are not flushed", n)
	}
	flush(1, blk.OK) // by any gate
	if n := r.volume.Stats().Unflushed; n != 0 {
		t.Errorf("%d writes are not flushed after a flush", n)
	}
	lose(false)
	flush(0, blk.OK)
	write(1)
	lose(true)
	flush(0, blk.OK)
	for range 2 {
		write(1)
		lose(false)
		flush(0, blk.Failed)
		flush(0, blk.OK)
		flush(1, blk.OK)
	}
	// Those that were under way when it broke might have covered what was lost.
	write(0)
	r.store.Silence(true)
	a, b := r.submit(0, blk.OpFlush, 0, nil), r.submit(1, blk.OpFlush, 0, nil)
	r.store.Silence(false)
	lose(false)
	r.rounds(3)
	r.ended(a, blk.Failed)
	r.ended(b, blk.Failed)
	flush(1, blk.OK)
	if s := r.volume.Stats(); s.Losses != 3 || s.LossesTold != 4 {
		t.Errorf("%d losses, %d told", s.Losses, s.LossesTold)
	}
}

// A flush that one lane has while another finds out what was lost fails, too: its end is looked at, not only its beginning.
func TestLossWhileFlushing(t *testing.T) {
	r := newRig(t, 2, blktest.Options{}, blk.Policy{})
	w := r.submit(1, blk.OpWrite, 0, sectors(1, 1))
	r.rounds(2)
	r.ended(w, blk.OK)
	r.store.Silence(true)
	f := r.submit(0, blk.OpFlush, 0, nil)
	r.rounds(2)
	r.store.Fall(1, errCable)
	r.store.Rise(1, false)
	r.store.Silence(false)
	r.rounds(2)
	r.ended(f, blk.Failed)
}

// A flush that waits for its lane while the guest is told by another one fails when it goes: it was asked for before the guest knew. The next one does not.
func TestLossToldMeanwhile(t *testing.T) {
	r := newRig(t, 2, blktest.Options{}, blk.Policy{})
	w := r.submit(0, blk.OpWrite, 0, sectors(1, 1))
	r.rounds(2)
	r.ended(w, blk.OK)
	r.store.Fall(1, errCable)
	waits := r.submit(1, blk.OpFlush, 0, nil)
	r.store.Fall(0, errCable)
	r.store.Rise(0, false)
	tells := r.submit(0, blk.OpFlush, 0, nil)
	r.rounds(2)
	r.ended(tells, blk.Failed)
	r.open(waits)
	r.store.Rise(1, false)
	r.rounds(2)
	r.ended(waits, blk.Failed)
	next := r.submit(1, blk.OpFlush, 0, nil)
	r.rounds(2)
	r.ended(next, blk.OK)
}

// What has survived one end of the store without being flushed may be lost with the next one: that is told, too.
func TestLossOfWhatSurvived(t *testing.T) {
	r := newRig(t, 2, blktest.Options{}, blk.Policy{})
	w := r.submit(1, blk.OpWrite, 0, sectors(1, 1))
	r.rounds(2)
	r.ended(w, blk.OK)
	for range 3 {
		r.store.Break(errCable)
		r.store.Restore(false)
		f := r.submit(0, blk.OpFlush, 0, nil)
		r.rounds(2)
		r.ended(f, blk.Failed)
		if n := r.volume.State().Unflushed; n != 1 {
			t.Errorf("%d writes may not be stable", n)
		}
	}
}

// With durability: fua whatever is acknowledged is stable, whether the store has FUA or not, and nothing is ever lost.
func TestDurabilityFUA(t *testing.T) {
	for _, without := range []bool{false, true} {
		r := newRig(t, 1, blktest.Options{NoFUA: without}, blk.Policy{Durability: blk.DurabilityFUA})
		var asks []*ask
		for i := range 16 {
			asks = append(asks, r.submit(0, blk.OpWrite, i*512, sectors(1, byte(i+1))))
		}
		zeroes := r.submit(0, blk.OpWriteZeroes, 16*512, sectors(1, 0))
		for i, a := range append(asks, zeroes) {
			a.then = func(*ask) {
				if !bytes.Equal(r.store.Stable(i*512, 512), r.store.Content(i*512, 512)) {
					t.Errorf("write %d was acknowledged and is not stable", i)
				}
			}
		}
		r.rounds(4)
		for _, a := range append(asks, zeroes) {
			r.ended(a, blk.OK)
		}
		if n := r.store.Count(blk.OpFlush); n != 1 {
			t.Errorf("%d flushes for 16 writes and zeroes at once", n)
		}
		r.store.Break(errCable)
		r.store.Restore(false)
		f := r.submit(0, blk.OpFlush, 0, nil)
		r.rounds(2)
		r.ended(f, blk.OK)
	}
}

// A write whose flush is lost, with the store's cache, is written again: a flush alone would not bring it back.
func TestWriteAgainBeforeFlush(t *testing.T) {
	for seed := range uint64(16) {
		r := newRig(t, 1, blktest.Options{NoFUA: true, Seed: seed}, blk.Policy{Durability: blk.DurabilityFUA})
		w := r.submit(0, blk.OpWrite, 0, sectors(1, 9))
		r.workers[0].Round()
		if seed%2 == 0 {
			r.gates[0].Flush() // the flush is on its way
		}
		r.store.Break(errCable)
		r.store.Restore(false)
		r.rounds(4)
		if r.ended(w, blk.OK); !bytes.Equal(r.store.Stable(0, 512), sectors(1, 9)) {
			t.Fatalf("seed %d: an acknowledged write is gone", seed)
		}
	}
}

// A write that is asked back while it waits for a flush that the lane had no room for was not refused by anybody, whatever the policy.
func TestWithdrawBeforeFlush(t *testing.T) {
	r := newRig(t, 3, blktest.Options{Depth: 1, NoFUA: true}, blk.Policy{Durability: blk.DurabilityFUA, OnError: blk.Fail})
	w := r.submit(0, blk.OpWrite, 0, sectors(1, 1))
	r.workers[0].Round() // it is written
	r.store.Silence(true)
	other := r.submit(2, blk.OpRead, 0, sectors(1, 0))
	r.rounds(1)
	r.open(w)
	r.gates[0].Withdraw()
	r.ended(w, blk.Withdrawn)
	r.gates[2].Withdraw()
	r.rounds(2)
	r.ended(other, blk.Withdrawn)
}
