package wire

import (
	"encoding/binary"
	"net/netip"
)

// ARPLen is the length of an ARP packet for IPv4 over Ethernet.
const ARPLen = 28

// ARP operations (RFC 826; RARP's from RFC 903 announce a migrated guest).
const (
	ARPRequest         = 1
	ARPReply           = 2
	RARPReverseRequest = 3
)

// ARP is an ARP packet for IPv4 over Ethernet (RFC 826); others do not parse.
//
//	 0                   1                   2                   3
//	+-------------------------------+-------------------------------+
//	|     Hardware type (1)         |    Protocol type (0x0800)     |
//	+---------------+---------------+-------------------------------+
//	|  HW len (6)   | Proto len (4) |           Operation           |
//	+---------------+---------------+-------------------------------+
//	|                    Sender hardware address                    |
//	+                               +-------------------------------+
//	|                               |    Sender protocol address    |
//	+-------------------------------+-------------------------------+
//	|  Sender protocol address      |                               |
//	+-------------------------------+                               +
//	|                    Target hardware address                    |
//	+---------------------------------------------------------------+
//	|                    Target protocol address                    |
//	+---------------------------------------------------------------+
type ARP []byte

// ParseARP checks that the packet is there and is for IPv4 over Ethernet.
func ParseARP(b []byte) (ARP, bool) {
	if len(b) < ARPLen || binary.BigEndian.Uint64(b)>>16 != 0x0001_0800_0604 {
		return nil, false
	}
	return ARP(b[:ARPLen]), true
}

// Operation is ARPRequest, ARPReply or a RARP one.
func (h ARP) Operation() uint16 { return binary.BigEndian.Uint16(h[6:8]) }

// SenderMAC is the hardware address the packet binds to SenderIP.
func (h ARP) SenderMAC() MAC { return MAC(binary.BigEndian.Uint64(h[6:14]) & 0xffff_ffff_ffff) }

// SenderIP is the address the packet tells about.
func (h ARP) SenderIP() [4]byte { return [4]byte(h[14:18]) }

// TargetMAC is the hardware address of the target, if it is known.
func (h ARP) TargetMAC() MAC { return MAC(binary.BigEndian.Uint64(h[16:24]) & 0xffff_ffff_ffff) }

// TargetIP is the address the packet asks about or answers to.
func (h ARP) TargetIP() [4]byte { return [4]byte(h[24:28]) }

// Set writes the whole packet.
func (h ARP) Set(operation uint16, senderMAC MAC, senderIP netip.Addr, targetMAC MAC, targetIP netip.Addr) {
	binary.BigEndian.PutUint32(h[0:4], 0x0001_0800)
	binary.BigEndian.PutUint16(h[4:6], 0x0604)
	binary.BigEndian.PutUint16(h[6:8], operation)
	mac, ip := senderMAC.Bytes(), senderIP.As4()
	copy(h[8:14], mac[:])
	copy(h[14:18], ip[:])
	mac, ip = targetMAC.Bytes(), targetIP.As4()
	copy(h[18:24], mac[:])
	copy(h[24:28], ip[:])
}
