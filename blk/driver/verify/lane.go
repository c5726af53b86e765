package verify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"time"

	"github.com/shuntio/shunt/blk/driver"
	"github.com/shuntio/shunt/dataplane/virtq"
)

// lane is the load on one queue, on one goroutine:
//
//	run: make ─▶ submit ─▶ ... depth of them ... ─▶ wait ─▶ finish ─▶ make
type lane struct {
	load   *Load
	queue  *driver.Queue
	random *rand.Rand
	jobs   []*job
	idle   []*job
	done   []*driver.Request
	report *Report
}

// job is a request with what is to be remembered of it.
type job struct {
	driver.Request
	buffer   driver.Buffer // MaxBytes and the guard
	from, to int           // units
	issued   uint64        // by the model's time
	ranges   [1]driver.Range
	segments [maxSegments]virtq.Buffer
}

// maxSegments is how many pieces a request's data is cut into at most.
const maxSegments = 16

func newLane(l *Load, queue int) (*lane, error) {
	a := &lane{load: l, queue: l.o.Disk.Queue(queue), random: rand.New(rand.NewPCG(l.o.Seed, uint64(queue)))}
	a.done = make([]*driver.Request, l.o.Depth)
	for i := range l.o.Depth {
		b, err := l.o.Disk.Alloc(l.o.MaxBytes + guard)
		if err != nil {
			return nil, err
		}
		j := &job{buffer: b}
		j.Tag = i
		a.jobs = append(a.jobs, j)
	}
	a.idle = append(a.idle, a.jobs...)
	return a, nil
}

// run is the whole of it: load, and then quiet.
func (a *lane) run(ctx context.Context) error {
	before := a.queue.Stats()
	for {
		for len(a.idle) > 0 && ctx.Err() == nil && a.load.left.Load() > 0 {
			ok, err := a.next()
			if err != nil {
				return err
			}
			if !ok {
				break
			}
		}
		if a.queue.Under() == 0 {
			if ctx.Err() != nil || a.load.left.Load() <= 0 {
				break
			}
			time.Sleep(100 * time.Microsecond) // others are where we would go
			continue
		}
		if err := a.reap(); err != nil {
			return err
		}
	}
	now := a.queue.Stats()
	if sent, back := now.Submitted-before.Submitted, now.Completed-before.Completed; sent != back || len(a.idle) != len(a.jobs) {
		return fmt.Errorf("%w: %d requests submitted, %d answered", driver.ErrLedger, sent, back)
	}
	return nil
}

// next submits one more request. It reports false when the queue has no room, or when whatever was tried is where another request is.
func (a *lane) next() (bool, error) {
	if a.load.left.Add(-1) < 0 {
		return false, nil
	}
	j := a.idle[len(a.idle)-1]
	for range 8 {
		if !a.make(j) {
			continue
		}
		err := a.queue.Submit(&j.Request)
		if err == nil {
			a.idle = a.idle[:len(a.idle)-1]
			return true, nil
		}
		a.forget(j)
		if !errors.Is(err, driver.ErrFull) {
			return false, err
		}
		break
	}
	a.load.left.Add(1)
	return false, nil
}

// make fills in a request, and tells the model.
func (a *lane) make(j *job) (ok bool) {
	l := a.load
	j.Request = driver.Request{Op: l.o.Mix.choose(a.random), Tag: j.Tag, HeaderParts: 1 + a.random.IntN(4)/3*a.random.IntN(5)}
	n := 1
	if most := l.o.MaxBytes / l.o.MinBytes; most > 1 {
		n = min(1+a.random.IntN(1<<a.random.IntN(bits.Len(uint(most)))), most)
	}
	j.from = a.random.IntN(l.units - n + 1)
	j.to = j.from + n
	j.Sector = uint64(j.from*l.o.MinBytes) / blockSize
	switch j.Op {
	case driver.Flush:
		j.Sector, j.issued, ok = 0, l.model.beginFlush(), true
	case driver.In:
		if j.issued, ok = l.model.beginRead(j.from, j.to, l.o.Overlap); ok {
			a.place(j)
		}
	case driver.Out:
		if j.issued, ok = l.model.beginWrite(j.from, j.to, data, l.o.Overlap); ok {
			a.place(j)
		}
	default:
		k := zeroes
		if j.Op == driver.Discard {
			k = discarded
		}
		j.issued, ok = l.model.beginWrite(j.from, j.to, k, l.o.Overlap)
		j.ranges[0] = driver.Range{Sector: j.Sector, Sectors: uint32(n * l.o.MinBytes / blockSize), Unmap: j.Op == driver.WriteZeroes && a.random.IntN(2) == 0}
		j.Ranges, j.Sector = j.ranges[:], 0
	}
	return ok
}

