package uring

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/shuntio/shunt/tools/need"
	"golang.org/x/sys/unix"
)

type end struct {
	fd   int
	file File
}

// registerFD gives the ring a file that the test has.
func registerFD(tb testing.TB, r *Ring, fd int) File {
	tb.Helper()
	f, err := r.Register(fd)
	if err != nil {
		tb.Fatal(err)
	}
	return f
}

func socketPair(tb testing.TB, r *Ring) (a, b end) {
	tb.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { unix.Close(fds[0]); unix.Close(fds[1]) })
	return end{fds[0], registerFD(tb, r, fds[0])}, end{fds[1], registerFD(tb, r, fds[1])}
}

func newMemory(tb testing.TB, n int) []byte {
	tb.Helper()
	m, err := NewMemory(n)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { m.Free() })
	return m.Bytes()
}

// memoryFile makes a file that is stable as soon as it is written.
func memoryFile(tb testing.TB, r *Ring, size int) File {
	tb.Helper()
	fd, err := unix.MemfdCreate("file", unix.MFD_CLOEXEC)
	if err != nil {
		tb.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		tb.Fatal(err)
	}
	return registerFD(tb, r, fd)
}

// newFile makes a file of random bytes on a disk and registers it.
func newFile(tb testing.TB, r *Ring, dir string, size, flags int) (File, []byte) {
	tb.Helper()
	content := make([]byte, size)
	random := rand.NewChaCha8([32]byte{1})
	random.Read(content)
	name := filepath.Join(dir, "file")
	if err := os.WriteFile(name, content, 0o600); err != nil {
		tb.Fatal(err)
	}
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_CLOEXEC|flags, 0)
	if err != nil {
		need.Missing(tb, "open with flags %#x: %v", flags, err)
	}
	defer unix.Close(fd) // the ring keeps its own
	return registerFD(tb, r, fd), content
}

// Every form of reading and writing, plain and in registered memory.
func TestReadWrite(t *testing.T) {
	for _, mask := range []string{"", "uring-fixed-vectors"} {
		for _, fixed := range []bool{false, true} {
			for _, direct := range []int{0, unix.O_DIRECT} {
				t.Setenv("SHUNT_MASK", mask)
				r := newRing(t, Options{})
				f, content := newFile(t, r, t.TempDir(), 1<<20, direct)
				memory := newMemory(t, 1<<19)
				if fixed {
					if err := r.RegisterMemory(memory); err != nil {
						t.Fatal(err)
					}
				}
				d := newResult()
				v := r.Vector(64)
				for _, pieces := range []int{1, 2, 33} {
					v.Reset()
					const piece = 4096
					for i := range pieces {
						v.Add(memory[i*2*piece:][:piece])
					}
					pushed(t, r.Readv(&d.op, f, v, 8192))
					if res := d.wait(t, r); int(res) != pieces*piece {
						t.Fatalf("fixed %v: read %d", fixed, res)
					}
					var got []byte
					for i := range pieces {
						got = append(got, memory[i*2*piece:][:piece]...)
					}
					if !bytes.Equal(got, content[8192:][:pieces*piece]) {
						t.Fatalf("fixed %v: %d pieces read are not those of the file", fixed, pieces)
					}
					var flags int32
					if pieces == 2 && fixed && direct != 0 {
						flags = unix.RWF_DSYNC // once: a disk takes its time
					}
					pushed(t, r.Writev(&d.op, f, v, 512<<10, flags))
					if res := d.wait(t, r); int(res) != pieces*piece {
						t.Fatalf("fixed %v: wrote %d", fixed, res)
					}
					v.Reset()
					v.Add(memory[:pieces*piece])
					pushed(t, r.Readv(&d.op, f, v, 512<<10))
					if d.wait(t, r); !bytes.Equal(memory[:pieces*piece], got) {
						t.Fatalf("fixed %v: %d pieces written are not there", fixed, pieces)
					}
				}
				if err := r.UnregisterMemory(memory); err != nil || r.memory.n != 0 {
					t.Errorf("unregister: %v, %d pieces are left", err, r.memory.n)
				}
			}
		}
	}
}

// After an fsync with datasync the SQE's place must not make a write one with DSYNC, or refused.
func TestEntriesAreZeroed(t *testing.T) {
	r := newRing(t, Options{Entries: 1})
	f := memoryFile(t, r, 8192)
	memory := newMemory(t, 4096)
	d := newResult()
	v := r.Vector(1)
	v.Add(memory)
	for range 3 {
		pushed(t, r.Fsync(&d.op, f, true))
		if res := d.wait(t, r); res != 0 {
			t.Fatal("fsync", res)
		}
		pushed(t, r.Fallocate(&d.op, f, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 4096, 4096))
		if res := d.wait(t, r); res != 0 {
			t.Fatal("fallocate", res)
		}
		pushed(t, r.Writev(&d.op, f, v, 0, 0))
		if s := r.sqes[0]; s.opFlags != 0 || s.len != 4096 || s.off != 0 {
			t.Fatalf("%+v", s)
		}
		if res := d.wait(t, r); res != 4096 {
			t.Fatal("write", res)
		}
	}
	if n := r.Stats().Punted.Load(); n != 6 {
		t.Errorf("%d counted as given to io-wq, want 6", n)
	}
	threads, _, err := IOWorkers()
	if err != nil || threads == 0 {
		t.Errorf("%d io-wq threads after fsync, %v", threads, err)
	}
}

