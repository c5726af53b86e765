package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk/driver"
	"github.com/shuntio/shunt/blk/driver/verify"
	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/virtq"
	"github.com/shuntio/shunt/tools/lab/peer"
	"github.com/shuntio/shunt/tools/need"
)

// pause stops a server's process without ending it, until it is resumed or the test ends.
func pause(t *testing.T, server *peer.NBDServer) (resume func()) {
	t.Helper()
	must(t, server.Pause(within(t, 20*time.Second)))
	t.Cleanup(server.Resume)
	return server.Resume
}

// answered measures how long the front-end waits for what it asks, and has the least of several be within what is promised: the others may be the machine's.
type answered struct {
	name  string
	least time.Duration
	most  time.Duration
}

func (a *answered) add(t *testing.T, f func() error) {
	t.Helper()
	began := time.Now()
	must(t, f())
	took := time.Since(began)
	if a.least == 0 || took < a.least {
		a.least = took
	}
	a.most = max(a.most, took)
}

func (a *answered) judge(t *testing.T) {
	t.Helper()
	const promised, machine = 100 * time.Millisecond, 2 * time.Second
	if a.least > promised || a.most > machine {
		t.Errorf("%s took %v to %v, want %v", a.name, a.least, a.most, promised)
	}
	t.Logf("%s took %v to %v", a.name, a.least.Round(10*time.Microsecond), a.most.Round(10*time.Microsecond))
}

// TestVolumeServerPaused: a server is stopped with requests under way. Its disk's front-end is answered at once all the same, whatever it asks; another disk and
// two network ports on the same worker go on as if nothing were. When the server goes on, so does the disk, and nothing was lost.
//
//	network ports ─┐
//	neighbour ─────┼─ worker 0 ─ paused, 4 queues ═ NBD server, stopped
func TestVolumeServerPaused(t *testing.T) {
	ctx := within(t, 2*time.Minute)
	s := newShelf(t, "[1]")
	s.file(t, "neighbour", "")
	s.blank(t, "paused", shelfDisk)
	server := s.nbdkit(t, "paused", "file", s.image("paused"))
	s.volume("paused", s.nbd("paused"), ", quiesce: 100ms, queues: 4")
	sockets, macs := [2]string{s.socket("n1"), s.socket("n2")}, [2]string{macA, macB}
	fmt.Fprintf(&s.config, "networks: [{name: blue}]\nports:\n")
	for i := range sockets {
		fmt.Fprintf(&s.config, "  - {name: n%d, network: blue, socket: %q, mac: %q}\n", i+1, sockets[i], macs[i])
	}
	d := start(t, namespace(t, "host"), "shuntd", s.config.String())
	neighbour := s.user(t, "neighbour", driver.Options{Packed: true, Clock: true}, verify.Options{MaxBytes: 64 << 10})
	paused := s.user(t, "paused", driver.Options{Queues: 4, EventIdx: true, Indirect: true, Inflight: true}, verify.Options{})
	paused.begin(t)
	must(t, moves(ctx, 50, paused))
	ports := startBystanders(t, sockets, macs)

	resume := pause(t, server)
	silent(t, ctx, paused)
	queued := queuedTime(t, d.PID(), os.Getpid())
	ports.heard()
	neighbour.begin(t)
	stop, reset, memory := &answered{name: "GET_VRING_BASE"}, &answered{name: "a reset"}, &answered{name: "SET_MEM_TABLE"}
	for range 5 {
		must(t, moves(ctx, 100, neighbour))
		memory.add(t, func() error {
			return paused.disk.Frontend(func(f *vhostuser.Frontend) error { return f.SetMemory(paused.disk.Regions()...) })
		})
		stop.add(t, paused.disk.Stop)
		must(t, paused.disk.Start())
		reset.add(t, paused.disk.Reset)
	}
	for _, a := range []*answered{stop, reset, memory} {
		a.judge(t)
	}
	worst := time.Duration(0)
	for _, c := range neighbour.end(t).Ops {
		worst = max(worst, c.Latency.Max())
	}
	_, stall := ports.heard()
	machine := time.Second + queuedTime(t, d.PID(), os.Getpid()) - queued // of which they waited for a CPU; the server would have delayed all for as long as it is stopped
	if worst > machine || stall > machine {
		t.Errorf("meanwhile a request of the neighbour took %v, a frame %v", worst, stall)
	}
	t.Logf("meanwhile no request of the neighbour took longer than %v, no frame %v", worst.Round(time.Microsecond), stall.Round(time.Microsecond))
	neighbour.check(t)

	resume()
	must(t, moves(ctx, 50, paused))
	paused.end(t)
	paused.check(t)
	paused.checkImage(t, s.image("paused"))
}

