package nbd

import (
	"errors"
	"fmt"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/dataplane/guestmem"
)

// The server's stream, as it comes in:
//
//	           ┌── into the guest's memory ──┐┌── into the inbox ──────────┐
//	─── chunk ─┤ rest of the payload         ├┤ chunk │ chunk+data │ chu...│   one receive
//	           └─────────────────────────────┘└────────────────────────────┘
//
// Each receive has room for the rest of the payload that is due, right where it belongs, and behind it for what follows. What lies in the inbox is parsed,
// and payloads in it are copied to where they belong; of the one that is not whole, the rest is where the next receive begins. So no byte is
// ever taken twice or put back, and the only question is how much of the inbox is offered: while large reads are on their way no more than
// a header, so that their payloads are not caught in it; else all of it, so that one receive brings many answers.
//
// A header is judged before a byte of its payload is written: it must name a command that is on its way, and lie within it, where nothing was written before.
type replies struct {
	table      *table
	structured bool
	inbox      []byte // what is not parsed yet is from..to
	from, to   int
	want       int // how long a header is that is not whole

	owner *part  // whose payload is coming in
	rest  uint32 // how much of it is still due; then the inbox is empty, or what comes is dropped
	at    place  // where that belongs
	last  bool   // the answer is complete then
	gap   uint32 // bytes of a hole that are still to be zeroed; then nothing behind it is parsed
	aimed int    // bytes of the receive under way that go to the guest's memory
}

// inboxSize takes the answers to 15 reads of 4 KiB at once.
const inboxSize = 64 << 10

// mixedRoom is what is offered of the inbox while both large reads and others are on their way: many answers without data, little of a payload.
const mixedRoom = 512

// errShutdown is what a server says that wants to go.
var errShutdown = errors.New("the server is shutting down")

// errUnasked is why a connection ends on which an answer comes to nothing.
var errUnasked = fmt.Errorf("%w: it answers a request that it was not sent", ErrProtocol)

// vector is where aim puts what a receive can fill.
type vector interface{ Add(b []byte) bool }

// begin is for a new connection.
func (s *replies) begin(structured bool) {
	*s = replies{table: s.table, inbox: s.inbox, structured: structured}
}

// aim says where what comes next has to go, and whether it is worth a wait until all of that is there: a server sends a large payload in pieces, each of which
// would be a receive. What is waited for is no more than counts as a sign of life.
func (s *replies) aim(v vector) (all bool) {
	s.aimed = 0
	if s.from > 0 {
		s.to = copy(s.inbox, s.inbox[s.from:s.to])
		s.from = 0
	}
	if s.rest > 0 && !s.owner.sinks() {
		if n := min(int(s.rest), movement); !s.direct(v, n) || n < int(s.rest) || n >= large {
			return s.aimed >= large
		}
	}
	v.Add(s.inbox[s.to : s.to+s.room()])
	return false
}

// direct adds the next rest bytes of the guest's memory, and tells whether there was room for all of it.
func (s *replies) direct(v vector, rest int) bool {
	at := s.at
	for rest > 0 {
		b := s.owner.task.r.Buffers[at.buffer][at.offset:]
		b = b[:min(len(b), rest)]
		if !v.Add(b) {
			return false
		}
		s.aimed += len(b)
		rest -= len(b)
		at = place{buffer: at.buffer + 1}
	}
	return true
}

// room is how much of the inbox is offered.
func (s *replies) room() int {
	free, have := len(s.inbox)-s.to, s.to-s.from
	if s.rest > 0 && s.owner.sinks() {
		return free
	}
	n := free
	switch header := s.header(); {
	case s.table.large == 0:
	case s.table.large == s.table.inflight:
		n = header - have
	default:
		n = mixedRoom
	}
	return min(max(n, s.want-have, 1), free)
}

// header is how long those are that come before the data of a read.
func (s *replies) header() int {
	if s.structured {
		return chunkDataSize
	}
	return simpleSize
}

// arrived takes n bytes that came to where aim said.
func (s *replies) arrived(n int) error {
	if direct := min(n, s.aimed); direct > 0 {
		s.at = s.at.forward(s.owner.task.r.Buffers, direct)
		s.rest -= uint32(direct)
		n -= direct
	}
	s.aimed = 0
	s.to += n
	return s.parse()
}

