package main

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/shuntio/shunt/bpf"
	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/xsk"
	"github.com/shuntio/shunt/tools/control"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// veth is the host end of a veth pair, whose other end a container or this host has: all that comes from there is taken by AF_XDP, one socket for
// each queue. The container may go, and its interface with it; the port stays, and serves the next interface of the name.
type veth struct {
	engine *engine
	name   string // of the interface

	mu      sync.Mutex // what follows, for who only reports; changed with engine.mu held
	index   int        // of the interface; 0: none is open
	mtu     int        // of the interface
	program *bpf.PortProgram
	queues  []*vethQueue
	served  bool  // an interface of the name was in service
	failed  error // why it could not be opened
	past    control.Counters
}

type vethQueue struct {
	socket *xsk.Socket
	port   *xsk.Port
}

// dropNoInterface is for what is sent to a port while its interface is away.
var dropNoInterface = dataplane.NewReason("port-no-interface", "the port's interface is gone, or cannot be taken into service")

// dropPortFull is what the kernel drops by itself: first the frames run out that lie ready, or the receive ring does.
var dropPortFull = dataplane.NewReason("port-receive-full",
	"the other end of the port's interface sends more than the port's limit lets in, or its worker takes, and so much waits that no more can")

// dropPortNoSocket is for what the XDP program drops by itself.
var dropPortNoSocket = dataplane.NewReason("port-no-socket",
	"the packet arrived on a queue of the port's interface that the port does not serve: raise its queues; or just when the interface came into service")

// newVeth makes the device of a port.
func (e *engine) newVeth(p *port) error {
	p.device = &veth{engine: e, name: p.config.Interface, past: newCounters()}
	return e.newPairs(p, p.config.Queues)
}

// start implements device. An interface that is not there yet is an error at first, and waited for later on.
func (v *veth) start(p *port) error {
	for _, pair := range p.pairs {
		pair.link.Port = absent{pair.link.Counters, dropNoInterface}
		pair.worker.link(pair.link)
	}
	return v.open(p)
}

// open takes the interface, or leaves nothing open.
func (v *veth) open(p *port) (err error) {
	e := v.engine
	device, err := xsk.LookupDevice(v.name)
	if err != nil {
		return err
	}
	if n := len(p.pairs); n > device.Queues {
		return fmt.Errorf("queues: interface %s has %d, %d are asked for: ask for no more, or make it with numrxqueues and numtxqueues",
			v.name, device.Queues, n)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, v.shut(p))
		}
	}()
	program, err := bpf.AttachPort(bpf.Options{Interface: v.name, Queues: len(p.pairs)})
	if err != nil {
		return refused(err, bpf.ErrBusy)
	}
	v.mu.Lock()
	v.program, v.index, v.mtu = program, device.Index, device.MTU
	v.mu.Unlock()
	for i, pair := range p.pairs {
		q := &vethQueue{}
		if q.socket, err = e.umem.Open(xsk.SocketOptions{Device: device, Queue: i, BusyWait: busyWait(e.vainly[v.name])}); err != nil {
			return refused(err, xsk.ErrBusy)
		}
		v.mu.Lock()
		v.queues = append(v.queues, q)
		v.mu.Unlock()
		pair.worker.Do(func() {
			fill := min(vethFill, pair.worker.Pool().Len()/2)
			q.port, err = xsk.NewPort(xsk.PortOptions{
				Socket: q.socket, Pool: pair.worker.Pool(), Counters: pair.link.Counters, Fill: fill, CompletePartial: true,
			})
		})
		if err != nil {
			return err
		}
		pair.worker.plug(pair.link, q.port, q.socket.FD())
		if err = program.AddSocket(i, q.socket.FD()); err != nil {
			return err
		}
	}
	v.served = true
	e.fabric.Refresh()
	return nil
}

// vethFill is how many frames lie ready for what a container sends: two of the bursts that a veth moves at once.
const vethFill = 512

