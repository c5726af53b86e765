package lab

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	headers "github.com/shuntio/shunt/dataplane/wire"
	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/lab/netlab"
	"github.com/shuntio/shunt/tools/lab/peer"
	"github.com/shuntio/shunt/tools/need"
)

// Guests that leave checksums and segmentation to their devices, towards the kernel's VXLAN device and each other: nobody ever finds a wrong
// checksum, and the counters show packets cut towards the wire, merged from it, and whole between guests.
func TestOffloads(t *testing.T) {
	t.Parallel() // beside others of which most is waiting for a guest
	ctx := within(t, 5*time.Minute)
	need.Program(t, "iperf3")
	e := newEstate(t, ctx, true, false)
	for port, want := range map[string][]string{"a": nil, "a6": nil, "b": {"MTU"}} {
		want = append(want, "CSUM", "GUEST_CSUM", "HOST_TSO4", "HOST_TSO6", "HOST_ECN", "GUEST_TSO4", "GUEST_TSO6", "GUEST_ECN", "MRG_RXBUF")
		for _, feature := range want {
			if has := e.port(t, port).Features; !slices.Contains(has, feature) {
				t.Fatalf("port %s has %v, not %s", port, has, feature)
			}
		}
	}
	t.Run("toward the wire and from it", func(t *testing.T) { e.wireOffloads(t, ctx) })
	t.Run("between guests", func(t *testing.T) { e.guestOffloads(t, ctx) })
	for who, r := range map[string]peer.Runner{"guest a": e.a, "guest b": e.b, "the peer": e.far} {
		sound(t, ctx, who, r)
	}
	t.Run("DSCP and ECN", func(t *testing.T) { e.marks(t, ctx) })
	t.Run("MTU", func(t *testing.T) { e.tooBig(t, ctx) })
	t.Run("answers for the peer", func(t *testing.T) { e.answers(t, ctx) })
	t.Logf("dropped: %s", strings.Join(e.drops(t), "; "))
}

// iperfTime is how long one TCP connection sends.
func iperfTime() time.Duration { return time.Duration(soak()) * time.Second }

// tcp sends from a client, or to it, and returns what was counted meanwhile.
func (e *estate) tcp(t *testing.T, ctx context.Context, server, client peer.Runner, to string, o peer.IperfOptions) (peer.Iperfed, tally) {
	t.Helper()
	o.Time = iperfTime()
	since := e.since(t)
	r := iperf(t, ctx, server, client, to, 8*200e3, o)
	return r, since()
}

// wireOffloads has every guest send to the peer and receive from it.
func (e *estate) wireOffloads(t *testing.T, ctx context.Context) {
	stops := []func() string{captured(t, e.far, "up4"), captured(t, e.far, "up6")}
	type course struct {
		port     string
		guest    peer.Runner
		to       string
		coalesce bool
	}
	courses := []course{{"a", e.a, over4.peer4, true}, {"a6", e.a, over6.peer6, true}, {"b", e.b, over4.peer4, false}}
	if need.Soak() {
		courses = append(courses, course{"a", e.a, over4.peer6, true}, course{"a6", e.a, over6.peer4, true}, course{"b", e.b, over4.peer6, false})
	}
	for _, c := range courses {
		r, n := e.tcp(t, ctx, e.far, c.guest, c.to, peer.IperfOptions{Rate: 50e6})
		cut, segments := n["worker 0 tso-cut"], n["worker 0 tso-segments"]
		t.Logf("%s to %s: %.0f Mbit/s, %d packets of %d bytes from the guest, %d cut into %d",
			c.port, c.to, r.BitsPerSecond/1e6, n["port "+c.port+" rx"], mean(n, c.port, "rx"), cut, segments)
		if cut < 10 || segments < 2*cut || mean(n, c.port, "rx") <= 1514 {
			t.Errorf("%s to %s: the guest's packets had %d bytes, %d were cut into %d", c.port, c.to, mean(n, c.port, "rx"), cut, segments)
		}
		r, n = e.tcp(t, ctx, e.far, c.guest, c.to, peer.IperfOptions{Rate: 50e6, Reverse: true})
		merged, absorbed := n["port "+c.port+" coalesced"], n["port "+c.port+" absorbed"]
		t.Logf("%s from %s: %.0f Mbit/s, %d packets to the guest, of %d of which %d were merged into others", c.port, c.to, r.BitsPerSecond/1e6,
			n["port "+c.port+" tx"]-absorbed, n["port "+c.port+" tx"], absorbed)
		if c.coalesce && (merged < 10 || absorbed < 2*merged) || !c.coalesce && merged+absorbed > 0 {
			t.Errorf("%s from %s, coalescing %v: %d packets were merged of %d others", c.port, c.to, c.coalesce, merged, absorbed)
		}
	}
	for _, stop := range stops {
		goodPackets(t, ctx, stop())
	}
}

// mean is the length of the packets that were counted.
func mean(n tally, port, direction string) uint64 {
	return n["port "+port+" "+direction+"-bytes"] / max(n["port "+port+" "+direction], 1)
}

