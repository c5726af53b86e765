package blk

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/guestmem"
	"github.com/shuntio/shunt/dataplane/vhostuser"
)

// Device is a virtio-blk device: the vhostuser.Device behind a guest's connection. Its methods run on the connection's goroutine; what a worker
// sees they change only within Worker.Do. How a ring is stopped while its store does not answer, stop.go tells.
type Device struct {
	queues  []*Queue
	volume  *Volume
	serial  string
	failed  func(error)
	changed func()
	state   atomic.Pointer[DeviceState]

	number uint64 // see legacy

	disk         atomic.Pointer[limits] // what requests are judged by
	writeThrough atomic.Bool            // by the driver's choice, or since there is nothing to flush
	left         atomic.Int32           // runs that were stopped and have requests at the store
	fenced       atomic.Int64           // until then no write goes to the store, by dataplane.Clock; 0: it never had to wait

	mu       sync.Mutex // held by control calls, never by a worker
	features uint64
	memory   vhostuser.Memory
	pins     []*pin              // by ring, if the guest's memory is to be registered
	given    *guestmem.Log       // the front-end's; the queues have it while it is wanted
	area     *vhostuser.Inflight // the front-end's; nil: none
	unread   bool                // what a process before this one left there was not looked at
	came     int64               // when the front-end did, by dataplane.Clock
	drain    time.Duration       // how long rings that are stopped wait for the store (drainTime)
	patience time.Duration       // how long those that are about to stop wait for the next one that does (lullTime)
	waited   time.Duration       // they have, by rested; what was then is had back as time goes by
	rested   time.Time
	called   time.Time   // when requests were called back last
	lull     *time.Timer // has rings go on that were about to stop; nil: there are none
}

var (
	_ vhostuser.Device          = (*Device)(nil)
	_ vhostuser.Logger          = (*Device)(nil)
	_ vhostuser.InflightTracker = (*Device)(nil)
	_ vhostuser.VringsStopper   = (*Device)(nil)
)

// MaxQueues is how many queues a device may have: vhost-user numbers rings with 8 bits.
const MaxQueues = 256

// maxRing is the largest ring. Each descriptor has room for a request of SegMax segments, 4.5 KiB.
const maxRing = 1024

// DeviceState is what people are told about a device.
type DeviceState struct {
	// Connected: a front-end is there. Queues is how many of its rings run.
	Connected bool
	Queues    int
	// Features are the negotiated ones. WriteThrough: a write is stable when it is done.
	Features     uint64
	WriteThrough bool
	// Registered is how much of the guest's memory is registered with all rings, and Unregistered why not more; nil: that was not asked for, or all is.
	Registered   uint64
	Unregistered error
	// Failed is why the device, or the first of its queues that is, is out of service; nil if none is.
	Failed error
	// Waits is what requests are held back for, beside limits and a store that is away.
	Waits []DeviceWait
}

// DeviceWait is something that a device waits for: why in a sentence, and until when at the latest (zero: until it has happened).
type DeviceWait struct {
	Why   string
	Until time.Time
}

// DeviceOptions configure a Device. Volume and Queues must be set.
type DeviceOptions struct {
	Volume *Volume
	// Queues says on which worker each queue is, and with it which ring its requests use. At most MaxQueues; a guest may use fewer.
	Queues []Host
	// Registered: the guest's memory is pinned and known to the rings (uring.Ring.RegisterMemory), for guests that give none of it back to the host.
	Registered bool
	// Grace returns when every worker of the engine has ended the round it was in. Nil: those of the queues alone.
	Grace func()
	// Failed is told why a guest broke the rules and a queue, or the device, went out of service. It is called on a worker and must not block. Nil: nobody is told.
	Failed func(error)
	// ConfigChanged is called when the front-end is to read the configuration again: vhostuser.Backend.ConfigChanged. Nil: it is not told.
	ConfigChanged func()
}

