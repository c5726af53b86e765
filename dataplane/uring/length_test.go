package uring

import (
	"testing"

	"github.com/shuntio/shunt/dataplane/shm"
	"golang.org/x/sys/unix"
)

// Neighbours that a vector makes one buffer of may be longer than 32 bits say: an operation on them moves what there is, and not their length's last bits.
func TestBufferBeyond4GiB(t *testing.T) {
	r := newRing(t, Options{})
	m, err := shm.Map(shm.MapOptions{FD: -1, Length: 4<<30 + 8192}) // of which little is ever touched
	if err != nil {
		t.Fatal(err)
	}
	defer m.Free()
	memory := m.Bytes()
	f, _ := newFile(t, r, t.TempDir(), 64<<10, 0)
	a, b := socketPair(t, r)
	d := newResult()
	for _, n := range []int{4 << 30, 4<<30 + 512, len(memory)} {
		v := r.Vector(2)
		v.Add(memory[:1<<30])
		v.Add(memory[1<<30 : n])
		if v.last != 1 {
			t.Fatalf("%d buffers", v.last)
		}
		pushed(t, r.Readv(&d.op, f, v, 0))
		if res := d.wait(t, r); res != 64<<10 {
			t.Errorf("read into %d bytes: %d", n, res)
		}
		if _, err := unix.Write(b.fd, memory[:10000]); err != nil {
			t.Fatal(err)
		}
		pushed(t, r.Recv(&d.op, a.file, v, 0))
		if res := d.wait(t, r); res != 10000 {
			t.Errorf("received into %d bytes: %d", n, res)
		}
		pushed(t, r.Send(&d.op, a.file, v, unix.MSG_DONTWAIT))
		sent := d.wait(t, r)
		if sent < 10000 {
			t.Errorf("sent of %d bytes: %d", n, sent)
		}
		for sent > 0 {
			n, err := unix.Read(b.fd, memory[:64<<10])
			if err != nil {
				t.Fatal(err)
			}
			sent -= int32(n)
		}
		r.Free(v)
	}
}

// A driver may name the same registered buffer often enough that it is more than the kernel moves at once, which the fixed form refuses.
func TestFixedBeyondMost(t *testing.T) {
	r := newRing(t, Options{})
	memory := newMemory(t, 4<<20)
	if err := r.RegisterMemory(memory); err != nil {
		t.Fatal(err)
	}
	f, content := newFile(t, r, t.TempDir(), 64<<10, 0)
	v := r.Vector(MaxVector)
	for range 600 {
		v.Add(memory)
	}
	d := newResult()
	pushed(t, r.Readv(&d.op, f, v, 0))
	if res := d.wait(t, r); res != int32(len(content)) {
		t.Errorf("read into %d bytes: %d", v.Len(), res)
	}
}
