package main

import (
	"errors"
	"fmt"

	"github.com/asavie/xdp"
	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/xsk"
	"github.com/shuntio/shunt/tools/lab/netlab"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// transmitJob sends frames over a veth pair, to an XDP program that drops them: what
// is measured is the sender, and the kernel's half of AF_XDP.
var transmitJob = job{"transmit 114-byte frames by AF_XDP", []contender{
	{"dataplane/xsk", true, openShunt},
	{"asavie/xdp v0.3.3", false, openAsavie},
}}

const (
	frames = 2048 // in the UMEM, and entries of the rings
	// batch is what the kernel takes by one system call in copy mode; both senders
	// make one per batch.
	batch = 32
)

// wiring is a veth pair whose far end drops what arrives.
type wiring struct {
	near, far *netlab.Namespace
	drop      link.Link
}

const nearName, farName = "near", "far"

func newWiring() (w *wiring, err error) {
	w = &wiring{}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Close())
		}
	}()
	if w.near, err = netlab.NewNamespace("near"); err != nil {
		return w, err
	}
	if w.far, err = netlab.NewNamespace("far"); err != nil {
		return w, err
	}
	err = netlab.Veth(netlab.End{Namespace: w.near, Name: nearName}, netlab.End{Namespace: w.far, Name: farName}, 1)
	if err != nil {
		return w, err
	}
	return w, w.far.Do(func() error {
		const xdpDrop = 1
		program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Type: ebpf.XDP, License: "BSD", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, xdpDrop), asm.Return()},
		})
		if err != nil {
			return fmt.Errorf("load the sink: %w", err)
		}
		defer program.Close()
		dev, err := netlink.LinkByName(farName)
		if err != nil {
			return err
		}
		w.drop, err = link.AttachXDP(link.XDPOptions{Program: program, Interface: dev.Attrs().Index, Flags: link.XDPDriverMode})
		return err
	})
}

// Arrived counts the frames that reached the sink, and those for which the sink's
// queue had no room: the pair drops what its softirq does not take in time.
func (w *wiring) Arrived() (arrived, dropped uint64, err error) {
	near, errNear := statistics(w.near, nearName)
	far, errFar := statistics(w.far, farName)
	return far.RxPackets, near.TxDropped, errors.Join(errNear, errFar)
}

func statistics(ns *netlab.Namespace, name string) (s netlink.LinkStatistics, err error) {
	err = ns.Do(func() error {
		dev, err := netlink.LinkByName(name)
		if err == nil {
			s = *dev.Attrs().Statistics
		}
		return err
	})
	return s, err
}

func (w *wiring) Close() error {
	var errs []error
	if w.drop != nil {
		errs = append(errs, w.drop.Close())
	}
	for _, ns := range []*netlab.Namespace{w.near, w.far} {
		if ns != nil {
			errs = append(errs, ns.Close())
		}
	}
	return errors.Join(errs...)
}

// asavieSender sends as the library's own example does, in batches.
type asavieSender struct {
	*wiring
	socket   *xdp.Socket
	template []byte
}

func openAsavie() (worker, error) {
	w, err := newWiring()
	if err != nil {
		return nil, err
	}
	s := &asavieSender{wiring: w, template: newFrame()}
	err = w.near.Do(func() error {
		dev, err := netlink.LinkByName(nearName)
		if err != nil {
			return err
		}
		s.socket, err = xdp.NewSocket(dev.Attrs().Index, 0, &xdp.SocketOptions{
			NumFrames: frames, FrameSize: 4096,
			FillRingNumDescs: frames, CompletionRingNumDescs: frames,
			RxRingNumDescs: frames, TxRingNumDescs: frames,
		})
		return err
	})
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return s, nil
}

func (s *asavieSender) Do(n int) (sent int, err error) {
	for sent < n {
		descs := s.socket.GetDescs(min(batch, s.socket.NumFreeTxSlots()))
		for i := range descs {
			descs[i].Len = uint32(copy(s.socket.GetFrame(descs[i]), s.template))
		}
		sent += s.socket.Transmit(descs)
		s.socket.Complete(s.socket.NumCompleted())
	}
	return sent, nil
}

func (s *asavieSender) Close() error { return errors.Join(s.socket.Close(), s.wiring.Close()) }

// shuntSender sends through a port, as a worker of shuntd does.
type shuntSender struct {
	*wiring
	memory   []byte
	pool     *frame.Pool
	port     *xsk.Port
	counters dataplane.Counters
	template []byte
	vector   [batch]*frame.Frame
}

func openShunt() (worker, error) {
	w, err := newWiring()
	if err != nil {
		return nil, err
	}
	s := &shuntSender{wiring: w, template: newFrame()}
	if err := s.open(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *shuntSender) open() (err error) {
	const all = 2 * frames // as many to transmit as the other has, and as many that lie ready to receive
	s.memory, err = unix.Mmap(-1, 0, all*frame.ChunkSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		return fmt.Errorf("map the UMEM: %w", err)
	}
	memory, err := frame.NewMemory(s.memory)
	if err != nil {
		return err
	}
	if s.pool, err = memory.NewPool(0, all); err != nil {
		return err
	}
	umem := xsk.NewUMEM(memory)
	return s.near.Do(func() error {
		dev, err := xsk.LookupDevice(nearName)
		if err != nil {
			return err
		}
		socket, err := umem.Open(xsk.SocketOptions{Device: dev})
		if err != nil {
			return err
		}
		s.port, err = xsk.NewPort(xsk.PortOptions{Socket: socket, Pool: s.pool, Counters: &s.counters})
		if err != nil {
			return errors.Join(err, socket.Close())
		}
		return nil
	})
}

func (s *shuntSender) Do(n int) (int, error) {
	start := s.counters.TxPackets.Load() // without those that a full ring refused: others go in their place
	for s.counters.TxPackets.Load()-start < uint64(n) {
		filled := 0
		for ; filled < batch; filled++ {
			f := s.pool.Get()
			if f == nil {
				break
			}
			copy(f.Append(len(s.template)), s.template)
			s.vector[filled] = f
		}
		s.port.Transmit(s.vector[:filled], s.pool)
		s.pool.PutAll(s.vector[:filled])
		s.port.Flush()
		s.port.Arm() // takes back what was sent; a worker's loop does so when it receives
	}
	return int(s.counters.TxPackets.Load() - start), nil
}

func (s *shuntSender) Close() error {
	var errs []error
	if s.port != nil {
		errs = append(errs, s.port.Close())
	}
	errs = append(errs, s.wiring.Close())
	if s.memory != nil {
		errs = append(errs, unix.Munmap(s.memory))
	}
	return errors.Join(errs...)
}
