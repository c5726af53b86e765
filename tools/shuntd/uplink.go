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
	added   bool // it has been in service
	again   bool // it is being tried again: what another socket holds is not waited for
	resolve *underlay.Underlay
	// links are those of the queues, by queue and worker: every worker receives from every queue. They stay when the queues go, since the switch sends
	// to them, and keep their counters.
	links [][]*dataplane.Link
	// heard counts what came by multicast.
	heard *dataplane.Counters

	// What is open on the interface; nothing while it is gone.
	device      xsk.Device
	came        int          // underlay.Presence.Came of the device
	multiBuffer bool         // packets may be longer than a chunk
	program     *bpf.Program // changed with steer held, as well as engine.mu
	queues      []*uplinkQueue
	multicast   *dataplane.Link // while a flat network uses the uplink
	// failed is why it could not be opened when it came back; retry will try again.
	failed error
	retry  *time.Timer
	// past is what was counted by programs and sockets that are closed.
	past control.Counters

	steer sync.Mutex // program and vtep: the controller's and the resolver's goroutines change them
	vtep  netip.Addr // as the program knows it
	// complete: the configuration that it came with is in place, but for networks that are missing and still to come, by their VNIs.
	complete bool
	missing  []uint32
}

// uplinkQueue is a queue that is open: the owner's socket has the fill, completion and transmit rings, and every other worker's only receives what
// the XDP program steers to that worker.
type uplinkQueue struct {
	owner     *worker
	port      *xsk.Port
	socket    *xsk.Socket
	receivers []*uplinkReceiver
	wake      int // file by which the receivers wake the owner; 0: none is watched
}

type uplinkReceiver struct {
	worker *worker
	port   *xsk.Receiver
	socket *xsk.Socket
}

// owner is the worker that fills a queue and transmits through it.
func (e *engine) owner(queue int) *worker { return e.workers[queue%len(e.workers)] }

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
	u := &uplink{config: c, heard: &dataplane.Counters{}, again: e.vainly[c.Interface]}
	defer func() {
		if delete(e.vainly, c.Interface); err != nil {
			e.vainly[c.Interface] = true
			err = errors.Join(err, e.closeUplink(u))
		}
	}()
	if u.resolve, err = underlay.New(underlay.Options{Interface: c.Interface, Address: c.Address, Log: e.log.With("uplink", c.Name)}); err != nil {
		return err
	}
	if err = e.open(u); err != nil {
		return err
	}
	in, out := e.ways(u)
	err = e.fabric.AddUplink(vxlan.Uplink{
		Name: c.Name, Port: c.Port, Resolver: &steered{Underlay: u.resolve, engine: e, uplink: u},
	}, in, out)
	if err != nil {
		return refused(err)
	}
	e.follow(u)
	if err = e.poll(u); err != nil {
		return errors.Join(err, e.fabric.RemoveUplink(c.Name))
	}
	e.uplinks[c.Name], u.added = u, true
	e.announce(u, "uplink in service")
	return nil
}

