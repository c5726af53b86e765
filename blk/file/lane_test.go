package file

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/dataplane/uring"
	"github.com/shuntio/shunt/tools/need"
	"golang.org/x/sys/unix"
)

// modes runs a test on files in both places, through the page cache and with O_DIRECT.
func modes(t *testing.T, size int, fn func(u *user, s *Store, path string, content []byte)) {
	places(t, func(t *testing.T, dir string) {
		for _, direct := range []bool{false, true} {
			t.Run(map[bool]string{false: "buffered", true: "direct"}[direct], func(t *testing.T) {
				path, content := makeFile(t, dir, size)
				s, err := Open(path, Options{Direct: direct})
				if err != nil {
					need.Missing(t, "%v", err)
				}
				t.Cleanup(func() {
					if err := s.Close(); err != nil {
						t.Error(err)
					}
				})
				fn(newBed(t, uring.Options{}).open(s), s, path, content)
			})
		}
	})
}

// exercise does each operation on a disk whose bytes are content, in all shapes of buffers.
func exercise(t testing.TB, u *user, content []byte) {
	t.Helper()
	m := memory(t, 1<<20)
	want := bytes.Clone(content)
	pieces := func(at int, lengths ...int) (all [][]byte, total uint64) {
		for _, n := range lengths {
			all = append(all, m[at:][:n])
			at += n + 8192
			total += uint64(n)
		}
		return all, total
	}
	shapes := map[string][][]byte{}
	shapes["pages"], _ = pieces(0, 4096, 4096, 8192)
	shapes["sectors"], _ = pieces(0, 512, 1024, 512, 2048)
	shapes["at odd addresses"], _ = pieces(1, 4096, 4096)
	shapes["of odd lengths"], _ = pieces(3, 1, 1000, 23, 3072)
	shapes["longer than a chunk"], _ = pieces(5, 100000, 200000, 27680)
	one, _ := pieces(0, 4096)
	shapes["one"] = one
	for name, buffers := range shapes {
		length := uint64(0)
		for _, b := range buffers {
			length += uint64(len(b))
		}
		for i, offset := range []uint64{0, 65536, uint64(len(content)) - length} {
			offset &^= 4095
			u.ok(newRequest(blk.OpRead, offset, length, buffers...))
			if got := bytes.Join(buffers, nil); !bytes.Equal(got, want[offset:][:length]) {
				t.Fatalf("%s at %d: other bytes were read", name, offset)
			}
			for _, b := range buffers {
				random(b, byte(i+len(name)))
			}
			copy(want[offset:], bytes.Join(buffers, nil))
			w := newRequest(blk.OpWrite, offset, length, buffers...)
			w.FUA = name == "one" && i == 0
			u.ok(w)
		}
	}
	u.ok(newRequest(blk.OpFlush, 0, 0))
	check(t, u, want)

	zero := func(offset, length uint64, unmap bool) {
		q := newRequest(blk.OpWriteZeroes, offset, length)
		q.Unmap, q.FUA = unmap, offset == 0
		u.ok(q)
		clear(want[offset:][:length])
	}
	zero(0, 65536, true)
	zero(131072, 65536+4096, false)
	zero(524288+4096, 4096, true)
	check(t, u, want)
}

// check reads the whole disk.
func check(t testing.TB, u *user, want []byte) {
	t.Helper()
	m := memory(t, 1<<20)
	for at := 0; at < len(want); at += len(m) {
		n := min(len(m), len(want)-at)
		u.io(blk.OpRead, uint64(at), m[:n])
		if !bytes.Equal(m[:n], want[at:][:n]) {
			i := 0
			for m[i] == want[at+i] {
				i++
			}
			t.Fatalf("byte %d of the disk is %d, want %d", at+i, m[i], want[at+i])
		}
	}
}

func TestOperations(t *testing.T) {
	modes(t, 2<<20, func(u *user, s *Store, path string, content []byte) {
		exercise(u, u, content)
		// It is the file that was written.
		m := memory(u, 2<<20)
		u.io(blk.OpRead, 0, m)
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, m) {
			u.Errorf("the file is another one: %v", err)
		}
	})
}

