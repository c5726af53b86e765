package nbd

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/blk/blktest"
	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/uring"
	"github.com/shuntio/shunt/tools/need"
	"golang.org/x/sys/unix"
)

// patient is how long a test waits for what must come: long, for a machine that is busy with other things.
const patient = 20 * time.Second

func TestMain(m *testing.M) { blktest.Main(m) }

// bench is a worker with a ring, as a daemon has it.
type bench struct {
	tb     testing.TB
	worker *dataplane.Worker
	ring   *uring.Ring
	users  []*user
}

func newBench(tb testing.TB) *bench {
	tb.Helper()
	h := blktest.Run(tb, 1)[0]
	b := &bench{tb: tb, worker: h.Worker, ring: h.Ring}
	b.worker.Do(func() { b.worker.Add(b) })
	return b
}

// The bench is a source, too, which flushes the lanes at the end of each round.
func (b *bench) Poll() int { return 0 }
func (b *bench) Flush() {
	for _, u := range b.users {
		if u.lane != nil {
			u.lane.Flush()
		}
	}
}
func (b *bench) Arm() time.Duration { return dataplane.Forever }
func (b *bench) Pending() bool      { return false }
func (b *bench) Disarm()            {}

// user stands where the gate stands.
type user struct {
	b      *bench
	store  blk.Store
	lane   blk.Lane
	memory []byte // the guest's

	mu   sync.Mutex
	cond *sync.Cond
	ups  []bool
	why  []error
	room int
}

func (u *user) event(fn func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	fn()
	u.cond.Broadcast()
}

func (u *user) Up(kept bool)   { u.event(func() { u.ups = append(u.ups, kept) }) }
func (u *user) Down(why error) { u.event(func() { u.why = append(u.why, why) }) }
func (u *user) Room()          { u.event(func() { u.room++ }) }

// downs and upped are what was heard so far.
func (u *user) downs() []error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Clone(u.why)
}

func (u *user) upped() []bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Clone(u.ups)
}

// await waits until a condition on what was heard holds.
func (u *user) await(what string, holds func() bool) {
	u.b.tb.Helper()
	timer := time.AfterFunc(patient, u.cond.Broadcast)
	defer timer.Stop()
	end := time.Now().Add(patient)
	u.mu.Lock()
	defer u.mu.Unlock()
	for !holds() {
		if time.Now().After(end) {
			u.b.tb.Fatalf("waited in vain for %s; up %v, down %v, the store says %+v", what, u.ups, u.why, u.store.State())
		}
		u.cond.Wait()
	}
}

func open(tb testing.TB, o Options) blk.Store {
	tb.Helper()
	s, err := Open(context.Background(), o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = s.Close() })
	return s
}

// use opens a lane and waits until it is up.
func (b *bench) use(s blk.Store) *user {
	b.tb.Helper()
	memory, err := uring.NewMemory(8 << 20)
	if err != nil {
		b.tb.Fatal(err)
	}
	u := &user{b: b, store: s, memory: memory.Bytes()}
	u.cond = sync.NewCond(&u.mu)
	lane, err := s.Open(blk.Host{Worker: b.worker, Ring: b.ring}, u)
	if err != nil {
		b.tb.Fatal(err)
	}
	b.worker.Do(func() {
		u.lane = lane
		b.users = append(b.users, u)
	})
	b.tb.Cleanup(func() {
		b.worker.Do(func() { u.lane.Close() })
		gone := func() (is bool) {
			b.worker.Do(func() { is = lane.(*laneType).memory == nil })
			return is
		}
		for end := time.Now().Add(patient); !gone(); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				b.tb.Error("a closed lane does not come to an end")
				return
			}
		}
		b.worker.Do(func() { u.lane = nil })
		_ = memory.Free()
	})
	u.await("the lane", func() bool { return len(u.ups) > 0 })
	return u
}

type laneType = lane

// request is one on its way, with its end.
type asked struct {
	blk.Request
	end chan blk.Outcome
	at  time.Time // when it ended, by the worker's clock
}

func (a *asked) Done(_ *blk.Request, o blk.Outcome) {
	a.at = time.Now()
	a.end <- o
}

// ask makes a request; of reads and writes with buffers as given.
func ask(op blk.Op, offset uint64, buffers ...[]byte) *asked {
	a := &asked{Request: blk.Request{Op: op, Offset: offset, Buffers: buffers}, end: make(chan blk.Outcome, 4)}
	for _, b := range buffers {
		a.Length += uint64(len(b))
	}
	a.Handler = a
	return a
}

// submit hands requests in, all in one round.
func (u *user) submit(requests ...*asked) {
	u.b.tb.Helper()
	u.b.worker.Do(func() {
		for _, a := range requests {
			if !u.lane.Submit(&a.Request) {
				u.b.tb.Errorf("%v of %d bytes at %d is handed back", a.Op, a.Length, a.Offset)
				a.end <- blk.Lost
			}
		}
	})
}

