package lab

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/vnet/vnettest"
	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/lab/daemon"
	"github.com/shuntio/shunt/tools/lab/netlab"
	"github.com/shuntio/shunt/tools/lab/peer"
)

// site is a daemon in service, whose traffic is to go on whatever is done to it:
//
//	tunnelled  10.0.0.1 ─ p1 ─ blue, VNI 7 ─┐                        ┌─ vx7   10.0.0.2
//	untagged  192.0.2.9 ─ p2 ─ flat ────────┴─ up0 ══════════ far0 ──┴─ far0  192.0.2.2
type site struct {
	host, far           *netlab.Namespace
	dir, config         string
	d                   *daemon.Daemon
	tunnelled, untagged *asker
}

const siteConfig = `workers: {idle: interrupt}
uplinks: [{name: up0, interface: up0}]
networks:
  - {name: blue, vni: 7, uplink: up0, flood: [192.0.2.2]}
  - {name: flat, uplink: up0}
ports:
  - {name: p1, network: blue, socket: DIR/p1.sock, mac: "52:54:00:00:00:01"}
  - {name: p2, network: flat, socket: DIR/p2.sock, mac: "52:54:00:00:00:02"}
`

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{host: namespace(t, "host"), far: namespace(t, "far")}
	var err error
	if s.dir, err = os.MkdirTemp("", "bad"); err != nil { // not t.TempDir, whose path is too long for a socket's
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(s.dir) })
	s.join(t, "up0")
	s.config = strings.ReplaceAll(siteConfig, "DIR", s.dir)
	s.d = start(t, s.host, "shuntd", s.config)
	s.tunnelled = connect(t, filepath.Join(s.dir, "p1.sock"), "52:54:00:00:00:01", "10.0.0.1", "10.0.0.2")
	s.untagged = connect(t, filepath.Join(s.dir, "p2.sock"), "52:54:00:00:00:02", "192.0.2.9", "192.0.2.2")
	s.goesOn(t)
	return s
}

// join makes the wire, with a name for its end at the host, and the far end of the tunnel.
func (s *site) join(t *testing.T, device string) {
	t.Helper()
	wire(t, netlab.End{Namespace: s.host, Name: device, Addrs: []string{"192.0.2.1/24"}},
		netlab.End{Namespace: s.far, Name: "far0", Addrs: []string{"192.0.2.2/24"}})
	err := peer.KernelVXLAN(t.Context(), s.far, peer.VXLAN{
		Name: "vx7", VNI: 7, Device: "far0", Local: "192.0.2.2", Remote: "192.0.2.1", Addrs: []string{"10.0.0.2/24"},
	})
	if err != nil {
		t.Fatal(err)
	}
}

// goesOn wants both guests' traffic to flow, at once or again.
func (s *site) goesOn(t *testing.T) {
	t.Helper()
	ctx := within(t, 20*time.Second)
	for name, guest := range map[string]*asker{"tunnelled": s.tunnelled, "untagged": s.untagged} {
		if err := guest.ask(ctx, 0); err != nil {
			t.Fatalf("%s traffic: %v", name, err)
		}
	}
}

// status waits for a condition of the daemon's.
func (s *site) status(t *testing.T, what string, is func(control.UplinkStatus, control.NetworkStatus) bool) (control.UplinkStatus, control.NetworkStatus) {
	t.Helper()
	for ctx := within(t, 20*time.Second); ; time.Sleep(5 * time.Millisecond) {
		status, err := s.d.API().Status(ctx)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if is(status.Uplinks[0], status.Networks[0]) {
			return status.Uplinks[0], status.Networks[0]
		}
		if ctx.Err() != nil {
			t.Fatalf("%s: the status is still %+v %+v", what, status.Uplinks[0], status.Networks[0])
		}
	}
}

// logs waits for a line of the daemon's.
func (s *site) logs(t *testing.T, line string) {
	t.Helper()
	for ctx := within(t, 20*time.Second); !strings.Contains(s.d.Log(), line); time.Sleep(5 * time.Millisecond) {
		if ctx.Err() != nil {
			t.Fatalf("the log has no %q", line)
		}
	}
}

// asker is a guest that asks for one neighbour's address by ARP again and again: what a VM does before all else, and enough to see
// frames go out by broadcast and come in for a known address.
type asker struct {
	guest    *vnettest.Guest
	front    *vhostuser.Frontend
	question []byte
}

// connect connects a guest to a port until the end of the test.
func connect(t *testing.T, socket, mac, own, target string) *asker {
	t.Helper()
	a := &asker{question: arpRequest(mac, own, target)}
	var err error
	if a.guest, err = vnettest.New(vnettest.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.guest.Close)
	if a.front, err = vhostuser.DialWait(within(t, 10*time.Second), socket); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.front.Close() })
	err = a.front.Negotiate(a.guest.Features()|vhostuser.FeatureProtocol, vhostuser.DefaultProtocolFeatures)
	if err == nil {
		err = a.front.SetMemory(a.guest.Region())
	}
	for q := 0; q < 2 && err == nil; q++ {
		err = a.front.StartVring(a.guest.Vring(q))
	}
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// arpRequest is RFC 826's, in Ethernet's broadcast.
func arpRequest(mac, own, target string) []byte {
	hw, _ := net.ParseMAC(mac)
	b := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, hw...)
	b = binary.BigEndian.AppendUint16(b, unix.ETH_P_ARP)
	b = append(b, 0, 1, 8, 0, 6, 4, 0, 1)
	b = append(append(b, hw...), netip.MustParseAddr(own).AsSlice()...)
	return append(append(b, 0, 0, 0, 0, 0, 0), netip.MustParseAddr(target).AsSlice()...)
}

// ask sends the question, with padding up to a length, until it is answered.
func (a *asker) ask(ctx context.Context, length int) error {
	for ctx.Err() == nil {
		if answered, err := a.askOnce(length); answered || err != nil {
			return err
		}
	}
	return fmt.Errorf("no answer: %w", context.Cause(ctx))
}

// askOnce gives an answer the time that it may take.
func (a *asker) askOnce(length int) (answered bool, err error) {
	question := append([]byte(nil), a.question...)
	if more := length - len(question); more > 0 {
		question = append(question, make([]byte, more)...)
	}
	for late := []byte{0}; late != nil && err == nil; { // answers to earlier questions
		late, err = a.guest.Recv()
	}
	if err == nil {
		err = a.guest.Send(question)
	}
	if err != nil {
		return false, err
	}
	for patience := time.Now().Add(300 * time.Millisecond); time.Now().Before(patience); {
		frame, err := a.guest.Recv()
		if err != nil {
			return false, err
		}
		if frame == nil {
			poll := []unix.PollFd{{Fd: int32(a.guest.CallFD(0)), Events: unix.POLLIN}}
			if n, _ := unix.Poll(poll, 10); n > 0 {
				var count [8]byte
				_, _ = unix.Read(a.guest.CallFD(0), count[:])
			}
			continue
		}
		// An answer has us as its target and the one asked for as its sender.
		if len(frame) >= 42 && binary.BigEndian.Uint16(frame[12:]) == unix.ETH_P_ARP && frame[21] == 2 &&
			string(frame[28:32]) == string(a.question[38:42]) && string(frame[38:42]) == string(a.question[28:32]) {
			return true, nil
		}
	}
	return false, nil
}
