package bpf

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// flowTo is a tunnelled frame to stationMAC whose outer source port is port.
func flowTo(t testing.TB, port uint16) []byte {
	return serialize(t, ethernet(layers.EthernetTypeIPv4), ipv4(vtep4),
		with(udp(4789), func(u *layers.UDP) { u.SrcPort = layers.UDPPort(port) }), vxlan(knownVNI), toStation)
}

// served runs a frame and tells by which of the workers in order it is served: all but one of their sockets are taken out of the map in turn.
func (p *rig) served(t testing.TB, frame []byte, workers []int, sockets map[int]int) int {
	t.Helper()
	found := -1
	for _, w := range workers {
		for _, x := range workers {
			if err := p.objs.Xsks.Delete(uint32(queue*MaxWorkers + x)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				t.Fatal(err)
			}
		}
		if err := p.AddSocket(queue, w, sockets[w]); err != nil {
			t.Fatal(err)
		}
		if got, _ := p.run(t, p.objs.ShuntSteer, frame, queue); got == xdpRedirect {
			if found >= 0 {
				t.Fatalf("a frame is served by worker %d and by %d", found, w)
			}
			found = w
		}
	}
	if found < 0 {
		t.Fatal("a frame is served by none of its station's workers")
	}
	return found
}

// chosen is pick of steer.bpf.c.
func chosen(workers []int, hash uint32) int {
	hash = (hash ^ hash>>16) * 0x9e3779b1
	return workers[uint64(hash)*uint64(len(workers))>>32]
}

// The flows of a station are shared among its workers: each on one, all about
// alike, however ports are handed out.
func TestStationFlows(t *testing.T) {
	p := newRig(t, 0)
	sockets := map[int]int{}
	all := []int{5, 3, 0, 63, 7, 1, 2, 9}
	for _, w := range all {
		sockets[w] = xdpSocket(t)
	}
	if err := errors.Join(p.AddVTEP(vtep4), p.AddVNI(knownVNI, 0)); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{1, 2, 3, 8} {
		workers := all[:n]
		if err := p.AddStation(knownVNI, stationMAC, workers); err != nil {
			t.Fatal(err)
		}
		for i := range uint16(24) { // that C and Go agree; the rest is for Go alone, which is faster
			port := 50000 + i*i*7
			if got, want := p.served(t, flowTo(t, port), workers, sockets), chosen(workers, uint32(port)); got != want {
				t.Errorf("%d workers: port %d is served by worker %d, want %d", n, port, got, want)
			}
		}
	}
	for name, ports := range map[string][]uint16{
		"successive ports":           counted(32768, 1, 512),
		"every 64th port":            counted(256, 64, 512),
		"what Linux makes by a hash": hashed(512),
	} {
		for _, n := range []int{2, 3, 4, 8} {
			got := map[int]int{}
			for _, port := range ports {
				got[chosen(all[:n], uint32(port))]++
			}
			for _, w := range all[:n] {
				if fair := len(ports) / n; got[w] < fair*6/10 || got[w] > fair*14/10 {
					t.Errorf("%s, %d workers: worker %d has %d flows of %d", name, n, w, got[w], len(ports))
				}
			}
		}
	}
}

func counted(from, step uint16, n int) (ports []uint16) {
	for i := range uint16(n) {
		ports = append(ports, from+i*step)
	}
	return ports
}

func hashed(n int) (ports []uint16) {
	r := rand.New(rand.NewPCG(1, 2))
	for range n {
		ports = append(ports, uint16(32768+r.Uint32N(28232)))
	}
	return ports
}

