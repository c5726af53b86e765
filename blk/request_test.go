package blk

import (
	"bytes"
	"slices"
	"testing"

	"github.com/shuntio/shunt/dataplane/virtq"
)

func join(parts ...[]byte) []byte { return slices.Concat(parts...) }

// TestRequests: each kind of request, right and wrong, and the status that virtio 1.2, 5.2.6.2 has for it.
func TestRequests(t *testing.T) {
	const end = bedSize / 512
	data := counting(4096)
	lean := Info{Size: bedSize, BlockSize: 512}
	coarse := bedInfo
	coarse.BlockSize = 4096
	readOnly := bedInfo
	readOnly.ReadOnly = true
	for name, c := range map[string]struct {
		info   Info
		header []byte
		data   []byte
		room   int
		fail   Outcome
		status status
		ops    []Op
	}{
		"read":                          {bedInfo, header(0, 0), nil, 4096, OK, statusOK, []Op{OpRead}},
		"read the last sector":          {bedInfo, header(0, end-1), nil, 512, OK, statusOK, []Op{OpRead}},
		"read nothing":                  {bedInfo, header(0, 0), nil, 0, OK, statusOK, nil},
		"read nothing at the end":       {bedInfo, header(0, end), nil, 0, OK, statusOK, nil},
		"read nothing beyond the end":   {bedInfo, header(0, end+1), nil, 0, OK, statusIOErr, nil},
		"read beyond the end":           {bedInfo, header(0, end), nil, 512, OK, statusIOErr, nil},
		"read over the end":             {bedInfo, header(0, end-1), nil, 1024, OK, statusIOErr, nil},
		"read far beyond":               {bedInfo, header(0, 1<<63), nil, 512, OK, statusIOErr, nil},
		"read around the end":           {bedInfo, header(0, 1<<64-1), nil, 1024, OK, statusIOErr, nil},
		"read bytes that wrap":          {bedInfo, header(0, 1<<55), nil, 512, OK, statusIOErr, nil},
		"read half a sector":            {bedInfo, header(0, 0), nil, 256, OK, statusIOErr, nil},
		"read a sector and one":         {bedInfo, header(0, 0), nil, 513, OK, statusIOErr, nil},
		"read part of a block":          {coarse, header(0, 0), nil, 512, OK, statusIOErr, nil},
		"read between blocks":           {coarse, header(0, 1), nil, 4096, OK, statusIOErr, nil},
		"read a block":                  {coarse, header(0, 8), nil, 4096, OK, statusOK, []Op{OpRead}},
		"read what fails":               {bedInfo, header(0, 0), nil, 512, Failed, statusIOErr, []Op{OpRead}},
		"read with bytes to write":      {bedInfo, header(0, 0), data, 512, OK, statusOK, []Op{OpRead}},
		"write":                         {bedInfo, header(1, 8), data, 0, OK, statusOK, []Op{OpWrite}},
		"write with room to read":       {bedInfo, header(1, 8), data, 20, OK, statusOK, []Op{OpWrite}},
		"write nothing":                 {bedInfo, header(1, 8), nil, 0, OK, statusOK, nil},
		"write over the end":            {bedInfo, header(1, end-7), data, 0, OK, statusIOErr, nil},
		"write what fails":              {bedInfo, header(1, 0), data, 0, Failed, statusIOErr, []Op{OpWrite}},
		"write, and the way breaks":     {bedInfo, header(1, 0), data, 0, Lost, statusIOErr, []Op{OpWrite}},
		"write to a read-only disk":     {readOnly, header(1, 0), data, 0, OK, statusIOErr, nil},
		"flush":                         {bedInfo, header(4, 0), nil, 0, OK, statusOK, []Op{OpFlush}},
		"flush with a sector":           {bedInfo, header(4, 1<<63), nil, 0, OK, statusOK, []Op{OpFlush}},
		"flush what fails":              {bedInfo, header(4, 0), nil, 0, Failed, statusIOErr, []Op{OpFlush}},
		"flush where nothing can be":    {lean, header(4, 0), nil, 0, OK, statusOK, nil},
		"discard":                       {bedInfo, header(11, 0), zone(8, 16, 0), 0, OK, statusOK, []Op{OpDiscard}},
		"discard two ranges":            {bedInfo, header(11, 0), join(zone(8, 16, 0), zone(end-1, 1, 0)), 0, OK, statusOK, []Op{OpDiscard, OpDiscard}},
		"discard the first fails":       {bedInfo, header(11, 0), join(zone(8, 16, 0), zone(end-1, 1, 0)), 0, Failed, statusIOErr, []Op{OpDiscard}},
		"discard nothing":               {bedInfo, header(11, 0), nil, 0, OK, statusIOErr, nil},
		"discard an empty range":        {bedInfo, header(11, 0), zone(8, 0, 0), 0, OK, statusOK, nil},
		"discard empty and not":         {bedInfo, header(11, 0), join(zone(8, 0, 0), zone(9, 1, 0)), 0, OK, statusOK, []Op{OpDiscard}},
		"discard half a range":          {bedInfo, header(11, 0), zone(8, 16, 0)[:8], 0, OK, statusIOErr, nil},
		"discard one and a half":        {bedInfo, header(11, 0), join(zone(8, 1, 0), zone(8, 16, 0)[:15]), 0, OK, statusIOErr, nil},
		"discard as many as there may":  {bedInfo, header(11, 0), bytes.Repeat(zone(8, 1, 0), MaxRanges), 0, OK, statusOK, slices.Repeat([]Op{OpDiscard}, MaxRanges)},
		"discard too many":              {bedInfo, header(11, 0), bytes.Repeat(zone(8, 1, 0), MaxRanges+1), 0, OK, statusIOErr, nil},
		"discard over the end":          {bedInfo, header(11, 0), zone(end-1, 2, 0), 0, OK, statusIOErr, nil},
		"discard wraps":                 {bedInfo, header(11, 0), zone(1<<64-1, 2, 0), 0, OK, statusIOErr, nil},
		"discard second over the end":   {bedInfo, header(11, 0), join(zone(0, 1, 0), zone(end, 1, 0)), 0, OK, statusIOErr, nil},
		"discard too much":              {bedInfo, header(11, 0), zone(0, 1<<32-1, 0), 0, OK, statusIOErr, nil},
		"discard and unmap":             {bedInfo, header(11, 0), zone(8, 16, 1), 0, OK, statusUnsup, nil},
		"discard with unknown flags":    {bedInfo, header(11, 0), zone(8, 16, 2), 0, OK, statusUnsup, nil},
		"discard unknown, then beyond":  {bedInfo, header(11, 0), join(zone(8, 16, 4), zone(end, 1, 0)), 0, OK, statusUnsup, nil},
		"discard part of a block":       {coarse, header(11, 0), zone(8, 1, 0), 0, OK, statusIOErr, nil},
		"discard where none is":         {lean, header(11, 0), zone(8, 16, 0), 0, OK, statusUnsup, nil},
		"discard on a read-only disk":   {readOnly, header(11, 0), zone(8, 16, 0), 0, OK, statusUnsup, nil},
		"write zeroes":                  {bedInfo, header(13, 0), zone(8, 16, 0), 0, OK, statusOK, []Op{OpWriteZeroes}},
		"write zeroes and unmap":        {bedInfo, header(13, 0), zone(8, 16, 1), 0, OK, statusOK, []Op{OpWriteZeroes}},
		"write zeroes, unknown flags":   {bedInfo, header(13, 0), zone(8, 16, 3), 0, OK, statusUnsup, nil},
		"write too many zeroes":         {bedInfo, header(13, 0), zone(0, maxZeroes/512+1, 0), 0, OK, statusIOErr, nil},
		"write zeroes where none are":   {lean, header(13, 0), zone(8, 16, 0), 0, OK, statusUnsup, nil},
		"write zeroes unsupported":      {bedInfo, header(13, 0), zone(8, 16, 0), 0, Unsupported, statusUnsup, []Op{OpWriteZeroes}},
		"identity":                      {bedInfo, header(8, 0), nil, 20, OK, statusOK, nil},
		"identity into less":            {bedInfo, header(8, 0), nil, 4, OK, statusOK, nil},
		"identity into nothing":         {bedInfo, header(8, 0), nil, 0, OK, statusOK, nil},
		"lifetime":                      {bedInfo, header(10, 0), nil, 6, OK, statusOK, nil},
		"lifetime into less":            {bedInfo, header(10, 0), nil, 5, OK, statusIOErr, nil},
		"lifetime unknown":              {lean, header(10, 0), nil, 6, OK, statusUnsup, nil},
		"secure erase":                  {bedInfo, header(14, 0), zone(8, 16, 0), 0, OK, statusUnsup, nil},
		"zone report":                   {bedInfo, header(16, 0), nil, 64, OK, statusUnsup, nil},
		"unknown":                       {bedInfo, header(0xffff_ffff, 0), nil, 0, OK, statusUnsup, nil},
		"scsi":                          {bedInfo, header(2, 0), data, 96, OK, statusUnsup, nil},
		"half a header":                 {bedInfo, header(0, 0)[:8], nil, 512, OK, statusIOErr, nil},
		"all of a header but one":       {bedInfo, header(0, 0)[:15], nil, 512, OK, statusIOErr, nil},
		"sector that is bytes too many": {bedInfo, header(0, 1<<54), nil, 512, OK, statusIOErr, nil},
	} {
		t.Run(name, func(t *testing.T) {
			for ring, bit := range rings {
				b := newBed(t, c.info, FeatureVersion1|FeatureFlush|bit)
				b.gate.fail, b.gate.log = c.fail, make([]Request, 0, 100)
				before := counting(len(b.gate.disk))
				copy(b.gate.disk, before)
				st, read := b.do(c.header, c.data, c.room)
				var ops []Op
				for _, r := range b.gate.log {
					ops = append(ops, r.Op)
				}
				if st != byte(c.status) || !slices.Equal(ops, c.ops) {
					t.Errorf("%s: status %d of %v, want %d of %v", ring, st, ops, c.status, c.ops)
				}
				if len(b.failed) > 0 {
					t.Errorf("%s: %v", ring, b.failed)
				}
				changed := !bytes.Equal(before, b.gate.disk)
				if wants := c.status == statusOK && len(ops) > 0 && ops[0] != OpRead && ops[0] != OpFlush; changed != wants {
					t.Errorf("%s: the disk changed: %v, want %v", ring, changed, wants)
				}
				if c.status == statusOK && len(ops) > 0 && ops[0] == OpRead {
					at := b.gate.log[0].Offset
					if !bytes.Equal(read, b.gate.disk[at:at+uint64(len(read))]) {
						t.Errorf("%s: wrong bytes", ring)
					}
				}
			}
		})
	}
}

