package driver

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/shuntio/shunt/dataplane/virtq"
)

// LoadOptions configure a Load. Disk must be set; other zero values are good.
type LoadOptions struct {
	// Disk, and which of its Queues; it should have Options.Clock if latencies are wanted.
	Disk  *Disk
	Queue int
	// Op is In or Out, of Bytes each (zero: 4096), Depth at a time (zero: 1).
	Op           Op
	Bytes, Depth int
	// Sequential: one after the other, from the beginning again at the end; otherwise at random places. Span is how much of the disk is used. Zero: all.
	Sequential bool
	Span       int64
	// Poll: the driver spins, and wants no calls; otherwise it sleeps, as a guest does.
	Poll bool
	// Start is called on the thread that makes the load, to pin it.
	Start func() error
}

// Load asks as quickly as it is answered, for benchmarks. It judges nothing but the status, and allocates nothing on the way.
type Load struct {
	o        LoadOptions
	queue    *Queue
	requests []Request
	done     []*Request
	random   *rand.Rand
	blocks   uint64
	next     uint64
	answered atomic.Uint64
	latency  Histogram
}

// LoadResult is what was measured.
type LoadResult struct {
	Requests uint64
	Elapsed  time.Duration
	// Latency is there where the disk has Options.Clock.
	Latency Histogram
}

// NewLoad prepares a load; the disk's memory must have room for Depth times Bytes.
func NewLoad(o LoadOptions) (*Load, error) {
	if o.Bytes == 0 {
		o.Bytes = 4096
	}
	if o.Depth == 0 {
		o.Depth = 1
	}
	if o.Span == 0 {
		o.Span = o.Disk.Size()
	}
	l := &Load{o: o, queue: o.Disk.queues[o.Queue], requests: make([]Request, o.Depth), done: make([]*Request, o.Depth),
		random: rand.New(rand.NewPCG(1, uint64(o.Queue))), blocks: uint64(o.Span) / uint64(o.Bytes)}
	if l.blocks == 0 || o.Bytes%SectorSize != 0 {
		return nil, fmt.Errorf("requests of %d bytes in %d: they must be whole sectors, and one must fit", o.Bytes, o.Span)
	}
	for i := range l.requests {
		b, err := o.Disk.Alloc(o.Bytes)
		if err != nil {
			return nil, err
		}
		l.requests[i] = Request{Op: o.Op, Data: []virtq.Buffer{b.Segment(0, o.Bytes)}}
	}
	return l, nil
}

// Answered is how many requests were answered up to now; anybody may ask.
func (l *Load) Answered() uint64 { return l.answered.Load() }

// Run makes the load for a while, or until stop is true, and waits for all answers. It may be called again.
func (l *Load) Run(stop *atomic.Bool, duration time.Duration) (*LoadResult, error) {
	runtime.LockOSThread() // not unlocked where it is pinned: the thread ends with the goroutine
	if l.o.Start != nil {
		if err := l.o.Start(); err != nil {
			return nil, err
		}
	} else {
		defer runtime.UnlockOSThread()
	}
	l.latency = Histogram{}
	before, began := l.answered.Load(), time.Now()
	for i := range l.requests {
		if err := l.submit(&l.requests[i]); err != nil {
			return nil, err
		}
	}
	if err := l.turn(stop, began.Add(duration)); err != nil {
		return nil, err
	}
	return &LoadResult{Requests: l.answered.Load() - before, Elapsed: time.Since(began), Latency: l.latency}, nil
}

// turn is the loop.
func (l *Load) turn(stop *atomic.Bool, end time.Time) error {
	for ending := false; ; {
		l.queue.Kick()
		n, err := l.queue.Poll(l.done)
		if err != nil {
			return err
		}
		ending = ending || stop.Load() || n > 0 && time.Now().After(end)
		for _, r := range l.done[:n] {
			if err := l.account(r); err != nil {
				return err
			}
			if ending {
				continue
			}
			if err := l.submit(r); err != nil {
				return err
			}
		}
		switch {
		case ending && l.queue.Under() == 0:
			return nil
		case n == 0 && !l.o.Poll && !l.queue.Wait(patience):
			return fmt.Errorf("%w: nothing for %v: %s", ErrTimeout, patience, l.queue.Stuck())
		}
	}
}

// patience is how long a load waits for any answer at all.
const patience = 30 * time.Second

func (l *Load) submit(r *Request) error {
	at := l.next
	if l.next++; l.next >= l.blocks {
		l.next = 0
	}
	if !l.o.Sequential {
		at = l.random.Uint64N(l.blocks)
	}
	r.Sector = at * uint64(l.o.Bytes/SectorSize)
	return l.queue.Submit(r)
}

func (l *Load) account(r *Request) error {
	if r.Status != OK {
		return fmt.Errorf("%v of sector %d: %w %v", r.Op, r.Sector, ErrStatus, r.Status)
	}
	l.answered.Add(1)
	if r.Ended != 0 {
		l.latency.Add(time.Duration(r.Ended - r.Began))
	}
	return nil
}
