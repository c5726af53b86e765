package blk

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/shuntio/shunt/dataplane"
)

// heir is a life whose store goes on with writes of a dead process for an hour.
type heir struct{ *life }

const hour = int64(time.Hour)

func newHeir(t *testing.T, features uint64) heir {
	h := heir{newLife(t, features, 1)}
	h.process(nil)
	return h
}

func (h heir) process(base *uint32) {
	h.gate = &ram{disk: h.disk, hold: true}
	i := bedInfo
	i.Quiesce = time.Hour
	h.begin(i)
	h.connect()
	h.start(base)
	h.round()
}

// request makes one available that is under way from then on.
func (h heir) request(kind uint32) *Request {
	h.Helper()
	had := len(h.gate.waiting)
	readable, writable := h.buffers(headerBytes), h.buffers(513)
	if kind == typeOut {
		readable, writable = h.buffers(headerBytes+512), h.buffers(1)
	}
	h.put(header(kind, 0), readable)
	h.add(readable, writable)
	h.round()
	if len(h.gate.waiting) != had+1 {
		h.Fatalf("%d requests came", len(h.gate.waiting)-had)
	}
	return h.gate.waiting[had]
}

// held wants a request to wait for an hour from when the front-end came, or not at all.
func (h heir) held(r *Request, want bool) {
	h.Helper()
	now := dataplane.Clock()
	if is := r.After > now+hour/2 && r.After <= now+hour; is != want || !is && r.After > now {
		h.Errorf("%v may go in %v", r.Op, time.Duration(r.After-now))
	}
}

// answer has the driver get its answers.
func (h heir) answer() {
	h.gate.hold = false
	h.round()
	h.round()
	h.gate.hold = true
	for _, _, ok, _ := h.driver.Used(); ok; _, _, ok, _ = h.driver.Used() {
	}
}

func (h heir) own() *legacy { return legacyOf(h.area, 0, h.features&FeaturePacked != 0) }

// TestFence: after a process with writes under way no write goes to the store until those can no longer be carried out; reads do. With nothing but reads under way nothing waits.
func TestFence(t *testing.T) {
	for ring, bit := range rings {
		t.Run(ring, func(t *testing.T) {
			h := newHeir(t, bit)
			h.held(h.request(typeIn), false)
			h.held(h.request(typeOut), false)
			h.dead()
			h.process(nil)
			if n := len(h.gate.waiting); n != 2 {
				t.Fatalf("%d requests came back", n)
			}
			h.held(h.gate.waiting[0], false)
			h.held(h.gate.waiting[1], true)
			h.held(h.request(typeOut), true)
			h.held(h.request(typeIn), false)

			// The ring is stopped, by the same process, and started; then the driver resets the device.
			base, err := h.dev.StopVring(0)
			h.must(err)
			h.start(&base)
			h.round()
			if n := len(h.gate.waiting); n != 4 {
				t.Fatalf("%d requests came after the ring was stopped", n)
			}
			h.held(h.gate.waiting[1], true)
			h.held(h.gate.waiting[3], false)
			_, err = h.dev.StopVring(0)
			h.must(err)
			h.must(h.dev.Reset())
			h.must(h.dev.SetFeatures(h.features))
			h.drive()
			h.start(nil)
			h.held(h.request(typeOut), true)
			h.answer()

			// Killed before that is over, with nothing under way: the next one waits as long.
			h.dead()
			h.process(nil)
			h.held(h.request(typeOut), true)

			// It is over.
			h.dev.fenced.Store(1)
			h.answer()
			if h.own().doubt != 0 {
				t.Error("there is doubt though the store has nothing of a dead process")
			}
			h.dead()
			h.process(nil)
			h.held(h.request(typeOut), false)
			h.answer()
			h.held(h.request(typeIn), false)
			h.dead()
			h.process(nil)
			h.held(h.request(typeOut), false)
			h.dead()
		})
	}
}

