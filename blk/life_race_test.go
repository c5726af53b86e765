//go:build race

package blk

import (
	"bytes"
	"testing"
)

// end is what a process that is killed panics with.
type end struct{}

// killAt has the process end behind a number of stores, and reports whether it got that far.
type killAt struct {
	l      *life
	left   int
	steps  int    // stores that were made
	torn   bool   // the last store was that of used descriptors: all but the first were seen
	before []byte // the packed ring before the last store
}

func (k *killAt) step() {
	k.steps++
	if k.left--; k.left == 0 {
		if k.torn {
			k.tear()
		}
		panic(end{})
	}
	if k.torn {
		k.before = append(k.before[:0], k.l.memory[:16*lifeRing]...)
	}
}

// tear takes the first of several used descriptors back: it is stored last, by itself.
func (k *killAt) tear() {
	r := k.l.queue().run
	if r == nil || !r.packed || len(r.used) < 2 || bytes.Equal(k.before, k.l.memory[:16*lifeRing]) {
		return
	}
	at := 16 * int(r.notes.(*packedInflight).used&0x7fff)
	copy(k.l.memory[at:at+16], k.before[at:])
}

// do runs fn, and reports whether it was killed.
func (k *killAt) do(fn func()) (dead bool) {
	killed = k.step
	defer func() {
		killed = nil
		if r := recover(); r != nil {
			if _, ok := r.(end); !ok {
				panic(r)
			}
			dead = true
		}
	}()
	fn()
	return false
}

// TestKilledBetweenStores: wherever a process ends, in the middle of taking, publishing, stopping, or of putting in order what one before it left, no request is lost, and none
// is answered twice.
func TestKilledBetweenStores(t *testing.T) {
	scripts, stride := uint64(2), 1
	if testing.Short() {
		scripts, stride = 1, 3
	}
	for _, ring := range []string{"split", "packed"} {
		t.Run(ring, func(t *testing.T) {
			kills, resumed := 0, 0
			for seed := range scripts {
				for at := 1; ; at += stride {
					l := newLife(t, rings[ring], seed)
					k := &killAt{l: l, left: at, torn: at%2 == 0}
					dead := k.do(func() {
						l.process(nil)
						for range 2 * lifeActs {
							l.act()
						}
					})
					if !dead {
						if k.steps < 100 {
							t.Fatalf("only %d stores", k.steps)
						}
						l.finish()
						break
					}
					for again := at % 7; dead; again *= 2 {
						kills++
						l.dead()
						dead = (&killAt{l: l, left: again}).do(l.restart)
					}
					for range lifeActs / 2 {
						l.act()
					}
					l.finish()
					resumed += l.resumed
				}
			}
			if t.Logf("killed %d times, %d requests resumed", kills, resumed); kills < 100/stride || resumed < 100/stride {
				t.Error("too few")
			}
		})
	}
}
