package bpf

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/tools/need"
)

// attachPort attaches the program for ports to up0, the host end of the veth of a container that peer plays.
func (l *lab) attachPort(t testing.TB, opts Options) *PortProgram {
	t.Helper()
	opts.Interface, opts.PinPath = "up0", l.pins()
	var p *PortProgram
	err := l.host.Do(func() (err error) {
		p, err = AttachPort(opts)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// verdicts are a program's counts by name.
func verdicts(t testing.TB, p interface{ Counters() ([]Counter, error) }) map[string]uint64 {
	t.Helper()
	counters, err := p.Counters()
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]uint64{}
	for _, c := range counters {
		byName[c.Verdict] = c.Packets
	}
	return byName
}

// neighbour lets the container send to an address that nobody answers for.
func (l *lab) neighbour(t *testing.T) {
	t.Helper()
	if _, err := l.peer.Run(t.Context(), "ip", "neigh", "replace", "192.0.2.7", "lladdr", "52:54:00:00:00:01", "dev", "peer0"); err != nil {
		t.Fatal(err)
	}
}

func TestPortVerdicts(t *testing.T) {
	ns, index := interfaceWithQueues(t, 2)
	p := &PortProgram{}
	p.queues = 2
	if err := p.load(); err != nil {
		t.Fatal(err)
	}
	defer p.objs.Close()
	if err := errors.Join(p.SetMTU(1500), p.AddSocket(1, xdpSocket(t))); err != nil {
		t.Fatal(err)
	}
	if err := p.AddSocket(2, xdpSocket(t)); !errors.Is(err, ErrInvalid) {
		t.Errorf("a third queue: %v", err)
	}
	run := func(prog *ebpf.Program, n int, queue uint32) (action uint32) {
		t.Helper()
		md := xdpMd{DataEnd: uint32(n), IngressIfindex: index, RxQueueIndex: queue}
		err := ns.Do(func() (err error) {
			action, err = prog.Run(&ebpf.RunOptions{Data: make([]byte, n), Context: md})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return action
	}
	for _, c := range []struct {
		n       int
		queue   uint32
		action  uint32
		verdict string
	}{
		{14, 1, xdpRedirect, "redirect"}, {1518, 1, xdpRedirect, "redirect"}, {1519, 1, xdpDrop, "drop-too-long"},
		{60, 0, xdpDrop, "drop-no-socket"}, {1519, 0, xdpDrop, "drop-too-long"},
	} {
		for name, prog := range map[string]*ebpf.Program{"frags": p.objs.ShuntPort, "linear": p.objs.ShuntPortLin} {
			before := verdicts(t, p)[c.verdict]
			if got := run(prog, c.n, c.queue); got != c.action || verdicts(t, p)[c.verdict] != before+1 {
				t.Errorf("%s, %d bytes on queue %d: action %d, counts %v, want %s", name, c.n, c.queue, got, verdicts(t, p), c.verdict)
			}
		}
	}
	if err := p.SetMTU(9000); err != nil {
		t.Fatal(err)
	}
	if got := run(p.objs.ShuntPort, 9018, 1); got != xdpRedirect {
		t.Errorf("a jumbo frame after the MTU was raised: action %d", got)
	}
}

// Whatever a container sends arrives on the socket and never in the kernel, with a
// socket or without.
func TestPortTakesEverything(t *testing.T) {
	for _, mode := range []Mode{Native, Generic} {
		t.Run(mode.String(), func(t *testing.T) {
			t.Setenv("SHUNT_MASK", "")
			l := newLab(t, 1500)
			kernel := udpSocket(t, l.host, "192.0.2.1:4789")
			container := udpSocket(t, l.peer, "192.0.2.2:50001")
			p := l.attachPort(t, Options{Mode: mode})
			if p.Mode() != mode || !p.Frags() {
				t.Errorf("mode %s, frags %v", p.Mode(), p.Frags())
			}
			l.neighbour(t)
			send := func() {
				t.Helper()
				for _, to := range []string{"192.0.2.7:9", "192.0.2.1:4789"} {
					if _, err := container.WriteToUDP([]byte("anything"), udpAddr(to)); err != nil {
						t.Fatal(err)
					}
				}
			}
			if _, err := l.peer.Run(t.Context(), "ip", "neigh", "replace", "192.0.2.1", "lladdr", "52:54:00:00:00:02", "dev", "peer0"); err != nil {
				t.Fatal(err)
			}
			send()
			got := verdicts(t, p)
			for deadline := time.Now().Add(10 * time.Second); got["drop-no-socket"] < 2 && time.Now().Before(deadline); got = verdicts(t, p) {
				time.Sleep(time.Millisecond)
			}
			if got["drop-no-socket"] < 2 || got["redirect"] != 0 {
				t.Errorf("without a socket: %v", got)
			}
			ours := l.socket(t, func(fd int) error { return p.AddSocket(0, fd) })
			send()
			for _, to := range []byte{1, 2} {
				for got := ours.next(t); ; got = ours.next(t) {
					if bytes.HasPrefix(got, []byte{0x52, 0x54, 0, 0, 0, to}) && bytes.HasSuffix(got, []byte("anything")) {
						break // others are IPv6's own
					}
				}
			}
			kernel.SetReadDeadline(time.Now())
			if n, err := kernel.Read(make([]byte, 100)); err == nil {
				t.Errorf("the kernel got a frame of %d bytes", n)
			}
			err := l.host.Do(func() error {
				all, err := Inspect(l.pins(), "up0")
				if err == nil && (len(all) != 1 || all[0].Program.Name != "shunt_port" || len(all[0].Counters) != 3 || all[0].Counters[0].Packets == 0) {
					t.Errorf("inspected: %+v", all)
				}
				return err
			})
			if err := errors.Join(err, p.Close()); err != nil {
				t.Error(err)
			}
			l.nothingLeft(t)
		})
	}
}

// Attached in the driver, the program makes the container's kernel segment by
// itself; in generic mode what it did not segment is dropped by name.
func TestPortSegmentationOffload(t *testing.T) {
	need.Program(t, "ethtool")
	for _, mode := range []Mode{Native, Generic} {
		t.Run(mode.String(), func(t *testing.T) {
			t.Setenv("SHUNT_MASK", "")
			l := newLab(t, 1500)
			l.neighbour(t)
			conn := udpSocket(t, l.peer, "192.0.2.2:50001")
			raw, err := conn.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			err = errors.Join(raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, 1000) }), err)
			if err != nil {
				t.Fatal(err)
			}
			p := l.attachPort(t, Options{Mode: mode})
			ours := l.socket(t, func(fd int) error { return p.AddSocket(0, fd) })
			out, err := l.peer.Run(t.Context(), "ethtool", "-k", "peer0")
			if err != nil {
				t.Fatal(err)
			}
			if off := strings.Contains(out, "tcp-segmentation-offload: off"); off != (mode == Native) {
				t.Errorf("the peer's features:\n%s", out)
			}
			if _, err := conn.WriteToUDP(make([]byte, 4000), udpAddr("192.0.2.7:9")); err != nil {
				t.Fatal(err)
			}
			if mode == Generic {
				for deadline := time.Now().Add(10 * time.Second); verdicts(t, p)["drop-too-long"] == 0; time.Sleep(time.Millisecond) {
					if time.Now().After(deadline) {
						t.Fatalf("the packet to be segmented was not seen: %v", verdicts(t, p))
					}
				}
				return
			}
			for seen := 0; seen < 4; {
				if len(ours.next(t)) == 14+20+8+1000 {
					seen++
				}
			}
			if got := verdicts(t, p); got["drop-too-long"] != 0 {
				t.Errorf("%v", got)
			}
		})
	}
}

// The program of a killed owner keeps the container from the kernel; the next
// owner exchanges it in place, for a port's program or an uplink's.
func TestPortTakeover(t *testing.T) {
	l := newLab(t, 1500)
	l.neighbour(t)
	container := udpSocket(t, l.peer, "192.0.2.2:50001")
	kernel := udpSocket(t, l.host, "192.0.2.1:7")
	cmd := l.host.Command(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=port")
	o, line := startCommand(t, cmd)
	if line != "attached" {
		t.Fatalf("the owner said %q", line)
	}
	before := l.link(t)
	o.kill()
	if _, err := l.peer.Run(t.Context(), "ip", "neigh", "replace", "192.0.2.1", "lladdr", "52:54:00:00:00:02", "dev", "peer0"); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := container.WriteToUDP([]byte("to the host"), udpAddr("192.0.2.1:7")); err != nil {
			t.Fatal(err)
		}
	}
	kernel.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := kernel.Read(make([]byte, 100)); err == nil {
		t.Error("the kernel got a container's frame after the owner's death")
	}
	p := l.attachPort(t, Options{})
	if after := l.link(t); after.ID != before.ID || after.Program == before.Program {
		t.Errorf("link %d with program %d became link %d with program %d", before.ID, before.Program, after.ID, after.Program)
	}
	ours := l.socket(t, func(fd int) error { return p.AddSocket(0, fd) })
	if _, err := container.WriteToUDP([]byte("again"), udpAddr("192.0.2.7:9")); err != nil {
		t.Fatal(err)
	}
	for !bytes.HasSuffix(ours.next(t), []byte("again")) {
	}
	if err := p.Leave(); err != nil {
		t.Error(err)
	}
	if err := l.attach(t, Options{}).Close(); err != nil {
		t.Errorf("an uplink's program in the place of a port's: %v", err)
	}
	l.nothingLeft(t)
}
