package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/shuntio/shunt/dataplane/wire"
)

// decodeJob takes a frame apart, down to VNI and inner addresses and ports.
var decodeJob = job{"take apart a VXLAN frame", []contender{
	{"dataplane/wire, outer checksum verified", true, open(decoder{wireFacts})},
	{"gopacket v1.1.19 DecodingLayerParser", false, openParser},
	{"gopacket v1.1.19 NewPacket, lazy, no copy", false, open(decoder{packetFacts})},
}}

// encapsulateJob puts Ethernet, IPv4 with its checksum, UDP and VXLAN in front of a
// frame that lies in a buffer with room.
var encapsulateJob = job{"put the outer headers on a frame", []contender{
	{"dataplane/wire, in place", true, openWireWriter},
	{"gopacket v1.1.19 SerializeTo", false, openSerializer},
}}

// decoder is a worker around a function.
type decoder struct {
	decode func(frame []byte) (facts, error)
}

func open(d decoder) func() (worker, error) {
	return func() (worker, error) { return &decodeWorker{d.decode, newFrame()}, nil }
}

type decodeWorker struct {
	decode func([]byte) (facts, error)
	frame  []byte
}

func (w *decodeWorker) Do(n int) (int, error) {
	for range n {
		found, err := w.decode(w.frame)
		if err != nil {
			return 0, err
		}
		if found != wantFacts {
			return 0, fmt.Errorf("found %+v, want %+v", found, wantFacts)
		}
	}
	return n, nil
}

func (w *decodeWorker) Close() error { return nil }

var errNoVXLAN = errors.New("the frame is not VXLAN with UDP in it")

func wireFacts(frame []byte) (facts, error) {
	var f facts
	eth, ok := wire.ParseEthernet(frame)
	if !ok || eth.EtherType() != wire.EtherTypeIPv4 {
		return f, errNoVXLAN
	}
	ip, ok := wire.ParseIPv4(eth.Payload())
	if !ok || !ip.ChecksumValid() || ip.Protocol() != wire.ProtoUDP {
		return f, errNoVXLAN
	}
	udp, ok := wire.ParseUDP(ip.Payload())
	if !ok || udp.DestinationPort() != wire.VXLANPort {
		return f, errNoVXLAN
	}
	vxlan, ok := wire.ParseVXLAN(udp.Payload())
	if !ok || !vxlan.HasVNI() {
		return f, errNoVXLAN
	}
	inner, ok := wire.ParseEthernet(vxlan.Payload())
	if !ok || inner.EtherType() != wire.EtherTypeIPv4 {
		return f, errNoVXLAN
	}
	if ip, ok = wire.ParseIPv4(inner.Payload()); !ok || ip.Protocol() != wire.ProtoUDP {
		return f, errNoVXLAN
	}
	if udp, ok = wire.ParseUDP(ip.Payload()); !ok {
		return f, errNoVXLAN
	}
	f.vni = vxlan.VNI()
	f.source, f.target = [4]byte(ip.Source()), [4]byte(ip.Destination())
	f.from, f.to = udp.SourcePort(), udp.DestinationPort()
	return f, nil
}

// packetFacts is gopacket's usual way: a packet of layers, each allocated.
func packetFacts(frame []byte) (facts, error) {
	var f facts
	all := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.DecodeOptions{Lazy: true, NoCopy: true}).Layers()
	for _, layer := range all {
		switch l := layer.(type) {
		case *layers.VXLAN:
			f.vni = l.VNI
		case *layers.IPv4: // the inner one comes last
			f.source, f.target = [4]byte(l.SrcIP), [4]byte(l.DstIP)
		case *layers.UDP:
			f.from, f.to = uint16(l.SrcPort), uint16(l.DstPort)
		}
	}
	return f, nil
}

