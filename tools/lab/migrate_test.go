package lab

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shuntio/shunt/bpf"
	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/lab/daemon"
	"github.com/shuntio/shunt/tools/lab/guest"
	"github.com/shuntio/shunt/tools/lab/netlab"
	"github.com/shuntio/shunt/tools/need"
)

// A virtual machine moves from one host to another and, in soak, back and forth, while a neighbour pings it and sends it files, by way of a device with split rings
// and one with packed ones:
//
//	         host a                          host b
//	pen ─ veth ─┐                              ┌─ QEMU, waits
//	QEMU, runs ─┴─ shuntd ── up ═════════ up ──┴─ shuntd
//
// No port knows the guest's addresses, so the network has to learn where they are now: of one device the guest itself tells (GUEST_ANNOUNCE), of the
// other its front-end has the daemon do so (RARP).
func TestLiveMigration(t *testing.T) {
	moves := 1
	if need.Soak() {
		moves = 10
	}
	ctx := within(t, 2*time.Minute+time.Duration(moves)*time.Minute)
	img := image(t)
	s := newMove(t)
	s.guest = boot(t, s.machine(img, 0, false))
	for i := range moveNICs {
		address(t, s.guest, fmt.Sprintf("eth%d", i), 1450, fmt.Sprintf("10.0.%d.1/24", i))
		reach(t, ctx, s.pen, fmt.Sprintf("10.0.%d.1", i))
	}
	for i := range moves {
		s.move(t, ctx, img, 1-i%2)
	}
	goodChecksums(t, ctx, "the guest", s.guest)
	goodChecksums(t, ctx, "the neighbour", s.pen)
}

const moveNICs = 2

type move struct {
	hosts   [2]*netlab.Namespace
	pen     *netlab.Namespace
	daemons [2]*daemon.Daemon
	dir     string
	guest   *guest.Guest
}

func newMove(t *testing.T) *move {
	t.Helper()
	s := &move{hosts: [2]*netlab.Namespace{namespace(t, "a"), namespace(t, "b")}, pen: namespace(t, "pen")}
	var err error
	if s.dir, err = os.MkdirTemp("", "move"); err != nil { // t.TempDir's path is too long for a socket's
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(s.dir) })
	wire(t, netlab.End{Namespace: s.hosts[0], Name: "up", Addrs: []string{"192.0.2.1/24"}},
		netlab.End{Namespace: s.hosts[1], Name: "up", Addrs: []string{"192.0.2.2/24"}})
	withoutIPv6(t, s.pen)
	err = netlab.Veth(netlab.End{Namespace: s.hosts[0], Name: "pen"},
		netlab.End{Namespace: s.pen, Name: "eth0", MTU: 1450, Addrs: []string{"10.0.0.2/24", "10.0.1.2/24"}}, 1)
	if err != nil {
		t.Fatal(err)
	}
	if xdpMode() == bpf.Generic { // such a program sees long packets before anybody cuts them, and drops them
		run(t, s.pen, "ethtool", "-K", "eth0", "tx", "off", "tso", "off", "gso", "off")
	}
	for i, host := range s.hosts {
		config := fmt.Sprintf("workers: {cpus: [1]}\nuplinks: [{name: up, interface: up, address: 192.0.2.%d}]\n"+
			"networks: [{name: blue, vni: 7, uplink: up, flood: [192.0.2.%d]}]\nports:\n", 1+i, 2-i)
		for nic := range moveNICs {
			config += fmt.Sprintf("  - {name: eth%d, network: blue, socket: %q, anti-spoof: false}\n", nic, s.socket(i, nic))
		}
		if i == 0 {
			config += "  - {name: pen, network: blue, interface: pen, anti-spoof: false}\n"
		}
		s.daemons[i] = start(t, host, fmt.Sprintf("shuntd%d", i), config)
	}
	return s
}

func (s *move) socket(host, nic int) string { return fmt.Sprintf("%s/%d-%d.sock", s.dir, host, nic) }

// machine is the same on both hosts.
func (s *move) machine(img guest.Image, host int, incoming bool) guest.Options {
	o := guest.Options{Name: fmt.Sprintf("vm%d", host), Image: img, Incoming: incoming, MemoryMiB: 192}
	for nic, properties := range []string{"", "packed=on,guest_announce=off"} {
		o.NICs = append(o.NICs, guest.NIC{Socket: s.socket(host, nic), MAC: fmt.Sprintf("52:54:00:00:06:%02x", nic), Properties: properties})
	}
	return o
}

