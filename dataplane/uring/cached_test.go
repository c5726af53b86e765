package uring

import (
	"testing"

	"github.com/shuntio/shunt/tools/need"
	"golang.org/x/sys/unix"
)

// What the page cache has is told in whole pages, and nothing is read by asking; what is read apart goes to io-wq, and is what the file has.
func TestCached(t *testing.T) {
	r := newRing(t, Options{})
	dir := t.TempDir()
	f, content := newFile(t, r, dir, 1<<20, 0)
	v := r.Vector(1)
	m := newMemory(t, 8192)
	v.Add(m)
	d := newResult()
	before := r.counts.punted
	pushed(t, r.ReadvApart(&d.op, f, v, 4096))
	if e := r.sqes[(r.tail-1)&uint32(len(r.sqes)-1)]; e.flags&sqeAsync == 0 || r.counts.punted != before+1 {
		t.Errorf("flags %#x, %d punted", e.flags, r.counts.punted-before)
	}
	if res := d.wait(t, r); res != 8192 || string(m) != string(content[4096:][:8192]) {
		t.Errorf("result %d, or other bytes", res)
	}

	fd, err := unix.Open(dir+"/cached", unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if masked("cachestat") {
		t.Skip("cachestat is masked")
	}
	if !TellsCached(fd) {
		need.Missing(t, "no cachestat: it takes Linux 6.5")
	}
	if _, err := unix.Pwrite(fd, content, 0); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ offset, length, want uint64 }{{0, 1 << 20, 256}, {4095, 2, 2}, {4096, 4096, 1}, {1<<20 - 4096, 1 << 20, 1}, {1 << 20, 4096, 0}} {
		if n := Cached(fd, c.offset, c.length); n != c.want {
			t.Errorf("%d bytes at %d: %d pages, want %d", c.length, c.offset, n, c.want)
		}
	}
	if err := unix.Fdatasync(fd); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if n := Cached(fd, 0, 1<<20); n != 0 {
			t.Errorf("%d pages after all were given back", n)
		}
	}
	t.Setenv("SHUNT_MASK", "cachestat")
	if TellsCached(fd) {
		t.Error("told though it is masked")
	}
}
