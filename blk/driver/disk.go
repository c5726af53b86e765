package driver

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shuntio/shunt/dataplane/shm"
	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/virtq"
	"golang.org/x/sys/unix"
)

// Options configure a Disk; zero values are good.
type Options struct {
	// Queues is how many of the device's queues are used. Zero: 1.
	Queues int
	// Size is the number of descriptors of each, a power of two. Zero: 128.
	Size int
	// Packed, EventIdx and Indirect are ring features to be used. A device that lacks one is ErrLacks.
	Packed, EventIdx, Indirect bool
	// Features are features of the device to be accepted where it has them. Zero: all that this package knows; the rings' are named above.
	Features uint64
	// Memory is how many bytes of buffers there are. Zero: 16 MiB.
	Memory int
	// Segments is how many data segments a request has at most, Ranges how many ranges. Zero: 128 and 16.
	Segments, Ranges int
	// Inflight has the back-end write down what is under way where its successor finds it (INFLIGHT_SHMFD). A back-end that cannot is ErrLacks.
	Inflight bool
	// Reconnect: when the back-end goes away, wait until one is back. Patience is for how long; zero: for ever.
	Reconnect bool
	Patience  time.Duration
	// Clock: requests are given their times. It costs two looks at the clock each.
	Clock bool
	// Changed is called, on a goroutine of the disk's, when the back-end says that the configuration has changed, after it was read. It must not wait
	// for the disk.
	Changed func(Config)
}

// ErrLacks says that the device does not offer what Options ask for.
var ErrLacks = errors.New("device lacks what was asked for")

func (o *Options) complete() {
	set := func(v *int, zero int) {
		if *v == 0 {
			*v = zero
		}
	}
	set(&o.Queues, 1)
	set(&o.Size, 128)
	set(&o.Memory, 16<<20)
	set(&o.Segments, 128)
	set(&o.Ranges, 16)
	if o.Features == 0 {
		o.Features = ^uint64(0)
	}
}

// deviceFeatures are all of the device's own that this driver knows what to do with.
const deviceFeatures = FeatureSizeMax | FeatureSegMax | FeatureRO | FeatureBlkSize | FeatureFlush | FeatureTopology | FeatureConfigWCE | FeatureMQ |
	FeatureDiscard | FeatureWriteZeroes | FeatureLifetime

// features are what is asked of a device: what it must have, and what it may.
func (o *Options) features() (must, may uint64) {
	must = FeatureVersion1
	for feature, on := range map[uint64]bool{FeaturePacked: o.Packed, FeatureEventIdx: o.EventIdx, FeatureIndirect: o.Indirect} {
		if on {
			must |= feature
		}
	}
	if o.Queues > 1 {
		must |= FeatureMQ
	}
	return must, deviceFeatures & o.Features
}

// Disk is a virtio-blk device as its driver has it.
type Disk struct {
	options Options
	path    string
	memory  *memory
	queues  []*Queue

	config     atomic.Pointer[Config]
	features   atomic.Uint64 // 0: not negotiated yet
	reconnects atomic.Uint64

	control sync.Mutex // of what follows, and of the front-end's requests
	now     *link      // nil: the back-end is away
	kept    kept
	stopped bool // Stop was called
	failed  error

	cancel context.CancelFunc // ends the keeper
	keeper sync.WaitGroup
}

// Dial connects to the back-end at path as soon as it is there, or until ctx is done, and starts all rings.
func Dial(ctx context.Context, path string, o Options) (_ *Disk, err error) {
	o.complete()
	d := &Disk{options: o, path: path, kept: kept{inflight: noInflight}}
	living, cancel := context.WithCancel(context.Background())
	d.cancel = cancel
	defer func() {
		if err != nil {
			_ = d.Close()
		}
	}()
	if err := d.allocate(); err != nil {
		return nil, err
	}
	if d.now, err = d.dial(ctx); err != nil {
		return nil, err
	}
	d.keeper.Add(1)
	go d.keep(living, d.now)
	return d, nil
}

// allocate makes memory and queues.
func (d *Disk) allocate() (err error) {
	o, at := &d.options, 0
	place := func(size, align int) (offset int) {
		offset = up(at, align)
		at = offset + size
		return offset
	}
	type parts struct{ desc, avail, used, slots int }
	var all []parts
	for range o.Queues {
		all = append(all, parts{place(virtq.DescBytes(o.Size), pageSize), place(virtq.AvailBytes(o.Size), 64),
			place(virtq.UsedBytes(o.Size), 64), place(o.slotBytes()*o.Size, pageSize)})
	}
	if d.memory, err = newMemory(at, o.Memory); err != nil {
		return err
	}
	b := d.memory.bytes
	for i, p := range all {
		q, err := newQueue(d, i, virtq.Layout{Desc: b[p.desc:], Avail: b[p.avail:], Used: b[p.used:]},
			Buffer{Bytes: b[p.slots:], Addr: tablesGuest + uint64(p.slots)})
		d.queues = append(d.queues, q)
		if err != nil {
			return err
		}
	}
	d.kept.bases = make([]uint32, o.Queues)
	d.fresh()
	return nil
}

