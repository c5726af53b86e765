package drivertest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/blk/blktest"
	"github.com/shuntio/shunt/blk/file"
	"github.com/shuntio/shunt/blk/nbd"
	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/shm"
	"github.com/shuntio/shunt/dataplane/uring"
	"github.com/shuntio/shunt/dataplane/vhostuser"
	"golang.org/x/sys/unix"
)

// EngineOptions configure an Engine. Socket must be set, and File, NBD or Size.
type EngineOptions struct {
	Socket string
	// File is the image. Empty: Size bytes in memory; Null keeps none of them.
	File   string
	Direct bool
	// NBD is the URI of an export that the disk is instead.
	NBD  string
	Size uint64
	Null bool
	// Queues is how many the device offers, Workers how many threads they are shared out to. Zero: 1.
	Queues, Workers int
	// Idle is the workers' policy.
	Idle dataplane.IdlePolicy
	// Delay is how long requests to the one in memory take, and up to as much longer.
	Delay time.Duration
	// Policy is the volume's.
	Policy blk.Policy
	// Serial of the disk. Zero: "shunt".
	Serial string
}

// Engine is our own back-end without its daemon: workers with their rings, one volume, its device on a socket.
type Engine struct {
	Volume *blk.Volume
	Device *blk.Device
	// Store is the one in memory; nil: it is a file, or an export.
	Store *blktest.Store

	o       EngineOptions
	memory  *shm.Mapping
	workers []*dataplane.Worker
	rings   []*uring.Ring
	running sync.WaitGroup
	server  atomic.Pointer[vhostuser.Backend]
}

// StartEngine starts one.
func StartEngine(o EngineOptions) (_ *Engine, err error) {
	o.Queues, o.Workers = max(o.Queues, 1), max(o.Workers, 1)
	if o.Serial == "" {
		o.Serial = "shunt"
	}
	e := &Engine{o: o}
	defer func() {
		if err != nil {
			_ = e.Close()
		}
	}()
	if err := e.work(); err != nil {
		return nil, err
	}
	if e.Volume, err = blk.OpenVolume(blk.VolumeOptions{Name: "disk", Serial: o.Serial, Policy: o.Policy, Open: e.open}); err != nil {
		return nil, err
	}
	d := blk.DeviceOptions{Volume: e.Volume, ConfigChanged: e.configChanged}
	for i := range o.Queues {
		d.Queues = append(d.Queues, blk.Host{Worker: e.workers[i%o.Workers], Ring: e.rings[i%o.Workers]})
	}
	if e.Device, err = blk.NewDevice(d); err != nil {
		return nil, err
	}
	e.Device.Start()
	server, err := vhostuser.Listen(vhostuser.Options{Path: o.Socket, Log: slog.New(slog.DiscardHandler)}, e.Device)
	if err == nil {
		e.server.Store(server)
	}
	return e, err
}

func (e *Engine) configChanged() {
	if s := e.server.Load(); s != nil {
		s.ConfigChanged()
	}
}

// startLimit is how long a worker may take to begin.
const startLimit = 10 * time.Second

// frames that a worker must have, though no frame comes here.
const frames = 64

// work starts the workers, each with its ring.
func (e *Engine) work() (err error) {
	n := e.o.Workers
	if e.memory, err = shm.Map(shm.MapOptions{FD: -1, Length: n * frames * frame.ChunkSize}); err != nil {
		return err
	}
	memory, err := frame.NewMemory(e.memory.Bytes())
	if err != nil {
		return err
	}
	for i := range n {
		pool, err := memory.NewPool(i*frames, frames)
		if err != nil {
			return err
		}
		ring, err := uring.Open(uring.Options{})
		if err != nil {
			return err
		}
		e.rings = append(e.rings, ring)
		w, err := dataplane.NewWorker(dataplane.WorkerOptions{Pool: pool, Index: i, Idle: e.o.Idle, Start: ring.Enable})
		if err != nil {
			return err
		}
		w.Watch(ring.FD(), unix.POLLIN, true)
		e.workers = append(e.workers, w)
	}
	if err := dataplane.Connect(e.workers); err != nil {
		return err
	}
	for i, w := range e.workers {
		w.Do(func() { w.Add(e.rings[i]) })
		e.running.Go(func() {
			if err := w.Run(); err != nil {
				fmt.Fprintln(os.Stderr, "drivertest: worker:", err)
			}
		})
		for end := time.Now().Add(startLimit); w.Stats().Rounds.Load() == 0 && time.Now().Before(end); { // until it runs, Do is done here, where its ring is not
			time.Sleep(50 * time.Microsecond)
		}
	}
	return nil
}

func (e *Engine) open(w blk.Watcher) (blk.Store, error) {
	if e.o.NBD != "" {
		return nbd.Open(context.Background(), nbd.Options{URI: e.o.NBD, Watcher: w})
	}
	if e.o.File == "" {
		e.Store = blktest.New(blktest.Options{Size: e.o.Size, Null: e.o.Null, Delay: e.o.Delay, Jitter: e.o.Delay, Watcher: w})
		return e.Store, nil
	}
	return file.Open(e.o.File, file.Options{Direct: e.o.Direct})
}

// Socket is where its device is.
func (e *Engine) Socket() string { return e.o.Socket }

// Workers are the threads, for who measures or changes them.
func (e *Engine) Workers() []*dataplane.Worker { return e.workers }

// Rings are theirs.
func (e *Engine) Rings() []*uring.Ring { return e.rings }

// Close ends it in order.
func (e *Engine) Close() error {
	var errs []error
	if s := e.server.Load(); s != nil {
		errs = append(errs, s.Close())
	}
	if e.Device != nil {
		errs = append(errs, e.Device.Close())
	}
	if e.Volume != nil {
		errs = append(errs, e.Volume.Close())
	}
	for i, w := range e.workers {
		w.Do(func() { w.Remove(e.rings[i]); errs = append(errs, e.rings[i].Close()) })
		w.Stop()
	}
	e.running.Wait()
	for _, w := range e.workers {
		errs = append(errs, w.Close())
	}
	if e.memory != nil {
		errs = append(errs, e.memory.Free())
	}
	return errors.Join(errs...)
}
