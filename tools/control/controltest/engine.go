// Package controltest has an Engine that moves no packet. It keeps what it is told in maps, holds the controller to the
// order that the Engine interface promises, and fails where a test wants it to.
package controltest

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/config"
	"github.com/shuntio/shunt/vxlan/acl"
)

// Engine is a fake. Its fields may be set before it is used; its methods may be called by many goroutines.
type Engine struct {
	// Fail decides about a call that would change something, by the method's and the object's name; nil lets all succeed.
	Fail func(method, name string) error
	// Report, Counters, Hits and Table are what Status, Stats, ACLHits and FDB answer. When nil the answers are made of what the engine
	// holds, with zero counters and empty tables.
	Report   func() control.EngineStatus
	Counters func() control.Stats
	Hits     func(port string) acl.Hits
	Table    func(network string) ([]control.FDBEntry, error)
	// Store is what the store of a source is, or why it is not to be had; nil: one of 1 GiB. Exports is what its server has to offer.
	Store   func(s config.VolumeSource) (control.StoreStatus, error)
	Exports []control.VolumeExport
	// Capturer makes captures; nil: of nothing, so that their stream is empty.
	Capturer func(control.CaptureOptions) (control.Capture, error)

	mu       sync.Mutex
	uplinks  map[string]config.Uplink
	networks map[string]config.Network
	ports    map[string]config.Port
	groups   map[string]config.VolumeGroup
	volumes  map[string]config.Volume
	calls    []string
	broken   []string
	closed   bool
	begun    bool
	missing  *config.Config
}

// Held returns what the engine holds, by name. Workers and control are left empty.
func (e *Engine) Held() (map[string]config.Uplink, map[string]config.Network, map[string]config.Port) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return maps.Clone(e.uplinks), maps.Clone(e.networks), maps.Clone(e.ports)
}

// Calls returns the calls made since the last time, as "AddPort vm1", or "RemovePort vm1 for now" where its socket is served again.
func (e *Engine) Calls() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	calls := e.calls
	e.calls = nil
	return calls
}

// Broken returns every breach of the order that the interface promises.
func (e *Engine) Broken() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.broken)
}

// Closed reports whether Close was called.
func (e *Engine) Closed() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.closed
}

// change runs one changing call: noted, judged, and done unless it is to fail.
func (e *Engine) change(ctx context.Context, method, name string, judge func() string, do func()) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.uplinks == nil {
		e.uplinks, e.networks, e.ports = map[string]config.Uplink{}, map[string]config.Network{}, map[string]config.Port{}
		e.groups, e.volumes = map[string]config.VolumeGroup{}, map[string]config.Volume{}
	}
	call := method + " " + name
	e.calls = append(e.calls, call)
	if _, bounded := ctx.Deadline(); !bounded {
		e.broken = append(e.broken, call+": without a deadline")
	}
	if e.closed {
		e.broken = append(e.broken, call+": after Close")
	}
	if why := judge(); why != "" {
		e.broken = append(e.broken, call+": "+why)
	}
	if e.Fail != nil {
		if err := e.Fail(method, name); err != nil {
			return err
		}
	}
	do()
	return nil
}

// exists judges by one condition whether an object is there as it must be.
func exists[T any](objects map[string]T, name string, want bool) string {
	if _, ok := objects[name]; ok != want {
		return fmt.Sprintf("is there: %v", ok)
	}
	return ""
}

// AddUplink implements control.Engine.
func (e *Engine) AddUplink(ctx context.Context, u config.Uplink) error {
	return e.change(ctx, "AddUplink", u.Name, func() string {
		if why := e.holder(u.VhostUser, u.Interface, ""); why != "" {
			return why
		}
		return exists(e.uplinks, u.Name, false)
	}, func() { e.uplinks[u.Name] = u })
}

