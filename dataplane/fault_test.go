package dataplane_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/shm"
	"github.com/shuntio/shunt/dataplane/vnet"
	"github.com/shuntio/shunt/dataplane/vnet/vnettest"
)

// Guest A takes its memory away: at every point of a round, from every page of its file on. Whatever happens to A, the frames in flight are
// delivered or counted, no frame of the pool is lost or there twice, and B and C go on with all their buffers.

const (
	faultQueue  = 64
	faultBuffer = 8192
)

// faultPages are lengths of A's file, in pages, at which something different is gone. See vnettest for the layout.
func faultPages() (pages []int) {
	tables := 2 * (1 + 1) // of a queue of 64: the descriptors, and both rings in one page
	rx := tables
	tx := rx + faultQueue*faultBuffer/4096
	for i := range tables + 1 {
		pages = append(pages, i)
	}
	pages = append(pages, rx+1, rx+2, rx+9, rx+100) // receive buffers
	for i := range 24 {
		pages = append(pages, tx+i) // transmit buffers, two pages each
	}
	return append(pages, tx+60, tx+faultQueue*2)
}

var faultSteps = []string{
	"A.receive", "A.received", "A.forward.0", "A.forward.7", "B.transmit", "B.transmitted", "C.transmit", "C.transmitted", "A.release",
	"B.receive", "B.received", "B.forward.3", "A.transmit", "A.transmitted", "B.release", "A.flush", "A.arm", "A.pending", "A.disarm",
}

func TestMemoryGoesAway(t *testing.T) {
	for _, features := range []uint64{0, vnet.FeatureEventIdx, vnet.FeaturePacked, vnet.FeaturePacked | vnet.FeatureInOrder | vnet.FeatureEventIdx} {
		if testing.Short() && features != 0 && features&vnet.FeatureInOrder == 0 {
			continue
		}
		features |= vnet.FeatureVersion1 | vnet.FeatureMrgRxbuf
		l := newLAN(t, 3, vnettest.Options{QueueSize: faultQueue, BufferSize: faultBuffer, Features: features})
		a := l.hosts[0]
		size := int64(len(a.Memory))
		cuts, faults := 0, 0
		for _, step := range faultSteps {
			for _, pages := range faultPages() {
				before := l.worker.Stats().Faults.Load()
				l.storm(step, int64(pages)*4096)
				cuts++
				if l.worker.Stats().Faults.Load() != before {
					faults++
					if s := a.dev.State(); s.Failed == nil || s.Running {
						t.Errorf("%s, %d pages: there was a fault, and A's state is %+v", step, pages, s)
					}
				}
				l.afterwards(a)
				if t.Failed() {
					t.Fatalf("the file cut to %d pages at %s", pages, step)
				}
				// A new driver in A finds a port that works.
				if err := unix.Ftruncate(a.FD, size); err != nil {
					t.Fatal(err)
				}
				a.Detach(a.dev)
				clear(a.Memory)
				if err := a.Restart(); err != nil {
					t.Fatal(err)
				}
				if err := a.Attach(a.dev); err != nil {
					t.Fatal(err)
				}
			}
		}
		t.Logf("%d cuts, %d faults", cuts, faults)
		if faults < cuts/3 {
			t.Error("most cuts hit nothing, so the test showed little")
		}
	}
}

