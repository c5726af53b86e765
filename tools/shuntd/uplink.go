package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"

	"github.com/shuntio/shunt/bpf"
	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/packet"
	"github.com/shuntio/shunt/dataplane/xsk"
	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/config"
	"github.com/shuntio/shunt/vxlan"
	"github.com/shuntio/shunt/vxlan/underlay"
	"golang.org/x/sys/unix"
)

// uplink is an interface in service: frames that the XDP program steers to us arrive on its queues' sockets, what we send leaves
// by the first of them.
type uplink struct {
	config  config.Uplink
	device  xsk.Device
	program *bpf.Program
	steer   sync.Mutex // program and vtep: the controller's and the resolver's goroutines change them
	vtep    netip.Addr // as the program knows it
	// complete: the first configuration is in place; settled: the program was told.
	complete, settled bool
	queues            []*uplinkQueue
	resolve           *underlay.Underlay
	// multicast is there while a flat network uses the uplink.
	multicast *dataplane.Link
}

type uplinkQueue struct {
	link   *dataplane.Link
	port   *xsk.Port
	socket *xsk.Socket
}

// maxMTU is the longest packet of an uplink that fits one chunk in both directions. The tighter one is transmission: a guest's frame begins
// behind the headroom and up to seven cache lines (frame.Headroom), with its Ethernet header.
const maxMTU = frame.ChunkSize - frame.Headroom - 7*64 - 14

// AddUplink implements control.Engine.
func (e *engine) AddUplink(_ context.Context, c config.Uplink) (err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if c.VhostUser != "" {
		return errors.New("a vhost-user uplink is not supported yet; give an interface")
	}
	u := &uplink{config: c}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.closeUplink(u))
		}
	}()
	if u.device, err = xsk.LookupDevice(c.Interface); err != nil {
		return err
	}
	queues := u.device.Queues
	if c.Queues > queues {
		return fmt.Errorf("queues: %d are asked for, but %s has %d", c.Queues, c.Interface, queues)
	}
	if c.Queues > 0 {
		queues = c.Queues
	}
	if u.program, err = bpf.Attach(bpf.Options{Interface: c.Interface, Mode: xdpMode(c.XDP), Port: c.Port, Queues: queues}); err != nil {
		return conflict(err, bpf.ErrBusy)
	}
	if u.resolve, err = underlay.New(underlay.Options{Interface: c.Interface, Address: c.Address, Log: e.log.With("uplink", c.Name)}); err != nil {
		return err
	}
	for q := range queues {
		if err = e.openQueue(u, q); err != nil {
			return conflict(err, xsk.ErrBusy)
		}
	}
	first := u.queues[0].link // what we send leaves by it
	err = e.fabric.AddUplink(first, vxlan.Uplink{
		Name: c.Name, Port: c.Port, Resolver: &steered{Underlay: u.resolve, engine: e, uplink: u},
	})
	if err != nil {
		return err
	}
	e.follow(u)
	for q, queue := range u.queues {
		queue.link.Forwarder = first.Forwarder
		e.link(queue.link, queue.socket.FD(), unix.POLLIN)
		if err = u.program.AddSocket(q, 0, queue.socket.FD()); err != nil {
			return errors.Join(err, e.fabric.RemoveUplink(c.Name))
		}
	}
	e.uplinks[c.Name] = u
	e.log.Info("uplink in service", "uplink", c.Name, "interface", c.Interface, "xdp", u.program.Mode(), "zerocopy", u.zeroCopy(),
		"queues", len(u.queues), "address", u.resolve.Local().Address)
	if u.device.MTU > maxMTU {
		e.log.Warn("uplink carries packets no longer than one frame of memory", "uplink", c.Name, "mtu", u.device.MTU, "carried", maxMTU)
	}
	if why := u.program.NativeRefused(); why != nil {
		e.log.Warn("uplink has a generic XDP program, which is slower", "uplink", c.Name, "reason", why)
	}
	return nil
}

// openQueue binds a socket to one queue of the uplink and makes it a link.
func (e *engine) openQueue(u *uplink, queue int) error {
	socket, err := e.umem.Open(xsk.SocketOptions{Device: u.device, Queue: queue, Mode: bindMode(u.config.Mode)})
	if err != nil {
		return err
	}
	counters := &dataplane.Counters{}
	q := &uplinkQueue{socket: socket}
	e.worker.Do(func() {
		q.port, err = xsk.NewPort(xsk.PortOptions{Socket: socket, Pool: e.worker.Pool(), Counters: counters})
	})
	if err != nil {
		return errors.Join(err, socket.Close())
	}
	q.link = &dataplane.Link{Name: fmt.Sprintf("%s/%d", u.config.Name, queue), Port: q.port, Counters: counters}
	u.queues = append(u.queues, q)
	return nil
}

