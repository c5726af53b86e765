package blk

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"github.com/shuntio/shunt/dataplane/virtq"
)

// want is what is to become of a request, by the specification, from the bytes that the driver wrote and the room it left. It is written apart from
// parse: no chains, no views.
type want struct {
	status byte
	ops    []Request // what the store is asked to do
	data   []byte    // what the driver finds in front of the status; nil: anything
}

func judge(i *Info, request []byte, room int) want {
	refused := want{status: 1}
	if len(request) < 16 {
		return refused
	}
	kind, first, data := binary.LittleEndian.Uint32(request), binary.LittleEndian.Uint64(request[8:]), request[16:]
	sectors := i.Size / 512
	inside := func(first, n uint64) bool {
		return first <= sectors && first+n >= first && first+n <= sectors && first*512%uint64(i.BlockSize) == 0 && n*512%uint64(i.BlockSize) == 0
	}
	transfer := func(op Op, n int) want {
		switch {
		case n%512 != 0 || !inside(first, uint64(n/512)):
			return refused
		case n == 0:
			return want{}
		}
		return want{ops: []Request{{Op: op, Offset: first * 512, Length: uint64(n)}}}
	}
	ranges := func(op Op, most uint64) (w want) {
		if len(data) == 0 || len(data)%16 != 0 || len(data)/16 > MaxRanges {
			return refused
		}
		for ; len(data) > 0; data = data[16:] {
			first, n, flags := binary.LittleEndian.Uint64(data), uint64(binary.LittleEndian.Uint32(data[8:])), binary.LittleEndian.Uint32(data[12:])
			if flags&^1 != 0 || op == OpDiscard && flags != 0 {
				w.status = 2
			} else if (n > most/512 || !inside(first, n)) && w.status == 0 {
				w.status = 1
			}
			if n > 0 {
				w.ops = append(w.ops, Request{Op: op, Offset: first * 512, Length: n * 512, Unmap: flags == 1})
			}
		}
		if w.status != 0 {
			w.ops = nil
		}
		return w
	}
	switch {
	case kind == 0:
		return transfer(OpRead, room)
	case kind == 1 && i.ReadOnly:
		return refused
	case kind == 1:
		return transfer(OpWrite, len(data))
	case kind == 4 && i.Flush:
		return want{ops: []Request{{Op: OpFlush}}}
	case kind == 4:
		return want{}
	case kind == 8:
		id := append([]byte("a-disk"), make([]byte, 14)...)
		return want{data: id[:min(20, room)]}
	case kind == 10 && i.Lifetime != nil && room < 6:
		return refused
	case kind == 10 && i.Lifetime != nil:
		return want{data: []byte{1, 0, 2, 0, 3, 0}}
	case kind == 11 && i.Discard && !i.ReadOnly:
		return ranges(OpDiscard, maxDiscard)
	case kind == 13 && i.WriteZeroes && !i.ReadOnly:
		return ranges(OpWriteZeroes, maxZeroes)
	}
	return want{status: 2}
}

// FuzzRequest: the first byte chooses disk and ring, the second how the request is cut, the third and fourth the room behind it; the rest is the request.
func FuzzRequest(f *testing.F) {
	readOnly, lean, coarse := bedInfo, Info{Size: bedSize, BlockSize: 512}, bedInfo
	readOnly.ReadOnly = true
	coarse.BlockSize = 4096
	var beds []*bed
	for _, i := range []Info{bedInfo, readOnly, lean, coarse} {
		for _, bit := range []uint64{0, FeaturePacked, FeatureEventIdx, FeaturePacked | FeatureEventIdx} {
			beds = append(beds, newBed(f, i, FeatureVersion1|FeatureIndirect|FeatureFlush|bit))
		}
	}
	for which := range byte(16) {
		for _, request := range [][]byte{
			join(header(0, 7)), join(header(1, 8), counting(1024)), header(4, 0), header(8, 0), header(10, 0), header(16, 3), join(header(11, 0), zone(8, 16, 0)),
			join(header(13, 0), zone(8, 16, 1), zone(16, 8, 0)), header(0, 1<<63), join(header(11, 0), zone(1<<63, 1<<31, 1<<31)), join(header(1, bedSize/512-1), counting(1024)),
		} {
			f.Add(append([]byte{which, 16*which + 7, 2, 0}, request...))
		}
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) < 4 || len(in) > 8192 {
			return
		}
		b := beds[int(in[0])%len(beds)]
		b.TB = t
		cut, room, request := int(in[1]), int(binary.LittleEndian.Uint16(in[2:]))%20000, in[4:]
		pieces := func(n int) (all []int) { // uneven ones, empty ones too, of which no more than 30
			for i := 0; n > 0; i++ {
				c := (cut*(i+1)*(i+3) + i) % 97
				if i == 30 || cut&1 == 0 && i > 0 {
					c = n
				}
				c = min(c, n)
				all = append(all, c)
				n -= c
			}
			return all
		}
		b.at = 0
		readable, writable := b.buffers(pieces(len(request))...), b.buffers(pieces(room+1)...)
		info := b.dev.disk.Load().info
		w := judge(info, request, room)
		b.gate.log = b.gate.log[:0]
		if b.gate.log == nil {
			b.gate.log = make([]Request, 0, 32)
		}
		for i := range 64 {
			b.gate.disk[i*512] = byte(i)
		}
		st, read := b.chain(request, readable, writable)
		if st != w.status || len(b.failed) > 0 {
			t.Fatalf("status %d, want %d; %v", st, w.status, b.failed)
		}
		same := func(a, x Request) bool {
			return a.Op == x.Op && a.Offset == x.Offset && a.Length == x.Length && a.Unmap == x.Unmap
		}
		if !slices.EqualFunc(b.gate.log, w.ops, same) {
			t.Fatalf("%+v, want %+v", b.gate.log, w.ops)
		}
		if !bytes.HasPrefix(read, w.data) {
			t.Fatalf("% x, want % x", read, w.data)
		}
		if len(w.ops) == 1 && w.ops[0].Op == OpRead && !bytes.Equal(read, b.gate.disk[w.ops[0].Offset:][:w.ops[0].Length]) {
			t.Fatal("other bytes than the disk's were read")
		}
		if len(w.ops) == 1 && w.ops[0].Op == OpWrite && !bytes.Equal(request[16:], b.gate.disk[w.ops[0].Offset:][:w.ops[0].Length]) {
			t.Fatal("other bytes than the driver's were written")
		}
	})
}

