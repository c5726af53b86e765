package dataplane

import (
	"encoding/binary"
	"sync/atomic"
	"time"

	"github.com/shuntio/shunt/dataplane/frame"
)

// The way of a captured frame:
//
//	Link.Tap ─▶ Tap.Frames, Tap.Dropped ─▶ Filter ─▶ this worker's ring of the Capture ─▶ Capture.Read
//	            on the worker, and only while somebody captures here                      on the reader's goroutine
//
// A worker copies at most Snaplen bytes, never waits and allocates nothing: where a ring is full, the frame is missed by the capture and by nobody
// else. Each worker writes to a ring of its own, so a link may move, and a frame may be dropped at a link that another worker owns.

// Filter chooses frames. Workers call it.
type Filter interface {
	// Match judges a frame of this length in bytes by its head.
	Match(head []byte, length int) bool
}

// CaptureOptions configure a Capture.
type CaptureOptions struct {
	// Workers is how many there are; the Index of each is below it. At least 1.
	Workers int
	// Snaplen is how many bytes of a frame are kept. Zero: all.
	Snaplen int
	// Room is how many bytes each worker's ring holds. Zero: 4 MiB, which a worker that forwards 64-byte frames at 5 Mpps fills in 8 ms.
	Room int
	// Filter chooses frames; nil: all.
	Filter Filter
}

// Capture collects copies of frames for one reader, from all links that have a Point of it in their Tap.
type Capture struct {
	snaplen int
	filter  Filter
	rings   []captureRing
}

// NewCapture makes a capture that nothing is fed to yet.
func NewCapture(o CaptureOptions) *Capture {
	if o.Snaplen <= 0 || o.Snaplen > frame.MaxLen {
		o.Snaplen = frame.MaxLen
	}
	if o.Room == 0 {
		o.Room = 4 << 20
	}
	room := 4096
	for room < o.Room || room < 2*recordSize(o.Snaplen) { // so that the longest record fits, wherever the last one ended
		room *= 2
	}
	c := &Capture{snaplen: o.Snaplen, filter: o.Filter, rings: make([]captureRing, max(o.Workers, 1))}
	for i := range c.rings {
		c.rings[i].data = make([]byte, room)
		for at := 0; at < room; at += 4096 {
			c.rings[i].data[at] = 1 // here, or the worker would take the page fault
		}
	}
	return c
}

// PointOptions say what a capture wants of a link.
type PointOptions struct {
	// ID is what the records of this point carry, to tell it from others.
	ID uint32
	// In and Out are the directions wanted.
	In, Out bool
	// Drops are the reasons wanted, of frames that are dropped at the link.
	Drops [MaxReasons]bool
}

// Point is one link as one Capture sees it.
type Point struct {
	capture *Capture
	id      uint32
	wants   [2]bool // by Direction
	drops   [MaxReasons]bool

	seen, missed atomic.Uint64
}

// Point makes a point of the capture. It becomes effective in a link's Tap.
func (c *Capture) Point(o PointOptions) *Point {
	return &Point{capture: c, id: o.ID, wants: [2]bool{In: o.In, Out: o.Out}, drops: o.Drops}
}

// Seen is how many frames the filter has let through here; Missed is how many of them are in no record, because a ring was full.
func (p *Point) Seen() uint64 { return p.seen.Load() }

// Missed is explained at Seen.
func (p *Point) Missed() uint64 { return p.missed.Load() }

// Tap is what a link's worker shows frames to, for all captures at once. It never changes: a link gets another one.
type Tap struct{ points []*Point }

// NewTap makes a tap of the points; nil if there are none.
func NewTap(points ...*Point) *Tap {
	if len(points) == 0 {
		return nil
	}
	return &Tap{points}
}

// Frames shows a vector of frames: those that a port brought in, before they are judged, or those that are on their way to Transmit. The slots
// may be nil. The bodies may be a guest's memory, so this may fault, and the frames are in a vector where the worker finds them then. worker
// is the Index of the calling one.
func (t *Tap) Frames(worker int, d Direction, frames []*frame.Frame) {
	now := time.Now().UnixNano()
	for _, p := range t.points {
		if !p.wants[d] {
			continue
		}
		for _, f := range frames {
			if f != nil {
				p.take(worker, mark{time: now, direction: uint8(d)}, f, f.Body())
			}
		}
	}
}

// Dropped shows a frame that is dropped for a reason. Of what it has borrowed nothing is kept, only its head: nobody has the frame in a vector
// any more, and so a fault would lose it.
func (t *Tap) Dropped(worker int, f *frame.Frame, why Reason) {
	now := time.Now().UnixNano()
	for _, p := range t.points {
		if !p.drops[why%MaxReasons] {
			continue
		}
		body := f.Body()
		if f.Borrowed() {
			body = nil
		}
		p.take(worker, mark{time: now, direction: uint8(In), dropped: 1, reason: uint8(why)}, f, body)
	}
}

// take copies one frame.
func (p *Point) take(worker int, m mark, f *frame.Frame, body [][]byte) {
	c := p.capture
	if c.filter != nil && !c.filter.Match(f.Head(), f.Len()) {
		return
	}
	var room []byte
	if uint(worker) < uint(len(c.rings)) {
		room = c.rings[worker].reserve(min(f.Len(), c.snaplen))
	}
	if room == nil {
		p.seen.Add(1)
		p.missed.Add(1)
		return
	}
	n := copy(room, f.Head())
	for _, piece := range body {
		if n == len(room) {
			break
		}
		n += copy(room[n:], piece)
	}
	// No fault any more: count, and show the record.
	p.seen.Add(1)
	m.point, m.captured, m.length = p.id, uint32(n), uint32(f.Len())
	c.rings[worker].publish(m)
}

