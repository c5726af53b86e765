package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

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
// by the first of them. When the interface goes away its configuration stays, and service returns with it (mend.go).
type uplink struct {
	config  config.Uplink
	resolve *underlay.Underlay
	// links are those of the queues. They stay when the queues go, since the switch sends to the first, and keep their counters.
	links []*dataplane.Link
	// heard counts what came by multicast.
	heard *dataplane.Counters

	// What is open on the interface; nothing while it is gone.
	device    xsk.Device
	came      int          // underlay.Presence.Came of the device
	program   *bpf.Program // changed with steer held, as well as engine.mu
	queues    []*uplinkQueue
	multicast *dataplane.Link // while a flat network uses the uplink
	// failed is why it could not be opened when it came back; retry will try again.
	failed error
	retry  *time.Timer
	// past is what was counted by programs and sockets that are closed.
	past control.Counters

	steer sync.Mutex // program and vtep: the controller's and the resolver's goroutines change them
	vtep  netip.Addr // as the program knows it
	// complete: the first configuration is in place; settled: the program was told.
	complete, settled bool
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
		return errors.New("a vhost-user uplink is not supported yet: give an interface")
	}
	if err := unsupported(c); err != nil {
		return err
	}
	u := &uplink{config: c, heard: &dataplane.Counters{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.closeUplink(u))
		}
	}()
	if u.resolve, err = underlay.New(underlay.Options{Interface: c.Interface, Address: c.Address, Log: e.log.With("uplink", c.Name)}); err != nil {
		return err
	}
	if err = e.open(u); err != nil {
		return err
	}
	err = e.fabric.AddUplink(vxlan.Uplink{
		Name: c.Name, Port: c.Port, Resolver: &steered{Underlay: u.resolve, engine: e, uplink: u},
	}, u.links, u.links[:1])
	if err != nil {
		return refused(err)
	}
	e.follow(u)
	if err = e.poll(u); err != nil {
		return errors.Join(err, e.fabric.RemoveUplink(c.Name))
	}
	e.uplinks[c.Name] = u
	e.announce(u, "uplink in service")
	return nil
}

// announce logs what an uplink has become.
func (e *engine) announce(u *uplink, what string) {
	log := e.log.With("uplink", u.config.Name)
	local := u.resolve.Local()
	log.Info(what, "interface", u.config.Interface, "xdp", u.program.Mode(), "zerocopy", u.zeroCopy(), "queues", len(u.queues),
		"address", local.Address, "mtu", local.MTU)
	if u.device.MTU > maxMTU {
		log.Warn("uplink carries packets no longer than one frame of memory", "mtu", u.device.MTU, "carried", maxMTU)
	}
	if why := u.program.NativeRefused(); why != nil {
		log.Warn("uplink has a generic XDP program, which is slower", "reason", why)
	}
	if !local.Address.IsValid() {
		log.Warn("uplink has no address, so no tunnel: give its interface one, or set the uplink's address")
	}
}

// open puts the program on the uplink's interface and binds sockets to its queues, or leaves nothing there. Nobody polls them yet.
func (e *engine) open(u *uplink) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, e.shut(u))
		}
	}()
	u.came = u.resolve.Presence().Came
	if u.device, err = xsk.LookupDevice(u.config.Interface); err != nil {
		return err
	}
	queues := u.device.Queues
	if u.config.Queues > queues {
		return fmt.Errorf("queues: interface %s has %d in use, %d are asked for: ask for no more, or raise them with ethtool -L",
			u.config.Interface, queues, u.config.Queues)
	}
	if u.config.Queues > 0 {
		queues = u.config.Queues
	}
	program, err := bpf.Attach(bpf.Options{Interface: u.config.Interface, Mode: xdpMode(u.config.XDP), Port: u.config.Port, Queues: queues})
	if err != nil {
		return refused(err, bpf.ErrBusy)
	}
	u.setProgram(program)
	fill, err := e.share(queues)
	if err != nil {
		return err
	}
	for q := range queues {
		if err = e.openQueue(u, q, fill); err != nil {
			return refused(err, xsk.ErrBusy)
		}
	}
	return nil
}

// leastFill is the shortest fill that makes sense: two rounds' worth.
const leastFill = 2 * dataplane.Quantum

