package main

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/shuntio/shunt/dataplane/dataplanetest"
	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/config"
	"github.com/shuntio/shunt/tools/need"
	"github.com/shuntio/shunt/vxlan"
)

// A port that is refused leaves nothing open, its rings' state least of all: when what stood in its way is gone, it can be added.
func TestRefusedPortCanBeAdded(t *testing.T) {
	dir, err := os.MkdirTemp("/dev/shm", "shunt")
	if err != nil {
		need.Missing(t, "no tmpfs at /dev/shm: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	defer func(was []string) { statePaths = was }(statePaths)
	statePaths = []string{filepath.Join(dir, "shunt", "rings")}
	workers := dataplanetest.NewWorkers(t, 1, 64)
	e := &engine{
		log: slog.New(slog.DiscardHandler), fabric: vxlan.NewSwitch(workers, vxlan.Options{}), workers: []*worker{{Worker: workers[0]}},
		uplinks: map[string]*uplink{}, networks: map[string]*network{}, ports: map[string]*port{},
	}
	defer e.fabric.Close()
	if err := e.AddNetwork(t.Context(), config.Network{Name: "blue", MTU: 1500, LearnLimit: 8}); err != nil {
		t.Fatal(err)
	}
	a := config.Port{Name: "a", Network: "blue", Socket: filepath.Join(dir, "a"), Role: config.RoleServer, Mode: 0o600, Queues: 1, MAC: config.MAC{2, 0, 0, 0, 0, 1}, LearnLimit: 8}
	b := a
	b.Name, b.Socket = "b", filepath.Join(dir, "b")
	if err := e.AddPort(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	if err := e.AddPort(t.Context(), b); !errors.Is(err, control.ErrConflict) {
		t.Fatalf("two ports have one address: %v", err)
	}
	if err := e.RemovePort(t.Context(), a.Name); err != nil {
		t.Fatal(err)
	}
	if err := e.AddPort(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	if err := e.RemovePort(t.Context(), b.Name); err != nil {
		t.Fatal(err)
	}
}
