package uring

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/shuntio/shunt/dataplane/shm"
	"golang.org/x/sys/unix"
)

// result is what an operation's last completion said.
type result struct {
	op    Op
	done  bool
	res   int32
	flags uint32
	times int
	then  func()
}

func newResult() *result {
	d := &result{}
	d.op.Handler = d
	return d
}

func (d *result) Completed(op *Op, res int32, flags uint32) {
	d.res, d.flags, d.done = res, flags, flags&More == 0
	d.times++
	if d.then != nil {
		d.then()
	}
}

// newRing makes a ring for the test's goroutine, which keeps its thread.
func newRing(tb testing.TB, o Options) *Ring {
	tb.Helper()
	runtime.LockOSThread()
	r, err := Open(o)
	if err != nil {
		tb.Fatal(err)
	}
	if err := r.Enable(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := r.Close(); err != nil {
			tb.Error(err)
		}
		runtime.UnlockOSThread()
	})
	return r
}

// settle polls until a condition holds, sleeping on the ring in between as a worker does.
func settle(tb testing.TB, r *Ring, until func() bool) {
	tb.Helper()
	for end := time.Now().Add(10 * time.Second); !until(); {
		r.Poll()
		r.Flush()
		if until() {
			return
		}
		limit := min(r.Arm(), 10*time.Second)
		shm.Fence()
		if !r.Pending() {
			fds := []unix.PollFd{{Fd: int32(r.FD()), Events: unix.POLLIN}}
			_, _ = unix.Poll(fds, int(limit/time.Millisecond)+1)
		}
		r.Disarm()
		if time.Now().After(end) {
			tb.Fatalf("not within 10 s; %d operations are under way", r.Busy())
		}
	}
}

func (d *result) wait(tb testing.TB, r *Ring) int32 {
	tb.Helper()
	settle(tb, r, func() bool { return d.done })
	d.done = false
	return d.res
}

func pushed(tb testing.TB, ok bool) {
	tb.Helper()
	if !ok {
		tb.Fatal("no room")
	}
}

// modes runs a test in every mode the kernel has.
func modes(t *testing.T, fn func(t *testing.T)) {
	for _, mask := range []string{"", "uring-no-sqarray", "uring-defer-taskrun", "uring-single-issuer", "all"} {
		t.Run("without-"+mask, func(t *testing.T) {
			t.Setenv("SHUNT_MASK", mask)
			fn(t)
		})
	}
}

func TestModes(t *testing.T) {
	t.Setenv("SHUNT_MASK", "all")
	if m := newRing(t, Options{}).InForce(); m != (Modes{}) {
		t.Errorf("all masked, in force: %v", m)
	}
	t.Setenv("SHUNT_MASK", "")
	m := newRing(t, Options{}).InForce()
	if !m.SingleIssuer || !m.DeferTaskrun {
		t.Errorf("in force: %v; the kernel floor, 6.1, has single-issuer and defer-taskrun", m)
	}
	t.Logf("in force: %v", m)
	t.Setenv("SHUNT_MASK", "uring-no-sqarray")
	if m := newRing(t, Options{}).InForce(); m.NoSQArray || !m.DeferTaskrun {
		t.Errorf("one masked, in force: %v", m)
	}
}

func TestNop(t *testing.T) {
	modes(t, func(t *testing.T) {
		r := newRing(t, Options{Entries: 8})
		d := newResult()
		for range 100 { // around the rings
			pushed(t, r.Nop(&d.op))
			if !d.op.Busy() {
				t.Fatal("pushed, and not busy")
			}
			if res := d.wait(t, r); res != 0 || d.op.Busy() {
				t.Fatalf("result %d, busy %v", res, d.op.Busy())
			}
		}
	})
}

