package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"time"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/shm"
	"github.com/shuntio/shunt/dataplane/uring"
	"github.com/shuntio/shunt/dataplane/xsk"
	"github.com/shuntio/shunt/pinning"
	"github.com/shuntio/shunt/tools/control/config"
	"github.com/shuntio/shunt/vxlan"
	"golang.org/x/sys/unix"
)

// worker is a polling thread with the core it is pinned to.
type worker struct {
	*dataplane.Worker
	cpu    int
	frames int // that are at home here
	load   loadMeter
	ring   *uring.Ring   // nil: not needed yet; guarded by engine.rings
	done   chan struct{} // closed when Run has returned; nil: it was not called
	closed error         // what went wrong with the ring then
}

// How many frames the daemon has: 64 MiB for the first worker, 32 MiB for each further one, all locked. Each worker is home to an equal share. An
// uplink's queues take up to half of what is free at their worker to receive into (share), up to a ring full of 2048 each, and its own queue has as many
// under way to be transmitted. The rest is for the vectors of ports, for bursts between them, and for another uplink.
const (
	firstFrames   = 4 * 4096
	furtherFrames = 2 * 4096
)

// makeWorkers makes the frame memory and a worker for each core.
func (e *engine) makeWorkers(c config.Workers) error {
	cpus, others, err := workerCPUs(c.CPUs, e.log)
	if err != nil {
		return err
	}
	e.others = others
	makeRoom(len(cpus))
	n := firstFrames + (len(cpus)-1)*furtherFrames
	memory, err := e.mapMemory(n, c.HugePages)
	if err != nil {
		return err
	}
	var workers []*dataplane.Worker
	for i, cpu := range cpus {
		pool, err := memory.NewPool(i*(n/len(cpus)), n/len(cpus))
		if err != nil {
			return err
		}
		w := &worker{cpu: cpu, frames: n / len(cpus)}
		w.Worker, err = dataplane.NewWorker(dataplane.WorkerOptions{
			Index: i, Pool: pool, Idle: idlePolicy(c.Idle), Start: func() error { return pinning.Apply(cpu) },
		})
		if err != nil {
			return err
		}
		e.workers = append(e.workers, w)
		workers = append(workers, w.Worker)
	}
	if err := dataplane.Connect(workers); err != nil {
		return err
	}
	e.umem = xsk.NewUMEM(memory)
	e.fabric = vxlan.NewSwitch(workers, vxlan.Options{})
	return nil
}

// startWorkers starts the workers' threads, and returns when they have made a round or failed. Before, Do would run on the caller's thread, which is the wrong one
// for a worker's io_uring.
func (e *engine) startWorkers() {
	for _, w := range e.workers {
		w.done = make(chan struct{})
		go e.run(w)
		w.load.start(w.Worker)
	}
	for _, w := range e.workers {
		w.begun()
	}
}

// begun waits for the worker's first round, or its end.
func (w *worker) begun() {
	for w.Stats().Rounds.Load() == 0 {
		select {
		case <-w.done:
			return
		case <-time.After(100 * time.Microsecond):
		}
	}
}

// makeRoom lets Go run all workers at once, and the control side and the collector beside them. The daemon does so for workers that the configuration
// names; how many there are of their own choice is known only here.
func makeRoom(workers int) {
	const others = 2
	if n := workers + others; n > runtime.GOMAXPROCS(0) {
		runtime.GOMAXPROCS(n)
	}
}

// mapMemory maps the frame memory, on huge pages where there are any.
func (e *engine) mapMemory(frames int, wish config.Toggle) (_ *frame.Memory, err error) {
	length := frames * frame.ChunkSize
	huge := wish != config.ToggleOff && !xsk.Masked("huge-pages")
	if e.memory, err = shm.Map(shm.MapOptions{FD: -1, Length: length, Huge: huge, Populate: true}); err != nil {
		return nil, fmt.Errorf("frame memory: %w; it needs %d MiB", err, length>>20)
	}
	if wish == config.ToggleOn && !e.memory.Huge() {
		return nil, fmt.Errorf("workers.huge-pages: there are not %d MiB of them: raise vm.nr_hugepages, or set it to auto", length>>20)
	}
	return frame.NewMemory(e.memory.Bytes())
}

// run is the worker's thread, which alone may close its ring. Only an error at its start ends it before Close.
func (e *engine) run(w *worker) {
	defer close(w.done)
	err := w.Run()
	if w.ring != nil {
		w.closed = w.ring.Close()
	}
	if err != nil {
		select {
		case e.ended <- fmt.Errorf("worker %d on CPU %d: %w", w.Index(), w.cpu, err):
		default: // one is enough
		}
	}
}

