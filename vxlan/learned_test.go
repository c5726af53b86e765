package vxlan

import (
	"net/netip"
	"testing"
	"time"

	"github.com/shuntio/shunt/dataplane/wire"
	"pgregory.net/rapid"
)

// TestTableAgainstMap does random things to a table and to a map. Few addresses and a full table make probing chains collide.
func TestTableAgainstMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		table := newTable(16, rapid.Uint64().Draw(t, "seed"))
		model := map[wire.MAC]place{}
		mac := rapid.Custom(func(t *rapid.T) wire.MAC { return wire.MAC(rapid.IntRange(0, 30).Draw(t, "mac")) })
		for range rapid.IntRange(1, 80).Draw(t, "steps") {
			m := mac.Draw(t, "mac")
			if _, known := model[m]; rapid.Bool().Draw(t, "remove") {
				table.remove(m)
				delete(model, m)
			} else if known || len(model) < 16 {
				at := place(rapid.IntRange(0, 99).Draw(t, "place"))
				table.put(m, at, 0)
				model[m] = at
			}
			if table.used != len(model) {
				t.Fatalf("%d used, want %d", table.used, len(model))
			}
			for m := range wire.MAC(31) {
				want, ok := model[m]
				if !ok {
					want = nowhere
				}
				if got := table.place(m); got != want {
					t.Fatalf("%v: %d, want %d", m, got, want)
				}
			}
		}
	})
}

// TestLearnedBounds lets random owners learn random addresses, and holds after each step: nobody has more entries than its ring;
// what an owner learned pushed out nobody else's; the newest is there.
func TestLearnedBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const owners, limit = 3, 4
		l := learned{table: newTable(owners*limit, 3), age: 1000}
		rings := []*ring{newRing(limit), newRing(limit), newRing(limit)}
		at := func(owner int) place {
			if owner == 0 {
				return atVTEP(rapid.IntRange(0, 2).Draw(t, "vtep"))
			}
			return atPort(owner)
		}
		for tick := range uint32(rapid.IntRange(1, 60).Draw(t, "steps")) {
			owner := rapid.IntRange(0, owners-1).Draw(t, "owner")
			mac := wire.MAC(rapid.IntRange(0, 12).Draw(t, "mac"))
			before := map[wire.MAC]place{}
			for m := range wire.MAC(13) {
				before[m] = l.place(m, tick)
			}
			to := at(owner)
			l.learn(mac, to, tick, rings[owner])
			if l.place(mac, tick) != to {
				t.Fatalf("%v was not learned", mac)
			}
			count := make([]int, owners)
			for m := range wire.MAC(13) {
				now := l.place(m, tick)
				if m != mac && now != before[m] && !before[m].sameOwner(to) {
					t.Fatalf("learning %v at %d changed %v of another owner from %d to %d", mac, to, m, before[m], now)
				}
				if now != nowhere {
					if now.isVTEP() {
						count[0]++
					} else {
						count[now]++
					}
				}
			}
			for o, n := range count {
				if n > limit {
					t.Fatalf("owner %d has %d entries of %d", o, n, limit)
				}
			}
			if rapid.IntRange(0, 20).Draw(t, "forget") == 0 {
				l.forget(at(owner), rings[owner])
				for m := range wire.MAC(13) {
					if now := l.place(m, tick); now != nowhere && now.sameOwner(at(owner)) {
						t.Fatalf("%v was not forgotten", m)
					}
				}
			}
		}
	})
}

func TestAgeing(t *testing.T) {
	l := learned{table: newTable(4, 3), age: ticks(time.Second)}
	r := newRing(2)
	l.learn(mac1, atPort(0), 10, r)
	if l.place(mac1, 10+8) != atPort(0) || l.place(mac1, 10+9) != nowhere {
		t.Error("an entry of one second does not live eight ticks of 134 ms")
	}
	l.learn(mac2, atPort(0), 20, r)
	l.learn(mac3, atPort(0), 20, r) // takes the dead one's place, not mac2's
	if l.place(mac2, 20) != atPort(0) || l.place(mac3, 20) != atPort(0) {
		t.Error("a live entry went before a dead one")
	}
}

