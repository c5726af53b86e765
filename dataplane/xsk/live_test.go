package xsk

import (
	"encoding/binary"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/tools/lab/netlab"
	"github.com/shuntio/shunt/tools/need"
	"golang.org/x/sys/unix"
)

// etherType of the frames tests send: for local experiments, so that nobody else sends or answers any.
const etherType = 0x88b5

// numbered makes a frame of n bytes with a number in it.
func numbered(pool *frame.Pool, n int, number uint64) *frame.Frame {
	f := pool.Get()
	if f == nil {
		return nil
	}
	b := f.Append(n)
	copy(b, []byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1})
	binary.BigEndian.PutUint16(b[12:], etherType)
	binary.BigEndian.PutUint64(b[14:], number)
	return f
}

// number reads it; false if the frame is none of ours.
func number(f *frame.Frame) (uint64, bool) {
	b := f.Head()
	if len(b) < 22 || binary.BigEndian.Uint16(b[12:]) != etherType {
		return 0, false
	}
	return binary.BigEndian.Uint64(b[14:]), true
}

// TestPortToPort sends frames from one end of a veth pair to the other, both ends AF_XDP in one UMEM, and accounts for each:
// those that arrive do so in order, the others are in a counter of ours or of the kernel's.
func TestPortToPort(t *testing.T) {
	for _, x := range []struct {
		name   string
		mode   link.XDPAttachFlags
		frames uint64
		to     SocketOptions
		every  int // rounds of the sender between those of the receiver
	}{
		{"native", link.XDPDriverMode, 200_000, SocketOptions{}, 1},
		{"generic", link.XDPGenericMode, 50_000, SocketOptions{}, 1},
		{"small fill ring", link.XDPDriverMode, 100_000, SocketOptions{Fill: 64}, 8},
		{"small rx ring", link.XDPDriverMode, 100_000, SocketOptions{Rx: 32}, 8},
	} {
		t.Run(x.name, func(t *testing.T) {
			if need.Soak() {
				x.frames *= 10
			}
			a, b := newPair(t, 1, 1500)
			a.redirect(t, x.mode)
			b.redirect(t, x.mode)
			u, pool := newUMEM(t, 4*RingSize+512)
			from, to := newPort(t, a.open(t, u, SocketOptions{}), pool), newPort(t, b.open(t, u, x.to), pool)
			if from.s.ZeroCopy() {
				t.Error("veth claims zero copy")
			}
			lost := sendNumbered(t, from, to, pool, x.frames, x.every)
			// The devices count the same losses: a those that its driver refused, b (native) those that found no room in the socket.
			k := statistics(t, to)
			if busy := from.counters.Drops(DropBusy); a.dropped(t) != busy {
				t.Errorf("the device dropped %d on its way out, the port counts %d", a.dropped(t), busy)
			}
			if full := k.RxDropped + k.RxRingFull; x.mode == link.XDPDriverMode && b.dropped(t) != full {
				t.Errorf("the device dropped %d on its way in, the socket counts %d", b.dropped(t), full)
			}
			if x.every > 1 && lost == 0 {
				t.Error("nothing was lost, so nothing was shown")
			}
			if x.every == 1 && lost > x.frames/2 {
				t.Errorf("%d of %d were lost", lost, x.frames)
			}
		})
	}
}

