package main

import (
	"log/slog"

	"github.com/shuntio/shunt/tools/control/config"
	"github.com/shuntio/shunt/vxlan"
	"github.com/shuntio/shunt/vxlan/underlay"
)

// What the XDP program is told, so that it steers to us what is ours: the uplink's own address here, as the underlay follows it;
// networks and stations where they are configured (network.go, port.go).

// steered is the uplink's resolver for the switch, which also tells the XDP program and the ports when the local end changes.
type steered struct {
	*underlay.Underlay
	engine *engine
	uplink *uplink
}

// Local implements vxlan.Resolver. A packet may have to fit one chunk, whatever more the interface could carry.
func (s *steered) Local() vxlan.Local {
	l := s.Underlay.Local()
	l.MTU = min(l.MTU, s.uplink.maxMTU())
	return l
}

// Notify implements vxlan.Resolver.
func (s *steered) Notify(changed func()) {
	s.Underlay.Notify(func() {
		s.engine.follow(s.uplink)
		changed()
		go s.engine.look(s.uplink) // what it does may wait for the resolver's goroutine, which this is
	})
}

// follow makes the XDP program and the ports know the uplink's own end as it is now.
func (e *engine) follow(u *uplink) {
	u.steer.Lock()
	defer u.steer.Unlock()
	if u.program == nil {
		return
	}
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

// Settle implements control.Engine.
func (e *engine) Settle(missing *config.Config) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, u := range e.uplinks {
		u.steer.Lock()
		u.complete, u.missing = true, nil
		for _, n := range missing.Networks {
			if n.Uplink == u.config.Name && n.VNI != 0 {
				u.missing = append(u.missing, n.VNI)
			}
		}
		u.settle(e.log)
		u.steer.Unlock()
	}
	if !e.swept {
		e.sweepStates(missing.Ports)
		e.swept = len(missing.Ports) == 0
	}
}

// settle lets the kernel have what a killed predecessor took and we do not: once the configuration is complete, but for what is still to come, and our
// own tunnel endpoint known, so that there is no gap in which the kernel would answer what is ours. With steer held.
func (u *uplink) settle(log *slog.Logger) {
	if !u.complete || u.program == nil || !u.vtep.IsValid() {
		return
	}
	if err := u.program.Settle(u.missing...); err != nil {
		log.Warn("cannot forget what an earlier shuntd steered", "uplink", u.config.Name, "reason", err)
	}
}
