package lab

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/shuntio/shunt/tools/lab/guest"
	"github.com/shuntio/shunt/tools/lab/peer"
)

// A guest against DPDK's vhost, without our daemon: what the laboratory itself
// can show. testpmd answers ARP and echo requests (icmpecho); then it goes away
// and QEMU finds the next one.
func TestGuestAgainstTestpmd(t *testing.T) {
	t.Parallel() // beside others of which most is waiting for a guest
	ctx := within(t, 3*time.Minute)
	socket := filepath.Join(t.TempDir(), "vhost.sock")
	echo := func(name string) *peer.Testpmd {
		p := pmd(t, peer.TestpmdOptions{Name: name, Devices: []string{"net_vhost0,iface=" + socket}, Mode: "icmpecho", CPU: 1})
		if err := p.Start(ctx); err != nil {
			t.Fatal(err)
		}
		return p
	}
	back := echo("first")
	g := boot(t, guest.Options{Name: "guest", Image: image(t), NICs: []guest.NIC{{Socket: socket, MAC: "52:54:00:00:00:01", Reconnect: true}}})
	address(t, g, "eth0", 1500, "10.0.0.1/24")
	pings(t, ctx, g, "10.0.0.2", 56, 1400)

	back.Kill()
	silence(t, ctx, g, "10.0.0.2")
	if err := os.Remove(socket); err != nil { // testpmd refuses one that is there
		t.Fatal(err)
	}
	echo("second")
	reach(t, ctx, g, "10.0.0.2")
	if err := g.Reset(ctx); err != nil {
		t.Fatal(err)
	}
	address(t, g, "eth0", 1500, "10.0.0.1/24")
	pings(t, ctx, g, "10.0.0.2", 56)
}
