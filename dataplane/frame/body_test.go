package frame

import (
	"bytes"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// Whatever bodies are borrowed, owned and attached in whatever order, the frame's bytes are those of a plain slice, and no frame is lost.
func TestBodyIsASlice(t *testing.T) {
	p := newPool(t, 64)
	rapid.Check(t, func(t *rapid.T) {
		f := p.Get()
		model := slices.Clone(counting(rapid.IntRange(0, 256).Draw(t, "head")))
		copy(f.Append(len(model)), model)
		lender := counting(70000)
		clear(lender[:10])
		t.Repeat(map[string]func(*rapid.T){
			"borrow": func(t *rapid.T) {
				if f.Len() != f.HeadLen() || f.Owns() {
					t.Skip()
				}
				var pieces [][]byte
				n := 0
				for range rapid.IntRange(1, MaxBody).Draw(t, "pieces") {
					piece := slices.Clone(lender[:rapid.IntRange(1, 2000).Draw(t, "length")])
					pieces, n = append(pieces, piece), n+len(piece)
					model = append(model, piece...)
				}
				f.Borrow(pieces, n)
			},
			"own": func(t *rapid.T) {
				free := p.Len()
				if !f.Own(p) {
					if p.Len() != free || !f.Borrowed() {
						t.Fatalf("refused, and %d frames of %d are left", p.Len(), free)
					}
					return
				}
				if f.Borrowed() {
					t.Fatal("still borrowed")
				}
			},
			"attach": func(t *rapid.T) {
				g := p.Get()
				if g == nil {
					t.Skip()
				}
				b := counting(rapid.IntRange(0, 3000).Draw(t, "length"))
				copy(g.Append(len(b)), b)
				whole := slices.Clone(b)
				if rapid.Bool().Draw(t, "with a body") {
					more := counting(rapid.IntRange(1, 6000).Draw(t, "more"))
					g.Borrow([][]byte{more}, len(more))
					whole = append(whole, more...)
					if rapid.Bool().Draw(t, "its own") && !g.Own(p) {
						p.Put(g)
						t.Skip()
					}
				}
				skip := rapid.IntRange(0, g.HeadLen()+1).Draw(t, "skip")
				if !f.Attach(g, skip) {
					p.Put(g)
					return
				}
				model = append(model, whole[skip:]...)
			},
			"clone": func(t *rapid.T) {
				g := p.Get()
				if g == nil {
					t.Skip()
				}
				g.CopyFrom(f)
				if !g.Own(p) {
					p.Put(g)
					return
				}
				p.Put(f)
				f = g
			},
			"": func(t *rapid.T) {
				if !bytes.Equal(whole(f), model) || f.Len() != len(model) {
					t.Fatalf("frame has %d bytes, the slice %d", f.Len(), len(model))
				}
			},
		})
		p.Put(f)
		if p.Len() != 64 {
			t.Fatalf("%d frames of 64 are back", p.Len())
		}
	})
}

// An owned body does not change when the lender's memory does.
func TestOwn(t *testing.T) {
	p := newPool(t, 32)
	lent := counting(MaxLen - HeadLen)
	f := p.Get()
	f.Append(HeadLen)
	f.Borrow([][]byte{lent[:5], lent[5:]}, len(lent))
	if !f.Own(p) || f.Borrowed() || !f.Owns() {
		t.Fatal("not owned")
	}
	clear(lent)
	if !bytes.Equal(whole(f)[HeadLen:], counting(MaxLen-HeadLen)) {
		t.Error("the body changed with its lender")
	}
	if p.Put(f); p.Len() != 32 {
		t.Errorf("%d frames of 32 are back", p.Len())
	}
	f = p.Get()
	f.Borrow([][]byte{lent, lent}, 2*len(lent))
	if few := newPool(t, 3); f.Own(few) || few.Len() != 3 || !f.Borrowed() {
		t.Error("owned more than there is room for, or kept some")
	}
}

// A fault while a body is copied leaves every chunk in somebody's hands.
func TestOwnInterrupted(t *testing.T) {
	p := newPool(t, 8)
	f := p.Get()
	f.Borrow([][]byte{make([]byte, 6000), nil}, 12000) // says more than it has: chunks are taken for all of it
	if !f.Own(p) {
		t.Fatal("not owned")
	}
	if p.Put(f); p.Len() != 8 {
		t.Errorf("%d frames of 8 are back", p.Len())
	}
}

// Frames return home from wherever they were put back, and only after Exchange.
func TestFramesGoHome(t *testing.T) {
	m := newMemory(t, 8)
	var pools []*Pool
	for i := range 2 {
		p, err := m.NewPool(4*i, 4)
		if err != nil {
			t.Fatal(err)
		}
		pools = append(pools, p)
	}
	Connect(pools)
	a, b := pools[0], pools[1]
	for range 1000 {
		f := a.Get()
		own := b.Get()
		f.Attach(own, 0)
		b.Put(f)
		if a.Len() != 3 || b.Len() != 4 {
			t.Fatalf("%d and %d free before anything was exchanged", a.Len(), b.Len())
		}
		a.Collect()
		if a.Len() != 3 {
			t.Fatal("a frame came home before it was sent")
		}
		b.Exchange()
		if a.Exchange(); a.Len() != 4 {
			t.Fatalf("%d of 4 came home", a.Len())
		}
	}
}

func TestFramesGoHomeConcurrently(t *testing.T) {
	m := newMemory(t, 128)
	a, _ := m.NewPool(0, 64)
	b, _ := m.NewPool(64, 64)
	Connect([]*Pool{a, b})
	there := make(chan *Frame, 64)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for f := range there {
			b.Put(f)
			b.Exchange()
		}
	}()
	for i := range 100_000 {
		f := a.Get()
		for f == nil {
			a.Collect()
			f = a.Get()
		}
		f.Append(1)[0] = byte(i)
		there <- f
	}
	close(there)
	<-done
	if a.Collect(); a.Len() != 64 || b.Len() != 64 {
		t.Errorf("%d and %d free, want 64 each", a.Len(), b.Len())
	}
}

func TestBodiesAllocateNothing(t *testing.T) {
	p := newPool(t, 40)
	lent := [][]byte{make([]byte, 9000)}
	if n := testing.AllocsPerRun(100, func() {
		f, g := p.Get(), p.Get()
		f.Borrow(lent, 9000)
		f.Own(p)
		g.Append(100)
		f.Attach(g, 50)
		p.Put(f)
		p.Exchange()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