// parse takes what lies in the inbox as far as it goes.
func (s *replies) parse() error {
	for zeroed := 0; ; {
		if zeroed = s.blank(zeroed); s.gap > 0 {
			return nil
		}
		if s.rest > 0 {
			s.payload()
		}
		if s.rest > 0 {
			return nil
		}
		if p := s.owner; p != nil {
			s.owner = nil
			if s.last {
				if err := s.complete(p); err != nil {
					return err
				}
			}
		}
		s.want = 0
		n, err := s.next(s.inbox[s.from:s.to])
		if n == 0 || err != nil {
			return err
		}
		s.from += n
	}
}

// blank zeroes what is due of a hole, and returns how much has been zeroed in one go by then: no more than mostZeroed, since a few bytes of a server's make us write any number.
func (s *replies) blank(zeroed int) int {
	for s.gap > 0 && zeroed < mostZeroed && !s.owner.sinks() {
		n := min(int(s.gap), len(zeroes))
		s.scatter(zeroes[:n])
		s.gap -= uint32(n)
		zeroed += n
	}
	if s.gap > 0 && s.owner.sinks() {
		s.gap = 0
	}
	return zeroed
}

// payload moves what the inbox has of it.
func (s *replies) payload() {
	n := min(int(s.rest), s.to-s.from)
	if n > 0 && !s.owner.sinks() {
		s.scatter(s.inbox[s.from : s.from+n])
	}
	s.from += n
	s.rest -= uint32(n)
}

// scatter copies to where s.at is. A guest that has taken its memory away has a read that fails, and we go on.
func (s *replies) scatter(data []byte) {
	buffers := s.owner.task.r.Buffers
	for len(data) > 0 {
		to := buffers[s.at.buffer][s.at.offset:]
		n := min(len(to), len(data))
		if !guestmem.Copy(to[:n], data[:n]) {
			s.fault()
			return
		}
		s.at = s.at.forward(buffers, n)
		data = data[n:]
	}
}

// fault: the buffers that the payload is for are not there.
func (s *replies) fault() {
	if s.owner != nil && s.owner.task != nil {
		s.owner.drop, s.owner.outcome = true, blk.Failed
	}
}

// next takes the header at the front, and returns how long it is; 0: it is not whole.
func (s *replies) next(b []byte) (int, error) {
	if len(b) < 4 {
		s.want = simpleSize
		return 0, nil
	}
	switch magic := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3]); {
	case magic == simpleMagic:
		return s.simple(b)
	case magic == structuredMagic && s.structured:
		return s.chunk(b)
	default:
		return 0, fmt.Errorf("%w: a reply begins with %#x", ErrProtocol, magic)
	}
}

// whole tells whether there are n bytes; otherwise that many are wanted.
func (s *replies) whole(b []byte, n int) bool {
	if len(b) < n {
		s.want = n
		return false
	}
	return true
}

func (s *replies) simple(b []byte) (int, error) {
	if !s.whole(b, simpleSize) {
		return 0, nil
	}
	r := simple(b)
	p := s.table.find(r.cookie())
	switch {
	case p == nil || p.replied:
		return 0, errUnasked
	case p.command == cmdRead && s.structured:
		return 0, fmt.Errorf("%w: it answers a read with a simple reply, and structured ones were agreed", ErrProtocol)
	case r.errno() != 0:
		if err := s.failed(p, r.errno()); err != nil {
			return 0, err
		}
	case p.command == cmdRead:
		s.owner, s.rest, s.last = p, p.length, true
		if err := p.cover(0, p.length); err != nil {
			return 0, fmt.Errorf("%w: a read is answered with %w", ErrProtocol, err)
		}
		if !p.sinks() {
			s.at = p.at(0)
		}
		return simpleSize, nil
	}
	s.owner, s.last = p, true
	return simpleSize, nil
}

