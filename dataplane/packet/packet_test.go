package packet

import (
	"bytes"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/wire"
	"github.com/shuntio/shunt/tools/lab/netlab"
	"github.com/shuntio/shunt/tools/need"
	"golang.org/x/sys/unix"
)

// A broadcast and a multicast arrive with their checksums marked as missing; a unicast, and what the host itself sends, do not.
func TestReceiveMulticast(t *testing.T) {
	need.Root(t)
	here, err := netlab.NewNamespace("packet-a")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { here.Close() })
	there, err := netlab.NewNamespace("packet-b")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { there.Close() })
	err = netlab.Veth(netlab.End{Namespace: here, Name: "a0", Addrs: []string{"192.0.2.1/24"}}, netlab.End{Namespace: there, Name: "b0", Addrs: []string{"192.0.2.2/24"}}, 0)
	if err != nil {
		t.Fatal(err)
	}

	counters := &dataplane.Counters{}
	var p *Port
	if err := here.Do(func() error {
		ifi, err := net.InterfaceByName("a0")
		if err != nil {
			return err
		}
		p, err = Open(ifi.Index, counters)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer p.Close()

	say := func(ns *netlab.Namespace, to, what string) {
		t.Helper()
		if err := ns.Do(func() error {
			c, err := net.ListenPacket("udp4", ":0") // Go allows broadcast on every UDP socket
			if err != nil {
				return err
			}
			defer c.Close()
			addr, err := net.ResolveUDPAddr("udp4", to)
			if err != nil {
				return err
			}
			_, err = c.WriteTo([]byte(what), addr)
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	say(here, "192.0.2.255:7", "our own broadcast")
	say(there, "192.0.2.1:7", "a unicast")
	say(there, "192.0.2.255:7", "a broadcast")

	memory, err := frame.NewMemory(make([]byte, 32*frame.ChunkSize))
	if err != nil {
		t.Fatal(err)
	}
	pool, err := memory.NewPool(0, 32)
	if err != nil {
		t.Fatal(err)
	}
	heard := 0
	for deadline := time.Now().Add(10 * time.Second); heard == 0; {
		if time.Now().After(deadline) {
			t.Fatal("the broadcast did not arrive")
		}
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(p.FD()), Events: unix.POLLIN}}, 1000)
		var into [dataplane.Quantum]*frame.Frame
		n := p.Receive(into[:], pool)
		for _, f := range into[:n] {
			if f.Head()[0]&1 == 0 {
				t.Errorf("unicast %x", f.Head())
			}
			if bytes.Contains(f.Head(), []byte("our own")) {
				t.Error("the host's own broadcast came back")
			}
			if bytes.HasSuffix(f.Head(), []byte("a broadcast")) {
				heard++
				if !f.Checksum.Needed || f.Checksum.Start != 34 || f.Checksum.Offset != 6 {
					t.Errorf("checksum %+v; veth leaves that of UDP behind IPv4 to us", f.Checksum)
				}
				if ip := wire.IPv4(f.Head()[14:]); len(ip) < 20 {
					t.Errorf("no IPv4 header in %x", f.Head())
				}
			}
		}
		pool.PutAll(into[:n])
	}
	if pool.Len() != 32 {
		t.Errorf("%d of 32 frames came back", pool.Len())
	}
	if rx := counters.RxPackets.Load(); rx == 0 {
		t.Error("nothing was counted")
	}
}

// What is not the host's own passes the interface's filter as long as somebody wants it.
func TestFilter(t *testing.T) {
	need.Root(t)
	need.Program(t, "ip", "bridge")
	here, err := netlab.NewNamespace("packet-filter")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { here.Close() })
	if err := netlab.Veth(netlab.End{Namespace: here, Name: "a0"}, netlab.End{Namespace: here, Name: "a1"}, 0); err != nil {
		t.Fatal(err)
	}
	var p *Port
	err = here.Do(func() error {
		ifi, err := net.InterfaceByName("a0")
		if err != nil {
			return err
		}
		p, err = Open(ifi.Index, &dataplane.Counters{})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	const mac = "52:54:00:00:00:01"
	passes := func() (unicast, all bool) {
		t.Helper()
		addresses, err := here.Run(t.Context(), "bridge", "fdb", "show", "dev", "a0")
		if err != nil {
			t.Fatal(err)
		}
		link, err := here.Run(t.Context(), "ip", "-d", "link", "show", "a0")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(addresses, mac), strings.Contains(link, "allmulti 1")
	}
	for _, step := range []struct {
		name         string
		do           func() error
		unicast, all bool
	}{
		{"open", func() error { return nil }, false, true},
		{"listen", func() error { return p.Listen([6]byte{0x52, 0x54, 0, 0, 0, 1}) }, true, true},
		{"listen again", func() error { return p.Listen([6]byte{0x52, 0x54, 0, 0, 0, 1}) }, true, true},
		{"ignore", func() error { return p.Ignore([6]byte{0x52, 0x54, 0, 0, 0, 1}) }, false, true},
		{"ignore again", func() error { return p.Ignore([6]byte{0x52, 0x54, 0, 0, 0, 1}) }, false, true},
		{"listen once more", func() error { return p.Listen([6]byte{0x52, 0x54, 0, 0, 0, 1}) }, true, true},
		{"close", func() error { return p.Close() }, false, false},
	} {
		if err := step.do(); err != nil {
			t.Errorf("%s: %v", step.name, err)
		}
		if unicast, all := passes(); unicast != step.unicast || all != step.all {
			t.Errorf("%s: unicasts pass: %v, all multicasts: %v; want %v, %v", step.name, unicast, all, step.unicast, step.all)
		}
	}
}
