package guestmem

import (
	"encoding/binary"
	"math"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/shuntio/shunt/dataplane/shm"
	"github.com/shuntio/shunt/tools/need"
)

func mustOpenLog(t testing.TB, o LogOptions) *Log {
	t.Helper()
	l, err := OpenLog(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Free() })
	return l
}

// Exactly the pages that a mark touches are set, and nothing beyond the log.
func TestMark(t *testing.T) {
	fd := memFD(t, 2)
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Uint64Range(1, 40).Draw(t, "size")
		offset := 8 * rapid.Uint64Range(0, (2*page-48)/8).Draw(t, "offset")
		file := make([]byte, 2*page)
		if _, err := unix.Pwrite(fd, file, 0); err != nil {
			t.Fatal(err)
		}
		l, err := OpenLog(LogOptions{FD: fd, Offset: offset, Size: size})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Free()
		pages := size * 8
		missed := uint64(0)
		for range rapid.IntRange(1, 8).Draw(t, "marks") {
			addr := rapid.Uint64Range(0, (pages+3)*LogPage).Draw(t, "addr")
			n := rapid.Uint64Range(0, 100*LogPage).Draw(t, "n")
			l.Mark(addr, n)
			if n == 0 {
				continue
			}
			for p := addr / LogPage; p <= (addr+n-1)/LogPage; p++ {
				if p < pages {
					file[offset+p/8] |= 1 << (p % 8) // as the specification writes it
				}
			}
			if (addr+n-1)/LogPage >= pages {
				missed++
			}
		}
		got := make([]byte, len(file))
		if _, err := unix.Pread(fd, got, 0); err != nil {
			t.Fatal(err)
		}
		if string(got) != string(file) {
			t.Fatal("the bits are not those of the marks")
		}
		if l.Missed() != missed {
			t.Fatalf("%d marks missed, want %d", l.Missed(), missed)
		}
	})
}

func TestMarkAtTheEndOfAddresses(t *testing.T) {
	l := mustOpenLog(t, LogOptions{FD: memFD(t, 1), Size: 8})
	l.Mark(math.MaxUint64, 1)
	l.Mark(math.MaxUint64, 2) // wraps
	l.Mark(0, math.MaxUint64)
	if l.words[0] != math.MaxUint64 || l.Missed() != 3 {
		t.Errorf("bits %#x, %d missed", l.words[0], l.Missed())
	}
	var none *Log
	none.Mark(0, 1)
	if none.Contains(0) {
		t.Error("no log has no address")
	}
}

func TestOpenLogRefuses(t *testing.T) {
	fd := memFD(t, 1)
	disk, err := os.Create(t.TempDir() + "/log")
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	for name, c := range map[string]struct {
		o      LogOptions
		reason string
	}{
		"no file":      {LogOptions{FD: -1, Size: 8}, "bad file descriptor"},
		"empty":        {LogOptions{FD: fd}, "between 1 and"},
		"huge":         {LogOptions{FD: fd, Size: maxLog + 1}, "between 1 and"},
		"too long":     {LogOptions{FD: fd, Size: page + 1}, "only 0x1000 bytes"},
		"beyond":       {LogOptions{FD: fd, Offset: page, Size: 1}, "only 0x1000 bytes"},
		"far beyond":   {LogOptions{FD: fd, Offset: math.MaxUint64 - 7, Size: 8}, "only 0x1000 bytes"},
		"crooked":      {LogOptions{FD: fd, Offset: 4, Size: 8}, "multiple of 8"},
		"on some disk": {LogOptions{FD: int(disk.Fd()), Size: 8}, ""},
	} {
		if name == "on some disk" {
			if _, err := shm.CheckBacking(int(disk.Fd())); err == nil {
				continue // the temporary directory lies on tmpfs
			}
		}
		if l, err := OpenLog(c.o); err == nil || !strings.Contains(err.Error(), c.reason) {
			t.Errorf("%s: %v", name, err)
			if err == nil {
				l.Free()
			}
		}
	}
}

// A memfd is sealed, and cannot be taken away under us.
func TestLogKeepsItsSize(t *testing.T) {
	fd := memFD(t, 1)
	mustOpenLog(t, LogOptions{FD: fd, Size: 64})
	if err := unix.Ftruncate(fd, 0); err != unix.EPERM {
		t.Errorf("truncated: %v", err)
	}
}

