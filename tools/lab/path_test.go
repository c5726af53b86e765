package lab

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/lab/daemon"
	"github.com/shuntio/shunt/tools/lab/guest"
	"github.com/shuntio/shunt/tools/lab/netlab"
	"github.com/shuntio/shunt/tools/lab/peer"
)

// overPath sends everything over one path and looks at it from all sides.
func overPath(t *testing.T, ctx context.Context, d *daemon.Daemon, host, far *netlab.Namespace, g *guest.Guest, p path) {
	stop := captured(t, far, p.uplink)
	reach(t, ctx, g, p.peer4)
	t.Run("ping", func(t *testing.T) {
		// 8000 bytes are fragments of the network's MTU.
		pings(t, ctx, g, p.peer4, 56, 1400, 8000)
		pings(t, ctx, g, p.peer6, 56, 1400, 8000)
		pings(t, ctx, far, p.guest4, 56, 1400, 8000)
		pings(t, ctx, far, p.guest6, 56, 1400, 8000)
	})
	t.Run("iperf3", func(t *testing.T) {
		for _, o := range []peer.IperfOptions{{}, {UDP: true, Length: 1200}} {
			for _, o.Reverse = range []bool{false, true} {
				o.Rate, o.Time = 5e6, time.Second // less than the guest can take
				for _, address := range []string{p.peer4, p.peer6} {
					before := lost(t, ctx, d, far, g, p)
					r := iperf(t, ctx, far, g, address, 1e6, o)
					if o.UDP && r.Packets == 0 {
						t.Errorf("%s %+v: %+v", address, o, r)
					}
					if counted := lost(t, ctx, d, far, g, p) - before; r.Lost > counted {
						t.Errorf("%s %+v: %d of %d datagrams were lost, %d counted", address, o, r.Lost, r.Packets, counted)
					}
				}
			}
		}
	})
	for who, r := range map[string]peer.Runner{"the guest": g, "the peer": far, "the host": host} {
		goodChecksums(t, ctx, who, r)
	}
	wire := stop()
	goodPackets(t, ctx, wire)
	t.Run("full speed", func(t *testing.T) {
		for _, o := range []peer.IperfOptions{{Time: time.Second}, {Time: time.Second, Reverse: true}} {
			r := iperf(t, ctx, far, g, p.peer4, 5e6, o)
			t.Logf("reverse=%v: %.0f Mbit/s, %d retransmits", o.Reverse, r.BitsPerSecond/1e6, r.Retransmits)
		}
	})
	t.Run("outer headers", func(t *testing.T) { outerHeaders(t, ctx, wire, p) })
	for _, o := range []struct {
		kind control.Kind
		name string
	}{{control.KindPort, "port-" + p.uplink}, {control.KindUplink, p.uplink}} {
		c := counters(t, d, o.kind, o.name)
		if c.RxPackets < 100 || c.TxPackets < 100 {
			t.Errorf("%s %s counted %d received and %d transmitted packets", o.kind, o.name, c.RxPackets, c.TxPackets)
		}
		t.Logf("%s %s: %d received, %d transmitted, dropped %v", o.kind, o.name, c.RxPackets, c.TxPackets, c.Drops)
	}
}

// lost sums all counters of packets lost between the guest's and the peer's
// sockets, theirs included: a busy machine may leave a guest too little time.
func lost(t *testing.T, ctx context.Context, d *daemon.Daemon, far *netlab.Namespace, g *guest.Guest, p path) int {
	t.Helper()
	port, uplink := counters(t, d, control.KindPort, "port-"+p.uplink), counters(t, d, control.KindUplink, p.uplink)
	sum := port.Dropped() + uplink.Dropped()
	for _, r := range []peer.Runner{far, g} {
		c, err := peer.Counters(ctx, r)
		if err != nil {
			t.Fatal(err)
		}
		sum += c["Udp.RcvbufErrors"] + c["Udp6RcvbufErrors"] + c["Udp.SndbufErrors"] + c["Udp6SndbufErrors"]
	}
	for _, device := range []string{p.uplink, p.vxlan} {
		stats, err := peer.NetdevStats(far, device)
		if err != nil {
			t.Fatal(err)
		}
		sum += stats.RxDropped + stats.TxDropped
	}
	return int(sum)
}

// outerHeaders judges what shuntd put around the guest's frames, as tshark
// reads it.
func outerHeaders(t *testing.T, ctx context.Context, wire string, p path) {
	ip, fields := "ip", []string{"ip.src", "ip.dst", "ip.ttl", "ip.flags.df", "ip.frag_offset"}
	if p.prefix == 64 {
		ip, fields = "ipv6", []string{"ipv6.src", "ipv6.dst", "ipv6.hlim", "ipv6.version", "ipv6.version"}
	}
	fields = append(fields, "udp.srcport", "udp.dstport", "udp.checksum", "vxlan.flags", "vxlan.vni", "tcp.srcport", "tcp.dstport", "eth.dst")
	rows, err := peer.Decode(ctx, wire, fmt.Sprintf("vxlan && %s.src == %s", ip, p.local), fields...)
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) < 100 {
		t.Fatalf("tshark finds %d VXLAN packets from %s", len(rows), p.local)
	}
	ports := map[string]int{}
	flows := map[string]map[string]bool{} // of TCP -> outer source ports
	for _, row := range rows {
		if len(row) != len(fields) {
			t.Fatalf("tshark's line has %d fields: %v", len(row), row)
		}
		dst, ttl, df := row[1], row[2], row[3]
		source, destination, checksum, flags, vni, flow := row[5], row[6], row[7], row[8], row[9], row[10]+">"+row[11]
		ports[source]++
		if row[10] != "" {
			if flows[flow] == nil {
				flows[flow] = map[string]bool{}
			}
			flows[flow][source] = true
		}
		port, err := strconv.Atoi(source)
		wrong := err != nil || port < 49152 || dst != p.remote || destination != "4789" || ttl != "64" || vni != strconv.Itoa(p.vni) || flags != "0x0800"
		if ip == "ip" {
			wrong = wrong || df != "1" && df != "True" || row[4] != "0"
		} else {
			// A tunnel over IPv6 has a checksum unless both ends agreed otherwise (RFC 6935).
			wrong = wrong || checksum == "0x0000"
		}
		if wrong {
			t.Fatalf("outer header: %v\nof %v", row, fields)
		}
	}
	for flow, sources := range flows {
		if len(sources) != 1 {
			t.Errorf("the TCP flow %s has outer source ports %v, want one", flow, slices.Collect(maps.Keys(sources)))
		}
	}
	// Of n flows some may share a port; that all do is a chance of 2^-14 each.
	if len(flows) < 3 || len(ports) < 3 {
		t.Errorf("%d flows have %d outer source ports: %v", len(flows), len(ports), ports)
	}
	t.Logf("%d packets, %d TCP flows, %d outer source ports", len(rows), len(flows), len(ports))
}
