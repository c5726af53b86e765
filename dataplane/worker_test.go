package dataplane_test

import (
	"errors"
	"fmt"
	"runtime"
	"runtime/metrics"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/shm"
	"github.com/shuntio/shunt/dataplane/vnet"
	"github.com/shuntio/shunt/dataplane/vnet/vnettest"
)

func newWorker(t testing.TB, o dataplane.WorkerOptions) *dataplane.Worker {
	t.Helper()
	memory, err := frame.NewMemory(make([]byte, 4*frame.ChunkSize))
	if err != nil {
		t.Fatal(err)
	}
	if o.Pool, err = memory.NewPool(0, 4); err != nil {
		t.Fatal(err)
	}
	w, err := dataplane.NewWorker(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

// run starts the worker, so that it serves its mail, and ends it with the test, or before by what it returns.
func run(t testing.TB, w *dataplane.Worker) (stop func()) {
	t.Helper()
	done := make(chan error, 1)
	rounds := w.Stats().Rounds.Load()
	go func() { done <- w.Run() }()
	within(t, func() {
		for w.Stats().Rounds.Load() == rounds {
			runtime.Gosched()
		}
	})
	stop = sync.OnceFunc(func() {
		w.Stop()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("run: %v", err)
			}
		case <-time.After(time.Minute):
			t.Error("the worker does not stop")
		}
	})
	t.Cleanup(stop)
	return stop
}

// within fails the test if fn does not return.
func within(t testing.TB, fn func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		fn()
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("no return")
	}
}

// fakeSource counts calls; with work it finds some each round.
type fakeSource struct {
	polls, flushes, arms, disarms atomic.Int64
	work                          atomic.Int64
	limit                         time.Duration // 0: for ever
}

func (s *fakeSource) Poll() int { s.polls.Add(1); return int(s.work.Load()) }
func (s *fakeSource) Flush()    { s.flushes.Add(1) }
func (s *fakeSource) Arm() time.Duration {
	s.arms.Add(1)
	if s.limit > 0 {
		return s.limit
	}
	return dataplane.Forever
}
func (s *fakeSource) Pending() bool { return false }
func (s *fakeSource) Disarm()       { s.disarms.Add(1) }

// fakePort has nothing.
type fakePort struct{}

func (fakePort) Receive([]*frame.Frame, *frame.Pool) int  { return 0 }
func (fakePort) Release()                                 {}
func (fakePort) Transmit(f []*frame.Frame, _ *frame.Pool) {}
func (fakePort) Flush()                                   {}
func (fakePort) Arm() time.Duration                       { return dataplane.Forever }
func (fakePort) Pending() bool                            { return false }
func (fakePort) Disarm()                                  {}
func (fakePort) Fault(uintptr) bool                       { return false }

func TestNewWorkerRefuses(t *testing.T) {
	if _, err := dataplane.NewWorker(dataplane.WorkerOptions{}); err == nil {
		t.Error("a worker without frames")
	}
}

func TestRunReturnsTheErrorOfStart(t *testing.T) {
	want := errors.New("no such CPU")
	w := newWorker(t, dataplane.WorkerOptions{Start: func() error { return want }})
	if err := w.Run(); !errors.Is(err, want) {
		t.Errorf("%v", err)
	}
	within(t, func() { w.Do(func() {}) })
}

// Do before Run, while it starts, runs and ends, and after it, from many goroutines: every function runs once, alone, and before its Do
// returns. The race detector sees a counter without a lock.
func TestDo(t *testing.T) {
	for round := range 50 {
		w := newWorker(t, dataplane.WorkerOptions{Idle: dataplane.IdlePolicy(round % 3)})
		total, inside := 0, atomic.Int32{}
		const callers, calls = 6, 60
		var done sync.WaitGroup
		for range callers {
			done.Add(1)
			go func() {
				defer done.Done()
				for range calls {
					ran := false
					w.Do(func() {
						if inside.Add(1) != 1 {
							t.Error("two functions at once")
						}
						total++
						ran = true
						if round%2 == 0 {
							runtime.Gosched()
						}
						inside.Add(-1)
					})
					if !ran {
						t.Error("Do returned before its function ran")
					}
				}
			}()
		}
		running := make(chan struct{})
		go func() {
			defer close(running)
			_ = w.Run()
		}()
		within(t, func() {
			for total := uint64(0); total < uint64(round%7); total = w.Stats().Rounds.Load() {
				runtime.Gosched()
				w.Do(func() {})
			}
			w.Stop()
			<-running
			done.Wait()
		})
		w.Do(func() { total++ })
		if total != callers*calls+1 {
			t.Fatalf("%d functions ran, want %d", total, callers*calls+1)
		}
	}
}

