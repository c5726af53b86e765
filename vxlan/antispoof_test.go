package vxlan

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/dataplanetest"
	"github.com/shuntio/shunt/dataplane/wire"
)

func arpFrame(operation uint16, sender wire.MAC, ip string) []byte {
	b := make([]byte, 60)
	wire.Ethernet(b).Set(wire.Broadcast, mac1, wire.EtherTypeARP)
	wire.ARP(b[14:]).Set(operation, sender, netip.MustParseAddr(ip), 0, netip.MustParseAddr("10.0.0.9"))
	return b
}

func icmp6Frame(t *testing.T, source string, kind uint8, target string) []byte {
	body := append(make([]byte, 4), netip.MustParseAddr(target).AsSlice()...)
	return serialize(t, &layers.Ethernet{DstMAC: hw(wire.Broadcast), SrcMAC: hw(mac1), EthernetType: layers.EthernetTypeIPv6},
		&layers.IPv6{Version: 6, HopLimit: 255, NextHeader: layers.IPProtocolICMPv6, SrcIP: netip.MustParseAddr(source).AsSlice(), DstIP: netip.MustParseAddr("ff02::1").AsSlice()},
		gopacket.Payload(append([]byte{kind, 0, 0, 0}, body...)))
}

// tag puts VLAN tags into a frame.
func tag(b []byte, n int) []byte {
	for range n {
		b = append(append(bytes.Clone(b[:12]), 0x81, 0, 0, 5), b[12:]...)
	}
	return b
}

func TestAntiSpoof(t *testing.T) {
	const passes = dataplane.Reason(255)
	broadcast := wire.Broadcast
	udp := func(source string) []byte { return udpFrame(t, broadcast, mac1, "10.0.0.9", source, nil) }
	udp6 := func(source string) []byte { return udpFrame(t, broadcast, mac1, "fd00::9", source, nil) }
	dhcp := func(from, to layers.UDPPort) []byte {
		ip := &layers.IPv4{Version: 4, IHL: 5, TTL: 64, Protocol: 17, SrcIP: make([]byte, 4), DstIP: []byte{255, 255, 255, 255}}
		u := &layers.UDP{SrcPort: from, DstPort: to}
		u.SetNetworkLayerForChecksum(ip)
		return serialize(t, &layers.Ethernet{DstMAC: hw(broadcast), SrcMAC: hw(mac1), EthernetType: layers.EthernetTypeIPv4}, ip, u)
	}
	options := func(source string) []byte { // an IPv4 header with options takes the slow way
		ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: 17, SrcIP: netip.MustParseAddr(source).AsSlice(), DstIP: []byte{10, 0, 0, 9},
			Options: []layers.IPv4Option{{OptionType: 7, OptionLength: 7, OptionData: []byte{4, 0, 0, 0, 0}}}}
		return serialize(t, &layers.Ethernet{DstMAC: hw(broadcast), SrcMAC: hw(mac1), EthernetType: layers.EthernetTypeIPv4}, ip, gopacket.Payload(make([]byte, 8)))
	}
	extended := func(source string) []byte { // and so do extension headers
		ip := &layers.IPv6{Version: 6, NextHeader: 60, SrcIP: netip.MustParseAddr(source).AsSlice(), DstIP: netip.MustParseAddr("fd00::9").AsSlice()}
		return serialize(t, &layers.Ethernet{DstMAC: hw(broadcast), SrcMAC: hw(mac1), EthernetType: layers.EthernetTypeIPv6}, ip, gopacket.Payload{17, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2, 0, 8, 0, 0})
	}
	own6 := "fe80::5054:ff:fe00:1" // of mac1
	for _, c := range []struct {
		name  string
		frame []byte
		want  dataplane.Reason
	}{
		{"IPv4 own", udp("10.0.0.1"), passes},
		{"IPv4 other's", udp("10.0.0.2"), DropSpoofedIP},
		{"IPv4 own, tagged", tag(udp("10.0.0.1"), 2), passes},
		{"IPv4 other's, tagged", tag(udp("10.0.0.2"), 1), DropSpoofedIP},
		{"behind three tags", tag(udp("10.0.0.1"), 3), DropMalformed},
		{"IPv4 own, options", options("10.0.0.1"), passes},
		{"IPv4 other's, options", options("10.0.0.2"), DropSpoofedIP},
		{"IPv4 link-local", udp("169.254.1.1"), DropSpoofedIP},
		{"DHCP", dhcp(68, 67), passes},
		{"no address, not DHCP", dhcp(1000, 67), DropSpoofedIP},
		{"IPv4 cut off", udp("10.0.0.1")[:30], DropMalformed},
		{"IPv6 own", udp6("fd00::1"), passes},
		{"IPv6 other's", udp6("fd00::2"), DropSpoofedIP},
		{"IPv6 own, extensions", extended("fd00::1"), passes},
		{"IPv6 other's, extensions", extended("fd00::2"), DropSpoofedIP},
		{"IPv6 own link-local", udp6(own6), passes},
		{"IPv6 other's link-local", udp6("fe80::5054:ff:fe00:2"), DropSpoofedIP},
		{"duplicate address detection", icmp6Frame(t, "::", wire.ICMPv6NeighborSolicitation, "fd00::1"), passes},
		{"advertises own", icmp6Frame(t, "fd00::1", wire.ICMPv6NeighborAdvertisement, "fd00::1"), passes},
		{"advertises own from link-local", icmp6Frame(t, own6, wire.ICMPv6NeighborAdvertisement, "fd00::1"), passes},
		{"advertises other's", icmp6Frame(t, "fd00::1", wire.ICMPv6NeighborAdvertisement, "fd00::2"), DropSpoofedIP},
		{"solicits other's", icmp6Frame(t, "fd00::1", wire.ICMPv6NeighborSolicitation, "fd00::2"), passes},
		{"advertisement cut off", icmp6Frame(t, "fd00::1", wire.ICMPv6NeighborAdvertisement, "fd00::1")[:70], DropMalformed},
		{"ARP own", arpFrame(wire.ARPRequest, mac1, "10.0.0.1"), passes},
		{"ARP other's IP", arpFrame(wire.ARPReply, mac1, "10.0.0.2"), DropSpoofedIP},
		{"ARP other's MAC", arpFrame(wire.ARPReply, mac2, "10.0.0.1"), DropSpoofedMAC},
		{"ARP probe", arpFrame(wire.ARPRequest, mac1, "0.0.0.0"), passes},
		{"ARP other's IP, tagged", tag(arpFrame(wire.ARPReply, mac1, "10.0.0.2"), 1), DropSpoofedIP},
		{"ARP cut off", arpFrame(wire.ARPRequest, mac1, "10.0.0.1")[:40], DropMalformed},
		{"another protocol", ethernetFrame(broadcast, mac1, 1), passes},
		{"source MAC of another", ethernetFrame(broadcast, mac2, 1), DropSpoofedMAC},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t)
			l.network(Network{Name: "blue"})
			a := l.attach(Port{Name: "a", Network: "blue", MAC: mac1, AntiSpoof: true,
				IPs: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}})
			b := l.attach(Port{Name: "b", Network: "blue", MAC: mac2})
			l.send(a, c.frame)
			if c.want == passes {
				l.got(b, c.frame)
				return
			}
			l.got(b)
			l.dropped(a, c.want, 1)
		})
	}
}

