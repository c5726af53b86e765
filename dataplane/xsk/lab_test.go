package xsk

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/tools/lab/netlab"
	"github.com/shuntio/shunt/tools/need"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// end is one end of a veth pair, in a namespace of its own.
type end struct {
	netlab.End
	sockets *ebpf.Map // XSKMAP by queue; nil until redirect
}

// newPair makes a veth pair between two namespaces, gone when the test ends.
func newPair(tb testing.TB, queues, mtu int) (a, b *end) {
	tb.Helper()
	need.Root(tb)
	ends := [2]*end{}
	for i, name := range []string{"a", "b"} {
		ns, err := netlab.NewNamespace("xsk-" + name)
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() {
			if err := ns.Close(); err != nil {
				tb.Error(err)
			}
		})
		if err := ns.Do(quiet); err != nil {
			tb.Fatal(err)
		}
		ends[i] = &end{End: netlab.End{
			Namespace: ns, Name: "up-" + name, MTU: mtu,
			MAC: fmt.Sprintf("02:00:00:00:00:0%d", i+1), Addrs: []string{fmt.Sprintf("10.9.0.%d/24", i+1)},
		}}
	}
	if err := netlab.Veth(ends[0].End, ends[1].End, queues); err != nil {
		tb.Fatal(err)
	}
	for _, e := range ends { // until then the kernel drops what it sends itself
		until(tb, e.Name+" is operational", func() bool { return e.link(tb).Attrs().OperState == netlink.OperUp })
	}
	return ends[0], ends[1]
}

// link asks about the device.
func (e *end) link(tb testing.TB) (l netlink.Link) {
	tb.Helper()
	e.do(tb, func() (err error) {
		l, err = netlink.LinkByName(e.Name)
		return err
	})
	return l
}

// quiet keeps the kernel from sending IPv6 router solicitations and the like, which would be counted with our frames.
func quiet() error {
	return os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0)
}

func (e *end) do(tb testing.TB, fn func() error) {
	tb.Helper()
	if err := e.Namespace.Do(fn); err != nil {
		tb.Fatal(err)
	}
}

func (e *end) run(tb testing.TB, name string, args ...string) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), time.Minute)
	defer cancel()
	if out, err := e.Namespace.Run(ctx, name, args...); err != nil {
		tb.Fatalf("%v: %s", err, out)
	}
}

// attach attaches a program until the test ends. Veth has native XDP; mode 0 takes it.
func (e *end) attach(tb testing.TB, mode link.XDPAttachFlags, program asm.Instructions) {
	tb.Helper()
	if mode == 0 {
		mode = link.XDPDriverMode
	}
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "GPL", Instructions: program, Flags: unix.BPF_F_XDP_HAS_FRAGS})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { p.Close() })
	e.do(tb, func() error {
		d, err := LookupDevice(e.Name)
		if err != nil {
			return err
		}
		l, err := link.AttachXDP(link.XDPOptions{Program: p, Interface: d.Index, Flags: mode})
		if err == nil {
			tb.Cleanup(func() { l.Close() })
		}
		return err
	})
}

// redirect gives every packet to the socket of its queue, or else to the kernel.
func (e *end) redirect(tb testing.TB, mode link.XDPAttachFlags) {
	tb.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.XSKMap, KeySize: 4, ValueSize: 4, MaxEntries: 8})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { m.Close() })
	e.sockets = m
	const queue, pass = 16, 2 // offset of rx_queue_index in struct xdp_md, XDP_PASS
	e.attach(tb, mode, asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, queue, asm.Word),
		asm.LoadMapPtr(asm.R1, m.FD()),
		asm.Mov.Imm(asm.R3, pass),
		asm.FnRedirectMap.Call(),
		asm.Return(),
	})
}

// sink drops every packet.
func (e *end) sink(tb testing.TB) {
	const drop = 1 // XDP_DROP
	e.attach(tb, 0, asm.Instructions{asm.Mov.Imm(asm.R0, drop), asm.Return()})
}

// open opens a socket on the end, which closes when the test ends, and puts it into the XSKMAP.
func (e *end) open(tb testing.TB, u *UMEM, o SocketOptions) *Socket {
	tb.Helper()
	s, err := e.tryOpen(u, o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { s.Close() })
	if e.sockets != nil {
		if err := e.sockets.Put(uint32(o.Queue), uint32(s.FD())); err != nil {
			tb.Fatal(err)
		}
	}
	return s
}

func (e *end) tryOpen(u *UMEM, o SocketOptions) (s *Socket, err error) {
	err = e.Namespace.Do(func() error {
		if o.Device, err = LookupDevice(e.Name); err != nil {
			return err
		}
		s, err = u.Open(o)
		return err
	})
	return s, err
}

// dropped sums what the device itself dropped, both ways.
func (e *end) dropped(tb testing.TB) uint64 {
	tb.Helper()
	s := e.link(tb).Attrs().Statistics
	return s.TxDropped + s.RxDropped + s.RxErrors + s.TxErrors
}

// newUMEM makes a UMEM and a pool of all its frames.
func newUMEM(tb testing.TB, frames int) (*UMEM, *frame.Pool) {
	tb.Helper()
	memory, err := frame.NewMemory(mapMemory(tb, frames*frame.ChunkSize))
	if err != nil {
		tb.Fatal(err)
	}
	pool, err := memory.NewPool(0, frames)
	if err != nil {
		tb.Fatal(err)
	}
	return NewUMEM(memory), pool
}

// newPort makes a port on a socket.
func newPort(tb testing.TB, s *Socket, pool *frame.Pool) *Port {
	tb.Helper()
	p, err := NewPort(PortOptions{Socket: s, Pool: pool, Counters: new(dataplane.Counters)})
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

func statistics(tb testing.TB, p *Port) Statistics {
	tb.Helper()
	s, err := p.s.Statistics()
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// until runs step until it reports true, at most a minute.
func until(tb testing.TB, what string, step func() bool) {
	tb.Helper()
	for deadline := time.Now().Add(time.Minute); !step(); {
		if time.Now().After(deadline) {
			tb.Fatal("a minute passed without: " + what)
		}
	}
}
