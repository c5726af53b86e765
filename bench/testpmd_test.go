package bench

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/vnet"
	"github.com/shuntio/shunt/tools/lab/peer"
	"github.com/shuntio/shunt/tools/need"
)

// DPDK's virtio-user as both guests: frames that went round and round between two of its ports, through the vhost-user back-end.
func TestGuestToGuestVirtioUser(t *testing.T) {
	need.Root(t)
	need.Program(t, "dpdk-testpmd")
	release, err := peer.ReserveHugePages(256) // 512 MiB
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := release(); err != nil {
			t.Error(err)
		}
	})
	e, err := newEngine(0, dataplane.Poll)
	if err != nil {
		t.Fatal(err)
	}
	defer e.close()
	dir := t.TempDir()
	var links [2]*dataplane.Link
	var devices []string
	for i := range links {
		l := &dataplane.Link{Name: fmt.Sprintf("guest%d", i), Counters: &dataplane.Counters{}}
		port, err := vnet.New(vnet.Options{Worker: e.worker, Counters: l.Counters, Failed: func(err error) { t.Error(err) }})
		if err != nil {
			t.Fatal(err)
		}
		l.Port = port
		path := filepath.Join(dir, l.Name)
		b, err := vhostuser.Listen(vhostuser.Options{Path: path, Log: slog.New(slog.DiscardHandler)}, port)
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		links[i] = l
		devices = append(devices, peer.VirtioUser{Number: i, Path: path, MAC: fmt.Sprintf("52:54:00:00:00:%02x", i+1)}.String())
	}
	fabric, err := e.network(links)
	if err != nil {
		t.Fatal(err)
	}
	defer fabric.Close()
	for _, l := range links {
		e.add(l)
	}
	e.start()

	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	p, err := peer.StartTestpmd(ctx, peer.TestpmdOptions{
		Name: "g2g", Devices: devices, Mode: "mac", CPU: 1, MemoryMiB: 256, HugePages: true,
		Args: []string{"--eth-peer=0,52:54:00:00:00:02", "--eth-peer=1,52:54:00:00:00:01", "--burst=64"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if _, err := p.Command(ctx, "start tx_first 8"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second) // caches, branch predictors
	stats := e.worker.Stats()
	claim(t, func() (float64, Pauses) {
		windows := rates(func() uint64 { return delivered(links) })
		n, busy, began := delivered(links), stats.BusyNanos.Load(), time.Now()
		pauses := collectMeanwhile(ctx, 100, 3*time.Second)
		moved := float64(delivered(links) - n)
		best := quartile(windows())
		t.Logf("%.2f Mpps, best quarter %.2f, %.0f ns busy a frame; %v",
			moved/time.Since(began).Seconds()/1e6, best, float64(stats.BusyNanos.Load()-busy)/moved, pauses)
		return best, pauses
	})
	if _, err := p.Stop(ctx); err != nil {
		t.Fatal(err)
	}
}

func delivered(links [2]*dataplane.Link) uint64 {
	return links[0].Counters.TxPackets.Load() + links[1].Counters.TxPackets.Load()
}
