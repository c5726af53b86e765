package file

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/blk/file/filetest"
	"github.com/shuntio/shunt/dataplane/uring"
	"github.com/shuntio/shunt/tools/need"
	"golang.org/x/sys/unix"
)

// tells skips a test on kernels that do not tell what the page cache has: there each read is the worker's.
func tells(tb testing.TB, path string) {
	tb.Helper()
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		tb.Fatal(err)
	}
	defer unix.Close(fd)
	if !uring.TellsCached(fd) {
		if os.Getenv("SHUNT_MASK") == "" {
			need.Missing(tb, "cachestat is missing; it came with Linux 6.5")
		}
		tb.Skip("cachestat is masked")
	}
}

// hold has the page cache hold ranges of a store's file, and nothing else.
func hold(tb testing.TB, s *Store, ranges ...[2]int64) {
	tb.Helper()
	forget(tb, s.path)
	fd, err := unix.Open(s.path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		tb.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Fadvise(fd, 0, 0, unix.FADV_RANDOM); err != nil { // nothing is read ahead
		tb.Fatal(err)
	}
	for _, r := range ranges {
		if n, err := unix.Pread(fd, make([]byte, r[1]-r[0]), r[0]); err != nil || int64(n) != r[1]-r[0] {
			tb.Fatal(n, err)
		}
	}
}

func TestResidency(t *testing.T) {
	const size = 4 << 20
	path, _ := makeFile(t, t.TempDir(), size)
	s := openStore(t, path, Options{})
	tells(t, s.path)
	hold(t, s, [2]int64{0, 3 << 20}, [2]int64{3<<20 + 8192, size})
	now := int64(1 << 40)
	check := func(what string, offset, length uint64, want bool) {
		t.Helper()
		if got := s.resident.has(offset, length, now); got != want {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	check("a page", 4096, 4096, true)
	check("a part of one", 5000, 512, true)
	check("two spans", 1<<20-4096, 8192, true)
	check("all that is there", 0, 3<<20, true)
	check("a page that is not", 3<<20, 4096, false)
	check("the end of it", 3<<20+4095, 1, false)
	check("its neighbour", 3<<20+8192, 4096, true)
	check("a range with it", 0, size, false)
	check("behind the end", size, 4096, false)

	hold(t, s, [2]int64{0, 1 << 20}, [2]int64{2 << 20, size})
	check("a page given back a moment ago", 1<<20, 4096, true)
	now += believed + 2<<tickShift
	check("and a while ago", 1<<20, 4096, false)
	now += 1 << (tickShift + saidBits - 1) // as far from what was said as can be
	check("the whole first span", 0, 1<<20, true)

	at := uint64(2<<20 + spans<<spanShift) // which is told of at the same place
	check("another span, behind the end", at, 4096, false)
	check("the span it was exchanged for", 2<<20, 4096, true)
	if n := testing.AllocsPerRun(100, func() {
		now += 2 * believed
		s.resident.has(0, size, now)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// What the page cache has is read by the worker, what it has not by io-wq; in either case it is what the file has.
func TestReadsPastThePageCache(t *testing.T) {
	path, content := makeFile(t, t.TempDir(), 4<<20)
	s := openStore(t, path, Options{})
	tells(t, s.path)
	b := newBed(t, uring.Options{})
	u := b.open(s)
	m := memory(t, 16<<10)
	punted := func() uint64 {
		b.worker.Round() // which shows it
		return b.ring.Stats().Punted.Load()
	}
	hold(t, s, [2]int64{0, 2 << 20})
	for _, c := range []struct {
		offset uint64
		apart  bool
	}{{0, false}, {2<<20 - 16<<10, false}, {3 << 20, true}, {2<<20 - 8<<10, true}, {3 << 20, false}} {
		before := punted()
		u.io(blk.OpRead, c.offset, m)
		if !bytes.Equal(m, content[c.offset:][:len(m)]) {
			t.Errorf("at %#x: other bytes", c.offset)
		}
		if n := punted() - before; n > 0 != c.apart {
			t.Errorf("at %#x: %d reads by io-wq", c.offset, n)
		}
	}
	if l := u.lane.(*lane); l.fetches != 0 {
		t.Errorf("%d reads are under way", l.fetches)
	}
}

// When the disk gives nothing, the worker reads nothing by itself any more, not even what the page cache has: the kernel reads ahead. When it gives something again, it does.
func TestReadsOfDryDisk(t *testing.T) {
	fs := filetest.Mount(t)
	device := loop(t, fs.Disk(0))
	s := openStore(t, device, Options{})
	tells(t, s.path)
	b := newBed(t, uring.Options{})
	u := b.open(s)
	l, m := u.lane.(*lane), memory(t, 8192)
	hold(t, s, [2]int64{0, 4096})
	forget(t, fs.Disk(0)) // below it
	h := hang(fs, "read")
	cold, warm := newRequest(blk.OpRead, 6<<20, 4096, m[4096:]), newRequest(blk.OpRead, 0, 4096, m[:4096])
	u.submit(cold)
	b.until("nothing comes", func() bool { return l.dry })
	before := b.ring.Stats().Punted.Load()
	u.submit(warm)
	b.until("what is there is read", func() bool { return warm.done == 1 })
	if n := b.ring.Stats().Punted.Load() - before; n == 0 || !l.dry || cold.done != 0 || warm.outcome != blk.OK {
		t.Errorf("%d reads by io-wq, dry %v, cold done %d times, warm %v", n, l.dry, cold.done, warm.outcome)
	}
	if !h.goOn() {
		t.Error("all that took until the file system went on")
	}
	b.until("the disk gives", func() bool { return cold.done == 1 })
	if l.dry || cold.outcome != blk.OK || m[4096] != filetest.Filling {
		t.Errorf("dry %v, outcome %v, read %#x", l.dry, cold.outcome, m[4096])
	}
}

// loop is a block device on a file.
func loop(tb testing.TB, path string) string {
	tb.Helper()
	out, err := exec.Command("losetup", "--show", "-f", path).CombinedOutput()
	if err != nil {
		need.Missing(tb, "no loop device: %s", out)
	}
	device := strings.TrimSpace(string(out))
	tb.Cleanup(func() { _ = exec.Command("losetup", "-d", device).Run() })
	return device
}