// shut gives the interface back, as it was found where nothing came of it.
func (v *veth) shut(p *port) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.addPast()
	var errs []error
	for i, q := range v.queues {
		pair := p.pairs[i]
		if q.socket == nil {
			continue
		}
		pair.worker.unplug(pair.link, q.socket.FD(), dropNoInterface)
		errs = append(errs, q.socket.Close())
		if q.port != nil {
			pair.worker.Do(func() { q.port.Reclaim(pair.worker.Pool()) })
		}
	}
	v.queues, v.index = nil, 0
	if v.program != nil {
		end := v.program.Return
		if v.served {
			end = v.program.Close
		}
		errs = append(errs, end())
		v.program = nil
	}
	return errors.Join(errs...)
}

// move implements device.
func (v *veth) move(p *port, i int, to *worker) {
	pair := p.pairs[i]
	from := pair.worker
	pair.link.Move(to.Worker, func() {
		if i >= len(v.queues) {
			return // there is no interface now
		}
		q := v.queues[i]
		from.Unwatch(q.socket.FD())
		to.WatchFor(pair.link, q.socket.FD(), unix.POLLIN, false)
		q.port.SetPool(to.Pool())
	})
}

// forget implements device.
func (v *veth) forget() error { return nil }

// stop implements device.
func (v *veth) stop(p *port) error {
	err := v.shut(p)
	for _, pair := range p.pairs {
		pair.worker.unlink(pair.link)
	}
	return err
}

// look sees to what became of the interface.
func (v *veth) look(p *port) {
	index, mtu := 0, 0
	if link, err := netlink.LinkByName(v.name); err == nil {
		index, mtu = link.Attrs().Index, link.Attrs().MTU
	}
	if index == v.index && index != 0 && !v.orphaned() {
		v.setMTU(p, mtu)
		return
	}
	log := v.engine.log.With("port", p.config.Name, "interface", v.name)
	if v.index != 0 {
		log.Warn("port out of service until its interface is back")
		if err := v.shut(p); err != nil {
			log.Warn("closing what was open on an interface that went away", "error", err)
		}
	}
	if index == 0 {
		v.setFailed(nil)
		return
	}
	err := v.open(p)
	if err == nil {
		log.Info("port back in service")
	} else if v.failed == nil || v.failed.Error() != err.Error() {
		log.Error("cannot take the interface back into service", "error", err)
	}
	v.setFailed(err)
}

// orphaned tells whether the interface was away: what was open on it is dead, though it is there again, before anybody looked.
func (v *veth) orphaned() (dead bool) {
	for _, q := range v.queues {
		dead = q.socket.Orphaned() || dead
	}
	return dead
}

// setMTU follows a change of the interface's MTU.
func (v *veth) setMTU(p *port, mtu int) {
	if mtu == v.mtu {
		return
	}
	if err := v.program.SetMTU(mtu); err != nil {
		v.engine.log.Error("the port goes on with the MTU that its interface had", "port", p.config.Name, "interface", v.name, "mtu", v.mtu, "error", err)
		return
	}
	for i, q := range v.queues {
		p.pairs[i].worker.Do(func() { q.port.SetMTU(mtu) })
	}
	v.mtu = mtu
}

func (v *veth) setFailed(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.failed = err
}

// status implements device.
func (v *veth) status(s *control.PortStatus) {
	v.mu.Lock()
	defer v.mu.Unlock()
	s.Interface = v.name
	switch {
	case v.failed != nil:
		s.State, s.Reason = control.StateFailed, v.failed.Error()
	case v.index == 0:
		s.State, s.Reason = control.StateDown, "the interface is gone; when it is back it is taken into service again"
	default:
		s.State, s.Queues, s.Ring = control.StateConnected, len(v.queues), "af_xdp"
	}
}

// count implements device.
func (v *veth) count(c *control.Counters) {
	v.mu.Lock()
	defer v.mu.Unlock()
	add(c, v.past)
	add(c, v.hardware())
}