// guestOffloads has both guests send to each other: packets arrive as they were sent.
func (e *estate) guestOffloads(t *testing.T, ctx context.Context) {
	for _, to := range []string{tenantB.ip4, tenantB.ip6} {
		for _, reverse := range []bool{false, true} {
			from, into := "a", "b"
			if reverse {
				from, into = "b", "a"
			}
			r, n := e.tcp(t, ctx, e.b, e.a, to, peer.IperfOptions{Rate: 50e6, Reverse: reverse})
			cut := n["worker 0 tso-cut"]
			t.Logf("%s to %s by %s: %.0f Mbit/s, packets of %d bytes, delivered with %d, %d cut", from, into, to, r.BitsPerSecond/1e6, mean(n, from, "rx"), mean(n, into, "tx"), cut)
			if cut != 0 || mean(n, from, "rx") <= 1514 || mean(n, into, "tx") <= 1514 {
				t.Errorf("%s to %s: packets of %d bytes were delivered with %d, %d cut", from, into, mean(n, from, "rx"), mean(n, into, "tx"), cut)
			}
		}
	}
}

// marks looks at what a guest's packets and the wire's say of service and congestion.
func (e *estate) marks(t *testing.T, ctx context.Context) {
	const expedited = 46 // EF (RFC 3246)
	for _, c := range []struct {
		p            path
		to           string
		dscp, ecn, v string
	}{
		{over4, over4.peer6, "ip.dsfield.dscp", "ip.dsfield.ecn", "ip"}, {over6, over6.peer4, "ipv6.tclass.dscp", "ipv6.tclass.ecn", "ipv6"},
	} {
		stop := captured(t, e.far, c.p.uplink)
		if _, err := peer.Iperf(ctx, e.far, e.a, c.to, peer.IperfOptions{Rate: 1e6, Time: time.Second, TOS: expedited << 2}); err != nil {
			t.Fatal(err)
		}
		// The first of a packet's headers is the outer one.
		rows, err := peer.Decode(ctx, stop(), "vxlan && tcp.len > 0 && "+c.v+".src == "+c.p.local, c.dscp, c.ecn, "tcp.dstport")
		if err != nil {
			t.Fatal(err)
		}
		both := 0
		for _, row := range rows {
			if row[0] == fmt.Sprint(expedited) && row[1] == "2" {
				both++
			}
		}
		t.Logf("%s to %s: %d packets outside, %d of them with DSCP %d and ECT(0)", c.p.name, c.to, len(rows), both, expedited)
		if both < 10 || both < len(rows)/2 { // iperf's own conversation has the default class
			t.Errorf("%s to %s: of %d packets outside %d have the guest's DSCP and ECT(0), as %v", c.p.name, c.to, len(rows), both, rows[0])
		}
	}
	// A router on the way marks the outer header.
	ce := func() uint64 {
		c, err := e.a.Shell(ctx, `awk '/IpExt/{ if (n) print $n; else for (i=1;i<=NF;i++) if ($i == "InCEPkts") n=i }' /proc/net/netstat`)
		var n uint64
		if _, scan := fmt.Sscan(c, &n); err != nil || scan != nil {
			t.Fatalf("%q: %v, %v", c, err, scan)
		}
		return n
	}
	before, since := ce(), e.since(t)
	const each = 20
	for inner, what := range map[uint8]string{2: "ECT(0)", 0: "not ECT"} {
		if err := markedDatagrams(e.far, each, inner); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	for ctx.Err() == nil && (ce()-before < each || since()["uplink up4 ecn-congestion"] < each) {
		time.Sleep(10 * time.Millisecond)
	}
	if n, dropped := ce()-before, since()["uplink up4 ecn-congestion"]; n != each || dropped != each {
		t.Errorf("of packets marked on the way the guest saw %d, %d were dropped since it would not have understood, want %d each", n, dropped, each)
	}
}

// markedDatagrams sends VXLAN packets to guest a whose outer headers say that they met congestion, and whose inner ones have a TOS.
func markedDatagrams(far *netlab.Namespace, n int, tos uint8) error {
	return far.Do(func() error {
		conn, err := net.Dial("udp4", over4.local+":4789")
		if err != nil {
			return err
		}
		defer conn.Close()
		raw, err := conn.(*net.UDPConn).SyscallConn()
		if err != nil {
			return err
		}
		if control := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TOS, 3) }); control != nil || err != nil {
			return fmt.Errorf("set TOS: %w, %w", control, err)
		}
		from, _ := net.ParseMAC(over4.peerMAC)
		to, _ := net.ParseMAC(over4.guestMAC)
		b := make([]byte, 8+64)
		b[0] = 8
		binary.BigEndian.PutUint32(b[4:], uint32(over4.vni)<<8)
		frame := b[8:]
		headers.Ethernet(frame).Set(headers.MACFrom([6]byte(to)), headers.MACFrom([6]byte(from)), headers.EtherTypeIPv4)
		headers.IPv4(frame[14:]).Set(headers.IPv4Fields{TOS: tos, TotalLen: 50, TTL: 64, Protocol: headers.ProtoUDP,
			Source: [4]byte(net.ParseIP(over4.peer4).To4()), Destination: [4]byte(net.ParseIP(over4.guest4).To4())})
		headers.UDP(frame[34:]).Set(1024, 9, 30, 0)
		for range n {
			if _, err := conn.Write(b); err != nil {
				return err
			}
		}
		return nil
	})
}

