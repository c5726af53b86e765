package vxlan

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket/layers"
	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/dataplanetest"
	"github.com/shuntio/shunt/dataplane/wire"
	"pgregory.net/rapid"
)

// twoNetworks are two tenants with the same addresses and VTEPs, one with anti-spoofing and one that may send anything.
func twoNetworks(l *lab) (up *dataplanetest.Port, of map[string][]*dataplanetest.Port) {
	up = l.uplink("up0", host4)
	of = map[string][]*dataplanetest.Port{}
	for i, name := range []string{"blue", "red"} {
		l.network(Network{Name: name, VNI: uint32(100 + i), Uplink: "up0", MTU: 1450, Learning: true, LearnLimit: 4,
			Flood: []netip.Addr{peer4, other4}, Entries: []Entry{{MAC: mac3, VTEP: peer4}}})
		of[name] = []*dataplanetest.Port{
			l.attach(Port{Name: name + "1", Network: name, MAC: mac1, AntiSpoof: name == "blue", LearnLimit: 2}),
			l.attach(Port{Name: name + "2", Network: name, MAC: mac2, LearnLimit: 2}),
		}
	}
	return up, of
}

// anyFrame draws a frame whose last bytes are the mark: between known addresses, with tags, with a VXLAN packet of its own as payload, or noise.
func anyFrame(t *rapid.T, mark []byte) []byte {
	macs := []wire.MAC{mac1, mac2, mac3, mac4, macX, hostMAC, wire.Broadcast, 0x3333_0000_0001, 0}
	mac := rapid.SampledFrom(macs)
	to, from := mac.Draw(t, "to"), mac.Draw(t, "from")
	var b []byte
	switch rapid.IntRange(0, 5).Draw(t, "kind") {
	case 0:
		b = ethernetFrame(to, from)
	case 1:
		b = udpFrame(t, to, from, "10.0.0.2", "10.0.0.1", nil)
	case 2:
		b = tag(ethernetFrame(to, from), rapid.IntRange(1, 3).Draw(t, "tags"))
	case 3: // a forged VXLAN packet of either network
		inner := append(ethernetFrame(mac.Draw(t, "inner to"), mac.Draw(t, "inner from")), mark...)
		b = tunnelPacket(t, host4, peer4, rapid.Uint32Range(100, 101).Draw(t, "forged"), inner, nil)
		wire.Ethernet(b).Set(to, from, wire.EtherTypeIPv4)
	case 4:
		b = append(ethernetFrame(to, from), make([]byte, rapid.SampledFrom([]int{1300, 1450, 3000}).Draw(t, "long"))...)
	default:
		b = rapid.SliceOfN(rapid.Byte(), 0, 100).Draw(t, "noise")
	}
	return append(b, mark...)
}

// TestNetworksNeverMeet sends random frames from two tenants and from the wire: what carries one tenant's mark is never seen by
// the other's ports, nor under the other's VNI, whatever the frames say. And no frame is lost: at the end all are free, and
// each that came in was given to somebody or counted.
func TestNetworksNeverMeet(tb *testing.T) {
	rapid.Check(tb, func(t *rapid.T) {
		var cleanups cleanups
		l := newLabOf(scope{tb, &cleanups}, 64, Options{Seed: 7})
		defer cleanups.run()
		up, of := twoNetworks(l)
		marks := map[string][]byte{"blue": []byte("<blue>"), "red": []byte("<red>")}
		for range rapid.IntRange(1, 30).Draw(t, "frames") {
			name := rapid.SampledFrom([]string{"blue", "red"}).Draw(t, "network")
			f := anyFrame(t, marks[name])
			from := up
			if port := rapid.IntRange(0, 2).Draw(t, "port"); port < 2 {
				from = of[name][port]
			} else {
				vni := uint32(100)
				if name == "red" {
					vni = 101
				}
				if len(f) > 3500 {
					continue // more than one frame of the uplink
				}
				f = tunnelPacket(t, host4, rapid.SampledFrom([]netip.Addr{peer4, other4}).Draw(t, "vtep"), vni, f,
					func(_ *layers.VXLAN, u *layers.UDP) {})
			}
			head := rapid.SampledFrom([]int{0, 20, 70, 256}).Draw(t, "head")
			before := dropCount(from)
			from.Feed(dataplanetest.Packet{Bytes: f, Head: head, Piece: 99})
			l.settle()
			given := 0
			for _, other := range []string{"blue", "red"} {
				for _, p := range of[other] {
					for _, s := range p.Sent() {
						given++
						if other != name {
							t.Fatalf("a frame of %s reached %s: % x", name, other, s.Bytes)
						}
					}
				}
			}
			for _, s := range up.Sent() {
				given++
				vni := wire.VXLAN(s.Bytes[42:]).VNI()
				if mark := map[uint32]string{100: "blue", 101: "red"}[vni]; mark != name || !bytes.HasSuffix(s.Bytes, marks[name]) {
					t.Fatalf("a frame of %s left as VNI %d", name, vni)
				}
				if from == up {
					t.Fatal("a frame from the wire went back to it")
				}
			}
			// One frame in: given to n >= 1 places, or dropped once. Copies that failed are drops, too, so either way the sum is positive,
			// and a frame given to nobody is counted exactly once.
			if d := dropCount(from) - before; given == 0 && d != 1 {
				t.Fatalf("given to nobody and counted %d times: % x", d, f)
			}
			l.balanced()
		}
	})
}

// scope is a test whose cleanups run after each of rapid's tries.
type scope struct {
	testing.TB
	cleanups *cleanups
}

type cleanups []func()

func (s scope) Cleanup(f func()) { *s.cleanups = append(*s.cleanups, f) }

func (c *cleanups) run() {
	for _, f := range *c {
		f()
	}
}

func dropCount(p *dataplanetest.Port) (n uint64) {
	for _, r := range dataplane.Reasons() {
		n += p.Counters.Drops(r)
	}
	return n
}
