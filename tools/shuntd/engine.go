package main

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/shuntio/shunt/blk"
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
//	volume  ─▶ store, blk.Volume, device, vhost-user socket        (volume.go, store.go)
//
// The controller calls the methods that change something one at a time; mu keeps those that report away from them.
type engine struct {
	log     *slog.Logger
	name    string // who we are among the daemons of this host: the path of the control socket
	workers []*worker
	idle    config.Idle
	ended   chan error // what a worker's Run returned, for the daemon
	untame  func()
	unwatch chan struct{} // ends what follows the host's interfaces
	news    chan struct{} // has a token when one came up
	swept   bool          // of an earlier life's files there are none that nobody has

	closing   chan struct{}  // ends those that linger
	lingering sync.WaitGroup // volumes that were removed and cannot be closed yet

	memory *shm.Mapping
	umem   *xsk.UMEM
	fabric *vxlan.Switch

	mu       sync.Mutex
	uplinks  map[string]*uplink
	networks map[string]*network
	ports    map[string]*port
	groups   map[string]*volumeGroup
	volumes  map[string]*volume

	stores func(context.Context, storeOptions) (blk.Store, error) // openStore
	vain   time.Time                                              // when AddVolume last left before its store was open
	vainly map[string]bool                                        // interfaces that could not be added; guarded by mu
	lapsed map[string]bool                                        // servers that are out of sight, since AddVolume failed, by source; the controller's
	rings  sync.Mutex                                             // held while one is opened
	others []int                                                  // cores that we may use and no worker runs on
	files  int                                                    // that a worker's io_uring has places for

	taps taps
}

// newEngine starts the workers, or leaves nothing behind.
func newEngine(c config.Workers, log *slog.Logger) (_ *engine, err error) {
	e := &engine{
		log: log, idle: c.Idle, ended: make(chan error, 1), news: make(chan struct{}, 1), lapsed: map[string]bool{}, vainly: map[string]bool{},
		uplinks: map[string]*uplink{}, networks: map[string]*network{}, ports: map[string]*port{},
		groups: map[string]*volumeGroup{}, volumes: map[string]*volume{}, stores: openStore, files: mostFiles(), closing: make(chan struct{}),
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.release(context.Background()))
		}
	}()
	if err = e.makeWorkers(c); err != nil {
		return nil, err
	}
	e.unwatch = make(chan struct{})
	if err = e.watchVeths(e.unwatch); err != nil {
		return nil, err
	}
	e.startWorkers()
	e.untame = tameCollector(heapLimit, e.busiest)
	return e, nil
}

// Begin implements control.Engine.
func (e *engine) Begin() { e.fabric.Hold() }

// End implements control.Engine.
func (e *engine) End() { e.fabric.Release() }

// Ended implements daemon.Ender.
func (e *engine) Ended() <-chan error { return e.ended }

// Close implements control.Engine.
func (e *engine) Close(ctx context.Context) error {
	close(e.closing)
	errs := e.removeAll(ctx)
	e.lingering.Wait()
	return errors.Join(append(errs, e.release(ctx))...)
}

// release gives back what newEngine took, as far as it came.
func (e *engine) release(ctx context.Context) error {
	if e.unwatch != nil {
		close(e.unwatch)
	}
	if e.untame != nil {
		e.untame()
	}
	if e.fabric != nil {
		e.fabric.Close()
	}
	if err := e.stopWorkers(ctx); err != nil {
		return err // a worker may still be looking at the memory
	}
	if e.memory == nil {
		return nil
	}
	return e.memory.Free()
}

// removeAll takes everything out of service. What ports keep for those who serve their guests next stays.
func (e *engine) removeAll(ctx context.Context) (errs []error) {
	errs = endAll(ctx, e.takeVolumes())
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, p := range e.ports {
		errs = append(errs, e.haltPort(p))
	}
	errs = append(errs, e.dropPorts(slices.Collect(maps.Values(e.ports))))
	for name, n := range e.networks {
		delete(e.networks, name)
		errs = append(errs, e.fabric.RemoveNetwork(name), e.unsteer(n))
	}
	for name, u := range e.uplinks {
		delete(e.uplinks, name)
		errs = append(errs, e.fabric.RemoveUplink(name), e.closeUplink(u))
	}
	return errs
}

// takeVolumes forgets all volumes and returns them.
func (e *engine) takeVolumes() []*volume {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := slices.Collect(maps.Values(e.volumes))
	e.volumes = map[string]*volume{}
	return all
}

// left logs what of an object could not be given back when it was changed or removed. It is so all the same, and nobody can call again for the rest.
func (e *engine) left(kind, name string, err error) {
	if err != nil {
		e.log.Warn("changed as configured, but something of what was before is left", "kind", kind, "name", name, "reason", err)
	}
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
var ownName = regexp.MustCompile(`^(uplink|network|port|volume) \S+: `)

type refusal struct {
	sentence string
	causes   []error
}

func (r *refusal) Error() string   { return r.sentence }
func (r *refusal) Unwrap() []error { return r.causes }
