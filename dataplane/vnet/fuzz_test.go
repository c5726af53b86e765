package vnet_test

import (
	"encoding/binary"
	"testing"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/virtq"
	"github.com/shuntio/shunt/dataplane/vnet"
)

// judge says what is to become of a packet (a virtio-net header, then a frame) in so many buffers, by the specification and
// the port's documented limits.
func judge(features uint64, packet []byte, buffers int) (data []byte, sum frame.Checksum, why dataplane.Reason, ok bool) {
	h := 12
	if features&(vnet.FeatureVersion1|vnet.FeatureMrgRxbuf) == 0 {
		h = 10
	}
	switch {
	case buffers > frame.MaxBody:
		return nil, sum, vnet.DropTooManyPieces, false
	case len(packet) < h, packet[1] != 0, packet[0]&1 != 0 && features&vnet.FeatureCsum == 0:
		return nil, sum, vnet.DropBadHeader, false
	case len(packet)-h > frame.MaxLen:
		return nil, sum, vnet.DropTooLong, false
	}
	data = packet[h:]
	if packet[0]&1 != 0 {
		sum = frame.Checksum{Needed: true, Start: binary.LittleEndian.Uint16(packet[6:]), Offset: binary.LittleEndian.Uint16(packet[8:])}
		if int(sum.Start)+int(sum.Offset)+2 > min(len(data), frame.HeadLen) {
			return nil, sum, vnet.DropFarChecksum, false
		}
	}
	return data, sum, 0, true
}

// The fuzzed bytes: which features, how many buffers and how long each is, in units of the byte behind; then header and frame, repeated if
// that is shorter than the buffers.
func FuzzReceive(f *testing.F) {
	features := []uint64{modern, modern &^ vnet.FeatureCsum, vnet.FeatureVersion1 | vnet.FeatureCsum, vnet.FeatureCsum, 0, vnet.FeatureMrgRxbuf}
	beds := make([]*bed, len(features))
	for i := range beds {
		beds[i] = newBed(f, features[i])
	}
	f.Add(append([]byte{0, 1, 1, 72}, append(header(1, 0, 34, 6), counting(60)...)...))
	f.Add(append([]byte{3, 2, 1, 10, 60}, append(header(0, 0, 0, 0), counting(60)...)...))
	f.Add(append([]byte{1, 3, 1, 12, 200, 250}, header(1, 0, 14, 2)...))
	f.Add(append([]byte{2, 1, 255, 255}, header(0, 1, 0, 0)...))
	f.Add(append([]byte{4, 40, 1}, make([]byte, 60)...))
	f.Add([]byte{5, 2, 1, 5, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 3 || len(b) > 4096 {
			return
		}
		which, n, unit := int(b[0])%len(features), int(b[1])%41, int(b[2])
		b = b[3:]
		if n == 0 || len(b) < n {
			return
		}
		var lengths []int
		total := 0
		for _, l := range b[:n] {
			lengths = append(lengths, int(l)*unit)
			total += int(l) * unit
		}
		if b = b[n:]; len(b) == 0 || total > 1<<19 {
			return
		}
		packet := make([]byte, total)
		for at := 0; at < total; at += len(b) {
			copy(packet[at:], b)
		}
		bed := beds[which]
		bed.TB = t
		var buffers []virtq.Buffer
		filled := 0
		memory, base := bed.scratch()
		at := 0
		for _, l := range lengths { // empty ones, too
			copy(memory[at:at+l], packet[filled:])
			buffers = append(buffers, virtq.Buffer{Addr: base + uint64(at), Len: uint32(l)})
			filled += l
			at += l + 1
			if l == 0 {
				n-- // counts as none
			}
		}
		data, sum, why, ok := judge(features[which], packet, n)
		before := bed.drops()
		got, gotSum, gotOK := bed.send(buffers)
		if gotOK != ok || ok && (!same(got, data) || gotSum != sum) {
			t.Fatalf("features %#x, buffers %v, header %x: %v, %d bytes, %+v; want %v, %d bytes, %+v",
				features[which], lengths, packet[:min(12, len(packet))], gotOK, len(got), gotSum, ok, len(data), sum)
		}
		if !ok {
			bed.wantDrop(before, why)
		}
		if bed.port.State().Failed != nil {
			t.Fatalf("the port failed: %v", bed.port.State().Failed)
		}
	})
}
