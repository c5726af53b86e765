package hostile

import (
	"bytes"
	"context"
	"fmt"

	"github.com/shuntio/shunt/blk/driver"
)

// Expect is what a device must do with a request.
type Expect uint8

const (
	// Survive: whatever it likes, as long as nothing else is touched.
	Survive Expect = iota
	// MustFail: an error, or no answer.
	MustFail
	// MustSucceed: it is unusual, and legal.
	MustSucceed
)

// Attack is one way to break the rules, or to keep them in an unusual way.
type Attack struct {
	Name   string
	Expect Expect
	// SplitOnly, PackedOnly: the other format has no such thing. Fatal: qemu-storage-daemon 7.2 does not survive it, or does it wrong.
	SplitOnly, PackedOnly, Fatal bool
	// Inflight: it is one on the in-flight area.
	Inflight bool

	write func(r *Rig)
	// free: write publishes by itself, and memory is not compared: the device may write anywhere, or there is none.
	free bool
}

// Attacks are those there are for a format of ring.
func Attacks(packed bool) (all []Attack) {
	for _, list := range [][]Attack{shapes(), requests(), addresses(), tables(), rings(), packedRings(), memories(), areas()} {
		for _, a := range list {
			if packed && a.SplitOnly || !packed && a.PackedOnly {
				continue
			}
			all = append(all, a)
		}
	}
	return all
}

// pattern is what lies on the first sectors of the disk.
func pattern() []byte {
	b := make([]byte, reference)
	for i := range b {
		b[i] = byte(i*7 + i/512)
	}
	return b
}

// Prepare writes the reference that attacks must not change, once for a disk.
func Prepare(ctx context.Context, o Options) error {
	return honest(ctx, o, func(y *driver.Sync) error {
		_, err := y.WriteAt(pattern(), 0)
		return err
	})
}

// Check reads the reference, as an honest driver that comes after.
func Check(ctx context.Context, o Options) error {
	return honest(ctx, o, func(y *driver.Sync) error {
		b := make([]byte, reference)
		if _, err := y.ReadAt(b, 0); err != nil {
			return err
		}
		if i := different(b, pattern()); i >= 0 {
			return fmt.Errorf("%w: sector %d was changed", ErrDevice, i/driver.SectorSize)
		}
		_, err := y.WriteAt(b[:512], reference)
		return err
	})
}

func different(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

func honest(ctx context.Context, o Options, f func(*driver.Sync) error) error {
	d, err := driver.Dial(ctx, o.Path, driver.Options{Packed: o.Packed, Inflight: o.Inflight})
	if err != nil {
		return err
	}
	defer d.Close()
	y, err := d.NewSync(0, 64<<10)
	if err != nil {
		return err
	}
	return f(y)
}

// Run carries an attack out on a back-end that serves nobody else, and looks whether all is well afterwards.
func (a Attack) Run(ctx context.Context, o Options) error {
	o.Inflight = o.Inflight || a.Inflight
	r, err := newRig(ctx, o)
	if err != nil {
		return err
	}
	defer r.Disk.Close()
	r.expect = a.Expect
	a.writeTo(r)
	if a.free {
		r.settle()
	} else if err := r.judge(); err != nil {
		return err
	}
	if err := r.Disk.Close(); err != nil {
		return err
	}
	return Check(ctx, o)
}

// writeTo writes the attack, notes how memory looked before, and shows it to the device.
func (a Attack) writeTo(r *Rig) {
	if a.write(r); !a.free {
		r.before = bytes.Clone(r.Disk.Buffers())
		r.Publish()
	}
}
