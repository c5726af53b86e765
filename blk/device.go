package blk

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shuntio/shunt/dataplane/guestmem"
	"github.com/shuntio/shunt/dataplane/vhostuser"
)

// Device is a virtio-blk device: the vhostuser.Device behind a guest's connection. Its methods run on the connection's goroutine; what a worker
// sees they change only within Worker.Do. How a ring is stopped while its store does not answer, stop.go tells.
type Device struct {
	queues  []*Queue
	serial  string
	failed  func(error)
	changed func()
	state   atomic.Pointer[DeviceState]

	disk         atomic.Pointer[limits] // what requests are judged by
	writeThrough atomic.Bool            // by the driver's choice, or since there is nothing to flush

	mu       sync.Mutex // held by control calls, never by a worker
	features uint64
	memory   vhostuser.Memory
	given    *guestmem.Log       // the front-end's; the queues have it while it is wanted
	area     *vhostuser.Inflight // the front-end's; nil: none
	drain    time.Duration       // how long a ring that is stopped waits for the store
	tired    time.Time           // until then none does: the store has not answered
}

var (
	_ vhostuser.Device          = (*Device)(nil)
	_ vhostuser.Logger          = (*Device)(nil)
	_ vhostuser.InflightTracker = (*Device)(nil)
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
	// Failed is why the device, or the first of its queues that is, is out of service; nil if none is.
	Failed error
}

// options of newDevice.
type options struct {
	info    Info
	serial  string
	queues  []*Queue // worker and gate are set
	grace   func()
	failed  func(error)
	changed func()
}

func newDevice(o options) (*Device, error) {
	if len(o.queues) == 0 || len(o.queues) > MaxQueues {
		return nil, fmt.Errorf("virtio-blk device of %d queues: must be 1 to %d", len(o.queues), MaxQueues)
	}
	if len(o.serial) > serialBytes {
		return nil, fmt.Errorf("serial %q has %d bytes: virtio-blk has room for %d", o.serial, len(o.serial), serialBytes)
	}
	if b := o.info.BlockSize; b != 0 && (b < sector || b&(b-1) != 0 || o.info.Size%uint64(b) != 0) {
		return nil, fmt.Errorf("a disk of %d bytes in blocks of %d: these must be a power of two from %d on, and the disk a multiple", o.info.Size, b, sector)
	}
	d := &Device{queues: o.queues, serial: o.serial, failed: o.failed, changed: o.changed, drain: drainTime}
	d.memory = vhostuser.Memory{Use: d.useMemory, Grace: o.grace}
	if o.grace == nil {
		d.memory.Grace = func() { d.each(func(*Queue) {}) }
	}
	for i, q := range d.queues {
		q.device, q.index = d, i
	}
	d.disk.Store(limitsOf(&o.info, o.serial))
	d.writeThrough.Store(!o.info.Flush)
	d.state.Store(&DeviceState{})
	return d, nil
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
	q.worker.Do(func() {
		defer q.contain()
		fn()
	})
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
	d.update(func(s *DeviceState) { *s = DeviceState{Connected: true} })
	for _, q := range d.queues {
		q.why.Store(nil)
	}
	info := d.disk.Load().info
	d.writeThrough.Store(!info.Flush)
	return vhostuser.Offer{
		Features:         features(info, len(d.queues)),
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
func (d *Device) useMemory(m *guestmem.Map) { d.each(func(q *Queue) { q.useMemory(m) }) }

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
	d.area = a
	if a == nil {
		return nil
	}
	if a.Features()&modeWriteThrough != 0 {
		d.writeThrough.Store(true)
	}
	d.keepMode()
	return nil
}

// setWriteThrough is the driver's choice.
func (d *Device) setWriteThrough(on bool) {
	d.writeThrough.Store(on)
	d.keepMode()
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
