package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/vnet"
	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/config"
	"golang.org/x/sys/unix"
)

// guest is a virtio-net device behind a vhost-user connection.
type guest struct {
	engine  *engine
	net     *vnet.Device
	options vhostuser.Options
	state   string // path of the file that outlives us; empty: none
	fresh   bool   // there was no such file
	backend atomic.Pointer[vhostuser.Backend]
}

// newGuest makes the device of a port.
func (e *engine) newGuest(p *port, n *network) error {
	c := p.config
	owner, group, err := accounts(c)
	if err != nil {
		return err
	}
	if err := e.newPairs(p, c.Queues); err != nil {
		return err
	}
	g := &guest{engine: e, options: vhostuser.Options{
		Path: c.Socket, Mode: fs.FileMode(c.Mode), Owner: owner, Group: group, Log: e.log.With("port", c.Name),
	}}
	mtu, err := e.fabric.MTU(c.Network)
	if err != nil {
		return err
	}
	if g.state, err = stateFile(c.Socket); err != nil {
		e.log.Warn("packed rings of the port's guest do not survive the end of shuntd", "port", c.Name, "reason", err)
	}
	_, err = os.Lstat(g.state)
	g.fresh = errors.Is(err, fs.ErrNotExist)
	o := vnet.Options{
		Grace: e.grace, Failed: func(why error) { g.hangUp(c.Name, why) }, Coalesce: c.Coalesce, MTU: uint16(mtu), StateFile: g.state,
		StateOwner: e.name,
	}
	for _, pair := range p.pairs {
		o.Pairs = append(o.Pairs, vnet.PairOptions{Worker: pair.worker.Worker, Link: pair.link})
	}
	p.device = g // also of a device that is refused: its file goes with it
	g.net, err = vnet.New(o)
	return err
}

// statePaths are where the files may be that tell a successor where the rings stood, one for each socket: on a file system in
// memory, so that a page of them never waits for a disk. They stay when we stop: a front-end that is hung up on is not told where its rings stand.
// They go with their port's configuration, or when the next daemon begins without it; each knows its files by the name in them.
var statePaths = []string{"/run/shunt/rings", "/dev/shm/shunt/rings"}

// stateFile names a socket's file.
func stateFile(socket string) (string, error) {
	socket, err := filepath.Abs(socket)
	if err != nil {
		return "", err
	}
	dir, err := statePath()
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("%w: make the directory for shuntd, or run it as root", err)
	}
	name := url.PathEscape(socket)
	if len(name) > unix.NAME_MAX { // of letters that are three escapes each
		name = fmt.Sprintf("%x", sha256.Sum256([]byte(socket)))
	}
	return filepath.Join(dir, name), nil
}

// statePath is the first of statePaths that can be.
func statePath() (string, error) {
	for _, dir := range statePaths {
		var on unix.Statfs_t
		if err := unix.Statfs(filepath.Dir(filepath.Dir(dir)), &on); err == nil && on.Type == unix.TMPFS_MAGIC {
			return dir, nil
		}
	}
	return "", fmt.Errorf("neither %s is on a file system in memory: mount a tmpfs on /run", strings.Join(statePaths, " nor "))
}

// sweepStates removes the files of ports that we had, in an earlier life, and nobody configured again: neither those there are nor those still to come.
func (e *engine) sweepStates(missing []config.Port) {
	kept := map[string]bool{}
	for _, c := range missing {
		if file, err := stateFile(c.Socket); err == nil && c.Socket != "" {
			kept[file] = true
		}
	}
	for _, p := range e.ports {
		if g, is := p.device.(*guest); is {
			kept[g.state] = true
		}
	}
	for _, dir := range statePaths {
		files, _ := os.ReadDir(dir) // one of them is not there
		for _, f := range files {
			path := filepath.Join(dir, f.Name())
			if kept[path] {
				continue
			}
			switch removed, err := vnet.RemoveState(path, e.name); {
			case err != nil:
				e.log.Warn("where the rings of a port stood that is not configured any more is not forgotten", "reason", err)
			case removed:
				e.log.Info("forgot where the rings of a port stood that is not configured any more", "file", path)
			}
		}
	}
}

// start implements device.
func (g *guest) start(p *port) error {
	for _, pair := range p.pairs {
		pair.worker.link(pair.link)
	}
	serve := vhostuser.Listen
	if p.config.Role == config.RoleClient {
		serve = vhostuser.Connect
		g.options.Mode, g.options.Owner, g.options.Group = 0, 0, 0 // the socket is the front-end's
	}
	backend, err := serve(g.options, g.net)
	if err != nil {
		return refused(err, vhostuser.ErrInUse)
	}
	g.backend.Store(backend)
	return nil
}

