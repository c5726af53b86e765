package main

import "encoding/binary"

// What the frames of all jobs carry: a 64-byte UDP packet of a guest, inside VXLAN.
const (
	innerLen = 64
	outerLen = 14 + 20 + 8 + 8
	frameLen = outerLen + innerLen

	vni       = 100
	vxlanPort = 4789
	outerPort = 50123 // from the inner flow's hash
	innerFrom = 4444
	innerTo   = 5555
)

var (
	outerSource, outerTarget = [4]byte{192, 0, 2, 1}, [4]byte{192, 0, 2, 2}
	innerSource, innerTarget = [4]byte{10, 0, 0, 1}, [4]byte{10, 0, 0, 2}
	macs                     = [4][6]byte{{2, 0, 0, 0, 0, 1}, {2, 0, 0, 0, 0, 2}, {0x52, 0x54, 0, 0, 0, 1}, {0x52, 0x54, 0, 0, 0, 2}}
)

// facts is what a decoder is to find in the frame.
type facts struct {
	vni            uint32
	source, target [4]byte
	from, to       uint16
}

var wantFacts = facts{vni, innerSource, innerTarget, innerFrom, innerTo}

// newFrame writes the frame byte by byte, by the RFCs, owing nothing to a contender.
func newFrame() []byte {
	b := make([]byte, 0, frameLen)
	b = ethernet(b, macs[1], macs[0])
	b = ipv4(b, outerSource, outerTarget, frameLen-14)
	b = udp(b, outerPort, vxlanPort, frameLen-14-20)
	b = append(b, 0x08, 0, 0, 0, 0, 0, vni, 0) // RFC 7348, section 5
	b = ethernet(b, macs[3], macs[2])
	b = ipv4(b, innerSource, innerTarget, innerLen-14)
	b = udp(b, innerFrom, innerTo, innerLen-14-20)
	for len(b) < frameLen {
		b = append(b, byte(len(b)))
	}
	return b
}

func ethernet(b []byte, to, from [6]byte) []byte {
	b = append(b, to[:]...)
	b = append(b, from[:]...)
	return append(b, 0x08, 0x00)
}

func ipv4(b []byte, from, to [4]byte, length uint16) []byte {
	at := len(b)
	b = append(b, 0x45, 0)
	b = binary.BigEndian.AppendUint16(b, length)
	b = append(b, 0, 0, 0x40, 0, 64, 17, 0, 0) // not to be fragmented; 64 hops; UDP
	b = append(b, from[:]...)
	b = append(b, to[:]...)
	var sum uint32
	for i := at; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(b[at+10:], ^uint16(sum+sum>>16))
	return b
}

func udp(b []byte, from, to, length uint16) []byte {
	b = binary.BigEndian.AppendUint16(b, from)
	b = binary.BigEndian.AppendUint16(b, to)
	b = binary.BigEndian.AppendUint16(b, length)
	return append(b, 0, 0) // no checksum
}