// Discard gives blocks back, and so does writing zeroes if it may; else they stay.
func TestDiscard(t *testing.T) {
	modes(t, 1<<20, func(u *user, s *Store, path string, content []byte) {
		before := allocated(u, path)
		u.ok(newRequest(blk.OpDiscard, 0, 256<<10))
		if n := before - allocated(u, path); n < 256<<10 {
			u.Errorf("discarding 256 KiB gave %d bytes back", n)
		}
		before = allocated(u, path)
		q := newRequest(blk.OpWriteZeroes, 512<<10, 128<<10)
		q.Unmap = true
		u.ok(q)
		if n := before - allocated(u, path); n < 128<<10 {
			u.Errorf("unmapping 128 KiB gave %d bytes back", n)
		}
		before = allocated(u, path)
		u.ok(newRequest(blk.OpWriteZeroes, 768<<10, 128<<10))
		if n := before - allocated(u, path); n > 8192 {
			u.Errorf("zeroing without unmapping gave %d bytes back", n)
		}
		clear(content[:256<<10])
		clear(content[512<<10:][:128<<10])
		clear(content[768<<10:][:128<<10])
		check(u, u, content)
	})
}

// What a file system refuses is done in the next best way, and not asked for again.
func TestFallBack(t *testing.T) {
	modes(t, 8<<20, func(u *user, s *Store, path string, content []byte) {
		s.noPunch.Store(true)
		s.noRange.Store(true)
		q := newRequest(blk.OpWriteZeroes, 4096, 7<<20) // several operations, the last one shorter
		q.Unmap, q.FUA = true, true
		u.ok(q)
		clear(content[4096:][:7<<20])
		check(u, u, content)
	})
	path, _ := makeFile(t, t.TempDir(), 1<<20)
	s := openStore(t, path, Options{})
	l := newBed(t, uring.Options{}).open(s).lane.(*lane)
	for _, c := range []struct {
		op         blk.Op
		from, next stage
		ok         bool
	}{
		{blk.OpDiscard, discarding, freeing, true}, {blk.OpDiscard, freeing, punching, true},
		{blk.OpDiscard, discarding, punching, true}, {blk.OpDiscard, punching, punching, false},
		{blk.OpWriteZeroes, punching, ranging, true}, {blk.OpWriteZeroes, ranging, writingZeroes, true},
		{blk.OpWriteZeroes, punching, writingZeroes, true}, {blk.OpWrite, transferring, transferring, false},
	} {
		x := &slot{r: &newRequest(c.op, 0, 4096).Request, stage: c.from}
		o, ended := l.failed(x, unix.EOPNOTSUPP)
		if ended == c.ok || x.stage != c.next || ended && o != blk.Unsupported {
			t.Errorf("%v refused at stage %d: goes on %v at %d, outcome %d", c.op, c.from, !ended, x.stage, o)
		}
	}
}

// What the kernel does only in part is continued, and what it ends for no reason begun again.
func TestShortAndInterrupted(t *testing.T) {
	path, content := makeFile(t, t.TempDir(), 1<<20)
	s := openStore(t, path, Options{})
	u := newBed(t, uring.Options{}).open(s)
	l := u.lane.(*lane)
	m := memory(t, 64<<10)
	// The kernel's answers are changed on their way: each read of 64 KiB seems to have brought 4 KiB, or nothing at all.
	fake := &liar{lane: l, say: []int32{4096, -int32(unix.EINTR), 4096, -int32(unix.EAGAIN), 8192, 512, 1}}
	for i := range l.slots {
		l.slots[i].op.Handler = fake
	}
	u.io(blk.OpRead, 4096, m)
	if !bytes.Equal(m, content[4096:][:64<<10]) || len(fake.say) != 0 {
		t.Errorf("other bytes, or %d answers were not asked for", len(fake.say))
	}
	fake.say = make([]int32, 100)
	for i := range fake.say {
		fake.say[i] = -int32(unix.EINTR)
	}
	if o := u.do(newRequest(blk.OpRead, 0, 4096, m[:4096])); o != blk.Failed {
		t.Errorf("interrupted for ever: outcome %d", o)
	}
	for errno, want := range map[unix.Errno]blk.Outcome{unix.EIO: blk.Failed, unix.ENOSPC: blk.Failed, unix.EFAULT: blk.Failed, unix.ECANCELED: blk.Lost} {
		fake.say = []int32{-int32(errno)}
		if o := u.do(newRequest(blk.OpWrite, 0, 4096, m[:4096])); o != want {
			t.Errorf("%v: outcome %d, want %d", errno, o, want)
		}
	}
	fake.say = nil
	u.io(blk.OpRead, 0, m)
}

