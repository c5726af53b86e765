package vnet_test

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/offload"
	"github.com/shuntio/shunt/dataplane/vnet"
)

// allOffloads is a driver that negotiated everything but the ring formats.
const allOffloads = vnet.Features &^ (vnet.FeaturePacked | vnet.FeatureInOrder | vnet.FeatureEventIdx | vnet.FeatureGuestAnnounce)

// kind is how a packet is built.
type kind struct {
	ip4opts, ip6ext, tags int // bytes of options and extension headers; VLAN tags
	ip6                   bool
	protocol              byte
	tcpOptions            int
	fragment              bool
	payload               int
}

// build makes a packet, and tells where its transport header begins.
func build(k kind) (b []byte, start uint16) {
	etherType := uint16(0x0800)
	if k.ip6 {
		etherType = 0x86dd
	}
	b = append(b, 2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2)
	for range k.tags {
		b = append(b, 0x81, 0, 0, 5)
	}
	b = binary.BigEndian.AppendUint16(b, etherType)
	transport := map[byte]int{6: 20 + k.tcpOptions, 17: 8, 136: 8, 1: 8}[k.protocol]
	if k.ip6 {
		next := k.protocol
		if k.ip6ext > 0 {
			next = 60 // destination options
		}
		h := make([]byte, 40+k.ip6ext)
		h[0] = 0x60
		binary.BigEndian.PutUint16(h[4:], uint16(k.ip6ext+transport+k.payload))
		h[6], h[7], h[23], h[39] = next, 64, 1, 2
		if k.ip6ext > 0 {
			h[40], h[41] = k.protocol, byte(k.ip6ext/8-1)
		}
		b = append(b, h...)
	} else {
		h := make([]byte, 20+k.ip4opts)
		h[0] = 0x40 | byte(len(h)/4)
		binary.BigEndian.PutUint16(h[2:], uint16(len(h)+transport+k.payload))
		if k.fragment {
			h[6] = 0x20
		}
		h[8], h[9], h[12], h[16] = 64, k.protocol, 10, 10
		b = append(b, h...)
	}
	start = uint16(len(b))
	h := make([]byte, transport)
	if k.protocol == 6 {
		h[12], h[13] = byte(transport/4)<<4, 0x10
	}
	b = append(b, h...)
	return append(b, counting(k.payload)...), start
}

// asks is a virtio-net header.
func asks(flags, gso byte, size, start, offset uint16) []byte {
	h := header(flags, gso, start, offset)
	binary.LittleEndian.PutUint16(h[4:], size)
	return h
}

