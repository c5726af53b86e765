package main

import (
	"log/slog"
	"testing"

	"github.com/shuntio/shunt/bpf"
	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/dataplanetest"
	"github.com/shuntio/shunt/dataplane/xsk"
	"github.com/shuntio/shunt/tools/control/config"
	"github.com/shuntio/shunt/vxlan"
)

// A network whose frames on the wire cannot be had leaves nothing behind, and one that changes stays as it was.
func TestNetworkIsUndone(t *testing.T) {
	e := &engine{
		log: slog.New(slog.DiscardHandler), fabric: vxlan.NewSwitch(dataplanetest.NewWorkers(t, 1, 64), vxlan.Options{}),
		uplinks: map[string]*uplink{}, networks: map[string]*network{}, ports: map[string]*port{},
	}
	defer e.fabric.Close()
	link, _ := dataplanetest.NewLink("up0")
	if err := e.fabric.AddUplink(vxlan.Uplink{Name: "up0", Resolver: &vxlan.Fixed{}}, nil, []*dataplane.Link{link}); err != nil {
		t.Fatal(err)
	}
	// No interface has this index, and so a flat network gets no multicast from it.
	e.uplinks["up0"] = &uplink{program: &bpf.Program{}, device: xsk.Device{Index: 1<<31 - 1}, heard: &dataplane.Counters{}}

	flat := config.Network{Name: "flat", Uplink: "up0", MTU: 1500, LearnLimit: 8}
	if err := e.AddNetwork(t.Context(), flat); err == nil {
		t.Fatal("added")
	}
	if err := e.fabric.RemoveNetwork("flat"); err == nil {
		t.Error("the switch has a network that was refused")
	}
	local := config.Network{Name: "local", MTU: 1400, LearnLimit: 8}
	if err := e.AddNetwork(t.Context(), local); err != nil {
		t.Fatal(err)
	}
	local.Uplink, local.MTU = "up0", 1300
	if err := e.UpdateNetwork(t.Context(), local); err == nil {
		t.Fatal("updated")
	}
	if mtu, err := e.fabric.MTU("local"); err != nil || mtu != 1400 {
		t.Errorf("the switch has an MTU of %d, %v: the update was refused", mtu, err)
	}
	if err := e.fabric.RemoveUplink("up0"); err != nil {
		t.Errorf("the refused ones still use the uplink: %v", err)
	}
	if e.networks["flat"] != nil || e.networks["local"].config.Uplink != "" {
		t.Errorf("the engine has what was refused: %v", e.networks)
	}
}

// A network's MTU is what front-ends of its ports may tell their guests: as it is now, and of the network that the port is in now.
func TestPortsFollowTheirNetworksMTU(t *testing.T) {
	defer func(was []string) { statePaths = was }(statePaths)
	statePaths = nil
	e := newTestEngine(t, 1)
	blue, red := config.Network{Name: "blue", MTU: 1400, LearnLimit: 8}, config.Network{Name: "red", MTU: 1200, LearnLimit: 8}
	for _, n := range []config.Network{blue, red} {
		if err := e.AddNetwork(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	c := testPort("a", t.TempDir(), 1)
	if err := e.AddPort(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	most := func(what string, mtu uint16) {
		t.Helper()
		device := e.ports["a"].device.(*guest).net
		if err := device.SetMTU(mtu); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if device.SetMTU(mtu+1) == nil {
			t.Errorf("%s: a front-end may tell its guest an MTU of %d", what, mtu+1)
		}
	}
	most("at first", 1400)
	for _, blue.MTU = range []int{1500, 1300} {
		if err := e.UpdateNetwork(t.Context(), blue); err != nil {
			t.Fatal(err)
		}
		most("after an update", uint16(blue.MTU))
	}
	c.Network = "red"
	if err := e.UpdatePort(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	most("in another network", 1200)
	if err := e.UpdateNetwork(t.Context(), blue); err != nil {
		t.Fatal(err)
	}
	most("when the one before changes", 1200)
}
