package offload

import (
	"runtime/debug"
	"testing"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"golang.org/x/sys/unix"
)

// vanishing is memory of which only the first n bytes can be read.
func vanishing(t *testing.T, n int) []byte {
	page := unix.Getpagesize()
	keep := (n + page - 1) / page * page
	b, err := unix.Mmap(-1, 0, keep+64<<10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(b) })
	if err := unix.Mprotect(b[keep:], unix.PROT_NONE); err != nil {
		t.Fatal(err)
	}
	return b[keep-n:]
}

// faults runs what touches memory that is gone.
func faults(t *testing.T, f func()) {
	t.Helper()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if _, ok := dataplane.FaultAddress(recover()); !ok {
			t.Fatal("nothing faulted")
		}
	}()
	f()
}

// A guest that takes its memory away at any byte of a payload costs no frame, and what was cut of it before is right.
func TestSegmenterFaults(t *testing.T) {
	for _, size := range []int{1000, 9000} {
		for _, there := range []int{0, 1, 700, 999, 1000, 1001, 4000, 8000, 9001, 20000} {
			pool := newPool(t, 64)
			body := vanishing(t, there)
			p := usual(false, 30000)
			f := p.large(t, pool, size, p.headers(), 30000)
			f.Borrow([][]byte{body[:30000]}, 30000)
			free := pool.Len()
			var s Segmenter
			var made []*frame.Frame
			faults(t, func() {
				s.Start(f)
				for g, ok := s.Next(pool); ok; g, ok = s.Next(pool) {
					made = append(made, g)
				}
			})
			if len(made) != there/size || pool.Len() > free-len(made) {
				t.Errorf("size %d, %d bytes: %d segments, %d frames free", size, there, len(made), pool.Len())
			}
			for _, g := range made {
				intact(t, whole(g))
			}
			pool.PutAll(made)
			if pool.Put(f); pool.Len() != 64 {
				t.Errorf("size %d, %d bytes: %d frames of 64 are back", size, there, pool.Len())
			}
			// It works on the next one.
			again := p.large(t, pool, size, 200, 3000)
			for _, g := range cut(t, &s, again, pool) {
				intact(t, whole(g))
			}
		}
	}
}

// A checksum that cannot be verified for want of the memory loses no frame either: each is in its slot, or another's.
func TestCoalescerFaults(t *testing.T) {
	for gone := range 6 {
		pool := newPool(t, 16)
		var vector []*frame.Frame
		p := usual(false, 1000)
		for i := range 6 {
			f := pool.Get()
			b := p.packet(t)
			fill(f, b, p.headers(), 400)
			if i == gone {
				f.Borrow([][]byte{vanishing(t, 500)[:1000]}, 1000)
			}
			vector = append(vector, f)
			p.seq += 1000
			p.id++
		}
		var c Coalescer
		faults(t, func() { c.Merge(vector, pool, all) })
		if pool.PutAll(vector); pool.Len() != 16 {
			t.Errorf("body of frame %d: %d frames of 16 are back", gone, pool.Len())
		}
		// Nothing of it is left.
		if n := c.Merge(nil, pool, all); n != 0 || pool.Len() != 16 {
			t.Errorf("body of frame %d: %d frames come after it", gone, n)
		}
	}
}
