package offload

import (
	"encoding/binary"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/wire"
)

// Why a frame is not cut.
var (
	// DropBadGSO is for requests that do not fit their frame.
	DropBadGSO = dataplane.NewReason("bad-segmentation", "the frame is to be segmented, but is not the TCP packet that its virtio-net header speaks of")
	// DropTooManySegments is for small sizes: one frame must not become any number of them.
	DropTooManySegments = dataplane.NewReason("too-many-segments", "the frame is to be cut into more segments than are allowed")
	// DropNoSegment counts segments that were not made.
	DropNoSegment = dataplane.NewReason("no-segment", "no frame was free for a segment of a larger frame")
)

const (
	// MaxSegments bounds what one frame becomes: 64 KiB at 128 bytes each. Usual are 45, of 1448.
	MaxSegments = 512
	// MinSize is the smallest payload of a segment: an MSS of 48, less 40 bytes of options.
	MinSize = 8
	// maxPacket is what an IP header can say of its packet, or an IPv6 header of what follows it.
	maxPacket = 65535
	// checksumOffset is where TCP's checksum lies in its header.
	checksumOffset = 16
)

// layout says where the headers of a TCP packet lie, from its first byte.
type layout struct {
	network, transport int
	headers            int // length of all of them, TCP's with its options included
	is6                bool
}

// Check judges a frame with GSO: whether it is the TCP packet that its GSO and Checksum say it is, with all headers in the first frame.HeadLen bytes of
// its private head. It returns the length of its longest segment, which must not exceed the MTU of the way, with the Ethernet header and tags. What passes may be given whole
// to a port that takes such frames, and a Segmenter will cut it. It must not be asked of other frames.
func Check(f *frame.Frame) (longest int, why dataplane.Reason, ok bool) {
	l, why, ok := examine(f)
	if !ok {
		return 0, why, false
	}
	return l.headers + min(int(f.GSO.Size), f.Len()-l.headers), 0, true
}

// examine is Check, and tells where the headers are.
func examine(f *frame.Frame) (l layout, why dataplane.Reason, ok bool) {
	head, size := f.Head(), int(f.GSO.Size)
	at := wire.Locate(head)
	switch {
	case at.Transport == 0 || at.Protocol != wire.ProtoTCP || at.Fragment || size < MinSize:
		return l, DropBadGSO, false
	case f.GSO.Type == frame.GSOTCP4 && at.EtherType == wire.EtherTypeIPv4:
	case f.GSO.Type == frame.GSOTCP6 && at.EtherType == wire.EtherTypeIPv6:
		l.is6 = true
	default:
		return l, DropBadGSO, false
	}
	if c := f.Checksum; !c.Needed || c.Start != at.Transport || c.Offset != checksumOffset || int(at.Transport) > len(head) {
		return l, DropBadGSO, false
	}
	tcp, ok := wire.ParseTCP(head[at.Transport:])
	if !ok || tcp.Flags()&(wire.TCPSyn|wire.TCPRst) != 0 {
		return l, DropBadGSO, false
	}
	l.network, l.transport = int(at.Network), int(at.Transport)
	l.headers = l.transport + tcp.HeaderLen()
	payload := f.Len() - l.headers
	if l.headers > frame.HeadLen || l.headers-l.network+min(size, payload) > maxPacket {
		return l, DropBadGSO, false
	}
	if payload > size*MaxSegments {
		return l, DropTooManySegments, false
	}
	return l, 0, true
}

// Needs tells what a port must take, as dataplane's Offload bits, to be given the frame as it is.
func Needs(f *frame.Frame) (offloads uint32) {
	if f.Checksum.Needed {
		offloads = dataplane.OffloadChecksum
	}
	switch f.GSO.Type {
	case frame.GSOTCP4:
		offloads |= dataplane.OffloadTSO4
	case frame.GSOTCP6:
		offloads |= dataplane.OffloadTSO6
	default:
		return offloads
	}
	if f.GSO.ECN {
		offloads |= dataplane.OffloadECN
	}
	return offloads
}

// get16 and set16 are for fields of headers.
func get16(b []byte) uint16    { return binary.BigEndian.Uint16(b) }
func set16(b []byte, v uint16) { binary.BigEndian.PutUint16(b, v) }
