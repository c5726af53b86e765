package driver

import (
	"encoding/binary"

	"github.com/shuntio/shunt/dataplane/virtq"
)

// Request is one request. Its maker keeps it; between Submit and the Poll that returns it, it is the queue's, and so is what Data names.
type Request struct {
	Op Op
	// Sector is where a read or write begins.
	Sector uint64
	// Data are the buffers of a read, write, GET_ID or GET_LIFETIME, in guest memory.
	Data []virtq.Buffer
	// Ranges are those of a discard or a write of zeroes.
	Ranges []Range
	// HeaderParts is into how many descriptors the 16 bytes in front are cut; any number up to 16 is legal (virtio 1.2, 2.7.4). Zero: one.
	HeaderParts int

	// Status and Written are the device's answer: the status byte, and how many bytes it says it wrote, the status included.
	Status  Status
	Written uint32
	// Began and Ended are when it was submitted and when its answer was seen, in nanoseconds of Now. Only where Options.Clock is set.
	Began, Ended int64
	// Tag is the maker's.
	Tag int
}

// slot is where a request under way has what is not the caller's, in guest memory:
//
//	 0        16       17     32            32+16*ranges
//	┌────────┬────────┬──────┬─────────────┬────────────────┐
//	│ header │ status │      │ ranges      │ indirect table │
//	└────────┴────────┴──────┴─────────────┴────────────────┘
type slot struct {
	request *Request
	age     uint64 // which Submit it was
	bytes   []byte
	addr    uint64
}

const (
	statusAt = 16
	rangesAt = 32
)

// slotBytes is the size of a slot.
func (o *Options) slotBytes() int {
	return up(rangesAt+rangeBytes*o.Ranges+16*(o.Segments+headerBytes+1), 64)
}

func (q *Queue) tableAt() int { return rangesAt + rangeBytes*q.disk.options.Ranges }

// compose writes what the slot holds of its request, and the chain's buffers into readable and writable.
func (q *Queue) compose(s *slot) {
	r, le := s.request, binary.LittleEndian
	le.PutUint32(s.bytes, uint32(r.Op))
	le.PutUint32(s.bytes[4:], 0)
	le.PutUint64(s.bytes[8:], r.Sector)
	s.bytes[statusAt] = byte(unanswered)

	q.readable, q.writable = q.readable[:0], q.writable[:0]
	for at, parts := 0, max(1, min(r.HeaderParts, headerBytes)); parts > 0; parts-- {
		n := (headerBytes - at) / parts
		q.readable = append(q.readable, virtq.Buffer{Addr: s.addr + uint64(at), Len: uint32(n)})
		at += n
	}
	switch r.Op {
	case Out:
		q.readable = append(q.readable, r.Data...)
	case Discard, WriteZeroes, SecureErase:
		for i, one := range r.Ranges {
			one.put(s.bytes[rangesAt+i*rangeBytes:])
		}
		if len(r.Ranges) > 0 {
			q.readable = append(q.readable, virtq.Buffer{Addr: s.addr + rangesAt, Len: uint32(rangeBytes * len(r.Ranges))})
		}
	default:
		q.writable = append(q.writable, r.Data...)
	}
	q.writable = append(q.writable, virtq.Buffer{Addr: s.addr + statusAt, Len: 1})
}
