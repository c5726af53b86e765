package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shuntio/shunt/tools/lab/daemon"
	"github.com/shuntio/shunt/tools/lab/guest"
	"github.com/shuntio/shunt/tools/lab/peer"
)

// plugged is a disk that comes and goes while its guest runs, in front of an NBD server that can be stopped, and two network ports on the same worker:
//
//	guest /dev/vdc ─ vhost-user ─ shuntd ─ io_uring, unix socket ─ NBD server
//	       bystanders ─ vhost-user ─┘
type plugged struct {
	g      *guest.Guest
	d      *daemon.Daemon
	server *peer.NBDServer
	socket string
	// waited is the longest that QEMU waited for others before its monitor answered a command, worst the longest that this took, slowest which command that was.
	waited, worst time.Duration
	slowest       string
}

var pluggedMACs = [2]string{"52:54:00:00:07:01", "52:54:00:00:07:02"}

func (c *cloud) pluggedSocket(name string) string { return filepath.Join(c.dir, name+".sock") }

// pluggedConfig is what the daemon has to know of it, as a last volume, and more.
func (c *cloud) pluggedConfig() string {
	return fmt.Sprintf(`  - {name: plugged, socket: %s, source: "nbd+unix:///?socket=%s", quiesce: 100ms}
networks: [{name: blue}]
ports:
  - {name: n1, network: blue, socket: %s, mac: "%s"}
  - {name: n2, network: blue, socket: %s, mac: "%s"}
`, c.pluggedSocket("plugged"), filepath.Join(c.dir, "plugged.nbd"), c.pluggedSocket("n1"), pluggedMACs[0], c.pluggedSocket("n2"), pluggedMACs[1])
}

// pluggedServer starts its server. nbdkit 1.32 aborts when a client vanishes while several of its threads answer it.
func (c *cloud) pluggedServer(t *testing.T, ctx context.Context) *peer.NBDServer {
	t.Helper()
	socket := filepath.Join(c.dir, "plugged.nbd")
	server, err := peer.StartNBD(ctx, nil, "nbd+unix:///?socket="+socket, "nbdkit", "-f", "-t", "1", "-U", socket, "memory", "32M")
	must(t, err)
	t.Cleanup(server.Kill)
	return server
}

// ask has QEMU's monitor carry out a command, which must answer within a second whatever a disk's server does. What QEMU's main loop itself does meanwhile, or has to
// wait for a processor, does not count: a reset alone takes it that long on a busy machine, with or without disks. An error of the command is the caller's.
func (p *plugged) ask(t *testing.T, ctx context.Context, command string, arguments map[string]any) error {
	t.Helper()
	const promised = time.Second
	began, busy := time.Now(), busyTime(t, p.g.PID())
	err := p.g.Ask(ctx, command, arguments, nil)
	took := time.Since(began)
	waited := took - (busyTime(t, p.g.PID()) - busy)
	if waited > promised {
		t.Errorf("QEMU answered %s after %v, of which it waited %v; want at most %v", command, took, waited, promised)
	}
	p.waited = max(p.waited, waited)
	if took > p.worst {
		p.worst, p.slowest = took, command
	}
	return err
}

// busyTime is how long a process's first thread has run, and waited for a processor.
func busyTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	ran, queued, err := scheduled(fmt.Sprintf("/proc/%d/task/%d/schedstat", pid, pid))
	must(t, err)
	return ran + queued
}

// queuedTime is how long all threads of processes that live have waited for a processor.
func queuedTime(t *testing.T, pids ...int) (sum time.Duration) {
	t.Helper()
	for _, pid := range pids {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
		must(t, err)
		for _, file := range threads {
			if _, queued, err := scheduled(file); err == nil { // or it has just ended
				sum += queued
			}
		}
	}
	return sum
}

func scheduled(file string) (ran, queued time.Duration, err error) {
	text, err := os.ReadFile(file)
	if err == nil {
		_, err = fmt.Sscan(string(text), (*int64)(&ran), (*int64)(&queued))
	}
	return ran, queued, err
}

