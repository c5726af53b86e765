package wire

import "encoding/binary"

// VnetHeaderLen is the length of the header with NumBuffers, which is how VIRTIO_F_VERSION_1 always has it.
const VnetHeaderLen = 12

// VnetHeader flags.
const (
	VnetNeedsCsum = 1 // the checksum from CsumStart on has yet to be filled in
	VnetDataValid = 2 // the device has checked the checksum
	VnetRSCInfo   = 4 // CsumStart and CsumOffset carry coalescing figures instead
)

// VnetHeader GSOType values.
const (
	VnetGSONone  = 0
	VnetGSOTCPv4 = 1
	VnetGSOUDP   = 3
	VnetGSOTCPv6 = 4
	VnetGSOUDPL4 = 5
	VnetGSOECN   = 0x80 // a flag beside the TCP types
)

// VnetHeader is the virtio-net header in front of each packet (virtio 1.2, 5.1.6). All of it is little-endian.
//
//	 0                   1                   2                   3
//	+---------------+---------------+-------------------------------+
//	|     flags     |   gso_type    |            hdr_len            |
//	+---------------+---------------+-------------------------------+
//	|           gso_size            |          csum_start           |
//	+-------------------------------+-------------------------------+
//	|          csum_offset          |          num_buffers          |
//	+-------------------------------+-------------------------------+
type VnetHeader []byte

// ParseVnetHeader checks that the header is there.
func ParseVnetHeader(b []byte) (VnetHeader, bool) { return VnetHeader(b), len(b) >= VnetHeaderLen }

// Flags are VnetNeedsCsum and its neighbours.
func (h VnetHeader) Flags() uint8 { return h[0] }

// GSOType says how a packet larger than the MTU is to be cut; VnetGSONone: it is one packet.
func (h VnetHeader) GSOType() uint8 { return h[1] }

// HdrLen is a hint at the length of the packet's headers.
func (h VnetHeader) HdrLen() uint16 { return binary.LittleEndian.Uint16(h[2:4]) }

// GSOSize is the payload of each packet that a large one is cut into.
func (h VnetHeader) GSOSize() uint16 { return binary.LittleEndian.Uint16(h[4:6]) }

// CsumStart is where in the packet the sum begins.
func (h VnetHeader) CsumStart() uint16 { return binary.LittleEndian.Uint16(h[6:8]) }

// CsumOffset is where the checksum goes, counted from CsumStart.
func (h VnetHeader) CsumOffset() uint16 { return binary.LittleEndian.Uint16(h[8:10]) }

// NumBuffers is how many buffers a received packet takes.
func (h VnetHeader) NumBuffers() uint16 { return binary.LittleEndian.Uint16(h[10:12]) }

// Clear writes a header that asks for nothing.
func (h VnetHeader) Clear() { clear(h[:VnetHeaderLen]) }

// SetFlags writes the flags.
func (h VnetHeader) SetFlags(flags uint8) { h[0] = flags }

// SetGSO writes the three fields of segmentation.
func (h VnetHeader) SetGSO(gsoType uint8, hdrLen, gsoSize uint16) {
	h[1] = gsoType
	binary.LittleEndian.PutUint16(h[2:4], hdrLen)
	binary.LittleEndian.PutUint16(h[4:6], gsoSize)
}

// SetCsum writes the two fields of a checksum left open.
func (h VnetHeader) SetCsum(start, offset uint16) {
	binary.LittleEndian.PutUint16(h[6:8], start)
	binary.LittleEndian.PutUint16(h[8:10], offset)
}

// SetNumBuffers writes how many buffers the packet takes.
func (h VnetHeader) SetNumBuffers(n uint16) { binary.LittleEndian.PutUint16(h[10:12], n) }
