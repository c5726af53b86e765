package blk

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/shuntio/shunt/dataplane/vhostuser"
)

// TestConfig: every field of the configuration space, at its offset in virtio 1.2, 5.2.4, whole and byte by byte.
func TestConfig(t *testing.T) {
	info := bedInfo
	info.Size, info.BlockSize, info.PhysicalBlock, info.OptimalIO, info.DiscardGranularity = 1<<30, 4096, 65536, 1<<20, 1<<16
	full := newConfigured(t, info, 3)
	lean := newConfigured(t, Info{Size: 1 << 20}, 1)
	readOnly := info
	readOnly.ReadOnly = true
	locked := newConfigured(t, readOnly, 1)
	for _, f := range []struct {
		name               string
		offset, size       uint32
		full, lean, locked uint64
	}{
		{"capacity", 0, 8, 1 << 21, 1 << 11, 1 << 21},
		{"size_max", 8, 4, SizeMax, SizeMax, SizeMax},
		{"seg_max", 12, 4, SegMax, SegMax, SegMax},
		{"geometry", 16, 4, 0, 0, 0},
		{"blk_size", 20, 4, 4096, 512, 4096},
		{"physical_block_exp", 24, 1, 4, 0, 4},
		{"alignment_offset", 25, 1, 0, 0, 0},
		{"min_io_size", 26, 2, 16, 1, 16},
		{"opt_io_size", 28, 4, 256, 0, 256},
		{"writeback", 32, 1, 1, 0, 1},
		{"unused0", 33, 1, 0, 0, 0},
		{"num_queues", 34, 2, 3, 1, 1},
		{"max_discard_sectors", 36, 4, 1 << 21, 0, 0},
		{"max_discard_seg", 40, 4, MaxRanges, 0, 0},
		{"discard_sector_alignment", 44, 4, 128, 0, 0},
		{"max_write_zeroes_sectors", 48, 4, 1 << 17, 0, 0},
		{"max_write_zeroes_seg", 52, 4, MaxRanges, 0, 0},
		{"write_zeroes_may_unmap", 56, 1, 1, 0, 0},
		{"unused1", 57, 3, 0, 0, 0},
		{"secure erase", 60, 8, 0, 0, 0},
		{"what is to come", 248, 8, 0, 0, 0},
		{"beyond", 1 << 31, 8, 0, 0, 0},
	} {
		for d, want := range map[*Device]uint64{full: f.full, lean: f.lean, locked: f.locked} {
			var whole, bytewise [8]byte
			for i := range whole {
				whole[i], bytewise[i] = 0xee, 0xee
			}
			err := d.ReadConfig(f.offset, whole[:f.size])
			for i := range f.size {
				if e := d.ReadConfig(f.offset+i, bytewise[i:i+1]); e != nil {
					err = e
				}
			}
			clear(whole[f.size:])
			clear(bytewise[f.size:])
			if got := binary.LittleEndian.Uint64(whole[:]); err != nil || got != want || whole != bytewise {
				t.Errorf("%s: %d, %v, by bytes % x, want %d", f.name, got, err, bytewise, want)
			}
		}
	}
	space := make([]byte, 256)
	if err := full.ReadConfig(0, space); err != nil || !bytes.Equal(space[configBytes:], make([]byte, 256-configBytes)) {
		t.Errorf("whole: %v, % x", err, space)
	}
}

func newConfigured(t *testing.T, i Info, queues int) *Device {
	t.Helper()
	b := bare(t, 0, bedQueue)
	var all []*Queue
	for range queues {
		all = append(all, &Queue{worker: b.worker, gate: b.gate})
	}
	return newDevice(i, "01234567890123456789", all...)
}

// TestWriteConfig: the driver writes one byte, and two values.
func TestWriteConfig(t *testing.T) {
	d := newConfigured(t, bedInfo, 1)
	writeback := func() byte {
		var b [1]byte
		if err := d.ReadConfig(configWriteback, b[:]); err != nil {
			t.Fatal(err)
		}
		return b[0]
	}
	for _, mode := range []byte{0, 1, 0} {
		if err := d.WriteConfig(configWriteback, []byte{mode}, false); err != nil || writeback() != mode || d.State().WriteThrough == (mode == 1) {
			t.Errorf("writeback %d: %v, %d", mode, err, writeback())
		}
	}
	for offset := range uint32(64) {
		for size := range 9 {
			if offset == configWriteback && size == 1 {
				continue
			}
			if err := d.WriteConfig(offset, make([]byte, size), false); err == nil {
				t.Errorf("a driver wrote %d bytes at %d", size, offset)
			}
		}
	}
	if err := d.WriteConfig(configWriteback, []byte{2}, false); err == nil || writeback() != 0 {
		t.Errorf("writeback 2: %v", err)
	}
	// What another machine's device had.
	space := make([]byte, configBytes)
	space[configWriteback] = 1
	if err := d.WriteConfig(0, space, true); err != nil || writeback() != 1 {
		t.Errorf("migration: %v, writeback %d", err, writeback())
	}
	if err := d.WriteConfig(40, space[40:], true); err != nil || writeback() != 1 {
		t.Errorf("migration of a part: %v, writeback %d", err, writeback())
	}
	if err := d.WriteConfig(1<<31, []byte{0}, true); err != nil || writeback() != 1 {
		t.Errorf("migration of nothing: %v, writeback %d", err, writeback())
	}
	// Where nobody can flush it begins with write-through (5.2.5.2).
	for features, mode := range map[uint64]byte{FeatureConfigWCE: 0, FeatureConfigWCE | FeatureFlush: 1, FeatureFlush: 1, 0: 1} {
		d = newConfigured(t, bedInfo, 1)
		if err := d.SetFeatures(features); err != nil || writeback() != mode {
			t.Errorf("features %#x: %v, writeback %d", features, err, writeback())
		}
	}
}