func (s *replies) chunk(b []byte) (int, error) {
	if !s.whole(b, chunkSize) {
		return 0, nil
	}
	c := chunk(b)
	p := s.table.find(c.cookie())
	if p == nil || p.replied {
		return 0, errUnasked
	}
	var n int
	var err error
	switch kind := c.kind(); {
	case kind == chunkNone:
		if c.length() != 0 || c.flags()&chunkDone == 0 {
			return 0, fmt.Errorf("%w: a chunk of nothing has %d bytes, or is not the last one", ErrProtocol, c.length())
		}
		n = chunkSize
	case kind == chunkOffsetData && p.command == cmdRead:
		n, err = s.data(p, c)
	case kind == chunkOffsetHole && p.command == cmdRead:
		n, err = s.hole(p, c)
	case kind&chunkErrorBit != 0:
		n, err = s.failure(p, c)
	default:
		return 0, fmt.Errorf("%w: it answers a %s with a chunk of type %d", ErrProtocol, commandName(p.command), kind)
	}
	if n > 0 && err == nil {
		s.owner, s.last = p, c.flags()&chunkDone != 0
	}
	return n, err
}

// data begins a payload.
func (s *replies) data(p *part, c chunk) (int, error) {
	switch {
	case c.length() <= 8:
		return 0, fmt.Errorf("%w: a chunk of data has %d bytes", ErrProtocol, c.length())
	case !s.whole(c, chunkDataSize):
		return 0, nil
	}
	from, err := within(p, c.offset(), c.length()-8)
	if err != nil {
		return 0, err
	}
	s.rest = c.length() - 8
	if !p.sinks() {
		s.at = p.at(from)
	}
	return chunkDataSize, nil
}

// hole is a payload of zeroes that are not sent.
func (s *replies) hole(p *part, c chunk) (int, error) {
	switch {
	case c.length() != chunkHoleSize-chunkSize:
		return 0, fmt.Errorf("%w: a chunk that is a hole has %d bytes", ErrProtocol, c.length())
	case !s.whole(c, chunkHoleSize):
		return 0, nil
	case c.hole() == 0:
		return 0, fmt.Errorf("%w: a hole has no bytes", ErrProtocol)
	}
	from, err := within(p, c.offset(), c.hole())
	if err != nil {
		return 0, err
	}
	if !p.sinks() {
		s.at, s.gap = p.at(from), c.hole()
	}
	return chunkHoleSize, nil
}

// zeroes are what holes are made of, mostZeroed how much is zeroed before others have their turn.
var zeroes [32 << 10]byte

const mostZeroed = 512 << 10

// within is where in a part a chunk begins, which must lie within it, where nothing was written before.
func within(p *part, offset uint64, length uint32) (uint32, error) {
	from := offset - p.offset
	if offset < p.offset || from > uint64(p.length) || uint64(length) > uint64(p.length)-from {
		return 0, fmt.Errorf("%w: a read of %d bytes at %d is answered with %d bytes at %d", ErrProtocol, p.length, p.offset, length, offset)
	}
	if err := p.cover(uint32(from), uint32(from)+length); err != nil {
		return 0, fmt.Errorf("%w: a read is answered with %w", ErrProtocol, err)
	}
	return uint32(from), nil
}

// failure is a chunk that says what went wrong.
func (s *replies) failure(p *part, c chunk) (int, error) {
	least := uint32(errorSize)
	if c.kind() == chunkErrorOffset {
		least = errorOffsetSize
	}
	switch {
	case c.length() < least || c.length() > maxErrorSize:
		return 0, fmt.Errorf("%w: an error of %d bytes", ErrProtocol, c.length())
	case !s.whole(c, chunkSize+int(c.length())):
		return 0, nil
	case uint32(c.message()) > c.length()-least:
		return 0, fmt.Errorf("%w: an error of %d bytes has a message of %d", ErrProtocol, c.length(), c.message())
	case c.errno() == 0:
		return 0, fmt.Errorf("%w: an error of number 0", ErrProtocol)
	}
	if p.errors++; p.errors > maxErrors {
		return 0, fmt.Errorf("%w: more than %d errors for one request", ErrProtocol, maxErrors)
	}
	return chunkSize + int(c.length()), s.failed(p, c.errno())
}

// failed notes that a command failed, and how.
func (s *replies) failed(p *part, errno uint32) error {
	switch errno {
	case errnoShutdown:
		return errShutdown
	case errnoNotSupported:
		if p.outcome == blk.OK {
			p.outcome = blk.Unsupported
		}
	default:
		p.outcome = blk.Failed
	}
	return nil
}

// complete: the answer is over.
func (s *replies) complete(p *part) error {
	if p.command == cmdRead && p.outcome == blk.OK && !p.covered() {
		return fmt.Errorf("%w: it says a read is done and has left out some of it", ErrProtocol)
	}
	s.table.answered(p)
	return nil
}
