package uring

import (
	"testing"

	"golang.org/x/sys/unix"
)

// All that 64 volumes have under way on a worker is withdrawn at once: as many operations as there are, half of which the kernel has. All end, at once, and nothing is
// allocated.
func TestCancelAll(t *testing.T) {
	modes(t, func(t *testing.T) {
		r := newRing(t, Options{})
		a, _ := socketPair(t, r)
		all := make([]*result, len(r.slots))
		for i := range all {
			all[i] = newResult()
		}
		cancelled := 0
		round := func() {
			for i, d := range all {
				pushed(t, r.PollAdd(&d.op, a.file, unix.POLLRDHUP))
				if i == len(all)/2 {
					r.Flush()
				}
			}
			for _, d := range all {
				r.Cancel(&d.op)
			}
			settle(t, r, func() bool { return r.Busy() == 0 })
			for _, d := range all {
				if d.res == -int32(unix.ECANCELED) {
					cancelled++
				}
			}
		}
		if n := testing.AllocsPerRun(10, round); n > 11 { // those of settle
			t.Errorf("%v allocations", n)
		}
		if want := 11 * len(all); cancelled != want {
			t.Errorf("%d of %d were cancelled", cancelled, want)
		}
	})
}

// What the kernel has not been given is not begun any more: of reads that would copy for long nothing is read, however many wait in front of it.
func TestRecall(t *testing.T) {
	r := newRing(t, Options{Entries: 64})
	f, content := newFile(t, r, t.TempDir(), 4<<20, 0)
	memory := newMemory(t, 4<<20)
	var all [64]*result
	for i := range all {
		all[i] = newResult()
		v := r.Vector(1)
		v.Add(memory)
		pushed(t, r.Readv(&all[i].op, f, v, 0))
	}
	for _, d := range all[1:] {
		r.Cancel(&d.op)
	}
	settle(t, r, func() bool { return r.Busy() == 0 })
	if all[0].res != int32(len(content)) {
		t.Errorf("the one that stays: %d", all[0].res)
	}
	for i, d := range all[1:] {
		if d.res != -int32(unix.ECANCELED) || d.times != 1 {
			t.Fatalf("read %d: %d, %d times", i+1, d.res, d.times)
		}
	}
	if r.weight != 0 {
		t.Errorf("%d bytes are thought to be under way", r.weight)
	}
}

// A cancellation goes out with the next enter, whatever waits for one, and what it took the place of is done all the same.
func TestCancelOvertakes(t *testing.T) {
	r := newRing(t, Options{Entries: 64})
	f, content := newFile(t, r, t.TempDir(), 4<<20, 0)
	a, _ := socketPair(t, r)
	memory := newMemory(t, 4<<20)
	waits, late := newResult(), newResult()
	for _, d := range []*result{waits, late} {
		pushed(t, r.PollAdd(&d.op, a.file, unix.POLLRDHUP))
	}
	r.Flush()
	var reads [62]*result
	for i := range reads {
		reads[i] = newResult()
		v := r.Vector(1)
		v.Add(memory)
		pushed(t, r.Readv(&reads[i].op, f, v, 0))
	}
	r.Cancel(&waits.op)
	r.Flush()
	r.Poll()
	if !waits.done || waits.res != -int32(unix.ECANCELED) {
		t.Errorf("it waits for %d reads of 4 MiB", r.tail-r.taken)
	}
	r.Cancel(&reads[0].op) // which has gone to the end
	settle(t, r, func() bool { return r.Busy() == 1 })
	for i, d := range reads {
		want := int32(len(content))
		if i == 0 {
			want = -int32(unix.ECANCELED)
		}
		if d.times != 1 || d.res != want {
			t.Errorf("read %d: %d, %d times; want %d", i, d.res, d.times, want)
		}
	}
	r.Cancel(&late.op)
	settle(t, r, func() bool { return r.Busy() == 0 })
}

// An operation that was recalled is not looked for in another one's place, when the counters of the SQ have come around.
func TestRecallAfterWrap(t *testing.T) {
	r := newRing(t, Options{Entries: 8})
	a, _ := socketPair(t, r)
	old, other := newResult(), newResult()
	pushed(t, r.PollAdd(&old.op, a.file, unix.POLLRDHUP))
	r.Flush()
	r.slots[old.op.slot-1].at = r.tail // as after 2^32 of them
	pushed(t, r.Nop(&other.op))
	r.Cancel(&old.op)
	settle(t, r, func() bool { return r.Busy() == 0 })
	if old.res != -int32(unix.ECANCELED) || other.res != 0 {
		t.Errorf("the old one %d, the other one %d", old.res, other.res)
	}
}
