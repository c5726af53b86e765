package file

import (
	"fmt"
	"slices"

	"github.com/shuntio/shunt/dataplane/uring"
	"golang.org/x/sys/unix"
)

// Operations that always take a thread of io-wq, which has few and lends them to all lanes of a worker: fdatasync and fallocate. A file system that hangs keeps them, and
// nobody's would be done any more. So a lane has one of each kind under way, and what else there is waits here. It costs little: file systems
// do them one after the other, and an fdatasync does for all flushes that were asked for before it began.
//
//	flush ──────────────────▶ fdatasync ─▶ ends the flush that began it, and those along with it
//	          └─ waiting ─▶ along ─┘
//	discard, write zeroes ──▶ fallocate ─▶ ends the request, or goes on
//	          └─ waiting ─────┘
type turn struct {
	holder  int   // slot whose operation is under way, plus one; 0: none
	waiting []int // slots, the oldest first
	along   []int // of flushes: slots that the one under way does for, too
	ended   []int // the same, while they are told
}

func newTurn(depth int) turn {
	return turn{waiting: make([]int, 0, depth), along: make([]int, 0, depth), ended: make([]int, 0, depth)}
}

// turn is what a slot's next operation needs.
func (l *lane) turn(s *slot) *turn {
	if s.stage == flushing || s.stage == syncing {
		return &l.syncs
	}
	return &l.fallocates
}

// inTurn begins a slot's operation, or has it wait; false: there is no room for it in the ring.
func (l *lane) inTurn(s *slot) bool {
	t := l.turn(s)
	if t.holder != 0 {
		t.waiting = append(t.waiting, s.op.Tag)
		return true
	}
	if t == &l.fallocates {
		if !l.fallocate(s) {
			return false
		}
	} else {
		if !l.ring.Fsync(&s.op, l.witness, true) {
			return false
		}
		t.along, t.waiting = append(t.along[:0], t.waiting...), t.waiting[:0]
	}
	t.holder = s.op.Tag + 1
	return true
}

// leave ends the turn of a slot whose operation has ended; nil: it had none.
func (l *lane) leave(s *slot) *turn {
	for _, t := range [...]*turn{&l.syncs, &l.fallocates} {
		if t.holder == s.op.Tag+1 {
			t.holder = 0
			return t
		}
	}
	return nil
}

// next tells those who went along how it ended, unless it was called off, and begins what waits.
func (l *lane) next(t *turn, res int32, off bool) {
	t.along, t.ended = t.ended[:0], t.along
	for _, i := range t.ended {
		if off && res == -int32(unix.ECANCELED) {
			t.waiting = append(t.waiting, i)
		} else {
			l.take(&l.slots[i], res)
		}
	}
	l.begin(t)
}

// begin begins what waits, if nothing is under way.
func (l *lane) begin(t *turn) {
	if t.holder == 0 && len(t.waiting) > 0 {
		first := t.waiting[0]
		t.waiting = slices.Delete(t.waiting, 0, 1)
		l.again(&l.slots[first])
	}
}

// without takes a slot out of a list of them; false: it is not there.
func without(list *[]int, slot int) bool {
	i := slices.Index(*list, slot)
	if i >= 0 {
		*list = slices.Delete(*list, i, i+1)
	}
	return i >= 0
}

// openWitness opens the file once more, for fdatasync alone. That the kernel could not write something back it tells each open file once, and the one that is
// written to may be told by a write, or by a flush of another lane whose worker has not come to it yet: meanwhile this lane's would seem to go well. Where
// there is no second file, the lane makes do with the one. To open and to close it may wait for the file system, so neither is the worker's to do.
func (l *lane) openWitness() {
	if l.store.shape.direct {
		return // nothing is written back
	}
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", l.store.fd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		l.second = fd
	}
}

func (l *lane) closeWitness() {
	if l.second >= 0 {
		go unix.Close(l.second)
	}
}

// register gives the ring the files.
func (l *lane) register() (err error) {
	if l.file, err = l.ring.Register(l.store.fd); err != nil {
		return err
	}
	if l.store.shape.remote {
		l.ring.Apart(l.file)
	}
	l.witness = l.file
	if l.second >= 0 {
		if f, err := l.ring.Register(l.second); err == nil {
			l.witness = f
		}
	}
	return nil
}

// unregister takes them back.
func (l *lane) unregister() {
	for _, f := range slices.Compact([]uring.File{l.file, l.witness}) {
		_ = l.ring.Unregister(f)
	}
}