func TestLearnFromWire(t *testing.T) {
	l := newLab(t)
	up, a, b := blue(l)
	l.send(up, tunnelPacket(t, host4, peer4, 100, ethernetFrame(mac1, macX), nil))
	l.got(a, ethernetFrame(mac1, macX))
	l.send(a, ethernetFrame(macX, mac1))
	to, _, _, _ := unwrapped(t, up.Sent()[0].Bytes)
	if to != peer4 {
		t.Errorf("learned at %v", to)
	}

	// A local port's own address, and a static entry, are not taken over.
	for _, own := range []wire.MAC{mac2, mac3} {
		l.send(up, tunnelPacket(t, host4, other4, 100, ethernetFrame(mac1, own), nil))
		a.Sent()
	}
	l.send(a, ethernetFrame(mac2, mac1), ethernetFrame(mac3, mac1))
	l.got(b, ethernetFrame(mac2, mac1))
	if to, _, _, _ := unwrapped(t, up.Sent()[0].Bytes); to != peer4 {
		t.Errorf("the static entry moved to %v", to)
	}
}

// vtep waits until the control side has entered a VTEP that frames came from.
func (l *lab) vtep(a netip.Addr) VTEP {
	l.tb.Helper()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		for _, v := range l.sw.VTEPs() {
			if v.Address == a {
				return v
			}
		}
	}
	l.tb.Fatalf("VTEP %v was not entered", a)
	return VTEP{}
}

func TestDiscoverVTEP(t *testing.T) {
	l := newLab(t)
	up, a, _ := blue(l)
	hello := tunnelPacket(t, host4, other4, 100, ethernetFrame(mac1, macX), nil)
	l.send(up, hello)
	l.got(a, ethernetFrame(mac1, macX))
	if v := l.vtep(other4); v.Configured || !v.Resolved || v.NextHop != peerMAC || v.MTU != 1550 {
		t.Errorf("%+v", v)
	}
	l.send(up, hello)
	l.send(a, ethernetFrame(macX, mac1))
	if to, _, _, _ := unwrapped(t, up.Sent()[0].Bytes); to != other4 {
		t.Errorf("went to %v", to)
	}
	// It moves to a known VTEP and back.
	l.send(up, tunnelPacket(t, host4, peer4, 100, ethernetFrame(mac1, macX), nil))
	l.send(a, ethernetFrame(macX, mac1))
	if to, _, _, _ := unwrapped(t, up.Sent()[0].Bytes); to != peer4 {
		t.Errorf("after the move, went to %v", to)
	}
	l.send(up, hello)

	// While it speaks it stays; when it has been silent for the age of the network's entries it goes.
	index := l.sw.vteps.index[vtepKey{"up0", other4}]
	seen := l.sw.vtepSeen[index].Load()
	l.forgetAt(seen + ticks(300*time.Second))
	if len(l.sw.VTEPs()) != 2 {
		t.Error("gone too early")
	}
	l.forgetAt(seen + ticks(300*time.Second) + 1)
	if v := l.sw.VTEPs(); len(v) != 1 || v[0].Address != peer4 {
		t.Errorf("%+v", v)
	}
}

// TestVTEPSpeaksWhileItGoes has a silent VTEP speak between its leaving the snapshot and the grace point: a learned entry leads
// to its index again, so it keeps it.
func TestVTEPSpeaksWhileItGoes(t *testing.T) {
	l := newLab(t)
	up, a, _ := blue(l)
	hello := tunnelPacket(t, host4, other4, 100, ethernetFrame(mac1, macX), nil)
	l.send(up, hello)
	l.vtep(other4)
	l.send(up, hello)
	l.sw.mu.Lock()
	index := l.sw.vteps.index[vtepKey{"up0", other4}]
	tick := l.sw.vtepSeen[index].Load() + ticks(300*time.Second) + 1
	silent := l.sw.hideSilent(tick)
	l.sw.vtepSeen[index].Store(tick) // the worker, by the old snapshot
	l.sw.publish()
	l.sw.removeSilent(silent)
	l.sw.mu.Unlock()
	a.Sent()
	l.send(a, ethernetFrame(macX, mac1))
	if s := up.Sent(); len(s) != 1 {
		t.Fatalf("%d packets, dropped %v", len(s), drops(a))
	} else if to, _, _, _ := unwrapped(t, s[0].Bytes); to != other4 {
		t.Errorf("went to %v", to)
	}
}

