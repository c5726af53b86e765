package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/wire"
	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/config"
	"github.com/shuntio/shunt/vxlan"
)

// port is a guest's network interface in service: over vhost-user (guest.go), or the host end of a veth pair (veth.go).
type port struct {
	config config.Port
	pairs  []*pair
	device
}

// pair is a queue pair of a guest, or a queue of a veth, with the worker that owns it.
type pair struct {
	link   *dataplane.Link
	worker *worker
}

// device is what is at the other side of a port's links.
type device interface {
	// start lets the guest in, after its links are attached to the switch.
	start(p *port) error
	// move gives a pair to another worker.
	move(p *port, i int, to *worker)
	// stop sends the guest away and takes the links off their workers; only then is the rest given back.
	stop(p *port) error
	// forget removes what stop leaves for the guest's next device.
	forget() error
	// status fills in what the device knows.
	status(s *control.PortStatus)
	// count adds counters of the device's own.
	count(c *control.Counters)
}

// AddPort implements control.Engine.
func (e *engine) AddPort(_ context.Context, c config.Port) (err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := e.networks[c.Network]
	if n == nil {
		return fmt.Errorf("network %s: %w", c.Network, control.ErrNotFound)
	}
	if err := checkFlat(n, c); err != nil {
		return err
	}
	p := &port{config: c}
	defer func() {
		if g, is := p.device.(*guest); is && err != nil && g.fresh {
			err = errors.Join(err, g.forget())
		}
		if delete(e.vainly, c.Interface); err != nil && c.Interface != "" {
			e.vainly[c.Interface] = true
		}
	}()
	if c.Interface != "" {
		err = e.newVeth(p)
	} else {
		err = e.newGuest(p, n)
	}
	if err != nil {
		return err
	}
	setLimits(p)
	if err = e.fabric.AttachPort(vxlanPort(c), p.links()); err != nil {
		return errors.Join(refused(err, vxlan.ErrConflict), p.stop(p))
	}
	for i, l := range p.links() {
		e.taps.add(l, subject{kind: control.KindPort, name: c.Name, description: "port of network " + c.Network, queue: uint32(i)})
	}
	if err = p.start(p); err == nil {
		if len(p.pairs) > 1 {
			e.fabric.Refresh() // the links have owners only now, and each worker uses its own
		}
		err = e.steerPort(n, c.MAC, p.workers())
	}
	if err != nil {
		return errors.Join(err, e.closePort(p))
	}
	e.ports[c.Name] = p
	e.log.Info("port in service", "port", c.Name, "network", c.Network, "socket", c.Socket, "interface", c.Interface, "workers", p.workers())
	return nil
}

// newPairs makes a port's links and chooses their workers.
func (e *engine) newPairs(p *port, n int) error {
	places, err := e.place(n, p.config.Workers)
	if err != nil {
		return err
	}
	for i, w := range places {
		l := &dataplane.Link{Name: p.config.Name, Counters: &dataplane.Counters{}}
		if n > 1 {
			l.Name = fmt.Sprintf("%s/%d", p.config.Name, i)
		}
		p.pairs = append(p.pairs, &pair{link: l, worker: w})
	}
	return nil
}

func (p *port) links() (links []*dataplane.Link) {
	for _, pair := range p.pairs {
		links = append(links, pair.link)
	}
	return links
}

// places are the workers that own the port's pairs.
func (p *port) places() (list []*worker) {
	for _, pair := range p.pairs {
		list = append(list, pair.worker)
	}
	return list
}

// workers are the indices of those that own the port's pairs, each once.
func (p *port) workers() []int { return indices(p.places()) }

func indices(places []*worker) (list []int) {
	for _, w := range places {
		if i := w.Index(); !slices.Contains(list, i) {
			list = append(list, i)
		}
	}
	return list
}

// setLimits gives all pairs of a port the limit that they share.
func setLimits(p *port) {
	in := dataplane.NewLimit(limitOptions(p.config.Limits.FromGuest))
	out := dataplane.NewLimit(limitOptions(p.config.Limits.ToGuest))
	for _, pair := range p.pairs {
		pair.link.Limits[dataplane.In].Store(in)
		pair.link.Limits[dataplane.Out].Store(out)
	}
}

func limitOptions(l config.Limit) dataplane.LimitOptions {
	return dataplane.LimitOptions{PPS: l.PPS, BPS: l.BPS, Burst: time.Duration(l.Burst)}
}

// checkFlat refuses what cannot work: XDP finds a flat network's frames by their destination.
func checkFlat(n *network, c config.Port) error {
	if n.flat() && c.MAC.IsZero() {
		return errors.New("a port of a flat network needs its guest's mac, so that its frames are found on the uplink; add mac")
	}
	return nil
}