// TestIdentity: the serial has 20 bytes, ends with zeros, and needs none.
func TestIdentity(t *testing.T) {
	b := newBed(t, bedInfo, modern)
	if _, id := b.do(header(8, 0), nil, 20); !bytes.Equal(id, append([]byte("a-disk"), make([]byte, 14)...)) {
		t.Errorf("%q", id)
	}
	if _, id := b.do(header(8, 0), nil, 3); string(id) != "a-d" {
		t.Errorf("%q", id)
	}
	if _, life := b.do(header(10, 0), nil, 6); !bytes.Equal(life, []byte{1, 0, 2, 0, 3, 0}) {
		t.Errorf("lifetime %v", life)
	}
}

// TestScatter: header, data and status may be cut anywhere (virtio 1.2, 2.7.4.1).
func TestScatter(t *testing.T) {
	cut := func(total int, lengths ...int) (all []int) {
		for i := 0; total > 0; i++ {
			n := min(total, lengths[i%len(lengths)])
			all = append(all, n)
			total -= n
		}
		return all
	}
	data := counting(1024)
	for ring, bit := range rings {
		for _, lengths := range [][]int{{1 << 20}, {16, 1024}, {17, 100}, {1, 15, 1000, 24}, {3}, {5, 511}, {100, 13}, {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 512}} {
			b := newBed(t, bedInfo, modern|bit)
			add := func(readable, writable []virtq.Buffer, request []byte) (byte, []byte) {
				if len(readable)+len(writable) <= bedQueue {
					return b.chain(request, readable, writable)
				}
				return 0xff, nil
			}
			fits := func(n int) bool { return len(cut(n, lengths...)) < bedQueue-1 }
			if fits(16 + 1024) {
				if st, _ := add(b.buffers(cut(16+1024, lengths...)...), b.buffers(1), join(header(1, 5), data)); st != 0 {
					t.Fatalf("%s, %v: write: status %d", ring, lengths, st)
				}
				if !bytes.Equal(b.gate.disk[5*512:][:1024], data) {
					t.Fatalf("%s, %v: wrong bytes were written", ring, lengths)
				}
			}
			copy(b.gate.disk[7*512:], data)
			if readable := b.buffers(cut(16, lengths...)...); fits(len(readable)*lengths[0] + 1025) {
				if st, read := add(readable, b.buffers(cut(1025, lengths...)...), header(0, 7)); st != 0 || !bytes.Equal(read, data) {
					t.Fatalf("%s, %v: read: status %d", ring, lengths, st)
				}
			}
			if st, _ := add(b.buffers(slices.Repeat([]int{1}, 16)...), b.buffers(1), header(4, 0)); st != 0 {
				t.Fatalf("%s: flush: status %d", ring, st)
			}
			b.driver = nil
		}
	}
}

