package vnet_test

import (
	"encoding/binary"
	"testing"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/offload"
	"github.com/shuntio/shunt/dataplane/virtq"
	"github.com/shuntio/shunt/dataplane/vnet"
	"github.com/shuntio/shunt/dataplane/wire"
)

// judge says what is to become of a packet (a virtio-net header, then a frame) in so many buffers, by the specification and
// the port's documented limits. Of a packet to be cut it only says that it may be taken.
func judge(features uint64, packet []byte, buffers int) (data []byte, sum frame.Checksum, why dataplane.Reason, ok bool) {
	h := 12
	if features&(vnet.FeatureVersion1|vnet.FeatureMrgRxbuf) == 0 {
		h = 10
	}
	switch {
	case buffers > frame.MaxBody:
		return nil, sum, vnet.DropTooManyPieces, false
	case len(packet) < h, packet[0]&1 != 0 && features&vnet.FeatureCsum == 0, !mayAsk(features, packet[1], packet[0]&1 != 0):
		return nil, sum, vnet.DropBadHeader, false
	case len(packet)-h > frame.MaxLen:
		return nil, sum, vnet.DropTooLong, false
	}
	data = packet[h:]
	if packet[0]&1 != 0 {
		sum = frame.Checksum{Needed: true, Start: binary.LittleEndian.Uint16(packet[6:]), Offset: binary.LittleEndian.Uint16(packet[8:])}
		head := data[:min(len(data), frame.HeadLen)]
		if int(sum.Start)+int(sum.Offset)+2 > len(head) {
			return nil, sum, vnet.DropFarChecksum, false
		}
		if packet[1] == 0 && !isField(head, int(sum.Start), int(sum.Offset)) {
			return nil, sum, vnet.DropBadChecksum, false
		}
	}
	return data, sum, 0, true
}

// mayAsk tells whether a gso_type is one that was negotiated, and comes with a checksum.
func mayAsk(features uint64, gso byte, needed bool) bool {
	switch {
	case gso == 0:
		return true
	case !needed, gso&0x80 != 0 && features&vnet.FeatureHostECN == 0:
		return false
	}
	return gso&0x7f == 1 && features&vnet.FeatureHostTSO4 != 0 || gso&0x7f == 4 && features&vnet.FeatureHostTSO6 != 0
}

// isField tells whether there is a checksum's field of TCP or UDP.
func isField(head []byte, start, offset int) bool {
	at, tags := 12, 0
	for ; at+2 <= len(head); at += 4 {
		switch binary.BigEndian.Uint16(head[at:]) {
		case 0x8100, 0x88a8:
			if tags++; tags > 2 {
				return false
			}
		case 0x0800:
			ip := head[at+2:]
			if len(ip) < 20 || ip[0]>>4 != 4 || ip[0]&15 < 5 || len(ip) < int(ip[0]&15)*4 || int(binary.BigEndian.Uint16(ip[2:])) < int(ip[0]&15)*4 {
				return false
			}
			return binary.BigEndian.Uint16(ip[6:])&0x3fff == 0 && behind(head, at+2+int(ip[0]&15)*4, int(ip[9])|noExtensions, start, offset)
		case 0x86dd:
			ip := head[at+2:]
			return len(ip) >= 40 && ip[0]>>4 == 6 && behind(head, at+42, int(ip[6]), start, offset)
		default:
			return false
		}
	}
	return false
}

// noExtensions: a protocol of IPv4, none of which is an extension header.
const noExtensions = 0x100

// behind is isField for what lies behind IPv6 extension headers (RFC 8200, 4), of which the first is at.
func behind(head []byte, at, next, start, offset int) bool {
	for range wire.MaxExtensions + 1 {
		switch next &^ noExtensions {
		case 6:
			return at == start && offset == 16
		case 17, 136:
			return at == start && offset == 6
		}
		if next&noExtensions != 0 || at+8 > len(head) {
			return false
		}
		length := 8 * (1 + int(head[at+1]))
		switch next {
		case 0, 43, 60, 135, 139, 140:
		case 51:
			length = 4 * (2 + int(head[at+1]))
		case 44:
			length = 8
			if binary.BigEndian.Uint16(head[at+2:])&0xfff9 != 0 {
				return false
			}
		default:
			return false
		}
		next, at = int(head[at]), at+length
	}
	return false
}

// The fuzzed bytes: which features, how many buffers and how long each is, in units of the byte behind; then header and frame, repeated if
// that is shorter than the buffers.
func FuzzReceive(f *testing.F) {
	features := []uint64{
		modern, modern &^ vnet.FeatureCsum, vnet.FeatureVersion1 | vnet.FeatureCsum, vnet.FeatureCsum, 0, vnet.FeatureMrgRxbuf, allOffloads,
		allOffloads &^ vnet.FeatureHostECN, allOffloads &^ vnet.FeatureHostTSO4, allOffloads | vnet.FeaturePacked, allOffloads | vnet.FeaturePacked | vnet.FeatureInOrder,
	}
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
	for i, k := range []kind{{protocol: 6, payload: 100}, {ip6: true, protocol: 6, payload: 100}, {ip4opts: 8, protocol: 17}, {ip6: true, ip6ext: 16, protocol: 17, tags: 1}} {
		packet, start := build(k)
		for _, which := range []byte{0, 6, 7, 8, 9, 10} {
			f.Add(append(append([]byte{which, 1, 1, byte(12 + len(packet))}, asks(1, [4]byte{1, 4, 0, 0x81}[i], 40, start, [4]uint16{16, 16, 6, 6}[i])...), packet...))
		}
	}
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
		got, meta, gotOK := bed.sendFrame(buffers)
		if gso := len(packet) > 1 && packet[1] != 0; ok && gso && !gotOK { // as offload.Check sees it, which has its own tests
			if d := bed.drops(); d[offload.DropBadGSO]+d[offload.DropTooManySegments] != before[offload.DropBadGSO]+before[offload.DropTooManySegments]+1 {
				t.Fatalf("dropped as %v", d)
			}
			return
		} else if ok && gso {
			f := bed.pool.Get()
			copy(f.Append(min(len(data), frame.HeadLen)), data)
			f.Borrow([][]byte{data[f.HeadLen():]}, len(data)-f.HeadLen())
			f.Checksum, f.GSO = meta.Checksum, meta.GSO
			if _, why, ok := offload.Check(f); !ok || f.GSO.Size != binary.LittleEndian.Uint16(packet[4:]) || f.GSO.ECN != (packet[1]&0x80 != 0) {
				t.Fatalf("taken with %+v, and then %v", f.GSO, why)
			}
			bed.pool.Put(f)
		}
		if gotOK != ok || ok && (!same(got, data) || meta.Checksum != sum) {
			t.Fatalf("features %#x, buffers %v, header %x: %v, %d bytes, %+v; want %v, %d bytes, %+v",
				features[which], lengths, packet[:min(12, len(packet))], gotOK, len(got), meta.Checksum, ok, len(data), sum)
		}
		if !ok {
			bed.wantDrop(before, why)
		}
		if bed.dev.State().Failed != nil {
			t.Fatalf("the port failed: %v", bed.dev.State().Failed)
		}
	})
}
