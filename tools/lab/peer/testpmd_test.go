package peer

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/shuntio/shunt/tools/need"
)

func testpmd(t *testing.T, o TestpmdOptions) *Testpmd {
	t.Helper()
	pmd, err := StartTestpmd(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pmd.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(pmd.Output())
		}
	})
	return pmd
}

// Every packet testpmd's virtio-user sends arrives at testpmd's vhost or is
// counted: the two programs' own balance, before ours comes between them.
func TestTestpmdAgainstItself(t *testing.T) {
	need.Root(t)
	need.Program(t, "dpdk-testpmd")
	for name, front := range map[string]VirtioUser{
		"split":         {},
		"not mergeable": {NotMergeable: true},
		"packed":        {Packed: true, InOrder: true},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
			defer cancel()
			front.Path = filepath.Join(t.TempDir(), "vhost.sock")
			front.MAC = "02:00:00:00:00:01"
			back := testpmd(t, TestpmdOptions{Name: "back", Devices: []string{"net_vhost0,iface=" + front.Path}, Mode: "rxonly", CPU: 0})
			sender := testpmd(t, TestpmdOptions{Name: "front", Devices: []string{front.String()}, Mode: "txonly", CPU: 1, Args: []string{"--txpkts=64"}})
			if err := back.Start(ctx); err != nil {
				t.Fatal(err)
			}
			if err := sender.Start(ctx); err != nil {
				t.Fatal(err)
			}
			const packets = 100_000
			if _, err := sender.WaitStats(ctx, 0, func(s PortStats) bool { return s.Sent >= packets }); err != nil {
				t.Fatal(err)
			}
			sent, err := sender.Stop(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if sent[0].Sent < packets {
				t.Errorf("sent %d packets, want at least %d", sent[0].Sent, packets)
			}
			if _, err := back.WaitStats(ctx, 0, func(s PortStats) bool { return s.Received+s.Missed >= sent[0].Sent }); err != nil {
				t.Fatal(err)
			}
			received, err := back.Stop(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if received[0].Received != sent[0].Sent {
				t.Errorf("%d packets were sent, %d arrived", sent[0].Sent, received[0].Received)
			}
			t.Logf("%d packets", received[0].Received)
			if _, err := sender.Command(ctx, "nonsense"); err == nil {
				t.Error("a command testpmd does not know gave no error")
			}
		})
	}
}
