// Package vnet is the virtio-net device (virtio 1.2, section 5.1): pairs of virtqueues in a guest's memory, each of them a port of the engine.
//
//	               one connection: Device, the control side              (device.go, memory.go, log.go)
//	                │ StartVring, SetMemory, ...   by Worker.Do
//	                ▼
//	guest ── transmitq i ──▶ Pair i: Receive ──▶ frames                  (receive.go)
//	guest ◀── receiveq i ──  Pair i: Transmit ◀── frames                 (transmit.go, merge.go)
//	                          one worker each, and a Link
//
// The names of the queues are the guest's, those of the methods the engine's.
//
// Two sides share a Device. The control side, the goroutine that serves the vhost-user connection, prepares rings and memory and
// hands them over between two rounds with Worker.Do; so the workers, which move the frames, need no lock. When Do returns, the worker holds no
// view of what it was given before. A pair's worker may change while traffic flows (Move); the control side always asks the one it has.
//
// A guest's word is taken for nothing: what a virtio-net header asks for is judged against the copied head of the frame (header.go), what
// a ring says is bounded by package virtq, and memory that goes away ends the port and nothing else (Pair.Fault).
//
// The daemon may be killed at any instruction. Where a ring stood, the next one finds in the ring itself or in a file (position.go).
package vnet

import (
	"errors"
	"fmt"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/vhostuser"
)

// Feature bits of virtio and virtio-net that the device knows (virtio 1.2, sections 6 and 5.1.3).
const (
	FeatureCsum          = 1 << 0  // VIRTIO_NET_F_CSUM: the guest may leave checksums to us
	FeatureGuestCsum     = 1 << 1  // VIRTIO_NET_F_GUEST_CSUM: we may leave checksums to the guest, or tell that they are right
	FeatureMTU           = 1 << 3  // VIRTIO_NET_F_MTU: the front-end may tell its guest an MTU
	FeatureGuestTSO4     = 1 << 7  // VIRTIO_NET_F_GUEST_TSO4: the guest takes TCP packets longer than its MTU, on IPv4
	FeatureGuestTSO6     = 1 << 8  // VIRTIO_NET_F_GUEST_TSO6: on IPv6
	FeatureGuestECN      = 1 << 9  // VIRTIO_NET_F_GUEST_ECN: those with CWR, too
	FeatureHostTSO4      = 1 << 11 // VIRTIO_NET_F_HOST_TSO4: the guest may send such packets, on IPv4
	FeatureHostTSO6      = 1 << 12 // VIRTIO_NET_F_HOST_TSO6: on IPv6
	FeatureHostECN       = 1 << 13 // VIRTIO_NET_F_HOST_ECN: those with CWR, too
	FeatureMrgRxbuf      = 1 << 15 // VIRTIO_NET_F_MRG_RXBUF: a frame may fill several receive buffers
	FeatureGuestAnnounce = 1 << 21 // VIRTIO_NET_F_GUEST_ANNOUNCE: the guest tells the network when it has moved; the front-end's and its business
	FeatureMQ            = 1 << 22 // VIRTIO_NET_F_MQ: several pairs; the control queue that chooses how many is the front-end's
	FeatureIndirect      = 1 << 28 // VIRTIO_F_INDIRECT_DESC
	FeatureEventIdx      = 1 << 29 // VIRTIO_F_EVENT_IDX
	FeatureVersion1      = 1 << 32 // VIRTIO_F_VERSION_1
	FeaturePacked        = 1 << 34 // VIRTIO_F_RING_PACKED
	FeatureInOrder       = 1 << 35 // VIRTIO_F_IN_ORDER: we use chains in the order they were made available
)

// Features is what a device of one pair offers; with more, FeatureMQ is added.
const Features = FeatureCsum | FeatureGuestCsum | FeatureMTU | FeatureGuestTSO4 | FeatureGuestTSO6 | FeatureGuestECN |
	FeatureHostTSO4 | FeatureHostTSO6 | FeatureHostECN | FeatureMrgRxbuf | FeatureGuestAnnounce |
	FeatureIndirect | FeatureEventIdx | FeatureVersion1 | FeaturePacked | FeatureInOrder

// MaxPairs is how many queue pairs a device may have: vhost-user numbers rings with 8 bits.
const MaxPairs = 128

