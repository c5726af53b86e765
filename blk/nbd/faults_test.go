package nbd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk"
	"golang.org/x/sys/unix"
)

func TestServerErrors(t *testing.T) {
	_, o := nbdkit(t, "--filter=error", "memory", "16M", "error-pread=EIO", "error-pread-rate=100%", "error-trim=EPERM", "error-trim-rate=100%",
		"error-zero=ENOSPC", "error-zero-rate=100%")
	u := newBench(t).use(open(t, o))
	u.run(blk.OK, ask(blk.OpWrite, 0, u.memory[:4096]), ask(blk.OpFlush, 0))
	u.run(blk.Failed, ask(blk.OpRead, 0, u.memory[:4096]), ask(blk.OpRead, 4096, u.memory[4096:1<<20]))
	d, z := ask(blk.OpDiscard, 0), ask(blk.OpWriteZeroes, 0)
	d.Length, z.Length = 4096, 4096
	u.run(blk.Failed, d, z)
	u.run(blk.OK, ask(blk.OpWrite, 0, u.memory[:4096]))
	if len(u.downs()) > 0 {
		t.Errorf("errors broke the connection: %v", u.downs())
	}
}

// TestReadOnlyServer: what it cannot do is refused, each with a sentence of its own.
func TestReadOnlyServer(t *testing.T) {
	_, o := nbdkit(t, "-r", "memory", "16M")
	if _, err := Open(context.Background(), o); !errors.Is(err, ErrReadOnly) {
		t.Errorf("opened for writing: %v", err)
	}
	o.ReadOnly = true
	s := open(t, o)
	u := newBench(t).use(s)
	if !s.Info().ReadOnly {
		t.Error("it is not read-only")
	}
	u.run(blk.Failed, ask(blk.OpWrite, 0, u.memory[:512]))
	u.run(blk.OK, ask(blk.OpRead, 0, u.memory[:512]))
}

// TestRestart kills a server under load and starts it again: requests come back as lost, and once the lane is up what is submitted anew is done.
func TestRestart(t *testing.T) {
	t.Parallel()
	path, file := socketPath(t, "s"), image(t)
	server := nbdkitAt(t, path, "--filter=delay", "file", file, "wdelay=20ms")
	s := open(t, Options{URI: "nbd+unix:///?socket=" + path, Quiesce: 300 * time.Millisecond})
	u := newBench(t).use(s)
	for round := range 3 {
		var writes []*asked
		for i := range 20 {
			b := u.memory[i*8192:][:8192]
			b[0], b[8191] = byte(round), byte(i)
			writes = append(writes, ask(blk.OpWrite, uint64(i*8192), b))
		}
		u.submit(writes...)
		broken := time.Now()
		server.kill()
		var lost []*asked
		for _, a := range writes {
			switch o := <-a.end; o {
			case blk.OK:
			case blk.Lost:
				lost = append(lost, a)
			default:
				t.Fatalf("a write ended as %d", o)
			}
		}
		u.await("that it is down", func() bool { return len(u.why) > round })
		if s.State().Up || s.State().Why == nil {
			t.Errorf("the store says %+v", s.State())
		}
		u.b.worker.Do(func() {
			if u.lane.Submit(&ask(blk.OpFlush, 0).Request) {
				t.Error("a lane that is down takes a request")
			}
		})
		os.Remove(path)
		server = nbdkitAt(t, path, "--filter=delay", "file", file, "wdelay=20ms")
		u.await("the lane", func() bool { return len(u.ups) > round+1 })
		if took := time.Since(broken); len(lost) > 0 && took < 300*time.Millisecond {
			t.Errorf("up after %v, with %d writes lost and 300ms to wait", took, len(lost))
		}
		if u.upped()[round+1] {
			t.Error("a server that was killed is taken for the same")
		}
		u.run(blk.OK, lost...)
		u.run(blk.OK, ask(blk.OpFlush, 0))
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		same(t, "the image", data[:20*8192], u.memory[:20*8192])
	}
	if got := s.State(); !got.Up || got.Reconnects != 3 {
		t.Errorf("the store says %+v", got)
	}
}

// TestExitLast: a server that exits with its last client was not asked to do so by Open.
func TestExitLast(t *testing.T) {
	server, o := nbdkit(t, "--filter=exitlast", "memory", "16M")
	s := open(t, o)
	u := newBench(t).use(s)
	u.run(blk.OK, ask(blk.OpWrite, 0, u.memory[:4096]))
	u.b.worker.Do(func() { u.lane.Close() })
	select {
	case <-server.gone:
	case <-time.After(patient):
		t.Error("the connection does not end with its lane")
	}
}

