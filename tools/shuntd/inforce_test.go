package main

import (
	"errors"
	"slices"
	"testing"

	"github.com/shuntio/shunt/bpf"
	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/dataplanetest"
	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/config"
	"github.com/shuntio/shunt/tools/lab/netlab"
	"github.com/shuntio/shunt/tools/need"
	"github.com/shuntio/shunt/vxlan"
)

// steeredUplinks gives an engine two uplinks with XDP programs and no sockets, in a namespace.
func steeredUplinks(t *testing.T, e *engine) {
	t.Helper()
	need.Root(t)
	ns, err := netlab.NewNamespace("inforce")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	if err := netlab.Veth(netlab.End{Namespace: ns, Name: "up0"}, netlab.End{Namespace: ns, Name: "up1"}, 0); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"up0", "up1"} {
		u := &uplink{config: config.Uplink{Name: name}, heard: &dataplane.Counters{}}
		err := ns.Do(func() (err error) {
			u.program, err = bpf.Attach(bpf.Options{Interface: name, Mode: bpf.Generic, PinPath: ns.BPF() + "/shunt"})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		program := u.program
		t.Cleanup(func() { _ = program.Close() })
		link, _ := dataplanetest.NewLink(name)
		if err := e.fabric.AddUplink(vxlan.Uplink{Name: name, Resolver: &vxlan.Fixed{}}, nil, []*dataplane.Link{link}); err != nil {
			t.Fatal(err)
		}
		e.uplinks[name] = u
	}
}

// What cannot be given back is no error of a change that is in force: the controller would keep the object as it was, and be refused for ever. Before
// anything is in force an error leaves everything as it was.
func TestChangesInForceDoNotFail(t *testing.T) {
	dir := ringStates(t)
	e := newTestEngine(t, 2)
	steeredUplinks(t, e)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	network := func(name, uplink string, vni uint32) config.Network {
		return config.Network{Name: name, Uplink: uplink, VNI: vni, MTU: 1400, LearnLimit: 8}
	}
	for _, n := range []config.Network{network("blue", "up0", 7), network("green", "up0", 8), network("red", "up1", 9)} {
		must(e.AddNetwork(t.Context(), n))
	}
	a, b := testPort("a", dir, 1), testPort("b", dir, 2)
	a.Workers, b.Workers = []int{0}, []int{0}
	must(e.AddPort(t.Context(), a))
	must(e.AddPort(t.Context(), b))

	// From here on no table of up0 can be written.
	_ = e.uplinks["up0"].program.Close()

	b.Workers = []int{1}
	if err := e.UpdatePort(t.Context(), b); err == nil {
		t.Error("b's frames are steered to another worker by a program that is closed")
	}
	if p := e.ports["b"]; !slices.Equal(p.workers(), []int{0}) || !slices.Equal(p.config.Workers, []int{0}) {
		t.Errorf("b's update was refused, and it is with workers %v, configured %v", p.workers(), p.config.Workers)
	}
	a.Network = "red"
	must(e.UpdatePort(t.Context(), a))
	if c := e.ports["a"].config; c.Network != "red" {
		t.Errorf("a is in %s", c.Network)
	}
	must(e.UpdateNetwork(t.Context(), network("green", "up1", 10)))
	if err := e.UpdateNetwork(t.Context(), network("green", "up0", 11)); err == nil {
		t.Error("green's frames are steered by a program that is closed")
	}
	if c := e.networks["green"].config; c.Uplink != "up1" || c.VNI != 10 {
		t.Errorf("green's update was refused, and it has %s and VNI %d", c.Uplink, c.VNI)
	}

	if err := e.RemoveNetwork(t.Context(), "blue"); err == nil || e.networks["blue"] == nil {
		t.Errorf("blue, which has a port, was removed: %v", err)
	}
	if err := e.RemoveUplink(t.Context(), "up0"); err == nil || e.uplinks["up0"] == nil {
		t.Errorf("up0, which has a network, was removed: %v", err)
	}
	for _, step := range []struct {
		name   string
		remove func() error
	}{
		{"port b", func() error { return remove(t, e, "b", false) }},
		{"network blue", func() error { return e.RemoveNetwork(t.Context(), "blue") }},
		{"uplink up0", func() error { return e.RemoveUplink(t.Context(), "up0") }},
	} {
		if err := step.remove(); err != nil {
			t.Errorf("%s: %v", step.name, err)
		}
		if err := step.remove(); !errors.Is(err, control.ErrNotFound) {
			t.Errorf("%s, removed twice: %v", step.name, err)
		}
	}
}