// A flat network's flows are told apart by addresses and ports; fragments stay
// together, and what is not IP goes to the first worker.
func TestFlatFlows(t *testing.T) {
	p := newRig(t, 0)
	workers, sockets := []int{0, 1, 2, 3}, map[int]int{}
	for _, w := range workers {
		sockets[w] = xdpSocket(t)
	}
	if err := errors.Join(p.SetFlat(true), p.AddMAC(guestMAC, workers)); err != nil {
		t.Fatal(err)
	}
	to := func(typ layers.EthernetType, parts ...gopacket.SerializableLayer) []byte {
		e := &layers.Ethernet{SrcMAC: peerMAC, DstMAC: guestMAC[:], EthernetType: typ}
		return serialize(t, slices.Concat([]gopacket.SerializableLayer{e}, parts)...)
	}
	for name, make := range map[string]func(i uint16) []byte{
		"IPv4 by source port": func(i uint16) []byte {
			return to(layers.EthernetTypeIPv4, ipv4(vtep4), with(udp(53), func(u *layers.UDP) { u.SrcPort = layers.UDPPort(40000 + i) }), inner)
		},
		"IPv4 by destination port": func(i uint16) []byte {
			return to(layers.EthernetTypeIPv4, ipv4(vtep4), udp(5000+i), inner)
		},
		"IPv4 by address": func(i uint16) []byte {
			return to(layers.EthernetTypeIPv4, with(ipv4(vtep4), func(ip *layers.IPv4) { ip.SrcIP = []byte{10, 0, byte(i >> 8), byte(i)} }), udp(53), inner)
		},
		"IPv6 by source port": func(i uint16) []byte {
			return to(layers.EthernetTypeIPv6, ipv6(vtep6), with(udp(53), func(u *layers.UDP) { u.SrcPort = layers.UDPPort(40000 + i) }), inner)
		},
		"IPv6 by address": func(i uint16) []byte {
			return to(layers.EthernetTypeIPv6, with(ipv6(vtep6), func(ip *layers.IPv6) { binary.BigEndian.PutUint16(ip.SrcIP[14:], i) }), udp(53), inner)
		},
	} {
		got := map[int]int{}
		for i := range uint16(64) {
			got[p.served(t, make(i), workers, sockets)]++
		}
		if len(got) != len(workers) || slices.Min([]int{got[0], got[1], got[2], got[3]}) < 4 {
			t.Errorf("%s: flows of each worker: %v", name, got)
		}
		if got := p.served(t, make(7), workers, sockets); got != p.served(t, make(7), workers, sockets) {
			t.Errorf("%s: a flow has two workers", name)
		}
	}
	var fragments []int
	for i := range uint16(8) {
		f := to(layers.EthernetTypeIPv4, with(ipv4(vtep4), func(ip *layers.IPv4) {
			ip.Flags, ip.FragOffset = layers.IPv4MoreFragments, i
		}), udp(1000+i), inner)
		fragments = append(fragments, p.served(t, f, workers, sockets))
	}
	if len(slices.Compact(fragments)) != 1 {
		t.Errorf("fragments went to %v", fragments)
	}
	if got := p.served(t, to(layers.EthernetTypeARP, inner), workers, sockets); got != 0 {
		t.Errorf("an ARP frame went to worker %d", got)
	}
}

// While a station's workers change without end, and all that leads to it is added again,
// not one frame of it goes to anybody but those, or to the kernel.
func TestStationChangesUnderFire(t *testing.T) {
	p := newRig(t, 0)
	lists := [][]int{{1}, {1, 2}, {2, 1, 3}, {3, 2, 1, 4, 5, 6, 7, 8}}
	if err := errors.Join(p.AddVTEP(vtep4), p.AddVNI(knownVNI, 0), p.AddStation(knownVNI, stationMAC, lists[0])); err != nil {
		t.Fatal(err)
	}
	for w := 1; w <= 8; w++ { // none at 0, the network's: a missing entry would show as drop-no-socket
		if err := p.AddSocket(queue, w, xdpSocket(t)); err != nil {
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			if err := errors.Join(p.AddVTEP(vtep4), p.AddVNI(knownVNI, i%2), p.AddStation(knownVNI, stationMAC, lists[i%len(lists)])); err != nil {
				t.Error(err)
				return
			}
			// Others come and go beside it, and take its old memory.
			other := [6]byte{2, 0, 0, 0, 0, byte(i)}
			if err := errors.Join(p.AddStation(knownVNI, other, []int{8}), p.RemoveStation(knownVNI, other)); err != nil {
				t.Error(err)
				return
			}
		}
	})
	const each, rounds = 20_000, 20
	for i := range uint16(rounds) {
		frame := flowTo(t, 50000+i)
		md := xdpMd{DataEnd: uint32(len(frame)), IngressIfindex: p.index, RxQueueIndex: queue}
		err := p.ns.Do(func() error {
			_, err := p.objs.ShuntSteer.Run(&ebpf.RunOptions{Data: frame, Context: md, Repeat: each})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	stop()
	done.Wait()
	counters, err := p.Counters()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range counters {
		switch station := c.Verdict == "redirect-station"; {
		case station && c.Packets < each*rounds: // a run that a signal interrupts is counted, and begins again
			t.Errorf("%d of %d frames went to the station's workers", c.Packets, each*rounds)
		case !station && c.Packets != 0:
			t.Errorf("%d frames: %s", c.Packets, c.Verdict)
		}
	}
}

// A network takes its stations along.
func TestStationsEndWithTheirNetwork(t *testing.T) {
	p := program(t)
	frame := flowTo(t, 50000)
	see := func(want string, err error) {
		t.Helper()
		if _, verdict := p.run(t, p.objs.ShuntSteer, frame, queue); verdict != want || err != nil {
			t.Errorf("verdict %s, %v, want %s", verdict, err, want)
		}
	}
	see("redirect-station", nil)
	see("redirect", p.RemoveStation(knownVNI, stationMAC))
	see("redirect", p.RemoveStation(knownVNI, stationMAC)) // twice is once
	see("redirect-station", p.AddStation(knownVNI, stationMAC, []int{worker}))
	see("drop-no-socket", p.AddStation(knownVNI, stationMAC, []int{worker + 1}))
	see("pass-unknown-vni", p.RemoveVNI(knownVNI))
	see("redirect", p.AddVNI(knownVNI, 0))
	if n, err := countEntries(p.objs.Stations); err != nil || *n != 0 {
		t.Errorf("%d stations are left, %v", *n, err)
	}
}
