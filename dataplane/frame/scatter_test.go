package frame

import (
	"bytes"
	"testing"
)

func TestScatter(t *testing.T) {
	p := newPool(t, 12)
	f := p.Get()
	copy(f.Append(100), counting(100))
	body := counting(9000)
	f.Borrow([][]byte{body[:5000], body[5000:]}, len(body))
	var parts [MaxBody]*Frame
	if f.Scatter(&parts) != -1 || f.Len() != 9100 {
		t.Fatal("a borrowed body was taken apart")
	}
	if !f.Own(p) {
		t.Fatal("no room")
	}
	// A frame that owns one with a body of its own, and begins within its head.
	g, h, none := p.Get(), p.Get(), p.Get()
	copy(g.Append(10), "0123456789")
	copy(h.Append(3), "abc")
	none.Append(5)
	if !g.Attach(h, 0) || !f.Attach(g, 4) || !f.Attach(none, 5) {
		t.Fatal("cannot attach")
	}
	want := whole(f)
	held := p.Len()
	n := f.Scatter(&parts)
	if n < 3 || f.Len() != f.HeadLen() {
		t.Fatalf("%d parts, a frame of %d with a head of %d", n, f.Len(), f.HeadLen())
	}
	got := bytes.Clone(f.Head())
	for _, part := range parts[:n] {
		if part.Len() != part.HeadLen() || part.Owns() || part == f {
			t.Errorf("a part of %d bytes with a head of %d", part.Len(), part.HeadLen())
		}
		got = append(got, part.Head()...)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%d bytes of %d, or in another order", len(got), len(want))
	}
	p.Put(f) // with it what it owned and had no byte of
	if p.Len() != held+2 {
		t.Errorf("%d frames came back, want the head's and the empty one's", p.Len()-held)
	}
	p.PutAll(parts[:n])
	if p.Len() != 12 {
		t.Errorf("%d of 12 frames are free", p.Len())
	}
	if n := testing.AllocsPerRun(100, func() {
		f, g := p.Get(), p.Get()
		f.Append(10)
		g.Append(10)
		f.Attach(g, 0)
		f.Scatter(&parts)
		p.Put(parts[0])
		p.Put(f)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestShed(t *testing.T) {
	p := newPool(t, 3)
	f, g := p.Get(), p.Get()
	f.Append(10)
	g.Append(20)
	f.Attach(g, 0)
	if f.Shed(p); !f.Owns() || p.Len() != 1 {
		t.Error("what the body lies in was put back")
	}
	if f.Gather(); !f.Owns() {
		t.Error("Gather has no pool to put back to")
	}
	if f.Shed(p); f.Owns() || p.Len() != 2 || f.Len() != 30 {
		t.Errorf("%d frames are free, want 2", p.Len())
	}
}
