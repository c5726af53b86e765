// Package packet receives what XDP must leave to the kernel although a flat network wants it, too: broadcasts and multicasts.
//
//	NIC ──▶ XDP ──▶ kernel (its ARP, ND, mDNS go on)
//	                  └──copy──▶ AF_PACKET socket ──▶ Port ──▶ the flat network's ports
//
// It also opens the interface's own filter, which would keep from us what is not the host's: all multicasts, and unicasts to the
// addresses that Listen names. Those come by AF_XDP, but only if the NIC lets them in.
//
// A redirect to an AF_XDP socket would take such a frame away from the kernel, and XDP cannot duplicate one. They are few, so
// one system call each is no matter. A Port only receives: what the flat network sends leaves by the uplink's AF_XDP socket.
package packet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"golang.org/x/sys/unix"
)

// DropOffload is for frames of the host's own making that no wire could carry: segments too large.
var DropOffload = dataplane.NewReason("multicast-offload", "a multicast frame of this host was larger than the wire allows")

// perRound bounds the system calls of one round.
const perRound = 16

// headerLen is the virtio-net header the kernel puts in front (PACKET_VNET_HDR): without it the checksum of a frame that never saw a
// wire would be incomplete, and nobody would know.
const headerLen = 10

// Port receives multicast frames of one interface. It is a dataplane.Port that sends nothing.
type Port struct {
	fd       int
	ifindex  int
	counters *dataplane.Counters
	heard    map[[6]byte]bool // by Listen; the control side's
}

// Open begins to receive the multicast frames that reach an interface from outside.
func Open(ifindex int, counters *dataplane.Counters) (*Port, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0) // protocol 0: nothing before bind
	if err != nil {
		return nil, fmt.Errorf("packet socket: %w; run as root or with CAP_NET_RAW", err)
	}
	p := &Port{fd: fd, ifindex: ifindex, counters: counters, heard: map[[6]byte]bool{}}
	if err := p.bind(); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("packet socket on interface %d: %w", ifindex, err)
	}
	return p, nil
}

func (p *Port) bind() error {
	if err := unix.SetsockoptInt(p.fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(p.fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
		return err
	}
	// Only frames whose first byte has the group bit (IEEE 802.3, 3.2.3); classic BPF: load byte 0; jump if bit 0 set; accept; reject.
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 0},
		{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, Jt: 0, Jf: 1, K: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0xffff},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.SetsockoptSockFprog(p.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &program); err != nil {
		return err
	}
	all := binary.BigEndian.Uint16([]byte{0, unix.ETH_P_ALL})
	if err := unix.Bind(p.fd, &unix.SockaddrLinklayer{Protocol: all<<8 | all>>8, Ifindex: p.ifindex}); err != nil {
		return err
	}
	return p.member(unix.PACKET_ADD_MEMBERSHIP, &unix.PacketMreq{Type: unix.PACKET_MR_ALLMULTI})
}

// Listen lets unicasts to an address in, besides the interface's own. A NIC whose filter is full lets everything in. Not to be called by
// two goroutines at once.
func (p *Port) Listen(mac [6]byte) error {
	if p.heard[mac] { // the kernel would count, and want as many Ignores
		return nil
	}
	if err := p.member(unix.PACKET_ADD_MEMBERSHIP, unicast(mac)); err != nil {
		return fmt.Errorf("listen to %s: %w", net.HardwareAddr(mac[:]), err)
	}
	p.heard[mac] = true
	return nil
}

// Ignore takes Listen back. What is not taken back ends with Close.
func (p *Port) Ignore(mac [6]byte) error {
	if !p.heard[mac] {
		return nil
	}
	delete(p.heard, mac)
	if err := p.member(unix.PACKET_DROP_MEMBERSHIP, unicast(mac)); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("listen to %s no more: %w", net.HardwareAddr(mac[:]), err)
	}
	return nil
}

func unicast(mac [6]byte) *unix.PacketMreq {
	m := &unix.PacketMreq{Type: unix.PACKET_MR_UNICAST, Alen: uint16(len(mac))}
	copy(m.Address[:], mac[:])
	return m
}

func (p *Port) member(option int, m *unix.PacketMreq) error {
	m.Ifindex = int32(p.ifindex)
	return unix.SetsockoptPacketMreq(p.fd, unix.SOL_PACKET, option, m)
}

// FD is readable when frames wait; the worker watches it.
func (p *Port) FD() int { return p.fd }

// Close ends receiving.
func (p *Port) Close() error { return unix.Close(p.fd) }

// Receive implements dataplane.Port. A frame that would not fit a chunk is dropped.
func (p *Port) Receive(into []*frame.Frame, pool *frame.Pool) (n int) {
	for n < min(perRound, len(into)) {
		f := pool.Get()
		if f == nil {
			break
		}
		into[n] = f
		room := f.Append(f.Room())
		got, err := unix.Read(p.fd, room)
		if err != nil || got < headerLen {
			pool.Put(f)
			into[n] = nil
			break
		}
		if !p.take(f, got) {
			pool.Put(f)
			into[n] = nil
			continue
		}
		p.counters.RxPackets.Add(1)
		p.counters.RxBytes.Add(uint64(f.Len()))
		n++
	}
	return n
}

// take reads the header that the kernel put in front of the frame.
func (p *Port) take(f *frame.Frame, length int) bool {
	full := f.Room() == 0 && f.HeadLen() == length
	f.Truncate(length)
	header := f.Head()[:headerLen]
	flags, gso := header[0], header[1]
	start, offset := binary.LittleEndian.Uint16(header[6:]), binary.LittleEndian.Uint16(header[8:])
	f.Trim(headerLen)
	if gso != 0 || full {
		p.counters.Drop(DropOffload, 1)
		return false
	}
	if flags&1 != 0 { // VIRTIO_NET_HDR_F_NEEDS_CSUM
		if int(start)+int(offset)+2 > f.HeadLen() {
			p.counters.Drop(DropOffload, 1)
			return false
		}
		f.Checksum = frame.Checksum{Start: start, Offset: offset, Needed: true}
	}
	return true
}

// Release implements dataplane.Port.
func (p *Port) Release() {}

// Transmit implements dataplane.Port. Nobody sends here.
func (p *Port) Transmit([]*frame.Frame, *frame.Pool) {}

// Flush implements dataplane.Port.
func (p *Port) Flush() {}

// Arm implements dataplane.Port.
func (p *Port) Arm() time.Duration { return dataplane.Forever }

// Pending implements dataplane.Port. The socket is level-triggered: the sleep itself finds what came before.
func (p *Port) Pending() bool { return false }

// Disarm implements dataplane.Port.
func (p *Port) Disarm() {}

// Fault implements dataplane.Port.
func (p *Port) Fault(uintptr) bool { return false }
