package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os/user"
	"strconv"
	"sync/atomic"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/vnet"
	"github.com/shuntio/shunt/dataplane/wire"
	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/config"
	"github.com/shuntio/shunt/vxlan"
)

// port is a guest's network interface in service.
type port struct {
	config  config.Port
	link    *dataplane.Link
	device  *vnet.Device
	backend atomic.Pointer[vhostuser.Backend]
}

// AddPort implements control.Engine.
func (e *engine) AddPort(_ context.Context, c config.Port) (err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := e.networks[c.Network]
	if n == nil {
		return fmt.Errorf("network %s: %w", c.Network, control.ErrNotFound)
	}
	if err := unsupported(c); err != nil {
		return err
	}
	if err := checkFlat(n, c); err != nil {
		return err
	}
	owner, err := account("owner", c.Owner, lookupUser)
	if err != nil {
		return err
	}
	group, err := account("group", c.Group, lookupGroup)
	if err != nil {
		return err
	}
	p := &port{config: c, link: &dataplane.Link{Name: c.Name, Counters: &dataplane.Counters{}}}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.closePort(p))
		}
	}()
	p.device, err = vnet.New(vnet.Options{
		Pairs:  []vnet.PairOptions{{Worker: e.worker, Link: p.link}},
		Failed: func(why error) { go e.hangUp(p, why) },
	})
	if err != nil {
		return err
	}
	if err = e.fabric.AttachPort(vxlanPort(c), []*dataplane.Link{p.link}); err != nil {
		return refused(err, vxlan.ErrConflict)
	}
	e.link(p.link, -1, 0)
	e.taps.add(p.link, subject{kind: control.KindPort, name: c.Name, description: "port of network " + c.Network})
	backend, err := vhostuser.Listen(vhostuser.Options{
		Path: c.Socket, Mode: fs.FileMode(c.Mode), Owner: owner, Group: group, Log: e.log.With("port", c.Name),
	}, p.device)
	if err != nil {
		return refused(err, vhostuser.ErrInUse)
	}
	p.backend.Store(backend)
	if err = e.steerMAC(n, c.MAC); err != nil {
		return err
	}
	e.ports[c.Name] = p
	e.log.Info("port in service", "port", c.Name, "network", c.Network, "socket", c.Socket)
	return nil
}

// checkFlat refuses what cannot work: XDP finds a flat network's frames by their destination.
func checkFlat(n *network, c config.Port) error {
	if n.flat() && c.MAC.IsZero() {
		return errors.New("a port of a flat network needs its guest's mac, so that its frames are found on the uplink; add mac")
	}
	return nil
}

// steerMAC makes frames to a guest's address ours, if its network is a flat one on an uplink.
func (e *engine) steerMAC(n *network, mac config.MAC) error {
	u := e.uplinks[n.config.Uplink]
	if u == nil || u.program == nil || !n.flat() {
		return nil
	}
	u.steer.Lock()
	defer u.steer.Unlock()
	return u.addMAC(mac)
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
	if err := unsupported(c); err != nil {
		return err
	}
	if err := checkFlat(n, c); err != nil {
		return err
	}
	was := p.config
	moves := was.Network != c.Network || was.MAC != c.MAC
	if moves {
		if err := e.steerMAC(n, c.MAC); err != nil {
			return err
		}
	}
	if err := e.fabric.SetPort(vxlanPort(c)); err != nil {
		err = refused(err, vxlan.ErrConflict)
		if moves {
			err = errors.Join(err, e.unsteerMAC(c))
		}
		return err
	}
	p.config = c
	if moves {
		return e.unsteerMAC(was)
	}
	return nil
}

// unsteerMAC is the reverse of steerMAC, for a port as it was.
func (e *engine) unsteerMAC(was config.Port) error {
	n := e.networks[was.Network]
	if n == nil || !n.flat() {
		return nil
	}
	u := e.uplinks[n.config.Uplink]
	if u == nil || u.program == nil {
		return nil
	}
	u.steer.Lock()
	defer u.steer.Unlock()
	return u.removeMAC(was.MAC)
}

// RemovePort implements control.Engine.
func (e *engine) RemovePort(_ context.Context, name string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	p := e.ports[name]
	if p == nil {
		return fmt.Errorf("port %s: %w", name, control.ErrNotFound)
	}
	delete(e.ports, name)
	return errors.Join(e.unsteerMAC(p.config), e.closePort(p))
}

// closePort takes back whatever of a port there is: the guest first, so that nothing new comes in.
func (e *engine) closePort(p *port) error {
	var errs []error
	if b := p.backend.Load(); b != nil {
		errs = append(errs, b.Close())
	}
	if p.link.Forwarder != nil {
		e.taps.remove(p.link)
		errs = append(errs, e.fabric.DetachPort(p.config.Name))
		e.unlink(p.link, -1)
	}
	return errors.Join(errs...)
}

// hangUp ends the connection of a guest that broke the rules, so that its front-end can begin anew.
func (e *engine) hangUp(p *port, why error) {
	e.log.Warn("port out of service until its front-end connects again", "port", p.config.Name, "reason", why)
	if b := p.backend.Load(); b != nil {
		b.Disconnect()
	}
}

func vxlanPort(c config.Port) vxlan.Port {
	return vxlan.Port{Name: c.Name, Network: c.Network, MAC: wire.MACFrom(c.MAC), IPs: c.IPs, AntiSpoof: c.AntiSpoof, LearnLimit: c.LearnLimit}
}

// account is the number of a user or group, which may be given by name; 0 if none is.
func account(key string, name config.Account, lookup func(string) (string, error)) (int, error) {
	if name == "" {
		return 0, nil
	}
	if n, err := strconv.Atoi(string(name)); err == nil {
		return n, nil
	}
	id, err := lookup(string(name))
	if err != nil {
		return 0, fmt.Errorf("%s: this host has no %s: create it, name another, or give a number", key, name)
	}
	return strconv.Atoi(id)
}

func lookupUser(name string) (string, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return "", err
	}
	return u.Uid, nil
}

func lookupGroup(name string) (string, error) {
	g, err := user.LookupGroup(name)
	if err != nil {
		return "", err
	}
	return g.Gid, nil
}