// What A does to its own memory costs B no frame for C, even where B's batch has frames for both.
func TestFaultSparesOthers(t *testing.T) {
	l := newLAN(t, 3, vnettest.Options{QueueSize: faultQueue, BufferSize: faultBuffer, Features: vnet.FeatureVersion1 | vnet.FeatureMrgRxbuf})
	a, b, c := l.hosts[0], l.hosts[1], l.hosts[2]
	const n = 10
	b.send(0, 60) // so that A is served first
	for range n {
		b.send(everybody, 60)
		b.send(2, 60)
	}
	l.at = func(now string) {
		if now == "A.transmit" {
			if err := unix.Ftruncate(a.FD, 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	before := c.link.Counters.TxPackets.Load()
	byHand(func() { l.worker.Round() })
	l.at = func(string) {}
	if got := c.link.Counters.TxPackets.Load() - before; got != 2*n || l.worker.Stats().Faults.Load() == 0 {
		t.Errorf("C got %d of %d frames, after %d faults", got, 2*n, l.worker.Stats().Faults.Load())
	}
	if got := a.link.Counters.Drops(dataplane.DropFault); got != n+1 {
		t.Errorf("%d of %d frames for A are counted", got, n+1)
	}
}

// storm lets all send to all, small frames and large ones with borrowed bodies, and cuts A's file at a step.
func (l *lan) storm(step string, size int64) {
	l.Helper()
	a, b, c := l.hosts[0], l.hosts[1], l.hosts[2]
	lengths := []int{60, 1400, 6000, 250, 7900, 300}
	for i := range 20 {
		a.send(byte(1+i%2), lengths[i%6])
		if i%7 == 3 {
			a.send(everybody, lengths[i%6])
		}
	}
	for i := range 12 {
		b.send(byte(2*(i%2)), lengths[i%6]) // A and C
		c.send(byte(i%2), lengths[i%6])     // A and B
	}
	cut := func() {
		if err := unix.Ftruncate(a.FD, size); err != nil {
			l.Fatal(err)
		}
	}
	done := false
	l.at = func(now string) {
		if now == step && !done {
			done = true
			cut()
		}
	}
	defer func() { l.at = func(string) {} }()
	byHand(func() {
		l.worker.Round()
		if step == "A.arm" { // before all of it
			cut()
		}
		for _, h := range l.hosts {
			h.link.Arm()
		}
		shm.Fence()
		for _, h := range l.hosts {
			h.link.Pending()
		}
		for _, h := range l.hosts {
			h.link.Disarm()
		}
	})
	l.settle(b, c)
}

// afterwards sees that the neighbours of a are whole: every buffer of theirs is in its place, and holds a frame.
func (l *lan) afterwards(a *host) {
	l.Helper()
	b, c := l.hosts[1], l.hosts[2]
	for _, h := range []*host{b, c} {
		if s := h.dev.State(); s.Failed != nil || !s.Running {
			l.Fatalf("%s: state %+v", h.name, s)
		}
	}
	full := func() uint64 {
		return b.link.Counters.Drops(vnet.DropGuestRingFull) + c.link.Counters.Drops(vnet.DropGuestRingFull)
	}
	before, got := full(), b.received+c.received
	for range faultQueue {
		if !b.send(2, 60) || !c.send(1, 60) {
			l.Fatal("a transmit buffer was not given back")
		}
	}
	l.settle() // the driver takes nothing meanwhile, so that all its receive buffers are used
	b.drain()
	c.drain()
	if full() != before || b.received+c.received != got+2*faultQueue {
		l.Errorf("%d of %d frames between the neighbours arrived, %d found no buffer", b.received+c.received-got, 2*faultQueue, full()-before)
	}
	for _, h := range []*host{b, c} {
		if n := h.link.Counters.TxPackets.Load(); n != h.received {
			l.Errorf("%s: %d frames sent to it, %d arrived", h.name, n, h.received)
		}
		if n := h.link.Counters.RxPackets.Load(); n != h.sent {
			l.Errorf("%s: it sent %d frames, %d came in", h.name, h.sent, n)
		}
	}
	l.checkBalance()
}

// Two guests go away in one round, each with frames for the other under way.
func TestTwoMemoriesGoAway(t *testing.T) {
	for _, step := range faultSteps {
		l := newLAN(t, 4, vnettest.Options{QueueSize: faultQueue, BufferSize: faultBuffer})
		for i := range 10 {
			for k, h := range l.hosts {
				h.send(byte((k+1+i%3)%4), 100+i*700)
			}
		}
		l.at = func(now string) {
			if now == step {
				for _, h := range l.hosts[:2] {
					if err := unix.Ftruncate(h.FD, 0); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		if step == "A.arm" {
			l.at("A.arm")
		}
		c, d := l.hosts[2], l.hosts[3]
		l.settle(c, d)
		byHand(func() {
			for _, h := range l.hosts {
				h.link.Arm()
				h.link.Pending()
				h.link.Disarm()
			}
		})
		l.at = func(string) {}
		for range 20 {
			c.send(3, 60)
			d.send(2, 6000)
		}
		l.settle(c, d)
		l.checkBalance()
		for _, h := range []*host{c, d} {
			if s := h.dev.State(); s.Failed != nil || h.link.Counters.TxPackets.Load() != h.received || h.link.Counters.RxPackets.Load() != h.sent {
				t.Errorf("%s at %s: %+v, sent %d, received %d", h.name, step, s, h.sent, h.received)
			}
		}
	}
}

// The sender of a batch that a receiver's memory cut off gets its chains back at once.
func TestLenderGetsItsChainsBack(t *testing.T) {
	l := newLAN(t, 2, vnettest.Options{QueueSize: faultQueue, BufferSize: faultBuffer})
	a, b := l.hosts[0], l.hosts[1]
	for range 4 {
		b.send(0, 7000)
	}
	if err := unix.Ftruncate(a.FD, 0); err != nil {
		t.Fatal(err)
	}
	byHand(func() { b.link.Poll() })
	back := 0
	for {
		_, _, ok, err := b.Tx.Used()
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			break
		}
		back++
	}
	if back != 4 || l.worker.Stats().Faults.Load() != 1 || a.link.Counters.Drops(dataplane.DropFault) != 4 {
		t.Errorf("%d of 4 chains came back; %d faults, %d frames dropped", back, l.worker.Stats().Faults.Load(), a.link.Counters.Drops(dataplane.DropFault))
	}
}

// A Transmit that the sender's memory cut off has taken chains of the receiver's. If its ring is stopped right then, the base tells the
// driver's next device to take them again.
func TestStopAfterFault(t *testing.T) {
	l := newLAN(t, 2, vnettest.Options{QueueSize: faultQueue, BufferSize: faultBuffer})
	a, b := l.hosts[0], l.hosts[1]
	for range 3 {
		a.send(1, 60)
	}
	a.send(1, 7000)
	l.at = func(now string) {
		if now == "B.transmit" {
			if err := unix.Ftruncate(a.FD, 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	byHand(func() { l.worker.Round() })
	if l.worker.Stats().Faults.Load() == 0 || a.link.Counters.Drops(dataplane.DropFault) != 4 {
		t.Fatalf("%d faults, %d frames dropped", l.worker.Stats().Faults.Load(), a.link.Counters.Drops(dataplane.DropFault))
	}
	if base, err := b.dev.StopVring(0); base != 0 || err != nil {
		t.Errorf("base is %d, %v: the driver was shown no chain", base, err)
	}
}

// While the worker runs, rings are started in memory that is gone; the caller gets its answer, and the worker goes on.
func TestDoContainsFaults(t *testing.T) {
	l := newLAN(t, 2, vnettest.Options{QueueSize: faultQueue})
	a := l.hosts[0]
	for _, running := range []bool{false, true} {
		if running {
			run(t, l.worker)
		}
		a.Detach(a.dev)
		if err := unix.Ftruncate(a.FD, int64(len(a.Memory))); err != nil {
			t.Fatal(err)
		}
		if err := a.Restart(); err != nil {
			t.Fatal(err)
		}
		if err := a.Attach(a.dev); err != nil {
			t.Fatal(err)
		}
		if err := unix.Ftruncate(a.FD, 0); err != nil {
			t.Fatal(err)
		}
		answer := make(chan error, 1)
		go func() { answer <- a.dev.StartVring(a.Vring(1)) }()
		select {
		case err := <-answer:
			if err == nil || !strings.Contains(err.Error(), "went away") {
				t.Errorf("running=%v: %v", running, err)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("running=%v: no answer", running)
		}
	}
}

// owner is a port whose guest's memory is gone.
type owner struct {
	fakePort
	memory *shm.Mapping
	faults int
}

func newOwner(t *testing.T) *owner {
	t.Helper()
	m, err := shm.Map(shm.MapOptions{FD: -1, Length: 4096})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Free() })
	if err := m.Revoke(); err != nil {
		t.Fatal(err)
	}
	return &owner{memory: m}
}

func (o *owner) Fault(address uintptr) bool {
	mine := address-shm.Address(o.memory.Bytes()) < 4096
	if mine {
		o.faults++
	}
	return mine
}

// A function that faults on the memory of one of the worker's guests ends, its caller goes on, and so does the worker.
func TestDoOfFaultingFunction(t *testing.T) {
	w := newWorker(t, dataplane.WorkerOptions{})
	o := newOwner(t)
	w.Do(func() { w.Add(&dataplane.Link{Port: o, Counters: &dataplane.Counters{}}) })
	for i, running := range []bool{false, true} {
		if running {
			run(t, w)
		}
		reached := false
		within(t, func() {
			w.Do(func() {
				o.memory.Bytes()[7] = 1
				reached = true
			})
		})
		if reached || o.faults != i+1 || w.Stats().Faults.Load() != uint64(i)+1 {
			t.Errorf("running=%v: reached %v, %d faults", running, reached, o.faults)
		}
		done := false
		within(t, func() { w.Do(func() { done = true }) })
		if !done {
			t.Errorf("running=%v: the worker does no more mail", running)
		}
	}
}

// A fault that is no guest's is a bug of ours, and ends the process; so does every other panic.

const crashChild = "SHUNT_CRASH"

var crashes = map[string]string{ // how, and what the process says
	"stray":      "fault",
	"nil":        "nil pointer",
	"panic":      "on purpose",
	"stray mail": "fault",
}

func TestOtherFaultsCrash(t *testing.T) {
	for how, want := range crashes {
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), crashChild+"="+how)
		var said bytes.Buffer
		child.Stderr = &said
		err := child.Run()
		if err == nil || !strings.Contains(said.String(), want) {
			t.Errorf("%s: %v, and it said %q, want %q in it", how, err, said.String(), want)
		}
		if !strings.Contains(said.String(), "crashHere") {
			t.Errorf("%s: the trace does not say where:\n%s", how, said.String())
		}
	}
}

// crasher forwards nothing.
type crasher struct {
	how   string
	stray []byte
}

func (c crasher) Forward(*dataplane.Worker, *dataplane.Link, []*frame.Frame) { c.crashHere() }

//go:noinline
func (c crasher) crashHere() {
	switch c.how {
	case "nil":
		var l *dataplane.Link
		l.Name = "x"
	case "panic":
		panic("on purpose")
	default:
		c.stray[0] = 1
	}
}

// crash is the child process: a worker with an honest guest, and a forwarder that is wrong.
func crash(how string) {
	fatal := func(err error) {
		if err != nil {
			fmt.Println(err)
			os.Exit(0)
		}
	}
	stray, err := shm.Map(shm.MapOptions{FD: -1, Length: 4096})
	fatal(err)
	fatal(stray.Revoke())
	memory, err := frame.NewMemory(make([]byte, 16*frame.ChunkSize))
	fatal(err)
	pool, err := memory.NewPool(0, 16)
	fatal(err)
	w, err := dataplane.NewWorker(dataplane.WorkerOptions{Pool: pool})
	fatal(err)
	c := crasher{how, stray.Bytes()}
	link := &dataplane.Link{Counters: &dataplane.Counters{}, Forwarder: c}
	device, err := vnet.New(vnet.Options{Pairs: []vnet.PairOptions{{Worker: w, Link: link}}})
	fatal(err)
	guest, err := vnettest.New(vnettest.Options{})
	fatal(err)
	fatal(guest.Attach(device))
	w.Do(func() { w.Add(link) })
	if how == "stray mail" {
		go w.Do(c.crashHere)
	} else {
		fatal(guest.Send(make([]byte, 60)))
	}
	time.AfterFunc(10*time.Second, func() { os.Exit(0) })
	_ = w.Run()
}