// Record is one captured frame.
type Record struct {
	// Point is the ID of the point it was seen at.
	Point uint32
	// Direction is the frame's, and without meaning if it was Dropped for a Reason.
	Direction Direction
	Dropped   bool
	Reason    Reason
	// Time is that of the wall clock, in nanoseconds since 1970. All frames of a vector have the same.
	Time int64
	// Length is the frame's; Data may be less of it.
	Length int
	// Data may be read until the next Read of the capture.
	Data []byte
}

// Read takes the oldest record that lies in any worker's ring. It reports false if all are empty. There is one reader at a time.
func (c *Capture) Read(into *Record) bool {
	var oldest *captureRing
	var first mark
	for i := range c.rings {
		r := &c.rings[i]
		r.release()
		if m, ok := r.peek(); ok && (oldest == nil || m.time < first.time) {
			oldest, first = r, m
		}
	}
	if oldest == nil {
		return false
	}
	*into = Record{
		Point: first.point, Direction: Direction(first.direction), Dropped: first.dropped != 0, Reason: Reason(first.reason),
		Time: first.time, Length: int(first.length), Data: oldest.take(first),
	}
	return true
}

// A record in a ring, each at a multiple of 8 bytes and in one piece:
//
//	0       4          8        12      16      24          25        26       27     32
//	├ size ─┼ captured ┼ length ┼ point ┼ time ─┼ direction ┼ dropped ┼ reason ┼ pad ─┼ data ...
//
// A size of zero says that the rest of the ring's memory is left out and the next record begins at its front.
const recordHeader = 32

// recordSize is what a record of n bytes takes.
func recordSize(n int) int { return (recordHeader + n + 7) &^ 7 }

// mark is a record's header.
type mark struct {
	captured, length, point    uint32
	time                       int64
	direction, dropped, reason uint8
}

func (m mark) put(b []byte) {
	le := binary.LittleEndian
	_ = b[recordHeader-1]
	le.PutUint32(b[0:], uint32(recordSize(int(m.captured))))
	le.PutUint32(b[4:], m.captured)
	le.PutUint32(b[8:], m.length)
	le.PutUint32(b[12:], m.point)
	le.PutUint64(b[16:], uint64(m.time))
	b[24], b[25], b[26] = m.direction, m.dropped, m.reason
}

func getMark(b []byte) mark {
	le := binary.LittleEndian
	_ = b[recordHeader-1]
	return mark{
		captured: le.Uint32(b[4:]), length: le.Uint32(b[8:]), point: le.Uint32(b[12:]), time: int64(le.Uint64(b[16:])),
		direction: b[24], dropped: b[25], reason: b[26],
	}
}

// captureRing holds records between a worker and the reader. Positions only grow; modulo the length of data they are places in it.
type captureRing struct {
	data []byte

	_    [64]byte
	next uint64        // the worker's: where the reserved record begins
	seen uint64        // the worker's: head when it looked last
	tail atomic.Uint64 // end of what may be read; written by the worker
	_    [64]byte
	head atomic.Uint64 // end of what was read; written by the reader
	read uint64        // the reader's: end of what it is looking at
	_    [64]byte
}

// reserve finds room for n bytes of data; nil if there is none. Until publish nothing has happened.
func (r *captureRing) reserve(n int) []byte {
	size, length := uint64(recordSize(n)), uint64(len(r.data))
	r.next = r.tail.Load()
	at := r.next % length
	skip := uint64(0)
	if at+size > length {
		skip = length - at
	}
	if r.next+skip+size-r.seen > length {
		if r.seen = r.head.Load(); r.next+skip+size-r.seen > length {
			return nil
		}
	}
	if skip > 0 {
		binary.LittleEndian.PutUint32(r.data[at:], 0)
		r.next += skip
		at = 0
	}
	return r.data[at+recordHeader : at+recordHeader+uint64(n)]
}

// publish shows the record whose data was written where reserve said.
func (r *captureRing) publish(m mark) {
	at := r.next % uint64(len(r.data))
	m.put(r.data[at:])
	r.tail.Store(r.next + uint64(recordSize(int(m.captured))))
}

// peek finds the next record.
func (r *captureRing) peek() (mark, bool) {
	tail, length := r.tail.Load(), uint64(len(r.data))
	if r.read == tail {
		return mark{}, false
	}
	if at := r.read % length; binary.LittleEndian.Uint32(r.data[at:]) == 0 {
		r.read += length - at
	}
	return getMark(r.data[r.read%length:]), true
}

// take returns the data of the record that peek found, and goes on behind it.
func (r *captureRing) take(m mark) []byte {
	at := r.read%uint64(len(r.data)) + recordHeader
	r.read += uint64(recordSize(int(m.captured)))
	return r.data[at : at+uint64(m.captured)]
}

// release gives the worker back what the reader has looked at.
func (r *captureRing) release() {
	if r.head.Load() != r.read {
		r.head.Store(r.read)
	}
}
