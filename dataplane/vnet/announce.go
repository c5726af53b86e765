package vnet

import (
	"encoding/binary"

	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/wire"
)

// When a guest has moved here, switches and peers still send to where it was. A guest that cannot announce itself has its front-end ask the back-end
// to do it (vhost-user, SEND_RARP): the device makes the frame and takes it in as one that the guest sent, so that it is learned,
// judged and flooded like any other.
//
//	SendRARP ──(Do)──▶ Pair.announces ──▶ Receive, in front of what the guest has
const (
	// maxAnnounces is how many addresses wait for the next round; QEMU asks for one, again and again.
	maxAnnounces = 4
	rarpLen      = 60 // the shortest Ethernet frame, without its check sequence
)

// SendRARP announces that the guest has this address. Of more than can wait the oldest is forgotten.
func (d *Device) SendRARP(mac [6]byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.pairs[0]
	return p.on(func() error {
		if p.announcing == maxAnnounces {
			p.announcing = copy(p.announces[:], p.announces[1:])
		}
		p.announces[p.announcing] = mac
		p.announcing++
		return nil
	})
}

// announce puts the frames of waiting announcements into the vector, as far as frames are free.
func (p *Pair) announce(into []*frame.Frame, pool *frame.Pool) (n int) {
	for n < p.announcing && n < len(into) {
		f := pool.Get()
		if f == nil {
			break
		}
		putRARP(f.Append(rarpLen), p.announces[n])
		into[n] = f
		n++
	}
	p.announcing = copy(p.announces[:], p.announces[n:p.announcing])
	p.counters.RxPackets.Add(uint64(n))
	p.counters.RxBytes.Add(uint64(n * rarpLen))
	return n
}

// putRARP writes a reverse ARP request (RFC 903) in which the guest asks everybody for its own protocol address: nobody answers, and every switch on
// the way learns where the hardware address is.
func putRARP(b []byte, mac [6]byte) {
	const etherTypeRARP, hardwareEthernet, reverseRequest = 0x8035, 1, 3
	clear(b)
	wire.Ethernet(b).Set(0xffff_ffff_ffff, wire.MACFrom(mac), etherTypeRARP)
	rarp := b[wire.EthernetLen:]
	binary.BigEndian.PutUint16(rarp, hardwareEthernet)
	binary.BigEndian.PutUint16(rarp[2:], wire.EtherTypeIPv4)
	rarp[4], rarp[5] = 6, 4
	binary.BigEndian.PutUint16(rarp[6:], reverseRequest)
	copy(rarp[8:], mac[:])
	copy(rarp[18:], mac[:])
}