// A page that is no longer there is an error of that one operation.
func TestHole(t *testing.T) {
	r := newRing(t, Options{})
	f, _ := newFile(t, r, t.TempDir(), 1<<16, 0)
	hole, err := unix.Mmap(-1, 0, 1<<16, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(hole)
	d := newResult()
	v := r.Vector(1)
	v.Add(hole[:4096])
	pushed(t, r.Readv(&d.op, f, v, 0))
	if res := d.wait(t, r); res != -int32(unix.EFAULT) {
		t.Errorf("read into a hole: %d, want EFAULT", res)
	}
}

func TestRegisteredMemoryIsSplit(t *testing.T) {
	if testing.Short() {
		t.Skip("pins a gigabyte")
	}
	r := newRing(t, Options{})
	const size = maxBuffer + 8192
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, 1<<20); err != nil {
		t.Fatal(err)
	}
	// The same megabyte everywhere, so that pinning costs no memory.
	memory, err := unix.Mmap(-1, 0, size, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(memory)
	if err := repeat(memory, fd, 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := r.RegisterMemory(memory); err != nil {
		t.Fatal(err)
	}
	if r.memory.n != 2 {
		t.Errorf("%d pieces, want 2", r.memory.n)
	}
	f, content := newFile(t, r, t.TempDir(), 1<<16, 0)
	d := newResult()
	v := r.Vector(2)
	for _, at := range []int{0, maxBuffer - 4096, maxBuffer, size - 8192} { // within a piece, and across
		v.Reset()
		v.Add(memory[at:][:8192])
		_, whole := r.memory.holds(v)
		if across := at == maxBuffer-4096; whole == across {
			t.Errorf("at %#x: in one piece %v", at, whole)
		}
		pushed(t, r.Readv(&d.op, f, v, 4096))
		if res := d.wait(t, r); res != 8192 || !bytes.Equal(memory[at:][:8192], content[4096:][:8192]) {
			t.Errorf("at %#x: read %d", at, res)
		}
	}
	if err := r.UnregisterMemory(memory); err != nil || r.memory.n != 0 {
		t.Errorf("unregister: %v, %d pieces are left", err, r.memory.n)
	}
}

// Files that are given back under way.
func TestUnregister(t *testing.T) {
	r := newRing(t, Options{Files: 2})
	a, b := socketPair(t, r)
	if _, err := r.Register(0); err == nil {
		t.Error("a third file in two slots")
	}
	memory := newMemory(t, 64)
	d := newResult()
	v := r.Vector(1)
	v.Add(memory)
	pushed(t, r.Recv(&d.op, a.file, v, 0))
	if err := r.Unregister(a.file); err != nil {
		t.Fatal(err)
	}
	if err := r.Unregister(a.file); err == nil {
		t.Error("unregistered twice")
	}
	if _, err := r.Register(0); err == nil {
		t.Error("its slot is free while it is in use")
	}
	unix.Write(b.fd, []byte("late"))
	if res := d.wait(t, r); res != 4 {
		t.Errorf("what was under way ended with %d", res)
	}
	if _, err := r.Register(a.fd); err != nil {
		t.Errorf("its slot is still in use: %v", err)
	}
	if _, err := r.Register(1 << 20); err == nil {
		t.Error("no file is registered")
	}
	for _, f := range []File{-1, 2} {
		if err := r.Unregister(f); err == nil {
			t.Errorf("file %d is unregistered", f)
		}
	}
}

// Garbage collections while IO is under way: neither waits long for the other, and nothing of Go's moves under the kernel's hands.
func TestCollector(t *testing.T) {
	r := newRing(t, Options{})
	f, content := newFile(t, r, t.TempDir(), 1<<20, 0)
	memory := newMemory(t, 64*4096)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				runtime.GC()
			}
		}
	}()
	var all [64]*result
	for i := range all {
		all[i] = newResult()
	}
	for range 300 {
		for i, d := range all {
			d.done = false
			v := r.Vector(2)
			v.Add(memory[i*4096:][:1024])
			v.Add(memory[i*4096+2048:][:1024])
			d.then = func() { r.Free(v) }
			pushed(t, r.Readv(&d.op, f, v, int64(i)*8192))
		}
		grow(64)
		settle(t, r, func() bool { return r.Busy() == 0 })
		for i, d := range all {
			if d.res != 2048 || !bytes.Equal(memory[i*4096:][:1024], content[i*8192:][:1024]) ||
				!bytes.Equal(memory[i*4096+2048:][:1024], content[i*8192+1024:][:1024]) {
				t.Fatalf("read %d: result %d", i, d.res)
			}
		}
	}
	close(stop)
	<-stopped
}

// grow makes the goroutine's stack move.
func grow(n int) int {
	var pad [1024]byte
	if n == 0 {
		return int(pad[0])
	}
	return grow(n-1) + int(pad[n])
}

// What would copy for long in one round is begun in several.
func TestRoundIsBounded(t *testing.T) {
	r := newRing(t, Options{})
	f, content := newFile(t, r, t.TempDir(), 4<<20, 0)
	memory := newMemory(t, 4<<20)
	var all [32]*result
	for i := range all {
		all[i] = newResult()
		v := r.Vector(1)
		v.Add(memory[i<<17:][:1<<17])
		pushed(t, r.Readv(&all[i].op, f, v, int64(i)<<17))
	}
	rounds := 0
	for ; r.unsent(); rounds++ {
		before := r.taken
		r.Flush()
		if n := r.taken - before; n > 8 {
			t.Errorf("%d reads of 128 KiB were begun at once", n)
		}
	}
	if rounds < 4 {
		t.Errorf("%d rounds", rounds)
	}
	settle(t, r, func() bool { return r.Busy() == 0 })
	if !bytes.Equal(memory, content) {
		t.Error("other bytes")
	}
}