func TestReceiveChecksum(t *testing.T) {
	for _, c := range []struct {
		name          string
		features      uint64
		flags         byte
		kind          kind
		shift, offset uint16 // of the start, from the right one; of the field
		ok            bool
		why           dataplane.Reason
		needed        bool
	}{
		{"none", modern, 0, kind{protocol: 17, payload: 60}, 3, 3, true, 0, false}, // the fields mean nothing without the flag
		{"UDP", modern, 1, kind{protocol: 17, payload: 60}, 0, 6, true, 0, true},
		{"UDP-Lite", modern, 1, kind{protocol: 136, payload: 60}, 0, 6, true, 0, true},
		{"TCP", modern, 1, kind{protocol: 6, payload: 60}, 0, 16, true, 0, true},
		{"TCP, large", modern, 1, kind{protocol: 6, payload: 1400}, 0, 16, true, 0, true},
		{"TCP, IPv4 options", modern, 1, kind{ip4opts: 40, protocol: 6}, 0, 16, true, 0, true},
		{"TCP, IPv6", modern, 1, kind{ip6: true, protocol: 6, payload: 9}, 0, 16, true, 0, true},
		{"UDP, IPv6 extensions", modern, 1, kind{ip6: true, ip6ext: 64, protocol: 17}, 0, 6, true, 0, true},
		{"TCP, tagged", modern, 1, kind{tags: 2, protocol: 6}, 0, 16, true, 0, true},
		{"three tags", modern, 1, kind{tags: 3, protocol: 6}, 0, 16, false, vnet.DropBadChecksum, false},
		{"data valid", modern, 2, kind{protocol: 17, payload: 60}, 0, 6, true, 0, false}, // a guest's word on that is worth nothing
		{"both", modern, 3, kind{protocol: 17, payload: 60}, 0, 6, true, 0, true},
		{"fragment", modern, 1, kind{protocol: 17, fragment: true, payload: 60}, 0, 6, false, vnet.DropBadChecksum, false},
		{"ICMP", modern, 1, kind{protocol: 1, payload: 60}, 0, 2, false, vnet.DropBadChecksum, false},
		{"ICMP, its first bytes", modern, 1, kind{protocol: 1, payload: 60}, 0, 0, false, vnet.DropBadChecksum, false},
		{"no IP", modern, 1, kind{tags: 3, protocol: 6}, 0x10000 - 46, 0, false, vnet.DropBadChecksum, false},
		{"UDP, TCP's field", modern, 1, kind{protocol: 17, payload: 60}, 0, 16, false, vnet.DropBadChecksum, false},
		{"the port", modern, 1, kind{protocol: 6, payload: 60}, 0, 0, false, vnet.DropBadChecksum, false},
		{"source address", modern, 1, kind{protocol: 17, payload: 60}, 0x10000 - 14, 6, false, vnet.DropBadChecksum, false},
		{"source MAC", modern, 1, kind{protocol: 17, payload: 60}, 0x10000 - 34, 6, false, vnet.DropBadChecksum, false},
		{"a byte too far", modern, 1, kind{protocol: 17, payload: 60}, 1, 6, false, vnet.DropBadChecksum, false},
		{"beyond the frame", modern, 1, kind{protocol: 17, payload: 60}, 70, 6, false, vnet.DropFarChecksum, false},
		{"wrapping", modern, 1, kind{protocol: 17, payload: 60}, 0xffff - 34, 0xffff, false, vnet.DropFarChecksum, false},
		{"wrapping to 0", modern, 1, kind{protocol: 17, payload: 60}, 0xffff - 34, 1, false, vnet.DropFarChecksum, false},
		{"in the body", modern, 1, kind{ip6: true, ip6ext: 208, protocol: 17}, 0, 6, false, vnet.DropFarChecksum, false},
		{"not negotiated", modern &^ vnet.FeatureCsum, 1, kind{protocol: 17, payload: 60}, 0, 6, false, vnet.DropBadHeader, false},
		{"segmentation, not negotiated", modern, 1, kind{protocol: 6, payload: 60}, 0, 16, true, 0, true},
		{"legacy", vnet.FeatureCsum, 1, kind{protocol: 17, payload: 60}, 0, 6, true, 0, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBed(t, c.features)
			packet, start := build(c.kind)
			h := header(c.flags, 0, start+c.shift, c.offset)
			if c.features&vnet.FeatureVersion1 == 0 {
				h = h[:10]
			}
			for _, cuts := range [][]int{nil, {len(h)}, {7}} {
				before := b.drops()
				got, f, ok := b.sendFrame(b.pieces(append(slices.Clone(h), packet...), cuts...))
				sum := f.Checksum
				if ok != c.ok || sum.Needed != c.needed || c.needed && (sum.Start != start || sum.Offset != c.offset) || sum.Valid {
					t.Errorf("cut at %v: %v, %+v", cuts, ok, sum)
				}
				if ok && !same(got, packet) {
					t.Errorf("cut at %v: another frame", cuts)
				}
				if !c.ok {
					b.wantDrop(before, c.why)
				}
			}
			if b.counters.RxPackets.Load() != 3 {
				t.Errorf("%d frames counted, want 3 with the dropped ones", b.counters.RxPackets.Load())
			}
		})
	}
}