// share is how many frames each queue of an uplink gets to receive into: a ring full, unless all of them together would take more than
// half of the frames that are free. The rest is for what is transmitted, for guests, and for further uplinks.
func (e *engine) share(queues int) (int, error) {
	free := 0
	e.worker.Do(func() { free = e.worker.Pool().Len() })
	switch most := free / 2 / leastFill; {
	case most == 0:
		return 0, errors.New("no frame memory is left for it: give the other uplinks fewer queues, or remove one")
	case queues > most:
		return 0, fmt.Errorf("queues: %d are more than the %d that frame memory is left for: set queues to %d or less, or lower them with ethtool -L",
			queues, most, most)
	}
	return min(xsk.RingSize, free/2/queues), nil
}

func (u *uplink) setProgram(p *bpf.Program) {
	u.steer.Lock()
	defer u.steer.Unlock()
	u.program, u.vtep, u.settled = p, netip.Addr{}, false
}

// openQueue binds a socket to one queue of the uplink and gives it to the queue's link.
func (e *engine) openQueue(u *uplink, queue, fill int) error {
	for len(u.links) <= queue {
		counters := &dataplane.Counters{}
		l := &dataplane.Link{Name: fmt.Sprintf("%s/%d", u.config.Name, len(u.links)), Port: absent{counters}, Counters: counters}
		e.taps.add(l, u.subject(len(u.links)))
		u.links = append(u.links, l)
	}
	link := u.links[queue]
	socket, err := e.umem.Open(xsk.SocketOptions{Device: u.device, Queue: queue, Mode: bindMode(u.config.Mode)})
	if err != nil {
		return err
	}
	q := &uplinkQueue{link: link, socket: socket}
	e.worker.Do(func() {
		q.port, err = xsk.NewPort(xsk.PortOptions{Socket: socket, Pool: e.worker.Pool(), Counters: link.Counters, Fill: fill})
		if err == nil {
			link.Port = q.port
		}
	})
	if err != nil {
		return errors.Join(err, socket.Close())
	}
	u.queues = append(u.queues, q)
	return nil
}

// poll makes the worker poll the queues, and the program steer frames to them.
func (e *engine) poll(u *uplink) error {
	for i, q := range u.queues {
		q.link.Forwarder = u.links[0].Forwarder
		e.link(q.link, q.socket.FD(), unix.POLLIN)
		if err := u.program.AddSocket(i, 0, q.socket.FD()); err != nil {
			return err
		}
	}
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

// closeUplink takes back whatever of an uplink there is.
func (e *engine) closeUplink(u *uplink) error {
	if u.resolve != nil {
		u.resolve.Close()
	}
	for _, l := range u.links {
		e.taps.remove(l)
	}
	return e.shut(u)
}

// shut takes back what is open on an uplink's interface; the program last, so that the kernel sees no frame that was ours before.
func (e *engine) shut(u *uplink) error {
	var errs []error
	errs = append(errs, e.setMulticast(u, false))
	u.past = u.hardware()
	for _, q := range u.queues {
		e.unlink(q.link, q.socket.FD())
		errs = append(errs, q.port.Close())
		e.worker.Do(func() { q.port.Reclaim(e.worker.Pool()) })
	}
	u.queues = nil
	if program := u.program; program != nil {
		u.setProgram(nil)
		errs = append(errs, program.Close())
	}
	return errors.Join(errs...)
}

// setMulticast begins or ends to receive what XDP must leave to the kernel although a flat network wants it.
func (e *engine) setMulticast(u *uplink, on bool) error {
	switch {
	case on && u.multicast == nil:
		p, err := packet.Open(u.device.Index, u.heard)
		if err != nil {
			return err
		}
		u.multicast = &dataplane.Link{Name: u.config.Name + "/multicast", Port: p, Counters: u.heard, Forwarder: u.links[0].Forwarder}
		e.taps.add(u.multicast, u.subject(0))
		e.link(u.multicast, p.FD(), unix.POLLIN)
	case !on && u.multicast != nil:
		p := u.multicast.Port.(*packet.Port)
		e.taps.remove(u.multicast)
		e.unlink(u.multicast, p.FD())
		u.multicast = nil
		return p.Close()
	}
	return nil
}

// subject is what captures call the uplink's links.
func (u *uplink) subject(queue int) subject {
	return subject{kind: control.KindUplink, name: u.config.Name, description: "uplink on " + u.config.Interface, queue: uint32(queue)}
}

func (u *uplink) zeroCopy() bool { return len(u.queues) > 0 && u.queues[0].socket.ZeroCopy() }

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