// sendNumbered sends and receives on one goroutine until everything is accounted for, and returns how many were lost.
func sendNumbered(t *testing.T, from, to *Port, pool *frame.Pool, frames uint64, every int) uint64 {
	t.Helper()
	into := make([]*frame.Frame, dataplane.Quantum)
	var sent, received, expect uint64
	receive := func() (n int) {
		n = to.Receive(into, pool)
		for i, f := range into[:n] {
			if at, ok := number(f); ok {
				if at < expect || at >= sent {
					t.Fatalf("frame %d arrived when %d was due and %d were sent", at, expect, sent)
				}
				expect = at + 1
				received++
			}
			pool.Put(f)
			into[i] = nil
		}
		return n
	}
	for round := 0; sent < frames; round++ {
		n := min(dataplane.Quantum, int(frames-sent))
		for i := range n {
			into[i] = numbered(pool, 60+int(sent+uint64(i))%1400, sent+uint64(i))
		}
		sent += uint64(n)
		from.Transmit(into[:n], pool)
		pool.PutAll(into[:n])
		from.Flush()
		from.Receive(nil, pool)
		if round%every == 0 {
			receive()
		}
	}
	lost := func() uint64 {
		k := statistics(t, to)
		n, _ := drops(from.counters)
		return n + k.RxDropped + k.RxRingFull
	}
	until(t, "every frame accounted for", func() bool { from.Flush(); receive(); return received+lost() >= sent })
	_, why := drops(from.counters)
	t.Logf("%d sent, %d received, %d lost: kernel %+v, ours%s", sent, received, lost(), statistics(t, to), why)
	if received+lost() != sent {
		t.Errorf("%d sent, but %d received and %d lost", sent, received, lost())
	}
	until(t, "all completions", func() bool { from.Receive(nil, pool); return from.sent == 0 })
	for _, p := range []*Port{from, to} {
		if k := statistics(t, p); k.TxInvalid != 0 || k.RxInvalid != 0 || p.stats.Unknown.Load() != 0 {
			t.Errorf("invalid descriptors: %+v, unknown addresses: %d", k, p.stats.Unknown.Load())
		}
	}
	return lost()
}

// TestKernelUDP echoes datagrams of a kernel socket: what the kernel sends arrives whole, and it takes what we send.
func TestKernelUDP(t *testing.T) {
	need.Program(t, "ethtool", "ip")
	a, b := newPair(t, 1, 1500)
	a.run(t, "ethtool", "-K", a.Name, "tx", "off")
	a.run(t, "ip", "neigh", "add", "10.9.0.2", "lladdr", b.MAC, "dev", a.Name)
	b.redirect(t, 0)
	u, pool := newUMEM(t, 4*RingSize)
	p := newPort(t, b.open(t, u, SocketOptions{}), pool)
	var conn *net.UDPConn
	a.do(t, func() (err error) {
		conn, err = net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.IPv4(10, 9, 0, 2), Port: 7})
		return err
	})
	defer conn.Close()
	into := make([]*frame.Frame, dataplane.Quantum)
	reply := make([]byte, 2048)
	for i := range 2000 {
		payload := make([]byte, 1+i%1472)
		payload[0] = byte(i)
		if _, err := conn.Write(payload); err != nil {
			t.Fatal(err)
		}
		until(t, fmt.Sprintf("datagram %d at the AF_XDP socket", i), func() bool {
			n := p.Receive(into, pool)
			p.Release()
			echoed := false
			for _, f := range into[:n] {
				echoed = swap(f.Head()) || echoed
			}
			p.Transmit(into[:n], pool)
			pool.PutAll(into[:n])
			p.Flush()
			return echoed
		})
		conn.SetReadDeadline(time.Now().Add(time.Minute))
		n, err := conn.Read(reply)
		if err != nil || n != len(payload) || reply[0] != payload[0] {
			t.Fatalf("echo %d: %d bytes %v, want %d", i, n, err, len(payload))
		}
	}
}

// swap turns a UDP frame around, which leaves its checksums right; false for others.
func swap(b []byte) bool {
	p := gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.NoCopy)
	if p.Layer(layers.LayerTypeUDP) == nil || p.Layer(layers.LayerTypeIPv4) == nil {
		return false
	}
	for _, x := range [][3]int{{0, 6, 6}, {26, 30, 4}, {34, 36, 2}} { // MAC, address, port
		for i := range x[2] {
			b[x[0]+i], b[x[1]+i] = b[x[1]+i], b[x[0]+i]
		}
	}
	return true
}

