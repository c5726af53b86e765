package file

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/blk/blktest"
	"github.com/shuntio/shunt/blk/file/filetest"
	"github.com/shuntio/shunt/dataplane/uring"
	"golang.org/x/sys/unix"
)

// patience is how long a file system hangs that has stopped somebody it must not stop: then it goes on, so that the test ends. The machine's disk takes seconds at times.
const patience = 15 * time.Second

// hanging is a file system that hangs, for a time.
type hanging struct {
	fs   *filetest.FS
	late *time.Timer
	over chan struct{} // closed when that was too long
}

// hang has a file system hang, or only what asks for one operation, until it is to go on.
func hang(fs *filetest.FS, op string) *hanging {
	fs.HangOn(op)
	h := &hanging{fs: fs, over: make(chan struct{})}
	h.late = time.AfterFunc(patience, func() {
		fs.GoOn()
		close(h.over)
	})
	return h
}

// still tells whether it does.
func (h *hanging) still() bool {
	select {
	case <-h.over:
		return false
	default:
		return true
	}
}

// goOn tells whether it did until now.
func (h *hanging) goOn() bool {
	if !h.late.Stop() {
		<-h.over
		return false
	}
	h.fs.GoOn()
	return true
}

// each makes requests of every kind, of one page each.
func each(m []byte) (all []*request) {
	for i := range 4 {
		at, page := uint64(i)<<12, m[i<<12:][:4096]
		all = append(all, newRequest(blk.OpRead, at, 4096, page), newRequest(blk.OpWrite, at, 4096, page), newRequest(blk.OpFlush, 0, 0),
			newRequest(blk.OpDiscard, at, 4096), newRequest(blk.OpWriteZeroes, at, 4096))
	}
	return all
}

func allDone(all []*request) bool {
	for _, q := range all {
		if q.done == 0 {
			return false
		}
	}
	return true
}

// A file whose file system does not answer keeps neither the worker nor another file waiting, whatever it was asked, and whatever the file system does not answer.
func TestHungNeighbour(t *testing.T) {
	fs := filetest.Mount(t)
	disk := 0
	for _, direct := range []bool{false, true} {
		for op, asks := range map[blk.Op]string{
			blk.OpRead: "read", blk.OpWrite: "write", blk.OpFlush: "fsync", blk.OpDiscard: "fallocate", blk.OpWriteZeroes: "fallocate",
		} {
			for _, what := range []string{"all", asks, "poll"} {
				if what == "poll" && op != blk.OpRead && op != blk.OpWrite {
					continue // only these are asked about
				}
				t.Run(fmt.Sprintf("%v/direct %v/%s", op, direct, what), func(t *testing.T) {
					hungNeighbour(t, fs, fs.Disk(disk), 32, direct, op, what)
				})
				disk++
			}
		}
	}
}

// A block device that does not answer does not either, with more requests than it has room for; nor where signals keep io-wq from making threads for them, as the Go runtime
// sends them.
func TestHungDevice(t *testing.T) {
	fs := filetest.Mount(t)
	device := loop(t, fs.Disk(0))
	for _, op := range []blk.Op{blk.OpRead, blk.OpWrite, blk.OpFlush, blk.OpDiscard} { // without a nudge one read in three waits, some more where others need the CPUs
		for _, direct := range []bool{true, false} {
			t.Run(fmt.Sprintf("%v/direct %v", op, direct), func(t *testing.T) {
				forget(t, device)
				forget(t, fs.Disk(0)) // below it
				if op == blk.OpRead && !direct {
					tells(t, device)
				}
				hungNeighbour(t, fs, device, 200, direct, op, "all")
			})
		}
	}
}

// disturb sends signals to the calling thread until the returned function is called.
func disturb() (quiet func()) {
	thread, stop, done := unix.Gettid(), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Tgkill(unix.Getpid(), thread, unix.SIGURG)
			}
		}
	}()
	return func() { close(stop); <-done }
}