// move moves the guest to a host while it gets files.
func (s *move) move(t *testing.T, ctx context.Context, img guest.Image, host int) {
	target, err := guest.Start(ctx, s.machine(img, host, true))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = target.Close() })
	source := s.guest
	type received struct {
		nic  int
		text string
		err  error
	}
	sums := make(chan received, moveNICs)
	var files [moveNICs]*file
	for nic := range moveNICs {
		go func() { // the guest writes what comes to its memory, and reads it again in the end
			out, err := source.Shell(ctx, fmt.Sprintf("nc -l -p %d >/run/file%d; sha256sum </run/file%d; rm /run/file%d", 7000+nic, nic, nic, nic))
			sums <- received{nic, out, err}
		}()
	}
	var pings [moveNICs]*netlab.Process
	for nic := range moveNICs {
		to := fmt.Sprintf("10.0.%d.1", nic)
		files[nic] = s.send(t, ctx, fmt.Sprintf("%s:%d", to, 7000+nic))
		if pings[nic], err = netlab.Start(s.pen.Command(ctx, "ping", "-D", "-i", "0.05", "-s", "200", to)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pings[nic].Kill)
	}
	came := func(nic int) int { return strings.Count(pings[nic].Output(), " bytes from ") }
	await := func(what string, done func(nic int) bool) {
		t.Helper()
		for nic := 0; nic < moveNICs; {
			if done(nic) {
				nic++
				continue
			}
			if ctx.Err() != nil {
				t.Fatalf("eth%d: %s: %v; %d bytes of its file are sent, %d pings came back", nic, what, context.Cause(ctx), files[nic].sent.Load(), came(nic))
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	await("no traffic before", func(nic int) bool { return files[nic].sent.Load() > 1<<20 && came(nic) > 10 })
	m, err := source.Migrate(ctx, target, guest.MigrateOptions{Bandwidth: 24 << 20})
	if err != nil {
		t.Fatal(err)
	}
	moved := time.Now()
	s.guest = target
	var before [moveNICs]int
	for nic := range before {
		before[nic] = came(nic)
	}
	await("no traffic afterwards", func(nic int) bool { return came(nic) > before[nic]+10 })
	again := time.Since(moved)
	if err := source.Close(); err != nil {
		t.Error(err)
	}
	for nic := range files {
		files[nic].finish()
	}
	for range moveNICs {
		r := <-sums
		want, n, err := files[r.nic].sum()
		if have, _, _ := strings.Cut(r.text, " "); err != nil || r.err != nil || have != want {
			t.Errorf("eth%d: the file of %d bytes arrived with sum %q, want %q (%v, %v)", r.nic, n, have, want, err, r.err)
		}
	}
	for nic, p := range pings {
		s.judge(t, nic, p, m, again)
	}
	for nic := range moveNICs {
		c := counters(t, s.daemons[host], control.KindPort, fmt.Sprintf("eth%d", nic))
		if c.RxPackets == 0 || c.TxPackets == 0 {
			t.Errorf("eth%d on the new host received %d and sent %d frames", nic, c.RxPackets, c.TxPackets)
		}
	}
	t.Logf("moved in %v, %d rounds, %d MiB; stood still %v; ten pings more came back within %v; files of %d and %d bytes arrived whole",
		m.Total, m.Rounds, m.Bytes>>20, m.Downtime, again.Round(time.Millisecond), files[0].sent.Load(), files[1].sent.Load())
}

// judge bounds what was lost of pings, and how long.
func (s *move) judge(t *testing.T, nic int, p *netlab.Process, m guest.Migration, again time.Duration) {
	t.Helper()
	p.Kill()
	var first, last, sequence int
	var at, gap float64
	came := 0
	for line := range strings.Lines(p.Output()) {
		var when float64
		i := strings.Index(line, "icmp_seq=")
		if n, _ := fmt.Sscanf(line, "[%f]", &when); n != 1 || i < 0 || !strings.Contains(line, " bytes from ") {
			continue
		}
		if _, err := fmt.Sscanf(line[i:], "icmp_seq=%d", &sequence); err != nil || strings.Contains(line, "DUP!") {
			continue
		}
		if came++; first == 0 {
			first = sequence
		} else {
			gap = max(gap, when-at)
		}
		at, last = when, max(last, sequence)
	}
	lost := last - first + 1 - came
	silent := time.Duration(gap * float64(time.Second))
	// The guest stood still, the network had to learn, and on a busy machine pings wait.
	bound := m.Downtime + again + 3*time.Second
	t.Logf("eth%d: %d of %d pings were lost, the longest silence was %v", nic, lost, last-first+1, silent.Round(time.Millisecond))
	if silent > bound || lost > int(bound/(50*time.Millisecond)) {
		t.Errorf("eth%d: %d of %d pings were lost, the longest silence was %v, more than %v", nic, lost, last-first+1, silent, bound)
	}
}

// file is sent to a guest, as long as the test likes.
type file struct {
	sent atomic.Uint64
	stop chan struct{}
	done chan error
	hash string
}

// send begins to send random bytes, slowly enough for memory to be copied faster.
func (s *move) send(t *testing.T, ctx context.Context, to string) *file {
	t.Helper()
	f := &file{stop: make(chan struct{}), done: make(chan error, 1)}
	var conn net.Conn
	for { // until the guest listens
		err := s.pen.Do(func() (err error) {
			conn, err = net.DialTimeout("tcp", to, 5*time.Second)
			return err
		})
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			t.Fatal(errors.Join(context.Cause(ctx), err))
		}
		time.Sleep(50 * time.Millisecond)
	}
	go func() { f.done <- f.run(conn) }()
	return f
}

func (f *file) run(conn net.Conn) error {
	defer conn.Close()
	random, sum, b := rand.NewChaCha8([32]byte{}), sha256.New(), make([]byte, 32<<10)
	pace := time.NewTicker(20 * time.Millisecond)
	defer pace.Stop()
	for {
		select {
		case <-f.stop:
			f.hash = fmt.Sprintf("%x", sum.Sum(nil))
			return nil
		case <-pace.C:
		}
		_, _ = random.Read(b)
		if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			return err
		}
		n, err := io.MultiWriter(conn, sum).Write(b)
		f.sent.Add(uint64(n))
		if err != nil {
			return err
		}
	}
}

func (f *file) finish() { close(f.stop) }

func (f *file) sum() (hash string, n uint64, err error) {
	err = <-f.done
	return f.hash, f.sent.Load(), err
}