// TestReceiveResumes starves the fill ring: packets are lost and counted, and receiving goes on by itself once frames are free.
func TestReceiveResumes(t *testing.T) {
	a, b := newPair(t, 1, 1500)
	a.redirect(t, 0)
	b.redirect(t, 0)
	ua, sending := newUMEM(t, 2*RingSize)
	ub, pool := newUMEM(t, 64)
	from, to := newPort(t, a.open(t, ua, SocketOptions{Rx: 64, Fill: 64}), sending), newPort(t, b.open(t, ub, SocketOptions{}), pool)
	if to.filled != 64 || pool.Len() != 0 {
		t.Fatalf("%d frames lie ready, want all 64", to.filled)
	}
	var sent uint64
	send := func(n int) {
		for range n {
			transmit(from, sending, numbered(sending, 100, sent))
			sent++
		}
		from.Flush()
		from.Receive(nil, sending)
	}
	into, held := make([]*frame.Frame, 16), []*frame.Frame{}
	receive := func() {
		n := to.Receive(into, pool)
		for i, f := range into[:n] {
			held, into[i] = append(held, f), nil
		}
	}
	until(t, "the fill ring is starved", func() bool { send(16); receive(); return statistics(t, to).RxDropped > 0 })
	until(t, "all that can be received", func() bool { receive(); return to.filled == 0 })
	if to.Arm() != dataplane.Forever {
		t.Error("Arm wants to look again though no completion is due")
	}
	lost := statistics(t, to).RxDropped
	send(32)
	until(t, "further packets are dropped", func() bool { return statistics(t, to).RxDropped == lost+32 })
	// Frames come back, as when guests have taken theirs, after the last Receive of the round: Arm alone must refill.
	for _, f := range held {
		pool.Put(f)
	}
	held = nil
	to.Arm()
	if to.filled != 64 {
		t.Fatalf("after Arm %d frames lie ready, want 64", to.filled)
	}
	send(8)
	poll := []unix.PollFd{{Fd: int32(to.s.FD()), Events: unix.POLLIN}}
	if n, err := unix.Poll(poll, 10_000); n != 1 || err != nil {
		t.Fatalf("poll: %d, %v", n, err)
	}
	if !to.Pending() {
		t.Error("POLLIN, yet nothing is pending")
	}
	until(t, "receiving again", func() bool { receive(); return len(held) == 8 })
}

// TestSlowPeer has the peer bridge frames on through a shaper, which holds the kernel's copies of them and so their completions: at
// 25 frames a second while they are offered, a thousand times as many later. What the rings can't hold is dropped by name; what was taken is kept and goes out.
func TestSlowPeer(t *testing.T) {
	need.Program(t, "tc", "ip")
	for _, x := range []struct {
		name string
		o    SocketOptions
	}{
		{"completions outstanding", SocketOptions{Fill: 64, Rx: 64, Tx: 512, Completion: 512}},
		{"send buffer full", SocketOptions{Fill: 64, Rx: 64, Tx: 512, Completion: 512, SendBuffer: 1 << 15}},
	} {
		t.Run(x.name, func(t *testing.T) {
			a, b := newPair(t, 1, 1500)
			if err := netlab.Veth(netlab.End{Namespace: b.Namespace, Name: "slow"}, netlab.End{Namespace: a.Namespace, Name: "far"}, 1); err != nil {
				t.Fatal(err)
			}
			b.run(t, "tc", "qdisc", "add", "dev", "slow", "root", "tbf", "rate", "20kbit", "burst", "1600", "limit", "10000000")
			b.run(t, "ip", "link", "add", "name", "bridge", "up", "type", "bridge")
			b.run(t, "ip", "link", "set", "dev", "slow", "master", "bridge")
			b.run(t, "ip", "link", "set", "dev", b.Name, "master", "bridge")
			const frames = 64 + 512 + 100
			u, pool := newUMEM(t, frames)
			p := newPort(t, a.open(t, u, x.o), pool)
			const offered = 1000
			for i := range uint64(offered) {
				f := numbered(pool, 100, i)
				if f == nil {
					t.Fatalf("no frame is free after %d", i)
				}
				f.Head()[5] = 9 // nobody's, so that the bridge passes it on
				transmit(p, pool, f)
				if i%dataplane.Quantum == 0 {
					p.Flush()
				}
			}
			n, why := drops(p.counters)
			if taken := p.counters.TxPackets.Load(); n != p.counters.Drops(DropRingFull) || n == 0 || n+taken != offered {
				t.Errorf("%d taken, dropped%s", taken, why)
			}
			for f := pool.Get(); f != nil; f = pool.Get() { // other ports take all that is free
				defer pool.Put(f)
			}
			if got := p.Arm(); got != noFileTells && pool.Len() == 0 { // else it has just got some back
				t.Errorf("Arm allows %v while completions are due and no frame is free, want %v", got, noFileTells)
			}
			if kept := p.stats.Kept.Load(); x.o.SendBuffer != 0 && kept == 0 {
				t.Error("a full send buffer kept nothing back")
			}
			b.run(t, "tc", "qdisc", "change", "dev", "slow", "root", "tbf", "rate", "20mbit", "burst", "1600", "limit", "10000000")
			until(t, "everything transmitted", func() bool { p.Flush(); p.Receive(nil, pool); return p.sent == 0 })
			if k := statistics(t, p); k.TxInvalid != 0 || p.counters.Drops(DropBusy) != 0 {
				t.Errorf("%+v, busy %d", k, p.counters.Drops(DropBusy))
			}
		})
	}
}