// permit gives the socket the mode and owner of another configuration.
func (g *guest) permit(was, will config.Port) error {
	b := g.backend.Load()
	if b == nil || was.Mode == will.Mode && was.Owner == will.Owner && was.Group == will.Group {
		return nil
	}
	owner, group, err := accounts(will)
	if err != nil {
		return err
	}
	return b.Permit(fs.FileMode(will.Mode), owner, group)
}

// tellMTU has a port's front-end held to the MTU of its network, which may be another one than before. What it has told the guest stays.
func (e *engine) tellMTU(p *port) {
	g, is := p.device.(*guest)
	mtu, err := e.fabric.MTU(p.config.Network)
	if !is || err != nil {
		return
	}
	g.net.SetNetworkMTU(uint16(mtu))
	if told := int(g.net.State().MTU); told > mtu {
		e.log.Warn("the guest was told a larger MTU than its network has now; longer packets are dropped until its front-end tells it another (host_mtu)",
			"port", p.config.Name, "told", told, "mtu", mtu)
	}
}

// move implements device.
func (g *guest) move(_ *port, i int, to *worker) {
	g.net.Move(i, to.Worker) // and its link
}

// stop implements device.
func (g *guest) stop(p *port) error {
	var err error
	if b := g.backend.Load(); b != nil {
		err = b.Close()
	}
	for _, pair := range p.pairs {
		pair.worker.unlink(pair.link)
	}
	return errors.Join(err, g.net.Close())
}

// forget implements device.
func (g *guest) forget() error {
	if g.state == "" {
		return nil
	}
	if err := os.Remove(g.state); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// hangUpAfter is how long a front-end has to hear what is wrong before its connection ends.
const hangUpAfter = 20 * time.Millisecond

// hangUp ends the connection of a guest that broke the rules, so that its front-end can begin anew. The worker that noticed calls it.
func (g *guest) hangUp(name string, why error) {
	if b := g.backend.Load(); b != nil {
		b.Abandon(why, hangUpAfter)
	}
	go g.engine.log.Warn("port out of service until its front-end connects again", "port", name, "reason", why)
}

// status implements device.
func (g *guest) status(s *control.PortStatus) {
	state := g.net.State()
	switch {
	case state.Failed != nil:
		s.State, s.Reason = control.StateFailed, state.Failed.Error()
	case state.Running:
		s.State, s.Queues, s.Ring = control.StateConnected, state.Pairs, "split"
		if state.Features&vnet.FeaturePacked != 0 {
			s.Ring = "packed"
		}
		s.Features = featureNames(state.Features)
	}
}

// count implements device.
func (g *guest) count(c *control.Counters) {
	c.More["calls"] = g.net.Calls()
	c.More["coalesced"], c.More["absorbed"] = g.net.Coalesced()
}

// featureNames are the specification's (virtio 1.2, 5.1.3 and 6), less VIRTIO_ and VIRTIO_NET_.
func featureNames(features uint64) (names []string) {
	for _, f := range []struct {
		bit  uint64
		name string
	}{
		{vnet.FeatureCsum, "CSUM"}, {vnet.FeatureGuestCsum, "GUEST_CSUM"}, {vnet.FeatureMTU, "MTU"},
		{vnet.FeatureGuestTSO4, "GUEST_TSO4"}, {vnet.FeatureGuestTSO6, "GUEST_TSO6"}, {vnet.FeatureGuestECN, "GUEST_ECN"},
		{vnet.FeatureHostTSO4, "HOST_TSO4"}, {vnet.FeatureHostTSO6, "HOST_TSO6"}, {vnet.FeatureHostECN, "HOST_ECN"},
		{vnet.FeatureMrgRxbuf, "MRG_RXBUF"}, {vnet.FeatureGuestAnnounce, "GUEST_ANNOUNCE"}, {vnet.FeatureMQ, "MQ"},
		{vnet.FeatureIndirect, "INDIRECT_DESC"}, {vnet.FeatureEventIdx, "EVENT_IDX"}, {vnet.FeatureVersion1, "VERSION_1"},
		{vnet.FeaturePacked, "RING_PACKED"}, {vnet.FeatureInOrder, "IN_ORDER"},
	} {
		if features&f.bit != 0 {
			names = append(names, f.name)
		}
	}
	return names
}

// accounts are the numbers of a socket's owner and group.
func accounts(c config.Port) (owner, group int, err error) {
	if owner, err = account("owner", c.Owner, lookupUser); err != nil {
		return 0, 0, err
	}
	group, err = account("group", c.Group, lookupGroup)
	return owner, group, err
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