// tooBig gives guest a an MTU that its networks do not have: it is told, and goes on with what fits.
func (e *estate) tooBig(t *testing.T, ctx context.Context) {
	mtu := func(device string, n int) {
		t.Helper()
		if out, err := e.a.Shell(ctx, fmt.Sprintf("ip link set %s mtu %d && ip route flush cache && ip -6 route flush cache", device, n)); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	for _, p := range []path{over4, over6} {
		mtu(p.guestDevice, 1500)
		defer mtu(p.guestDevice, p.mtu)
	}
	for _, c := range []struct {
		to, port string
		size     int // of a packet of 1500 bytes
		counter  string
		mtu      int
	}{
		{over4.peer4, "a", 1472, "Icmp.InDestUnreachs", 1450}, {over6.peer6, "a6", 1452, "Icmp6InPktTooBigs", 1430},
		{tenantB.ip4, "a", 1472, "Icmp.InDestUnreachs", 1450}, {tenantB.ip6, "a", 1452, "Icmp6InPktTooBigs", 1450},
	} {
		since, before := e.since(t), guestCounter(t, ctx, e.a, c.counter)
		first, err := peer.Ping(ctx, e.a, c.to, peer.PingOptions{Count: 1, Size: c.size, Wait: time.Second})
		if err != nil || first.Received != 0 {
			t.Errorf("%s: a packet of 1500 bytes was answered (%v)", c.to, err)
		}
		told := guestCounter(t, ctx, e.a, c.counter) - before
		route, err := e.a.Run(ctx, "ip", "route", "get", c.to)
		if told == 0 || err != nil || !strings.Contains(route, fmt.Sprintf("mtu %d", c.mtu)) {
			t.Errorf("%s: the guest was told %d times; its route is %s (%v)", c.to, told, route, err)
		}
		if n := since()["port "+c.port+" over-mtu"]; n == 0 {
			t.Errorf("%s: nothing was dropped as over-mtu", c.to)
		}
		pings(t, ctx, e.a, c.to, c.size) // in pieces that fit
		t.Logf("%s: told %d times: %s", c.to, told, strings.Join(strings.Fields(route), " "))
	}
	// TCP whose segments are too long finds its way, long packets and all, since it is told.
	run(t, e.far, "ip", "link", "set", "up4", "mtu", "1550")
	run(t, e.far, "ip", "link", "set", "vx4", "mtu", "1500")
	mtu("eth0", 1500)
	r, n := e.tcp(t, ctx, e.far, e.a, over4.peer4, peer.IperfOptions{})
	t.Logf("TCP with segments of 1460 bytes, of which 1410 fit: %.0f Mbit/s, %d over-mtu, %d cut into %d",
		r.BitsPerSecond/1e6, n["port a over-mtu"], n["worker 0 tso-cut"], n["worker 0 tso-segments"])
	if n["port a over-mtu"] == 0 || n["worker 0 tso-cut"] == 0 {
		t.Errorf("no segment was too long: %v", n)
	}
}

func guestCounter(t *testing.T, ctx context.Context, r peer.Runner, name string) uint64 {
	t.Helper()
	c, err := peer.Counters(ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	return c[name]
}

// answers asks for a peer that is not there, but is written down with its addresses.
func (e *estate) answers(t *testing.T, ctx context.Context) {
	run(t, e.far, "ip", "link", "set", "vx4", "down")
	run(t, e.far, "ip", "link", "set", "vx6", "down")
	if _, err := e.a.Shell(ctx, "ip neigh flush dev eth0; ip neigh flush dev eth1"); err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{over4.peer4, over4.peer6, over6.peer6, "10.4.0.77"} {
		if e.pinged(t, ctx, e.a, to) {
			t.Errorf("%s answers", to)
		}
	}
	table, err := e.a.Run(ctx, "ip", "neigh")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		over4.peer4 + " dev eth0 lladdr " + over4.peerMAC, over4.peer6 + " dev eth0 lladdr " + over4.peerMAC, over6.peer6 + " dev eth1 lladdr " + over6.peerMAC,
	} {
		if !strings.Contains(table, want) {
			t.Errorf("the guest has no neighbour %s:\n%s", want, table)
		}
	}
	t.Logf("neighbours: %s", strings.Join(strings.Split(strings.TrimSpace(table), "\n"), "; "))
	// Nobody is answered for who is not written down.
	if table, err = e.a.Run(ctx, "ip", "neigh", "show", "10.4.0.77"); err != nil || strings.Contains(table, "lladdr") {
		t.Errorf("somebody answered for nobody: %s (%v)", table, err)
	}
	if s := e.port(t, "a"); s.State != control.StateConnected {
		t.Errorf("port a is %s", s.State)
	}
}