// forget takes back what make told the model.
func (a *lane) forget(j *job) {
	switch j.Op {
	case driver.Flush:
		a.load.model.forgetFlush(j.issued)
	case driver.In:
		_ = a.load.model.endRead(j.from, j.to, j.issued, nil)
	default:
		a.load.model.endWrite(j.from, j.to, j.issued, false)
	}
}

// place fills the buffer and cuts it into segments, not always at the bounds of sectors.
func (a *lane) place(j *job) {
	n := (j.to - j.from) * a.load.o.MinBytes
	for at := 0; at < n; at += blockSize {
		block := j.buffer.Bytes[at : at+blockSize]
		if j.Op == driver.Out {
			stamp{sector: j.Sector + uint64(at/blockSize), generation: j.issued, seed: a.load.o.Seed}.write(block)
		} else {
			poison(block)
		}
	}
	fill(j.buffer.Bytes[n:])
	most := maxSegments
	if c := a.load.o.Disk.Config(); c.SegMax > 0 && a.load.o.Disk.Features()&driver.FeatureSegMax != 0 {
		most = min(most, int(c.SegMax))
	}
	parts := 1 + a.random.IntN(most)
	j.Data = j.segments[:0]
	for at := 0; parts > 0 && at < n; parts-- {
		size := n - at
		if parts > 1 {
			size = 1 + a.random.IntN(size)
			if a.random.IntN(2) == 0 {
				size = min(max(size/blockSize*blockSize, blockSize), n-at)
			}
		}
		j.Data = append(j.Data, j.buffer.Segment(at, size))
		at += size
	}
}

// fill writes what nobody is to touch.
func fill(b []byte) {
	for i := range b[:64] {
		b[i] = 0x5a
	}
}

var untouched = bytes.Repeat([]byte{0x5a}, 64)

// reap waits for answers and judges them.
func (a *lane) reap() error {
	before := time.Now()
	for {
		n, err := a.queue.Poll(a.done)
		for _, r := range a.done[:n] {
			if err := a.finish(a.jobs[r.Tag]); err != nil {
				return err
			}
		}
		if err != nil || n > 0 {
			return err
		}
		if !a.queue.Wait(time.Until(before.Add(a.load.o.Stall))) && time.Since(before) >= a.load.o.Stall {
			return fmt.Errorf("%w: nothing for %v: %s", driver.ErrTimeout, a.load.o.Stall, a.queue.Stuck())
		}
	}
}

// finish judges an answer.
func (a *lane) finish(j *job) (err error) {
	a.idle = append(a.idle, j)
	a.report.count(&j.Request, (j.to-j.from)*a.load.o.MinBytes)
	ok, l := j.Status == driver.OK, a.load
	written := uint32(1)
	switch j.Op {
	case driver.Flush:
		err = l.model.endFlush(j.issued, ok)
		ok = ok || l.crashing.Load() > 0
	case driver.In:
		p := j.buffer.Bytes[:(j.to-j.from)*l.o.MinBytes]
		if written += uint32(len(p)); !ok {
			p = nil
		}
		err = l.model.endRead(j.from, j.to, j.issued, p)
		if err == nil && !bytes.Equal(j.buffer.Bytes[(j.to-j.from)*l.o.MinBytes:][:len(untouched)], untouched) {
			err = fmt.Errorf("%w: the device wrote behind the buffers of a read", ErrData)
		}
	default:
		l.model.endWrite(j.from, j.to, j.issued, ok)
	}
	switch {
	case err != nil:
	case !ok && !l.o.Errors:
		err = fmt.Errorf("%v of sectors %d to %d: %w %v", j.Op, j.from*l.o.MinBytes/blockSize, j.to*l.o.MinBytes/blockSize-1, driver.ErrStatus, j.Status)
	case ok && j.Written < written:
		err = fmt.Errorf("%v: %w: it says it wrote %d bytes, not %d", j.Op, driver.ErrLedger, j.Written, written)
	}
	if err != nil {
		err = fmt.Errorf("head of job %d: %w", j.Tag, err)
	}
	return err
}

// readNow reads units and waits.
func (a *lane) readNow(from, to int) error {
	j := a.idle[len(a.idle)-1]
	a.idle = a.idle[:len(a.idle)-1]
	j.Request = driver.Request{Op: driver.In, Tag: j.Tag, Sector: uint64(from*a.load.o.MinBytes) / blockSize}
	j.from, j.to = from, to
	j.issued, _ = a.load.model.beginRead(from, to, true)
	a.place(j)
	if err := a.queue.Submit(&j.Request); err != nil {
		return err
	}
	return a.reap()
}