// FuzzRing: the guest writes what it likes into its tables, while requests are under way. The device may break off, and nothing else: it does not touch what
// is not the guest's, and goes on when the ring is begun anew.
func FuzzRing(f *testing.F) {
	var beds []*bed
	for _, bit := range []uint64{0, FeaturePacked, FeatureEventIdx, FeaturePacked | FeatureEventIdx} {
		b := newBed(f, bedInfo, FeatureVersion1|FeatureIndirect|FeatureFlush|bit)
		b.gate.hold = true
		beds = append(beds, b)
	}
	for which := range byte(4) {
		f.Add([]byte{which, 0, 0, 1, 2, 0, 0x20, 5, 1, 16, 0x20, 0xff})
		f.Add([]byte{which, 8, 0, 0xff, 3, 1, 12, 0, 4, 1, 2, 0x40, 7})
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) < 1 || len(in) > 4096 {
			return
		}
		b := beds[int(in[0])%len(beds)]
		b.TB = t
		ours := bytes.Clone(b.gate.disk[:4096])
		request, st := b.buffers(16), b.buffers(1)
		b.put(header(4, 0), request)
		for i := range 4 {
			b.driver.Add(request, append(b.buffers(i+1), st...))
		}
		b.driver.Publish()
		tables := []int{0, 0x2000, 0x4000, 0x8000} // descriptors, avail, used, what indirect tables may be
		for at := 1; at+3 <= len(in); at += 3 {
			where := tables[in[at]%4] + int(in[at+1])*4
			switch in[at] >> 4 {
			case 0:
				b.memory[where] = in[at+2]
			case 1:
				binary.LittleEndian.PutUint16(b.memory[where:], uint16(in[at+2]))
			case 2: // a whole descriptor
				d := b.memory[where&^15:]
				binary.LittleEndian.PutUint64(d, bedBuffers+uint64(in[at+2])*64)
				binary.LittleEndian.PutUint32(d[8:], uint32(in[at+1]))
			case 3:
				b.round()
			case 4:
				if len(b.gate.waiting) > 0 {
					b.gate.end(int(in[at+1])%len(b.gate.waiting), Outcome(in[at+2])%4)
				}
			case 5:
				if base, err := b.dev.StopVring(0); err == nil {
					_ = b.dev.StartVring(b.vring(&base)) // it may find that the guest has made a mess
				}
			case 6:
				b.driver.Add([]virtq.Buffer{{Addr: bedTables + 0x8000, Len: uint32(in[at+1])}}, st)
				b.driver.Publish()
			}
		}
		b.round()
		if !bytes.Equal(ours, b.gate.disk[:4096]) {
			t.Fatal("the disk changed though nobody did what was asked")
		}
		for len(b.gate.waiting) > 0 {
			b.gate.end(0, OK)
		}
		b.round()
		_, err := b.dev.StopVring(0)
		b.must(err)
		b.failed, b.at = nil, 0
		b.drive()
		b.start(nil)
		b.gate.hold = false
		if st, _ := b.do(header(8, 0), nil, 20); st != 0 {
			t.Fatalf("begun anew: status %d", st)
		}
		b.gate.hold = true
	})
}