// A driver that asks for all of a disk at once gets it in parts: nobody else on the worker waits for that.
func TestLarge(t *testing.T) {
	modes(t, 24<<20, func(u *user, s *Store, path string, content []byte) {
		l, longest := u.lane.(*lane), 0
		for i := range l.slots {
			l.slots[i].op.Handler = watcher{l, func(res int32) { longest = max(longest, int(res)) }}
		}
		m := memory(u, 10<<20)
		random(m, 7)
		parts := [][]byte{m[:512], m[512:][:8<<20], m[:1<<20], m[8<<20:]}
		length := uint64(0)
		for _, p := range parts {
			copy(content[1<<20+length:], p)
			length += uint64(len(p))
		}
		u.ok(newRequest(blk.OpWrite, 1<<20, length, parts...))
		check(u, u, content)
		back := memory(u, 20<<20)
		u.ok(newRequest(blk.OpRead, 512, 20<<20-512, back[:20<<20-512]))
		if !bytes.Equal(back[:20<<20-512], content[512:20<<20]) {
			t.Error("other bytes were read")
		}
		if longest > 4<<20 {
			t.Errorf("an operation of %d bytes", longest)
		}
	})
}

type watcher struct {
	lane *lane
	see  func(res int32)
}

func (w watcher) Completed(op *uring.Op, res int32, flags uint32) {
	w.see(res)
	w.lane.Completed(op, res, flags)
}

// The kernel tells once that it could not write back: no flush after that one succeeds, of whatever lane.
func TestFlushFailsForGood(t *testing.T) {
	modes(t, 1<<20, func(u *user, s *Store, path string, content []byte) {
		l, other := u.lane.(*lane), u.open(s)
		fake := &liar{lane: l}
		for i := range l.slots {
			l.slots[i].op.Handler = fake
		}
		m := memory(u, 4096)
		write := newRequest(blk.OpWrite, 0, 4096, m)
		write.FUA = true
		for _, q := range []*request{newRequest(blk.OpFlush, 0, 0), write} {
			s.doubtful.Store(false)
			if u.ok(newRequest(blk.OpFlush, 0, 0)); s.State().Why != nil {
				t.Error(s.State().Why)
			}
			fake.say = []int32{-int32(unix.EIO)}
			if o := u.do(q); o != blk.Failed {
				t.Errorf("%v that fails: outcome %d", q.Op, o)
			}
			want := blk.Failed
			if s.shape.direct {
				want = blk.OK // the disk is asked each time
			}
			for _, u := range []*user{u, other} {
				if o := u.do(newRequest(blk.OpFlush, 0, 0)); o != want {
					t.Errorf("a flush after a %v that failed: outcome %d", q.Op, o)
				}
			}
			if failed := errors.Is(s.State().Why, ErrDoubtful); failed != (want == blk.Failed) {
				t.Errorf("state %v", s.State().Why)
			}
			u.io(blk.OpRead, 0, m)
		}
	})
}

// What comes back from bounce memory after the request was asked back does not go to the guest's memory, which may be in use for something else by then.
func TestWithdrawnBounce(t *testing.T) {
	modes(t, 1<<20, func(u *user, s *Store, path string, content []byte) {
		if !s.shape.direct {
			return
		}
		m := memory(u, 8192)
		q := newRequest(blk.OpRead, 0, 4096, m[1:][:4096])
		u.submit(q)
		u.ring.Flush()
		u.lane.Withdraw(&q.Request)
		u.until("it is back", func() bool { return q.done > 0 })
		if q.outcome != blk.Withdrawn || !bytes.Equal(m, make([]byte, 8192)) {
			t.Errorf("outcome %v, or something was written", q.outcome)
		}
	})
}

type liar struct {
	lane *lane
	say  []int32
}

func (f *liar) Completed(op *uring.Op, res int32, flags uint32) {
	if len(f.say) > 0 {
		res, f.say = f.say[0], f.say[1:]
	}
	f.lane.Completed(op, res, flags)
}

// The file is cut while it is in use: requests beyond its end fail, and the others do not.
func TestTruncated(t *testing.T) {
	modes(t, 1<<20, func(u *user, s *Store, path string, content []byte) {
		m := memory(u, 128<<10)
		var all [64]*request
		for round := range 4 {
			for i := range all {
				all[i] = newRequest(blk.OpRead, uint64(i)*(16<<10), 8<<10, m[:4096], m[8192:][:4096])
				u.submit(all[i])
				if round == 2 && i == 32 {
					u.worker.Round()
					if err := os.Truncate(path, 500<<10); err != nil {
						u.Fatal(err)
					}
				}
			}
			u.until("all reads", func() bool {
				for _, q := range all {
					if q.done == 0 {
						return false
					}
				}
				return true
			})
		}
		for i, q := range all {
			if want := i*(16<<10)+(8<<10) <= 500<<10; (q.outcome == blk.OK) != want {
				u.Errorf("read %d of a file that was cut: outcome %d", i, q.outcome)
			}
		}
		u.ok(newRequest(blk.OpRead, 488<<10, 12<<10, m[:12<<10]))
		if o := u.do(newRequest(blk.OpRead, 488<<10, 16<<10, m[:16<<10])); o != blk.Failed {
			u.Errorf("across the end: outcome %d", o)
		}
	})
}

