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
	const memory = 128 // MiB, of each
	for name, front := range map[string]VirtioUser{
		"split":         {},
		"not mergeable": {NotMergeable: true},
		"packed":        {Packed: true, InOrder: true},
		"huge pages":    {},
	} {
		t.Run(name, func(t *testing.T) {
			huge := name == "huge pages"
			if huge {
				reserve(t, 2*memory/2)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
			defer cancel()
			front.Path = filepath.Join(t.TempDir(), "vhost.sock")
			front.MAC = "02:00:00:00:00:01"
			back := testpmd(t, TestpmdOptions{Name: "back", Devices: []string{"net_vhost0,iface=" + front.Path}, Mode: "rxonly", CPU: 0, MemoryMiB: memory, HugePages: huge})
			sender := testpmd(t, TestpmdOptions{Name: "front", Devices: []string{front.String()}, Mode: "txonly", CPU: 1, MemoryMiB: memory, HugePages: huge, Args: []string{"--txpkts=64"}})
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

// testpmd sends over AF_XDP, as the peer whose speed ours is compared with:
// what it says it sent has left its netdev.
func TestTestpmdOverAFXDP(t *testing.T) {
	need.Program(t, "dpdk-testpmd")
	a, b := underlay(t)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	before, err := NetdevStats(a, "up")
	if err != nil {
		t.Fatal(err)
	}
	sender := testpmd(t, TestpmdOptions{
		Name: "afxdp", Namespace: a, Devices: []string{"net_af_xdp0,iface=up,busy_budget=0"}, Mode: "txonly", CPU: 1, Args: []string{"--txpkts=64"},
	})
	if err := sender.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := sender.WaitStats(ctx, 0, func(s PortStats) bool { return s.Sent >= 50_000 }); err != nil {
		t.Fatal(err)
	}
	sent, err := sender.Stop(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for {
		after, err := NetdevStats(a, "up")
		if err != nil {
			t.Fatal(err)
		}
		// The kernel sends some of its own; testpmd's ring may hold some back.
		if after.TxPackets-before.TxPackets+2048 >= sent[0].Sent {
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("testpmd sent %d packets, the device %d", sent[0].Sent, after.TxPackets-before.TxPackets)
		}
	}
	if got, err := NetdevStats(b, "up"); err != nil || got.RxPackets < 40_000 {
		t.Errorf("the far device received %d, %v", got.RxPackets, err)
	}
}

// reserve takes huge pages until the test ends, or skips it on a machine that
// has none to give.
func reserve(t *testing.T, pages int) {
	t.Helper()
	release, err := ReserveHugePages(pages)
	if err != nil {
		need.Missing(t, "%v", err)
	}
	t.Cleanup(func() {
		if err := release(); err != nil {
			t.Error(err)
		}
	})
}