// TestIdleServerDies: that is noticed with nothing on its way.
func TestIdleServerDies(t *testing.T) {
	server, o := nbdkit(t, "memory", "16M")
	u := newBench(t).use(open(t, o))
	server.kill()
	u.await("that it is down", func() bool { return len(u.why) > 0 })
	if !strings.Contains(u.downs()[0].Error(), errHungUp.Error()) {
		t.Errorf("it says %q", u.downs()[0])
	}
}

// TestSilence: a server that does not answer is given up after the timeout, one that trickles, too; and one whose process is stopped.
func TestSilence(t *testing.T) {
	t.Parallel()
	t.Run("stopped", func(t *testing.T) {
		t.Parallel()
		server, o := nbdkit(t, "memory", "16M")
		o.Timeout = 400 * time.Millisecond
		u := newBench(t).use(open(t, o))
		if err := syscall.Kill(server.Process.Pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(patient); !server.stopped(t); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("the server does not stop")
			}
		}
		a := ask(blk.OpRead, 0, u.memory[:4096])
		u.submit(a)
		u.ends(a, blk.Lost)
		if !strings.Contains(u.downs()[0].Error(), "does not answer for") {
			t.Errorf("it says %q", u.downs()[0])
		}
	})
	t.Run("trickling", func(t *testing.T) {
		t.Parallel()
		m := newMock(t).serve()
		o := m.options()
		o.Timeout = 200 * time.Millisecond
		u := newBench(t).use(open(t, o))
		client := m.client()
		a := ask(blk.OpRead, 0, u.memory[:1<<20])
		u.submit(a)
		g := client.next()
		client.send(chunkOf(g, chunkDone, chunkOffsetData, 8+1<<20, be64(0)))
		stop := make(chan struct{})
		go func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(time.Millisecond):
					client.send([]byte{1})
				}
			}
		}()
		defer close(stop)
		u.ends(a, blk.Lost)
	})
	t.Run("one of many", func(t *testing.T) {
		t.Parallel()
		why := ""
		for range 5 { // until the machine lets the server answer the others in time
			if why = oneOfMany(t); strings.Contains(why, "does not answer a read") {
				return
			}
		}
		t.Errorf("it says %q", why)
	})
}

// oneOfMany has a server answer everything but one read, and returns why it was given up.
func oneOfMany(t *testing.T) string {
	m := newMock(t).serve()
	o := m.options()
	o.Timeout = 500 * time.Millisecond
	u := newBench(t).use(open(t, o))
	client := m.client()
	hung := ask(blk.OpRead, 0, u.memory[:512])
	u.submit(hung)
	client.next()
	var stop atomic.Bool
	defer stop.Store(true)
	go func() {
		for !stop.Load() {
			f := ask(blk.OpFlush, 0)
			took := false
			u.b.worker.Do(func() { took = u.lane.Submit(&f.Request) })
			if !took {
				return
			}
			g, err := client.header()
			if err != nil {
				return
			}
			client.send(none(g))
			<-f.end
		}
	}()
	u.ends(hung, blk.Lost)
	return u.downs()[0].Error()
}

// stopped tells whether all threads of a process are.
func (p *process) stopped(t *testing.T) bool {
	t.Helper()
	names, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		stat, err := os.ReadFile(name)
		if err != nil || !bytes.Contains(stat, []byte(") T ")) {
			return false
		}
	}
	return len(names) > 0
}

// TestWitness: where another connection to the server outlives a break the server is known to be the same, and only there.
func TestWitness(t *testing.T) {
	t.Parallel()
	m := newMock(t)
	m.flags |= flagMultiConn
	m.serve()
	s := open(t, m.options())
	if s.Info().Lanes != 0 {
		t.Fatalf("it allows %d lanes", s.Info().Lanes)
	}
	one, two := newBench(t).use(s), newBench(t).use(s)
	first, second := m.client(), m.client()
	first.Close()
	g := second.next() // the sign of life that is asked for
	if g.command != cmdRead || g.length != 512 {
		t.Errorf("it asks for a sign of life by %+v", g)
	}
	second.send(dataChunk(g, chunkDone, 0, make([]byte, 512)))
	one.await("the lane", func() bool { return len(one.ups) == 2 })
	if !one.upped()[1] {
		t.Error("a server that another connection knows is not taken for the same")
	}
	if len(two.downs()) != 0 {
		t.Errorf("the other lane broke: %v", two.downs())
	}
	third := m.client()
	third.Close()
	second.next()
	second.Close() // instead of an answer
	one.await("the lane", func() bool { return len(one.ups) == 3 })
	if one.upped()[2] {
		t.Error("a server that nobody knows is taken for the same")
	}
}