// Start may set up what only the worker's thread may touch, such as a ring: no function runs beside it.
func TestDoWhileTheWorkerStarts(t *testing.T) {
	var w *dataplane.Worker
	var ran atomic.Bool
	called := make(chan struct{})
	w = newWorker(t, dataplane.WorkerOptions{Start: func() error {
		go func() {
			defer close(called)
			w.Do(func() { ran.Store(true) })
		}()
		for w.Letters() == 0 && !ran.Load() {
			runtime.Gosched()
		}
		if ran.Load() {
			return errors.New("a function ran while the worker started")
		}
		return nil
	}})
	done := make(chan error, 1)
	go func() { done <- w.Run() }()
	within(t, func() {
		<-called
		w.Stop()
		if err := <-done; err != nil || !ran.Load() {
			t.Errorf("it ran: %v (%v)", ran.Load(), err)
		}
	})
}

// The last letters are done by the worker, while callers that come later serve themselves: never both at once.
func TestDoWhileTheWorkerLeaves(t *testing.T) {
	w := newWorker(t, dataplane.WorkerOptions{Idle: dataplane.Poll})
	stop := run(t, w)
	inside := atomic.Int32{}
	alone := func() {
		if inside.Add(1) != 1 {
			t.Error("two functions at once")
		}
		time.Sleep(5 * time.Millisecond)
		inside.Add(-1)
	}
	var done sync.WaitGroup
	first := make(chan struct{})
	once := sync.OnceFunc(func() { close(first) })
	within(t, func() {
		w.Do(func() { // the worker is held here until letters wait, and is to stop then
			for range 8 {
				done.Add(1)
				go func() {
					defer done.Done()
					w.Do(func() { once(); alone() })
				}()
			}
			for w.Letters() < 8 {
				runtime.Gosched()
			}
			w.Stop()
		})
	})
	<-first // the worker does its last mail
	within(t, func() {
		for range 3 {
			w.Do(alone)
		}
		done.Wait()
		stop()
	})
}

// When Do has returned, no round that began before it is under way.
func TestGracePoint(t *testing.T) {
	w := newWorker(t, dataplane.WorkerOptions{Idle: dataplane.Poll})
	s := &roundSource{}
	w.Do(func() { w.Add(s) })
	run(t, w)
	for range 200 {
		before := s.begun.Load()
		w.Do(func() {})
		if s.ended.Load() < before {
			t.Fatalf("round %d is still under way", before)
		}
	}
	if s.ended.Load() == 0 {
		t.Error("no round")
	}
}

type roundSource struct {
	fakeSource
	begun, ended atomic.Uint64
}

func (s *roundSource) Poll() int {
	s.begun.Add(1)
	for range 2000 {
		s.polls.Load()
	}
	return 0
}
func (s *roundSource) Flush() { s.ended.Add(1) }