// RemoveUplink implements control.Engine.
func (e *engine) RemoveUplink(_ context.Context, name string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	u := e.uplinks[name]
	if u == nil {
		return fmt.Errorf("uplink %s: %w", name, control.ErrNotFound)
	}
	delete(e.uplinks, name)
	err := e.fabric.RemoveUplink(name)
	return errors.Join(err, e.closeUplink(u))
}

// closeUplink takes back whatever of an uplink there is; the program last, so that the kernel sees no frame that was ours before.
func (e *engine) closeUplink(u *uplink) error {
	var errs []error
	errs = append(errs, e.setMulticast(u, false))
	if u.resolve != nil {
		u.resolve.Close()
	}
	for _, q := range u.queues {
		e.unlink(q.link, q.socket.FD())
		errs = append(errs, q.port.Close())
		e.worker.Do(func() { q.port.Reclaim(e.worker.Pool()) })
	}
	if u.program != nil {
		errs = append(errs, u.program.Close())
	}
	return errors.Join(errs...)
}

// setMulticast begins or ends to receive what XDP must leave to the kernel although a flat network wants it.
func (e *engine) setMulticast(u *uplink, on bool) error {
	switch {
	case on && u.multicast == nil:
		counters := &dataplane.Counters{}
		p, err := packet.Open(u.device.Index, counters)
		if err != nil {
			return err
		}
		u.multicast = &dataplane.Link{Name: u.config.Name + "/multicast", Port: p, Counters: counters, Forwarder: u.queues[0].link.Forwarder}
		e.link(u.multicast, p.FD(), unix.POLLIN)
	case !on && u.multicast != nil:
		p := u.multicast.Port.(*packet.Port)
		e.unlink(u.multicast, p.FD())
		u.multicast = nil
		return p.Close()
	}
	return nil
}

func (u *uplink) zeroCopy() bool { return len(u.queues) > 0 && u.queues[0].socket.ZeroCopy() }

// steered is the uplink's resolver for the switch, which also tells the XDP program and the ports when the local end changes.
type steered struct {
	*underlay.Underlay
	engine *engine
	uplink *uplink
}

// Local implements vxlan.Resolver. A packet has to fit one chunk, whatever more the interface could carry.
func (s *steered) Local() vxlan.Local {
	l := s.Underlay.Local()
	l.MTU = min(l.MTU, maxMTU)
	return l
}

// Notify implements vxlan.Resolver.
func (s *steered) Notify(changed func()) {
	s.Underlay.Notify(func() {
		s.engine.follow(s.uplink)
		changed()
	})
}

// follow makes the XDP program and the ports know the uplink's own end as it is now.
func (e *engine) follow(u *uplink) {
	u.steer.Lock()
	defer u.steer.Unlock()
	local := u.resolve.Local()
	if local.Address != u.vtep {
		if local.Address.IsValid() {
			if err := u.program.AddVTEP(local.Address); err != nil {
				e.log.Error("cannot steer the tunnel endpoint's packets", "uplink", u.config.Name, "address", local.Address, "reason", err)
				return
			}
		}
		if u.vtep.IsValid() {
			_ = u.program.RemoveVTEP(u.vtep)
		}
		u.vtep = local.Address
	}
	u.settle(e.log)
}

// Settle implements daemon.Settler.
func (e *engine) Settle() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, u := range e.uplinks {
		u.steer.Lock()
		u.complete = true
		u.settle(e.log)
		u.steer.Unlock()
	}
}

// settle lets the kernel have what a killed predecessor took and we do not: once the configuration is complete and our
// own tunnel endpoint known, so that there is no gap in which the kernel would answer what is ours. With steer held.
func (u *uplink) settle(log *slog.Logger) {
	if !u.complete || u.settled || !u.vtep.IsValid() {
		return
	}
	u.settled = true
	if err := u.program.Settle(); err != nil {
		log.Warn("cannot forget what an earlier shuntd steered", "uplink", u.config.Name, "reason", err)
	}
}

func xdpMode(m config.XDPMode) bpf.Mode {
	switch m {
	case config.XDPNative:
		return bpf.Native
	case config.XDPGeneric:
		return bpf.Generic
	}
	return bpf.Auto
}

func bindMode(m config.BindMode) xsk.Mode {
	switch m {
	case config.BindZeroCopy:
		return xsk.ModeZeroCopy
	case config.BindCopy:
		return xsk.ModeCopy
	}
	return xsk.ModeAuto
}
