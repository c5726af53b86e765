package bpf

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/shuntio/shunt/tools/lab/netlab"
)

// lab is an uplink "up0" and a peer that sends to it, each in its namespace:
//
//	peer  peer0 192.0.2.2 -----veth----- up0 192.0.2.1  host
type lab struct {
	host, peer *netlab.Namespace
}

func newLab(t testing.TB, mtu int) *lab { return newWideLab(t, mtu, 1) }

func newWideLab(t testing.TB, mtu, queues int) *lab {
	t.Helper()
	l := &lab{namespace(t, "host"), namespace(t, "peer")}
	err := netlab.Veth(
		netlab.End{Namespace: l.host, Name: "up0", MTU: mtu, Addrs: []string{"192.0.2.1/24"}},
		netlab.End{Namespace: l.peer, Name: "peer0", MTU: mtu, Addrs: []string{"192.0.2.2/24"}}, queues)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *lab) pins() string { return filepath.Join(l.host.BPF(), "shunt") }

// attach attaches to up0 and closes at the end of the test.
func (l *lab) attach(t testing.TB, opts Options) *Program {
	t.Helper()
	p, err := l.tryAttach(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func (l *lab) tryAttach(opts Options) (p *Program, err error) {
	opts.Interface, opts.PinPath = "up0", l.pins()
	err = l.host.Do(func() (err error) {
		p, err = Attach(opts)
		return err
	})
	return p, err
}

func (l *lab) detach(force bool) error {
	return l.host.Do(func() error {
		return Detach(DetachOptions{Interface: "up0", Force: force, PinPath: l.pins()})
	})
}

// device is up0 as the kernel has it now.
func (l *lab) device(t testing.TB) device {
	t.Helper()
	var dev device
	err := l.host.Do(func() (err error) {
		dev, err = findDevice("up0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return dev
}

// nothingLeft checks that up0 has no program and the BPF file system no pins.
func (l *lab) nothingLeft(t *testing.T) {
	t.Helper()
	if dev := l.device(t); dev.program != 0 {
		t.Errorf("up0 still runs %s", dev.describe())
	}
	out, err := l.host.Run(t.Context(), "ip", "link", "show", "up0")
	if err != nil || strings.Contains(out, "xdp") {
		t.Errorf("ip link shows %q, %v", out, err)
	}
	if _, err := os.Stat(l.pins()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("pins are left at %s: %v", l.pins(), err)
	}
}

// foreign attaches a program that is not ours, by a bpf_link or, as ip link does
// it, by netlink, and returns its id.
func (l *lab) foreign(t *testing.T, byLink bool) ebpf.ProgramID {
	t.Helper()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "stranger", Type: ebpf.XDP, License: "BSD",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, xdpPass), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { prog.Close() })
	err = l.host.Do(func() error {
		dev, err := netlink.LinkByName("up0")
		if err != nil {
			return err
		}
		if !byLink {
			return netlink.LinkSetXdpFd(dev, prog.FD())
		}
		held, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: dev.Attrs().Index})
		if err == nil {
			t.Cleanup(func() { held.Close() })
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return l.device(t).program
}

func TestAttachInEachMode(t *testing.T) {
	l := newLab(t, 1500)
	for _, c := range []struct {
		asked   Mode
		mask    string
		want    Mode
		program string
	}{
		{Native, "", Native, "shunt_steer"},
		{Generic, "", Generic, "shunt_steer"},
		{Auto, "", Native, "shunt_steer"},
		{Native, "xdp-frags", Native, "shunt_steer_lin"},
		{Generic, "xdp-frags", Generic, "shunt_steer_lin"},
		{Auto, "xdp-native", Generic, "shunt_steer"},
	} {
		t.Run(c.asked.String()+c.mask, func(t *testing.T) {
			t.Setenv("SHUNT_MASK", c.mask)
			p := l.attach(t, Options{Mode: c.asked})
			dev := l.device(t)
			if p.Mode() != c.want || dev.mode != c.want || programName(dev.program) != c.program {
				t.Errorf("mode %s, the kernel has %s, want %s, %s", p.Mode(), dev.describe(), c.program, c.want)
			}
			if lowered := c.asked == Auto && c.want == Generic; lowered != (p.NativeRefused() != nil) {
				t.Errorf("the reason for %s is %v", p.Mode(), p.NativeRefused())
			}
			if _, err := l.peer.Run(t.Context(), "ping", "-c1", "-W5", "192.0.2.1"); err != nil {
				t.Errorf("the kernel's own traffic: %v", err)
			}
			if err := p.Close(); err != nil {
				t.Error(err)
			}
			l.nothingLeft(t)
		})
	}
}

// A driver without native XDP, the loopback's, is used in generic mode if that
// was left open and else refused.
func TestDriverWithoutNativeXDP(t *testing.T) {
	ns := namespace(t, "lo")
	err := ns.Do(func() error {
		t.Setenv("SHUNT_MASK", "")
		_, err := Attach(Options{Interface: "lo", Mode: Native, PinPath: ns.BPF() + "/shunt"})
		if !errors.Is(err, ErrNotSupported) {
			t.Errorf("native on lo: %v, want ErrNotSupported", err)
		}
		p, err := Attach(Options{Interface: "lo", PinPath: ns.BPF() + "/shunt"})
		if err != nil {
			return err
		}
		if p.Mode() != Generic || !errors.Is(p.NativeRefused(), ErrNotSupported) {
			t.Errorf("mode %s because %v", p.Mode(), p.NativeRefused())
		}
		return p.Close()
	})
	if err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(ns.BPF() + "/shunt"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("pins are left: %v", err)
	}
}

// The program that takes several buffers runs in the driver on a jumbo MTU, the
// other one does not, and says so.
func TestJumboMTU(t *testing.T) {
	l := newLab(t, 9000)
	t.Setenv("SHUNT_MASK", "")
	p := l.attach(t, Options{})
	if p.Mode() != Native || p.NativeRefused() != nil {
		t.Errorf("mode %s: %v", p.Mode(), p.NativeRefused())
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	t.Setenv("SHUNT_MASK", "xdp-frags")
	if _, err := l.tryAttach(Options{Mode: Native}); !errors.Is(err, ErrNotSupported) || !strings.Contains(err.Error(), "MTU of 9000") {
		t.Errorf("native for linear frames: %v", err)
	}
	l.nothingLeft(t)
	p = l.attach(t, Options{})
	if p.Mode() != Generic || !errors.Is(p.NativeRefused(), ErrNotSupported) {
		t.Errorf("mode %s because %v", p.Mode(), p.NativeRefused())
	}
}

func TestForeignProgramIsRespected(t *testing.T) {
	for name, byLink := range map[string]bool{"bpf_link": true, "netlink": false} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, 1500)
			id := l.foreign(t, byLink)
			_, err := l.tryAttach(Options{})
			if !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "stranger") {
				t.Errorf("attach: %v, want ErrBusy with the program's name", err)
			}
			if err := l.detach(false); !errors.Is(err, ErrBusy) {
				t.Errorf("detach: %v, want ErrBusy", err)
			}
			if now := l.device(t).program; now != id {
				t.Errorf("program %d became %d", id, now)
			}
			p := l.attach(t, Options{Replace: true})
			if name := programName(l.device(t).program); !strings.HasPrefix(name, "shunt_steer") {
				t.Errorf("up0 runs %s after the replacement", name)
			}
			if err := p.Close(); err != nil {
				t.Error(err)
			}
			l.nothingLeft(t)
			l.foreign(t, byLink)
			if err := l.detach(true); err != nil {
				t.Errorf("forced detach: %v", err)
			}
			l.nothingLeft(t)
		})
	}
}