// silent waits until a load's requests all wait.
func silent(t *testing.T, ctx context.Context, u *user) {
	t.Helper()
	for last, since := u.completed(), time.Now(); time.Since(since) < 200*time.Millisecond; {
		select {
		case <-ctx.Done():
			t.Fatalf("volume %s is answered though its server is stopped", u.name)
		case <-time.After(5 * time.Millisecond):
		}
		if n := u.completed(); n != last {
			last, since = n, time.Now()
		}
	}
}

// TestVolumeMemoryRemoved: the memory that requests under way point to is taken away while their server is stopped, which is answered at once. When the server answers
// them, nothing changes there; nor when it has answered a part of them before.
func TestVolumeMemoryRemoved(t *testing.T) {
	ctx := within(t, time.Minute)
	s := newShelf(t, "[1]")
	s.blank(t, "away", shelfDisk)
	server := s.nbdkit(t, "away", "file", s.image("away"))
	s.volume("away", s.nbd("away"), ", quiesce: 100ms")
	s.blank(t, "midst", shelfDisk)
	s.nbdkit(t, "midst", "file", s.image("midst"))
	midst := s.behind(t, "midst", ", quiesce: 100ms")
	d := start(t, namespace(t, "host"), "shuntd", s.config.String())
	removed := &answered{name: "removal of memory"}
	for range 3 {
		disk := s.dial(t, "away", driver.Options{})
		buffer, err := disk.Alloc(1 << 20)
		must(t, err)
		resume := pause(t, server)
		r := &driver.Request{Op: driver.In, Data: []virtq.Buffer{buffer.Segment(0, 1<<20)}}
		must(t, disk.Queue(0).Submit(r))
		disk.Queue(0).Kick()
		for volumeStats(t, d, "away").InFlight == 0 {
			must(t, ctx.Err())
			time.Sleep(time.Millisecond)
		}
		removed.add(t, func() error {
			return disk.Frontend(func(f *vhostuser.Frontend) error { return f.SetMemory(disk.Regions()[:1]...) })
		})
		for i := range buffer.Bytes { // what is there is somebody else's from now on
			buffer.Bytes[i] = 0xc5
		}
		resume()
		if out, err := exec.CommandContext(ctx, "nbdinfo", "--size", s.nbd("away")).CombinedOutput(); err != nil { // it goes on
			t.Fatalf("%v: %s", err, out)
		}
		for i, b := range buffer.Bytes {
			if b != 0xc5 {
				t.Fatalf("byte %d of memory that was given back is %#x", i, b)
			}
		}
		must(t, disk.Close())
	}
	for _, passes := range []int64{0, 10, 5000, 300 << 10} {
		s.takenAway(t, ctx, "midst", midst, removed, passes)
	}
	removed.judge(t)
}

// TestVolumeFails: with on-error fail a request fails when its time is over, whether the server is stopped, dead, or slow; and not when it is back.
func TestVolumeFails(t *testing.T) {
	ctx := within(t, time.Minute)
	s := newShelf(t, "[1]")
	s.blank(t, "fails", shelfDisk)
	server := s.nbdkit(t, "fails", "file", s.image("fails"))
	const timeout = 500 * time.Millisecond
	s.volume("fails", s.nbd("fails"), fmt.Sprintf(", quiesce: 50ms, on-error: fail, timeout: %v", timeout))
	start(t, namespace(t, "host"), "shuntd", s.config.String())
	y, err := s.dial(t, "fails", driver.Options{}).NewSync(0, 64<<10)
	must(t, err)
	b := make([]byte, 64<<10)
	works := func() {
		t.Helper()
		for {
			_, err := y.ReadAt(b, 0)
			if err == nil {
				return
			}
			if ctx.Err() != nil || !errors.Is(err, driver.ErrStatus) {
				t.Fatalf("a server that is back: %v", err)
			}
		}
	}
	fails := func(what string) {
		t.Helper()
		began := time.Now()
		_, err := y.WriteAt(b, 0)
		took := time.Since(began)
		if !errors.Is(err, driver.ErrStatus) || took < timeout-50*time.Millisecond || took > timeout+2*time.Second {
			t.Errorf("with a server that is %s a write ended after %v: %v", what, took, err)
		}
		t.Logf("with a server that is %s a write failed after %v", what, took.Round(time.Millisecond))
	}
	works()
	resume := pause(t, server)
	fails("stopped")
	resume()
	works()
	server.Kill()
	fails("dead")
	must(t, server.Start(ctx))
	works()
}

