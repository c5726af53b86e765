package blk

import (
	"encoding/binary"
	"errors"

	"github.com/shuntio/shunt/dataplane/virtq"
)

// A request of virtio-blk is a chain (virtio 1.2, section 5.2.6), wherever its descriptors are cut:
//
//	driver's                              device's
//	┌──────┬──────────┬────────┬ ─ ─ ─ ┐  ┌ ─ ─ ─ ┬────────┐
//	│ type │ reserved │ sector │ data     │ data  │ status │      sector: of 512 bytes; status: the last byte
//	└──────┴──────────┴────────┴ ─ ─ ─ ┘  └ ─ ─ ─ ┴────────┘
//	    4         4         8                          1
//
// Header and ranges are copied before anything in them is judged. What is wrong with a request that has a status byte, that byte tells the driver; one without breaks
// the ring.

const (
	sector      = 512
	headerBytes = 16
	rangeBytes  = 16
	serialBytes = 20
)

// maxRequest is how much a request may read or write. Drivers that look at SIZE_MAX and SEG_MAX stay far below; the firmware of a guest (EDK II) does not, and asks for up
// to 1 GiB at once. What is longer is nobody's, though descriptors could say 4 GiB each.
const maxRequest = 1 << 30

// Request types (virtio 1.2, 5.2.6).
const (
	typeIn          = 0
	typeOut         = 1
	typeFlush       = 4
	typeGetID       = 8
	typeGetLifetime = 10
	typeDiscard     = 11
	typeWriteZeroes = 13
)

// Status is the byte that a request ends with (virtio 1.2, 5.2.6).
type status uint8

const (
	statusOK    status = 0
	statusIOErr status = 1
	statusUnsup status = 2
	// handOn is none: the request is to be handed on.
	handOn status = 0xff
)

// errNoStatus says that a chain has no byte for us to write.
var errNoStatus = errors.New("a request without room for its status")

// limits are what requests are judged by, made anew when the store changes.
type limits struct {
	info     *Info
	size     uint64 // in sectors
	block    uint64 // in sectors, less one: a power of two
	discard  bool
	zeroes   bool
	readOnly bool
	serial   [serialBytes]byte
}

func limitsOf(i *Info, serial string) *limits {
	l := &limits{
		info: i, size: i.Size / sector, block: uint64(max(i.BlockSize, sector)/sector) - 1, readOnly: i.ReadOnly,
		discard: i.Discard && !i.ReadOnly, zeroes: i.WriteZeroes && !i.ReadOnly,
	}
	copy(l.serial[:], serial)
	return l
}

// within tells whether sectors are whole blocks of the disk.
func (l *limits) within(first, n uint64) bool {
	return first <= l.size && n <= l.size-first && (first|n)&l.block == 0
}

// span is a range of a discard or write-zeroes, in bytes.
type span struct {
	offset, length uint64
	unmap          bool
}

// slot is the place of one chain in its run, by its head.
type slot struct {
	Request
	run    *run
	chain  *virtq.Chain
	state  state
	status []byte // in the guest's memory
	room   uint32 // what the chain has for us to write, the status with it
	filled uint32 // how much of that has data, from its beginning on, where the request ends well
	ended  Outcome
	stable bool // the write is stable when it is done; FUA is the gate's while it has the request
	gone   bool // its buffers are in memory that the front-end took away
	lent   bool // the gate has it
	keeps  bool // it keeps such memory from being used for anything else
	spans  [MaxRanges]span
	at, n  int // of spans: the one under way, how many there are
}

