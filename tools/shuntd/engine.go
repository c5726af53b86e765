package main

import (
	"context"
	"errors"
	"log/slog"
	"regexp"
	"sync"

	"github.com/shuntio/shunt/dataplane/shm"
	"github.com/shuntio/shunt/dataplane/xsk"
	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/config"
	"github.com/shuntio/shunt/vxlan"
)

// engine wires the configuration's objects to the packages that move packets:
//
//	uplink  ─▶ bpf program, an xsk port for each queue, underlay   (uplink.go)
//	network ─▶ vxlan.Switch, the VNI in the program                (network.go)
//	port    ─▶ vnet port, vhost-user socket, vxlan.Switch          (port.go)
//
// The controller calls the methods that change something one at a time; mu keeps those that report away from them.
type engine struct {
	log     *slog.Logger
	workers []*worker
	idle    config.Idle
	ended   chan error // what a worker's Run returned, for the daemon
	untame  func()
	unwatch chan struct{} // ends what follows the host's interfaces

	memory *shm.Mapping
	umem   *xsk.UMEM
	fabric *vxlan.Switch

	mu       sync.Mutex
	uplinks  map[string]*uplink
	networks map[string]*network
	ports    map[string]*port

	taps taps
}

// newEngine starts the workers.
func newEngine(c config.Workers, log *slog.Logger) (_ *engine, err error) {
	e := &engine{
		log: log, idle: c.Idle, ended: make(chan error, 1),
		uplinks: map[string]*uplink{}, networks: map[string]*network{}, ports: map[string]*port{},
	}
	if err := e.startWorkers(c); err != nil {
		return nil, err
	}
	e.untame = tameCollector(e.busiest)
	e.unwatch = make(chan struct{})
	return e, e.watchVeths(e.unwatch)
}

// Ended implements daemon.Ender.
func (e *engine) Ended() <-chan error { return e.ended }

// Close implements control.Engine.
func (e *engine) Close(ctx context.Context) error {
	var errs []error
	for name := range e.ports {
		errs = append(errs, e.RemovePort(ctx, name))
	}
	for name := range e.networks {
		errs = append(errs, e.RemoveNetwork(ctx, name))
	}
	for name := range e.uplinks {
		errs = append(errs, e.RemoveUplink(ctx, name))
	}
	close(e.unwatch)
	e.untame()
	e.fabric.Close()
	if err := e.stopWorkers(ctx); err != nil {
		return errors.Join(append(errs, err)...) // which may still be looking at the memory
	}
	return errors.Join(append(errs, e.memory.Free())...)
}

// refused makes the controller's of a part's error. The controller puts the object's kind and name in front, so they go where the
// part names it, too; kinds are those that say that something stands in the way.
func refused(err error, kinds ...error) error {
	r := &refusal{sentence: err.Error(), causes: []error{err}}
	if named := ownName.FindString(r.sentence); named != "" {
		r.sentence = r.sentence[len(named):]
	}
	for _, kind := range kinds {
		if errors.Is(err, kind) {
			r.causes = append(r.causes, control.ErrConflict)
			break
		}
	}
	return r
}

// ownName is how package vxlan begins its errors.
var ownName = regexp.MustCompile(`^(uplink|network|port) \S+: `)

type refusal struct {
	sentence string
	causes   []error
}

func (r *refusal) Error() string   { return r.sentence }
func (r *refusal) Unwrap() []error { return r.causes }
