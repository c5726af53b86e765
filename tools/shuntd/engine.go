package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"sync"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/shm"
	"github.com/shuntio/shunt/dataplane/xsk"
	"github.com/shuntio/shunt/pinning"
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
	log    *slog.Logger
	worker *dataplane.Worker
	cpu    int // -1: not pinned
	idle   config.Idle
	load   loadMeter
	ended  chan error // what Worker.Run returned, for the daemon
	done   chan struct{}
	untame func()

	memory *shm.Mapping
	umem   *xsk.UMEM
	fabric *vxlan.Switch

	mu       sync.Mutex
	uplinks  map[string]*uplink
	networks map[string]*network
	ports    map[string]*port

	taps taps
}

// memoryFrames is the daemon's frame memory: 64 MiB, locked. An uplink's queues take up to half of what is free to receive into (share), up
// to a ring full of 2048 each; its first queue has as many under way to be transmitted. With four queues that leaves 6144 for the vectors of
// ports, for bursts between them, and for another uplink.
const memoryFrames = 4 * 4096

// newEngine starts the worker.
func newEngine(c config.Workers, log *slog.Logger) (_ *engine, err error) {
	e := &engine{
		log: log, idle: c.Idle, cpu: -1, ended: make(chan error, 1), done: make(chan struct{}),
		uplinks: map[string]*uplink{}, networks: map[string]*network{}, ports: map[string]*port{},
	}
	if err := unsupported(c); err != nil {
		return nil, err
	}
	if e.cpu, err = workerCPU(c.CPUs); err != nil {
		return nil, err
	}
	if e.memory, err = shm.Map(shm.MapOptions{FD: -1, Length: memoryFrames * frame.ChunkSize, Huge: true, Populate: true}); err != nil {
		return nil, fmt.Errorf("frame memory: %w; it needs %d MiB", err, memoryFrames*frame.ChunkSize>>20)
	}
	memory, err := frame.NewMemory(e.memory.Bytes())
	if err != nil {
		return nil, err
	}
	pool, err := memory.NewPool(0, memory.Len())
	if err != nil {
		return nil, err
	}
	e.umem = xsk.NewUMEM(memory)
	e.worker, err = dataplane.NewWorker(dataplane.WorkerOptions{
		Pool: pool, Idle: idlePolicy(c.Idle), Start: func() error { return pinning.Apply(e.cpu) },
	})
	if err != nil {
		return nil, err
	}
	e.fabric = vxlan.NewSwitch([]*dataplane.Worker{e.worker}, vxlan.Options{})
	go e.run()
	e.load.start(e.worker)
	e.untame = tameCollector(e.load.busy)
	return e, nil
}

// run is the worker's thread. Only an error at its start ends it before Close.
func (e *engine) run() {
	defer close(e.done)
	if err := e.worker.Run(); err != nil {
		e.ended <- fmt.Errorf("worker on CPU %d: %w", e.cpu, err)
	}
}

// Ended implements daemon.Ender.
func (e *engine) Ended() <-chan error { return e.ended }

// workerCPU chooses the one worker's core.
func workerCPU(wish config.CPUs) (int, error) {
	host, err := pinning.Host()
	if err != nil {
		return -1, fmt.Errorf("read the CPU topology: %w", err)
	}
	cpus := []int(wish)
	if len(cpus) == 0 {
		cpus = host.Auto(pinning.AutoOptions{Max: 1})
	}
	if err := host.Check(cpus); err != nil {
		return -1, fmt.Errorf("workers.cpus: %w", err)
	}
	return cpus[0], nil
}

func idlePolicy(i config.Idle) dataplane.IdlePolicy {
	switch i {
	case config.IdlePoll:
		return dataplane.Poll
	case config.IdleInterrupt:
		return dataplane.Interrupt
	}
	return dataplane.Adaptive
}

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
	e.untame()
	e.load.stop()
	e.fabric.Close()
	e.worker.Stop()
	select {
	case <-e.done:
	case <-ctx.Done():
		return errors.Join(append(errs, fmt.Errorf("the worker did not stop: %w", ctx.Err()))...)
	}
	return errors.Join(append(errs, e.worker.Close(), e.memory.Free())...)
}

// link makes the worker poll a port's link, and wake when its file has something to say.
func (e *engine) link(l *dataplane.Link, fd int, events int16) {
	e.worker.Do(func() {
		e.worker.Add(l)
		if fd >= 0 {
			e.worker.Watch(fd, events, false)
		}
	})
}

// unlink is the reverse of link. Afterwards the worker has nothing of the link's port any more; what it still sends there is
// dropped and counted.
func (e *engine) unlink(l *dataplane.Link, fd int) {
	e.worker.Do(func() {
		if fd >= 0 {
			e.worker.Unwatch(fd)
		}
		e.worker.Remove(l)
		l.Port = absent{l.Counters}
	})
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
