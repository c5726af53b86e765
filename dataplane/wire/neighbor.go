package wire

import "encoding/binary"

// Neighbour discovery (RFC 4861).
const (
	// NeighborMinLen is the length of a neighbour solicitation or advertisement without options.
	NeighborMinLen = ICMPLen + 16
	// NeighborLinkLen is that of one with a link-layer address of Ethernet.
	NeighborLinkLen = NeighborMinLen + 8
	// NeighborHopLimit is that of all neighbour discovery: no router has forwarded it.
	NeighborHopLimit = 255

	// OptionSourceLink and OptionTargetLink are the options with a link-layer address.
	OptionSourceLink = 1
	OptionTargetLink = 2

	// AdvertisementSolicited and AdvertisementOverride are flags of an advertisement, whose fifth byte has them.
	AdvertisementSolicited = 0x40
	AdvertisementOverride  = 0x20
)

// SolicitedNode is the group that hosts with an address listen to (RFC 4291, 2.7.1).
func SolicitedNode(a [16]byte) [16]byte {
	return [16]byte{0: 0xff, 1: 0x02, 11: 1, 12: 0xff, 13: a[13], 14: a[14], 15: a[15]}
}

// NeighborOptions tells whether a solicitation or advertisement has room for its options (RFC 4861, 4.6), each with a length that is not zero,
// and whether one of a type is among them.
func (h ICMPv6) NeighborOptions(kind uint8) (found, ok bool) {
	if len(h) < NeighborMinLen {
		return false, false
	}
	for b := h[NeighborMinLen:]; len(b) > 0; {
		if len(b) < 2 || b[1] == 0 || len(b) < 8*int(b[1]) {
			return false, false
		}
		found = found || b[0] == kind
		b = b[8*int(b[1]):]
	}
	return found, true
}

// SetNeighborAdvertisement writes an advertisement of NeighborLinkLen bytes: target has mac. The checksum is still to be set.
func (h ICMPv6) SetNeighborAdvertisement(flags uint8, target [16]byte, mac MAC) {
	binary.BigEndian.PutUint64(h[0:8], ICMPv6NeighborAdvertisement<<56|uint64(flags)<<24)
	copy(h[ICMPLen:NeighborMinLen], target[:])
	binary.BigEndian.PutUint64(h[NeighborMinLen:NeighborLinkLen], OptionTargetLink<<56|1<<48|uint64(mac))
}

// SetChecksum computes the checksum over the message, which is all of h, and the addresses of its packet.
func (h ICMPv6) SetChecksum(source, destination []byte) {
	h[2], h[3] = 0, 0
	binary.BigEndian.PutUint16(h[2:4], ^h.sum(source, destination))
}

// ChecksumValid verifies the checksum of the message, which is all of h.
func (h ICMPv6) ChecksumValid(source, destination []byte) bool {
	return h.sum(source, destination) == 0xffff
}

func (h ICMPv6) sum(source, destination []byte) uint16 {
	return Sum(SumPseudo(source, destination, ProtoICMPv6, uint32(len(h))), h)
}

// SetChecksum computes the checksum over the message, which is all of h.
func (h ICMPv4) SetChecksum() {
	h[2], h[3] = 0, 0
	binary.BigEndian.PutUint16(h[2:4], ^Sum(0, h))
}
