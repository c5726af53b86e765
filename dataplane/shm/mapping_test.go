package shm

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"testing"

	"github.com/shuntio/shunt/tools/lab/peer"
	"github.com/shuntio/shunt/tools/need"
	"golang.org/x/sys/unix"
)

// memFD is a memory file that lives as long as the test.
func memFD(t *testing.T, size int64) int {
	t.Helper()
	fd, err := NewMemFD("shm-test", size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func mapFD(t *testing.T, o MapOptions) *Mapping {
	t.Helper()
	m, err := Map(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Free() })
	return m
}

// faultAt calls fn and returns the address whose access faulted in it.
func faultAt(t *testing.T, fn func()) (address uintptr, faulted bool) {
	t.Helper()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		switch r := recover().(type) {
		case nil:
		case interface {
			runtime.Error
			Addr() uintptr
		}:
			address, faulted = r.Addr(), true
		default:
			t.Errorf("panic with %v, which names no address", r)
		}
	}()
	fn()
	return 0, false
}

func TestMapShares(t *testing.T) {
	page := os.Getpagesize()
	fd := memFD(t, int64(3*page))
	whole := mapFD(t, MapOptions{FD: fd, Length: 3 * page, Populate: true}).Bytes()
	second := mapFD(t, MapOptions{FD: fd, Offset: int64(page), Length: page}).Bytes()
	copy(second, "written by one")
	if !bytes.HasPrefix(whole[page:], []byte("written by one")) {
		t.Error("what is written through one mapping is not in the other")
	}
	if len(whole) != 3*page || len(second) != page {
		t.Errorf("mapped %d and %d bytes, want %d and %d", len(whole), len(second), 3*page, page)
	}
}

func TestMapReadOnlyFaultsOnWrite(t *testing.T) {
	fd := memFD(t, 4096)
	b := mapFD(t, MapOptions{FD: fd, Length: 4096, ReadOnly: true}).Bytes()
	if b[7] != 0 {
		t.Errorf("fresh memory holds %d", b[7])
	}
	if at, ok := faultAt(t, func() { b[7] = 1 }); !ok || at != Address(b)+7 {
		t.Errorf("write: fault %v at %#x, want one at %#x", ok, at, Address(b)+7)
	}
}

func TestMapAnonymous(t *testing.T) {
	for _, huge := range []bool{false, true} { // where there are no huge pages, small ones
		b := mapFD(t, MapOptions{FD: -1, Length: 2 << 20, Huge: huge}).Bytes()
		b[0], b[len(b)-1] = 1, 2
	}
}

func TestMapRefuses(t *testing.T) {
	fd := memFD(t, 4096)
	for name, o := range map[string]MapOptions{
		"no length":        {FD: fd},
		"negative length":  {FD: fd, Length: -1},
		"unaligned offset": {FD: fd, Offset: 1, Length: 4096},
		"no file":          {FD: 1 << 20, Length: 4096},
		"too long":         {FD: fd, Length: 1 << 60},
	} {
		if m, err := Map(o); err == nil {
			m.Free()
			t.Errorf("%s: mapped", name)
		}
	}
}

func TestRevokedMemoryFaults(t *testing.T) {
	m := mapFD(t, MapOptions{FD: memFD(t, 8192), Length: 8192})
	stale := m.Bytes()[4096:]
	stale[0] = 1
	for range 2 { // once is as good as twice
		if err := m.Revoke(); err != nil {
			t.Fatal(err)
		}
	}
	var sink [64]byte
	for name, touch := range map[string]func(){
		"load":  func() { sink[0] = stale[0] },
		"store": func() { stale[0] = 1 },
		"from":  func() { copy(sink[:], stale) },
		"to":    func() { copy(stale, sink[:]) },
		"clear": func() { clear(stale[:64]) },
	} {
		if at, ok := faultAt(t, touch); !ok || at-Address(stale) >= 64 {
			t.Errorf("%s: fault %v at %#x, want one at %#x", name, ok, at, Address(stale))
		}
	}
	// Its addresses are nobody else's: a new mapping lies elsewhere.
	for range 64 {
		b := mapFD(t, MapOptions{FD: -1, Length: 8192}).Bytes()
		if Address(b)-Address(m.Bytes()) < 8192 {
			t.Fatal("addresses of revoked memory were handed out again")
		}
	}
	if err := errors.Join(m.Free(), m.Free()); err != nil {
		t.Errorf("free: %v", err)
	}
	if m.Bytes() != nil {
		t.Error("freed mapping still has bytes")
	}
}