// announce logs what an uplink has become.
func (e *engine) announce(u *uplink, what string) {
	log := e.log.With("uplink", u.config.Name)
	local := u.resolve.Local()
	log.Info(what, "interface", u.config.Interface, "xdp", u.program.Mode(), "zerocopy", u.zeroCopy(), "queues", len(u.queues),
		"address", local.Address, "mtu", local.MTU)
	if u.device.MTU > u.maxMTU() {
		log.Warn("uplink carries packets no longer than one frame of memory", "mtu", u.device.MTU, "carried", u.maxMTU())
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
	if u.multiBuffer, err = multiBuffer(u.config.MultiBuffer, u.device.MTU); err != nil {
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

// share is how many frames each queue of an uplink gets to receive into: a ring full, unless all of a worker's together would take more than
// half of the frames that are free there. The rest is for what is transmitted, for guests, and for further uplinks.
func (e *engine) share(queues int) (int, error) {
	fill := xsk.RingSize
	for i, w := range e.workers {
		owned := (queues - i + len(e.workers) - 1) / len(e.workers)
		if owned <= 0 {
			continue
		}
		free := 0
		w.Do(func() { free = w.Pool().Len() })
		switch most := free / 2 / leastFill; {
		case most == 0:
			return 0, errors.New("no frame memory is left for it: give the other uplinks fewer queues, or remove one")
		case owned > most:
			most *= len(e.workers)
			return 0, fmt.Errorf("queues: %d are more than the %d that frame memory is left for: set queues to %d or less, or lower them with ethtool -L",
				queues, most, most)
		}
		fill = min(fill, free/2/owned)
	}
	return fill, nil
}

func (u *uplink) setProgram(p *bpf.Program) {
	u.steer.Lock()
	defer u.steer.Unlock()
	u.program, u.vtep = p, netip.Addr{}
}

// openQueue binds each worker's socket to one queue of the uplink, and gives it to the queue's link of that worker.
func (e *engine) openQueue(u *uplink, queue, fill int) error {
	if len(u.links) == queue {
		u.links = append(u.links, e.queueLinks(u, queue))
	}
	q := &uplinkQueue{owner: e.owner(queue)}
	u.queues = append(u.queues, q) // shut takes back what there is of it
	var err error
	o := xsk.SocketOptions{
		Device: u.device, Queue: queue, Mode: bindMode(u.config.Mode), MultiBuffer: u.multiBuffer, BusyPoll: busyPoll(u.config.BusyPoll),
		Budget: u.budget(), BusyWait: busyWait(u.again && !u.added),
	}
	if q.socket, err = e.umem.Open(o); err != nil {
		return err
	}
	counters := u.links[queue][q.owner.Index()].Counters
	q.owner.Do(func() {
		q.port, err = xsk.NewPort(xsk.PortOptions{Socket: q.socket, Pool: q.owner.Pool(), Counters: counters, Fill: fill})
	})
	if err != nil {
		return err
	}
	o.Owner, o.Tx, o.Budget, o.BusyPoll = q.socket, -1, 0, xsk.BusyPollOff
	for _, w := range e.workers {
		if w == q.owner {
			continue
		}
		r := &uplinkReceiver{worker: w}
		q.receivers = append(q.receivers, r)
		if r.socket, err = e.umem.Open(o); err != nil {
			return err
		}
		counters := u.links[queue][w.Index()].Counters
		q.owner.Do(func() {
			r.port, err = xsk.NewReceiver(xsk.ReceiverOptions{Socket: r.socket, Owner: q.port, Counters: counters})
		})
		if err != nil {
			return err
		}
	}
	if fd := q.port.WakeFD(); fd >= 0 {
		q.owner.Do(func() { q.owner.Watch(fd, unix.POLLIN, true) })
		q.wake = fd
	}
	return nil
}

// busyWait is for an interface that is tried again, after a while: whoever has a queue now keeps it, and the engine's lock is not held for that.
func busyWait(again bool) time.Duration {
	if again {
		return -1
	}
	return 0 // the usual: whoever had it may just have died
}

// queueLinks makes the links of a queue.
func (e *engine) queueLinks(u *uplink, queue int) []*dataplane.Link {
	links := make([]*dataplane.Link, len(e.workers))
	for i := range links {
		name := fmt.Sprintf("%s/%d", u.config.Name, queue)
		if e.workers[i] != e.owner(queue) {
			name = fmt.Sprintf("%s@%d", name, i)
		}
		counters := &dataplane.Counters{}
		links[i] = &dataplane.Link{Name: name, Port: absent{counters, xsk.DropDown}, Counters: counters}
		if len(u.links) > 0 { // in service already: the switch has seen the others
			links[i].Forwarder = u.links[0][0].Forwarder
		}
		e.taps.add(links[i], u.subject(queue))
	}
	return links
}

// ways are the links by which an uplink's frames come in, and those by which they can leave.
func (e *engine) ways(u *uplink) (in, out []*dataplane.Link) {
	for queue, links := range u.links {
		in = append(in, links...)
		out = append(out, links[e.owner(queue).Index()])
	}
	return in, out
}

// poll makes the workers poll the queues, and the program steer frames to them.
func (e *engine) poll(u *uplink) error {
	for i, q := range u.queues {
		for j, l := range u.links[i] {
			if l.Owner() == nil {
				e.workers[j].link(l)
			}
		}
		q.owner.plug(u.links[i][q.owner.Index()], q.port, q.socket.FD())
		for _, r := range q.receivers {
			r.worker.plug(u.links[i][r.worker.Index()], r.port, r.socket.FD())
		}
	}
	e.fabric.Refresh()
	for i, q := range u.queues {
		if err := u.program.AddSocket(i, q.owner.Index(), q.socket.FD()); err != nil {
			return err
		}
		for _, r := range q.receivers {
			if err := u.program.AddSocket(i, r.worker.Index(), r.socket.FD()); err != nil {
				return err
			}
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
	if err := e.fabric.RemoveUplink(name); err != nil {
		return refused(err)
	}
	delete(e.uplinks, name)
	e.left("uplink", name, e.closeUplink(u))
	return nil
}

// closeUplink takes back whatever of an uplink there is.
func (e *engine) closeUplink(u *uplink) error {
	if u.resolve != nil {
		u.resolve.Close()
	}
	err := e.shut(u)
	for _, links := range u.links {
		for i, l := range links {
			e.taps.remove(l)
			e.workers[i].unlink(l)
		}
	}
	return err
}

// shut takes back what is open on an uplink's interface; the program last, so that the kernel sees no frame that was ours before. What a killed predecessor's
// program keeps from the kernel stays so where nothing comes of the uplink: it is tried again.
func (e *engine) shut(u *uplink) error {
	var errs []error
	errs = append(errs, e.setMulticast(u, false))
	u.past = u.hardware()
	for i, q := range u.queues {
		errs = append(errs, e.shutQueue(q, u.links[i]))
	}
	u.queues = nil
	if program := u.program; program != nil {
		u.setProgram(nil)
		end := program.Return
		if u.added {
			end = program.Close
		}
		errs = append(errs, end())
	}
	return errors.Join(errs...)
}

// shutQueue takes back whatever of a queue is open: those who share it first.
func (e *engine) shutQueue(q *uplinkQueue, links []*dataplane.Link) error {
	var errs []error
	for _, r := range q.receivers {
		if r.socket == nil {
			continue
		}
		r.worker.unplug(links[r.worker.Index()], r.socket.FD(), xsk.DropDown)
		if r.port == nil {
			errs = append(errs, r.socket.Close())
			continue
		}
		errs = append(errs, r.port.Close())
		q.owner.Do(func() { r.port.Reclaim(q.owner.Pool()) })
	}
	if q.socket == nil {
		return errors.Join(errs...)
	}
	q.owner.unplug(links[q.owner.Index()], q.socket.FD(), xsk.DropDown)
	if q.wake > 0 {
		q.owner.Do(func() { q.owner.Unwatch(q.wake) })
	}
	if q.port == nil {
		return errors.Join(append(errs, q.socket.Close())...)
	}
	errs = append(errs, q.port.Close())
	q.owner.Do(func() { q.port.Reclaim(q.owner.Pool()) })
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
		u.multicast = &dataplane.Link{Name: u.config.Name + "/multicast", Port: p, Counters: u.heard, Forwarder: u.links[0][0].Forwarder}
		e.taps.add(u.multicast, u.subject(0))
		e.workers[0].plug(u.multicast, p, p.FD())
		e.workers[0].link(u.multicast)
	case !on && u.multicast != nil:
		p := u.multicast.Port.(*packet.Port)
		e.taps.remove(u.multicast)
		e.workers[0].unlink(u.multicast)
		e.workers[0].unplug(u.multicast, p.FD(), xsk.DropDown)
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

// maxMTU is the longest packet that the uplink carries, whatever more the interface could.
func (u *uplink) maxMTU() int {
	if u.multiBuffer {
		return frame.MaxLen
	}
	return maxMTU
}

// multiBuffer tells whether packets may span chunks: if they have to, and can.
func multiBuffer(wish config.Toggle, mtu int) (bool, error) {
	switch wish {
	case config.ToggleOff:
		return false, nil
	case config.ToggleOn:
		return true, xsk.MultiBuffer.Check()
	}
	return mtu > maxMTU && xsk.MultiBuffer.Check() == nil, nil
}

// budget is how many packets a system call transmits, as configured, else a round's if the kernel can.
func (u *uplink) budget() int {
	if u.config.TransmitBudget != 0 {
		return u.config.TransmitBudget
	}
	if xsk.TxBudget.Check() == nil {
		return dataplane.Quantum
	}
	return 0
}

func busyPoll(t config.Toggle) xsk.BusyPoll {
	switch t {
	case config.ToggleOff:
		return xsk.BusyPollOff
	case config.ToggleOn:
		return xsk.BusyPollOn
	}
	return xsk.BusyPollAuto
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