func TestAddAndRemove(t *testing.T) {
	w := newWorker(t, dataplane.WorkerOptions{})
	run(t, w)
	a, b := &fakeSource{}, &fakeSource{}
	link := &dataplane.Link{Port: fakePort{}, Counters: &dataplane.Counters{}}
	w.Do(func() { w.Add(a); w.Add(b); w.Add(link) })
	w.Do(func() {}) // wakes it, too
	within(t, func() {
		for a.polls.Load() == 0 || b.polls.Load() == 0 {
			w.Do(func() {})
		}
	})
	w.Do(func() { w.Remove(a); w.Remove(link) })
	polls, flushes := a.polls.Load(), a.flushes.Load()
	was := b.polls.Load()
	within(t, func() {
		for b.polls.Load() < was+3 {
			w.Do(func() {})
		}
	})
	if a.polls.Load() != polls || a.flushes.Load() != flushes {
		t.Error("a removed source is still polled")
	}
	w.Do(func() { w.Remove(a); w.Remove(b) }) // one that is gone already, too
	w.Do(func() { w.Add(a) })
	within(t, func() {
		for a.polls.Load() == polls {
			w.Do(func() {})
		}
	})
}

func TestClose(t *testing.T) {
	w := newWorker(t, dataplane.WorkerOptions{})
	if err := errors.Join(w.Close(), w.Close()); err != nil {
		t.Error(err)
	}
	// The number of its eventfd is another file's now, which Stop and Do leave alone.
	var others [8]int
	for i := range others {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		others[i] = fd
	}
	w.Stop()
	within(t, func() { w.Do(w.Stop) })
	for _, fd := range others {
		if n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0); n != 0 {
			t.Error("a closed worker wrote to a file that is not its own")
		}
	}
}

// threadCPU is the CPU time of a thread.
func threadCPU(t testing.TB, w *dataplane.Worker, tid int) time.Duration {
	t.Helper()
	var ts unix.Timespec
	clock := int32(^tid<<3 | 6) // CPUCLOCK_PERTHREAD_MASK | CPUCLOCK_SCHED of the thread
	if err := unix.ClockGettime(clock, &ts); err != nil {
		t.Fatalf("CPU time of thread %d: %v", tid, err)
	}
	return time.Duration(ts.Nano())
}

// An idle worker costs nothing, with a guest attached, and still answers at once.
func TestIdleUsesNoCPU(t *testing.T) {
	for _, c := range []struct {
		policy   dataplane.IdlePolicy
		eventIdx uint64
		min, max time.Duration // of a second
	}{
		{dataplane.Interrupt, 0, 0, 10 * time.Millisecond},
		{dataplane.Interrupt, vnet.FeatureEventIdx, 0, 10 * time.Millisecond},
		{dataplane.Adaptive, 0, 0, 10 * time.Millisecond},
		{dataplane.Adaptive, vnet.FeatureEventIdx, 0, 10 * time.Millisecond},
		{dataplane.Poll, 0, 50 * time.Millisecond, 2 * time.Second},
	} {
		t.Run(fmt.Sprintf("%v eventIdx=%v", c.policy, c.eventIdx != 0), func(t *testing.T) {
			if testing.Short() && c.eventIdx != 0 {
				t.Skip("short")
			}
			tid := 0
			w := newWorker(t, dataplane.WorkerOptions{Idle: c.policy, Start: func() error { tid = unix.Gettid(); return nil }})
			guest, err := vnettest.New(vnettest.Options{Features: vnet.FeatureVersion1 | vnet.FeatureMrgRxbuf | c.eventIdx})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(guest.Close)
			link := &dataplane.Link{Counters: &dataplane.Counters{}, Forwarder: discard{}}
			device, err := vnet.New(vnet.Options{Pairs: []vnet.PairOptions{{Worker: w, Link: link}}})
			if err != nil {
				t.Fatal(err)
			}
			run(t, w)
			if err := guest.Attach(device); err != nil {
				t.Fatal(err)
			}
			w.Do(func() { w.Add(link) })
			begin := threadCPU(t, w, tid)
			time.Sleep(time.Second)
			if used := threadCPU(t, w, tid) - begin; used < c.min || used > c.max {
				t.Errorf("%v of CPU in an idle second, want %v to %v", used, c.min, c.max)
			}
			for i := range uint64(20) { // each kick ends a sleep
				if err := guest.Send(make([]byte, 60)); err != nil {
					t.Fatal(err)
				}
				within(t, func() {
					for link.Counters.RxPackets.Load() <= i {
						runtime.Gosched()
					}
				})
			}
			if c.policy != dataplane.Poll && w.Stats().Sleeps.Load() == 0 {
				t.Error("it never slept")
			}
			if n := w.Stats().Late.Load() + w.Stats().Timeouts.Load(); n != 0 {
				t.Errorf("%d sleeps ended by a timeout", n)
			}
		})
	}
}