// NewDevice makes a device that no guest is connected to, with a gate of the volume for each queue. Nobody polls it before Start.
func NewDevice(o DeviceOptions) (*Device, error) {
	if len(o.Queues) == 0 || len(o.Queues) > MaxQueues {
		return nil, fmt.Errorf("virtio-blk device of %d queues: must be 1 to %d", len(o.Queues), MaxQueues)
	}
	d := &Device{volume: o.Volume, failed: o.Failed, changed: o.ConfigChanged}
	for _, host := range o.Queues {
		g, err := o.Volume.NewGate(host)
		if err != nil {
			d.closeGates()
			return nil, err
		}
		d.queues = append(d.queues, &Queue{worker: host.Worker, gate: g})
	}
	if o.Registered {
		d.pins = pinsOf(o.Queues)
	}
	d.init(o.Volume.Info(), o.Volume.Serial(), o.Grace)
	before := d.disk.Load()
	d.fenced.Store(o.Volume.fenced.Load())
	o.Volume.OnChange(d.Changed)
	i := o.Volume.Info() // it may have changed before we listened
	d.disk.CompareAndSwap(before, limitsOf(&i, d.serial))
	return d, nil
}

// init is what is left to do when the queues have workers and gates.
func (d *Device) init(i Info, serial string, grace func()) {
	d.serial, d.drain, d.patience, d.number = serial, drainTime, lullTime, number()
	d.memory = vhostuser.Memory{Use: d.useMemory, Grace: grace}
	if grace == nil {
		d.memory.Grace = func() { d.each(func(*Queue) {}) }
	}
	for n, q := range d.queues {
		q.device, q.index = d, n
	}
	d.disk.Store(limitsOf(&i, serial))
	d.writeThrough.Store(!i.Flush)
	d.state.Store(&DeviceState{})
}

// Start has the workers poll the queues.
func (d *Device) Start() {
	for _, q := range d.queues {
		q.worker.Do(func() { q.worker.Add(q) })
	}
}

// Close ends the device, to which no front-end is connected any more, and its gates. With ErrBusy a request that nobody can end is still under way; it may be called again.
func (d *Device) Close() error {
	d.relax()
	if d.volume != nil {
		d.volume.OnChange(nil)
	}
	if err := d.drained(); err != nil {
		return err
	}
	if d.volume != nil {
		d.volume.fenced.Store(max(d.volume.fenced.Load(), d.fenced.Load()))
	}
	together(d.queues, func(q *Queue) { q.worker.Remove(q) })
	d.closeGates()
	return nil
}

func (d *Device) closeGates() {
	for _, q := range d.queues {
		if g, ok := q.gate.(*Gate); ok {
			g.Close()
		}
	}
}

// Queues are the device's, each to be polled by its worker (Worker.Add).
func (d *Device) Queues() []*Queue { return d.queues }

// State may be asked by anybody.
func (d *Device) State() DeviceState {
	s := *d.state.Load()
	s.WriteThrough = d.writeThrough.Load()
	for _, q := range d.queues {
		if q.runs.Load() {
			s.Queues++
		}
		if why := q.why.Load(); why != nil && s.Failed == nil {
			s.Failed = *why
		}
	}
	if left := time.Duration(d.fenced.Load() - dataplane.Clock()); left > 0 {
		s.Waits = append(s.Waits, DeviceWait{"writes of a process or volume that is gone may not have ended: new ones wait", time.Now().Add(left)})
	}
	if d.left.Load() > 0 {
		s.Waits = append(s.Waits, DeviceWait{Why: "rings were stopped whose requests the store has not ended: nothing is taken before that"})
	}
	return s
}

// Changed tells the device what its store is now, and the driver to look at its configuration again. Features stay as they were negotiated: a
// request that the store can no longer do is answered so.
func (d *Device) Changed(i Info) {
	d.disk.Store(limitsOf(&i, d.serial))
	if d.changed != nil {
		d.changed()
	}
}

// update changes the published state. Control calls alone do, one after the other.
func (d *Device) update(change func(*DeviceState)) {
	s := *d.state.Load()
	change(&s)
	d.state.Store(&s)
}

// on runs fn on the queue's worker between two rounds. Where that touches memory that is gone, the queue goes out of service.
func (q *Queue) on(fn func()) {
	q.worker.Do(func() { q.contained(func(*Queue) { fn() }) })
}

func (q *Queue) contained(fn func(*Queue)) {
	defer q.contain()
	fn(q)
}

// each runs fn for every queue, on its worker.
func (d *Device) each(fn func(*Queue)) {
	for _, q := range d.queues {
		q.on(func() { fn(q) })
	}
}