// Reasons for which a port drops frames.
var (
	DropGuestNotReady = dataplane.NewReason("guest-not-ready", "the guest's driver has not started its receive queue")
	DropGuestRingFull = dataplane.NewReason("guest-ring-full", "the guest offered no receive buffer in time")
	DropGuestBuffer   = dataplane.NewReason("guest-buffer-too-small", "the guest's receive buffer is shorter than the frame")
	DropNotTaken      = dataplane.NewReason("offload-not-taken", "the frame needs an offload of its receiver that the guest has not negotiated, or not any more")
	DropBadHeader     = dataplane.NewReason("bad-virtio-header", "the guest's virtio-net header is short or asks for an offload it did not negotiate")
	DropTooLong       = dataplane.NewReason("too-long", "the guest's frame is longer than any frame can be")
	DropTooManyPieces = dataplane.NewReason("too-many-buffers", "the guest's frame lies in more buffers than a frame may")
	DropFarChecksum   = dataplane.NewReason("checksum-too-far", "the guest leaves a checksum to us that lies beyond the bytes of a frame that are judged")
	DropBadChecksum   = dataplane.NewReason("checksum-misplaced", "the guest leaves a checksum to us at a place where the packet's TCP or UDP header has none")
)

// PairOptions say who works on a queue pair. Both must be set.
type PairOptions struct {
	// Worker owns the pair's queues.
	Worker *dataplane.Worker
	// Link is how the engine sees the pair. New makes the pair its Port; the pair writes Offloads and Ready, and counts in Counters.
	Link *dataplane.Link
}

// Options configure a Device. Pairs must be set.
type Options struct {
	// Pairs are the queue pairs, at most MaxPairs. A guest may use fewer.
	Pairs []PairOptions
	// Grace returns when every worker of the engine has ended the round it was in. Nil: those of the pairs alone.
	Grace func()
	// Failed is told why a guest broke the rules and a pair went out of service. It is called on the worker and must
	// not block. Nil: nobody is told.
	Failed func(error)
	// Coalesce merges the TCP segments of a vector for a guest that takes packets longer than its MTU.
	Coalesce bool
	// MTU is the network's; a front-end that tells its guest a larger one is refused. Zero: any is believed. See SetNetworkMTU.
	MTU uint16
	// StateFile is where the places of packed rings are kept across the end of the process, on a file system in memory, such as
	// /run. It is made if it is not there, and stays once there was a packed ring. Empty: a packed ring whose back-end was killed goes on where the
	// front-end says, which no front-end knows.
	StateFile string
	// StateOwner is written into the file, for RemoveState.
	StateOwner string
}

// State is what people are told about the device.
type State struct {
	// Connected: a front-end is there. Running: its driver started at least one queue.
	Connected, Running bool
	// Pairs is how many pairs run in both directions.
	Pairs int
	// Features are the negotiated ones.
	Features uint64
	// MTU is what the front-end told its guest; 0: nothing.
	MTU uint16
	// Failed is why the device, or the first of its pairs that is, is out of service; nil if none is.
	Failed error
}

// New makes a device that no guest is connected to. The links are not added to their workers.
func New(o Options) (*Device, error) {
	if len(o.Pairs) == 0 || len(o.Pairs) > MaxPairs {
		return nil, fmt.Errorf("virtio-net device of %d queue pairs: must be 1 to %d", len(o.Pairs), MaxPairs)
	}
	d := &Device{failed: o.Failed, mtu: o.MTU}
	d.memory = vhostuser.Memory{Use: d.useMemory, Grace: o.Grace}
	for _, po := range o.Pairs {
		if po.Worker == nil || po.Link == nil || po.Link.Counters == nil {
			return nil, errors.New("a virtio-net queue pair needs a worker and a link with counters")
		}
		d.pairs = append(d.pairs, newPair(d, po, o.Coalesce))
	}
	if o.StateFile != "" {
		var err error
		if d.file, err = openStateFile(o.StateFile, o.StateOwner, 2*len(d.pairs)); err != nil {
			return nil, err
		}
	}
	if d.memory.Grace == nil {
		d.memory.Grace = func() { d.each(func(*Pair) {}) }
	}
	d.state.Store(&State{})
	for i, p := range d.pairs {
		o.Pairs[i].Link.Port, o.Pairs[i].Link.Patient = p, true
	}
	return d, nil
}
