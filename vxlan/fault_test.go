package vxlan

import (
	"net/netip"
	"runtime/debug"
	"testing"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/dataplanetest"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/wire"
	"golang.org/x/sys/unix"
)

// truncated is a port whose guest takes its memory away after its frames' bodies were borrowed.
type truncated struct {
	dataplanetest.Port
	body [][]byte
	left int // frames to receive
	make func(f *frame.Frame)
}

func (p *truncated) Receive(into []*frame.Frame, pool *frame.Pool) (n int) {
	for n < len(into) && p.left > 0 {
		f := pool.Get()
		if f == nil {
			break
		}
		p.make(f)
		f.Borrow(p.body, len(p.body[0]))
		into[n] = f
		n++
		p.left--
	}
	p.Counters.RxPackets.Add(uint64(n))
	return n
}

func (p *truncated) Fault(uintptr) bool { return true }

// TestFaultLosesNoFrame has a body disappear while the switch completes a checksum, sums the frame for an outer checksum, or pushes out a
// full vector of clones: every frame comes back to the pool, and is counted or was delivered.
func TestFaultLosesNoFrame(t *testing.T) {
	gone, err := unix.Mmap(-1, 0, 4096, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(gone) }()
	head := func(to wire.MAC) func(f *frame.Frame) {
		return func(f *frame.Frame) { copy(f.Append(60), ethernetFrame(to, mac1)) }
	}
	for name, c := range map[string]struct {
		local, peer netip.Addr
		make        func(f *frame.Frame)
	}{
		"checksum left open": {host4, peer4, func(f *frame.Frame) {
			head(mac2)(f)
			f.Checksum = frame.Checksum{Start: 20, Offset: 6, Needed: true}
		}},
		"outer checksum":      {host6, peer6, head(mac3)},
		"to a port":           {host4, peer4, head(mac2)},
		"clones, full vector": {host4, peer4, head(wire.Broadcast)},
	} {
		t.Run(name, func(t *testing.T) {
			debug.SetPanicOnFault(true) // of this goroutine, which ends with the subtest
			l := newLab(t)
			l.uplink("up0", c.local)
			l.network(Network{Name: "blue", VNI: 100, Uplink: "up0", Flood: []netip.Addr{c.peer}, Entries: []Entry{{MAC: mac3, VTEP: c.peer}}})
			l.attach(Port{Name: "b", Network: "blue", MAC: mac2})
			p := &truncated{Port: dataplanetest.Port{Counters: new(dataplane.Counters)}, body: [][]byte{gone[:500]}, left: dataplane.Quantum, make: c.make}
			link := &dataplane.Link{Name: "a", Port: p, Counters: p.Counters}
			l.must(l.sw.AttachPort(Port{Name: "a", Network: "blue", MAC: mac1, AntiSpoof: true}, []*dataplane.Link{link}))
			l.worker.Do(func() { l.worker.Add(link) })
			l.worker.Round()
			if l.worker.Stats().Faults.Load() == 0 {
				t.Fatal("nothing faulted")
			}
			if p.Counters.Drops(dataplane.DropFault) == 0 {
				t.Error("no frame was counted")
			}
			l.balanced()
		})
	}
}
