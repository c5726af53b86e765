package lab

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/lab/peer"
)

// A front-end is killed in the middle of a burst, again and again; every time
// the next one is served, and no packet the daemon took is lost uncounted.
func TestFrontEndKilledMidBurst(t *testing.T) {
	ctx := within(t, 3*time.Minute)
	front := peer.VirtioUser{Path: filepath.Join(t.TempDir(), "guest.sock"), MAC: balanceGuest}
	b := newBalance(t, ctx, front.Path)
	before := b.read(t)
	var sent uint64
	for round := range 4 {
		guest := pmd(t, peer.TestpmdOptions{
			Name: "guest", Devices: []string{front.String()}, Mode: "txonly", CPU: 1,
			Args: []string{"--eth-peer=0," + balancePeer, "--txpkts=1400"},
		})
		if err := b.d.WaitPort(ctx, "guest", control.StateConnected); err != nil {
			t.Fatal(err)
		}
		if err := guest.Start(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := guest.WaitStats(ctx, 0, func(s peer.PortStats) bool { return s.Sent > 20_000 }); err != nil {
			t.Fatal(err)
		}
		if round < 3 {
			guest.Kill()
			if err := b.d.WaitPort(ctx, "guest", control.StateDisconnected); err != nil {
				t.Fatal(err)
			}
			sent += 20_000
			continue
		}
		stats, err := guest.Stop(ctx)
		if err != nil {
			t.Fatal(err)
		}
		sent += stats[0].Sent
	}
	after := b.settled(t, func(l ledger) bool {
		return l.port.RxPackets >= sent && l.uplink.TxPackets+l.port.Dropped()+l.uplink.Dropped() >= l.port.RxPackets && l.host.tx >= l.uplink.TxPackets
	})
	received := after.port.RxPackets - before.port.RxPackets
	transmitted := after.uplink.TxPackets - before.uplink.TxPackets
	dropped := after.port.Dropped() - before.port.Dropped() + after.uplink.Dropped() - before.uplink.Dropped()
	refused := after.uplink.Drops["uplink-busy"] - before.uplink.Drops["uplink-busy"]
	t.Logf("at least %d sent, %d received, %d transmitted, dropped %v %v", sent, received, transmitted, after.port.Drops, after.uplink.Drops)
	if received < sent {
		t.Errorf("%d packets were sent at least, %d received", sent, received)
	}
	equal(t, "packets the port received, and those transmitted or dropped", received, transmitted+dropped-refused)
	equal(t, "packets the uplink transmitted, and those the host's device sent or refused", transmitted, after.host.tx-before.host.tx+refused)
}