// openParser is gopacket's fast way: layers made once. Inner layers overwrite outer
// ones of their kind.
func openParser() (worker, error) {
	var (
		eth     layers.Ethernet
		ip      layers.IPv4
		udp     layers.UDP
		vxlan   layers.VXLAN
		payload gopacket.Payload
		decoded []gopacket.LayerType
	)
	parser := gopacket.NewDecodingLayerParser(layers.LayerTypeEthernet, &eth, &ip, &udp, &vxlan, &payload)
	return &decodeWorker{func(frame []byte) (facts, error) {
		if err := parser.DecodeLayers(frame, &decoded); err != nil {
			return facts{}, err
		}
		return facts{vxlan.VNI, [4]byte(ip.SrcIP), [4]byte(ip.DstIP), uint16(udp.SrcPort), uint16(udp.DstPort)}, nil
	}, newFrame()}, nil
}

// wireWriter writes into the room in front of a frame.
type wireWriter struct {
	buffer []byte
	fields wire.IPv4Fields
	to     wire.MAC
	from   wire.MAC
}

func openWireWriter() (worker, error) {
	w := &wireWriter{
		buffer: make([]byte, frameLen),
		fields: wire.IPv4Fields{
			TotalLen: frameLen - 14, DontFragment: true, TTL: 64, Protocol: wire.ProtoUDP,
			Source: outerSource, Destination: outerTarget,
		},
		to: wire.MACFrom(macs[1]), from: wire.MACFrom(macs[0]),
	}
	copy(w.buffer[outerLen:], newFrame()[outerLen:])
	return w, nil
}

func (w *wireWriter) Do(n int) (int, error) {
	for range n {
		wire.Ethernet(w.buffer).Set(w.to, w.from, wire.EtherTypeIPv4)
		wire.IPv4(w.buffer[14:]).Set(w.fields)
		wire.UDP(w.buffer[34:]).Set(outerPort, wire.VXLANPort, frameLen-34, 0)
		wire.VXLAN(w.buffer[42:]).Set(vni)
	}
	return n, sameFrame(w.buffer)
}

func (w *wireWriter) Close() error { return nil }

// serializer prepends layer by layer, each with the options that give the same bytes:
// RFC 7348 has no UDP checksum over IPv4.
type serializer struct {
	buffer gopacket.SerializeBuffer
	inner  []byte
	eth    layers.Ethernet
	ip     layers.IPv4
	udp    layers.UDP
	vxlan  layers.VXLAN
}

func openSerializer() (worker, error) {
	return &serializer{
		buffer: gopacket.NewSerializeBufferExpectedSize(outerLen, innerLen),
		inner:  newFrame()[outerLen:],
		eth: layers.Ethernet{
			DstMAC: net.HardwareAddr(macs[1][:]), SrcMAC: net.HardwareAddr(macs[0][:]), EthernetType: layers.EthernetTypeIPv4,
		},
		ip: layers.IPv4{
			Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, Flags: layers.IPv4DontFragment,
			SrcIP: net.IP(outerSource[:]), DstIP: net.IP(outerTarget[:]),
		},
		udp:   layers.UDP{SrcPort: outerPort, DstPort: vxlanPort},
		vxlan: layers.VXLAN{ValidIDFlag: true, VNI: vni},
	}, nil
}

func (s *serializer) Do(n int) (int, error) {
	for range n {
		if err := s.serialize(); err != nil {
			return 0, err
		}
	}
	return n, sameFrame(s.buffer.Bytes())
}

func (s *serializer) serialize() error {
	if err := s.buffer.Clear(); err != nil {
		return err
	}
	// The frame cannot stay where it lies: the buffer is gopacket's.
	room, err := s.buffer.AppendBytes(innerLen)
	if err != nil {
		return err
	}
	copy(room, s.inner)
	lengths := gopacket.SerializeOptions{FixLengths: true}
	if err := s.vxlan.SerializeTo(s.buffer, lengths); err != nil {
		return err
	}
	if err := s.udp.SerializeTo(s.buffer, lengths); err != nil {
		return err
	}
	if err := s.ip.SerializeTo(s.buffer, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}); err != nil {
		return err
	}
	return s.eth.SerializeTo(s.buffer, lengths)
}

func (s *serializer) Close() error { return nil }

var wantFrame = newFrame()

func sameFrame(b []byte) error {
	if !bytes.Equal(b, wantFrame) {
		return fmt.Errorf("made %x, want %x", b, wantFrame)
	}
	return nil
}
