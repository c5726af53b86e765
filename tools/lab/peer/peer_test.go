package peer

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shuntio/shunt/tools/lab/leftover"
	"github.com/shuntio/shunt/tools/lab/netlab"
	"github.com/shuntio/shunt/tools/need"
)

func TestMain(m *testing.M) { os.Exit(leftover.Run(m.Run)) }

// underlay makes two namespaces joined by a veth pair, with IPv4 and IPv6.
func underlay(t *testing.T) (a, b *netlab.Namespace) {
	t.Helper()
	need.Root(t)
	for _, side := range []struct {
		ns   **netlab.Namespace
		name string
	}{{&a, "a"}, {&b, "b"}} {
		ns, err := netlab.NewNamespace(side.name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := ns.Close(); err != nil {
				t.Error(err)
			}
		})
		*side.ns = ns
	}
	err := netlab.Veth(
		netlab.End{Namespace: a, Name: "up", Addrs: []string{"192.0.2.1/24", "2001:db8::1/64"}},
		netlab.End{Namespace: b, Name: "up", Addrs: []string{"192.0.2.2/24", "2001:db8::2/64"}}, 1)
	if err != nil {
		t.Fatal(err)
	}
	return a, b
}

// The kernel's VXLAN device against itself shows that the checks see what
// they are meant to see, good and bad.
func TestKernelVXLANAgainstItself(t *testing.T) {
	for name, local := range map[string][2]string{
		"IPv4 underlay": {"192.0.2.1", "192.0.2.2"},
		"IPv6 underlay": {"2001:db8::1", "2001:db8::2"},
	} {
		t.Run(name, func(t *testing.T) {
			need.Program(t, "tshark", "iperf3", "ping", "ip", "ethtool")
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			a, b := underlay(t)
			for i, ns := range []*netlab.Namespace{a, b} {
				err := KernelVXLAN(ctx, ns, VXLAN{
					Name: "vx0", VNI: 100, Device: "up", Local: local[i], Remote: local[1-i],
					Addrs:   []string{"10.0.0." + strconv.Itoa(i+1) + "/24", "fd00::" + strconv.Itoa(i+1) + "/64"},
					Options: []string{"udpcsum"},
				})
				if err != nil {
					t.Fatal(err)
				}
				// What b's device sees is then complete.
				if _, err := ns.Run(ctx, "ethtool", "-K", "up", "tx", "off", "tso", "off", "gso", "off"); err != nil {
					t.Fatal(err)
				}
			}
			capture, err := StartCapture(b, "up", filepath.Join(t.TempDir(), "up.pcap"))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = capture.Stop() })

			for _, size := range []int{56, 1400, 8000} {
				for _, address := range []string{"10.0.0.2", "fd00::2"} {
					p, err := Ping(ctx, a, address, PingOptions{Count: 1, Size: size})
					if err != nil || p.Sent != 1 || p.Received != 1 || p.Avg <= 0 {
						t.Errorf("ping %s with %d bytes: %+v, %v", address, size, p, err)
					}
				}
			}
			for _, o := range []IperfOptions{{Time: time.Second, Rate: 20e6}, {Time: time.Second, Rate: 20e6, Reverse: true}, {Time: time.Second, UDP: true, Rate: 10e6, Length: 1000}} {
				r, err := Iperf(ctx, b, a, "10.0.0.2", o)
				if err != nil || r.Bytes == 0 || r.BitsPerSecond < 1e6 || o.UDP && r.Packets == 0 {
					t.Errorf("iperf %+v: %+v, %v", o, r, err)
				}
				t.Logf("%+v: %+v", o, r)
			}
			if err := capture.Stop(); err != nil {
				t.Fatal(err)
			}

			rows, err := Decode(ctx, capture.Path(), "vxlan.vni == 100 && udp.dstport == 4789", "udp.srcport", "udp.dstport", "eth.src")
			if err != nil || len(rows) < 20 {
				t.Errorf("%d VXLAN packets, %v", len(rows), err)
			}
			if bad, err := BadPackets(ctx, capture.Path()); err != nil || len(bad) != 0 {
				t.Errorf("bad packets: %v, %v", bad, err)
			}
			for _, ns := range []*netlab.Namespace{a, b} {
				if n, err := ChecksumErrors(ctx, ns); err != nil || n != 0 {
					t.Errorf("%d checksum errors in %s, %v", n, ns.Name, err)
				}
			}
			stats, err := NetdevStats(b, "up")
			if err != nil || stats.RxPackets < uint64(len(rows)) {
				t.Errorf("netdev counters %+v, %v", stats, err)
			}
		})
	}
}

// A frame with a wrong checksum is seen as such by tshark and by the kernel.
func TestBadChecksumIsSeen(t *testing.T) {
	need.Program(t, "tshark")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	a, b := underlay(t)
	capture, err := StartCapture(b, "up", filepath.Join(t.TempDir(), "up.pcap"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = capture.Stop() })
	if err := sendBadUDP(a, "up", "192.0.2.2"); err != nil {
		t.Fatal(err)
	}
	for {
		n, err := ChecksumErrors(ctx, b)
		if err != nil {
			t.Fatal(err)
		}
		if n == 1 {
			break
		}
		if n > 1 {
			t.Fatalf("%d checksum errors, want 1", n)
		}
	}
	if err := capture.Stop(); err != nil {
		t.Fatal(err)
	}
	if bad, err := BadPackets(ctx, capture.Path()); err != nil || len(bad) != 1 {
		t.Errorf("bad packets: %v, %v", bad, err)
	}
}

func TestParsePing(t *testing.T) {
	for name, out := range map[string]string{
		"iputils": "3 packets transmitted, 2 received, 33% packet loss, time 2003ms\nrtt min/avg/max/mdev = 0.100/0.200/0.300/0.012 ms\n",
		"busybox": "3 packets transmitted, 2 packets received, 33% packet loss\nround-trip min/avg/max = 0.100/0.200/0.300 ms\n",
	} {
		want := Pinged{Sent: 3, Received: 2, Min: 100 * time.Microsecond, Avg: 200 * time.Microsecond, Max: 300 * time.Microsecond}
		if got, ok := parsePing(out); !ok || got != want {
			t.Errorf("%s: %+v, %v", name, got, ok)
		}
	}
	if got, ok := parsePing("1 packets transmitted, 0 received, 100% packet loss, time 0ms\n"); !ok || got != (Pinged{Sent: 1}) {
		t.Errorf("%+v, %v", got, ok)
	}
	if _, ok := parsePing("ping: unknown host"); ok {
		t.Error("a failure parses")
	}
}

func TestParseCounters(t *testing.T) {
	c := parseCounters("Tcp: InSegs InCsumErrors\nTcp: 17 3\nUdp6InCsumErrors                \t5\n")
	if c["Tcp.InSegs"] != 17 || c["Tcp.InCsumErrors"] != 3 || c["Udp6InCsumErrors"] != 5 || len(c) != 3 {
		t.Errorf("%v", c)
	}
}

func TestParseIperf(t *testing.T) {
	if _, err := parseIperf(`{"start":{},"end":{},"error":"unable to connect"}`); err == nil || !strings.Contains(err.Error(), "unable to connect") {
		t.Errorf("%v", err)
	}
	if _, err := parseIperf("iperf3: not json"); err == nil {
		t.Error("no error")
	}
}
