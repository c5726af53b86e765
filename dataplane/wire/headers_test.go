package wire

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"pgregory.net/rapid"
)

// RFC 5227 and RFC 826 give no bytes; this request was written by hand from RFC 826's field list.
var arpRequest = []byte{
	0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0x00, 0x00, 0x00, 0x01, 0x08, 0x06,
	0x00, 0x01, 0x08, 0x00, 0x06, 0x04, 0x00, 0x01,
	0x52, 0x54, 0x00, 0x00, 0x00, 0x01, 10, 0, 0, 1,
	0, 0, 0, 0, 0, 0, 10, 0, 0, 2,
}

func TestARP(t *testing.T) {
	e, ok := ParseEthernet(arpRequest)
	if !ok || e.Destination() != Broadcast || e.Source() != 0x5254_0000_0001 || e.EtherType() != EtherTypeARP {
		t.Fatalf("Ethernet: %v %v %#04x", e.Destination(), e.Source(), e.EtherType())
	}
	a, ok := ParseARP(e.Payload())
	if !ok || a.Operation() != ARPRequest || a.SenderMAC() != e.Source() || a.SenderIP() != [4]byte{10, 0, 0, 1} ||
		a.TargetMAC() != 0 || a.TargetIP() != [4]byte{10, 0, 0, 2} {
		t.Fatalf("ARP: % x", []byte(a))
	}
	made := make([]byte, len(arpRequest))
	Ethernet(made).Set(Broadcast, 0x5254_0000_0001, EtherTypeARP)
	ARP(made[14:]).Set(ARPRequest, 0x5254_0000_0001, netip.MustParseAddr("10.0.0.1"), 0, netip.MustParseAddr("10.0.0.2"))
	if !bytes.Equal(made, arpRequest) {
		t.Errorf("made % x", made)
	}
	if _, ok := ParseARP(arpRequest[14:41]); ok {
		t.Error("a short ARP packet parsed")
	}
}

func TestMAC(t *testing.T) {
	m, err := ParseMAC("52:54:00:ab:CD:01")
	if err != nil || m.String() != "52:54:00:ab:cd:01" || MACFrom(m.Bytes()) != m || m.IsMulticast() {
		t.Fatalf("%v %v", m, err)
	}
	for _, bad := range []string{"", "52:54:00:ab:cd", "00:00:00:00:00:00:00:01", "x"} {
		if _, err := ParseMAC(bad); err == nil {
			t.Errorf("%q parsed", bad)
		}
	}
	text, err := json.Marshal(struct{ MAC MAC }{m})
	if err != nil || string(text) != `{"MAC":"52:54:00:ab:cd:01"}` {
		t.Errorf("%s %v", text, err)
	}
	if !Broadcast.IsMulticast() || !MAC(0x3333_0000_0001).IsMulticast() {
		t.Error("groups are not multicast")
	}
}

func TestVXLAN(t *testing.T) {
	b := make([]byte, 8)
	VXLAN(b).Set(0x123456)
	if !bytes.Equal(b, []byte{8, 0, 0, 0, 0x12, 0x34, 0x56, 0}) {
		t.Fatalf("% x", b)
	}
	// RFC 7348: reserved fields are ignored on receipt.
	h, ok := ParseVXLAN([]byte{0xff, 0xff, 0xff, 0xff, 0, 0, 1, 0xff})
	if !ok || !h.HasVNI() || h.VNI() != 1 {
		t.Error("reserved bits changed the meaning")
	}
	if h, _ := ParseVXLAN([]byte{0xf7, 0, 0, 0, 0, 0, 1, 0}); h.HasVNI() {
		t.Error("I taken as set")
	}
}

// RFC 1071 has no IPv4 header; this one is the usual textbook example, whose checksum is b861.
func TestIPv4Example(t *testing.T) {
	b := []byte{0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7}
	h, ok := ParseIPv4(b)
	if !ok || !h.ChecksumValid() || !h.DontFragment() || h.IsFragment() || h.TotalLen() != 115 || h.Protocol() != ProtoUDP {
		t.Fatal("the example does not parse")
	}
	made := IPv4(make([]byte, 20))
	made.Set(IPv4Fields{TotalLen: 115, DontFragment: true, TTL: 64, Protocol: ProtoUDP, Source: [4]byte{192, 168, 0, 1}, Destination: [4]byte{192, 168, 0, 199}})
	if !bytes.Equal(made, b) {
		t.Errorf("made % x", []byte(made))
	}
	b[3]++
	if h.ChecksumValid() {
		t.Error("a changed header is still valid")
	}
}

