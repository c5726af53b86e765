package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/vxlan"
)

// What happens to an uplink's interface while it is in service:
//
//	MTU changes ──▶ fit       the sockets know it, networks that do not fit any more are named in log and status
//	goes away   ──▶ shut      XDP program and sockets went with it; what is sent there is dropped and counted
//	comes back  ──▶ open, steer, poll: as it was, or tried again every second with the reason in the status
//
// The configuration stays as it is all the while.

// mendRetry is how long an interface that came back and could not be taken into service is left alone.
const mendRetry = time.Second

// look sees to what became of an uplink's interface.
func (e *engine) look(u *uplink) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.uplinks[u.config.Name] != u {
		return // removed meanwhile
	}
	e.mend(u)
	e.fit(u)
}

// mend takes the uplink's interface back into service after it went and came.
func (e *engine) mend(u *uplink) {
	log := e.log.With("uplink", u.config.Name, "interface", u.config.Interface)
	p := u.resolve.Presence()
	if p.Index == u.device.Index && p.Came == u.came && u.program != nil {
		return
	}
	if u.program != nil {
		log.Error("uplink out of service until its interface is back")
		if err := e.shut(u); err != nil {
			log.Warn("closing what was open on an interface that went away", "error", err)
		}
	}
	if p.Index == 0 || !u.resolve.Up() {
		u.failed = nil
		return // there will be news
	}
	err := e.reopen(u)
	switch {
	case err == nil:
		u.failed = nil
		e.announce(u, "uplink back in service")
		return
	case u.failed == nil || u.failed.Error() != err.Error():
		log.Error("cannot take the uplink back into service, trying again", "error", err)
	}
	u.failed = err
	if u.retry != nil {
		u.retry.Stop()
	}
	u.retry = time.AfterFunc(mendRetry, func() { e.look(u) })
}

// reopen opens the uplink's interface, and teaches the new program what the one before knew.
func (e *engine) reopen(u *uplink) error {
	if err := e.open(u); err != nil {
		return err
	}
	for _, n := range e.networks {
		if n.config.Uplink != u.config.Name {
			continue
		}
		if err := e.steer(n); err != nil {
			return errors.Join(err, e.shut(u))
		}
	}
	e.follow(u)
	if err := e.poll(u); err != nil {
		return errors.Join(err, e.shut(u))
	}
	return nil
}

// fit follows the MTU of the interface.
func (e *engine) fit(u *uplink) {
	if mtu := u.resolve.Local().MTU; mtu != u.device.MTU && u.program != nil {
		u.device.MTU = mtu
		for _, q := range u.queues {
			q.owner.Do(func() { q.port.SetMTU(mtu) })
		}
	}
	for name, n := range e.networks {
		if n.config.Uplink != u.config.Name {
			continue
		}
		problem := e.misfit(n)
		switch {
		case problem == n.problem:
		case problem != "":
			e.log.Warn("network does not fit its uplink any more", "network", name, "problem", problem)
		default:
			e.log.Info("network fits its uplink again", "network", name)
		}
		n.problem = problem
	}
}

// misfit says what is wrong with a network whose frames were small enough for its uplink when it was configured; empty if nothing is.
func (e *engine) misfit(n *network) string {
	u := e.uplinks[n.config.Uplink]
	mtu, err := e.fabric.MTU(n.config.Name)
	if u == nil || err != nil {
		return ""
	}
	local := (&steered{Underlay: u.resolve, uplink: u}).Local()
	if !n.flat() && !local.Address.IsValid() {
		return "" // there is no tunnel whose headers had a length
	}
	room := local.MTU
	if !n.flat() {
		room -= vxlan.Overhead(local.Address)
	}
	if mtu <= room {
		return ""
	}
	return fmt.Sprintf("packets of more than %d bytes are dropped, since the MTU of uplink %s is %d now: raise that, or lower the network's from %d",
		room, u.config.Name, local.MTU, mtu)
}

// absent is the port of a link while there is no interface to send to. It receives nothing, and drops what it is to send.
type absent struct {
	counters *dataplane.Counters
	why      dataplane.Reason
}

// Receive implements dataplane.Port.
func (absent) Receive([]*frame.Frame, *frame.Pool) int { return 0 }

// Release implements dataplane.Port.
func (absent) Release() {}

// Transmit implements dataplane.Port.
func (a absent) Transmit(frames []*frame.Frame, _ *frame.Pool) {
	for _, f := range frames {
		if f != nil {
			a.counters.Drop(a.why, 1)
			a.why.Mark(f)
		}
	}
}

// Flush implements dataplane.Port.
func (absent) Flush() {}

// Arm implements dataplane.Port.
func (absent) Arm() time.Duration { return dataplane.Forever }

// Pending implements dataplane.Port.
func (absent) Pending() bool { return false }

// Disarm implements dataplane.Port.
func (absent) Disarm() {}

// Fault implements dataplane.Port.
func (absent) Fault(uintptr) bool { return false }