// TestSegMax: a request has as many segments as are announced, its header in single bytes, in an indirect table.
func TestSegMax(t *testing.T) {
	for ring, bit := range rings {
		b := newBed(t, bedInfo, modern|bit)
		readable, writable := b.buffers(slices.Repeat([]int{1}, 16)...), b.buffers(append(slices.Repeat([]int{512}, SegMax), 1)...)
		b.put(header(0, 0), readable)
		copy(b.gate.disk, counting(512*SegMax))
		table := virtq.Buffer{Addr: bedTables + 0x8000, Len: 16 * 256}
		if _, ok := b.driver.AddIndirect(b.view(table), table.Addr, readable, writable); !ok {
			t.Fatal("no room")
		}
		b.driver.Publish()
		b.round()
		b.round()
		if _, n, ok, err := b.driver.Used(); !ok || err != nil || n != 512*SegMax+1 {
			t.Fatalf("%s: %d bytes, %v, %v, %v", ring, n, ok, err, b.failed)
		}
		if got := b.get(writable); !bytes.Equal(got, append(counting(512*SegMax), 0)) {
			t.Errorf("%s: wrong bytes", ring)
		}
	}
}

// TestWriteThrough: where the driver cannot or does not want to flush, a write is to be stable before it is done.
func TestWriteThrough(t *testing.T) {
	data := counting(512)
	for name, c := range map[string]struct {
		features uint64
		choose   []byte // what the driver writes
		fua      bool
	}{
		"write-back":           {FeatureFlush | FeatureConfigWCE, []byte{1}, false},
		"write-back, unasked":  {FeatureFlush | FeatureConfigWCE, nil, false},
		"write-through":        {FeatureFlush | FeatureConfigWCE, []byte{0}, true},
		"no flush negotiated":  {0, nil, true},
		"a choice, no flush":   {FeatureConfigWCE, []byte{1}, true},
		"flush, and no choice": {FeatureFlush, nil, false},
	} {
		for kind, payload := range map[uint32][]byte{1: data, 13: zone(3, 1, 1), 11: zone(3, 1, 0), 0: nil} {
			b := newBed(t, bedInfo, FeatureVersion1|c.features)
			b.gate.log = make([]Request, 0, 10)
			if c.choose != nil {
				b.must(b.dev.WriteConfig(configWriteback, c.choose, false))
			}
			room := 0
			if kind == 0 {
				room = 512
			}
			if st, _ := b.do(header(kind, 3), payload, room); st != 0 {
				t.Fatalf("%s: status %d", name, st)
			}
			fua := c.fua && (kind == 1 || kind == 13)
			if len(b.gate.log) != 1 || b.gate.log[0].FUA != fua || b.gate.log[0].Unmap != (kind == 13) {
				t.Errorf("%s, type %d: %+v", name, kind, b.gate.log)
			}
		}
	}
}
