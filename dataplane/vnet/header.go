package vnet

import (
	"encoding/binary"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/offload"
	"github.com/shuntio/shunt/dataplane/wire"
)

// The virtio-net header in front of each frame (virtio 1.2, 5.1.6), little-endian:
//
//	0       1          2         4          6            8             10            12
//	├ flags ┼ gso_type ┼ hdr_len ┼ gso_size ┼ csum_start ┼ csum_offset ┼ num_buffers ┤
//
// From the guest it asks for work: a checksum to be filled in, a TCP packet to be cut. What it says is judged on the copied head, and
// then goes with the frame (frame.Checksum, frame.GSO), so whoever does the work need not ask again. To the guest it leaves the same work.
const (
	maxHeader    = 12
	legacyHeader = 10 // without num_buffers: neither VERSION_1 nor MRG_RXBUF

	flagNeedsCsum = 1
	flagDataValid = 2

	gsoNone = 0
	gsoTCP4 = 1
	gsoTCP6 = 4
	gsoECN  = 0x80
)

// offers is what negotiated features mean for the worker.
type offers struct {
	header int    // length of the virtio-net header
	merge  bool   // the guest takes frames in several buffers
	csum   bool   // it may leave checksums to us
	valid  byte   // flagDataValid, if it believes that
	gso    uint32 // what it may send, as dataplane's Offload bits
	takes  uint32 // what it takes, likewise
}

// offersOf is for these features. A front-end that never tells any has a driver without.
func offersOf(features uint64) offers {
	o := offers{
		header: maxHeader,
		merge:  features&FeatureMrgRxbuf != 0,
		csum:   features&FeatureCsum != 0,
	}
	if features&(FeatureVersion1|FeatureMrgRxbuf) == 0 {
		o.header = legacyHeader
	}
	if o.csum {
		o.gso = tsoBits(features, FeatureHostTSO4, FeatureHostTSO6, FeatureHostECN)
	}
	if features&FeatureGuestCsum != 0 { // without it the others mean nothing (virtio 1.2, 5.1.3.1)
		o.valid = flagDataValid
		o.takes = dataplane.OffloadChecksum | tsoBits(features, FeatureGuestTSO4, FeatureGuestTSO6, FeatureGuestECN)
	}
	return o
}

func tsoBits(features, tso4, tso6, ecn uint64) (bits uint32) {
	if features&tso4 != 0 {
		bits |= dataplane.OffloadTSO4
	}
	if features&tso6 != 0 {
		bits |= dataplane.OffloadTSO6
	}
	if features&ecn != 0 && bits != 0 {
		bits |= dataplane.OffloadECN
	}
	return bits
}

// read takes what the guest asks for into the frame. It reads the header once: the guest may write it again at any time.
func (o *offers) read(f *frame.Frame, header []byte) (drop dataplane.Reason, ok bool) {
	first := binary.LittleEndian.Uint64(header)
	if first&0xffff == 0 { // flags and gso_type
		return 0, true
	}
	return o.requests(f, first, header)
}

// requests is read for a header that asks for something: first are its first eight bytes, which are read already.
func (o *offers) requests(f *frame.Frame, first uint64, header []byte) (drop dataplane.Reason, ok bool) {
	flags, gso := byte(first), byte(first>>8)
	if flags&flagNeedsCsum != 0 {
		if !o.csum {
			return DropBadHeader, false
		}
		f.Checksum = frame.Checksum{Needed: true, Start: uint16(first >> 48), Offset: binary.LittleEndian.Uint16(header[8:])}
	}
	if gso == gsoNone {
		return 0, true
	}
	// hdr_len is a hint, which we do not take: the headers say themselves how long they are.
	f.GSO = frame.GSO{ECN: gso&gsoECN != 0, Size: uint16(first >> 32)}
	switch gso &^ gsoECN {
	case gsoTCP4:
		f.GSO.Type = frame.GSOTCP4
	case gsoTCP6:
		f.GSO.Type = frame.GSOTCP6
	default:
		return DropBadHeader, false
	}
	if !f.Checksum.Needed || offload.Needs(f)&^(o.gso|dataplane.OffloadChecksum) != 0 {
		return DropBadHeader, false // virtio 1.2, 5.1.6.2.1: VIRTIO_NET_HDR_F_NEEDS_CSUM goes with every gso_type
	}
	return 0, true
}

// judged tells whether what the guest asked for fits the frame, whose head is copied by now.
func judged(f *frame.Frame) (drop dataplane.Reason, ok bool) {
	if !f.Checksum.Needed {
		return 0, true
	}
	return judgeRequests(f)
}

// judgeRequests is judged for a frame of which something is asked. A checksum is only ever filled into a TCP or UDP header's field for it: anywhere else it
// would change what the frame was let through for, such as its source address.
func judgeRequests(f *frame.Frame) (drop dataplane.Reason, ok bool) {
	c, head := f.Checksum, f.Head()
	if int(c.Start)+int(c.Offset)+2 > len(head) {
		return DropFarChecksum, false
	}
	if f.GSO.Type != frame.GSONone {
		_, drop, ok = offload.Check(f)
		return drop, ok
	}
	// The usual packet, without a walk: in IPv4, no tags, no options, no fragment.
	protocol, start := uint8(0), uint16(0)
	if len(head) >= wire.EthernetLen+wire.IPv4MinLen && binary.BigEndian.Uint16(head[12:]) == wire.EtherTypeIPv4 && head[14] == 0x45 &&
		binary.BigEndian.Uint16(head[20:])&0x3fff == 0 {
		protocol, start = head[23], wire.EthernetLen+wire.IPv4MinLen
	} else if l := wire.Locate(head); !l.Fragment {
		protocol, start = l.Protocol, l.Transport
	}
	field := uint16(0)
	switch protocol {
	case wire.ProtoTCP:
		field = 16
	case wire.ProtoUDP, protoUDPLite:
		field = 6
	}
	if start == 0 || field == 0 || c.Start != start || c.Offset != field {
		return DropBadChecksum, false
	}
	return 0, true
}

// protoUDPLite has UDP's header but for the coverage in place of the length (RFC 3828).
const protoUDPLite = 136

// write makes the header of a frame to the guest, for one chain.
func (o *offers) write(f *frame.Frame, header []byte) (drop dataplane.Reason, ok bool) {
	var flags, gso byte
	var length, size uint16
	c := f.Checksum
	switch {
	case offload.Needs(f)&^o.takes != 0:
		return DropNotTaken, false
	case c.Needed:
		flags = flagNeedsCsum
	case c.Valid:
		flags, c = o.valid, frame.Checksum{}
	}
	if f.GSO.Type != frame.GSONone {
		head := f.Head()
		if len(head) < int(c.Start)+wire.TCPMinLen {
			return DropNotTaken, false // a GSO frame without its headers: none of ours
		}
		gso, size = gsoTypes[f.GSO.Type&3], f.GSO.Size
		if f.GSO.ECN {
			gso |= gsoECN
		}
		length = c.Start + uint16(head[c.Start+12]>>4)*4
	}
	le := binary.LittleEndian
	le.PutUint64(header, uint64(flags)|uint64(gso)<<8|uint64(length)<<16|uint64(size)<<32|uint64(c.Start)<<48)
	if o.header == maxHeader {
		le.PutUint32(header[8:], uint32(c.Offset)|1<<16) // num_buffers 1
	} else {
		le.PutUint16(header[8:], c.Offset)
	}
	return 0, true
}

var gsoTypes = [4]byte{frame.GSOTCP4: gsoTCP4, frame.GSOTCP6: gsoTCP6}
