package underlay

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/dataplanetest"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/wire"
	"github.com/shuntio/shunt/tools/lab/netlab"
	"github.com/shuntio/shunt/tools/need"
	"github.com/shuntio/shunt/vxlan"
	"golang.org/x/sys/unix"
)

// socketPort is a dataplane.Port on a packet socket: slow, and enough to let the kernel be the guest and the peer.
type socketPort struct {
	dataplanetest.Port
	fd int
	to unix.SockaddrLinklayer
}

func newSocketPort(t *testing.T, ns *netlab.Namespace, device string) (*dataplane.Link, *socketPort) {
	t.Helper()
	p := &socketPort{Port: dataplanetest.Port{Counters: new(dataplane.Counters)}}
	err := ns.Do(func() (err error) {
		const all = uint16(unix.ETH_P_ALL>>8 | unix.ETH_P_ALL&0xff<<8)
		if p.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		i, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		p.to = unix.SockaddrLinklayer{Protocol: all, Ifindex: i.Index}
		return unix.Bind(p.fd, &p.to)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(p.fd) })
	return &dataplane.Link{Name: device, Port: p, Counters: p.Counters}, p
}

func (p *socketPort) Receive(into []*frame.Frame, pool *frame.Pool) (n int) {
	for n < len(into) {
		f := pool.Get()
		if f == nil {
			break
		}
		length, from, err := unix.Recvfrom(p.fd, f.Append(f.Room()), 0)
		if err != nil {
			pool.Put(f)
			break
		}
		if a, ok := from.(*unix.SockaddrLinklayer); ok && a.Pkttype == unix.PACKET_OUTGOING {
			pool.Put(f)
			continue
		}
		f.Truncate(length)
		into[n] = f
		n++
	}
	p.Counters.RxPackets.Add(uint64(n))
	return n
}

func (p *socketPort) Transmit(frames []*frame.Frame, _ *frame.Pool) {
	for _, f := range frames {
		if unix.Sendto(p.fd, f.Head(), 0, &p.to) == nil {
			p.Counters.TxPackets.Add(1)
		}
	}
}

// TestKernelPeer lets two kernels talk through the switch, which takes one end's frames for a guest's: the other end is the kernel's own
// VXLAN device. Both learn, the kernel checks our headers (UDP checksums over IPv6 too) and we check its.
func TestKernelPeer(t *testing.T) {
	need.Program(t, "ip", "ping", "ethtool")
	for _, c := range []struct {
		name       string
		local      netip.Addr
		remote     netip.Addr
		sizes      []string
		ping, from string
	}{
		{"IPv4", netip.MustParseAddr("192.0.2.1"), peer4, []string{"56", "1400", "4000"}, "10.9.0.2", "10.9.0.1"},
		{"IPv6", netip.MustParseAddr("2001:db8::1"), peer6, []string{"56", "1400", "4000"}, "fd09::2", "fd09::1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t)
			guest := namespace(t, "guest")
			err := netlab.Veth(netlab.End{Namespace: l.here, Name: "vm0", MTU: 1450},
				netlab.End{Namespace: guest, Name: "eth0", MAC: "52:54:00:00:00:01", MTU: 1450, Addrs: []string{"10.9.0.1/24", "fd09::1/64"}}, 1)
			if err != nil {
				t.Fatal(err)
			}
			l.ip(l.there, "link", "add", "vx0", "address", "52:54:00:00:00:02", "mtu", "1450", "type", "vxlan", "id", "77", "dstport", "4789",
				"local", c.remote.String(), "remote", c.local.String(), "dev", "peer0")
			l.ip(l.there, "address", "add", "10.9.0.2/24", "dev", "vx0")
			l.ip(l.there, "address", "add", "fd09::2/64", "dev", "vx0", "nodad")
			l.ip(l.there, "link", "set", "vx0", "up")

			// On veth the kernel leaves checksums, the outer ones too, to a device that never computes them.
			for ns, device := range map[*netlab.Namespace]string{l.there: "peer0", guest: "eth0"} {
				if out, err := ns.Run(t.Context(), "ethtool", "-K", device, "tx", "off"); err != nil {
					t.Fatalf("%v\n%s", err, out)
				}
			}

			l.start(Options{Address: c.local})
			w := dataplanetest.NewWorker(t, 512)
			sw := vxlan.NewSwitch([]*dataplane.Worker{w}, vxlan.Options{})
			t.Cleanup(sw.Close)
			up, upPort := newSocketPort(t, l.here, "up0")
			vm, vmPort := newSocketPort(t, l.here, "vm0")
			must := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			must(sw.AddUplink(vxlan.Uplink{Name: "up0", Resolver: l.u}, []*dataplane.Link{up}, []*dataplane.Link{up}))
			must(sw.SetNetwork(vxlan.Network{Name: "blue", VNI: 77, Uplink: "up0", MTU: 1450, Learning: true, Flood: []netip.Addr{c.remote}}))
			must(sw.AttachPort(vxlan.Port{Name: "vm0", Network: "blue", MAC: wire.MAC(0x5254_0000_0001), AntiSpoof: true,
				IPs: []netip.Addr{netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("fd09::1")}}, []*dataplane.Link{vm}))
			w.Do(func() { w.Add(up); w.Add(vm) })
			ran := make(chan error, 1)
			go func() { ran <- w.Run() }()
			t.Cleanup(func() {
				w.Stop()
				if err := <-ran; err != nil {
					t.Error(err)
				}
			})
			l.reaches(c.remote, thereMAC)
			for _, size := range c.sizes { // 4000: the guest cuts it into fragments
				if out, err := guest.Run(t.Context(), "ping", "-c3", "-i0.05", "-W5", "-s"+size, c.ping); err != nil {
					t.Errorf("%v\n%s\nvm0 %v\nup0 %v", err, out, drops(vmPort.Counters), drops(upPort.Counters))
				}
			}
			if out, err := l.there.Run(t.Context(), "ping", "-c1", "-W5", c.from); err != nil {
				t.Errorf("from the peer: %v\n%s", err, out)
			}
			learned := false
			for _, e := range sw.FDB() {
				learned = learned || e.MAC == 0x5254_0000_0002 && e.VTEP == c.remote && e.Age < time.Minute
			}
			if !learned {
				t.Errorf("the peer's guest was not learned: %+v", sw.FDB())
			}
			for _, counter := range []string{"rx_errors", "rx_dropped", "tx_errors"} {
				if out, err := l.there.Run(t.Context(), "cat", "/sys/class/net/vx0/statistics/"+counter); err != nil || strings.TrimSpace(out) != "0" {
					t.Errorf("the kernel's device has %s %s %v", counter, out, err)
				}
			}
		})
	}
}

func drops(c *dataplane.Counters) map[string]uint64 {
	all := map[string]uint64{}
	for _, r := range dataplane.Reasons() {
		if n := c.Drops(r); n > 0 {
			all[r.String()] = n
		}
	}
	return all
}
