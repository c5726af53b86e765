package wire

import "encoding/binary"

const (
	// VXLANLen is the length of a VXLAN header.
	VXLANLen = 8
	// VXLANPort is the UDP destination port that IANA assigned.
	VXLANPort = 4789
	// MaxVNI is the largest network identifier.
	MaxVNI = 1<<24 - 1
)

// VXLAN is a VXLAN header, with the inner frame behind it (RFC 7348, 5). I must be set; the reserved bits are sent as zero and
// not looked at.
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|R|R|R|R|I|R|R|R|            Reserved                           |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|                VXLAN Network Identifier (VNI) |   Reserved    |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
type VXLAN []byte

// ParseVXLAN checks that the header is there.
func ParseVXLAN(b []byte) (VXLAN, bool) { return VXLAN(b), len(b) >= VXLANLen }

// HasVNI is the I flag: the header carries a valid VNI.
func (h VXLAN) HasVNI() bool { return h[0]&0x08 != 0 }

// VNI is the network the inner frame belongs to.
func (h VXLAN) VNI() uint32 { return binary.BigEndian.Uint32(h[4:8]) >> 8 }

// Payload is what is there of the inner frame.
func (h VXLAN) Payload() []byte { return h[VXLANLen:] }

// Set writes the whole header.
func (h VXLAN) Set(vni uint32) {
	binary.BigEndian.PutUint32(h[0:4], 0x0800_0000)
	binary.BigEndian.PutUint32(h[4:8], vni<<8)
}