func TestReceiveSegmentation(t *testing.T) {
	tcp4, tcp6 := kind{protocol: 6, payload: 5000}, kind{ip6: true, protocol: 6, payload: 5000}
	bad := offload.DropBadGSO
	for _, c := range []struct {
		name     string
		features uint64
		flags    byte
		gso      byte
		size     uint16
		kind     kind
		shift    uint16
		want     frame.GSO
		why      dataplane.Reason
	}{
		{"TSO4", allOffloads, 1, 1, 1448, tcp4, 0, frame.GSO{Type: frame.GSOTCP4, Size: 1448}, 0},
		{"TSO4, ECN", allOffloads, 1, 0x81, 1448, tcp4, 0, frame.GSO{Type: frame.GSOTCP4, Size: 1448, ECN: true}, 0},
		{"TSO6", allOffloads, 1, 4, 1428, tcp6, 0, frame.GSO{Type: frame.GSOTCP6, Size: 1428}, 0},
		{"TSO6, ECN", allOffloads, 1, 0x84, 1428, tcp6, 0, frame.GSO{Type: frame.GSOTCP6, Size: 1428, ECN: true}, 0},
		{"longest", allOffloads, 1, 1, 1448, kind{protocol: 6, payload: frame.MaxLen - 54}, 0, frame.GSO{Type: frame.GSOTCP4, Size: 1448}, 0},
		{"options", allOffloads, 1, 1, 1400, kind{ip4opts: 40, tcpOptions: 40, protocol: 6, payload: 9000}, 0, frame.GSO{Type: frame.GSOTCP4, Size: 1400}, 0},
		{"tagged", allOffloads, 1, 1, 1400, kind{tags: 1, protocol: 6, payload: 9000}, 0, frame.GSO{Type: frame.GSOTCP4, Size: 1400}, 0},
		{"one segment", allOffloads, 1, 1, 1448, kind{protocol: 6, payload: 100}, 0, frame.GSO{Type: frame.GSOTCP4, Size: 1448}, 0},
		{"without the checksum", allOffloads, 0, 1, 1448, tcp4, 0, frame.GSO{}, vnet.DropBadHeader},
		{"TSO4 not negotiated", allOffloads &^ vnet.FeatureHostTSO4, 1, 1, 1448, tcp4, 0, frame.GSO{}, vnet.DropBadHeader},
		{"TSO6 not negotiated", allOffloads &^ vnet.FeatureHostTSO6, 1, 4, 1448, tcp6, 0, frame.GSO{}, vnet.DropBadHeader},
		{"ECN not negotiated", allOffloads &^ vnet.FeatureHostECN, 1, 0x81, 1448, tcp4, 0, frame.GSO{}, vnet.DropBadHeader},
		{"checksums not negotiated", allOffloads &^ vnet.FeatureCsum, 1, 1, 1448, tcp4, 0, frame.GSO{}, vnet.DropBadHeader},
		{"ECN alone", allOffloads, 1, 0x80, 1448, tcp4, 0, frame.GSO{}, vnet.DropBadHeader},
		{"UFO", allOffloads, 1, 3, 1448, kind{protocol: 17, payload: 5000}, 0, frame.GSO{}, vnet.DropBadHeader},
		{"USO", allOffloads, 1, 5, 1448, kind{protocol: 17, payload: 5000}, 0, frame.GSO{}, vnet.DropBadHeader},
		{"unknown", allOffloads, 1, 2, 1448, tcp4, 0, frame.GSO{}, vnet.DropBadHeader},
		{"no size", allOffloads, 1, 1, 0, tcp4, 0, frame.GSO{}, bad},
		{"tiny size", allOffloads, 1, 1, 7, tcp4, 0, frame.GSO{}, bad},
		{"too many segments", allOffloads, 1, 1, 8, tcp4, 0, frame.GSO{}, offload.DropTooManySegments},
		{"IPv6 as TSO4", allOffloads, 1, 1, 1448, tcp6, 0, frame.GSO{}, bad},
		{"IPv4 as TSO6", allOffloads, 1, 4, 1448, tcp4, 0, frame.GSO{}, bad},
		{"UDP", allOffloads, 1, 1, 1448, kind{protocol: 17, payload: 5000}, 0, frame.GSO{}, bad},
		{"fragment", allOffloads, 1, 1, 1448, kind{fragment: true, protocol: 6, payload: 5000}, 0, frame.GSO{}, bad},
		{"checksum elsewhere", allOffloads, 1, 1, 1448, tcp4, 2, frame.GSO{}, bad},
		{"checksum far", allOffloads, 1, 1, 1448, tcp4, 1000, frame.GSO{}, vnet.DropFarChecksum},
		{"headers too long", allOffloads, 1, 4, 1448, kind{ip6: true, ip6ext: 160, tcpOptions: 40, protocol: 6, payload: 5000}, 0, frame.GSO{}, bad},
		{"frame too long", allOffloads, 1, 1, 1448, kind{protocol: 6, payload: frame.MaxLen - 53}, 0, frame.GSO{}, vnet.DropTooLong},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBed(t, c.features)
			packet, start := build(c.kind)
			h := asks(c.flags, c.gso, c.size, start+c.shift, 16)
			binary.LittleEndian.PutUint16(h[2:], 0xffff) // hdr_len: a hint that nobody takes
			for _, cuts := range [][]int{nil, {len(h)}, {7}, {100, 2000}} {
				if len(cuts) == 2 && len(packet) < 2100 {
					continue
				}
				before := b.drops()
				got, f, ok := b.sendFrame(b.pieces(append(slices.Clone(h), packet...), cuts...))
				if ok != (c.why == 0) || f.GSO != c.want {
					t.Errorf("cut at %v: %v, %+v, drops %v", cuts, ok, f.GSO, b.drops())
				}
				if ok && (!same(got, packet) || f.Checksum != frame.Checksum{Needed: true, Start: start, Offset: 16}) {
					t.Errorf("cut at %v: another frame, or %+v", cuts, f.Checksum)
				}
				if c.why != 0 {
					b.wantDrop(before, c.why)
				}
			}
		})
	}
}

