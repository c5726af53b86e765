package blk_test

import (
	"testing"
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/blk/blktest"
)

// TestAfter: a request goes when it may, and is taken back like any other until then. Those behind it do not wait for it.
func TestAfter(t *testing.T) {
	r := newRig(t, 1, blktest.Options{}, blk.Policy{})
	send := func(op blk.Op, with byte) *ask {
		a := &ask{Request: blk.Request{Op: op, Length: 512, Buffers: [][]byte{sectors(1, with)}, After: r.watch.now + int64(time.Second)}}
		r.send(0, a)
		return a
	}
	back := send(blk.OpWrite, 1)
	r.pass(900 * time.Millisecond)
	r.open(back)
	r.gates[0].Withdraw()
	r.ended(back, blk.Withdrawn)
	held, read := send(blk.OpWrite, 2), r.submit(0, blk.OpRead, 0, sectors(1, 9))
	r.pass(900 * time.Millisecond)
	r.ended(read, blk.OK)
	r.open(held)
	if b := read.Buffers[0][0]; b != 0 {
		t.Errorf("the store has %d", b)
	}
	r.pass(200 * time.Millisecond)
	r.ended(held, blk.OK)
	if b := r.store.Content(0, 1)[0]; b != 2 {
		t.Errorf("the store has %d", b)
	}
}

// TestInherited: writes that a dead process has left unflushed are lost with the store, once; at once where that may have been restarted before.
func TestInherited(t *testing.T) {
	flush := func(r *rig, want blk.Outcome) {
		t.Helper()
		f := r.submit(0, blk.OpFlush, 0, nil)
		r.pass(time.Second)
		r.ended(f, want)
	}
	r := newRig(t, 1, blktest.Options{}, blk.Policy{})
	r.gates[0].Inherit(false)
	flush(r, blk.OK)
	r.gates[0].Inherit(false)
	r.store.Break(errCable)
	r.store.Restore(false)
	flush(r, blk.Failed)
	flush(r, blk.OK)
	r.gates[0].Inherit(false) // it has been restarted since it was opened
	flush(r, blk.Failed)
	flush(r, blk.OK)

	r = newRig(t, 1, blktest.Options{}, blk.Policy{})
	r.gates[0].Inherit(true)
	flush(r, blk.Failed)
	flush(r, blk.OK)
	if s := r.volume.Stats(); s.Losses != 1 || s.LossesTold != 1 {
		t.Errorf("%d losses, %d told", s.Losses, s.LossesTold)
	}
	r = newRig(t, 1, blktest.Options{NoFlush: true}, blk.Policy{})
	r.gates[0].Inherit(true)
	if r.volume.Stats().Unflushed != 0 {
		t.Error("a store without a cache has unflushed writes")
	}
}

// TestAfterTimeout: what had to wait for a dead process's writes has its time from then on, and holds up nobody whose time ends before its own.
func TestAfterTimeout(t *testing.T) {
	r := newRig(t, 1, blktest.Options{}, blk.Policy{Timeout: time.Second})
	r.store.Silence(true)
	heir := &ask{Request: blk.Request{Op: blk.OpWrite, Length: 512, Buffers: [][]byte{sectors(1, 1)}, After: r.watch.now + int64(800*time.Millisecond)}}
	r.send(0, heir)
	other := r.submit(0, blk.OpRead, 0, sectors(1, 0))
	r.pass(900 * time.Millisecond)
	r.open(other)
	r.pass(200 * time.Millisecond)
	r.ended(other, blk.Failed)
	r.open(heir)
	r.pass(time.Second)
	r.ended(heir, blk.Failed)
}

// TestDoubtLasts: that a write may not have ended is over with what was begun after it came back, and not with what other lanes had before.
func TestDoubtLasts(t *testing.T) {
	r := newRig(t, 2, blktest.Options{}, blk.Policy{})
	r.store.Silence(true)
	before, write := r.submit(1, blk.OpRead, 0, sectors(1, 0)), r.submit(0, blk.OpWrite, 0, sectors(1, 1))
	r.pass(time.Millisecond)
	r.gates[0].Withdraw()
	r.rounds(2)
	r.ended(write, blk.Withdrawn)
	r.store.Silence(false)
	r.pass(time.Millisecond)
	r.ended(before, blk.OK)
	if !blk.Doubts(r.volume) {
		t.Error("a read from before says that a write has ended")
	}
	behind := r.submit(1, blk.OpRead, 0, sectors(1, 0))
	r.pass(time.Millisecond)
	r.ended(behind, blk.OK)
	if blk.Doubts(r.volume) {
		t.Error("a read behind it does not")
	}
}

// TestFUAGone: a write that was lost on its way to a store with FUA is made stable by a flush when that comes back without.
func TestFUAGone(t *testing.T) {
	r := newRig(t, 1, blktest.Options{}, blk.Policy{})
	a := &ask{Request: blk.Request{Op: blk.OpWrite, Length: 512, Buffers: [][]byte{sectors(1, 7)}, FUA: true}}
	r.store.Silence(true)
	r.send(0, a)
	r.rounds(2)
	r.store.Break(errCable)
	r.store.Become(func(i *blk.Info) { i.FUA = false })
	r.store.Silence(false)
	r.store.Restore(true)
	r.pass(time.Second)
	r.ended(a, blk.OK)
	if r.store.Stable(0, 1)[0] != 7 || r.volume.Stats().Barriers != 1 {
		t.Errorf("%d on stable storage after %d flushes", r.store.Stable(0, 1)[0], r.volume.Stats().Barriers)
	}
}