// UpdatePort implements control.Engine.
func (e *engine) UpdatePort(_ context.Context, c config.Port) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	p := e.ports[c.Name]
	n := e.networks[c.Network]
	switch {
	case p == nil:
		return fmt.Errorf("port %s: %w", c.Name, control.ErrNotFound)
	case n == nil:
		return fmt.Errorf("network %s: %w", c.Network, control.ErrNotFound)
	}
	if err := checkFlat(n, c); err != nil {
		return err
	}
	places := p.places()
	if len(c.Workers) > 0 {
		var err error
		if places, err = e.place(len(p.pairs), c.Workers); err != nil {
			return err
		}
	}
	was := p.config
	if err := p.permit(was, c); err != nil {
		return err
	}
	if err := e.change(n, p, c, places); err != nil {
		return errors.Join(err, p.permit(c, was))
	}
	p.config = c
	if was.Network != c.Network || was.MAC != c.MAC {
		e.left("port", c.Name, e.unsteerPort(e.networks[was.Network], was.MAC))
	}
	if was.Network != c.Network {
		e.tellMTU(p)
	}
	if was.Limits != c.Limits {
		setLimits(p)
	}
	e.movePort(p, places)
	return nil
}

// change gives a port's new configuration to the switch, and its frames on the wire to its workers, or neither.
func (e *engine) change(n *network, p *port, c config.Port, places []*worker) error {
	was := p.config
	moves := was.Network != c.Network || was.MAC != c.MAC
	steered := moves || !slices.Equal(indices(places), p.workers())
	if steered {
		if err := e.steerPort(n, c.MAC, indices(places)); err != nil {
			return err
		}
	}
	err := e.fabric.SetPort(vxlanPort(c))
	if err == nil {
		return nil
	}
	err = refused(err, vxlan.ErrConflict)
	switch {
	case moves:
		err = errors.Join(err, e.unsteerPort(n, c.MAC))
	case steered:
		err = errors.Join(err, e.steerPort(n, was.MAC, p.workers()))
	}
	return err
}

// permit gives the socket of a port, if it has one, the mode and owner of another configuration.
func (p *port) permit(was, will config.Port) error {
	if g, ok := p.device.(*guest); ok {
		return g.permit(was, will)
	}
	return nil
}

// movePort gives a port's pairs to other workers. What is on its way to a pair meanwhile follows it.
func (e *engine) movePort(p *port, places []*worker) {
	moved := false
	for i, pair := range p.pairs {
		if pair.worker != places[i] {
			p.move(p, i, places[i])
			pair.worker, moved = places[i], true
		}
	}
	if moved {
		e.fabric.Refresh()
		e.log.Info("port moved", "port", p.config.Name, "workers", p.workers())
	}
}

// RemovePorts implements control.Engine.
func (e *engine) RemovePorts(_ context.Context, names []string, again []bool) []error {
	errs := make([]error, len(names))
	e.mu.Lock()
	defer e.mu.Unlock()
	var going []*port
	for i, name := range names {
		p := e.ports[name]
		if p == nil {
			errs[i] = fmt.Errorf("port %s: %w", name, control.ErrNotFound)
			continue
		}
		going = append(going, p)
		e.left("port", name, e.haltPort(p))
		if !again[i] {
			e.left("port", name, p.forget())
		}
	}
	if err := e.dropPorts(going); err != nil {
		e.log.Warn("ports that were removed are still in the switch", "reason", err)
	}
	return errs
}

// haltPort sends a port's guest away and frees what is its own, whatever goes wrong. It is still in the switch, where what is sent to it is dropped.
func (e *engine) haltPort(p *port) error {
	return errors.Join(e.unsteerPort(e.networks[p.config.Network], p.config.MAC), e.stopPort(p))
}

// dropPorts takes ports that are halted out of the switch, all at once, since each time it builds its tables anew.
func (e *engine) dropPorts(ports []*port) error {
	var names []string
	for _, p := range ports {
		delete(e.ports, p.config.Name)
		names = append(names, p.config.Name)
	}
	return e.fabric.DetachPorts(names...)
}

// closePort takes back whatever of a port there is: the guest first, so that nothing new comes in.
func (e *engine) closePort(p *port) error {
	return errors.Join(e.stopPort(p), e.fabric.DetachPorts(p.config.Name))
}

// stopPort is closePort but for the port's place in the switch.
func (e *engine) stopPort(p *port) error {
	for _, l := range p.links() {
		e.taps.remove(l)
	}
	return p.stop(p)
}

func vxlanPort(c config.Port) vxlan.Port {
	return vxlan.Port{
		Name: c.Name, Network: c.Network, MAC: wire.MACFrom(c.MAC), IPs: c.IPs, AntiSpoof: c.AntiSpoof, LearnLimit: c.LearnLimit, ACL: c.ACL,
		Flood: dataplane.LimitOptions{PPS: c.Limits.Flood.PPS, Burst: time.Duration(c.Limits.Flood.Burst)},
	}
}
