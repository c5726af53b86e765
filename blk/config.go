package blk

import (
	"encoding/binary"
	"fmt"

	"github.com/shuntio/shunt/dataplane/vhostuser"
)

// Feature bits of virtio and virtio-blk that the device knows (virtio 1.2, sections 6 and 5.2.3).
const (
	FeatureSizeMax     = 1 << 1  // VIRTIO_BLK_F_SIZE_MAX: how long one segment may be
	FeatureSegMax      = 1 << 2  // VIRTIO_BLK_F_SEG_MAX: how many segments a request may have
	FeatureRO          = 1 << 5  // VIRTIO_BLK_F_RO: the disk is read-only
	FeatureBlkSize     = 1 << 6  // VIRTIO_BLK_F_BLK_SIZE: what requests are best, and here must be, aligned to
	FeatureFlush       = 1 << 9  // VIRTIO_BLK_F_FLUSH: the driver may ask that all it wrote be stable
	FeatureTopology    = 1 << 10 // VIRTIO_BLK_F_TOPOLOGY: physical blocks, optimal sizes
	FeatureConfigWCE   = 1 << 11 // VIRTIO_BLK_F_CONFIG_WCE: the driver may choose between write-back and write-through
	FeatureMQ          = 1 << 12 // VIRTIO_BLK_F_MQ: several queues
	FeatureDiscard     = 1 << 13 // VIRTIO_BLK_F_DISCARD
	FeatureWriteZeroes = 1 << 14 // VIRTIO_BLK_F_WRITE_ZEROES
	FeatureLifetime    = 1 << 15 // VIRTIO_BLK_F_LIFETIME: the device tells how much of it is used up
	FeatureIndirect    = 1 << 28 // VIRTIO_F_INDIRECT_DESC
	FeatureEventIdx    = 1 << 29 // VIRTIO_F_EVENT_IDX
	FeatureVersion1    = 1 << 32 // VIRTIO_F_VERSION_1
	FeaturePacked      = 1 << 34 // VIRTIO_F_RING_PACKED
)

// featuresOfStores are those that a store may lack which was there before, while a driver goes on that has negotiated them.
const featuresOfStores = FeatureRO | FeatureDiscard | FeatureWriteZeroes | FeatureLifetime

// features is what a device on such a store offers. VIRTIO_F_IN_ORDER is not among it: requests end when the store has done them. FLUSH is there even
// where nothing is ever to be flushed, as the specification wants it beside CONFIG_WCE; discards are not where the store has none, since
// some drivers take it badly if one fails.
func features(i *Info, queues int) uint64 {
	f := uint64(FeatureSizeMax | FeatureSegMax | FeatureBlkSize | FeatureFlush | FeatureTopology | FeatureConfigWCE |
		FeatureIndirect | FeatureEventIdx | FeatureVersion1 | FeaturePacked)
	for _, have := range [...]struct {
		it  bool
		bit uint64
	}{
		{i.ReadOnly, FeatureRO},
		{queues > 1, FeatureMQ},
		{i.Discard && !i.ReadOnly, FeatureDiscard},
		{i.WriteZeroes && !i.ReadOnly, FeatureWriteZeroes},
		{i.Lifetime != nil, FeatureLifetime},
	} {
		if have.it {
			f |= have.bit
		}
	}
	return f
}

// What a driver is told of the size of requests.
const (
	// SegMax: what a queue of 128 descriptors, as QEMU makes them, holds beside header and status. Drivers without indirect tables wait for ever for room for more.
	SegMax = 128 - 2
	// SizeMax: a request has 15.75 MiB at most, which bounds what a store must copy to compute a digest. A driver that does not look at it may ask for more, up to maxRequest.
	SizeMax = 128 << 10
	// MaxRanges is how many ranges a discard or write-zeroes may have. They are copied into the request's place in its queue, 16 bytes each.
	MaxRanges = 16

	maxDiscard = 1 << 30  // bytes of one range
	maxZeroes  = 64 << 20 // less: a store may have to write them
)

// Offsets in the configuration space, struct virtio_blk_config (virtio 1.2, 5.2.4).
const (
	configCapacity         = 0
	configSizeMax          = 8
	configSegMax           = 12
	configBlkSize          = 20
	configPhysicalExponent = 24
	configMinIO            = 26
	configOptIO            = 28
	configWriteback        = 32
	configQueues           = 34
	configMaxDiscard       = 36
	configDiscardSegments  = 40
	configDiscardAlign     = 44
	configMaxZeroes        = 48
	configZeroesSegments   = 52
	configZeroesUnmap      = 56
	configBytes            = 60
)

// config is the whole configuration space. Fields of features that are not offered are zero.
func config(i *Info, queues int, writeback bool) (b [configBytes]byte) {
	le := binary.LittleEndian
	block := max(i.BlockSize, sector)
	physical := max(i.PhysicalBlock, block)
	le.PutUint64(b[configCapacity:], i.Size/sector)
	le.PutUint32(b[configSizeMax:], SizeMax)
	le.PutUint32(b[configSegMax:], SegMax)
	le.PutUint32(b[configBlkSize:], block)
	for block<<b[configPhysicalExponent] < physical && b[configPhysicalExponent] < 16 {
		b[configPhysicalExponent]++
	}
	le.PutUint16(b[configMinIO:], uint16(min(physical/block, 1<<15)))
	le.PutUint32(b[configOptIO:], i.OptimalIO/block)
	if writeback {
		b[configWriteback] = 1
	}
	le.PutUint16(b[configQueues:], uint16(queues))
	if i.Discard && !i.ReadOnly {
		le.PutUint32(b[configMaxDiscard:], maxDiscard/sector)
		le.PutUint32(b[configDiscardSegments:], MaxRanges)
		le.PutUint32(b[configDiscardAlign:], max(i.DiscardGranularity, block)/sector)
	}
	if i.WriteZeroes && !i.ReadOnly {
		le.PutUint32(b[configMaxZeroes:], maxZeroes/sector)
		le.PutUint32(b[configZeroesSegments:], MaxRanges)
		b[configZeroesUnmap] = 1
	}
	return b
}

var _ vhostuser.ConfigSpace = (*Device)(nil)

// ReadConfig implements vhostuser.ConfigSpace. Behind what we know all is zero. With a driver that may choose and cannot flush it begins with write-through (virtio 1.2, 5.2.5.2).
func (d *Device) ReadConfig(offset uint32, p []byte) error {
	flushes := d.state.Load().Features&(FeatureConfigWCE|FeatureFlush) != FeatureConfigWCE
	b := config(d.disk.Load().info, len(d.queues), flushes && !d.writeThrough.Load())
	clear(p)
	if offset < configBytes {
		copy(p, b[offset:])
	}
	return nil
}

// WriteConfig implements vhostuser.ConfigSpace. A driver may write one field: whether a write is stable when it is done. From a device that a guest comes from,
// that is also all there is to take over.
func (d *Device) WriteConfig(offset uint32, p []byte, migration bool) error {
	if !migration && (offset != configWriteback || len(p) != 1) {
		return fmt.Errorf("a driver writes nothing but the byte at %d (writeback), and not %d bytes at %d", configWriteback, len(p), offset)
	}
	at := uint64(configWriteback) - uint64(offset)
	if at >= uint64(len(p)) {
		return nil
	}
	if p[at] > 1 {
		return fmt.Errorf("writeback is 0 or 1, and not %d", p[at])
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.setWriteThrough(p[at] == 0)
	return nil
}