// discard drops all.
type discard struct{}

func (discard) Forward(w *dataplane.Worker, from *dataplane.Link, frames []*frame.Frame) {
	for i, f := range frames {
		frames[i] = nil
		w.Drop(from, f, dropUnknown)
	}
}

// A sleep lasts no longer than its sources allow.
func TestSleepLimit(t *testing.T) {
	w := newWorker(t, dataplane.WorkerOptions{Idle: dataplane.Interrupt})
	s := &fakeSource{limit: time.Millisecond}
	w.Do(func() { w.Add(&fakeSource{}); w.Add(s) })
	run(t, w)
	within(t, func() {
		for w.Stats().Timeouts.Load() < 20 {
			time.Sleep(time.Millisecond)
		}
	})
	if w.Stats().Late.Load() != 0 {
		t.Errorf("%d sleeps were too long", w.Stats().Late.Load())
	}
	if a, d := s.arms.Load(), s.disarms.Load(); a-d > 1 || a < 20 {
		t.Errorf("armed %d times, disarmed %d", a, d)
	}
}

// Signals end a sleep early and nothing else.
func TestSignalsWhileAsleep(t *testing.T) {
	tid := 0
	w := newWorker(t, dataplane.WorkerOptions{Idle: dataplane.Interrupt, Start: func() error { tid = unix.Gettid(); return nil }})
	run(t, w)
	w.Do(func() {})
	within(t, func() {
		for before := w.Stats().Sleeps.Load(); w.Stats().Sleeps.Load() < before+20; {
			if err := unix.Tgkill(unix.Getpid(), tid, unix.SIGURG); err != nil { // what the runtime preempts with
				t.Error(err)
				return
			}
			time.Sleep(time.Millisecond)
		}
	})
	if w.Stats().Timeouts.Load() != 0 {
		t.Error("an interrupted sleep counts as a timeout")
	}
	done := false
	within(t, func() { w.Do(func() { done = true }) })
	if !done {
		t.Error("mail was not done")
	}
}

// Files that are watched end the sleep, until they are not watched any more.
func TestWatch(t *testing.T) {
	w := newWorker(t, dataplane.WorkerOptions{Idle: dataplane.Interrupt})
	var fds [3]int
	for i := range fds {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		fds[i] = fd
	}
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(pipe[0]); unix.Close(pipe[1]) })
	s := &fakeSource{}
	w.Do(func() {
		w.Add(s)
		w.Watch(pipe[0], unix.POLLIN, false)
		w.Watch(fds[0], unix.POLLIN, true)
		w.Watch(fds[1], unix.POLLIN, true)
		w.Watch(fds[1], unix.POLLIN, true) // twice, and taken back once
		w.Watch(fds[2], unix.POLLIN, true)
		w.Unwatch(fds[1])
		w.Unwatch(fds[2])
		w.Unwatch(pipe[0])
		w.Unwatch(12345) // nobody's
	})
	run(t, w)
	asleep := func() { // until it sleeps again
		within(t, func() {
			for d := s.disarms.Load(); s.arms.Load() != d+1 || s.disarms.Load() != d; d = s.disarms.Load() {
				runtime.Gosched()
			}
		})
	}
	still := func() { // until nothing of before ends its sleep, either: a letter that it found on its way there rings all the same
		asleep()
		for polls := int64(-1); s.polls.Load() != polls; time.Sleep(20 * time.Millisecond) {
			polls = s.polls.Load()
		}
	}
	for i, wakes := range []bool{true, true, false} {
		w.Do(func() {})
		still()
		before := s.polls.Load()
		shm.Signal(fds[i])
		if wakes {
			within(t, func() {
				for s.polls.Load() == before {
					runtime.Gosched()
				}
			})
			asleep() // though nobody has read it
			continue
		}
		time.Sleep(20 * time.Millisecond)
		if s.polls.Load() != before {
			t.Error("a file that is not watched any more ended the sleep")
		}
	}
	w.Do(func() { w.Unwatch(fds[0]) })
	for i, want := range []error{unix.EAGAIN, nil, nil} {
		if _, err := unix.Read(fds[i], make([]byte, 8)); err != want {
			t.Errorf("eventfd %d, of which the first is not watched any more, the second is, and the third was not when it was signalled: %v, want %v", i, err, want)
		}
	}
}

