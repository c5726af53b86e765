package xsk

import (
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// TestRingsAgainstQueue drives both ends of rings whose indices wrap, and compares with a plain queue.
func TestRingsAgainstQueue(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := 1 << rapid.IntRange(0, 5).Draw(t, "log size")
		start := rapid.OneOf(rapid.Uint32(), rapid.Uint32Range(^uint32(0)-40, ^uint32(0))).Draw(t, "start")
		// The same memory seen from both ends: what the producer submits the consumer peeks.
		b := ringBytes(size, 8, start)
		in, err := newProducer[uint64](b, layout, size)
		if err != nil {
			t.Fatal(err)
		}
		out, err := newConsumer[uint64](b, layout, size)
		if err != nil {
			t.Fatal(err)
		}
		var queue []uint64
		var number uint64
		t.Repeat(map[string]func(*rapid.T){
			"produce": func(t *rapid.T) {
				want := rapid.IntRange(0, size+2).Draw(t, "n")
				n := in.Reserve(want)
				if expect := min(want, size-len(queue)); n != expect {
					t.Fatalf("Reserve(%d) = %d with %d of %d queued, want %d", want, n, len(queue), size, expect)
				}
				n = rapid.IntRange(0, n).Draw(t, "submitted")
				for i := range n {
					number++
					in.Set(i, number)
					queue = append(queue, number)
				}
				in.Submit(n)
			},
			"consume": func(t *rapid.T) {
				want := rapid.IntRange(0, size+2).Draw(t, "n")
				n := out.Peek(want)
				if expect := min(want, len(queue)); n != expect {
					t.Fatalf("Peek(%d) = %d with %d queued, want %d", want, n, len(queue), expect)
				}
				for i := range n {
					if got := out.At(i); got != queue[i] {
						t.Fatalf("entry %d is %d, want %d", i, got, queue[i])
					}
				}
				n = rapid.IntRange(0, n).Draw(t, "released")
				out.Release(n)
				queue = queue[n:]
			},
			"": func(t *rapid.T) {
				if n := in.Unread(); n != len(queue) {
					t.Fatalf("Unread() = %d with %d queued", n, len(queue))
				}
			},
		})
	})
}

// TestRingIndexNonsense writes any index at the kernel's side: no call may promise more than the ring has.
func TestRingIndexNonsense(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const size = 16
		start := rapid.Uint32().Draw(t, "start")
		pb, cb := ringBytes(size, 16, start), ringBytes(size, 16, start)
		p, _ := newProducer[Desc](pb, layout, size)
		c, _ := newConsumer[Desc](cb, layout, size)
		_, theirs, _, _ := cells(pb, layout)
		ours, _, _, _ := cells(cb, layout)
		for range 20 {
			*theirs, *ours = rapid.Uint32().Draw(t, "consumer"), rapid.Uint32().Draw(t, "producer")
			n, m := p.Reserve(1<<20), c.Peek(1<<20)
			if n < 0 || n > size || m < 0 || m > size || p.Unread() > size {
				t.Fatalf("Reserve %d, Peek %d, Unread %d of a ring of %d", n, m, p.Unread(), size)
			}
			for i := range n {
				p.Set(i, Desc{})
			}
			for i := range m {
				c.At(i)
			}
			p.Submit(n)
			c.Release(m)
		}
	})
}

func TestNoRing(t *testing.T) {
	var p Producer[Desc]
	var c Consumer[uint64]
	if p.Reserve(3) != 0 || c.Peek(3) != 0 || p.Unread() != 0 || p.NeedWakeup() || p.Len() != 0 || c.Len() != 0 {
		t.Error("a ring that does not exist promises something")
	}
	p.Submit(0)
	c.Release(0)
}

func TestRingLayoutIsChecked(t *testing.T) {
	b := alignedBytes(1024)
	for name, off := range map[string]unix.XDPRingOffset{
		"producer outside":   {Producer: 4096, Consumer: 64, Flags: 128, Desc: 192},
		"producer at end":    {Producer: 1022, Consumer: 64, Flags: 128, Desc: 192},
		"consumer unaligned": {Producer: 0, Consumer: 66, Flags: 128, Desc: 192},
		"entries outside":    {Producer: 0, Consumer: 64, Flags: 128, Desc: 1 << 40},
		"entries too many":   {Producer: 0, Consumer: 64, Flags: 128, Desc: 1024 - 16},
	} {
		if _, err := newProducer[Desc](b, off, 16); err == nil {
			t.Errorf("%s: accepted", name)
		}
		if _, err := newConsumer[Desc](b, off, 16); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for _, size := range []int{0, 3, -1} {
		if _, err := newProducer[uint64](b, layout, size); err == nil {
			t.Errorf("ring of %d entries: accepted", size)
		}
	}
}

func BenchmarkRing(b *testing.B) {
	m := ringBytes(2048, 16, 0)
	in, _ := newProducer[Desc](m, layout, 2048)
	out, _ := newConsumer[Desc](m, layout, 2048)
	b.ReportAllocs()
	for b.Loop() {
		n := in.Reserve(64)
		for i := range n {
			in.Set(i, Desc{Addr: uint64(i)})
		}
		in.Submit(n)
		n = out.Peek(64)
		for i := range n {
			out.At(i)
		}
		out.Release(n)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(64*b.N), "ns/descriptor")
}
