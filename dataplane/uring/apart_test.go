package uring

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// threads is how many io-wq threads the calling thread has.
func threads(tb testing.TB) (n int) {
	tb.Helper()
	names, err := filepath.Glob("/proc/self/task/*/comm")
	if err != nil {
		tb.Fatal(err)
	}
	for _, name := range names {
		comm, _ := os.ReadFile(name) // one that has ended meanwhile has none
		if strings.TrimSpace(string(comm)) == fmt.Sprintf("iou-wrk-%d", unix.Gettid()) {
			n++
		}
	}
	return n
}

// What is kept apart goes to io-wq also where the page cache has it; a slot's next file is another one.
func TestApart(t *testing.T) {
	modes(t, func(t *testing.T) {
		r := newRing(t, Options{Files: 1})
		v := r.Vector(1)
		v.Add(newMemory(t, 4096))
		d := newResult()
		for i, apart := range []bool{false, true, false} {
			f, content := newFile(t, r, t.TempDir(), 4096, 0)
			if apart {
				r.Apart(f)
			}
			pushed(t, r.Readv(&d.op, f, v, 0))
			if flags := r.sqes[(r.tail-1)&uint32(len(r.sqes)-1)].flags; flags&sqeAsync != 0 != apart {
				t.Errorf("file %d: flags %#x", i, flags)
			}
			if r.Flush(); !apart && r.empty() {
				t.Errorf("file %d: what the page cache has did not come at once", i)
			}
			if res := d.wait(t, r); int(res) != len(content) {
				t.Errorf("file %d: result %d", i, res)
			}
			if apart && threads(t) == 0 {
				t.Errorf("file %d: no io-wq thread", i)
			}
			if err := r.Unregister(f); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// Which files may keep who reads them waiting: those of a file system without RWF_NOWAIT, as proc is one. Nothing is read by asking.
func TestMayWait(t *testing.T) {
	for path, want := range map[string]bool{filepath.Join(t.TempDir(), "file"): false, "/proc/self/stat": true} {
		if !want {
			if err := os.WriteFile(path, make([]byte, 4096), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if got := MayWait(fd); got != want {
			t.Errorf("%s: %v, want %v", path, got, want)
		}
		if at, err := unix.Seek(fd, 0, unix.SEEK_CUR); at != 0 || err != nil {
			t.Errorf("%s: at %d after that, %v", path, at, err)
		}
		unix.Close(fd)
	}
}

// There is room for as many as have both an entry and a vector.
func TestRoom(t *testing.T) {
	r := newRing(t, Options{Entries: 64})
	for _, c := range []struct{ buffers, want int }{{0, 64}, {1, 64}, {18, 64}, {19, 40}, {130, 40}, {131, 8}, {MaxVector, 8}} {
		if n := r.Room(c.buffers); n != c.want {
			t.Errorf("room for %d operations of %d buffers, want %d", n, c.buffers, c.want)
		}
	}
	var ops [60]result
	for i := range ops {
		ops[i].op.Handler = &ops[i]
		pushed(t, r.Nop(&ops[i].op))
	}
	v := r.Vector(MaxVector)
	for buffers, want := range map[int]int{1: 4, MaxVector: 4} {
		if n := r.Room(buffers); n != want {
			t.Errorf("room for %d operations of %d buffers beside 60 others, want %d", n, buffers, want)
		}
	}
	r.Free(v)
	settle(t, r, func() bool { return ops[59].done })
}

// However often io-wq is nudged, and whether it comes to it or not: few operations, which all end.
func TestNudge(t *testing.T) {
	modes(t, func(t *testing.T) {
		r := newRing(t, Options{Entries: 8})
		for range 100 {
			r.Nudge()
			if n := r.Busy(); n == 0 || n > 4 {
				t.Fatalf("%d operations", n)
			}
			r.Flush()
			r.Poll()
		}
		settle(t, r, func() bool { return r.Busy() == 0 })
		var others [8]result
		for i := range others {
			others[i].op.Handler = &others[i]
			pushed(t, r.Nop(&others[i].op))
		}
		r.Nudge() // there is no room
		settle(t, r, func() bool { return r.Busy() == 0 })
		if n := testing.AllocsPerRun(10, func() {
			r.Nudge()
			settle(t, r, func() bool { return r.Busy() == 0 })
		}); n > 1 { // settle's own
			t.Errorf("%v allocations", n)
		}
	})
}