// No space left is a failure of the request, and the disk goes on.
func TestFull(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		need.Missing(t, "mount a small tmpfs: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	path := dir + "/disk.img"
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 8<<20); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, path, Options{})
	u := newBed(t, uring.Options{}).open(s)
	m := memory(t, 64<<10)
	failed := 0
	for i := range 128 {
		switch o := u.do(newRequest(blk.OpWrite, uint64(i)*(64<<10), 64<<10, m)); o {
		case blk.OK:
		case blk.Failed:
			failed++
		default:
			t.Fatalf("outcome %d", o)
		}
	}
	if failed < 100 || failed == 128 {
		t.Errorf("%d of 128 writes of 64 KiB failed on 1 MiB", failed)
	}
	u.io(blk.OpRead, 7<<20, m)
	u.ok(newRequest(blk.OpDiscard, 0, 4<<20))
	u.io(blk.OpWrite, 4<<20, m)
}

// A guest whose memory goes away has its own requests fail, with its own buffers and with bounce memory.
func TestHole(t *testing.T) {
	modes(t, 1<<20, func(u *user, s *Store, path string, content []byte) {
		fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
		if err != nil {
			u.Fatal(err)
		}
		defer unix.Close(fd)
		if err := unix.Ftruncate(fd, 1<<20); err != nil {
			u.Fatal(err)
		}
		m, err := unix.Mmap(fd, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			u.Fatal(err)
		}
		defer unix.Munmap(m)
		u.io(blk.OpRead, 0, m[:8192])
		// A hole is memory that reads as zeroes: the IO goes there.
		if err := unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 1<<20); err != nil {
			u.Fatal(err)
		}
		u.io(blk.OpRead, 4096, m[:8192])
		if !bytes.Equal(m[:8192], content[4096:][:8192]) {
			u.Error("what was read into a hole is not there")
		}
		if err := unix.Ftruncate(fd, 4096); err != nil {
			u.Fatal(err)
		}
		for _, buffers := range [][][]byte{{m[8192:][:4096]}, {m[:4096], m[4096:][:4096]}, {m[8193:][:4096]}, {m[1:][:4095], m[8192:][:1]}} {
			length := uint64(0)
			for _, b := range buffers {
				length += uint64(len(b))
			}
			for _, op := range []blk.Op{blk.OpRead, blk.OpWrite} {
				if o := u.do(newRequest(op, 8192, length, buffers...)); o != blk.Failed {
					u.Errorf("%v with memory that is gone: outcome %d", op, o)
				}
			}
		}
		u.io(blk.OpRead, 0, m[:4096])
		if l := u.lane.(*lane); s.shape.direct && len(l.bounce.free) != bounceChunks {
			u.Errorf("%d chunks of bounce memory are left", len(l.bounce.free))
		}
	})
}

// More requests than there are slots, and a ring that is full: they are handed back, and there is room later.
func TestRoom(t *testing.T) {
	for name, c := range map[string]struct {
		entries, depth int
	}{"slots": {256, 4}, "ring": {4, 64}} {
		t.Run(name, func(t *testing.T) {
			path, content := makeFile(t, t.TempDir(), 1<<20)
			s := openStore(t, path, Options{Depth: c.depth})
			u := newBed(t, uring.Options{Entries: c.entries}).open(s)
			m := memory(t, 64<<10)
			all := make([]*request, 16)
			next, handedBack := 0, 0
			for i := range all {
				all[i] = newRequest(blk.OpRead, uint64(i)*4096, 4096, m[i*4096:][:4096])
			}
			for next < len(all) {
				for next < len(all) && u.lane.Submit(&all[next].Request) {
					next++
				}
				if next == len(all) {
					break
				}
				handedBack++
				before := u.rooms
				u.until("room", func() bool { return u.rooms > before })
			}
			u.until("all", func() bool { return all[15].done == 1 && all[0].done == 1 })
			if handedBack == 0 || !bytes.Equal(m, content[:64<<10]) {
				t.Errorf("%d times handed back, same bytes %v", handedBack, bytes.Equal(m, content[:64<<10]))
			}
		})
	}
	// The ring is full of others' operations, and the lane has none that could end.
	path, _ := makeFile(t, t.TempDir(), 1<<20)
	s := openStore(t, path, Options{})
	b := newBed(t, uring.Options{Entries: 2})
	u := b.open(s)
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p[1])
	f, err := b.ring.Register(p[0])
	unix.Close(p[0])
	if err != nil {
		t.Fatal(err)
	}
	var polls [2]uring.Op
	for i := range polls {
		polls[i].Handler = ignore{}
		b.ring.PollAdd(&polls[i], f, unix.POLLIN)
	}
	q := newRequest(blk.OpFlush, 0, 0)
	if u.lane.Submit(&q.Request) {
		t.Fatal("there was room")
	}
	unix.Write(p[1], []byte{1})
	u.until("room", func() bool { return u.rooms > 0 })
	u.ok(q)
}

