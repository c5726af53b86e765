package frame

import (
	"bytes"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func newMemory(t testing.TB, n int) *Memory {
	t.Helper()
	m, err := NewMemory(make([]byte, n*ChunkSize))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func newPool(t testing.TB, n int) *Pool {
	t.Helper()
	p, err := newMemory(t, n).NewPool(0, n)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// whole is the frame's bytes, head and body.
func whole(f *Frame) []byte {
	b := slices.Clone(f.Head())
	for _, piece := range f.Body() {
		b = append(b, piece...)
	}
	return b
}

func counting(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i)
	}
	return b
}

func TestPrependAndTrim(t *testing.T) {
	f := newPool(t, 1).Get()
	if f.Front() != Headroom || f.Len() != 0 || f.HeadLen() != 0 {
		t.Fatalf("fresh frame: %d in front, %d long", f.Front(), f.Len())
	}
	copy(f.Append(4), "abcd")
	copy(f.Prepend(3), "xyz")
	if string(f.Head()) != "xyzabcd" || f.Front() != Headroom-3 {
		t.Errorf("head %q, %d in front", f.Head(), f.Front())
	}
	if !f.Trim(5) || string(f.Head()) != "cd" {
		t.Errorf("trimmed: %q", f.Head())
	}
	if f.Trim(3) || f.Trim(-1) || string(f.Head()) != "cd" {
		t.Errorf("trimmed more than there is: %q", f.Head())
	}
	if f.Prepend(f.Front()+1) != nil || f.Prepend(-1) != nil || string(f.Head()) != "cd" {
		t.Error("prepended more than there is room for")
	}
	if b := f.Prepend(f.Front()); len(b) != Headroom+2 || f.Front() != 0 {
		t.Errorf("all of the front: %d bytes, %d left", len(b), f.Front())
	}
	if f.Append(f.Room()+1) != nil || f.Append(-1) != nil {
		t.Error("appended more than there is room for")
	}
	if f.Append(f.Room()) == nil || f.HeadLen() != ChunkSize || f.Room() != 0 {
		t.Errorf("full chunk has a head of %d", f.HeadLen())
	}
}

func TestTruncate(t *testing.T) {
	f := newPool(t, 1).Get()
	copy(f.Append(4), "abcd")
	if f.Truncate(5) || f.Truncate(-1) || !f.Truncate(3) || string(f.Head()) != "abc" {
		t.Errorf("head %q", f.Head())
	}
	f.Borrow([][]byte{{1}}, 1)
	if f.Truncate(2) {
		t.Error("cut a head that has a body behind it")
	}
}

// The open checksum is of the same bytes whatever happens at the front.
func TestChecksumFollowsTheFront(t *testing.T) {
	f := newPool(t, 1).Get()
	copy(f.Append(100), counting(100))
	f.Checksum = Checksum{Needed: true, Start: 34, Offset: 16}
	marked := func() byte { return f.Head()[f.Checksum.Start] }
	f.Prepend(50)
	if marked() != 34 || f.Checksum.Start != 84 || f.Checksum.Offset != 16 {
		t.Errorf("after Prepend it is %+v, of byte %d", f.Checksum, marked())
	}
	if !f.Trim(60) || marked() != 34 {
		t.Errorf("after Trim it is %+v, of byte %d", f.Checksum, marked())
	}
	before := slices.Clone(f.Head())
	if f.Trim(25) {
		t.Error("trimmed bytes that the checksum covers")
	}
	if !bytes.Equal(before, f.Head()) || marked() != 34 {
		t.Errorf("a refused Trim changed the frame: %d bytes, were %d", f.HeadLen(), len(before))
	}
	if !f.Trim(24) || f.Checksum.Start != 0 || marked() != 34 {
		t.Errorf("trimmed up to it: %+v", f.Checksum)
	}
}

func TestGather(t *testing.T) {
	f := newPool(t, 1).Get()
	copy(f.Append(3), "abc")
	if !f.Gather() || f.HeadLen() != 3 {
		t.Error("without a body there is nothing to do")
	}
	f.Borrow([][]byte{[]byte("def"), {}, []byte("g")}, 4)
	if f.Len() != 7 || f.HeadLen() != 3 || string(whole(f)) != "abcdefg" {
		t.Errorf("borrowed: %q of %d", whole(f), f.Len())
	}
	if !f.Gather() || string(f.Head()) != "abcdefg" || f.Len() != 7 || len(f.Body()) != 0 {
		t.Errorf("gathered: %q", f.Head())
	}
	big := counting(f.Room() + 1)
	f.Borrow([][]byte{big[:2000], big[2000:]}, len(big))
	if f.Gather() || f.HeadLen() != 7 || f.Len() != 7+len(big) {
		t.Error("gathered more than the chunk holds, or changed the frame")
	}
	f.Borrow([][]byte{big[:f.Room()]}, f.Room())
	if !f.Gather() || f.Room() != 0 || !bytes.Equal(f.Head()[7:], big[:len(big)-1]) {
		t.Error("a body that fits exactly was not gathered")
	}
}

func TestCopyFrom(t *testing.T) {
	p := newPool(t, 2)
	f, g := p.Get(), p.Get()
	copy(f.Append(5), "hello")
	body := [][]byte{[]byte(" world")}
	f.Borrow(body, 6)
	f.Checksum, f.Hash = Checksum{Needed: true, Start: 1, Offset: 2}, 77
	f.Prepend(1)[0] = '>'
	g.CopyFrom(f)
	if string(whole(g)) != ">hello world" || g.Checksum != f.Checksum || g.Hash != 77 || g.Front() != f.Front() {
		t.Errorf("copy: %q, %+v", whole(g), g)
	}
	g.Head()[0] = '!'
	if f.Head()[0] != '>' {
		t.Error("the copy's head is the original's")
	}
	if g.Address()/ChunkSize == f.Address()/ChunkSize {
		t.Error("the copy lies in the original's chunk")
	}
}

func TestSetHead(t *testing.T) {
	f := newPool(t, 1).Get()
	f.Borrow([][]byte{{1}}, 1)
	f.Checksum.Needed, f.Hash = true, 1
	for _, bad := range [][2]uint32{{ChunkSize, 1}, {ChunkSize + 1, 0}, {0, ChunkSize + 1}, {1, ^uint32(0)}, {^uint32(0), 1}} {
		if f.SetHead(bad[0], bad[1]) {
			t.Errorf("head at %d of %d bytes is outside the chunk", bad[0], bad[1])
		}
	}
	if f.Len() != 1 || f.Hash != 1 {
		t.Error("a refused SetHead changed the frame")
	}
	if !f.SetHead(256, 60) || f.Front() != 256 || f.Len() != 60 || f.Checksum.Needed || f.Hash != 0 {
		t.Errorf("head at %d, frame of %d", f.Front(), f.Len())
	}
	if !f.SetHead(ChunkSize, 0) || !f.SetHead(0, ChunkSize) {
		t.Error("refused what fits exactly")
	}
}

// Whatever is done to a frame in whatever order, its bytes are those of a plain slice treated alike.
func TestFrameIsASlice(t *testing.T) {
	p := newPool(t, 2)
	rapid.Check(t, func(t *rapid.T) {
		f := p.Get()
		defer func() { p.Put(f) }()
		var model []byte
		borrowed := false
		fill := byte(0)
		t.Repeat(map[string]func(*rapid.T){
			"prepend": func(t *rapid.T) {
				b := f.Prepend(rapid.IntRange(0, 120).Draw(t, "n"))
				for i := range b {
					fill++
					b[i] = fill
				}
				model = slices.Concat(b, model)
			},
			"append": func(t *rapid.T) {
				if borrowed {
					t.Skip()
				}
				b := f.Append(rapid.IntRange(0, 1500).Draw(t, "n"))
				for i := range b {
					fill++
					b[i] = fill
				}
				model = append(model, b...)
			},
			"trim": func(t *rapid.T) {
				n := rapid.IntRange(0, 200).Draw(t, "n")
				head := f.HeadLen()
				if f.Trim(n) != (n <= head) {
					t.Fatalf("Trim(%d) of a head of %d", n, head)
				}
				if n <= head {
					model = model[n:]
				}
			},
			"truncate": func(t *rapid.T) {
				n := rapid.IntRange(0, 3000).Draw(t, "n")
				if can := !borrowed && n <= f.HeadLen(); f.Truncate(n) != can {
					t.Fatalf("Truncate(%d), want %v", n, can)
				} else if can {
					model = model[:n]
				}
			},
			"borrow": func(t *rapid.T) {
				if borrowed {
					t.Skip()
				}
				var pieces [][]byte
				n := 0
				for range rapid.IntRange(1, 4).Draw(t, "pieces") {
					piece := counting(rapid.IntRange(1, 2000).Draw(t, "length"))
					pieces, n = append(pieces, piece), n+len(piece)
					model = append(model, piece...)
				}
				f.Borrow(pieces, n)
				borrowed = true
			},
			"gather": func(t *rapid.T) {
				if fits := f.Len()-f.HeadLen() <= f.Room(); f.Gather() != fits {
					t.Fatalf("Gather of %d into %d", f.Len()-f.HeadLen(), f.Room())
				} else if fits {
					borrowed = false
				}
			},
			"clone": func(t *rapid.T) {
				g := p.Get()
				g.CopyFrom(f)
				p.Put(f)
				f = g
			},
			"": func(t *rapid.T) {
				if !bytes.Equal(whole(f), model) || f.Len() != len(model) {
					t.Fatalf("frame has %d bytes, the slice %d", f.Len(), len(model))
				}
				if borrowed != (len(f.Body()) > 0) || f.Front()+f.HeadLen()+f.Room() != ChunkSize {
					t.Fatalf("front %d, head %d, room %d", f.Front(), f.HeadLen(), f.Room())
				}
			},
		})
	})
}
