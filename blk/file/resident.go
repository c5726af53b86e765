package file

import (
	"os"
	"sync/atomic"
	"time"

	"github.com/shuntio/shunt/dataplane/uring"
)

// residency is what is known of the page cache: a worker reads from there by itself, and leaves to others what it has not (lane.read). To ask the kernel costs a part of what a
// read of a page costs, so it is asked for a span at once, and what it says is believed for a moment. Pages that are given back within that are read with the worker's own hand,
// as is a page of a span that has not all of its pages only after it was asked for by itself.
//
// All lanes of a store share it; the last word about a span counts, whoever has it.
type residency struct {
	fd    int
	spans [spans]atomic.Uint64 // by the span's number, the last bits of it: what was said last
}

// 1 GiB is remembered, in spans of 1 MiB.
const (
	spanShift = 20
	spans     = 1 << 10
	// believed is for how long, in nanoseconds.
	believed = int64(250 * time.Millisecond)
)

// What was said of a span, in a word: when, in units of about a millisecond that wrap after 24 days; whether it has all its pages; and its number.
const (
	saidShift, saidBits = 33, 31
	wholeBit            = 1 << 32
	tickShift           = 20
)

var pageSize = uint64(os.Getpagesize())

// has tells whether all of a range is in the page cache, by now, in nanoseconds.
func (c *residency) has(offset, length uint64, now int64) bool {
	last := offset + length - 1
	for span := offset >> spanShift; c.whole(span, now); span++ {
		if span == last>>spanShift {
			return true
		}
	}
	return uring.Cached(c.fd, offset, length) == last/pageSize-offset/pageSize+1
}

// whole tells whether all of a span is.
func (c *residency) whole(span uint64, now int64) bool {
	at := &c.spans[span%spans]
	said, tick := at.Load(), uint64(now)>>tickShift
	if age := (tick - said>>saidShift) & (1<<saidBits - 1); age <= uint64(believed)>>tickShift && uint32(said) == uint32(span) {
		return said&wholeBit != 0
	}
	said = tick<<saidShift | uint64(uint32(span))
	if uring.Cached(c.fd, span<<spanShift, 1<<spanShift) == 1<<spanShift/pageSize {
		said |= wholeBit
	}
	at.Store(said)
	return said&wholeBit != 0
}
