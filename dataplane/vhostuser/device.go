package vhostuser

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
	// SetFeatures tells the virtio features that the driver accepted, a subset of those offered.
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

// Offer is what a Device can do.
type Offer struct {
	// Features are the virtio feature bits. FeatureProtocol is added by the Backend.
	Features uint64
	// ProtocolFeatures; bits that the Backend or the Device's type cannot serve are left out. Zero: DefaultProtocolFeatures.
	ProtocolFeatures uint64
	// Vrings is the number of rings, at most 256.
	Vrings int
	// QueueNum answers GET_QUEUE_NUM. A network device counts pairs there, all others rings. Zero: Vrings.
	QueueNum int
	// MaxRingSize bounds SET_VRING_NUM. Zero: 32768, the limit of virtio.
	MaxRingSize int
}

// DefaultProtocolFeatures suit every kind of device.
const DefaultProtocolFeatures = ProtocolMQ | ProtocolReplyAck | ProtocolResetDevice | ProtocolMemSlots | ProtocolStatus

// implemented is what a session serves; bits outside are never offered.
const implemented = DefaultProtocolFeatures | ProtocolNetMTU | ProtocolConfig

// resolve fills in the zero values and drops what cannot be served.
func (o Offer) resolve(d Device) Offer {
	if o.ProtocolFeatures == 0 {
		o.ProtocolFeatures = DefaultProtocolFeatures
	}
	o.ProtocolFeatures &= implemented
	if _, ok := d.(ConfigSpace); !ok {
		o.ProtocolFeatures &^= ProtocolConfig
	}
	if _, ok := d.(MTUSetter); !ok {
		o.ProtocolFeatures &^= ProtocolNetMTU
	}
	o.Features |= FeatureProtocol
	o.Vrings = min(max(o.Vrings, 0), vringIndex+1)
	if o.QueueNum == 0 {
		o.QueueNum = o.Vrings
	}
	if o.MaxRingSize <= 0 || o.MaxRingSize > maxRingSize {
		o.MaxRingSize = maxRingSize
	}
	return o
}

// VringConfig is a ring that a front-end handed over, complete. Addresses are the front-end's own (user addresses of the
// memory regions); each part was checked to be aligned and to lie inside one region.
type VringConfig struct {
	Index int
	// Size in descriptors; a power of two for a split ring.
	Size uint32
	// DescAddr, AvailAddr and UsedAddr are descriptor table, avail and used ring; of a packed ring the
	// descriptor ring, driver and device event suppression.
	DescAddr, AvailAddr, UsedAddr uint64
	// Base is where to go on, in the form StopVring returns it.
	Base uint32
	// Kick is signalled by the driver, Call by the device, Err by the device when the ring is broken. Each is an
	// eventfd, or -1: none was given, and that side polls. The front-end shares the file's flags: O_NONBLOCK was set
	// here, and it can be cleared there at any time.
	Kick, Call, Err int
	// Flags holds VHOST_VRING_F_LOG in bit 0: writes to the used ring are to be logged at LogAddr.
	Flags   uint32
	LogAddr uint64
}