// A full ring hands back, and what it took it keeps.
func TestFull(t *testing.T) {
	r := newRing(t, Options{Entries: 8})
	var all [9]*result
	for i := range all {
		all[i] = newResult()
		if got, want := r.Nop(&all[i].op), i < 8; got != want {
			t.Fatalf("push %d of 8: %v", i+1, got)
		}
	}
	if all[8].op.Busy() {
		t.Error("handed back, and busy")
	}
	settle(t, r, func() bool { return all[7].done })
	for i, d := range all[:8] {
		if d.times != 1 {
			t.Errorf("operation %d completed %d times", i, d.times)
		}
	}
	if n := r.Stats().Full.Load(); n != 1 {
		t.Errorf("%d pushes counted as without room, want 1", n)
	}
	pushed(t, r.Nop(&all[8].op))
	all[8].wait(t, r)
}

func TestHandlerPushes(t *testing.T) {
	r := newRing(t, Options{Entries: 1})
	d := newResult()
	d.then = func() {
		if d.times < 50 {
			pushed(t, r.Nop(&d.op)) // its own slot is free again, the only one
		}
	}
	pushed(t, r.Nop(&d.op))
	settle(t, r, func() bool { return d.times == 50 })
}

// A handler that panics, as one does that touches memory a guest took away, costs nobody else a completion.
func TestHandlerPanics(t *testing.T) {
	r := newRing(t, Options{Entries: 8})
	var all [8]*result
	for i := range all {
		all[i] = newResult()
		if i%3 == 0 {
			all[i].then = func() { panic("hole") }
		}
		pushed(t, r.Nop(&all[i].op))
	}
	r.Flush()
	panics := 0
	for range 8 {
		func() {
			defer func() {
				if recover() != nil {
					panics++
				}
			}()
			r.Poll()
		}()
	}
	for i, d := range all {
		if d.times != 1 || d.op.Busy() {
			t.Errorf("operation %d completed %d times, busy %v", i, d.times, d.op.Busy())
		}
	}
	if panics != 3 {
		t.Errorf("%d panics, want 3", panics)
	}
}

// A completion of an operation that is over reaches nobody, least of all who has its slot now.
func TestStaleCompletion(t *testing.T) {
	r := newRing(t, Options{Entries: 1})
	d := newResult()
	pushed(t, r.Nop(&d.op))
	old := r.slots[0].userData(0)
	d.wait(t, r)
	pushed(t, r.Nop(&d.op))
	for _, userData := range []uint64{old, 0, ^uint64(0), 7 << 32, 1<<32 | 1} {
		r.deliver(cqe{userData: userData, res: -5})
	}
	if d.times != 1 {
		t.Errorf("the slot's next operation heard of it: %d completions", d.times)
	}
	r.publish()
	if n := r.Stats().Stale.Load(); n != 3 && n != 4 {
		t.Errorf("%d stale completions", n)
	}
	if d.wait(t, r) != 0 {
		t.Error(d.res)
	}
}

func TestWrongThread(t *testing.T) {
	r := newRing(t, Options{})
	if !r.InForce().SingleIssuer {
		if !masked("uring-single-issuer") { // Linux 6.0, and the oldest that shunt runs on is 6.1
			t.Fatal("the ring is not single-issuer")
		}
		t.Skip("without single-issuer any thread may")
	}
	failed := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		_, err := r.Register(0)
		failed <- err
		failed <- r.Close()
		defer func() { failed <- recover().(error) }()
		d := newResult()
		r.Nop(&d.op)
		r.Flush()
	}()
	for i := range 3 {
		if err := <-failed; !errors.Is(err, ErrThread) {
			t.Errorf("%d: %v, want ErrThread", i, err)
		}
	}
	r.enter() // the operation, on its own thread
	if err := r.Enable(); err == nil || !strings.Contains(err.Error(), "enabled already") {
		t.Errorf("enabled twice: %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	for name, o := range map[string]Options{
		"too many entries": {Entries: 1 << 20},
		"too many files":   {Files: 1 << 30},
	} {
		if r, err := Open(o); err == nil {
			r.Close()
			t.Errorf("%s: opened", name)
		}
	}
	r, err := Open(Options{Cores: []int{1023}})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := r.Enable(); err == nil || !strings.Contains(err.Error(), "[1023]") {
		t.Errorf("io-wq on core 1023: %v", err)
	}
	for _, e := range []unix.Errno{unix.ENOSYS, unix.EPERM, unix.ENOMEM, unix.EMFILE} {
		if err := explain(e); !errors.Is(err, e) {
			t.Errorf("%v is explained as %v", e, err)
		}
	}
}

