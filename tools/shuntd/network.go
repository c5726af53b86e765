package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/shuntio/shunt/bpf"
	"github.com/shuntio/shunt/dataplane/packet"
	"github.com/shuntio/shunt/dataplane/wire"
	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/config"
	"github.com/shuntio/shunt/vxlan"
)

// network is a layer 2 segment in service.
type network struct {
	config config.Network
	// problem is why its uplink does not carry all of its packets any more; see misfit.
	problem string
}

func (n *network) flat() bool { return n.config.VNI == 0 && n.config.Uplink != "" }

// AddNetwork implements control.Engine.
func (e *engine) AddNetwork(_ context.Context, c config.Network) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := &network{config: c}
	if err := e.setSwitch(n); err != nil {
		return err
	}
	if err := e.steer(n); err != nil {
		return errors.Join(err, e.fabric.RemoveNetwork(c.Name))
	}
	e.networks[c.Name] = n
	return nil
}

// UpdateNetwork implements control.Engine. The frames of a network that moves are dropped by nobody in between: it is known to the program of its
// new uplink before it is forgotten by that of the old one.
func (e *engine) UpdateNetwork(_ context.Context, c config.Network) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	old := e.networks[c.Name]
	if old == nil {
		return fmt.Errorf("network %s: %w", c.Name, control.ErrNotFound)
	}
	n := &network{config: c}
	if err := e.setSwitch(n); err != nil {
		return err
	}
	moves := old.config.Uplink != c.Uplink || old.config.VNI != c.VNI
	if moves {
		if err := e.steer(n); err != nil {
			return errors.Join(err, e.setSwitch(old))
		}
	}
	e.networks[c.Name] = n
	for _, p := range e.ports {
		if p.config.Network == c.Name {
			e.tellMTU(p)
		}
	}
	if moves {
		e.left("network", c.Name, e.unsteer(old))
	}
	return nil
}

// setSwitch gives a network to the switch.
func (e *engine) setSwitch(n *network) error {
	if err := e.fabric.SetNetwork(vxlanNetwork(n)); err != nil {
		return refused(err, vxlan.ErrConflict)
	}
	return nil
}

// steer makes the frames of a network on the wire ours, now or when its uplink is there, or leaves all of them to the kernel.
func (e *engine) steer(n *network) (err error) {
	u := e.uplinks[n.config.Uplink]
	if u == nil || u.program == nil {
		return nil
	}
	u.steer.Lock()
	defer u.steer.Unlock()
	if n.flat() {
		if err := e.setMulticast(u, true); err != nil {
			return err
		}
	} else if err := u.program.AddVNI(n.config.VNI, 0); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.leave(u, n))
		}
	}()
	for _, p := range e.ports {
		if p.config.Network == n.config.Name {
			if err := u.addStation(n, p.config.MAC, p.workers()); err != nil {
				return err
			}
		}
	}
	if n.flat() {
		return u.program.SetFlat(true)
	}
	return nil
}

// unsteer leaves a network's frames on the wire to the kernel again.
func (e *engine) unsteer(n *network) error {
	u := e.uplinks[n.config.Uplink]
	if u == nil || u.program == nil {
		return nil
	}
	u.steer.Lock()
	defer u.steer.Unlock()
	return e.leave(u, n)
}

// leave is unsteer, with steer held.
func (e *engine) leave(u *uplink, n *network) error {
	if !n.flat() {
		return u.program.RemoveVNI(n.config.VNI) // with its stations
	}
	errs := []error{u.program.SetFlat(false), e.setMulticast(u, false)}
	for _, p := range e.ports {
		if p.config.Network == n.config.Name {
			errs = append(errs, u.removeStation(n, p.config.MAC))
		}
	}
	return errors.Join(errs...)
}

// steerPort gives frames from the wire to a port's guest to workers, those that own its pairs. A guest whose address is not known gets them by way of the
// network's worker.
func (e *engine) steerPort(n *network, mac config.MAC, workers []int) error {
	u := e.uplinks[n.config.Uplink]
	if u == nil || u.program == nil {
		return nil
	}
	u.steer.Lock()
	defer u.steer.Unlock()
	return u.addStation(n, mac, workers)
}

// unsteerPort is the reverse of steerPort, for a port as it was.
func (e *engine) unsteerPort(n *network, mac config.MAC) error {
	if n == nil {
		return nil
	}
	u := e.uplinks[n.config.Uplink]
	if u == nil || u.program == nil {
		return nil
	}
	u.steer.Lock()
	defer u.steer.Unlock()
	return u.removeStation(n, mac)
}

// addStation makes frames of a network to a guest go to workers. In a flat network, that makes them ours: the NIC lets them in, the program gives them to us.
// With steer held.
func (u *uplink) addStation(n *network, mac config.MAC, workers []int) error {
	if mac.IsZero() {
		return nil
	}
	if len(workers) > bpf.MaxSpread {
		workers = workers[:bpf.MaxSpread]
	}
	if !n.flat() {
		return u.program.AddStation(n.config.VNI, mac, workers)
	}
	if u.multicast != nil {
		if err := u.multicast.Port.(*packet.Port).Listen(mac); err != nil {
			return err
		}
	}
	err := u.program.AddMAC(mac, workers)
	if err != nil {
		err = errors.Join(err, u.removeStation(n, mac))
	}
	return err
}

// removeStation is the reverse of addStation. With steer held.
func (u *uplink) removeStation(n *network, mac config.MAC) error {
	if mac.IsZero() {
		return nil
	}
	if !n.flat() {
		return u.program.RemoveStation(n.config.VNI, mac)
	}
	err := u.program.RemoveMAC(mac)
	if u.multicast != nil {
		err = errors.Join(err, u.multicast.Port.(*packet.Port).Ignore(mac))
	}
	return err
}

// RemoveNetwork implements control.Engine.
func (e *engine) RemoveNetwork(_ context.Context, name string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := e.networks[name]
	if n == nil {
		return fmt.Errorf("network %s: %w", name, control.ErrNotFound)
	}
	if err := e.fabric.RemoveNetwork(name); err != nil {
		return refused(err)
	}
	delete(e.networks, name)
	e.left("network", name, e.unsteer(n))
	return nil
}

func vxlanNetwork(n *network) vxlan.Network {
	c := n.config
	v := vxlan.Network{
		Name: c.Name, VNI: c.VNI, Flat: n.flat(), Uplink: c.Uplink, MTU: c.MTU, Learning: c.Learning, Flood: c.Flood,
		Age: time.Duration(c.Age), LearnLimit: c.LearnLimit, NoAnswer: !c.Answer,
	}
	if c.DSCP == config.DSCPZero {
		v.DSCP = vxlan.DSCPZero
	}
	for _, entry := range c.Entries {
		v.Entries = append(v.Entries, vxlan.Entry{MAC: wire.MACFrom(entry.MAC), IP: entry.IP, VTEP: entry.VTEP})
	}
	return v
}