// A file that cannot be sealed can be truncated: the fault is the front-end's.
func TestTruncatedLog(t *testing.T) {
	file, err := os.CreateTemp("/dev/shm", "shunt-log")
	if err != nil {
		need.Missing(t, "no tmpfs at /dev/shm: %v", err)
	}
	defer os.Remove(file.Name())
	defer file.Close()
	fd := int(file.Fd())
	if _, err := shm.CheckBacking(fd); err != nil {
		need.Missing(t, "no tmpfs at /dev/shm: %v", err)
	}
	if err := file.Truncate(page); err != nil {
		t.Fatal(err)
	}
	l := mustOpenLog(t, LogOptions{FD: fd, Size: 64})
	if at := faultAddress(t, func() { l.Mark(0, 1) }); at != 0 {
		t.Fatalf("fault at %#x", at)
	}
	if err := file.Truncate(0); err != nil {
		t.Fatal(err)
	}
	at := faultAddress(t, func() { l.Mark(0, 1) })
	if at == 0 || !l.Contains(at) {
		t.Errorf("fault at %#x is not laid to the log", at)
	}
	if l.Contains(0) || l.Contains(math.MaxUint64) {
		t.Error("the log has address 0")
	}
}

func TestLogEvent(t *testing.T) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	l := mustOpenLog(t, LogOptions{FD: memFD(t, 1), Size: 64})
	l.Mark(0, 1)
	l.SetEvent(fd)
	l.Mark(0, 1)       // dirty already
	l.Mark(0, LogPage) // likewise
	l.Mark(LogPage, 70*LogPage)
	l.SetEvent(-1)
	l.Mark(200*LogPage, 1)
	var count [8]byte
	if _, err := unix.Read(fd, count[:]); err != nil || binary.NativeEndian.Uint64(count[:]) != 1 {
		t.Errorf("signalled %d times, %v", binary.NativeEndian.Uint64(count[:]), err)
	}
}

// A migration: the front-end takes bits and copies pages while others write and mark them. When the writers have stopped, and it has done so once more,
// the copy is the original.
func TestMigration(t *testing.T) {
	const pages, writers, writes = 150, 2, 20000
	guest, err := Open([]Region{{GuestAddr: 0, Size: pages * page, FD: memFD(t, pages)}})
	if err != nil {
		t.Fatal(err)
	}
	defer guest.Free()
	fd := memFD(t, 1)
	l := mustOpenLog(t, LogOptions{FD: fd, Size: (pages + 7) / 8})
	theirs := mustOpenLog(t, LogOptions{FD: fd, Size: (pages + 7) / 8})
	at := func(p int) *uint64 {
		words, err := shm.View[uint64](guest.View(uint64(p)*page+8, 8), 1)
		if err != nil {
			t.Fatal(err)
		}
		return &words[0]
	}
	copied := make([]uint64, pages)
	take := func() {
		theirs.Take(func(page uint64) { copied[page] = atomic.LoadUint64(at(int(page))) })
	}
	var writing sync.WaitGroup
	for n := range writers {
		writing.Add(1)
		go func() {
			defer writing.Done()
			for i := range writes {
				p := (i*7 + n*31) % pages
				atomic.AddUint64(at(p), uint64(i)|1)
				l.Mark(uint64(p)*page+8, 8)
			}
		}()
	}
	stopped := make(chan struct{})
	go func() { writing.Wait(); close(stopped) }()
	for done := false; !done; {
		select {
		case <-stopped:
			done = true
		default:
		}
		take()
	}
	for p := range pages {
		if v := atomic.LoadUint64(at(p)); copied[p] != v {
			t.Errorf("page %d: copied %#x, is %#x", p, copied[p], v)
		}
	}
}

func TestMarkAllocatesNothing(t *testing.T) {
	l := mustOpenLog(t, LogOptions{FD: memFD(t, 1), Size: 64})
	if n := testing.AllocsPerRun(100, func() { l.Mark(3*LogPage, 64*LogPage) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkMark(b *testing.B) {
	l := mustOpenLog(b, LogOptions{FD: memFD(b, 1), Size: page})
	for i := range b.N {
		l.Mark(uint64(i&1023)*LogPage, 1514)
	}
}

func BenchmarkView(b *testing.B) {
	for name, n := range map[string]int{"2": 2, "8": 8, "509": MaxRegions} {
		b.Run(name, func(b *testing.B) {
			fd := memFD(b, 1)
			regions := make([]Region, n)
			for i := range regions {
				regions[i] = Region{GuestAddr: uint64(i) * page, UserAddr: uint64(i) * page, Size: page, FD: fd}
			}
			m := mustOpen(b, regions...)
			for i := range b.N {
				if m.View(uint64(i*7%n)*page, 64) == nil {
					b.Fatal("no view")
				}
			}
		})
	}
}