// addPast keeps what programs and sockets count that are about to be closed. With mu held.
func (v *veth) addPast() {
	add(&v.past, v.hardware())
}

// hardware is what program and sockets count. With mu held.
func (v *veth) hardware() control.Counters {
	c := newCounters()
	for _, q := range v.queues {
		if k, err := q.socket.Statistics(); err == nil {
			lost(&c, dropPortFull, k.RxDropped+k.RxRingFull)
		}
	}
	if v.program != nil {
		verdicts, _ := v.program.Counters()
		for _, verdict := range verdicts {
			c.More["xdp-"+verdict.Verdict] += verdict.Packets
			switch verdict.Verdict {
			case "drop-no-socket":
				lost(&c, dropPortNoSocket, verdict.Packets)
			case "drop-too-long":
				lost(&c, dropUnsegmented, verdict.Packets)
			}
		}
	}
	return c
}

// watchVeths looks after the interfaces of ports whenever the kernel has news of any, until stop is closed.
func (e *engine) watchVeths(stop <-chan struct{}) error {
	done := make(chan struct{})
	news, err := linkNews(done)
	if err != nil {
		return err
	}
	go e.followLinks(news, done, stop)
	return nil
}

// followLinks looks after interfaces as long as stop is open, also where news are lost: where hundreds of containers start there may be more than
// the kernel keeps.
func (e *engine) followLinks(news chan netlink.LinkUpdate, done chan struct{}, stop <-chan struct{}) {
	for {
		e.hear(news, done, stop)
		for news = nil; news == nil; {
			select {
			case <-stop:
				return
			case <-time.After(linkNewsRetry):
			}
			var err error
			done = make(chan struct{})
			if news, err = linkNews(done); err != nil {
				e.log.Error("interfaces of ports that come and go are not noticed", "error", err)
			}
		}
		e.lookAt(func(*veth) bool { return true }) // what was missed
		e.tell()
	}
}

// linkNewsRetry is how long after the kernel's news broke off they are asked for again.
const linkNewsRetry = 100 * time.Millisecond

// linkNews are the kernel's of all interfaces, until done is closed or some are lost. The channel is closed then.
func linkNews(done <-chan struct{}) (chan netlink.LinkUpdate, error) {
	news := make(chan netlink.LinkUpdate, 64)
	if err := netlink.LinkSubscribe(news, done); err != nil {
		return nil, fmt.Errorf("follow the host's interfaces: %w", err)
	}
	return news, nil
}

// hear looks at what there is news of, as long as there is, and closes done.
func (e *engine) hear(news <-chan netlink.LinkUpdate, done chan<- struct{}, stop <-chan struct{}) {
	end := sync.OnceFunc(func() { close(done) })
	defer end()
	for {
		select {
		case n, ok := <-news:
			if !ok {
				return
			}
			e.lookAtLink(n.Link.Attrs())
			if n.Change&unix.IFF_UP != 0 && n.Flags&unix.IFF_UP != 0 {
				e.tell()
			}
		case <-stop:
			end()
			stop = nil // and go on, since who sends the news waits
		}
	}
}

// News implements daemon.Watcher: interfaces that came up.
func (e *engine) News() <-chan struct{} { return e.news }

func (e *engine) tell() {
	select {
	case e.news <- struct{}{}:
	default: // there are some already
	}
}

// lookAtLink sees to the port on an interface, if there is one: by its name, and by its index, for one that has another name now.
func (e *engine) lookAtLink(link *netlink.LinkAttrs) {
	e.lookAt(func(v *veth) bool { return v.name == link.Name || v.index != 0 && v.index == link.Index })
}

// lookAt sees to the ports on some interfaces.
func (e *engine) lookAt(which func(*veth) bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, p := range e.ports {
		if v, ok := p.device.(*veth); ok && which(v) {
			v.look(p)
		}
	}
}