// until asks QEMU how it is until a condition holds.
func (p *plugged) until(t *testing.T, ctx context.Context, what string, holds func() bool) {
	t.Helper()
	for {
		must(t, p.ask(t, ctx, "query-status", nil))
		if holds() {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, context.Cause(ctx))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (p *plugged) inFlight(t *testing.T) int64 { return int64(volumeStats(t, p.d, "plugged").InFlight) }

// plug puts the disk into its slot, and waits until the guest has it.
func (p *plugged) plug(t *testing.T, ctx context.Context) {
	t.Helper()
	must(t, p.g.Plug(ctx, 0, guest.Disk{Socket: p.socket, Reconnect: true}))
	_, err := p.g.Shell(ctx, "until [ -b /dev/vdc ] && [ $(cat /sys/block/vdc/size) = 65536 ]; do usleep 10000; done")
	must(t, err)
}

// sum reads the first megabytes of the disk in the guest, past its cache.
func (p *plugged) sum(t *testing.T, ctx context.Context) string {
	t.Helper()
	out, err := p.g.Shell(ctx, "dd if=/dev/vdc bs=1M count=4 iflag=direct 2>/dev/null | sha256sum")
	must(t, err)
	return out
}

// rebootFrozen reboots a guest twice and takes a disk from it, while the server of that disk stands still with requests under way: at first those of a program, then
// those of the kernel that boots, and looks for partitions. QEMU must not notice; nor do others on the worker. When the server goes on the disk comes back,
// with what was on it.
func (p *plugged) rebootFrozen(t *testing.T, ctx context.Context, sockets [2]string) {
	p.plug(t, ctx)
	_, err := p.g.Shell(ctx, "dd if=/dev/urandom of=/dev/vdc bs=1M count=4 oflag=direct conv=fsync 2>/dev/null")
	must(t, err)
	sum := p.sum(t, ctx)
	ports := startBystanders(t, sockets, pluggedMACs)
	writer := make(chan error, 1)
	go func() {
		_, err := p.g.Shell(ctx, "while :; do dd if=/dev/zero of=/dev/vdc bs=64k count=64 seek=128 oflag=direct 2>/dev/null; done")
		writer <- err
	}()
	p.until(t, ctx, "nothing is written", func() bool { return p.inFlight(t) > 0 })
	defer p.server.Resume()
	must(t, p.server.Pause(ctx))
	p.until(t, ctx, "nothing is under way", func() bool { return p.inFlight(t) > 0 })
	ports.heard()
	queued := queuedTime(t, p.d.PID(), os.Getpid())

	boots := p.g.Boots()
	must(t, p.ask(t, ctx, "system_reset", nil))
	p.until(t, ctx, "requests outlive the reset", func() bool { return p.inFlight(t) == 0 })
	p.until(t, ctx, "the kernel that boots reads nothing", func() bool { return p.inFlight(t) > 0 })
	id := map[string]any{"id": guest.PlugID(0)}
	must(t, p.ask(t, ctx, "device_del", id))
	for range 20 { // the guest is asked, and waits for its disk
		must(t, p.ask(t, ctx, "query-status", nil))
		time.Sleep(10 * time.Millisecond)
	}
	if n := p.g.Deleted(guest.PlugID(0)); n > 0 {
		t.Log("the guest gave its disk back by itself")
	}
	must(t, p.ask(t, ctx, "system_reset", nil))
	began := time.Now()
	p.until(t, ctx, "the disk stays", func() bool { return p.g.Deleted(guest.PlugID(0)) > 0 })
	gone := time.Since(began)
	p.until(t, ctx, "the way to the disk stays", func() bool { return p.ask(t, ctx, "chardev-remove", id) == nil })
	if err := p.g.Boot(ctx, boots+1); err != nil {
		t.Fatal(err)
	}
	if err := <-writer; err == nil {
		t.Error("the program that wrote has outlived its guest")
	}
	frames, stall := ports.heard()
	if queued = queuedTime(t, p.d.PID(), os.Getpid()) - queued; stall > time.Second+queued {
		t.Errorf("meanwhile a frame took %v, and threads waited %v for a processor", stall, queued)
	}
	t.Logf("QEMU answered everything within %v (%s), and waited %v at most; the disk was gone after %v; meanwhile %d frames passed, none later than %v",
		p.worst.Round(time.Microsecond), p.slowest, p.waited.Round(time.Microsecond), gone.Round(time.Microsecond), frames, stall.Round(time.Microsecond))

	p.server.Resume()
	p.plug(t, ctx)
	if got := p.sum(t, ctx); got != sum {
		t.Errorf("the disk came back with %s, it had %s", strings.TrimSpace(got), strings.TrimSpace(sum))
	}
	if out, err := p.g.Shell(ctx, "yes works | head -c 65536 >/tmp/w && dd if=/tmp/w of=/dev/vdc bs=64k seek=2 oflag=direct conv=fsync 2>/dev/null && dd if=/dev/vdc bs=64k skip=2 count=1 iflag=direct 2>/dev/null | cmp - /tmp/w"); err != nil {
		t.Errorf("the disk that came back: %v: %s", err, out)
	}
}