// Offer implements vhostuser.Device.
func (d *Device) Offer() vhostuser.Offer {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.came = dataplane.Clock()
	d.update(func(s *DeviceState) { *s = DeviceState{Connected: true} })
	for _, q := range d.queues {
		q.why.Store(nil)
	}
	info := d.disk.Load().info
	d.writeThrough.Store(!info.Flush)
	return vhostuser.Offer{
		Features:         features(info, len(d.queues)),
		Accepted:         featuresOfStores,
		ProtocolFeatures: vhostuser.DefaultProtocolFeatures | vhostuser.ProtocolConfig,
		Vrings:           len(d.queues),
		MaxRingSize:      maxRing,
	}
}

// SetFeatures implements vhostuser.Device.
func (d *Device) SetFeatures(features uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.setFeatures(features)
	return nil
}

func (d *Device) setFeatures(features uint64) {
	d.features = features
	d.update(func(s *DeviceState) { s.Features = features })
	d.relog()
}

// SetMemory implements vhostuser.Device.
func (d *Device) SetMemory(regions []vhostuser.Region) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.memory.Set(regions)
}

// AddMemory implements vhostuser.Device.
func (d *Device) AddMemory(r vhostuser.Region) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.memory.Add(r)
}

// useMemory gives the workers another map.
func (d *Device) useMemory(m *guestmem.Map) {
	d.each(func(q *Queue) { q.useMemory(m) })
	d.register(m)
}

// SetLog implements vhostuser.Logger. When it returns, nothing is marked in the log before any more.
func (d *Device) SetLog(log *guestmem.Log) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.given = log
	d.relog()
	return nil
}

// relog makes the log that which features and front-end ask for, of all queues.
func (d *Device) relog() {
	log := d.given
	if d.features&vhostuser.FeatureLogAll == 0 {
		log = nil
	}
	d.each(func(q *Queue) {
		if q.log == log {
			return
		}
		if q.log = log; q.run != nil && !q.run.failed {
			q.run.ring.SetLog(log, q.run.log)
		}
	})
}

// modeWriteThrough, in the features of an in-flight area, keeps the driver's choice beyond the end of the process. No front-end makes it again.
const modeWriteThrough = 1 << 63

// SetInflight implements vhostuser.InflightTracker.
func (d *Device) SetInflight(a *vhostuser.Inflight) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.area, d.unread = a, a != nil
	if a == nil {
		return nil
	}
	if a.Features()&modeWriteThrough != 0 {
		d.writeThrough.Store(true)
	}
	d.keepMode()
	return nil
}

// setWriteThrough is the driver's choice. When it returns, no round goes on that began by another one: a driver that believes in write-through does not flush.
func (d *Device) setWriteThrough(on bool) {
	d.writeThrough.Store(on)
	d.keepMode()
	d.each(func(*Queue) {})
}

func (d *Device) keepMode() {
	if d.area == nil {
		return
	}
	bits := uint64(0)
	if d.writeThrough.Load() && d.disk.Load().info.Flush {
		bits = modeWriteThrough
	}
	d.area.SetFeatures(bits)
}

// Reset implements vhostuser.Device. The driver's requests are void, and so is what the area says of them. Its choice of write-back or write-through stays: QEMU
// resets a device whose machine it stops for a moment, and goes on telling the driver what it had chosen.
func (d *Device) Reset() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, q := range d.queues {
		q.given = 0
	}
	if d.area != nil {
		for i := range min(len(d.queues), d.area.Queues) {
			d.area.Forget(i)
		}
		d.keepMode()
	}
	d.setFeatures(0)
	return nil
}

// Disconnected implements vhostuser.Device.
func (d *Device) Disconnected() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.given, d.area = nil, nil
	d.setFeatures(0)
	d.update(func(s *DeviceState) { *s = DeviceState{} }) // why a queue failed stays, until somebody connects again
	d.memory.Clear()
}

// queue finds the queue of a ring.
func (d *Device) queue(index int) (*Queue, error) {
	if index < 0 || index >= len(d.queues) {
		return nil, fmt.Errorf("there is no ring %d: the device has %d", index, len(d.queues))
	}
	return d.queues[index], nil
}
