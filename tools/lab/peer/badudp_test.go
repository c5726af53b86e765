package peer

import (
	"net"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/tools/lab/netlab"
)

// sendBadUDP sends one datagram whose UDP checksum is wrong out of a device.
func sendBadUDP(ns *netlab.Namespace, device, to string) error {
	return ns.Do(func() error {
		link, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: net.IPv4(192, 0, 2, 1), DstIP: net.ParseIP(to)}
		udp := &layers.UDP{SrcPort: 1000, DstPort: 1000}
		broadcast := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
		buf := gopacket.NewSerializeBuffer()
		_ = udp.SetNetworkLayerForChecksum(ip)
		err = gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
			&layers.Ethernet{SrcMAC: link.Attrs().HardwareAddr, DstMAC: broadcast, EthernetType: layers.EthernetTypeIPv4},
			ip, udp, gopacket.Payload("payload of a datagram"))
		if err != nil {
			return err
		}
		frame := buf.Bytes()
		frame[len(frame)-1] ^= 0xff
		socket, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(socket)
		return unix.Sendto(socket, frame, 0, &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index})
	})
}