type ignore struct{}

func (ignore) Completed(*uring.Op, int32, uint32) {}

// Requests that are asked back come back, each once, whatever they were at.
func TestWithdraw(t *testing.T) {
	modes(t, 8<<20, func(u *user, s *Store, path string, content []byte) {
		m := memory(u, 1<<20)
		for round := range 20 {
			var all []*request
			for i := range 24 {
				var q *request
				switch i % 4 {
				case 0:
					q = newRequest(blk.OpRead, uint64(i)<<16, 64<<10, m[i<<12:][:64<<10])
				case 1:
					q = newRequest(blk.OpWrite, uint64(i)<<16, 64<<10, m[i<<12+1:][:64<<10])
				case 2:
					q = newRequest(blk.OpWriteZeroes, uint64(i)<<16, 64<<10)
				case 3:
					q = newRequest(blk.OpDiscard, uint64(i)<<16, 64<<10)
				}
				for !u.lane.Submit(&q.Request) {
					u.worker.Round()
				}
				all = append(all, q)
			}
			for range round % 4 {
				u.worker.Round()
			}
			for _, q := range all {
				u.lane.Withdraw(&q.Request)
			}
			u.until("all of them back", func() bool {
				for _, q := range all {
					if q.done == 0 {
						return false
					}
				}
				return true
			})
			for _, q := range all {
				if q.done != 1 || q.outcome != blk.OK && q.outcome != blk.Withdrawn {
					u.Fatalf("%v: done %d times, outcome %d", q.Op, q.done, q.outcome)
				}
				u.lane.Withdraw(&q.Request) // of what has ended: nothing
			}
		}
		l := u.lane.(*lane)
		u.until("all slots are free", func() bool { return len(l.free) == len(l.slots) }) // of writes that were taken back, when the writer has passed them over
		if len(l.stalled) != 0 {
			u.Errorf("%d are stalled", len(l.stalled))
		}
		u.io(blk.OpRead, 0, m)
	})
}

// A request whose next operation finds the ring full goes on when there is room, or is asked back there.
func TestStalled(t *testing.T) {
	path, content := makeFile(t, t.TempDir(), 1<<20)
	s := openStore(t, path, Options{})
	b := newBed(t, uring.Options{Entries: 1})
	u := b.open(s)
	l := u.lane.(*lane)
	var other uring.Op
	other.Handler = ignore{}
	f, err := b.ring.Register(s.fd)
	if err != nil {
		t.Fatal(err)
	}
	m := memory(t, 8192)
	v := b.ring.Vector(1)
	v.Add(m[4096:])
	for _, withdraw := range []bool{false, true} {
		fake := &thief{lane: l, steal: func() { b.ring.Readv(&other, f, v, 0) }}
		for i := range l.slots {
			l.slots[i].op.Handler = fake
		}
		q := newRequest(blk.OpRead, 4096, 4096, m[:4096])
		u.submit(q)
		u.until("a stall", func() bool { return fake.stolen })
		if len(l.stalled) != 1 {
			t.Fatalf("%d are stalled", len(l.stalled))
		}
		if withdraw {
			u.lane.Withdraw(&q.Request)
			if q.done != 1 || q.outcome != blk.Withdrawn {
				t.Errorf("asked back: done %d times, outcome %d", q.done, q.outcome)
			}
			continue
		}
		u.until("its end", func() bool { return q.done == 1 })
		if q.outcome != blk.OK || !bytes.Equal(m[:4096], content[4096:][:4096]) {
			t.Errorf("outcome %d, or other bytes", q.outcome)
		}
	}
}

// thief makes the first completion a short one, and takes the ring's only place before the lane can go on.
type thief struct {
	lane   *lane
	steal  func()
	stolen bool
}

func (f *thief) Completed(op *uring.Op, res int32, flags uint32) {
	if !f.stolen {
		f.stolen = true
		f.steal()
		res = 512
	}
	f.lane.Completed(op, res, flags)
}