// TestVolumeServerFilters: what a server says is wrong reaches the guest, and nothing else does; what takes long is waited for, unless the policy has it fail.
func TestVolumeServerFilters(t *testing.T) {
	ctx := within(t, time.Minute)
	s := newShelf(t, "[1]")
	wrong := filepath.Join(s.dir, "wrong")
	for name, more := range map[string]string{"error": "", "slow": "", "late": ", on-error: fail, timeout: 100ms"} {
		s.blank(t, name, shelfDisk)
		s.volume(name, s.nbd(name), ", quiesce: 50ms"+more)
	}
	s.nbdkit(t, "error", "--filter=error", "file", s.image("error"), "error=ENOSPC", "error-rate=100%", "error-file="+wrong)
	for _, name := range []string{"slow", "late"} {
		s.nbdkit(t, name, "--filter=delay", "file", s.image(name), "delay-read=400ms", "delay-write=400ms")
	}
	s.blank(t, "strict", shelfDisk)
	s.volume("strict", s.nbd("strict"), ", quiesce: 50ms")
	s.nbdkit(t, "strict", "--filter=blocksize-policy", "file", s.image("strict"), "blocksize-minimum=4096", "blocksize-preferred=64K", "blocksize-maximum=128K", "blocksize-error-policy=error")
	start(t, namespace(t, "host"), "shuntd", s.config.String())
	y, err := s.dial(t, "error", driver.Options{}).NewSync(0, 4096)
	must(t, err)
	b := make([]byte, 4096)
	works := func(want bool) {
		t.Helper()
		for name, f := range map[string]func() error{
			"read":    func() error { _, err := y.ReadAt(b, 0); return err },
			"write":   func() error { _, err := y.WriteAt(b, 0); return err },
			"discard": func() error { return y.Discard(driver.Range{Sector: 16, Sectors: 8}) },
			"zeroes":  func() error { return y.WriteZeroes(driver.Range{Sector: 8, Sectors: 8}) },
		} {
			if err := f(); (err == nil) != want || err != nil && !errors.Is(err, driver.ErrStatus) {
				t.Errorf("%s with errors at the server: %v, %v", name, !want, err)
			}
		}
	}
	works(true)
	must(t, os.WriteFile(wrong, nil, 0o600))
	works(false)
	must(t, os.Remove(wrong))
	works(true)

	strict := s.user(t, "strict", ringForms["packed"], verify.Options{})
	if c := strict.disk.Config(); c.BlkSize != 4096 {
		t.Errorf("a server that takes blocks of 4096 bytes is a disk of %d", c.BlkSize)
	}
	strict.begin(t)
	must(t, moves(ctx, 200, strict))
	strict.end(t) // of requests of up to 1 MiB none has failed
	strict.checkImage(t, s.image("strict"))

	for name, want := range map[string]bool{"slow": true, "late": false} {
		y, err := s.dial(t, name, driver.Options{}).NewSync(0, 4096)
		must(t, err)
		began := time.Now()
		_, err = y.WriteAt(b, 0)
		if took := time.Since(began); (err == nil) != want || want && took < 400*time.Millisecond || ctx.Err() != nil {
			t.Errorf("a %s write ended after %v: %v", name, took, err)
		}
	}
}

