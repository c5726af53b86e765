package driver

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/shuntio/shunt/dataplane/virtq"
)

// ErrStatus says that the device answered with something other than OK.
var ErrStatus = errors.New("device answered")

// ErrTimeout says that no answer came in time.
var ErrTimeout = errors.New("no answer in time")

// Sync uses a queue one request at a time, as tools do. The queue must not be used otherwise meanwhile.
type Sync struct {
	// Timeout of each request. Zero: 30 s.
	Timeout time.Duration

	disk   *Disk
	queue  *Queue
	buffer Buffer
	done   [1]*Request
}

// NewSync takes a queue and n bytes of guest memory.
func (d *Disk) NewSync(queue, n int) (*Sync, error) {
	b, err := d.Alloc(max(n, IDBytes))
	if err != nil {
		return nil, err
	}
	return &Sync{disk: d, queue: d.queues[queue], buffer: b}, nil
}

// Do submits a request and waits for its answer, whatever that is.
func (s *Sync) Do(r *Request) error {
	if err := s.queue.Submit(r); err != nil {
		return err
	}
	timeout := s.Timeout
	if timeout == 0 {
		timeout = 30 * time.Second
	}
	for end := time.Now().Add(timeout); ; {
		in := s.queue.Wait(time.Until(end).Abs())
		n, err := s.queue.Poll(s.done[:])
		switch {
		case err != nil:
			return err
		case n == 1 && s.done[0] != r:
			return fmt.Errorf("%w: somebody else's request was answered", ErrLedger)
		case n == 1:
			return nil
		case !in || !time.Now().Before(end):
			return fmt.Errorf("%v of sector %d: %w: %s", r.Op, r.Sector, ErrTimeout, s.queue.Stuck())
		}
	}
}

// ok is Do for requests that must be answered with OK.
func (s *Sync) ok(r *Request) error {
	if err := s.Do(r); err != nil {
		return err
	}
	if r.Status != OK {
		return fmt.Errorf("%v of sector %d: %w %v", r.Op, r.Sector, ErrStatus, r.Status)
	}
	return nil
}

// ReadAt reads len(p) bytes at an offset, both whole sectors.
func (s *Sync) ReadAt(p []byte, offset int64) (n int, err error) {
	for n < len(p) {
		part := min(len(p)-n, len(s.buffer.Bytes)/SectorSize*SectorSize)
		r := &Request{Op: In, Sector: uint64(offset+int64(n)) / SectorSize, Data: []virtq.Buffer{s.buffer.Segment(0, part)}}
		if err := s.ok(r); err != nil {
			return n, err
		}
		n += copy(p[n:], s.buffer.Bytes[:part])
	}
	return n, nil
}

// WriteAt writes, as ReadAt reads.
func (s *Sync) WriteAt(p []byte, offset int64) (n int, err error) {
	for n < len(p) {
		part := copy(s.buffer.Bytes[:len(s.buffer.Bytes)/SectorSize*SectorSize], p[n:])
		r := &Request{Op: Out, Sector: uint64(offset+int64(n)) / SectorSize, Data: []virtq.Buffer{s.buffer.Segment(0, part)}}
		if err := s.ok(r); err != nil {
			return n, err
		}
		n += part
	}
	return n, nil
}

// Flush has everything that was written be on stable storage.
func (s *Sync) Flush() error { return s.ok(&Request{Op: Flush}) }

// Discard tells that the ranges are not needed any more.
func (s *Sync) Discard(ranges ...Range) error { return s.ok(&Request{Op: Discard, Ranges: ranges}) }

// WriteZeroes writes zeroes.
func (s *Sync) WriteZeroes(ranges ...Range) error {
	return s.ok(&Request{Op: WriteZeroes, Ranges: ranges})
}

// ID asks for the disk's serial.
func (s *Sync) ID() (string, error) {
	clear(s.buffer.Bytes[:IDBytes])
	err := s.ok(&Request{Op: GetID, Data: []virtq.Buffer{s.buffer.Segment(0, IDBytes)}})
	id, _, _ := strings.Cut(string(s.buffer.Bytes[:IDBytes]), "\x00")
	return id, err
}

// Lifetime asks how much of the disk is used up.
func (s *Sync) Lifetime() (Lifetime, error) {
	err := s.ok(&Request{Op: GetLifetime, Data: []virtq.Buffer{s.buffer.Segment(0, LifetimeBytes)}})
	return parseLifetime(s.buffer.Bytes), err
}

// Size is the disk's capacity in bytes.
func (d *Disk) Size() int64 { return int64(d.Config().Capacity * SectorSize) }
