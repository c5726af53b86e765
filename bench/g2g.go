package bench

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/shm"
	"github.com/shuntio/shunt/dataplane/vnet"
	"github.com/shuntio/shunt/dataplane/vnet/vnettest"
	"github.com/shuntio/shunt/dataplane/wire"
	"github.com/shuntio/shunt/pinning"
	"github.com/shuntio/shunt/vxlan"
	"golang.org/x/sys/unix"
)

// GuestToGuestOptions configure GuestToGuest; zero values are good.
type GuestToGuestOptions struct {
	// FrameLen is the length of each frame in bytes. Zero: 64.
	FrameLen int
	// Duration of the measurement. Zero: 2 s.
	Duration time.Duration
	// Both sends in both directions; else only from the first guest to the second.
	Both bool
	// Packed and InOrder are what the guests' drivers accept beside the usual: packed rings, chains used in order.
	Packed, InOrder bool
	// QueueSize of each virtqueue. Zero: 1024.
	QueueSize int
	// WorkerCPU and GuestCPU are where worker and load generator run.
	WorkerCPU, GuestCPU int
	// Collections is how many garbage collections are forced meanwhile, spread evenly.
	Collections int
}

// GuestToGuestResult is what was measured.
type GuestToGuestResult struct {
	// Mpps is the rate of frames that arrived, in millions per second; BusyNanos what each cost the worker.
	Mpps, BusyNanos float64
	// Quartile is the rate that the best quarter of windows of 100 ms reached, in Mpps: what the engine does when it has its CPUs.
	Quartile float64
	// Offered, Delivered and Dropped account for every frame.
	Offered, Delivered, Dropped uint64
	// Pauses are the garbage collector's, while worker and generator spun.
	Pauses Pauses
}

// features are what the guests' drivers accept.
func (o *GuestToGuestOptions) features() (all uint64) {
	all = vnet.FeatureVersion1 | vnet.FeatureMrgRxbuf
	if o.Packed {
		all |= vnet.FeaturePacked
	}
	if o.InOrder {
		all |= vnet.FeatureInOrder
	}
	return all
}

// GuestToGuest moves frames between two guests over one worker as fast as it goes. The generator, one pinned thread, is the driver's side of both
// guests.
func GuestToGuest(ctx context.Context, o GuestToGuestOptions) (*GuestToGuestResult, error) {
	o.FrameLen = defaulted(o.FrameLen, 64)
	o.QueueSize = defaulted(o.QueueSize, 1024)
	o.Duration = defaulted(o.Duration, 2*time.Second)
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(max(4, runtime.GOMAXPROCS(0)))) // two spinning threads, and room for the collector
	engine, err := newEngine(o.WorkerCPU, dataplane.Poll)
	if err != nil {
		return nil, err
	}
	defer engine.close()
	var guests [2]*vnettest.Guest
	var links [2]*dataplane.Link
	for i := range guests {
		if guests[i], err = vnettest.New(vnettest.Options{QueueSize: o.QueueSize, Features: o.features()}); err != nil {
			return nil, err
		}
		defer guests[i].Close()
		if links[i], err = engine.open(guests[i]); err != nil {
			return nil, err
		}
	}
	fabric, err := engine.network(links)
	if err != nil {
		return nil, err
	}
	defer fabric.Close()
	for _, l := range links {
		engine.add(l)
	}
	for i, g := range guests {
		g.Prepare(make([]byte, o.FrameLen), func(_ int, f []byte) {
			wire.Ethernet(f).Set(stationMAC(1-i), stationMAC(i), experimental)
		})
	}
	senders := guests[:1]
	if o.Both {
		senders = guests[:]
	}
	engine.start()
	return engine.measure(ctx, o, guests, senders)
}

// measure runs the generator for a while, and counts.
func (e *engine) measure(ctx context.Context, o GuestToGuestOptions, guests [2]*vnettest.Guest, senders []*vnettest.Guest) (*GuestToGuestResult, error) {
	var stop atomic.Bool
	var done sync.WaitGroup
	var failed error
	done.Add(1)
	go func() {
		defer done.Done()
		failed = generate(&stop, o, guests, senders)
	}()
	time.Sleep(200 * time.Millisecond) // caches, branch predictors, frequency
	received := func() uint64 { return atomic.LoadUint64(&guests[0].Received) + atomic.LoadUint64(&guests[1].Received) }
	stats := e.worker.Stats()
	began, n0, busy0 := time.Now(), received(), stats.BusyNanos.Load()
	windows := rates(received)
	pauses := collectMeanwhile(ctx, o.Collections, o.Duration)
	elapsed, n1, busy1 := time.Since(began), received(), stats.BusyNanos.Load()
	stop.Store(true)
	done.Wait()
	e.worker.Stop()
	e.done.Wait()
	if err := errors.Join(failed, ctx.Err()); err != nil {
		return nil, err
	}
	r := &GuestToGuestResult{
		Mpps: float64(n1-n0) / elapsed.Seconds() / 1e6, BusyNanos: float64(busy1-busy0) / float64(n1-n0), Pauses: pauses,
		Quartile: quartile(windows()),
	}
	for i, l := range e.links {
		r.Offered += l.Counters.RxPackets.Load()
		r.Delivered += guests[i].Received
		for _, why := range dataplane.Reasons() {
			r.Dropped += l.Counters.Drops(why)
		}
	}
	return r, nil
}

