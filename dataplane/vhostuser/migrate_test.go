package vhostuser

import (
	"encoding/binary"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/dataplane/guestmem"
	"github.com/shuntio/shunt/dataplane/shm"
)

// logFile is a file of 64 bytes of log.
func logFile(t testing.TB) int {
	t.Helper()
	fd, err := shm.NewMemFD("log", pageSize)
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// takeBits reads and clears the log, as the front-end does when it copies pages.
func takeBits(t *testing.T, fd int) (v uint64) {
	t.Helper()
	var b [8]byte
	_, err := unix.Pread(fd, b[:], 0)
	must(t, err)
	_, err = unix.Pwrite(fd, make([]byte, 8), 0)
	must(t, err)
	return binary.LittleEndian.Uint64(b[:])
}

// TestLiveMigration turns logging on, exchanges the log and turns it off again while a ring runs, in each way to speak.
func TestLiveMigration(t *testing.T) {
	for _, mode := range modes[:2] {
		t.Run(mode.name, func(t *testing.T) {
			d, g := newFake(t), newGuest(t)
			b := listenFake(t, d, Options{})
			f := dial(t, b)
			must(t, f.Negotiate(mode.features, mode.protocol))
			must(t, f.SetMemory(g.region()))
			must(t, f.StartVring(g.ring(0)))
			first, second := logFile(t), logFile(t)
			must(t, f.SetLog(first, 64, 0))
			ring := g.ring(0)
			ring.LogAddr = guestPhys + 0x4000
			must(t, f.LogAll(true, ring))
			must(t, f.Barrier())
			if c, ok := d.running(0); !ok || c.Flags != VringLog || c.LogAddr != guestPhys+0x4000 {
				t.Fatalf("ring %+v, %v", c, ok)
			}
			if s := b.Status().Session; !s.Logging || s.LogMissed != 0 {
				t.Errorf("%+v", s)
			}
			d.set(func() { d.log.Mark(3*pageSize, 1); d.log.Mark(1<<40, 1) })
			// The new log holds from the answer on; what was marked in the old one stays there to be taken.
			must(t, f.SetLog(second, 64, 8))
			d.set(func() { d.log.Mark(64*pageSize, 1) })
			if v := takeBits(t, first); v != 1|1<<3 {
				t.Errorf("old log %#x", v)
			}
			if v := takeBits(t, second); v != 0 {
				t.Errorf("before the new log: %#x", v)
			}
			must(t, f.LogAll(false, ring))
			must(t, f.Barrier())
			if c, ok := d.running(0); !ok || c.Flags != 0 {
				t.Fatalf("ring %+v, %v", c, ok)
			}
			if s := b.Status().Session; s.Logging {
				t.Errorf("%+v", s)
			}
			for _, e := range d.seen() {
				if strings.HasPrefix(e, "stop") {
					t.Errorf("the ring was stopped: %v", d.seen())
				}
			}
			must(t, f.Close())
			eventually(t, "disconnected", func() bool { return d.disconnects() == 1 })
		})
	}
}

func TestLogEventfd(t *testing.T) {
	d := newFake(t)
	_, f, g := started(t, d)
	must(t, f.SetLogEvent(g.e))
	must(t, f.SetLog(logFile(t), 64, 0))
	if count(t, g.e) != 1 { // the fake's own mark
		t.Error("not signalled")
	}
	must(t, f.SetLogEvent(g.call2))
	d.set(func() { d.log.Mark(5*pageSize, 1) })
	if count(t, g.e) != 0 || count(t, g.call2) != 1 {
		t.Error("the wrong one is signalled")
	}
	refused(t, f.SetLogEvent(g.fd))
	refused(t, f.Do(SetLogFD, nil))
}

// count reads an eventfd.
func count(t *testing.T, fd int) uint64 {
	t.Helper()
	var b [8]byte
	if _, err := unix.Read(fd, b[:]); err == unix.EAGAIN {
		return 0
	} else if err != nil {
		t.Fatal(err)
	}
	return binary.NativeEndian.Uint64(b[:])
}

// TestBadLogs: each is refused where acknowledgements are spoken and ends the connection where not, since a front-end does not
// look at the answer then; the log before stays.
func TestBadLogs(t *testing.T) {
	d := newFake(t)
	b, f, g := started(t, d)
	good := logFile(t)
	must(t, f.SetLog(good, 64, 0))
	takeBits(t, good)
	for name, c := range map[string]struct {
		fd           int
		size, offset uint64
		reason       string
	}{
		"beyond the file":   {good, pageSize, 8, "only 0x1000 bytes"},
		"far beyond":        {good, 8, ^uint64(7), "only 0x1000 bytes"},
		"crooked":           {good, 8, 4, "multiple of 8"},
		"empty":             {good, 0, 0, "between 1 and"},
		"larger than all":   {good, 1 << 40, 0, "between 1 and"},
		"an eventfd":        {g.e, 64, 0, shm.ErrBacking.Error()},
		"wrapping":          {good, ^uint64(0), 8, "between 1 and"},
		"no file of memory": {devNull(t), 64, 0, shm.ErrBacking.Error()},
	} {
		refused(t, f.SetLog(c.fd, c.size, c.offset))
		if s := b.Status().Session; !strings.Contains(s.LastRefusal, c.reason) {
			t.Errorf("%s: %s", name, s.LastRefusal)
		}
	}
	d.set(func() { d.log.Mark(7*pageSize, 1) })
	if takeBits(t, good) != 1<<7 {
		t.Error("the log before is not in use")
	}
	must(t, f.Close())

	f = dial(t, b)
	must(t, f.Negotiate(wantAll, wantAll&^ProtocolReplyAck))
	if err := f.SetLog(good, 0, 0); err == nil {
		t.Error("a log was refused and the front-end not told")
	}
}

func devNull(t *testing.T) int {
	file, err := os.Open(os.DevNull)
	must(t, err)
	t.Cleanup(func() { file.Close() })
	return int(file.Fd())
}

// TestNotOffered: what a device's type does not serve is not offered, and refused.
func TestNotOffered(t *testing.T) {
	f := dial(t, func() *Backend {
		b, err := Listen(Options{Path: t.TempDir() + "/s"}, struct{ Device }{newFake(t)})
		must(t, err)
		t.Cleanup(func() { b.Close() })
		return b
	}())
	must(t, f.Negotiate(wantAll, wantAll))
	const all = ProtocolLogShmfd | ProtocolInflight | ProtocolRARP | ProtocolBackendReq | ProtocolConfig | ProtocolNetMTU
	if f.Protocol()&all != 0 {
		t.Errorf("offered %v", ProtocolNames(f.Protocol()))
	}
	if have, err := f.GetFeatures(); err != nil || have&FeatureLogAll != 0 {
		t.Errorf("features %#x, %v", have, err)
	}
	refused(t, f.RARP([6]byte{2}))
	refused(t, f.SetLogEvent(eventfd(t)))
	if _, err := f.OpenChannel(); err == nil {
		t.Error("channel opened")
	}
	if err := f.SetLog(logFile(t), 64, 0); err == nil {
		t.Error("log accepted")
	}
}

func TestRARP(t *testing.T) {
	d := newFake(t)
	_, f, _ := started(t, d)
	must(t, f.RARP([6]byte{0x52, 0x54, 0, 1, 2, 3}))
	d.set(func() {
		if d.rarp != [6]byte{0x52, 0x54, 0, 1, 2, 3} {
			t.Errorf("%x", d.rarp)
		}
	})
	refused(t, f.RARP([6]byte{1}))
	refused(t, f.RARP([6]byte{}))
}

// TestLogsAreUnmapped: neither an exchanged log nor the last one stays.
func TestLogsAreUnmapped(t *testing.T) {
	d := newFake(t)
	b, f, _ := started(t, d)
	for range 3 {
		must(t, f.SetLog(logFile(t), 64, 0))
	}
	if n := mappings(t, "memfd:log"); n != 1 {
		t.Errorf("%d logs are mapped", n)
	}
	d.set(func() { d.fail = map[string]error{"log": guestmem.ErrRegion} })
	refused(t, f.SetLog(logFile(t), 64, 0))
	if n := mappings(t, "memfd:log"); n != 1 {
		t.Errorf("%d logs are mapped", n)
	}
	d.set(func() { d.fail = nil })
	must(t, f.Close())
	eventually(t, "gone", func() bool { return b.Status().Session == nil })
	if n := mappings(t, "memfd:log"); n != 0 {
		t.Errorf("%d logs are mapped", n)
	}
}

// mappings counts those of files of a name.
func mappings(t *testing.T, name string) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/maps")
	must(t, err)
	return strings.Count(string(b), "/"+name)
}