func (l *lab) forgetAt(tick uint32) {
	l.sw.mu.Lock()
	defer l.sw.mu.Unlock()
	l.sw.forgetVTEPs(tick)
}

// TestInventedVTEPs floods the uplink with outer sources: only so many are entered, and configured ones are not touched.
func TestInventedVTEPs(t *testing.T) {
	l := newLabOf(t, 512, Options{Seed: 7, MaxVTEPs: 10, MaxLearnedVTEPs: 4})
	up, a, _ := blue(l)
	for i := range 200 {
		l.send(up, tunnelPacket(t, host4, netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), 100, ethernetFrame(mac1, macX), nil))
	}
	if n := len(a.Sent()); n != 200 {
		t.Fatalf("%d of 200 frames delivered", n)
	}
	for end := time.Now().Add(5 * time.Second); len(l.sw.VTEPs()) < 5 && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	l.sw.Close() // all that was told has been heard
	l.sw.stop, l.sw.done = make(chan struct{}), make(chan struct{})
	go l.sw.follow()
	if n := len(l.sw.VTEPs()); n != 5 {
		t.Errorf("%d VTEPs, want the configured one and four", n)
	}
	l.send(a, ethernetFrame(mac3, mac1))
	if to, _, _, _ := unwrapped(t, up.Sent()[0].Bytes); to != peer4 {
		t.Errorf("went to %v", to)
	}
}

// TestLearnFromPort moves an address between a port and the wire.
func TestLearnFromPort(t *testing.T) {
	l := newLab(t)
	up := l.uplink("up0", host4)
	l.network(Network{Name: "blue", VNI: 100, Uplink: "up0", Learning: true, Flood: []netip.Addr{peer4}})
	a := l.attach(Port{Name: "a", Network: "blue", MAC: mac1})
	b := l.attach(Port{Name: "b", Network: "blue", LearnLimit: 8})
	l.send(b, ethernetFrame(mac1, macX))
	l.got(a, ethernetFrame(mac1, macX))
	l.send(a, ethernetFrame(macX, mac1))
	l.got(b, ethernetFrame(macX, mac1))
	l.got(up)
	fdb := l.sw.FDB()
	if len(fdb) != 2 || fdb[0].Kind != KindLocal || fdb[0].Port != "a" || fdb[1].Kind != KindLearned || fdb[1].Port != "b" || fdb[1].MAC != macX {
		t.Errorf("FDB %+v", fdb)
	}

	l.send(up, tunnelPacket(t, host4, peer4, 100, ethernetFrame(mac1, macX), nil)) // the guest has moved away
	a.Sent()
	l.send(a, ethernetFrame(macX, mac1))
	l.got(b)
	if len(up.Sent()) != 1 {
		t.Error("the move was not learned")
	}
	if fdb := l.sw.FDB(); fdb[1].VTEP != peer4 || fdb[1].Port != "" {
		t.Errorf("FDB %+v", fdb)
	}

	// A port's flood of sources evicts only its own.
	for i := range wire.MAC(1000) {
		l.send(b, ethernetFrame(mac1, 0x5254_0001_0000+i))
	}
	a.Sent()
	l.send(a, ethernetFrame(macX, mac1))
	if len(up.Sent()) != 1 {
		t.Error("the flood evicted an entry learned from the wire")
	}
	n := 0
	for _, e := range l.sw.FDB() {
		if e.Port == "b" {
			n++
		}
	}
	if n != 8 {
		t.Errorf("%d entries of port b, want 8", n)
	}
}

func TestNoLearning(t *testing.T) {
	l := newLab(t)
	up := l.uplink("up0", host4)
	l.network(Network{Name: "blue", VNI: 100, Uplink: "up0"})
	a := l.attach(Port{Name: "a", Network: "blue", MAC: mac1, AntiSpoof: true})
	l.send(up, tunnelPacket(t, host4, peer4, 100, ethernetFrame(mac1, macX), nil))
	a.Sent()
	l.send(a, ethernetFrame(macX, mac1))
	l.dropped(a, DropNoDestination, 1)
	if fdb := l.sw.FDB(); len(fdb) != 1 {
		t.Errorf("FDB %+v", fdb)
	}
}