// generate is both guests' driver side, until stop, and then until what is under way has arrived.
func generate(stop *atomic.Bool, o GuestToGuestOptions, guests [2]*vnettest.Guest, senders []*vnettest.Guest) error {
	runtime.LockOSThread() // never unlocked: it is pinned
	if err := pinning.Apply(o.GuestCPU); err != nil {
		return err
	}
	for quiet := 0; quiet < 1000; {
		ending := stop.Load()
		if !ending {
			for _, g := range senders {
				if _, err := g.Blast(64, o.FrameLen); err != nil {
					return err
				}
			}
		}
		moved := 0
		for _, g := range guests {
			n, err := g.Sink(64)
			if err != nil {
				return err
			}
			moved += n
		}
		if ending && moved == 0 {
			quiet++
			time.Sleep(10 * time.Microsecond)
		}
	}
	return nil
}

// engine is one worker and its links.
type engine struct {
	worker *dataplane.Worker
	links  []*dataplane.Link
	memory *shm.Mapping
	thread atomic.Int64 // the worker's, once it runs
	done   sync.WaitGroup
}

// frames of one worker: the vectors of a round, with room for what waits in rings.
const engineFrames = 8192

// newEngine makes one that does also on its thread, before anything else, what start says.
func newEngine(cpu int, idle dataplane.IdlePolicy, start ...func() error) (*engine, error) {
	mapping, err := shm.Map(shm.MapOptions{FD: -1, Length: engineFrames * frame.ChunkSize, Populate: true})
	if err != nil {
		return nil, err
	}
	memory, err := frame.NewMemory(mapping.Bytes())
	if err != nil {
		return nil, err
	}
	pool, err := memory.NewPool(0, engineFrames)
	if err != nil {
		return nil, err
	}
	e := &engine{memory: mapping}
	e.worker, err = dataplane.NewWorker(dataplane.WorkerOptions{Pool: pool, Idle: idle, Start: func() error {
		e.thread.Store(int64(unix.Gettid()))
		for _, fn := range start {
			if err := fn(); err != nil {
				return err
			}
		}
		return pinning.Apply(cpu)
	}})
	return e, err
}

// open makes a port for a guest, and hands it the guest's rings.
func (e *engine) open(g *vnettest.Guest) (*dataplane.Link, error) {
	l := &dataplane.Link{Name: "guest", Counters: &dataplane.Counters{}}
	device, err := vnet.New(vnet.Options{Pairs: []vnet.PairOptions{{Worker: e.worker, Link: l}}})
	if err != nil {
		return nil, err
	}
	if err := g.Attach(device); err != nil {
		return nil, err
	}
	return l, nil
}

// stationMAC is the address of a guest.
func stationMAC(i int) wire.MAC { return 0x52_54_00_00_00_01 + wire.MAC(i) }

// experimental is the EtherType for local experiments (IEEE 802).
const experimental = 0x88b5

// network makes a switch with one network and the links as its ports, as a daemon would: what they send is judged by its source.
func (e *engine) network(links [2]*dataplane.Link) (*vxlan.Switch, error) {
	fabric := vxlan.NewSwitch([]*dataplane.Worker{e.worker}, vxlan.Options{})
	if err := fabric.SetNetwork(vxlan.Network{Name: "net"}); err != nil {
		return nil, err
	}
	for i, l := range links {
		l.Name = fmt.Sprintf("guest%d", i)
		guest := vxlan.Port{Name: l.Name, Network: "net", MAC: stationMAC(i), AntiSpoof: true}
		if err := fabric.AttachPort(guest, []*dataplane.Link{l}); err != nil {
			return nil, err
		}
	}
	return fabric, nil
}

// add makes the worker poll a link, which has its forwarder.
func (e *engine) add(l *dataplane.Link) {
	e.links = append(e.links, l)
	e.worker.Do(func() { e.worker.Add(l) })
}

func (e *engine) start() {
	e.done.Add(1)
	go func() {
		defer e.done.Done()
		_ = e.worker.Run()
	}()
}

func (e *engine) close() {
	e.worker.Stop()
	e.done.Wait()
	_ = e.worker.Close()
	_ = e.memory.Free()
}

func defaulted[T comparable](v, zero T) T {
	var none T
	if v == none {
		return zero
	}
	return v
}