// forget has the page cache give back what it has of a file.
func forget(tb testing.TB, path string) {
	tb.Helper()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		tb.Fatal(err)
	}
	defer unix.Close(fd)
	if err := errors.Join(unix.Fdatasync(fd), unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED)); err != nil {
		tb.Fatal(err)
	}
}

// hungNeighbour has one file asked so often for something that it does not answer, and another one for everything.
func hungNeighbour(t *testing.T, fs *filetest.FS, disk string, often uint64, direct bool, op blk.Op, what string) {
	path, _ := makeFile(t, t.TempDir(), 1<<20)
	b := newBed(t, uring.Options{})
	sick := b.open(openStore(t, disk, Options{Direct: direct}))
	well := b.open(openStore(t, path, Options{Direct: direct}))
	m := memory(t, 2<<20)
	h := hang(fs, what)
	var longest time.Duration
	round := func() {
		began := time.Now()
		b.worker.Round()
		longest = max(longest, time.Since(began))
	}
	var hung []*request
	quiet := disturb()
	for i := range often {
		q := newRequest(op, i<<15, 4096, m[1<<20+i<<12:][:4096])
		if op == blk.OpFlush {
			q.Buffers, q.Offset, q.Length = nil, 0, 0
		}
		sick.submit(q)
		if hung = append(hung, q); i%16 == 0 {
			round()
		}
	}
	for fs.Held() == 0 && !allDone(hung) && h.still() {
		round()
	}
	served := each(m)
	for _, q := range served {
		well.submit(q)
	}
	round()
	quiet()
	for !allDone(served) && h.still() {
		round()
	}
	held := fs.Held()
	var waiting []blk.Op
	for _, q := range served {
		if q.done == 0 {
			waiting = append(waiting, q.Op)
		}
	}
	if op == blk.OpRead && held == 0 {
		t.Error("no read waits for the file system")
	}
	if !h.goOn() || waiting != nil || longest > patience/2 {
		t.Errorf("of the other file these wait for what this one does: %v; the longest round took %v", waiting, longest)
	}
	b.until("everything", func() bool { return allDone(hung) && allDone(served) })
	t.Logf("%d requests without an answer; the longest round took %v", held, longest)
}

// However much lanes of files that hang have taken of a ring, there is some left for one that does not.
func TestHungFilesLeaveRoom(t *testing.T) {
	fs := filetest.Mount(t)
	path, _ := makeFile(t, t.TempDir(), 1<<20)
	b := newBed(t, uring.Options{Entries: 64})
	well := b.open(openStore(t, path, Options{}))
	var sick []*user
	for i := range 8 {
		sick = append(sick, b.open(openStore(t, fs.Disk(i), Options{Direct: i%2 == 0})))
	}
	h := hang(fs, "all")
	m := memory(t, 1<<20)
	var hung []*request
	for range 3 {
		for _, u := range sick {
			for {
				q := newRequest(blk.OpRead, 0, 4096, m[:4096])
				if !u.lane.Submit(&q.Request) {
					break
				}
				hung = append(hung, q)
			}
		}
		b.worker.Round()
	}
	busy := b.ring.Busy()
	served := each(m[1<<19:])
	for next := 0; !allDone(served) && h.still(); b.worker.Round() {
		for next < len(served) && well.lane.Submit(&served[next].Request) {
			next++
		}
	}
	if !h.goOn() || !allDone(served) {
		t.Errorf("the healthy file was not served beside %d operations that hang", busy)
	}
	b.until("everything", func() bool { return allDone(hung) })
	t.Logf("%d files that hang have %d of 64 operations", len(sick), busy)
}