// parse reads the request in the slot's chain. It makes of it what the store is to do, or says how it ends at once. through: a write that is done is stable.
func (s *slot) parse(l *limits, through bool) (status, error) {
	readable, writable := s.chain.Readable, s.chain.Writable
	room := uint64(0)
	for _, v := range writable {
		room += uint64(len(v))
	}
	if room == 0 {
		return 0, errNoStatus
	}
	s.room, s.filled = uint32(min(room, 1<<32-1)), 0
	last := &writable[len(writable)-1]
	s.status = (*last)[len(*last)-1:]
	if *last = (*last)[:len(*last)-1]; len(*last) == 0 {
		writable = writable[:len(writable)-1]
	}
	var header [headerBytes]byte
	n, readable := gather(header[:], readable)
	if n < headerBytes {
		return statusIOErr, nil
	}
	s.stable, s.Unmap, s.Buffers, s.Offset, s.Length, s.n, s.gone = false, false, nil, 0, 0, 0, false
	first := binary.LittleEndian.Uint64(header[8:])
	switch binary.LittleEndian.Uint32(header[:]) {
	case typeIn:
		return s.transfer(l, OpRead, first, writable), nil
	case typeOut:
		if l.readOnly {
			return statusIOErr, nil
		}
		s.stable = through
		return s.transfer(l, OpWrite, first, readable), nil
	case typeFlush:
		s.Op = OpFlush
		if !l.info.Flush {
			return statusOK, nil
		}
		return handOn, nil
	case typeDiscard:
		if !l.discard {
			return statusUnsup, nil
		}
		s.Op = OpDiscard
		return s.ranges(l, readable, maxDiscard/sector), nil
	case typeWriteZeroes:
		if !l.zeroes {
			return statusUnsup, nil
		}
		s.Op = OpWriteZeroes
		s.stable = through
		return s.ranges(l, readable, maxZeroes/sector), nil
	case typeGetID:
		s.filled = uint32(scatter(writable, l.serial[:]))
		return statusOK, nil
	case typeGetLifetime:
		return s.lifetime(l.info.Lifetime, writable), nil
	}
	return statusUnsup, nil
}

// transfer is for a read or write of what lies in buffers.
func (s *slot) transfer(l *limits, op Op, first uint64, buffers [][]byte) status {
	length := uint64(0)
	for _, v := range buffers {
		length += uint64(len(v))
	}
	if length > maxRequest || length%sector != 0 || !l.within(first, length/sector) {
		return statusIOErr
	}
	if length == 0 {
		return statusOK
	}
	if op == OpRead {
		s.filled = uint32(length)
	}
	s.Op, s.Offset, s.Length, s.Buffers = op, first*sector, length, buffers
	return handOn
}

// ranges reads those of a discard or write-zeroes, all before the first is done (virtio 1.2, 5.2.6.2).
func (s *slot) ranges(l *limits, data [][]byte, most uint32) status {
	verdict, have := statusOK, 0
	for ; ; have++ {
		var b [rangeBytes]byte
		n := 0
		if n, data = gather(b[:], data); n == 0 {
			break
		}
		if n < rangeBytes || have == MaxRanges {
			return statusIOErr
		}
		first, count, flags := binary.LittleEndian.Uint64(b[:]), binary.LittleEndian.Uint32(b[8:]), binary.LittleEndian.Uint32(b[12:])
		switch {
		case flags > 1 || flags == 1 && s.Op == OpDiscard:
			verdict = statusUnsup
		case count > most || !l.within(first, uint64(count)):
			verdict = max(verdict, statusIOErr)
		}
		if count > 0 {
			s.spans[s.n] = span{offset: first * sector, length: uint64(count) * sector, unmap: flags == 1}
			s.n++
		}
	}
	if have == 0 {
		return statusIOErr
	}
	if verdict != statusOK || s.n == 0 {
		return verdict
	}
	s.at = 0
	s.span()
	return handOn
}

// span makes the request that of the range it has come to.
func (s *slot) span() {
	r := &s.spans[s.at]
	s.Offset, s.Length, s.Unmap = r.offset, r.length, r.unmap
}

// lifetime writes struct virtio_blk_lifetime.
func (s *slot) lifetime(t *Lifetime, into [][]byte) status {
	if t == nil {
		return statusUnsup
	}
	var b [6]byte
	binary.LittleEndian.PutUint16(b[0:], t.PreEOL)
	binary.LittleEndian.PutUint16(b[2:], t.TypeA)
	binary.LittleEndian.PutUint16(b[4:], t.TypeB)
	if scatter(into, b[:]) < len(b) {
		return statusIOErr
	}
	s.filled = uint32(len(b))
	return statusOK
}

// gather fills p from the views, and returns what is left of them. The view it ends in is cut in its place.
func gather(p []byte, views [][]byte) (n int, rest [][]byte) {
	for len(views) > 0 && n < len(p) {
		c := copy(p[n:], views[0])
		n += c
		if c < len(views[0]) {
			views[0] = views[0][c:]
			break
		}
		views = views[1:]
	}
	return n, views
}

// scatter copies p into the views, as much as they take.
func scatter(views [][]byte, p []byte) (n int) {
	for _, v := range views {
		c := copy(v, p[n:])
		if n += c; n == len(p) {
			break
		}
	}
	return n
}