func TestOneConnection(t *testing.T) {
	m := newMock(t).serve()
	s := open(t, m.options())
	b := newBench(t)
	b.use(s)
	if _, err := s.Open(blk.Host{Worker: b.worker, Ring: b.ring}, &user{}); !errors.Is(err, ErrLanes) {
		t.Errorf("a second lane: %v", err)
	}
}

type watcher chan blk.Info

func (w watcher) Changed(i blk.Info) { w <- i }

// TestGrowth: a lane goes over to a connection that knows the new size, without losing a request.
func TestGrowth(t *testing.T) {
	file := image(t)
	_, o := nbdkit(t, "file", file)
	s := open(t, o)
	u := newBench(t).use(s)
	if i, err := s.Refresh(context.Background()); err != nil || i.Size != imageSize {
		t.Fatalf("refreshed: %d bytes, %v", i.Size, err)
	}
	if err := os.Truncate(file, 2*imageSize); err != nil {
		t.Fatal(err)
	}
	i, err := s.Refresh(context.Background())
	if err != nil || i.Size != 2*imageSize {
		t.Fatalf("refreshed: %d bytes, %v", i.Size, err)
	}
	u.memory[0] = 77
	u.run(blk.OK, ask(blk.OpWrite, 2*imageSize-4096, u.memory[:4096]))
	if len(u.downs()) > 0 || len(u.upped()) != 1 {
		t.Errorf("up %v, down %v", u.upped(), u.downs())
	}
	data, err := os.ReadFile(file)
	if err != nil || data[2*imageSize-4096] != 77 {
		t.Errorf("what was written beyond the old end is not there (%v)", err)
	}
}

// TestGrowthUnderLoad: requests are on their way all the time, and none fails by that.
func TestGrowthUnderLoad(t *testing.T) {
	file := image(t)
	_, o := nbdkit(t, "file", file)
	s := open(t, o)
	u := newBench(t).use(s)
	r := newRunner(u, blk.OpWrite, 300, 8192) // more than the lane takes at once
	r.requests = r.requests[:maxTasks]
	u.b.worker.Do(func() { r.start(1 << 30) })
	for i := range 5 {
		if err := os.Truncate(file, int64(i+2)*imageSize); err != nil {
			t.Fatal(err)
		}
		if i, err := s.Refresh(context.Background()); err != nil || i.Size <= imageSize {
			t.Fatalf("refreshed: %d bytes, %v", i.Size, err)
		}
	}
	u.b.worker.Do(func() { r.left = 0 })
	<-r.done
	if r.failed > 0 || len(u.downs()) > 0 {
		t.Errorf("%d failed; down: %v", r.failed, u.downs())
	}
}

// TestRoom: a lane that is full hands back, and says when it is not any more.
func TestRoom(t *testing.T) {
	m := newMock(t).serve()
	u := newBench(t).use(open(t, m.options()))
	client := m.client()
	u.b.worker.Do(func() {
		for range maxTasks {
			if !u.lane.Submit(&ask(blk.OpFlush, 0).Request) {
				t.Error("handed back before it is full")
			}
		}
		if u.lane.Submit(&ask(blk.OpFlush, 0).Request) {
			t.Error("taken though it is full")
		}
	})
	client.send(none(client.next()))
	u.await("room", func() bool { return u.room > 0 })
	a := ask(blk.OpFlush, 0)
	u.submit(a)
	for range maxTasks {
		client.send(none(client.next()))
	}
	u.ends(a, blk.OK)
}

// TestZeroes: many are zeroed in one command where the server is quick at it, and in pieces where it is not.
func TestZeroes(t *testing.T) {
	m := newMock(t)
	m.size = 8 << 30
	m.serve()
	u := newBench(t).use(open(t, m.options()))
	client := m.client()
	zeroes := func(length uint64, unmap bool) *asked {
		a := ask(blk.OpWriteZeroes, 1<<20)
		a.Length, a.Unmap = length, unmap
		u.submit(a)
		return a
	}
	expect := func(flags uint16, offset uint64, length uint32) got {
		t.Helper()
		g := client.next()
		if g.command != cmdWriteZeroes || g.flags != flags || g.offset != offset || g.length != length {
			t.Errorf("%+v, not flags %#x, %d bytes at %d", g, flags, length, offset)
		}
		return g
	}
	a := zeroes(4096, true)
	client.send(none(expect(0, 1<<20, 4096)))
	u.ends(a, blk.OK)
	a = zeroes(3<<29, false)
	client.send(none(expect(cmdFlagFastZero|cmdFlagNoHole, 1<<20, 1<<30)))
	client.send(errorChunk(expect(cmdFlagFastZero|cmdFlagNoHole, 1<<20+1<<30, 1<<29), chunkDone, errnoNotSupported, ""))
	for i := range uint64(16) {
		client.send(none(expect(cmdFlagNoHole, 1<<20+1<<30+i*slowZeroes, slowZeroes)))
	}
	u.ends(a, blk.OK)

	// What is not said to be quick is a request like any other, and as long at most.
	small := newMock(t)
	small.infos = []mockInfoReply{slices.Concat(be16(infoBlockSize), be32(512), be32(4096), be32(1<<20))}
	small.serve()
	u = newBench(t).use(open(t, small.options()))
	client = small.client()
	a = zeroes(2<<20, true)
	client.send(none(expect(0, 1<<20, 1<<20)), none(expect(0, 2<<20, 1<<20)))
	u.ends(a, blk.OK)
	a = zeroes(64<<20, true)
	client.send(errorChunk(expect(cmdFlagFastZero, 1<<20, 64<<20), chunkDone, errnoNotSupported, ""))
	for i := range uint64(64) {
		client.send(none(expect(0, 1<<20+i<<20, 1<<20)))
	}
	u.ends(a, blk.OK)
}