// Alloc gives a piece of the guest's memory that begins on a page, for good.
func (d *Disk) Alloc(n int) (Buffer, error) { return d.memory.alloc(n) }

// Buffers are all of the guest's memory but the tables; BuffersAddr is where the device sees them.
func (d *Disk) Buffers() []byte { return d.memory.bytes[d.memory.tables:] }

// BuffersAddr is the guest-physical address of Buffers; nothing is there in front of it, nor behind.
const BuffersAddr = buffersGuest

// TablesAddr is the guest-physical address of the rings and what belongs to them.
const TablesAddr = tablesGuest

// Queue is the i-th queue.
func (d *Disk) Queue(i int) *Queue { return d.queues[i] }

// Queues is how many there are.
func (d *Disk) Queues() int { return len(d.queues) }

// Config is the device's configuration as it was read last.
func (d *Disk) Config() Config { return *d.config.Load() }

// Features are those that were negotiated.
func (d *Disk) Features() uint64 { return d.features.Load() }

// Reconnects counts the back-ends after the first.
func (d *Disk) Reconnects() uint64 { return d.reconnects.Load() }

// Truncate leaves n bytes of the file behind the memory, which has Length: what a hostile guest does. Nobody may look there until the length is back.
func (d *Disk) Truncate(n int) error { return unix.Ftruncate(d.memory.fd, int64(n)) }

// Length is how long the memory is, Tables how much of it the tables take up.
func (d *Disk) Length() (all, tables int) { return len(d.memory.bytes), d.memory.tables }

// Inflight is the in-flight area that the back-end writes to, as bytes mapped anew; free unmaps them. It is an error where there is none.
func (d *Disk) Inflight() (area []byte, free func() error, err error) {
	d.control.Lock()
	defer d.control.Unlock()
	i := d.kept.inflight
	if i.FD < 0 {
		return nil, nil, fmt.Errorf("%w: an in-flight area", ErrLacks)
	}
	m, err := shm.Map(shm.MapOptions{FD: i.FD, Offset: int64(i.Offset), Length: int(i.Bytes)})
	if err != nil {
		return nil, nil, err
	}
	return m.Bytes(), m.Free, nil
}

// TruncateInflight takes the area's bytes away, unless its maker has forbidden that.
func (d *Disk) TruncateInflight() error {
	d.control.Lock()
	defer d.control.Unlock()
	return unix.Ftruncate(d.kept.inflight.FD, 0)
}

// GiveInflight gives the back-end the area again, as it is by now. No ring may run.
func (d *Disk) GiveInflight() error {
	return d.do(func(l *link) error { return l.front.SetInflight(d.kept.inflight) })
}

// Regions are the memory as a back-end is told of it: tables, and buffers.
func (d *Disk) Regions() []vhostuser.Region { return d.memory.regions() }

// PunchHole gives the pages of a buffer back to the kernel, as a balloon does: it is all zero again.
func (d *Disk) PunchHole(b Buffer) error {
	at := int64(shm.Address(b.Bytes) - shm.Address(d.memory.bytes))
	return unix.Fallocate(d.memory.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, int64(len(b.Bytes)))
}

// fail ends the disk for all who use it.
func (d *Disk) fail(err error) {
	d.control.Lock()
	d.failed = err
	d.control.Unlock()
	for _, q := range d.queues {
		q.fail(err)
	}
}

// Close hangs up, as a hypervisor that is killed. Nobody may use the queues any more. Stop goes before where the end is to be an orderly one.
func (d *Disk) Close() error {
	d.cancel()
	d.keeper.Wait()
	d.control.Lock()
	defer d.control.Unlock()
	d.hangUp()
	for _, q := range d.queues {
		q.close()
	}
	d.queues = nil
	d.kept.dropInflight()
	var err error
	if d.memory != nil {
		err = d.memory.close()
		d.memory = nil
	}
	return err
}

// front is the connection, for one who holds the lock.
func (d *Disk) front() (*link, error) {
	if d.failed != nil {
		return nil, d.failed
	}
	if d.now == nil {
		return nil, fmt.Errorf("%w for now", ErrGone)
	}
	return d.now, nil
}