// RemoveUplink implements control.Engine.
func (e *Engine) RemoveUplink(ctx context.Context, name string) error {
	return e.change(ctx, "RemoveUplink", name, func() string {
		for _, n := range e.networks {
			if n.Uplink == name {
				return "still used by network " + n.Name
			}
		}
		return exists(e.uplinks, name, true)
	}, func() { delete(e.uplinks, name) })
}

// Begin implements control.Engine.
func (e *Engine) Begin() { e.enclose("Begin", true) }

// End implements control.Engine.
func (e *Engine) End() { e.enclose("End", false) }

func (e *Engine) enclose(method string, begun bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.begun == begun {
		e.broken = append(e.broken, method+": twice")
	}
	e.begun = begun
}

// Settle implements control.Engine.
func (e *Engine) Settle(missing *config.Config) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.begun || e.closed {
		e.broken = append(e.broken, "Settle: in the midst of a change, or after Close")
	}
	c := *missing
	e.missing = &c
}

// Missing returns what Settle was told last; nil: it was not called.
func (e *Engine) Missing() *config.Config {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.missing
}

// AddNetwork implements control.Engine.
func (e *Engine) AddNetwork(ctx context.Context, n config.Network) error {
	return e.setNetwork(ctx, "AddNetwork", n, false)
}

// UpdateNetwork implements control.Engine.
func (e *Engine) UpdateNetwork(ctx context.Context, n config.Network) error {
	return e.setNetwork(ctx, "UpdateNetwork", n, true)
}

func (e *Engine) setNetwork(ctx context.Context, method string, n config.Network, there bool) error {
	return e.change(ctx, method, n.Name, func() string {
		for _, o := range e.networks {
			if o.Name != n.Name && n.Uplink != "" && o.Uplink == n.Uplink && o.VNI == n.VNI {
				return "VNI of network " + o.Name
			}
		}
		if n.Uplink != "" && exists(e.uplinks, n.Uplink, true) != "" {
			return "no uplink " + n.Uplink
		}
		return exists(e.networks, n.Name, there)
	}, func() { e.networks[n.Name] = n })
}

// RemoveNetwork implements control.Engine.
func (e *Engine) RemoveNetwork(ctx context.Context, name string) error {
	return e.change(ctx, "RemoveNetwork", name, func() string {
		for _, p := range e.ports {
			if p.Network == name {
				return "still used by port " + p.Name
			}
		}
		return exists(e.networks, name, true)
	}, func() { delete(e.networks, name) })
}

// AddPort implements control.Engine.
func (e *Engine) AddPort(ctx context.Context, p config.Port) error {
	return e.setPort(ctx, "AddPort", p, false)
}

// UpdatePort implements control.Engine.
func (e *Engine) UpdatePort(ctx context.Context, p config.Port) error {
	return e.setPort(ctx, "UpdatePort", p, true)
}

func (e *Engine) setPort(ctx context.Context, method string, p config.Port, there bool) error {
	return e.change(ctx, method, p.Name, func() string {
		for _, o := range e.ports {
			if o.Name != p.Name && !p.MAC.IsZero() && o.MAC == p.MAC && o.Network == p.Network {
				return "MAC address of port " + o.Name
			}
		}
		if why := e.holder(p.Socket, p.Interface, p.Name); why != "" {
			return why
		}
		if exists(e.networks, p.Network, true) != "" {
			return "no network " + p.Network
		}
		if was := e.ports[p.Name]; there && control.Replaces(was, p) {
			return "cannot be updated"
		}
		return exists(e.ports, p.Name, there)
	}, func() { e.ports[p.Name] = p })
}

// holder says who has a socket or an interface already.
func (e *Engine) holder(socket, device, port string) string {
	for _, o := range e.uplinks {
		if socket != "" && o.VhostUser == socket || device != "" && o.Interface == device {
			return "held by uplink " + o.Name
		}
	}
	for _, o := range e.ports {
		if o.Name != port && (socket != "" && o.Socket == socket || device != "" && o.Interface == device) {
			return "held by port " + o.Name
		}
	}
	for _, o := range e.volumes {
		if socket != "" && o.Socket == socket {
			return "held by volume " + o.Name
		}
	}
	return ""
}