// TestChanged: a server that comes back with another size is told about; with less than guests were told, it is not taken.
func TestChanged(t *testing.T) {
	path := socketPath(t, "s")
	server := nbdkitAt(t, path, "memory", "16M")
	w := make(watcher, 8)
	s := open(t, Options{URI: "nbd+unix:///?socket=" + path, Quiesce: -1, Watcher: w})
	u := newBench(t).use(s)
	server.kill()
	os.Remove(path)
	server = nbdkitAt(t, path, "memory", "32M")
	select {
	case i := <-w:
		if i.Size != 32<<20 {
			t.Errorf("changed to %d bytes", i.Size)
		}
	case <-time.After(patient):
		t.Fatal("nobody is told")
	}
	u.await("the lane", func() bool { return len(u.ups) == 2 })
	server.kill()
	os.Remove(path)
	nbdkitAt(t, path, "-r", "memory", "32M")
	for end := time.Now().Add(patient); !errors.Is(s.State().Why, ErrReadOnly); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the store says %+v", s.State())
		}
	}
	if len(u.upped()) != 2 {
		t.Error("it is up")
	}
}

// TestHole: a guest whose memory is not there loses that request, and no other.
func TestHole(t *testing.T) {
	_, o := nbdkit(t, "memory", "16M")
	u := newBench(t).use(open(t, o))
	hole := u.memory[4<<20:][:2<<20]
	if err := unix.Mprotect(hole, unix.PROT_NONE); err != nil {
		t.Fatal(err)
	}
	defer unix.Mprotect(hole, unix.PROT_READ|unix.PROT_WRITE)
	u.run(blk.OK, ask(blk.OpWrite, 0, u.memory[:1<<20]))
	good := func() []*asked {
		return []*asked{ask(blk.OpRead, 0, u.memory[:4096]), ask(blk.OpRead, 0, u.memory[8192:][:256<<10]), ask(blk.OpWrite, 8<<20, u.memory[1<<20:][:64<<10])}
	}
	for _, n := range []int{512, 4096, 128 << 10, 1 << 20} {
		for _, op := range []blk.Op{blk.OpRead, blk.OpWrite} {
			bad := ask(op, 0, u.memory[3<<20:][:4096], hole[:n])
			around := good()
			u.submit(around[0], bad, around[1], around[2])
			select {
			case got := <-bad.end:
				if got != blk.Failed {
					t.Errorf("%v of %d bytes in a hole ended as %d (%v)", op, n, got, u.downs())
				}
			case <-time.After(patient):
				t.Fatalf("%v of %d bytes in a hole does not end", op, n)
			}
			for _, a := range around {
				if got := <-a.end; got == blk.Lost && op == blk.OpWrite {
					up := len(u.downs()) + 1
					u.await("the lane", func() bool { return len(u.ups) == up })
				} else if got != blk.OK {
					t.Errorf("%v beside it ended as %d", a.Op, got)
				}
			}
		}
	}
}

// TestIdleCosts: a lane with nothing to do has nothing under way but a poll.
func TestIdleCosts(t *testing.T) {
	_, o := nbdkit(t, "memory", "16M")
	u := newBench(t).use(open(t, o))
	u.run(blk.OK, ask(blk.OpWrite, 0, u.memory[:4096]))
	operations := func() (n uint64) {
		u.b.worker.Do(func() { n = u.b.ring.Stats().Operations.Load() })
		return n
	}
	before, rounds := operations(), u.b.worker.Stats().Rounds.Load()
	time.Sleep(300 * time.Millisecond)
	if n := operations() - before; n > 2 {
		t.Errorf("%d operations while idle", n)
	}
	if n := u.b.worker.Stats().Rounds.Load() - rounds; n > 100000 {
		t.Errorf("%d rounds while idle", n)
	}
}