// ends waits for the end of a request.
func (u *user) ends(a *asked, want blk.Outcome) {
	u.b.tb.Helper()
	select {
	case o := <-a.end:
		if o != want {
			u.b.tb.Fatalf("%v of %d bytes at %d ended as %d, not %d; down: %v", a.Op, a.Length, a.Offset, o, want, u.downs())
		}
	case <-time.After(patient):
		u.b.tb.Fatalf("%v of %d bytes at %d does not end; the store says %+v", a.Op, a.Length, a.Offset, u.store.State())
	}
}

func (u *user) run(want blk.Outcome, requests ...*asked) {
	u.b.tb.Helper()
	u.submit(requests...)
	for _, a := range requests {
		u.ends(a, want)
	}
}

func fill(r *rand.Rand, b []byte) {
	for i := range b {
		b[i] = byte(r.Uint32())
	}
}

func same(tb testing.TB, what string, got, want []byte) {
	tb.Helper()
	if bytes.Equal(got, want) {
		return
	}
	for i := range got {
		if got[i] != want[i] {
			tb.Fatalf("%s: byte %d of %d is %#x, not %#x", what, i, len(got), got[i], want[i])
		}
	}
}

// process is a server that runs until the test ends.
type process struct {
	*exec.Cmd
	output bytes.Buffer
	gone   chan struct{}
}

// start runs a server in the foreground, killed with the test or with its parent.
func start(tb testing.TB, name string, args ...string) *process {
	tb.Helper()
	need.Program(tb, name)
	p := &process{Cmd: exec.Command(name, args...), gone: make(chan struct{})}
	p.Stdout, p.Stderr = &p.output, &p.output
	p.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := forked(p.Start); err != nil {
		tb.Fatal(err)
	}
	go func() {
		_ = p.Wait()
		close(p.gone)
	}()
	tb.Cleanup(p.kill)
	return p
}

// forks is served by a thread that lives as long as the tests: a child is killed with the thread that made it, and workers' threads end.
var forks = sync.OnceValue(func() chan func() {
	c := make(chan func())
	go func() {
		runtime.LockOSThread()
		for fn := range c {
			fn()
		}
	}()
	return c
})

func forked(start func() error) (err error) {
	done := make(chan struct{})
	forks() <- func() { err = start(); close(done) }
	<-done
	return err
}

// kill ends it and its children at once.
func (p *process) kill() {
	_ = syscall.Kill(-p.Process.Pid, syscall.SIGKILL)
	<-p.gone
}

// reachable waits until a store can be opened.
func reachable(tb testing.TB, p *process, o Options) {
	tb.Helper()
	for end := time.Now().Add(patient); ; time.Sleep(5 * time.Millisecond) {
		_, err := List(context.Background(), o)
		if err == nil {
			return
		}
		select {
		case <-p.gone:
			tb.Fatalf("%v ended: %s", p.Args, p.output.Bytes())
		default:
		}
		if time.Now().After(end) {
			tb.Fatalf("%v: %v", p.Args, err)
		}
	}
}

// socketPath is a path short enough for a socket.
func socketPath(tb testing.TB, name string) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "nbd")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, name)
}

// nbdkit serves on a unix socket; the arguments say what.
func nbdkit(tb testing.TB, args ...string) (*process, Options) {
	tb.Helper()
	path := socketPath(tb, "s")
	return nbdkitAt(tb, path, args...), Options{URI: "nbd+unix:///?socket=" + path}
}

func nbdkitAt(tb testing.TB, path string, args ...string) *process {
	tb.Helper()
	ready := filepath.Join(tb.TempDir(), "pid") // written when it accepts connections
	_ = os.Remove(ready)
	p := start(tb, "nbdkit", append([]string{"-f", "-U", path, "-P", ready}, args...)...)
	for end := time.Now().Add(patient); ; time.Sleep(2 * time.Millisecond) {
		if b, err := os.ReadFile(ready); err == nil && bytes.HasSuffix(b, []byte("\n")) {
			return p
		}
		select {
		case <-p.gone:
			tb.Fatalf("%v ended: %s", p.Args, p.output.Bytes())
		default:
		}
		if time.Now().After(end) {
			tb.Fatalf("%v does not get ready", p.Args)
		}
	}
}

// freePort is one that nobody listens on.
func freePort(tb testing.TB) string {
	tb.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		tb.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		tb.Fatal(err)
	}
	a, err := unix.Getsockname(fd)
	if err != nil {
		tb.Fatal(err)
	}
	return fmt.Sprint(a.(*unix.SockaddrInet4).Port)
}
