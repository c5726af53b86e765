package file

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/dataplanetest"
	"github.com/shuntio/shunt/dataplane/uring"
	"github.com/shuntio/shunt/tools/need"
	"golang.org/x/sys/unix"
)

// bed is a worker with a ring that the test drives round by round, on its own thread.
type bed struct {
	testing.TB
	worker *dataplane.Worker
	ring   *uring.Ring
}

func newBed(tb testing.TB, o uring.Options) *bed {
	tb.Helper()
	runtime.LockOSThread()
	old := debug.SetPanicOnFault(true) // as a worker's goroutine has it
	b := &bed{TB: tb, worker: dataplanetest.NewWorker(tb, 16)}
	var err error
	if b.ring, err = uring.Open(o); err != nil {
		tb.Fatal(err)
	}
	if err := b.ring.Enable(); err != nil {
		tb.Fatal(err)
	}
	b.worker.Add(b.ring)
	tb.Cleanup(func() {
		b.worker.Remove(b.ring)
		if err := b.ring.Close(); err != nil {
			tb.Error(err)
		}
		debug.SetPanicOnFault(old)
		runtime.UnlockOSThread()
	})
	return b
}

func (b *bed) until(what string, cond func() bool) {
	b.Helper()
	for end := time.Now().Add(20 * time.Second); !cond(); {
		if b.worker.Round() == 0 {
			time.Sleep(20 * time.Microsecond)
		}
		if time.Now().After(end) {
			b.Fatalf("not within 20 s: %s", what)
		}
	}
}

// user is who submits to a lane.
type user struct {
	*bed
	lane  blk.Lane
	up    int
	rooms int
}

func (u *user) Up(bool)    { u.up++ }
func (u *user) Down(error) { u.Error("a file went down") }
func (u *user) Room()      { u.rooms++ }

// open opens a lane, which is closed with the test.
func (b *bed) open(s *Store) *user {
	b.Helper()
	u := &user{bed: b}
	var err error
	if u.lane, err = s.Open(blk.Host{Worker: b.worker, Ring: b.ring}, u); err != nil {
		b.Fatal(err)
	}
	if u.up != 1 {
		b.Fatal("the lane is not up")
	}
	b.Cleanup(u.lane.Close)
	return u
}

// request is one with its answer.
type request struct {
	blk.Request
	outcome blk.Outcome
	done    int
}

func (q *request) Done(_ *blk.Request, o blk.Outcome) {
	q.outcome = o
	q.done++
}

func newRequest(op blk.Op, offset, length uint64, buffers ...[]byte) *request {
	q := &request{Request: blk.Request{Op: op, Offset: offset, Length: length, Buffers: buffers}}
	q.Handler = q
	return q
}

func (u *user) submit(q *request) {
	u.Helper()
	before := q.done
	if !u.lane.Submit(&q.Request) {
		u.Fatalf("%v: handed back", q.Op)
	}
	if q.done != before {
		u.Fatalf("%v: done within Submit", q.Op)
	}
}

func (u *user) do(q *request) blk.Outcome {
	u.Helper()
	q.done = 0
	u.submit(q)
	u.lane.Flush()
	u.until(q.Op.String(), func() bool { return q.done > 0 })
	if q.done != 1 {
		u.Fatalf("%v: done %d times", q.Op, q.done)
	}
	return q.outcome
}

func (u *user) ok(q *request) {
	u.Helper()
	if o := u.do(q); o != blk.OK {
		u.Fatalf("%v at %d of %d bytes: outcome %d", q.Op, q.Offset, q.Length, o)
	}
}

// io makes a request on one buffer.
func (u *user) io(op blk.Op, offset uint64, b []byte) {
	u.Helper()
	u.ok(newRequest(op, offset, uint64(len(b)), b))
}

// memory stands for a guest's.
func memory(tb testing.TB, n int) []byte {
	tb.Helper()
	m, err := uring.NewMemory(n)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { m.Free() })
	return m.Bytes()
}

func random(b []byte, seed byte) { _, _ = rand.NewChaCha8([32]byte{seed}).Read(b) }

// makeFile makes a file of random bytes.
func makeFile(tb testing.TB, dir string, size int) (path string, content []byte) {
	tb.Helper()
	content = make([]byte, size)
	random(content, 7)
	path = filepath.Join(dir, "disk.img")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		tb.Fatal(err)
	}
	return path, content
}

func openStore(tb testing.TB, path string, o Options) *Store {
	tb.Helper()
	s, err := Open(path, o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Close(); err != nil {
			tb.Error(err)
		}
	})
	return s
}

// places are a directory on the machine's disk and one in memory.
func places(t *testing.T, fn func(t *testing.T, dir string)) {
	t.Run("disk", func(t *testing.T) { fn(t, t.TempDir()) })
	t.Run("tmpfs", func(t *testing.T) {
		dir, err := os.MkdirTemp("/dev/shm", "shunt-test-")
		if err != nil {
			need.Missing(t, "%v", err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		fn(t, dir)
	})
}

// allocated is how many bytes of a file take room.
func allocated(tb testing.TB, path string) int64 {
	tb.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		tb.Fatal(err)
	}
	return st.Blocks * 512
}
