package vnet_test

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/vnet"
	"github.com/shuntio/shunt/dataplane/wire"
)

// segments are consecutive TCP segments of one connection, complete.
func segments(n, payload int) (all [][]byte) {
	for i := range n {
		b, start := build(kind{protocol: 6, payload: payload})
		binary.BigEndian.PutUint32(b[start+4:], uint32(i*payload))
		ip := wire.IPv4(b[14:])
		b[14+6] = 0x40 // DF
		ip.SetChecksum()
		binary.BigEndian.PutUint16(b[start+16:], wire.SumPseudo(ip.Source(), ip.Destination(), 6, uint32(len(b)-int(start))))
		wire.Complete(b, nil, start, 16)
		all = append(all, b)
	}
	return all
}

// TCP for a guest that takes TSO arrives in one piece, and counts as the packets that it came in, delivered or dropped.
func TestCoalesce(t *testing.T) {
	all := segments(10, 1000)
	for _, c := range []struct {
		name      string
		features  uint64
		buffers   int // of 4096
		chains    int
		delivered int
	}{
		{"taken", allOffloads, 3, 3, 10},
		{"no room", allOffloads, 2, 0, 0},
		{"not taken", allOffloads &^ vnet.FeatureGuestTSO4, 10, 10, 10},
		{"not taken, no room", allOffloads &^ vnet.FeatureGuestTSO4, 4, 4, 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBed(t, c.features)
			b.anew(vnet.Options{Coalesce: true})
			var chains [][][]byte
			for i := range c.buffers {
				_, chain := b.offer(i*8192, 4096)
				chains = append(chains, chain)
			}
			for i, s := range all {
				b.vector[i] = b.frameOf(s)
				b.vector[i].Checksum.Valid = true
			}
			b.port.Transmit(b.vector[:len(all)], b.pool)
			b.pool.PutAll(b.vector[:len(all)])
			b.checkPool()
			var written []uint32
			for {
				_, n, ok := b.used()
				if !ok {
					break
				}
				written = append(written, n)
			}
			out, lost := b.counters.TxPackets.Load(), b.drops()[vnet.DropGuestRingFull]
			if len(written) != c.chains || int(out) != c.delivered || int(lost) != len(all)-c.delivered {
				t.Fatalf("%d chains, %d packets delivered, drops %v", len(written), out, b.drops())
			}
			packets, absorbed := b.dev.Coalesced()
			if c.chains != 3 {
				if c.name != "no room" && packets+absorbed != 0 {
					t.Errorf("%d packets and %d segments were merged", packets, absorbed)
				}
				return
			}
			if packets != 1 || absorbed != 9 {
				t.Errorf("%d segments were merged into %d packets, want 9 and 1", absorbed, packets)
			}
			got := join(chains, written)
			if h := asks(1, 1, 1000, 34, 16); !same(got[:10], append(slices.Clone(h[:2]), append([]byte{54, 0}, h[4:10]...)...)) {
				t.Errorf("header %x", got[:12])
			}
			for i, s := range all {
				if !same(got[12+54+i*1000:][:1000], s[54:]) {
					t.Errorf("payload %d is not there", i)
				}
			}
		})
	}
}

// A packet that came to be cut is one packet; one that was merged is as many as it was made of.
func TestCoalesceCountsWholePackets(t *testing.T) {
	b := newBed(t, allOffloads)
	b.anew(vnet.Options{Coalesce: true})
	whole, start := build(kind{protocol: 6, payload: 9000})
	b.vector[0] = b.frameOf(whole)
	b.vector[0].Checksum = frame.Checksum{Needed: true, Start: start, Offset: 16}
	b.vector[0].GSO = frame.GSO{Type: frame.GSOTCP4, Size: 1000}
	for i, s := range segments(4, 500) {
		b.vector[1+i] = b.frameOf(s)
	}
	b.vector[5] = b.frameOf(counting(60))
	b.port.Transmit(b.vector[:6], b.pool)
	b.pool.PutAll(b.vector[:6])
	b.checkPool()
	if d := b.drops()[vnet.DropGuestRingFull]; d != 6 {
		t.Errorf("drops %v, want 6", b.drops())
	}
	for _, r := range dataplane.Reasons() {
		if n := b.counters.Drops(r); n > 0 && r != vnet.DropGuestRingFull {
			t.Errorf("%d dropped as %v", n, r)
		}
	}
}

// What was merged when a ring turned out to be broken is counted with it, and not once more when the ring is started anew.
func TestCoalesceIntoBrokenRing(t *testing.T) {
	b := newBed(t, allOffloads)
	b.anew(vnet.Options{Coalesce: true})
	all := segments(10, 1000)
	transmit := func() {
		for i, s := range all {
			b.vector[i] = b.frameOf(s)
			b.vector[i].Checksum.Valid = true
		}
		b.port.Transmit(b.vector[:len(all)], b.pool)
		b.pool.PutAll(b.vector[:len(all)])
		b.checkPool()
	}
	binary.LittleEndian.PutUint16(b.guest.Layout(0).Avail[2:], 1<<15) // beyond any ring
	transmit()
	if n := b.drops()[vnet.DropGuestNotReady]; n != 10 || len(b.failed) != 1 {
		t.Fatalf("drops %v, failed %v", b.drops(), b.failed)
	}
	b.guest.Detach(b.dev)
	b.attach(b.features)
	transmit()
	if d := b.drops(); d[vnet.DropGuestNotReady] != 10 || d[vnet.DropGuestRingFull] != 10 || len(d) != 2 {
		t.Errorf("drops %v", d)
	}
}