// TestFeatures: what is offered is what the store can do.
func TestFeatures(t *testing.T) {
	const always = FeatureSizeMax | FeatureSegMax | FeatureBlkSize | FeatureFlush | FeatureTopology | FeatureConfigWCE |
		FeatureIndirect | FeatureEventIdx | FeatureVersion1 | FeaturePacked
	readOnly := bedInfo
	readOnly.ReadOnly = true
	for name, c := range map[string]struct {
		info   Info
		queues int
		more   uint64
	}{
		"all":       {bedInfo, 4, FeatureMQ | FeatureDiscard | FeatureWriteZeroes | FeatureLifetime},
		"nothing":   {Info{Size: 512}, 1, 0},
		"read-only": {readOnly, 1, FeatureRO | FeatureLifetime},
	} {
		d := newConfigured(t, c.info, c.queues)
		o := d.Offer()
		if o.Features != always|c.more || o.Vrings != c.queues || o.ProtocolFeatures&vhostuser.ProtocolConfig == 0 {
			t.Errorf("%s: %+v, want features %#x", name, o, always|c.more)
		}
	}
}

// TestResize: requests are judged by the new size at once, and the front-end is told.
func TestResize(t *testing.T) {
	b := newBed(t, bedInfo, modern)
	told := 0
	b.dev.changed = func() { told++ }
	if st, _ := b.do(header(0, bedSize/512), nil, 512); st != byte(statusIOErr) {
		t.Errorf("status %d beyond the end", st)
	}
	grown := bedInfo
	grown.Size *= 2
	b.gate.disk = make([]byte, grown.Size)
	b.dev.Changed(grown)
	if st, _ := b.do(header(0, bedSize/512), nil, 512); st != 0 || told != 1 {
		t.Errorf("status %d, told %d times", st, told)
	}
	var capacity [8]byte
	if err := b.dev.ReadConfig(0, capacity[:]); err != nil || binary.LittleEndian.Uint64(capacity[:]) != 2*bedSize/512 {
		t.Errorf("capacity % x, %v", capacity, err)
	}
}

// TestFeaturesOfBefore: a driver that negotiated with a store which could do more goes on. What this one cannot do is answered so.
func TestFeaturesOfBefore(t *testing.T) {
	for name, c := range map[string]struct {
		change                 func(i *Info)
		write, discard, zeroes status
	}{
		"nothing is gone":   {func(*Info) {}, statusOK, statusOK, statusOK},
		"no discard":        {func(i *Info) { i.Discard = false }, statusOK, statusUnsup, statusOK},
		"neither of them":   {func(i *Info) { i.Discard, i.WriteZeroes = false, false }, statusOK, statusUnsup, statusUnsup},
		"read-only by now":  {func(i *Info) { i.ReadOnly = true }, statusIOErr, statusUnsup, statusUnsup},
		"no lifetime":       {func(i *Info) { i.Lifetime = nil }, statusOK, statusOK, statusOK},
		"smaller than that": {func(i *Info) { i.Size = 512 }, statusIOErr, statusIOErr, statusIOErr},
	} {
		t.Run(name, func(t *testing.T) {
			const negotiated = modern | FeatureLifetime
			i := bedInfo
			c.change(&i)
			b := bare(t, negotiated, bedQueue)
			b.gate.disk = make([]byte, bedSize)
			b.begin(i)
			b.drive()
			o := b.dev.Offer()
			if extra := negotiated &^ (o.Features | o.Accepted); extra != 0 {
				t.Fatalf("features %#x are refused", extra)
			}
			b.must(b.dev.SetFeatures(negotiated))
			b.must(b.dev.SetMemory(b.regions()))
			b.must(b.dev.SetInflight(nil))
			b.start(nil)
			t.Cleanup(b.hangUp)
			for kind, want := range map[uint32]status{typeOut: c.write, typeDiscard: c.discard, typeWriteZeroes: c.zeroes} {
				data := zone(8, 1, 0)
				if kind == typeOut {
					data = make([]byte, 512)
				}
				if got, _ := b.do(header(kind, 8), data, 0); got != byte(want) {
					t.Errorf("a request of type %d is answered with %d, want %d", kind, got, want)
				}
			}
		})
	}
}
