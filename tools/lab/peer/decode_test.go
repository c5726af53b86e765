package peer

import (
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"github.com/shuntio/shunt/tools/need"
)

// What a measurement carries is nobody's protocol, whichever port it got: tshark knows many that it would find broken.
func TestPayloadIsNotJudged(t *testing.T) {
	need.Program(t, "tshark")
	path := filepath.Join(t.TempDir(), "ports.pcap")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	out := pcapgo.NewWriter(file)
	if err := out.WriteFileHeader(1<<16, layers.LinkTypeEthernet); err != nil {
		t.Fatal(err)
	}
	ip := &layers.IPv4{Version: 4, TTL: 64, SrcIP: net.IP{10, 0, 0, 1}, DstIP: net.IP{10, 0, 0, 2}}
	write := func(protocol layers.IPProtocol, what ...gopacket.SerializableLayer) {
		t.Helper()
		ip.Protocol = protocol
		eth := &layers.Ethernet{SrcMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, DstMAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}, EthernetType: layers.EthernetTypeIPv4}
		packet := gopacket.NewSerializeBuffer()
		err := gopacket.SerializeLayers(packet, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
			slices.Concat([]gopacket.SerializableLayer{eth, ip}, what)...)
		if err != nil {
			t.Fatal(err)
		}
		n := len(packet.Bytes())
		if err := out.WritePacket(gopacket.CaptureInfo{CaptureLength: n, Length: n}, packet.Bytes()); err != nil {
			t.Fatal(err)
		}
	}
	payload := make(gopacket.Payload, 64)
	random := rand.NewChaCha8([32]byte{})
	for port := 32768; port <= 60999; port++ { // those that Linux gives
		_, _ = random.Read(payload)
		udp := &layers.UDP{SrcPort: layers.UDPPort(port), DstPort: 5201}
		tcp := &layers.TCP{SrcPort: layers.TCPPort(port), DstPort: 5201, ACK: true, Window: 512}
		_ = udp.SetNetworkLayerForChecksum(ip)
		_ = tcp.SetNetworkLayerForChecksum(ip)
		write(layers.IPProtocolUDP, udp, payload)
		write(layers.IPProtocolTCP, tcp, payload)
	}
	write(layers.IPProtocolTCP, payload[:10]) // half a header is wrong
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	bad, err := BadPackets(t.Context(), path)
	if err != nil || len(bad) != 1 || !strings.HasPrefix(bad[0], "56465 ") {
		t.Errorf("%d packets are taken for wrong, want the last, %v: %q", len(bad), err, bad[:min(len(bad), 5)])
	}
}