func TestParseRefuses(t *testing.T) {
	v4 := func(change func(b []byte)) []byte {
		b := make([]byte, 24)
		IPv4(b).Set(IPv4Fields{TotalLen: 24})
		change(b)
		return b
	}
	for name, b := range map[string][]byte{
		"version 6":           v4(func(b []byte) { b[0] = 0x65 }),
		"header of 16 bytes":  v4(func(b []byte) { b[0] = 0x44 }),
		"header past the end": v4(func(b []byte) { b[0] = 0x47; b[3] = 28 }),
		"total below header":  v4(func(b []byte) { b[3] = 19 }),
		"19 bytes":            v4(func([]byte) {})[:19],
	} {
		if _, ok := ParseIPv4(b); ok {
			t.Errorf("%s parsed", name)
		}
	}
	if _, ok := ParseUDP([]byte{0, 1, 0, 2, 0, 7, 0, 0}); ok {
		t.Error("UDP of length 7 parsed")
	}
	if _, ok := ParseTCP(append(make([]byte, 12), 0x60, 0, 0, 0, 0, 0, 0, 0)); ok {
		t.Error("TCP with options past the end parsed")
	}
}

// TestSetAgainstGopacket writes headers and lets gopacket read them.
func TestSetAgainstGopacket(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		payload := rapid.SliceOfN(rapid.Byte(), 0, 100).Draw(t, "payload")
		var source, destination [16]byte
		copy(source[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "source"))
		copy(destination[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "destination"))
		sport, dport := rapid.Uint16().Draw(t, "sport"), uint16(5000)
		n := UDPLen + len(payload)

		b := make([]byte, EthernetLen+IPv6Len+n)
		Ethernet(b).Set(0x0200_0000_0001, 0x0200_0000_0002, EtherTypeIPv6)
		class, label := rapid.Byte().Draw(t, "class"), rapid.Uint32Range(0, 1<<20-1).Draw(t, "label")
		IPv6(b[14:]).Set(IPv6Fields{TrafficClass: class, FlowLabel: label, PayloadLen: uint16(n), NextHeader: ProtoUDP, HopLimit: 64, Source: source, Destination: destination})
		copy(b[62:], payload)
		UDP(b[54:]).Set(sport, dport, uint16(n), SumPseudo(source[:], destination[:], ProtoUDP, uint32(n)))
		if !Complete(b, nil, 54, 6) {
			t.Fatal("not completed")
		}
		p := gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.Default)
		// An error may be in what it makes of the payload, if a port is a known one's.
		if p.ErrorLayer() != nil && p.Layer(layers.LayerTypeUDP) == nil {
			t.Fatal(p.ErrorLayer().Error())
		}
		ip := p.Layer(layers.LayerTypeIPv6).(*layers.IPv6)
		if ip.TrafficClass != class || ip.FlowLabel != label || !bytes.Equal(ip.SrcIP, source[:]) || !bytes.Equal(ip.DstIP, destination[:]) {
			t.Fatalf("%+v", ip)
		}
		u := p.Layer(layers.LayerTypeUDP).(*layers.UDP)
		if uint16(u.SrcPort) != sport || !bytes.Equal(u.Payload, payload) {
			t.Fatalf("%+v", u)
		}
		u.SetNetworkLayerForChecksum(ip)
		if err, r := u.VerifyChecksum(); err != nil || !r.Valid {
			t.Fatalf("checksum: %v %+v", err, r)
		}
	})
}

func TestSetClass(t *testing.T) {
	for tos := range 256 {
		v4, v6 := IPv4(make([]byte, 24)), IPv6(make([]byte, 40))
		v4.Set(IPv4Fields{TOS: 0xa5, TotalLen: 77, ID: 0xfffe, TTL: 3, Protocol: 6})
		v4.SetTOS(uint8(tos))
		if v4.TOS() != uint8(tos) || !v4.ChecksumValid() {
			t.Errorf("IPv4: %#02x, checksum right: %v", v4.TOS(), v4.ChecksumValid())
		}
		v6.Set(IPv6Fields{TrafficClass: 0xa5, FlowLabel: 0xfedcb, HopLimit: 3})
		v6.SetTrafficClass(uint8(tos))
		if v6.TrafficClass() != uint8(tos) || v6.FlowLabel() != 0xfedcb || v6[0]>>4 != 6 {
			t.Errorf("IPv6: % x", v6[:4])
		}
	}
}