// What a frame still needs is left to the guest that takes it; who does not take it gets no such frame.
func TestTransmitOffloads(t *testing.T) {
	packet, start := build(kind{protocol: 6, payload: 3000, tcpOptions: 12})
	sum := frame.Checksum{Needed: true, Start: start, Offset: 16}
	for _, c := range []struct {
		name     string
		features uint64
		sum      frame.Checksum
		gso      frame.GSO
		want     []byte // the header, but num_buffers; nil: dropped
	}{
		{"complete", allOffloads, frame.Checksum{}, frame.GSO{}, asks(0, 0, 0, 0, 0)},
		{"checked", allOffloads, frame.Checksum{Valid: true}, frame.GSO{}, asks(2, 0, 0, 0, 0)},
		{"checked, nobody asked", modern, frame.Checksum{Valid: true}, frame.GSO{}, asks(0, 0, 0, 0, 0)},
		{"open", allOffloads, sum, frame.GSO{}, asks(1, 0, 0, start, 16)},
		{"open, not taken", modern, sum, frame.GSO{}, nil},
		{"TSO4", allOffloads, sum, frame.GSO{Type: frame.GSOTCP4, Size: 1400}, asks(1, 1, 1400, start, 16)},
		{"TSO4, ECN", allOffloads, sum, frame.GSO{Type: frame.GSOTCP4, Size: 1400, ECN: true}, asks(1, 0x81, 1400, start, 16)},
		{"TSO6", allOffloads, sum, frame.GSO{Type: frame.GSOTCP6, Size: 1400}, asks(1, 4, 1400, start, 16)},
		{"TSO4, not taken", allOffloads &^ vnet.FeatureGuestTSO4, sum, frame.GSO{Type: frame.GSOTCP4, Size: 1400}, nil},
		{"TSO6, not taken", allOffloads &^ vnet.FeatureGuestTSO6, sum, frame.GSO{Type: frame.GSOTCP6, Size: 1400}, nil},
		{"ECN, not taken", allOffloads &^ vnet.FeatureGuestECN, sum, frame.GSO{Type: frame.GSOTCP4, Size: 1400, ECN: true}, nil},
		{"TSO without checksums", allOffloads &^ vnet.FeatureGuestCsum, sum, frame.GSO{Type: frame.GSOTCP4, Size: 1400}, nil},
	} {
		for _, sizes := range [][]int{{4000}, {12, 4000}, {12, 100, 4000}, {1000}, {1526}} {
			t.Run(fmt.Sprint(c.name, sizes), func(t *testing.T) {
				b := newBed(t, c.features)
				var chains [][][]byte
				for i := range 4 {
					_, chain := b.offer(8192*i, sizes...)
					chains = append(chains, chain)
				}
				b.vector[0] = b.frameOf(packet)
				b.vector[0].Checksum, b.vector[0].GSO = c.sum, c.gso
				before := b.drops()
				b.port.Transmit(b.vector[:1], b.pool)
				b.pool.PutAll(b.vector[:1])
				b.checkPool()
				if c.want == nil {
					b.wantDrop(before, vnet.DropNotTaken)
					if _, _, ok := b.used(); ok {
						t.Error("a chain came back")
					}
					return
				}
				var written []uint32
				for {
					_, n, ok := b.used()
					if !ok {
						break
					}
					written = append(written, n)
				}
				all := join(chains[:len(written)], written)
				if len(all) != 12+len(packet) || !same(all[12:], packet) {
					t.Fatalf("the guest reads %d bytes", len(all))
				}
				want := slices.Clone(c.want)
				if c.gso.Type != 0 {
					binary.LittleEndian.PutUint16(want[2:], start+32)
				}
				binary.LittleEndian.PutUint16(want[10:], uint16(len(written)))
				if !same(all[:12], want) {
					t.Errorf("header %x, want %x", all[:12], want)
				}
			})
		}
	}
}

