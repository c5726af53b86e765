package main

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/shuntio/shunt/dataplane/dataplanetest"
	"github.com/shuntio/shunt/tools/control/config"
	"github.com/shuntio/shunt/vxlan"
)

// newTestEngine makes an engine of workers, which has no AF_XDP.
func newTestEngine(t *testing.T, workers int) *engine {
	t.Helper()
	e := &engine{log: slog.New(slog.DiscardHandler), uplinks: map[string]*uplink{}, networks: map[string]*network{}, ports: map[string]*port{},
		groups: map[string]*volumeGroup{}, volumes: map[string]*volume{}, lapsed: map[string]bool{}, vainly: map[string]bool{}}
	threads := dataplanetest.NewWorkers(t, workers, 64)
	for _, w := range threads {
		e.workers = append(e.workers, &worker{Worker: w})
	}
	e.fabric = vxlan.NewSwitch(threads, vxlan.Options{})
	t.Cleanup(e.fabric.Close)
	t.Cleanup(func() { e.removeAll(context.Background()) })
	return e
}

// testPort configures a port of network blue whose socket is in a directory.
func testPort(name, dir string, mac byte) config.Port {
	return config.Port{Name: name, Network: "blue", Socket: filepath.Join(dir, name), Role: config.RoleServer, Mode: 0o600, Queues: 1,
		MAC: config.MAC{2, 0, 0, 0, 0, mac}, LearnLimit: 8}
}

// remove removes a port.
func remove(t *testing.T, e *engine, port string, again bool) error {
	t.Helper()
	return e.RemovePorts(t.Context(), []string{port}, []bool{again})[0]
}
