package file

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/dataplane/uring"
	"github.com/shuntio/shunt/tools/need"
	"golang.org/x/sys/unix"
)

func TestParse(t *testing.T) {
	for uri, want := range map[string]string{
		"file:///srv/vm1.img":          "/srv/vm1.img",
		"file:///srv//a/../vm%201.img": "/srv/vm 1.img",
		"file://localhost/x":           "/x",
		"file:///a%23b":                "/a#b",
	} {
		if got, err := Parse(uri); got != want || err != nil {
			t.Errorf("%s: %q, %v", uri, got, err)
		}
	}
	for uri, why := range map[string]string{
		"file://srv/vm1.img": "host",
		"file:vm1.img":       "absolute",
		"/srv/vm1.img":       "scheme",
		"nbd://host/x":       "scheme",
		"file:///x?direct=1": "follow",
		"file:///x#y":        "follow",
		"file:///x/":         "directory",
		"file:///":           "directory",
		"file:///a%00b":      "zero byte",
		"file:///%zz":        "escape",
		"":                   "scheme",
	} {
		if got, err := Parse(uri); !errors.Is(err, ErrURI) || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %q, %v; want a word of %q", uri, got, err, why)
		}
	}
}

// Each thing that is no disk is refused with a sentence that says what to do.
func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for name, size := range map[string]int64{"empty": 0, "odd": 1000, "half": 4096 + 512, "fine": 8192} {
		if err := os.WriteFile(at(name), make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(at("fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		path string
		o    Options
		err  error
		says string
	}{
		"missing":   {at("missing"), Options{}, unix.ENOENT, "truncate -s"},
		"directory": {dir, Options{}, ErrKind, "regular file"},
		"fifo":      {at("fifo"), Options{}, ErrKind, "regular file"},
		"character": {"/dev/zero", Options{}, ErrKind, "regular file"},
		"empty":     {at("empty"), Options{}, ErrSize, "truncate -s"},
		"odd":       {at("odd"), Options{}, ErrSize, "1000 bytes are not a multiple of its blocks of 512"},
		"proc":      {"/proc/version", Options{ReadOnly: true, Direct: true}, ErrDirect, "page cache"},
	} {
		s, err := Open(c.path, c.o)
		if err == nil {
			s.Close()
		}
		if !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), c.path) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A file that cannot be written is refused for a volume that wants to, and may be read.
func TestReadOnly(t *testing.T) {
	path, _ := makeFile(t, t.TempDir(), 8192)
	if err := setImmutable(path, true); err != nil {
		need.Missing(t, "root writes everywhere, and this file system has no immutable files: %v", err)
	}
	defer setImmutable(path, false)
	if _, err := Open(path, Options{}); !errors.Is(err, ErrReadOnly) {
		t.Errorf("to write: %v", err)
	}
	s := openStore(t, path, Options{ReadOnly: true})
	if i := s.Info(); !i.ReadOnly || i.Discard || i.WriteZeroes {
		t.Errorf("%+v", i)
	}
	other := openStore(t, path, Options{ReadOnly: true}) // several may read
	u := newBed(t, uring.Options{}).open(other)
	b := memory(t, 4096)
	u.io(blk.OpRead, 4096, b)
	if o := u.do(newRequest(blk.OpWrite, 0, 4096, b)); o != blk.Failed {
		t.Errorf("a write ended with %d", o)
	}
}

func setImmutable(path string, on bool) error {
	flag := map[bool]string{true: "+i", false: "-i"}[on]
	out, err := exec.Command("chattr", flag, path).CombinedOutput()
	if err != nil {
		return errors.New(string(out))
	}
	return nil
}

func TestInfo(t *testing.T) {
	places(t, func(t *testing.T, dir string) {
		path, _ := makeFile(t, dir, 1<<20)
		for _, direct := range []bool{false, true} {
			s, err := Open(path, Options{Direct: direct})
			if errors.Is(err, ErrDirect) {
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			i := s.Info()
			if i.Size != 1<<20 || i.BlockSize < 512 || i.PhysicalBlock < i.BlockSize || !i.Flush || !i.FUA || !i.Discard || !i.WriteZeroes ||
				i.ReadOnly || i.Lanes != 0 || i.DiscardGranularity < i.BlockSize || i.Describe == "" {
				t.Errorf("direct %v: %+v", direct, i)
			}
			if !direct && i.BlockSize != 512 {
				t.Errorf("blocks of %d through the page cache", i.BlockSize)
			}
			if st := s.State(); !st.Up || st.Why != nil {
				t.Errorf("%+v", st)
			}
			t.Log(i.Describe)
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}

// A file that grew is larger when it is asked for, and one that grew by half a block is what it was.
func TestRefresh(t *testing.T) {
	path, _ := makeFile(t, t.TempDir(), 8192)
	s := openStore(t, path, Options{})
	for _, c := range []struct{ size, want int64 }{{16384, 16384}, {16384 + 100, 16384}, {4096, 4096}} {
		if err := os.Truncate(path, c.size); err != nil {
			t.Fatal(err)
		}
		i, err := s.Refresh(context.Background())
		if i.Size != uint64(c.want) || s.Info().Size != uint64(c.want) || (err != nil) != (c.size != c.want) {
			t.Errorf("%d bytes: size %d, %v", c.size, i.Size, err)
		}
	}
	u := newBed(t, uring.Options{}).open(s)
	if err := os.Truncate(path, 1<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Refresh(context.Background()); err != nil {
		t.Fatal(err)
	}
	u.io(blk.OpWrite, 1<<20-4096, memory(t, 4096)) // by the lane that was there before
}

// A file that was removed is one as long as somebody has it open. Whoever looks after the volume is told.
func TestRemoved(t *testing.T) {
	path, _ := makeFile(t, t.TempDir(), 1<<20)
	v, err := blk.OpenVolume(blk.VolumeOptions{Open: func(blk.Watcher) (blk.Store, error) { return Open(path, Options{}) }})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	told := func() bool {
		r, err := v.Check(context.Background())
		if err != nil || !r.State.Up {
			t.Fatalf("%+v, %v", r, err)
		}
		noted := slices.ContainsFunc(r.Notes, func(note string) bool { return strings.Contains(note, ErrRemoved.Error()) })
		if is := errors.Is(v.State().Why, ErrRemoved); is != noted {
			t.Errorf("the state says so: %v, the check: %v", is, noted)
		}
		return noted
	}
	if told() {
		t.Error("while it is there")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if !told() {
		t.Error("nobody is told")
	}
}

// The lock belongs to the open file description: it is there as long as anything uses that, and whoever wants it waits.
// QEMU and its tools keep away from a file that a volume has, and a volume from one that they have.
func TestLockOfQEMU(t *testing.T) {
	for _, tool := range []string{"qemu-img", "qemu-io"} {
		if _, err := exec.LookPath(tool); err != nil {
			need.Missing(t, "no %s (qemu-utils): %v", tool, err)
		}
	}
	path, _ := makeFile(t, t.TempDir(), 1<<20)
	for _, readOnly := range []bool{false, true} {
		o := Options{ReadOnly: readOnly, Patience: -1}
		s, err := Open(path, o)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			bears bool
			run   []string
		}{
			{true, []string{"qemu-img", "info", "-f", "raw", path}}, // bears that others write
			{false, []string{"qemu-io", "-f", "raw", "-c", "write 0 512", path}},
			{false, []string{"qemu-img", "resize", "-f", "raw", path, "+1M"}},
		} {
			out, err := exec.Command(c.run[0], c.run[1:]...).CombinedOutput()
			if (err == nil) != c.bears || err != nil && !strings.Contains(string(out), `"write" lock`) {
				t.Errorf("%q beside a volume (read-only %v): %v, %s", c.run, readOnly, err, out)
			}
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}

		cmd := exec.Command("qemu-io", "-f", "raw", path)
		in, inErr := cmd.StdinPipe()
		out, outErr := cmd.StdoutPipe()
		if err := errors.Join(inErr, outErr, cmd.Start()); err != nil {
			t.Fatal(err)
		}
		_, err = io.WriteString(in, "read 0 512\n")
		if _, readErr := bufio.NewReader(out).ReadString(')'); err != nil || readErr != nil { // how long it took: it has the file
			t.Error(err, readErr)
		}
		if s, err := Open(path, o); !errors.Is(err, ErrLocked) {
			t.Errorf("a volume (read-only %v) beside qemu-io: %v, %v", readOnly, s, err)
		}
		if err := errors.Join(in.Close(), cmd.Wait()); err != nil {
			t.Error(err)
		}
	}
}

func TestLock(t *testing.T) {
	path, _ := makeFile(t, t.TempDir(), 8192)
	first, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range []Options{{Patience: -1}, {Patience: 30 * time.Millisecond}, {ReadOnly: true, Patience: -1}} {
		began := time.Now()
		if _, err := Open(path, o); !errors.Is(err, ErrLocked) || time.Since(began) < o.Patience {
			t.Errorf("%+v: %v after %v", o, err, time.Since(began))
		}
	}
	// What a killed daemon leaves: its descriptor is closed, and the ring still has the file.
	b := newBed(t, uring.Options{})
	held, err := b.ring.Register(first.fd)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Close(first.fd); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, Options{Patience: 20 * time.Millisecond}); !errors.Is(err, ErrLocked) {
		t.Errorf("while the ring has it: %v", err)
	}
	opened := make(chan error)
	go func() {
		second, err := Open(path, Options{})
		if err == nil {
			err = second.Close()
		}
		opened <- err
	}()
	if err := b.ring.Unregister(held); err != nil {
		t.Fatal(err)
	}
	if err := <-opened; err != nil {
		t.Errorf("when the ring has let it go: %v", err)
	}
	// And closing gives it back at once, even while a ring still has the file.
	third, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.ring.Register(third.fd); err != nil {
		t.Fatal(err)
	}
	if err := third.Close(); err != nil {
		t.Fatal(err)
	}
	fourth, err := Open(path, Options{Patience: -1})
	if err != nil {
		t.Fatal(err)
	}
	fourth.Close()
}

func TestCloseRefuses(t *testing.T) {
	path, _ := makeFile(t, t.TempDir(), 8192)
	s := openStore(t, path, Options{})
	b := newBed(t, uring.Options{Files: 1})
	u := b.open(s)
	if err := s.Close(); err == nil || !strings.Contains(err.Error(), "1 lanes are still open") {
		t.Errorf("%v", err)
	}
	if _, err := s.Open(blk.Host{Worker: b.worker, Ring: b.ring}, u); !errors.Is(err, uring.ErrFiles) {
		t.Errorf("a second lane on a ring for one file: %v", err)
	}
}

// A block device, where the machine lets us have one.
func TestDevice(t *testing.T) {
	need.Root(t)
	path, content := makeFile(t, t.TempDir(), 8<<20)
	out, err := exec.Command("losetup", "--show", "-f", path).CombinedOutput()
	if err != nil {
		need.Missing(t, "no loop device: %s", out)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() { _ = exec.Command("losetup", "-d", device).Run() })
	for _, direct := range []bool{false, true} {
		t.Run(map[bool]string{false: "buffered", true: "direct"}[direct], func(t *testing.T) {
			s := openStore(t, device, Options{Direct: direct})
			i := s.Info()
			if i.Size != 8<<20 || i.BlockSize < 512 || i.PhysicalBlock < i.BlockSize {
				t.Errorf("%+v", i)
			}
			t.Logf("%+v", i)
			u := newBed(t, uring.Options{}).open(s)
			now := make([]byte, len(content))
			m := memory(t, len(content))
			u.io(blk.OpRead, 0, m)
			copy(now, m)
			exercise(t, u, now)
			if i.Discard {
				before := discarded(t, device)
				u.ok(newRequest(blk.OpDiscard, 0, 1<<20))
				if n := discarded(t, device) - before; n != 1<<20/512 {
					t.Errorf("the device has discarded %d sectors, want %d: one that cannot zero without writing refuses all else", n, 1<<20/512)
				}
				u.lane.(*lane).store.noDiscard.Store(true) // as before kernel 6.12
				u.ok(newRequest(blk.OpDiscard, 0, 1<<20))
			}
		})
	}
}

// TestDeviceInUse: what writes to a device beside a guest ruins it, a lock or not.
func TestDeviceInUse(t *testing.T) {
	need.Root(t)
	path, _ := makeFile(t, t.TempDir(), 8<<20)
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", path).CombinedOutput(); err != nil {
		need.Missing(t, "no mkfs.ext4: %s", out)
	}
	out, err := exec.Command("losetup", "--show", "-f", path).CombinedOutput()
	if err != nil {
		need.Missing(t, "no loop device: %s", out)
	}
	device, dir := strings.TrimSpace(string(out)), t.TempDir()
	t.Cleanup(func() { _ = exec.Command("losetup", "-d", device).Run() })
	node, mounted := filepath.Join(dir, "node"), filepath.Join(dir, "mounted")
	var st unix.Stat_t
	if err := errors.Join(unix.Stat(device, &st), unix.Mknod(node, unix.S_IFBLK|0o600, int(st.Rdev)), os.Mkdir(mounted, 0o700)); err != nil {
		t.Fatal(err)
	}

	if err := unix.Mount(device, mounted, "ext4", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(mounted, unix.MNT_DETACH) })
	refuses := func(name, path string) {
		t.Helper()
		if _, err := Open(path, Options{Patience: -1}); !errors.Is(err, ErrBusy) {
			t.Errorf("%s: %v", name, err)
		}
	}
	refuses("a device that is mounted", device)
	if s, err := Open(device, Options{ReadOnly: true, Patience: -1}); err != nil {
		t.Errorf("to read from it: %v", err)
	} else {
		_ = s.Close()
	}
	if err := unix.Unmount(mounted, 0); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, device, Options{Patience: -1})
	refuses("a device that a volume has under another name", node)
	if err := unix.Mount(device, mounted, "ext4", 0, ""); !errors.Is(err, unix.EBUSY) {
		t.Errorf("mount of a volume's device: %v", err)
	}
	time.AfterFunc(100*time.Millisecond, func() { _ = s.Close() })
	if s, err := Open(node, Options{}); err != nil {
		t.Errorf("as soon as it is free: %v", err)
	} else {
		_ = s.Close()
	}
}

// discarded is how many sectors a block device was told to discard (Documentation/block/stat.rst).
func discarded(tb testing.TB, device string) (sectors uint64) {
	tb.Helper()
	b, err := os.ReadFile(filepath.Join("/sys/class/block", filepath.Base(device), "stat"))
	if err != nil {
		tb.Fatal(err)
	}
	if fields := strings.Fields(string(b)); len(fields) > 13 {
		sectors, err = strconv.ParseUint(fields[13], 10, 64)
	}
	if err != nil {
		tb.Fatal(err)
	}
	return sectors
}
