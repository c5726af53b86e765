package frame

import "testing"

// What was filled while it was free is there after Get, and nobody else has it.
func TestPeek(t *testing.T) {
	p := newPool(t, 3)
	for i := range 3 {
		copy(p.Peek(i).Append(5), "frame"[:i+2])
	}
	if p.Peek(3) != nil || p.Peek(-1) != nil || p.Len() != 3 {
		t.Error("a frame that is not there, or one taken")
	}
	for i := range 3 {
		want := p.Peek(0)
		f := p.Get()
		if f != want || f.Len() != 0 || string(f.Append(i+2)) != "frame"[:i+2] {
			t.Errorf("frame %d: %q", i, f.Head())
		}
	}
	if p.Peek(0) != nil {
		t.Error("a frame of an empty pool")
	}
}
