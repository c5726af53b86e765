package vxlan

import (
	"net/netip"
	"testing"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/wire"
)

// paths are the ways through the switch, each as a lab, a link that frames come from, and the frame.
func paths(tb testing.TB) map[string]func() (l *lab, from *dataplane.Link, packet []byte) {
	make4 := func(local, peer netip.Addr) (*lab, *dataplane.Link) {
		l := newLabOf(tb, 256, Options{})
		l.uplink("up0", local).Discard = true
		l.network(Network{Name: "blue", VNI: 100, Uplink: "up0", Learning: true, Flood: []netip.Addr{peer},
			Entries: []Entry{{MAC: mac3, VTEP: peer}}})
		ips := []netip.Addr{netip.MustParseAddr("10.0.0.1")}
		l.attach(Port{Name: "a", Network: "blue", MAC: mac1, AntiSpoof: true, IPs: ips}).Discard = true
		l.attach(Port{Name: "b", Network: "blue", MAC: mac2, AntiSpoof: true}).Discard = true
		return l, l.links["a"]
	}
	small := make([]byte, 18) // a frame of 60 bytes
	packet := func(to, from wire.MAC) []byte { return udpFrame(tb, to, from, "10.0.0.2", "10.0.0.1", small) }
	return map[string]func() (*lab, *dataplane.Link, []byte){
		"guest-guest": func() (*lab, *dataplane.Link, []byte) {
			l, a := make4(host4, peer4)
			return l, a, packet(mac2, mac1)
		},
		"guest-wire4": func() (*lab, *dataplane.Link, []byte) {
			l, a := make4(host4, peer4)
			return l, a, packet(mac3, mac1)
		},
		"guest-wire6": func() (*lab, *dataplane.Link, []byte) {
			l, a := make4(host6, peer6)
			return l, a, packet(mac3, mac1)
		},
		"guest-wire6-1400": func() (*lab, *dataplane.Link, []byte) {
			l, a := make4(host6, peer6)
			return l, a, udpFrame(tb, mac3, mac1, "10.0.0.2", "10.0.0.1", make([]byte, 1372))
		},
		"wire4-guest": func() (*lab, *dataplane.Link, []byte) {
			l, _ := make4(host4, peer4)
			b := tunnelPacket(tb, host4, peer4, 100, packet(mac1, mac4), nil) // learned
			b[40], b[41] = 0, 0
			return l, l.links["up0"], b
		},
		"wire6-guest": func() (*lab, *dataplane.Link, []byte) {
			l, _ := make4(host6, peer6)
			return l, l.links["up0"], tunnelPacket(tb, host6, peer6, 100, packet(mac1, mac4), nil)
		},
		"flood": func() (*lab, *dataplane.Link, []byte) {
			l, a := make4(host4, peer4)
			return l, a, packet(wire.Broadcast, mac1)
		},
	}
}

// drive forwards vectors of n copies of a packet as the worker's Poll does, but for filling the frames: of each, only what
// forwarding changes is put back.
type driver struct {
	l      *lab
	from   *dataplane.Link
	packet []byte
	vector [dataplane.Quantum]*frame.Frame
}

func newDriver(l *lab, from *dataplane.Link, packet []byte) *driver {
	l.worker.Round()
	return &driver{l: l, from: from, packet: packet}
}

func (d *driver) forward() {
	pool := d.l.worker.Pool()
	for i := range d.vector {
		f := pool.Get()
		copy(f.Append(len(d.packet)), d.packet)
		d.vector[i] = f
	}
	d.from.Forwarder.Forward(d.l.worker, d.from, d.vector[:])
	d.l.worker.Round() // sends what is left over
}

// fillOnly is what forward costs beside the switch.
func (d *driver) fillOnly() {
	pool := d.l.worker.Pool()
	for i := range d.vector {
		f := pool.Get()
		copy(f.Append(len(d.packet)), d.packet)
		d.vector[i] = f
	}
	pool.PutAll(d.vector[:])
	d.l.worker.Round()
}

// BenchmarkForward gives the time per frame, the fake port's included; fill is that of bringing the frame in, which is no part of the
// switch.
func BenchmarkForward(b *testing.B) {
	for name, path := range paths(b) {
		b.Run(name, func(b *testing.B) {
			d := newDriver(path())
			b.ReportAllocs()
			for n := 0; n < b.N; n += dataplane.Quantum {
				d.forward()
			}
			if free := d.l.worker.Pool().Len(); free != d.l.frames {
				b.Fatalf("%d frames are free", free)
			}
		})
	}
	b.Run("fill", func(b *testing.B) {
		d := newDriver(paths(b)["guest-guest"]())
		for n := 0; n < b.N; n += dataplane.Quantum {
			d.fillOnly()
		}
	})
}

// TestForwardAllocatesNothing covers every way through the switch.
func TestForwardAllocatesNothing(t *testing.T) {
	for name, path := range paths(t) {
		d := newDriver(path())
		d.forward()
		for i, f := range d.vector {
			if f != nil {
				t.Errorf("%s: frame %d is still in the vector", name, i)
			}
		}
		if n := testing.AllocsPerRun(20, d.forward); n != 0 {
			t.Errorf("%s: %v allocations for %d frames", name, n, dataplane.Quantum)
		}
		if len(drops(d.l.ports[d.from.Name])) > 0 {
			t.Errorf("%s: dropped %v", name, drops(d.l.ports[d.from.Name]))
		}
	}
}

// BenchmarkLookup looks random addresses up in tables of different sizes: in the cache, and far beyond it.
func BenchmarkLookup(b *testing.B) {
	for _, n := range []int{16, 4096, 1 << 20} {
		b.Run(map[int]string{16: "16", 4096: "4096", 1 << 20: "1048576"}[n], func(b *testing.B) {
			t := newTable(n, 12345)
			for i := range n {
				t.put(wire.MAC(0x5254_0000_0000+i), atPort(i), 0)
			}
			x, sum := uint32(1), place(0)
			for b.Loop() {
				x = x*1664525 + 1013904223
				sum += t.place(wire.MAC(0x5254_0000_0000 + int(x>>8)%n))
			}
			_ = sum
		})
	}
}