func TestInterfaceGoesDown(t *testing.T) {
	need.Program(t, "ip")
	a, b := newPair(t, 1, 1500)
	b.sink(t)
	u, pool := newUMEM(t, 2*RingSize)
	p := newPort(t, a.open(t, u, SocketOptions{Fill: 64, Rx: 64}), pool)
	transmit(p, pool, numbered(pool, 100, 0))
	p.Flush()

	b.run(t, "ip", "link", "set", b.Name, "down") // no carrier: taken and refused
	transmit(p, pool, numbered(pool, 100, 1), numbered(pool, 100, 2))
	until(t, "the device to refuse frames", func() bool { p.Flush(); return p.counters.Drops(DropBusy) == 2 })

	a.run(t, "ip", "link", "set", a.Name, "down")
	transmit(p, pool, numbered(pool, 100, 3))
	p.Flush()
	transmit(p, pool, numbered(pool, 100, 4))
	if n := p.counters.Drops(DropDown); n != 1 {
		t.Errorf("%d dropped while down, want 1", n)
	}
	a.run(t, "ip", "link", "set", a.Name, "up")
	b.run(t, "ip", "link", "set", b.Name, "up")
	until(t, "the frame that waited", func() bool { p.Flush(); p.Receive(nil, pool); return p.sent == 0 })

	a.run(t, "ip", "link", "del", a.Name)
	transmit(p, pool, numbered(pool, 100, 5))
	p.Flush()
	transmit(p, pool, numbered(pool, 100, 6))
	if n := p.counters.Drops(DropDown); n != 2 {
		t.Errorf("%d dropped by a port whose interface is gone, want 2", n)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if p.Reclaim(pool); pool.Len() != 2*RingSize {
		t.Errorf("%d of %d frames are free", pool.Len(), 2*RingSize)
	}
}

// TestLiveAllocatesNothing is TestPortAllocatesNothing with the kernel's own calls.
func TestLiveAllocatesNothing(t *testing.T) {
	a, b := newPair(t, 1, 1500)
	a.redirect(t, 0)
	b.redirect(t, 0)
	u, pool := newUMEM(t, 4*RingSize+512)
	from, to := newPort(t, a.open(t, u, SocketOptions{}), pool), newPort(t, b.open(t, u, SocketOptions{}), pool)
	batch, into := make([]*frame.Frame, dataplane.Quantum), make([]*frame.Frame, dataplane.Quantum)
	if n := testing.AllocsPerRun(500, func() {
		for i := range batch {
			batch[i] = numbered(pool, 100, uint64(i))
		}
		from.Transmit(batch, pool)
		pool.PutAll(batch)
		from.Flush()
		from.Receive(nil, pool)
		n := to.Receive(into, pool)
		pool.PutAll(into[:n])
		to.Arm()
		to.Disarm()
	}); n != 0 {
		t.Errorf("%v allocations a round", n)
	}
	if to.counters.RxPackets.Load() == 0 {
		t.Error("nothing was received")
	}
}