// A read that hangs is given back at once when it is asked for, its lane and its store may be closed, and what is read in the end goes nowhere.
func TestHungRead(t *testing.T) {
	for _, direct := range []bool{false, true} {
		fs := filetest.Mount(t)
		b := newBed(t, uring.Options{})
		s := openStore(t, fs.Disk(0), Options{Direct: direct})
		u := &user{bed: b}
		var err error
		if u.lane, err = s.Open(blk.Host{Worker: b.worker, Ring: b.ring}, u); err != nil {
			t.Fatal(err)
		}
		m := memory(t, 64<<10)
		h := hang(fs, "read")
		var all []*request
		for i := range uint64(8) {
			all = append(all, newRequest(blk.OpRead, i<<13, 8192, m[i<<13:][:8192]))
			u.submit(all[i])
		}
		u.until("they hang", func() bool { return fs.Held() > 0 })
		for _, q := range all {
			if u.lane.Withdraw(&q.Request); q.done != 1 || q.outcome != blk.Withdrawn {
				t.Errorf("direct %v: done %d times, outcome %v", direct, q.done, q.outcome)
			}
		}
		u.lane.Close()
		if !h.goOn() {
			t.Errorf("direct %v: this took until the file system went on", direct)
		}
		u.until("the kernel has nothing more", func() bool { return b.ring.Busy() == 0 })
		if l := u.lane.(*lane); !bytes.Equal(m, make([]byte, len(m))) || l.left != 0 || all[0].done != 1 {
			t.Errorf("direct %v: bytes came late, or %d reads are left", direct, l.left)
		}
	}
}

// Whoever asks a file system that hangs to open, look at or close a file is told so within seconds, and the worker does not notice.
func TestHungControl(t *testing.T) {
	fs := filetest.Mount(t)
	host := blktest.Run(t, 1)[0]
	s := openStore(t, fs.Disk(0), Options{})
	other := openStore(t, fs.Disk(1), Options{})
	lane, err := other.Open(host, ignored{})
	if err != nil {
		t.Fatal(err)
	}
	h := hang(fs, "all")
	within := func(what string, limit time.Duration, fn func()) {
		t.Helper()
		began := time.Now()
		fn()
		if took := time.Since(began); took > limit {
			t.Errorf("%s took %v", what, took)
		}
	}
	opened := make(chan blk.Lane)
	go func() {
		l, err := s.Open(host, ignored{})
		if err != nil {
			t.Error(err)
		}
		opened <- l
	}()
	until(t, "it is being opened", func() bool { return fs.Held() > 0 })
	answers := make(chan error, 3)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	for range 2 {
		within("to look", time.Second, func() {
			_, err := s.Refresh(ctx)
			answers <- err
		})
	}
	old := answerTime
	answerTime = 100 * time.Millisecond
	defer func() { answerTime = old }()
	within("to open", time.Second, func() {
		_, err := Open(fs.Disk(2), Options{Patience: -1})
		answers <- err
	})
	answerTime = old
	for range 3 {
		if err := <-answers; !errors.Is(err, ErrNoAnswer) {
			t.Error(err)
		}
	}
	within("to close the lane", time.Second, func() { host.Worker.Do(lane.Close) })
	within("to close the store", 2*closeTime, func() {
		if err := other.Close(); !errors.Is(err, ErrNoAnswer) {
			t.Error(err)
		}
	})
	within("a round of the worker", time.Second, func() { host.Worker.Do(func() {}) })
	if !h.goOn() {
		t.Error("all that took until the file system went on")
	}
	host.Worker.Do((<-opened).Close)
	until(t, "nobody hangs", func() bool { return !hangs(fs.Disk(0), 0) && !hangs(fs.Disk(2), 0) })
	again, err := Open(fs.Disk(2), Options{Patience: -1})
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}

type ignored struct{}

func (ignored) Up(bool)    {}
func (ignored) Down(error) {}
func (ignored) Room()      {}

func until(tb testing.TB, what string, cond func() bool) {
	tb.Helper()
	for end := time.Now().Add(20 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			tb.Fatalf("not within 20 s: %s", what)
		}
	}
}
