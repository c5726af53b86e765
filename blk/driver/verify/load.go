package verify

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shuntio/shunt/blk/driver"
)

// Options configure a Load. Disk must be set; other zero values are good.
type Options struct {
	Disk *driver.Disk
	// Depth is how many requests each queue has under way. Zero: 16.
	Depth int
	// Reads and writes are of MinBytes to MaxBytes, multiples of MinBytes. Zero: 4 KiB and 1 MiB. The disk's Options.Memory must be at least
	// Memory(queues, o).
	MinBytes, MaxBytes int
	// Mix is how often each is chosen, in proportion. Zero: 40 reads, 45 writes, 5 flushes, 5 discards, 5 writes of zeroes. What the device cannot do is left out.
	Mix Mix
	// Seed of everything that is random. Zero: one.
	Seed uint64
	// Fresh: the disk is known to be all zeroes. Otherwise what is there at the beginning is not judged until it was overwritten.
	Fresh bool
	// Overlap lets requests under way meet on the same units, so that several contents are possible.
	Overlap bool
	// Errors lets the device answer reads, writes and the like with an error. Flushes may always fail after a ServerCrash.
	Errors bool
	// Stall is how long no answer may come before the device is said to hang. Zero: 30 s.
	Stall time.Duration
}

// Mix is how often each kind of request is chosen.
type Mix struct{ Read, Write, Flush, Discard, Zeroes int }

func (o *Options) complete() {
	set := func(v *int, zero int) {
		if *v == 0 {
			*v = zero
		}
	}
	set(&o.Depth, 16)
	set(&o.MinBytes, 4096)
	set(&o.MaxBytes, 1<<20)
	if o.Mix == (Mix{}) {
		o.Mix = Mix{40, 45, 5, 5, 5}
	}
	if o.Seed == 0 {
		o.Seed = 1
	}
	if o.Stall == 0 {
		o.Stall = 30 * time.Second
	}
}

// guard is how much of each buffer lies behind what the device may write.
const guard = 4096

// Memory is how much guest memory a load needs (driver.Options.Memory).
func Memory(queues int, o Options) int {
	o.complete()
	return queues * o.Depth * (o.MaxBytes + guard)
}

// Load is a verifying random load. Its model lasts, so it can be run again, on the same contents.
type Load struct {
	o     Options
	model *Model
	lanes []*lane
	units int

	left     atomic.Int64 // requests to submit still
	crashing atomic.Int64 // server crashes up to now
}

// New prepares a load on all of a disk, and all of its queues.
func New(o Options) (*Load, error) {
	o.complete()
	d := o.Disk
	switch {
	case o.MinBytes%blockSize != 0 || o.MinBytes <= 0 || o.MaxBytes%o.MinBytes != 0:
		return nil, fmt.Errorf("requests of %d to %d bytes: they must be multiples of %d and of the smallest", o.MinBytes, o.MaxBytes, blockSize)
	case d.Size() < int64(o.MaxBytes):
		return nil, fmt.Errorf("a disk of %d bytes is too small for requests of %d", d.Size(), o.MaxBytes)
	}
	first := unknown
	if o.Fresh {
		first = zeroes
	}
	l := &Load{o: o, units: int(d.Size() / int64(o.MinBytes))}
	l.model = newModel(l.units, o.MinBytes, o.Seed, first, durable(d))
	if d.Features()&driver.FeatureDiscard == 0 {
		l.o.Mix.Discard = 0
	}
	if d.Features()&driver.FeatureWriteZeroes == 0 {
		l.o.Mix.Zeroes = 0
	}
	if d.Features()&driver.FeatureRO != 0 {
		l.o.Mix = Mix{Read: 1}
	}
	for i := range d.Queues() {
		a, err := newLane(l, i)
		if err != nil {
			return nil, err
		}
		l.lanes = append(l.lanes, a)
	}
	return l, nil
}

// durable tells whether what the device says is written is on stable storage: it has no cache to flush, or that is off.
func durable(d *driver.Disk) bool {
	switch f := d.Features(); {
	case f&driver.FeatureFlush == 0:
		return true
	case f&driver.FeatureConfigWCE == 0:
		return false
	}
	return d.Config().Writeback == 0
}

// Assume overrides what the device says of its cache: some say it is off while it is on.
func (l *Load) Assume(writeback bool) { l.model.durable = !writeback }

// Run submits so many requests, or until ctx is done (negative: that alone), waits for all answers, and accounts for them. The end of ctx is no error.
func (l *Load) Run(ctx context.Context, requests int64) (*Report, error) {
	if requests < 0 {
		requests = 1 << 62
	}
	l.left.Store(requests)
	began := time.Now()
	var all sync.WaitGroup
	errs := make([]error, len(l.lanes))
	reports := make([]Report, len(l.lanes))
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	for i, a := range l.lanes {
		all.Go(func() {
			a.report = &reports[i]
			if errs[i] = a.run(ctx); errs[i] != nil {
				stop()
			}
		})
	}
	all.Wait()
	total := &Report{Elapsed: time.Since(began), Reconnects: l.o.Disk.Reconnects()}
	for i := range reports {
		total.add(&reports[i])
	}
	return total, errors.Join(errs...)
}

// ServerCrash notes that a server crashes while f runs: what was not flushed may be gone. A back-end that is killed is no server.
func (l *Load) ServerCrash(f func() error) error {
	l.crashing.Add(1)
	l.model.beginCrash()
	defer l.model.endCrash()
	return f()
}

// Check reads the whole disk and judges it. No Run may be under way.
func (l *Load) Check(ctx context.Context) error {
	a := l.lanes[0]
	a.report = &Report{}
	step := max(l.o.MaxBytes/l.o.MinBytes, 1)
	for from := 0; from < l.units; from += step {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := a.readNow(from, min(from+step, l.units)); err != nil {
			return err
		}
	}
	return nil
}

// CheckFile judges the image itself, past the device.
func (l *Load) CheckFile(image io.ReaderAt) error {
	p := make([]byte, l.o.MinBytes)
	for i := range l.units {
		if _, err := image.ReadAt(p, int64(i*len(p))); err != nil {
			return fmt.Errorf("read the image: %w", err)
		}
		issued, _ := l.model.beginRead(i, i+1, true)
		if err := l.model.endRead(i, i+1, issued, p); err != nil {
			return err
		}
	}
	return nil
}

// choose picks a request's kind.
func (m Mix) choose(r *rand.Rand) driver.Op {
	n := r.IntN(max(m.Read+m.Write+m.Flush+m.Discard+m.Zeroes, 1))
	for _, one := range []struct {
		share int
		op    driver.Op
	}{{m.Read, driver.In}, {m.Write, driver.Out}, {m.Flush, driver.Flush}, {m.Discard, driver.Discard}} {
		if n -= one.share; n < 0 {
			return one.op
		}
	}
	return driver.WriteZeroes
}
