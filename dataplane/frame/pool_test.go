package frame

import (
	"math"
	"testing"
)

func TestNewMemoryRefuses(t *testing.T) {
	for _, n := range []int{0, 1, ChunkSize - 1, ChunkSize + 1} {
		if _, err := NewMemory(make([]byte, n)); err == nil {
			t.Errorf("memory of %d bytes accepted", n)
		}
	}
}

func TestMemoryAt(t *testing.T) {
	m := newMemory(t, 4)
	if m.Len() != 4 || len(m.Bytes()) != 4*ChunkSize {
		t.Fatalf("%d frames in %d bytes", m.Len(), len(m.Bytes()))
	}
	p, err := m.NewPool(0, 4)
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		f := p.Get()
		f.Append(1)[0] = 0xa5
		if got, off := m.At(f.Address()); got != f || int(off) != f.Front() {
			t.Errorf("at %d: another frame, or offset %d instead of %d", f.Address(), off, f.Front())
		}
		if m.Bytes()[f.Address()] != 0xa5 {
			t.Errorf("byte at address %d is not the frame's first", f.Address())
		}
	}
	for _, outside := range []uint64{4 * ChunkSize, math.MaxUint64} {
		if f, _ := m.At(outside); f != nil {
			t.Errorf("address %d belongs to a frame", outside)
		}
	}
	if f, off := m.At(4*ChunkSize - 1); f == nil || off != ChunkSize-1 {
		t.Error("last byte belongs to no frame")
	}
}

// Heads of neighbouring frames begin in different sets of the cache.
func TestColours(t *testing.T) {
	p := newPool(t, 2*colours)
	seen := map[int]int{}
	for range 2 * colours {
		f := p.Get()
		f.Append(HeadLen)
		at := int(f.Address() % ChunkSize)
		if at < Headroom || at%64 != 0 {
			t.Errorf("head at %d", at)
		}
		seen[at]++
	}
	if len(seen) != colours {
		t.Errorf("%d colours, want %d", len(seen), colours)
	}
	for at, n := range seen {
		if n != 2 {
			t.Errorf("%d heads at %d, want 2", n, at)
		}
	}
}

func TestNewPoolRefuses(t *testing.T) {
	m := newMemory(t, 4)
	for _, r := range [][2]int{{0, 0}, {0, 5}, {4, 1}, {3, 2}, {-1, 2}, {0, -1}, {1, math.MaxInt}, {math.MaxInt, 1}} {
		if _, err := m.NewPool(r[0], r[1]); err == nil {
			t.Errorf("pool of %d frames from %d accepted", r[1], r[0])
		}
	}
	if p, err := m.NewPool(1, 3); err != nil || p.Len() != 3 || p.Memory() != m {
		t.Errorf("pool of the last three: %v", err)
	}
}

func TestPool(t *testing.T) {
	m := newMemory(t, 4)
	p, _ := m.NewPool(0, 2)
	q, _ := m.NewPool(2, 2)
	f, g := p.Get(), p.Get()
	if f == nil || g == nil || f == g || p.Get() != nil || p.Len() != 0 {
		t.Fatal("a pool of two gives out two")
	}
	// Frames may go back to another pool, and all of them to one.
	f.Append(100)
	f.Borrow([][]byte{{1, 2}}, 2)
	f.Checksum.Needed, f.Hash = true, 5
	vector := []*Frame{nil, f, nil, g}
	q.PutAll(vector)
	if q.Len() != 4 || vector[1] != nil || vector[3] != nil {
		t.Errorf("%d frames in the pool, vector %v", q.Len(), vector)
	}
	if f.Body() != nil {
		t.Error("a free frame still holds what it borrowed")
	}
	if again := q.Get(); again != g {
		t.Error("the frame put back last is not the first out")
	}
	if again := q.Get(); again != f || f.Len() != 0 || f.Checksum.Needed || f.Hash != 0 || f.Front() < Headroom {
		t.Error("a frame from the pool is not fresh")
	}
}

func TestNothingAllocated(t *testing.T) {
	p := newPool(t, 4)
	pieces := [][]byte{make([]byte, 100)}
	vector := make([]*Frame, 2)
	if n := testing.AllocsPerRun(100, func() {
		f, g := p.Get(), p.Get()
		f.Append(64)
		f.Prepend(50)
		f.Trim(20)
		f.Borrow(pieces, 100)
		g.CopyFrom(f)
		f.Gather()
		vector[0], vector[1] = f, g
		p.PutAll(vector)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