// Offloads says what forwarders may send; it follows what the driver negotiated.
func TestOffloadsFollowFeatures(t *testing.T) {
	const tso4, tso6, ecn, sum = dataplane.OffloadTSO4, dataplane.OffloadTSO6, dataplane.OffloadECN, dataplane.OffloadChecksum
	b := newBed(t, modern)
	for _, c := range []struct {
		features uint64
		want     uint32
	}{
		{0, 0}, {modern, 0}, {vnet.FeatureGuestCsum, sum}, {vnet.FeatureGuestTSO4, 0}, {vnet.FeatureGuestCsum | vnet.FeatureGuestECN, sum},
		{vnet.FeatureGuestCsum | vnet.FeatureGuestTSO4, sum | tso4}, {vnet.FeatureGuestCsum | vnet.FeatureGuestTSO6 | vnet.FeatureGuestECN, sum | tso6 | ecn},
		{vnet.Features, sum | tso4 | tso6 | ecn},
	} {
		if err := b.dev.SetFeatures(c.features); err != nil {
			t.Fatal(err)
		}
		if got := b.link.Offloads.Load(); got != c.want {
			t.Errorf("features %#x: offloads %#x, want %#x", c.features, got, c.want)
		}
	}
	b.dev.Disconnected()
	if got := b.link.Offloads.Load(); got != 0 {
		t.Errorf("nobody connected: offloads %#x", got)
	}
}

// A packet of 64 KiB finds room in large buffers, and in as many small ones as it takes.
func TestTransmitLongest(t *testing.T) {
	packet, start := build(kind{protocol: 6, payload: 65000})
	for _, c := range []struct {
		name     string
		features uint64
		sizes    []int
		chains   int
	}{
		{"mergeable", allOffloads, []int{1536}, 50},
		{"mergeable, small", allOffloads, []int{514}, 64},
		{"large", allOffloads &^ vnet.FeatureMrgRxbuf, []int{12, 65600}, 1},
		{"large, in pages", allOffloads &^ vnet.FeatureMrgRxbuf, append([]int{12}, slices.Repeat([]int{4096}, 16)...), 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBed(t, c.features)
			want := (12 + len(packet) + c.sizes[0] - 1) / c.sizes[0]
			if c.chains == 1 {
				want = 1
			}
			if c.chains < want {
				packet = packet[:12+20+500*c.chains]
				want = (12 + len(packet) + c.sizes[0] - 1) / c.sizes[0]
			}
			at := 0
			var chains [][][]byte
			for range min(c.chains, bedQueue) {
				_, chain := b.offer(at, c.sizes...)
				for _, n := range c.sizes {
					at += n
				}
				chains = append(chains, chain)
			}
			b.vector[0] = b.frameOf(packet)
			b.vector[0].Checksum = frame.Checksum{Needed: true, Start: start, Offset: 16}
			b.vector[0].GSO = frame.GSO{Type: frame.GSOTCP4, Size: 1448}
			b.port.Transmit(b.vector[:1], b.pool)
			b.pool.PutAll(b.vector[:1])
			var written []uint32
			for {
				_, n, ok := b.used()
				if !ok {
					break
				}
				written = append(written, n)
			}
			all := join(chains[:len(written)], written)
			if len(written) != want || len(all) < 12 || !same(all[12:], packet) {
				t.Fatalf("%d chains with %d bytes, want %d, drops %v", len(written), len(all), want, b.drops())
			}
			if int(b.counters.TxBytes.Load()) != len(packet) {
				t.Errorf("%d bytes counted, want %d", b.counters.TxBytes.Load(), len(packet))
			}
		})
	}
}

// Where a long frame finds no room, the next ones that are as long are not tried, but shorter ones are.
func TestTransmitShortAfterLong(t *testing.T) {
	b := newBed(t, modern)
	for i := range 3 {
		b.offer(i*2048, 1000)
	}
	b.transmit(counting(5000), counting(5000), counting(900), counting(4000), counting(1500), counting(60))
	if d := b.drops()[vnet.DropGuestRingFull]; d != 4 || b.counters.TxPackets.Load() != 2 {
		t.Errorf("%d delivered, drops %v", b.counters.TxPackets.Load(), b.drops())
	}
	if n := b.counters.TxBytes.Load(); n != 2400 {
		t.Errorf("%d bytes counted, want 2400", n)
	}
}
