package wire

import (
	"encoding/binary"
	"fmt"
	"net"
)

// EtherTypes, and the bound below which the field is an 802.3 length instead.
const (
	EtherTypeIPv4 = 0x0800
	EtherTypeARP  = 0x0806
	EtherTypeRARP = 0x8035
	EtherTypeVLAN = 0x8100
	EtherTypeIPv6 = 0x86dd
	EtherTypeQinQ = 0x88a8
	EtherTypeMin  = 0x0600
)

const (
	// EthernetLen is the length of an Ethernet header without tags.
	EthernetLen = 14
	// VLANLen is the length of one 802.1Q tag.
	VLANLen = 4
)

// Ethernet is an Ethernet II header, with what follows it (IEEE 802.3).
//
//	 0                   1                   2                   3
//	+-------------------------------+-------------------------------+
//	|                  Destination MAC Address                      |
//	+                               +-------------------------------+
//	|                               |                               |
//	+-------------------------------+                               +
//	|                    Source MAC Address                         |
//	+-------------------------------+-------------------------------+
//	|           EtherType           |          Payload ...          |
//	+-------------------------------+-------------------------------+
type Ethernet []byte

// ParseEthernet checks that the header is there.
func ParseEthernet(b []byte) (Ethernet, bool) {
	return Ethernet(b), len(b) >= EthernetLen
}

// Destination is the MAC address the frame is for.
func (h Ethernet) Destination() MAC { return MAC(binary.BigEndian.Uint64(h[0:8]) >> 16) }

// Source is the MAC address the frame says it is from.
func (h Ethernet) Source() MAC { return MAC(binary.BigEndian.Uint64(h[6:14]) >> 16) }

// EtherType is the type of the payload, or of the first tag.
func (h Ethernet) EtherType() uint16 { return binary.BigEndian.Uint16(h[12:14]) }

// Payload is what follows the header: a tag, if EtherType says so.
func (h Ethernet) Payload() []byte { return h[EthernetLen:] }

// Set writes the whole header.
func (h Ethernet) Set(destination, source MAC, etherType uint16) {
	binary.BigEndian.PutUint64(h[0:8], uint64(destination)<<16)
	binary.BigEndian.PutUint32(h[6:10], uint32(source>>16))
	binary.BigEndian.PutUint16(h[10:12], uint16(source))
	binary.BigEndian.PutUint16(h[12:14], etherType)
}

// MAC is a 48-bit Ethernet address as a number, first octet on top: it compares, hashes and copies in one instruction.
// The upper 16 bits are zero.
type MAC uint64

// Broadcast is the address of everybody.
const Broadcast MAC = 0xffff_ffff_ffff

// MACFrom reads an address from its six octets.
func MACFrom(b [6]byte) MAC {
	return MAC(b[0])<<40 | MAC(b[1])<<32 | MAC(b[2])<<24 | MAC(b[3])<<16 | MAC(b[4])<<8 | MAC(b[5])
}

// MACFromHardware reads what package net and netlink call a hardware address; false if it is not six octets.
func MACFromHardware(a net.HardwareAddr) (MAC, bool) {
	if len(a) != 6 {
		return 0, false
	}
	return MACFrom([6]byte(a)), true
}

// ParseMAC reads six octets in any of the notations of net.ParseMAC.
func ParseMAC(s string) (MAC, error) {
	a, err := net.ParseMAC(s)
	if err != nil {
		return 0, fmt.Errorf("MAC address %q: write six octets, as in 52:54:00:00:00:01", s)
	}
	m, ok := MACFromHardware(a)
	if !ok {
		return 0, fmt.Errorf("MAC address %q: %d octets, must be 6", s, len(a))
	}
	return m, nil
}

// Bytes are the six octets.
func (m MAC) Bytes() [6]byte {
	return [6]byte{byte(m >> 40), byte(m >> 32), byte(m >> 24), byte(m >> 16), byte(m >> 8), byte(m)}
}

// IsMulticast tells whether the address means a group, of which Broadcast is one.
func (m MAC) IsMulticast() bool { return m&(1<<40) != 0 }

// String is the usual notation.
func (m MAC) String() string {
	b := m.Bytes()
	return net.HardwareAddr(b[:]).String()
}

// MarshalText and UnmarshalText let a MAC stand in JSON and YAML as people write it.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText is the reverse of MarshalText.
func (m *MAC) UnmarshalText(text []byte) (err error) {
	*m, err = ParseMAC(string(text))
	return err
}