func TestBadOptions(t *testing.T) {
	l := newLab(t, 1500)
	err := l.host.Do(func() error {
		_, err := Attach(Options{Interface: "nonesuch0", PinPath: l.pins()})
		return err
	})
	if !errors.Is(err, ErrNoInterface) {
		t.Errorf("missing interface: %v", err)
	}
	if _, err := l.tryAttach(Options{Queues: 1 << 20}); err == nil {
		t.Error("a million queues were accepted")
	}
	dir := t.TempDir()
	err = l.host.Do(func() error {
		_, err := Attach(Options{Interface: "up0", PinPath: filepath.Join(dir, "a", "b")})
		return err
	})
	if err == nil || !strings.Contains(err.Error(), "mount -t bpf bpf "+dir) {
		t.Errorf("pins on another file system: %v", err)
	}
	l.nothingLeft(t)
	if err := l.detach(false); !errors.Is(err, ErrNotAttached) {
		t.Errorf("detach of nothing: %v", err)
	}
	l.nothingLeft(t)
}

// What is attached to an interface that goes away is gone with it, and the pin
// is removed by its owner or, when that died before, by the next one anywhere.
func TestInterfaceGoesAway(t *testing.T) {
	l := newLab(t, 1500)
	p := l.attach(t, Options{})
	l.replaceUplink(t)
	if err := p.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	l.nothingLeft(t)
	if err := l.attach(t, Options{}).Leave(); err != nil {
		t.Error(err)
	}
	l.replaceUplink(t)
	if pins := l.pinned(); len(pins) != 1 {
		t.Errorf("pins before the sweep: %v", pins)
	}
	p = l.attach(t, Options{})
	if pins := l.pinned(); len(pins) != 1 || pins[0] != p.Pin() {
		t.Errorf("pins after the sweep: %v, want %s", pins, p.Pin())
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	l.nothingLeft(t)
}

// replaceUplink makes another interface of the same name.
func (l *lab) replaceUplink(t *testing.T) {
	t.Helper()
	if _, err := l.host.Run(t.Context(), "ip", "link", "del", "up0"); err != nil {
		t.Fatal(err)
	}
	if err := netlab.Veth(netlab.End{Namespace: l.host, Name: "up0"}, netlab.End{Namespace: l.peer, Name: "peer0"}, 1); err != nil {
		t.Fatal(err)
	}
}

func (l *lab) pinned() []string {
	pins, _ := filepath.Glob(l.pins() + "/*/link")
	return pins
}

// A pin that holds another interface, whose number ours has got, is no
// predecessor.
func TestStalePinIsNoPredecessor(t *testing.T) {
	l := newLab(t, 1500)
	var lo *Program
	err := l.host.Do(func() (err error) {
		lo, err = Attach(Options{Interface: "lo", PinPath: l.pins()})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer lo.Close()
	program := lo.hook.dev.program
	l.foreign(t, false)
	dir := filepath.Join(l.pins(), strings.TrimSuffix(filepath.Base(filepath.Dir(lo.Pin())), "-1")+"-"+strconv.Itoa(l.device(t).index))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(lo.Pin(), filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if _, err := l.tryAttach(Options{}); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "stranger") {
		t.Errorf("attach: %v, want ErrBusy with the foreign program's name", err)
	}
	p := l.attach(t, Options{Replace: true})
	if !strings.HasPrefix(programName(l.device(t).program), "shunt_steer") {
		t.Errorf("up0 runs %s", l.device(t).describe())
	}
	err = l.host.Do(func() error {
		dev, err := findDevice("lo")
		if dev.program != program {
			t.Errorf("program %d on lo became %d", program, dev.program)
		}
		return err
	})
	if err := errors.Join(err, lo.Close(), p.Close()); err != nil {
		t.Error(err)
	}
	l.nothingLeft(t)
}

// udpListener listens on up0's VXLAN port as a program of the host would.
func (l *lab) udpListener(t *testing.T) *net.UDPConn {
	t.Helper()
	return udpSocket(t, l.host, "192.0.2.1:4789")
}

// sender is a socket of the peer that sends VXLAN to up0.
func (l *lab) sender(t *testing.T) func(vni uint32) {
	t.Helper()
	from := udpSocket(t, l.peer, "192.0.2.2:50000")
	to := udpAddr("192.0.2.1:4789")
	return func(vni uint32) {
		payload := slices.Concat([]byte{8, 0, 0, 0, byte(vni >> 16), byte(vni >> 8), byte(vni), 0}, inner)
		if _, err := from.WriteToUDP(payload, to); err != nil {
			t.Errorf("send: %v", err)
		}
	}
}

func udpSocket(t *testing.T, ns *netlab.Namespace, addr string) *net.UDPConn {
	t.Helper()
	var conn *net.UDPConn
	err := ns.Do(func() (err error) {
		conn, err = net.ListenUDP("udp4", udpAddr(addr))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func udpAddr(s string) *net.UDPAddr { return net.UDPAddrFromAddrPort(netip.MustParseAddrPort(s)) }