// Whoever truncates the file takes the memory away.
func TestTruncatedMemoryFaults(t *testing.T) {
	fd := memFD(t, 8192)
	b := mapFD(t, MapOptions{FD: fd, Length: 8192}).Bytes()
	words, err := View[uint16](b, 4096)
	if err != nil {
		t.Fatal(err)
	}
	wide, err := View[uint32](b, 2048)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Ftruncate(fd, 4096); err != nil {
		t.Fatal(err)
	}
	for name, touch := range map[string]func(){
		"Load16":    func() { Load16(&words[2048]) },
		"Store16":   func() { Store16(&words[2048], 1) },
		"Load32":    func() { Load32(&wide[1024]) },
		"Store32":   func() { Store32(&wide[1024], 1) },
		"Release32": func() { Release32(&wide[1024], 1) },
	} {
		if at, ok := faultAt(t, touch); !ok || at != Address(b)+4096 {
			t.Errorf("%s: fault %v at %#x, want one at %#x", name, ok, at, Address(b)+4096)
		}
	}
	if _, ok := faultAt(t, func() { Load16(&words[2047]) }); ok {
		t.Error("memory in front of the cut faults, too")
	}
}

func TestCheckBacking(t *testing.T) {
	open := func(path string, flags int) int {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0o600)
		if err != nil {
			t.Fatalf("open %s: %v", path, err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(pipe[0]); unix.Close(pipe[1]); unix.Close(event) })

	refused := map[string]int{
		"pipe":            pipe[0],
		"eventfd":         event,
		"file of procfs":  open("/proc/self/maps", unix.O_RDONLY),
		"device on tmpfs": open("/dev/zero", unix.O_RDWR), // devtmpfs answers as tmpfs
	}
	disk := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(disk, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(disk, &fs); err != nil {
		t.Fatal(err)
	}
	if uint32(fs.Type) != unix.TMPFS_MAGIC {
		refused["file on disk"] = open(disk, unix.O_RDWR)
	}
	if unix.Statfs("/dev/shm", &fs) == nil && uint32(fs.Type) == unix.TMPFS_MAGIC {
		refused["directory on tmpfs"] = open("/dev/shm", unix.O_RDONLY|unix.O_DIRECTORY)
		file, err := os.CreateTemp("/dev/shm", "shunt-test-")
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		os.Remove(file.Name())
		if err := file.Truncate(12345); err != nil {
			t.Fatal(err)
		}
		if size, err := CheckBacking(int(file.Fd())); err != nil || size != 12345 {
			t.Errorf("file on tmpfs: %d bytes, %v", size, err)
		}
	}
	for name, fd := range refused {
		if _, err := CheckBacking(fd); !errors.Is(err, ErrBacking) {
			t.Errorf("%s: %v, want ErrBacking", name, err)
		}
	}
	if _, err := CheckBacking(-1); err == nil {
		t.Error("no file: accepted")
	}
	if size, err := CheckBacking(memFD(t, 8192)); err != nil || size != 8192 {
		t.Errorf("memfd: %d bytes, %v", size, err)
	}
}

func TestHugePages(t *testing.T) {
	need.Root(t)
	release, err := peer.ReserveHugePages(1)
	if err != nil {
		need.Missing(t, "no huge page can be had: %v", err)
	}
	defer func() {
		if err := release(); err != nil {
			t.Error(err)
		}
	}()
	fd, err := unix.MemfdCreate("shm-test", unix.MFD_CLOEXEC|unix.MFD_HUGETLB|unix.MFD_HUGE_2MB)
	if err != nil {
		need.Missing(t, "no memfd of 2 MiB pages: %v", err)
	}
	defer unix.Close(fd)
	if PageSize(fd) != 2<<20 {
		t.Errorf("page size is %d", PageSize(fd))
	}
	if PageSize(memFD(t, 4096)) != os.Getpagesize() {
		t.Error("page size of small pages is wrong")
	}
	if size, err := CheckBacking(fd); err != nil || size != 0 {
		t.Errorf("check: %d bytes, %v", size, err)
	}
	if err := unix.Ftruncate(fd, 2<<20); err != nil {
		t.Fatal(err)
	}
	m, err := Map(MapOptions{FD: fd, Length: 2 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Free()
	m.Bytes()[12345] = 1
	if err := unix.Ftruncate(fd, 0); err != nil {
		t.Fatal(err)
	}
	if at, ok := faultAt(t, func() { m.Bytes()[12345] = 1 }); !ok || at != Address(m.Bytes())+12345 {
		t.Errorf("truncated: fault %v at %#x", ok, at)
	}
}
