package guestmem_test

import (
	"bytes"
	"runtime/debug"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/dataplane/guestmem"
	"github.com/shuntio/shunt/dataplane/shm"
)

// truncated is four pages of a file that has lost the last two.
func truncated(t *testing.T) []byte {
	t.Helper()
	fd, err := shm.NewMemFD("copy", 4*4096)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	m, err := shm.Map(shm.MapOptions{FD: fd, Length: 4 * 4096})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Free() })
	if err := unix.Ftruncate(fd, 2*4096); err != nil {
		t.Fatal(err)
	}
	return m.Bytes()
}

func TestCopy(t *testing.T) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	guest := truncated(t)
	ours := bytes.Repeat([]byte{7}, 4*4096)
	for _, length := range []int{0, 1, 7, 64, 255, 4096, 2 * 4096} {
		for _, end := range []int{length, 2 * 4096} { // at the beginning, and up to the edge of what there is
			there := guest[end-length : end]
			clear(there)
			if !guestmem.Copy(there, ours) || !bytes.Equal(there, ours[:length]) {
				t.Errorf("%d bytes to the guest, up to %d", length, end)
			}
			back := make([]byte, length)
			if !guestmem.Copy(back, there) || !bytes.Equal(back, there) {
				t.Errorf("%d bytes from the guest, up to %d", length, end)
			}
		}
	}
	for _, part := range [][]byte{guest[2*4096:], guest[2*4096-1 : 2*4096+1], guest[4*4096-1:], guest[4096 : 3*4096], guest} {
		if guestmem.Copy(part, ours) {
			t.Errorf("%d bytes were written where there is no memory", len(part))
		}
		if guestmem.Copy(ours, part) {
			t.Errorf("%d bytes were read where there is no memory", len(part))
		}
	}
	if guestmem.Copy(guest[2*4096:3*4096], guest[3*4096:]) {
		t.Error("memory that is gone was copied onto itself")
	}
}

func TestReadable(t *testing.T) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	guest := truncated(t)
	for _, part := range [][]byte{nil, guest[:1], guest[:2*4096], guest[4095:4097], guest[2*4096-1 : 2*4096]} {
		if !guestmem.Readable(part) {
			t.Errorf("%d bytes are not there", len(part))
		}
	}
	for _, part := range [][]byte{guest[2*4096:], guest[2*4096-1 : 2*4096+1], guest[4*4096-1:], guest[4095 : 2*4096+1], guest} {
		if guestmem.Readable(part) {
			t.Errorf("%d bytes are there, some of which are gone", len(part))
		}
	}
	if n := testing.AllocsPerRun(100, func() { guestmem.Readable(guest[:4097]) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestCopyAllocatesNothing(t *testing.T) {
	dst, src := make([]byte, 4096), make([]byte, 4096)
	if n := testing.AllocsPerRun(100, func() { guestmem.Copy(dst, src) }); n != 0 {
		t.Errorf("%v allocations a copy", n)
	}
}

func BenchmarkCopy(b *testing.B) {
	dst, src := make([]byte, 4096), make([]byte, 4096)
	b.Run("contained", func(b *testing.B) {
		for b.Loop() {
			guestmem.Copy(dst, src)
		}
	})
	b.Run("bare", func(b *testing.B) {
		for b.Loop() {
			copy(dst, src)
		}
	})
}
