package lab

import (
	"encoding/binary"
	"net"

	"golang.org/x/sys/unix"

	headers "github.com/shuntio/shunt/dataplane/wire"
	"github.com/shuntio/shunt/tools/lab/netlab"
)

// spray sends UDP datagrams of n flows out of a device, a frame of 64 bytes
// each, whoever the MAC addresses belong to. It calls before ahead of each one.
func spray(ns *netlab.Namespace, device, from, to string, n int, before func(i int) error) error {
	source, err := net.ParseMAC(from)
	if err != nil {
		return err
	}
	destination, err := net.ParseMAC(to)
	if err != nil {
		return err
	}
	return ns.Do(func() error {
		dev, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		socket, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(socket)
		frame := datagram(source, destination)
		for i := range n {
			if err := before(i); err != nil {
				return err
			}
			binary.BigEndian.PutUint16(frame[34:], uint16(1024+i))
			if err := unix.Sendto(socket, frame, 0, &unix.SockaddrLinklayer{Ifindex: dev.Index}); err != nil {
				return err
			}
		}
		return nil
	})
}

// datagram is an Ethernet frame with a UDP datagram to the discard port, between
// addresses for benchmarks (RFC 2544) and without UDP checksum.
func datagram(source, destination net.HardwareAddr) []byte {
	const length = 64
	frame := make([]byte, length)
	headers.Ethernet(frame).Set(headers.MACFrom([6]byte(destination)), headers.MACFrom([6]byte(source)), headers.EtherTypeIPv4)
	ip := headers.IPv4(frame[headers.EthernetLen:])
	ip.Set(headers.IPv4Fields{
		TotalLen: length - headers.EthernetLen, TTL: 64, Protocol: headers.ProtoUDP, Source: [4]byte{198, 18, 0, 1}, Destination: [4]byte{198, 18, 0, 2},
	})
	headers.UDP(frame[34:]).Set(1024, 9, length-34, 0)
	return frame
}
