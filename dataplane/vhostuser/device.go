package vhostuser

import "github.com/shuntio/shunt/dataplane/guestmem"

// Device is what a Backend serves: a virtio device without the protocol. vnet and blk are Devices.
//
// All calls come from the goroutine that serves the connection, one after the other, and no lock is held meanwhile.
// Front-ends wait for most of them under their big lock, so each must be done within 100 ms whatever the network does.
// An error refuses the message that led to the call, and must leave the device as it was before.
//
// The Backend owns every descriptor. Those of a Region are valid during the call only: map, or duplicate. Those of a ring
// are valid from StartVring until StopVring has returned, or UpdateVring has returned with others in their place.
type Device interface {
	// Offer says what the device can do; asked once per connection, before anything else.
	Offer() Offer
	// SetFeatures tells the virtio features that the driver accepted, a subset of Offer.Features and Offer.Accepted.
	// No ring runs, except where only VHOST_F_LOG_ALL changed.
	SetFeatures(features uint64) error

	// SetMemory replaces the whole memory table. No ring runs. The slice is valid during the call only.
	SetMemory(regions []Region) error
	// AddMemory adds a region beside those there are. Rings may be running.
	AddMemory(r Region) error
	// RemoveMemory takes back a region that was added before; no running ring has its descriptor table or
	// rings in it, but buffers of one may lie there. After the return no access may go there.
	RemoveMemory(r Region) error

	// StartVring hands over a ring: stopped before, complete, with memory under all three parts.
	StartVring(c VringConfig) error
	// UpdateVring tells that Kick, Call, Err, Flags or LogAddr of a running ring changed; the rest is as at the start.
	// After an error the connection ends.
	UpdateVring(c VringConfig) error
	// StopVring takes the ring back. After the return the device touches neither ring nor guest memory on its behalf, and
	// no descriptor of the ring: they are closed, and their numbers used again. That holds for an error too, which says
	// that the base is lost, and ends the connection. The base is where a later StartVring shall go on: the next avail
	// index of a split ring, the two indices with their wrap counters of a packed one.
	StopVring(index int) (base uint32, err error)

	// Reset forgets what the driver configured; features are negotiated anew. All rings were stopped; memory stays.
	Reset() error
	// Disconnected ends the connection: all rings were stopped, memory is to be given up.
	Disconnected()
}

// VringsStopper is a Device that takes no longer to stop several rings than to stop one: what it waits for, it waits for once.
type VringsStopper interface {
	// StopVrings is StopVring for rings that run, all of them at once, and stores their bases. An error says that all are lost.
	StopVrings(indices []int, bases []uint32) error
}

// ConfigSpace is a Device that also answers GET_CONFIG and SET_CONFIG (protocol feature CONFIG).
// QEMU keeps the configuration of a network device itself and warns about back-ends that offer to.
type ConfigSpace interface {
	// ReadConfig fills p from offset on, as much as the driver asked for.
	ReadConfig(offset uint32, p []byte) error
	// WriteConfig stores p at offset; for a driver's write only fields that the virtio specification lets it write, for migration
	// (on the destination) all.
	WriteConfig(offset uint32, p []byte, migration bool) error
}

// MTUSetter is a Device that can be told the MTU its guest is given (protocol feature NET_MTU).
type MTUSetter interface {
	// SetMTU refuses an MTU that the device cannot carry.
	SetMTU(mtu uint16) error
}

// Logger is a Device that can mark what it writes to the guest's memory (protocol feature LOG_SHMFD, feature VHOST_F_LOG_ALL): what a
// live migration needs. Logging is on while FeatureLogAll is among the features and there is a log.
type Logger interface {
	// SetLog gives the log that holds from now on; nil: none. Rings may be running. After the return no access may go to the one before, which is freed.
	// A fault at an address that the log Contains is the front-end's doing, like one in guest memory.
	SetLog(l *guestmem.Log) error
}

// InflightTracker is a Device that writes down what it has taken from its rings and not given back, where it outlives this process
// (protocol feature INFLIGHT_SHMFD).
type InflightTracker interface {
	// SetInflight gives the area that holds from now on, new or as an earlier back-end left it; nil: none. No ring runs. After the
	// return no access may go to the one before, which is freed. The front-end can write to the area at any time.
	SetInflight(a *Inflight) error
}

// RARPSender is a network Device that can announce where its guest has moved to (protocol feature RARP).
type RARPSender interface {
	// SendRARP has the guest's new place announced to the network, as it happens after a live migration. It must not wait for the network.
	SendRARP(mac [6]byte) error
}

// Offer is what a Device can do.
type Offer struct {
	// Features are the virtio feature bits. FeatureProtocol is added by the Backend.
	Features uint64
	// Accepted are bits beyond these that a driver may bring along: it was offered them before, by this device or the one in whose place it stands. Zero: none.
	Accepted uint64
	// ProtocolFeatures; bits that the Backend or the Device's type cannot serve are left out. Zero: DefaultProtocolFeatures.
	ProtocolFeatures uint64
	// Vrings is the number of rings, at most 256.
	Vrings int
	// QueueNum answers GET_QUEUE_NUM. A network device counts pairs there, all others rings. Zero: Vrings.
	QueueNum int
	// MaxRingSize bounds SET_VRING_NUM. Zero: 32768, the limit of virtio.
	MaxRingSize int
}

// DefaultProtocolFeatures suit every kind of device; those that its type does not serve are left out.
const DefaultProtocolFeatures = ProtocolMQ | ProtocolReplyAck | ProtocolResetDevice | ProtocolMemSlots | ProtocolStatus |
	ProtocolLogShmfd | ProtocolInflight | ProtocolRARP | ProtocolBackendReq

// implemented is what a session serves; bits outside are never offered.
const implemented = DefaultProtocolFeatures | ProtocolNetMTU | ProtocolConfig

// resolve fills in the zero values and drops what cannot be served.
func (o Offer) resolve(d Device) Offer {
	if o.ProtocolFeatures == 0 {
		o.ProtocolFeatures = DefaultProtocolFeatures
	}
	o.ProtocolFeatures &= implemented
	o.ProtocolFeatures &^= lacking(d)
	if o.ProtocolFeatures&ProtocolConfig == 0 {
		o.ProtocolFeatures &^= ProtocolBackendReq // all we would say there is that the configuration changed
	}
	if o.Features |= FeatureProtocol; o.ProtocolFeatures&ProtocolLogShmfd != 0 {
		o.Features |= FeatureLogAll
	}
	o.Vrings = min(max(o.Vrings, 0), vringIndex+1)
	if o.QueueNum == 0 {
		o.QueueNum = o.Vrings
	}
	if o.MaxRingSize <= 0 || o.MaxRingSize > maxRingSize {
		o.MaxRingSize = maxRingSize
	}
	return o
}

// lacking is what the device's type cannot serve.
func lacking(d Device) (set uint64) {
	if _, ok := d.(ConfigSpace); !ok {
		set |= ProtocolConfig
	}
	if _, ok := d.(MTUSetter); !ok {
		set |= ProtocolNetMTU
	}
	if _, ok := d.(Logger); !ok {
		set |= ProtocolLogShmfd
	}
	if _, ok := d.(InflightTracker); !ok {
		set |= ProtocolInflight
	}
	if _, ok := d.(RARPSender); !ok {
		set |= ProtocolRARP
	}
	return set
}
