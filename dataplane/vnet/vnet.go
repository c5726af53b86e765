// Package vnet is the virtio-net device (virtio 1.2, section 5.1) as a port of the engine: one pair of virtqueues in a guest's
// memory.
//
//	guest ── transmitq ──▶ Port.Receive ──▶ frames        (receive.go)
//	guest ◀── receiveq ──  Port.Transmit ◀── frames       (transmit.go)
//
// The names of the queues are the guest's, those of the methods the engine's.
//
// Two sides share a Port. The control side, the goroutine that serves the vhost-user connection (device.go), prepares rings and memory and
// hands them over between two rounds with Worker.Do; so the worker, which moves the frames, needs no lock. When Do returns, the worker holds no view
// of what it was given before.
package vnet

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/guestmem"
	"github.com/shuntio/shunt/dataplane/virtq"
)

// Feature bits of virtio and virtio-net that the device knows (virtio 1.2, sections 6 and 5.1.3).
const (
	FeatureCsum     = 1 << 0  // VIRTIO_NET_F_CSUM: the guest may leave checksums to us
	FeatureMTU      = 1 << 3  // VIRTIO_NET_F_MTU: the front-end may tell its guest an MTU
	FeatureMrgRxbuf = 1 << 15 // VIRTIO_NET_F_MRG_RXBUF: a frame may fill several receive buffers
	FeatureIndirect = 1 << 28 // VIRTIO_F_INDIRECT_DESC
	FeatureEventIdx = 1 << 29 // VIRTIO_F_EVENT_IDX
	FeatureVersion1 = 1 << 32 // VIRTIO_F_VERSION_1
)

// Features is what the device offers.
const Features = FeatureCsum | FeatureMTU | FeatureMrgRxbuf | FeatureIndirect | FeatureEventIdx | FeatureVersion1

// Queue numbers of the first pair (virtio 1.2, 5.1.2).
const (
	receiveq  = 0
	transmitq = 1
)

// Reasons for which a port drops frames.
var (
	DropGuestNotReady = dataplane.NewReason("guest-not-ready", "the guest's driver has not started its receive queue")
	DropGuestRingFull = dataplane.NewReason("guest-ring-full", "the guest offered no receive buffer in time")
	DropGuestBuffer   = dataplane.NewReason("guest-buffer-too-small", "the guest's receive buffer is shorter than the frame")
	DropBadHeader     = dataplane.NewReason("bad-virtio-header", "the guest's virtio-net header is short or asks for an offload it did not negotiate")
	DropTooLong       = dataplane.NewReason("too-long", "the guest's frame is longer than any frame can be")
	DropTooManyPieces = dataplane.NewReason("too-many-buffers", "the guest's frame lies in more buffers than a frame may")
	DropFarChecksum   = dataplane.NewReason("checksum-too-far", "the guest leaves a checksum to us that lies beyond the bytes of a frame that are judged")
)

// Options configure a Port. Worker and Counters must be set.
type Options struct {
	// Worker owns the port's queues.
	Worker *dataplane.Worker
	// Counters count what the port moves and drops.
	Counters *dataplane.Counters
	// Grace returns when every worker of the engine has ended the round it was in. Nil: Worker alone.
	Grace func()
	// Failed is told when the guest broke the rules and its port went out of service. It is called on the worker and must
	// not block. Nil: nobody is told.
	Failed func(error)
}

// Port is a virtio-net device.
type Port struct {
	worker   *dataplane.Worker
	counters *dataplane.Counters
	grace    func()
	failed   func(error)
	state    atomic.Pointer[State]
	calls    atomic.Uint64 // notifications sent to the guest

	// The control side's; see device.go.
	features uint64

	// The worker's.
	memory *guestmem.Map // of the guest; nil before the table came
	tx     queue         // transmitq: the guest fills it
	rx     queue         // receiveq: we fill it
	header int           // length of the virtio-net header
	merge  bool          // MRG_RXBUF
	csum   bool          // CSUM
	bodies [][]byte      // what received frames borrow until Release
	taking int           // chains that Receive has taken and not counted yet: what a fault there must count
}

// queue is one running virtqueue.
type queue struct {
	ring  *virtq.Device // nil: stopped
	chain *virtq.Chain
	kick  int  // eventfd or -1; watched by the worker
	call  int  // eventfd or -1
	want  bool // the driver is to be called at the end of the round
}

// State is what people are told about the port.
type State struct {
	// Connected: a front-end is there. Running: its driver started at least one queue.
	Connected, Running bool
	// Features are the negotiated ones.
	Features uint64
	// MTU is what the front-end told its guest; 0: nothing.
	MTU uint16
	// Failed is why the port is out of service; nil if it isn't.
	Failed error
}

// New makes a port that no guest is connected to.
func New(o Options) (*Port, error) {
	if o.Worker == nil || o.Counters == nil {
		return nil, errors.New("virtio-net port needs a worker and counters")
	}
	p := &Port{
		worker: o.Worker, counters: o.Counters, grace: o.Grace, failed: o.Failed,
		bodies: make([][]byte, 0, dataplane.Quantum*maxPieces),
		tx:     queue{kick: -1, call: -1}, rx: queue{kick: -1, call: -1},
	}
	if p.grace == nil {
		p.grace = func() { p.worker.Do(func() {}) }
	}
	p.negotiated(0)
	p.state.Store(&State{})
	return p, nil
}

// State may be asked by anybody.
func (p *Port) State() State { return *p.state.Load() }

// Calls is how many notifications were sent to the guest.
func (p *Port) Calls() uint64 { return p.calls.Load() }

// update changes the published state.
func (p *Port) update(change func(*State)) {
	for {
		old := p.state.Load()
		s := *old
		change(&s)
		if p.state.CompareAndSwap(old, &s) {
			return
		}
	}
}

// Fault implements dataplane.Port: the guest took memory away under us.
func (p *Port) Fault(address uintptr) bool {
	if p.memory == nil || !p.memory.Contains(address) {
		return false
	}
	p.counters.RxPackets.Add(uint64(p.taking))
	p.taking = 0
	p.fail(fmt.Errorf("the guest's memory went away at %#x while in use", address))
	return true
}

// fail takes the port out of service: its rings are not looked at again until they are started anew.
func (p *Port) fail(why error) {
	p.halt(&p.tx)
	p.halt(&p.rx)
	p.bodies = p.bodies[:0]
	p.update(func(s *State) { s.Failed, s.Running = why, false })
	if p.failed != nil {
		p.failed(why)
	}
}

// halt stops a queue where it stands.
func (p *Port) halt(q *queue) {
	if q.kick >= 0 {
		p.worker.Unwatch(q.kick)
	}
	*q = queue{kick: -1, call: -1, chain: q.chain}
}