// RemovePorts implements control.Engine.
func (e *Engine) RemovePorts(ctx context.Context, names []string, again []bool) []error {
	errs := make([]error, len(names))
	for i, name := range names {
		errs[i] = e.removePort(ctx, name, again[i])
	}
	return errs
}

func (e *Engine) removePort(ctx context.Context, name string, again bool) error {
	return e.change(ctx, "RemovePort", name, func() string { return exists(e.ports, name, true) },
		func() {
			if delete(e.ports, name); again {
				e.calls[len(e.calls)-1] += " for now"
			}
		})
}

// Status implements control.Engine.
func (e *Engine) Status() control.EngineStatus {
	if e.Report != nil {
		return e.Report()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	s := control.EngineStatus{Workers: []control.WorkerStatus{{CPU: 1, Idle: config.IdleAdaptive}}}
	for _, u := range e.uplinks {
		s.Uplinks = append(s.Uplinks, control.UplinkStatus{Name: u.Name, Interface: u.Interface, VhostUser: u.VhostUser,
			State: control.StateUp, XDP: "generic", Bind: "copy", Queues: 1, Address: u.Address, MTU: 1500})
	}
	members := map[string]int{}
	for _, p := range e.ports {
		members[p.Network]++
		s.Ports = append(s.Ports, control.PortStatus{Name: p.Name, Network: p.Network, Socket: p.Socket,
			State: control.StateDisconnected, MAC: p.MAC})
	}
	for _, v := range e.volumes {
		s.Volumes = append(s.Volumes, volumeStatus(v))
	}
	for _, n := range e.networks {
		s.Networks = append(s.Networks, control.NetworkStatus{Name: n.Name, VNI: n.VNI, Uplink: n.Uplink, MTU: n.MTU,
			Learning: n.Learning, Ports: members[n.Name], Static: len(n.Entries)})
	}
	return s
}

// Stats implements control.Engine.
func (e *Engine) Stats() control.Stats {
	if e.Counters != nil {
		return e.Counters()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	s := control.Stats{At: time.Now()}
	for name := range e.uplinks {
		s.Objects = append(s.Objects, control.ObjectStats{Kind: control.KindUplink, Name: name})
	}
	for name := range e.ports {
		s.Objects = append(s.Objects, control.ObjectStats{Kind: control.KindPort, Name: name})
	}
	for name := range e.volumes {
		s.Objects = append(s.Objects, control.ObjectStats{Kind: control.KindVolume, Name: name, Volume: &control.VolumeStats{}})
	}
	return s
}

// ACLHits implements control.Engine.
func (e *Engine) ACLHits(port string) (*acl.Policy, acl.Hits, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	p, ok := e.ports[port]
	switch {
	case !ok:
		return nil, acl.Hits{}, fmt.Errorf("port %s: %w", port, control.ErrNotFound)
	case p.ACL == nil:
		return nil, acl.Hits{}, nil
	case e.Hits != nil:
		return p.ACL, e.Hits(port), nil
	}
	return p.ACL, acl.Hits{Rules: make([]uint64, len(p.ACL.Rules))}, nil
}

// FDB implements control.Engine.
func (e *Engine) FDB(network string) ([]control.FDBEntry, error) {
	if e.Table != nil {
		return e.Table(network)
	}
	return []control.FDBEntry{}, nil
}

// Capture implements control.Engine.
func (e *Engine) Capture(o control.CaptureOptions) (control.Capture, error) {
	if e.Capturer != nil {
		return e.Capturer(o)
	}
	return nothing{}, nil
}

type nothing struct{}

func (nothing) Run(ctx context.Context, _ io.Writer) error { <-ctx.Done(); return nil }
func (nothing) Counters() control.CaptureCounters          { return control.CaptureCounters{} }

// Close implements control.Engine.
func (e *Engine) Close(context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		e.broken = append(e.broken, "Close: twice")
	}
	e.closed = true
	return nil
}
