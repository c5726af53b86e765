package xsk

import (
	"encoding/binary"

	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/wire"
)

// findPartial finds the checksum that a container's kernel left open. Between kernels a veth moves packets with a note that says so, and
// AF_XDP drops the note. But what is open holds exactly the pseudo header's sum, as everywhere (virtio 1.2, 5.1.6.2), so this is looked for
// in the headers alone. It can be there by chance, once in 65535 complete packets: completing it then gives what it
// was, if all that the checksum covers is the rest of the frame, as is demanded here.
//
// What a tunnel inside the container left open within its own packets is not found: there its offload must be off (ethtool -K eth0 tx off).
func findPartial(f *frame.Frame) {
	head := f.Head()
	l := wire.Locate(head)
	if l.Transport == 0 || l.Fragment {
		return
	}
	at := int(l.Transport)
	offset := 0
	switch l.Protocol {
	case wire.ProtoTCP:
		offset = 16
	case wire.ProtoUDP:
		offset = 6
	default:
		return
	}
	length := f.Len() - at
	if len(head) < at+offset+2 || l.Protocol == wire.ProtoUDP && int(binary.BigEndian.Uint16(head[at+4:])) != length {
		return
	}
	var source, destination []byte
	ends := 0
	if l.EtherType == wire.EtherTypeIPv4 {
		h := wire.IPv4(head[l.Network:])
		source, destination, ends = h.Source(), h.Destination(), int(l.Network)+int(h.TotalLen())
	} else {
		h := wire.IPv6(head[l.Network:])
		source, destination, ends = h.Source(), h.Destination(), int(l.Network)+wire.IPv6Len+int(h.PayloadLen())
	}
	if ends != f.Len() {
		return // padding, which a checksum that is complete does not cover
	}
	if sum := wire.SumPseudo(source, destination, l.Protocol, uint32(length)); binary.BigEndian.Uint16(head[at+offset:]) == sum && sum != 0 {
		f.Checksum = frame.Checksum{Needed: true, Start: uint16(at), Offset: uint16(offset)}
	}
}
