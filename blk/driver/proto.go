package driver

import (
	"encoding/binary"
	"fmt"
)

// SectorSize is the unit of sector numbers and capacities, whatever the block size is.
const SectorSize = 512

// Op is the type of a request (virtio 1.2, 5.2.6).
type Op uint32

// The types of requests.
const (
	In          Op = 0 // read
	Out         Op = 1 // write
	Flush       Op = 4
	GetID       Op = 8
	GetLifetime Op = 10
	Discard     Op = 11
	WriteZeroes Op = 13
	SecureErase Op = 14
)

// String is the name without the specification's prefix.
func (o Op) String() string {
	switch o {
	case In:
		return "IN"
	case Out:
		return "OUT"
	case Flush:
		return "FLUSH"
	case GetID:
		return "GET_ID"
	case GetLifetime:
		return "GET_LIFETIME"
	case Discard:
		return "DISCARD"
	case WriteZeroes:
		return "WRITE_ZEROES"
	case SecureErase:
		return "SECURE_ERASE"
	}
	return fmt.Sprintf("type %d", uint32(o))
}

// Status is how a device answered.
type Status uint8

// The answers. unanswered is what the driver puts there first.
const (
	OK          Status = 0
	IOErr       Status = 1
	Unsupported Status = 2

	unanswered Status = 0xa5
)

// String is the name without the specification's prefix.
func (s Status) String() string {
	switch s {
	case OK:
		return "OK"
	case IOErr:
		return "IOERR"
	case Unsupported:
		return "UNSUPP"
	case unanswered:
		return "none"
	}
	return fmt.Sprintf("status %d", uint8(s))
}

// Feature bits (virtio 1.2, 5.2.3 and 6).
const (
	FeatureSizeMax     uint64 = 1 << 1
	FeatureSegMax      uint64 = 1 << 2
	FeatureRO          uint64 = 1 << 5
	FeatureBlkSize     uint64 = 1 << 6
	FeatureFlush       uint64 = 1 << 9
	FeatureTopology    uint64 = 1 << 10
	FeatureConfigWCE   uint64 = 1 << 11
	FeatureMQ          uint64 = 1 << 12
	FeatureDiscard     uint64 = 1 << 13
	FeatureWriteZeroes uint64 = 1 << 14
	FeatureLifetime    uint64 = 1 << 15
	FeatureSecureErase uint64 = 1 << 16
	FeatureIndirect    uint64 = 1 << 28
	FeatureEventIdx    uint64 = 1 << 29
	FeatureVersion1    uint64 = 1 << 32
	FeaturePacked      uint64 = 1 << 34
)

// Config is struct virtio_blk_config as far as block devices of our days use it (virtio 1.2, 5.2.4). What belongs to a feature that was not
// negotiated is to be ignored.
type Config struct {
	// Capacity is in sectors of 512 bytes.
	Capacity         uint64
	SizeMax, SegMax  uint32
	BlkSize          uint32
	PhysicalBlockExp uint8 // a physical block is 1<<exp logical ones
	AlignmentOffset  uint8
	MinIOSize        uint16 // in logical blocks, as OptIOSize
	OptIOSize        uint32
	Writeback        uint8 // 1: there is a volatile cache, and FLUSH empties it
	NumQueues        uint16

	MaxDiscardSectors, MaxDiscardSeg, DiscardSectorAlignment uint32
	MaxWriteZeroesSectors, MaxWriteZeroesSeg                 uint32
	WriteZeroesMayUnmap                                      uint8
}

// configBytes is how much of the configuration is read: as far as write zeroes. writebackAt is where the driver may write.
const (
	configBytes = 60
	writebackAt = 32
)

func parseConfig(b []byte) (c Config) {
	_ = b[configBytes-1]
	le := binary.LittleEndian
	c.Capacity, c.SizeMax, c.SegMax = le.Uint64(b), le.Uint32(b[8:]), le.Uint32(b[12:])
	c.BlkSize, c.PhysicalBlockExp, c.AlignmentOffset = le.Uint32(b[20:]), b[24], b[25]
	c.MinIOSize, c.OptIOSize = le.Uint16(b[26:]), le.Uint32(b[28:])
	c.Writeback, c.NumQueues = b[writebackAt], le.Uint16(b[34:])
	c.MaxDiscardSectors, c.MaxDiscardSeg, c.DiscardSectorAlignment = le.Uint32(b[36:]), le.Uint32(b[40:]), le.Uint32(b[44:])
	c.MaxWriteZeroesSectors, c.MaxWriteZeroesSeg, c.WriteZeroesMayUnmap = le.Uint32(b[48:]), le.Uint32(b[52:]), b[56]
	return c
}

// Range is what a discard or a write of zeroes is about: struct virtio_blk_discard_write_zeroes.
type Range struct {
	Sector  uint64
	Sectors uint32
	// Unmap: zeroes may be made by giving the blocks back.
	Unmap bool
}

const (
	headerBytes = 16
	rangeBytes  = 16
	// IDBytes is the length of what GET_ID writes: a serial, filled up with zeroes.
	IDBytes = 20
	// LifetimeBytes is the length of what GET_LIFETIME writes.
	LifetimeBytes = 6
)

// put writes the range.
func (r Range) put(b []byte) {
	var flags uint32
	if r.Unmap {
		flags = 1
	}
	binary.LittleEndian.PutUint64(b, r.Sector)
	binary.LittleEndian.PutUint32(b[8:], r.Sectors)
	binary.LittleEndian.PutUint32(b[12:], flags)
}

// Lifetime is struct virtio_blk_lifetime.
type Lifetime struct{ PreEOL, TypeA, TypeB uint16 }

func parseLifetime(b []byte) Lifetime {
	le := binary.LittleEndian
	return Lifetime{PreEOL: le.Uint16(b), TypeA: le.Uint16(b[2:]), TypeB: le.Uint16(b[4:])}
}