// TestAntiSpoofHeadTooShort hides the address that is judged behind the end of the head.
func TestAntiSpoofHeadTooShort(t *testing.T) {
	l := newLab(t)
	l.network(Network{Name: "blue"})
	a := l.attach(Port{Name: "a", Network: "blue", MAC: mac1, AntiSpoof: true, IPs: []netip.Addr{netip.MustParseAddr("fd00::1")}})
	l.attach(Port{Name: "b", Network: "blue", MAC: mac2})
	options := append([]byte{wire.ProtoICMPv6, 30}, make([]byte, 31*8-2)...)
	f := serialize(t, &layers.Ethernet{DstMAC: hw(mac2), SrcMAC: hw(mac1), EthernetType: layers.EthernetTypeIPv6},
		&layers.IPv6{Version: 6, NextHeader: 60, SrcIP: netip.MustParseAddr("fd00::1").AsSlice(), DstIP: netip.MustParseAddr("fd00::2").AsSlice()},
		gopacket.Payload(append(options, make([]byte, 40)...)))
	a.Feed(dataplanetest.Packet{Bytes: f, Head: 256})
	l.settle()
	l.dropped(a, DropHeadTooShort, 1)
	l.balanced()
}

func TestAntiSpoofWithoutIPs(t *testing.T) {
	l := newLab(t)
	l.network(Network{Name: "blue"})
	a := l.attach(Port{Name: "a", Network: "blue", MAC: mac1, AntiSpoof: true})
	b := l.attach(Port{Name: "b", Network: "blue", MAC: mac2})
	any4 := udpFrame(t, mac2, mac1, "10.0.0.9", "203.0.113.7", nil)
	l.send(a, any4)
	l.got(b, any4)
	l.send(a, arpFrame(wire.ARPReply, mac2, "10.0.0.1"))
	l.dropped(a, DropSpoofedMAC, 1)
}