// stopWorkers ends the workers' threads, and frees what they held.
func (e *engine) stopWorkers(ctx context.Context) error {
	var errs []error
	for _, w := range e.workers {
		if w.done == nil {
			errs = append(errs, w.Close())
			continue
		}
		w.load.stop()
		w.Stop()
	}
	for _, w := range e.workers {
		if w.done == nil {
			continue
		}
		select {
		case <-w.done:
			errs = append(errs, w.closed, w.Close())
		case <-ctx.Done():
			errs = append(errs, fmt.Errorf("worker %d did not stop: %w", w.Index(), ctx.Err()))
		}
	}
	return errors.Join(errs...)
}

// grace returns when every worker has ended the round it was in.
func (e *engine) grace() {
	for _, w := range e.workers {
		w.Do(func() {})
	}
}

// busiest is the share of the last second in which the worker that had most to do was busy.
func (e *engine) busiest() (share float64) {
	for _, w := range e.workers {
		share = max(share, w.load.busy())
	}
	return share
}

// workerCPUs chooses the workers' cores, and tells which others this process may use.
func workerCPUs(wish config.CPUs, log *slog.Logger) (cpus, others []int, err error) {
	host, err := pinning.Host()
	if err != nil {
		return nil, nil, fmt.Errorf("read the CPU topology: %w", err)
	}
	cpus = wish
	if len(cpus) == 0 {
		cpus = host.Auto(pinning.AutoOptions{Max: maxWorkers})
	}
	if err := host.Check(cpus); err != nil {
		return nil, nil, fmt.Errorf("workers.cpus: %w", err)
	}
	for _, siblings := range host.SharedCores(cpus) {
		log.Warn("workers share a physical core, and slow each other down", "cpus", siblings)
	}
	for _, c := range host.CPUs {
		if c.Allowed && !c.Isolated && !slices.Contains(cpus, c.ID) {
			others = append(others, c.ID)
		}
	}
	return cpus, others, nil
}

// maxWorkers is as many as an uplink's XDP program steers to.
const maxWorkers = 64

func idlePolicy(i config.Idle) dataplane.IdlePolicy {
	switch i {
	case config.IdlePoll:
		return dataplane.Poll
	case config.IdleInterrupt:
		return dataplane.Interrupt
	}
	return dataplane.Adaptive
}

// link makes a worker poll a port's link.
func (w *worker) link(l *dataplane.Link) { w.Do(func() { w.Add(l) }) }

// unlink is the reverse of link. Afterwards the worker has nothing of the link's port any more; what is still sent there is
// dropped and counted.
func (w *worker) unlink(l *dataplane.Link) {
	w.Do(func() {
		if l.Owner() == w.Worker {
			w.Remove(l)
		}
	})
}

// plug puts a port behind a link, and lets its file wake the worker.
func (w *worker) plug(l *dataplane.Link, p dataplane.Port, fd int) {
	w.Do(func() {
		l.Port = p
		w.WatchFor(l, fd, unix.POLLIN, false)
	})
}

// unplug is the reverse of plug: what is sent to the link from now on is dropped for a reason.
func (w *worker) unplug(l *dataplane.Link, fd int, why dataplane.Reason) {
	w.Do(func() {
		w.Unwatch(fd)
		l.Port = absent{l.Counters, why}
	})
}

// place chooses the workers of a port's queue pairs: those the configuration names, one after the other, or those that have fewest pairs.
func (e *engine) place(pairs int, wish []int) ([]*worker, error) {
	for _, i := range wish {
		if i < 0 || i >= len(e.workers) {
			return nil, fmt.Errorf("workers: %d is not one of the %d there are, numbered from 0", i, len(e.workers))
		}
	}
	load := e.load()
	places := make([]*worker, pairs)
	for i := range places {
		at := 0
		if len(wish) > 0 {
			at = wish[i%len(wish)]
		} else {
			at = slices.Index(load, slices.Min(load))
		}
		load[at]++
		places[i] = e.workers[at]
	}
	return places, nil
}

// load is how many queues of guests each worker has.
func (e *engine) load() []int {
	load := make([]int, len(e.workers))
	for _, p := range e.ports {
		for _, pair := range p.pairs {
			load[pair.worker.Index()]++
		}
	}
	for _, v := range e.volumes {
		for _, w := range v.places {
			load[w.Index()]++
		}
	}
	return load
}
