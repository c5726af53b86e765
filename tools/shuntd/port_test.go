package main

import (
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/shuntio/shunt/dataplane/dataplanetest"
	"github.com/shuntio/shunt/tools/control/config"
	"github.com/shuntio/shunt/vxlan"
)

// A socket's mode changes under its guest, and not if the port is refused for another reason.
func TestPortChangesItsSocket(t *testing.T) {
	defer func(was []string) { statePaths = was }(statePaths)
	statePaths = nil
	workers := dataplanetest.NewWorkers(t, 1, 64)
	e := &engine{
		log: slog.New(slog.DiscardHandler), fabric: vxlan.NewSwitch(workers, vxlan.Options{}), workers: []*worker{{Worker: workers[0]}},
		uplinks: map[string]*uplink{}, networks: map[string]*network{}, ports: map[string]*port{},
	}
	defer e.fabric.Close()
	if err := e.AddNetwork(t.Context(), config.Network{Name: "blue", MTU: 1500, LearnLimit: 8}); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	a := config.Port{Name: "a", Network: "blue", Socket: filepath.Join(dir, "a"), Role: config.RoleServer, Mode: 0o600, Queues: 1, MAC: config.MAC{2, 0, 0, 0, 0, 1}, LearnLimit: 8}
	b := a
	b.Name, b.Socket, b.MAC = "b", filepath.Join(dir, "b"), config.MAC{2, 0, 0, 0, 0, 2}
	for _, c := range []config.Port{a, b} {
		if err := e.AddPort(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := e.RemovePort(t.Context(), c.Name); err != nil {
				t.Error(err)
			}
		}()
	}
	mode := func(want fs.FileMode) {
		t.Helper()
		if info, err := os.Lstat(a.Socket); err != nil || info.Mode().Perm() != want {
			t.Errorf("%v, %v, want %v", info.Mode(), err, want)
		}
	}
	a.Mode = 0o640
	if err := e.UpdatePort(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	mode(0o640)
	a.Mode, a.MAC = 0o666, b.MAC
	if err := e.UpdatePort(t.Context(), a); err == nil {
		t.Fatal("two ports have one address")
	}
	mode(0o640)
}