// The collector can stop a worker that spins, with a busy guest or without.
func TestCollectorStopsWorker(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector's own pauses are longer")
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(max(3, runtime.GOMAXPROCS(0)))) // as the daemon does: workers + 2
	const metric = "/sched/pauses/total/gc:seconds"
	read := func() *metrics.Float64Histogram {
		s := []metrics.Sample{{Name: metric}}
		metrics.Read(s)
		h := s[0].Value.Float64Histogram()
		return &metrics.Float64Histogram{Counts: append([]uint64(nil), h.Counts...), Buckets: h.Buckets}
	}
	w := newWorker(t, dataplane.WorkerOptions{Idle: dataplane.Poll})
	run(t, w)
	w.Do(func() { w.Add(&fakeSource{}) })
	best := time.Hour
	for range 5 { // others use this machine, too
		before := read()
		for range 100 {
			runtime.GC()
		}
		after := read()
		total, seen := uint64(0), uint64(0)
		for i := range after.Counts {
			after.Counts[i] -= before.Counts[i]
			total += after.Counts[i]
		}
		for i, n := range after.Counts {
			if seen += n; seen >= (total+1)/2 {
				best = min(best, time.Duration(after.Buckets[i+1]*1e9))
				break
			}
		}
		if best <= time.Millisecond {
			break
		}
	}
	t.Logf("median stop %v", best)
	if best > time.Millisecond {
		t.Errorf("median stop of 100 collections is %v, want at most 1 ms", best)
	}
}

// Rounds with traffic in both directions, and the way to sleep and back, allocate nothing.
func TestNothingAllocated(t *testing.T) {
	for name, o := range map[string]vnettest.Options{
		"plain":       {QueueSize: 128},
		"event index": {QueueSize: 128, Features: vnet.FeatureVersion1 | vnet.FeatureMrgRxbuf | vnet.FeatureEventIdx},
		"large":       {QueueSize: 128, BufferSize: 4096},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLAN(t, 2, o)
			for _, h := range l.hosts { // without the test's own formatting on the way
				h.link.Port, h.link.Forwarder = h.port, crossover{l.hosts[1-int(h.name[0]-'A')].link}
			}
			length := 60
			if o.BufferSize > 2048 {
				length = 3000
			}
			for _, h := range l.hosts {
				h.Prepare(make([]byte, length), nil)
			}
			moved := 0
			byHand(func() {
				if n := testing.AllocsPerRun(200, func() {
					for _, h := range l.hosts {
						if _, err := h.Blast(64, length); err != nil {
							t.Fatal(err)
						}
					}
					for range 4 { // long frames are several rounds' worth
						moved += l.worker.Round()
					}
					for _, h := range l.hosts {
						if _, err := h.Sink(128); err != nil {
							t.Fatal(err)
						}
					}
					l.worker.Sleep() // there may be work or not
				}); n != 0 {
					t.Errorf("%v allocations a round", n)
				}
			})
			if moved < 200*2*64 {
				t.Errorf("%d frames moved", moved)
			}
			l.checkBalance()
		})
	}
}

// crossover sends all to one link.
type crossover struct{ to *dataplane.Link }

func (c crossover) Forward(w *dataplane.Worker, _ *dataplane.Link, frames []*frame.Frame) {
	for i, f := range frames {
		frames[i] = nil
		w.Send(c.to, f)
	}
}