// TestVolumeServerLeaves: a server that is told to pause answers nothing until it is told to go on, which is waited for, or is an error, as the policy says. One that
// exits with its last client does so when a connection breaks; what comes after it is found.
func TestVolumeServerLeaves(t *testing.T) {
	ctx := within(t, time.Minute)
	s := newShelf(t, "[1]")
	for name, more := range map[string]string{"waits": "", "fails": ", on-error: fail, timeout: 200ms"} {
		s.blank(t, name, shelfDisk)
		s.nbdkit(t, name, "--filter=pause", "file", s.image(name), "pause-control="+s.image(name+".pause"))
		s.volume(name, s.nbd(name), ", quiesce: 50ms"+more)
	}
	s.blank(t, "last", shelfDisk)
	s.serve(t, "last", `while :; do rm -f "$0"; nbdkit -f -U "$0" "$@"; echo >>"$0.ended"; done`, "--filter=exitlast", "file", s.image("last"))
	last := s.behind(t, "last", ", quiesce: 50ms")
	d := start(t, namespace(t, "host"), "shuntd", s.config.String())

	data := make(map[string][]byte)
	for name, want := range map[string]bool{"waits": true, "fails": false} {
		y, err := s.dial(t, name, driver.Options{}).NewSync(0, 4096)
		must(t, err)
		data[name] = bytes.Repeat([]byte(name), 4096)[:4096]
		_, err = y.WriteAt(data[name], 0)
		must(t, err)
		s.control(t, name, 'p')
		wrote := make(chan error, 1)
		go func() {
			_, err := y.WriteAt(data[name], 4096)
			wrote <- err
		}()
		eventually(t, ctx, "nothing is under way", func() bool { return volumeStats(t, d, name).InFlight > 0 || len(wrote) > 0 })
		if want {
			if len(wrote) > 0 {
				t.Errorf("a server that pauses has answered: %v", <-wrote)
			}
			s.control(t, name, 'r')
		}
		if err := <-wrote; (err == nil) != want || err != nil && !errors.Is(err, driver.ErrStatus) {
			t.Errorf("volume %s: a write to a server that pauses: %v", name, err)
		}
		if !want {
			s.control(t, name, 'r')
		}
		b := make([]byte, 4096)
		for _, err = y.ReadAt(b, 0); err != nil && !want && ctx.Err() == nil; {
			_, err = y.ReadAt(b, 0)
		}
		if err != nil || !bytes.Equal(b, data[name]) {
			t.Errorf("volume %s, when the server goes on: %v", name, err)
		}
	}

	ended := func() int {
		b, _ := os.ReadFile(s.image("last.nbd.ended"))
		return len(b)
	}
	u := s.user(t, "last", ringForms["split"], verify.Options{MaxBytes: 64 << 10})
	u.begin(t)
	for range 3 {
		must(t, moves(ctx, 20, u))
		before := ended()
		must(t, u.load.ServerCrash(func() error {
			last.Cut().End()
			eventually(t, ctx, "the server stays", func() bool { return ended() > before })
			return nil
		}))
	}
	must(t, moves(ctx, 20, u))
	u.end(t)
	u.check(t)
	u.checkImage(t, s.image("last"))
	if n := volumeStats(t, d, "last").Reconnects; n < 3 {
		t.Errorf("%d reconnects", n)
	}
}

// control tells a server's pause filter to pause (p) or to go on (r), and waits until it does.
func (s *shelf) control(t *testing.T, name string, what byte) {
	t.Helper()
	c, err := net.Dial("unix", s.image(name+".pause"))
	must(t, err)
	defer c.Close()
	must(t, c.SetDeadline(time.Now().Add(20*time.Second)))
	_, err = c.Write([]byte{what})
	must(t, err)
	answer := make([]byte, 1)
	if _, err := io.ReadFull(c, answer); err != nil || answer[0] != what-'a'+'A' {
		t.Fatalf("the pause filter answered %q: %v", answer, err)
	}
}

// TestVolumesIdle: two disks whose drivers want nothing cost no CPU.
func TestVolumesIdle(t *testing.T) {
	need.Root(t)
	s := newShelf(t, "[0, 1]")
	s.file(t, "file", ", workers: [0]")
	s.blank(t, "nbd", shelfDisk)
	s.nbdkit(t, "nbd", "file", s.image("nbd"))
	s.volume("nbd", s.nbd("nbd"), ", workers: [1]")
	d := start(t, namespace(t, "host"), "shuntd", s.config.String())
	for _, name := range []string{"file", "nbd"} {
		y, err := s.dial(t, name, driver.Options{EventIdx: true}).NewSync(0, 4096)
		must(t, err)
		_, err = y.WriteAt(make([]byte, 4096), 0)
		must(t, err)
		must(t, y.Flush())
	}
	before := cpuTime(t, d.PID())
	const watched = 10 * time.Second
	select { // no condition is waited for: it is the time that is measured
	case <-time.After(watched):
	case <-t.Context().Done():
	}
	used := cpuTime(t, d.PID()) - before
	if used > 20*time.Millisecond {
		t.Errorf("idle volumes used %v of CPU time in %v", used, watched)
	}
	t.Logf("%v of CPU time in %v", used, watched)
}

// cpuTime is what all threads of a process, that live, have used.
func cpuTime(t *testing.T, pid int) (used time.Duration) {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	must(t, err)
	for _, file := range threads {
		text, err := os.ReadFile(file)
		must(t, err)
		var ns int64
		_, err = fmt.Sscan(string(text), &ns)
		must(t, err)
		used += time.Duration(ns)
	}
	return used
}