// More completions than the CQ has room for: the kernel keeps them, and nothing is lost.
func TestOverflow(t *testing.T) {
	modes(t, func(t *testing.T) {
		r := newRing(t, Options{Entries: 64})
		a, b := socketPair(t, r)
		buffers, err := r.Provide(256, 16)
		if err != nil {
			t.Fatal(err)
		}
		d := newResult()
		got := 0
		d.then = func() {
			got += int(max(d.res, 0))
			buffers.Return(d.flags)
			if d.flags&More == 0 && d.res > 0 { // the kernel ends a multishot whose completion finds no room
				pushed(t, r.RecvMulti(&d.op, a.file, buffers))
			}
		}
		pushed(t, r.RecvMulti(&d.op, a.file, buffers))
		r.Flush()
		const messages = 200
		for range messages {
			if _, err := unix.Write(b.fd, []byte("0123456789abcdef")); err != nil {
				t.Fatal(err)
			}
			r.enter() // and do not reap: 128 fit
		}
		settle(t, r, func() bool { return got == 16*messages })
		if n := r.Stats().Overflows.Load(); n == 0 {
			t.Error("no overflow was counted")
		}
	})
}

func TestCloseCancels(t *testing.T) {
	modes(t, func(t *testing.T) {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		r, err := Open(Options{Entries: 16})
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Enable(); err != nil {
			t.Fatal(err)
		}
		a, _ := socketPair(t, r)
		m := newMemory(t, 64)
		var all [16]*result
		for i := range all {
			all[i] = newResult()
			v := r.Vector(1)
			v.Add(m)
			pushed(t, r.Recv(&all[i].op, a.file, v, 0))
			all[i].then = func() {
				if r.Nop(&all[i].op) {
					t.Error("pushed while the ring is closed")
				}
			}
			if i == 8 {
				r.Flush() // half of them are not yet the kernel's
			}
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		for i, d := range all {
			if d.times != 1 || d.res != -int32(unix.ECANCELED) {
				t.Errorf("operation %d: %d completions, the last %d", i, d.times, d.res)
			}
		}
		if err := r.Close(); err != nil {
			t.Errorf("closed twice: %v", err)
		}
	})
}

// The thread is gone, and with it what it had under way.
func TestCloseAfterThread(t *testing.T) {
	r, err := Open(Options{})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() {
		runtime.LockOSThread()               // and never unlocked: the thread ends with the goroutine
		for unix.Gettid() == unix.Getpid() { // unless it is the process's first one
			runtime.UnlockOSThread()
			time.Sleep(time.Millisecond)
			runtime.LockOSThread()
		}
		err := r.Enable()
		d := newResult()
		var p [2]int
		err = errors.Join(err, unix.Pipe2(p[:], unix.O_CLOEXEC))
		f, err2 := r.Register(p[0])
		unix.Close(p[0])
		unix.Close(p[1])
		r.PollAdd(&d.op, f, unix.POLLPRI)
		r.Flush()
		ended <- errors.Join(err, err2)
	}()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); unix.Tgkill(unix.Getpid(), r.thread, 0) == nil; {
		if time.Now().After(end) {
			t.Fatal("the thread does not end")
		}
		time.Sleep(time.Millisecond)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

func TestStatsString(t *testing.T) {
	if s := fmt.Sprint(Modes{SingleIssuer: true, NoSQArray: true}); s != "single-issuer no-sqarray" {
		t.Error(s)
	}
	if s := fmt.Sprint(Modes{}); s != "none" {
		t.Error(s)
	}
}