// TestFenceOfGivenBack: chains that were given back to the ring when the process ended are fenced like those under way.
func TestFenceOfGivenBack(t *testing.T) {
	for kind, fenced := range map[uint32]bool{typeOut: true, typeIn: false} {
		h := newHeir(t, 0)
		h.request(kind)
		base, err := h.dev.StopVring(0)
		h.must(err)
		h.dead()
		h.process(&base)
		if len(h.gate.waiting) != 1 {
			t.Fatalf("%d requests came", len(h.gate.waiting))
		}
		h.held(h.request(typeOut), fenced)
		h.dead()
	}
}

// TestDoubtUntilTaken: chains that were given back have no mark before they are taken again, and so long the next process is told that there may be such.
func TestDoubtUntilTaken(t *testing.T) {
	for ring, bit := range rings {
		h := newHeir(t, bit)
		h.request(typeOut)
		h.request(typeOut)
		base, err := h.dev.StopVring(0)
		h.must(err)
		h.start(&base)
		h.worker.Do(func() { h.queue().credit = 1 - quantumBytes }) // for one request
		for taken, doubt := range []uint64{1, 1, 0} {
			if n := len(h.gate.waiting); n != taken || h.own().doubt != doubt {
				t.Errorf("%s: %d of two chains are taken, want %d, and there is doubt: %d", ring, n, taken, h.own().doubt)
			}
			h.round()
		}
		h.dead()
	}
}

// TestInherit: unflushed writes of a process are its successor's, those of a ring as of any other, and of one that died before it had done anything.
func TestInherit(t *testing.T) {
	h := newHeir(t, 0)
	next := func(want ...bool) {
		t.Helper()
		h.round()
		h.dead()
		h.process(nil)
		if !slices.Equal(h.gate.inherited, want) {
			t.Errorf("inherited %v, want %v", h.gate.inherited, want)
		}
	}
	next()
	h.gate.marks = marks{written: 1, flushed: 1}
	next(false)
	h.gate.marks = marks{written: 7, flushed: 8}
	next()
	h.gate.marks = marks{written: 8, flushed: 8, lost: true}
	next(true)
	h.gate.marks = marks{written: 9, flushed: 8}
	h.round()
	_, err := h.dev.StopVring(0)
	h.must(err)
	h.must(h.dev.Reset())
	h.must(h.dev.SetFeatures(h.features))
	h.start(nil)
	next(false)

	// A process ends while it makes what is there its own.
	h.gate.marks = marks{written: 20, flushed: 20}
	h.round()
	l := h.own()
	l.written = unknownEpoch
	h.dead()
	h.process(nil)
	if !slices.Equal(h.gate.inherited, []bool{false}) {
		t.Errorf("inherited %v", h.gate.inherited)
	}
	// The front-end gives the area once more.
	h.gate.inherited = nil
	base, err := h.dev.StopVring(0)
	h.must(err)
	h.must(h.dev.SetInflight(h.area))
	h.start(&base)
	if len(h.gate.inherited) > 0 {
		t.Error("inherited from itself")
	}
	h.dead()
}

// TestOtherDisk: what a guest had under way is not done on another disk, which has a name of its own; on one without a name it is.
func TestOtherDisk(t *testing.T) {
	h := heir{newLife(t, 0, 1)}
	begin := func(name string) error {
		h.gate = &ram{disk: h.disk, hold: true}
		i := bedInfo
		i.Identity = name
		h.begin(i)
		h.connect()
		return h.dev.StartVring(h.vring(nil))
	}
	h.must(begin("this"))
	h.round()
	h.request(typeOut)
	h.dead()
	for range 2 {
		if err := begin("that"); !errors.Is(err, errOtherDisk) {
			t.Fatal(err)
		}
		h.dead()
	}
	for _, name := range []string{"this", "", "that"} {
		h.must(begin(name))
		if h.round(); len(h.gate.waiting) != 1 {
			t.Errorf("%d requests came", len(h.gate.waiting))
		}
		h.dead()
	}
}
