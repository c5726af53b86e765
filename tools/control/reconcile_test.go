package control_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"pgregory.net/rapid"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/config"
	"github.com/shuntio/shunt/tools/control/controltest"
	"github.com/shuntio/shunt/vxlan/acl"
)

func parse(t testing.TB, text string) *config.Config {
	t.Helper()
	c, err := config.Parse("test.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func start(e *controltest.Engine) *control.Controller {
	fixed := &config.Config{}
	if err := config.Check(fixed); err != nil { // fills in the defaults
		panic(err)
	}
	return control.New(e, fixed, slog.New(slog.DiscardHandler))
}

// TestSteps shows the calls that typical changes make, in their order.
func TestSteps(t *testing.T) {
	const (
		up    = "uplinks: [{name: up0, interface: eth1}]\n"
		blue  = "networks: [{name: blue, uplink: up0, vni: 7}]\n"
		ports = "ports: [{name: p1, network: blue, socket: /a, mac: 52:54:00:00:00:01}, {name: p2, network: blue, socket: /b, mac: 52:54:00:00:00:02}]\n"
		gold  = "volume-groups: [{name: gold, limits: {iops: 5}}]\n"
		disks = "volumes: [{name: v1, socket: /v1, source: 'nbd://a'}, {name: v2, socket: /v2, source: 'nbd://b', volume-group: gold}]\n"
	)
	for _, test := range []struct{ name, was, want, calls string }{
		{"everything new", "", up + blue + ports, "AddUplink up0, AddNetwork blue, AddPort p1, AddPort p2"},
		{"nothing", up + blue + ports, up + blue + ports, ""},
		{"everything gone", up + blue + ports, "", "RemovePort p1, RemovePort p2, RemoveNetwork blue, RemoveUplink up0"},
		{"uplink replaced", up + blue + ports, "uplinks: [{name: up0, interface: eth2}]\n" + blue + ports,
			"UpdateNetwork blue, RemoveUplink up0, AddUplink up0, UpdateNetwork blue"},
		{"uplink renamed", up + blue + ports, "uplinks: [{name: up1, interface: eth1}]\nnetworks: [{name: blue, uplink: up1, vni: 7}]\n" + ports,
			"UpdateNetwork blue, RemoveUplink up0, AddUplink up1, UpdateNetwork blue"},
		{"network renamed", up + blue + ports, up + "networks: [{name: red, uplink: up0, vni: 7}]\n" + strings.ReplaceAll(ports, "blue", "red"),
			"UpdateNetwork blue, AddNetwork red, UpdatePort p1, UpdatePort p2, RemoveNetwork blue"},
		{"vni changed", up + blue + ports, up + "networks: [{name: blue, uplink: up0, vni: 8}]\n" + ports, "UpdateNetwork blue"},
		{"vni traded", up + "networks: [{name: a, uplink: up0, vni: 7}, {name: b, uplink: up0, vni: 8}]\n",
			up + "networks: [{name: a, uplink: up0, vni: 8}, {name: b, uplink: up0, vni: 7}]\n",
			"UpdateNetwork a, UpdateNetwork b, UpdateNetwork a, UpdateNetwork b"},
		{"vni inherited", up + "networks: [{name: a, uplink: up0, vni: 7}]\n", up + "networks: [{name: b, uplink: up0, vni: 7}]\n",
			"RemoveNetwork a, AddNetwork b"},
		{"address traded", up + blue + ports, up + blue + strings.NewReplacer("00:01", "00:02", "00:02", "00:01").Replace(ports),
			"RemovePort p1 for now, RemovePort p2 for now, AddPort p1, AddPort p2"},
		{"address passed on", up + blue + ports, up + blue + strings.NewReplacer("00:01", "00:02", "00:02", "00:03").Replace(ports),
			"RemovePort p1 for now, UpdatePort p2, AddPort p1"},
		{"socket changed", up + blue + ports, up + blue + strings.Replace(ports, "/a", "/c", 1), "RemovePort p1, AddPort p1"},
		{"mode changed", up + blue + ports, up + blue + strings.Replace(ports, "/a", "/a, mode: 0600", 1), "UpdatePort p1"},
		{"moved to an interface", up + blue + ports, up + blue + strings.Replace(ports, "socket: /a", "interface: veth1", 1), "RemovePort p1, AddPort p1"},
		{"sockets traded", up + blue + ports, up + blue + strings.NewReplacer("/a", "/b", "/b", "/a").Replace(ports),
			"RemovePort p1 for now, RemovePort p2 for now, AddPort p1, AddPort p2"},
		{"interface of an uplink", "uplinks: [{name: up0, interface: eth1}]\n" + "networks: [{name: blue}]\n",
			"networks: [{name: blue}]\n" + strings.Replace(ports, "socket: /a", "interface: eth1", 1), "RemoveUplink up0, AddPort p1, AddPort p2"},
		{"interface for an uplink", "networks: [{name: blue}]\n" + strings.Replace(ports, "socket: /a", "interface: eth1", 1), up + "networks: [{name: blue}]\n" + ports,
			"RemovePort p1, AddUplink up0, AddPort p1"},
		{"moved to other workers", up + blue + ports, up + blue + strings.Replace(ports, "/a", "/a, workers: [1]", 1), "UpdatePort p1"},
		{"acl changed", up + blue + ports, up + blue + strings.Replace(ports, "/a", "/a, acl: {rules: [allow in]}", 1), "UpdatePort p1"},
		{"everything of volumes new", "", gold + disks, "AddVolumeGroup gold, AddVolume v1, AddVolume v2"},
		{"everything of volumes gone", gold + disks, "", "RemoveVolume v1, RemoveVolume v2, RemoveVolumeGroup gold"},
		{"source changed", gold + disks, gold + strings.Replace(disks, "//a", "//b", 1), "RemoveVolume v1, AddVolume v1"},
		{"policy and limits changed", gold + disks, gold + strings.Replace(disks, "//a'", "//a', on-error: fail, timeout: 3s, durability: fua, mode: 0600, limits: {iops: 7}", 1),
			"UpdateVolume v1"},
		{"group changed", gold + disks, strings.Replace(gold, "5", "6", 1) + disks, "UpdateVolumeGroup gold"},
		{"group left", gold + disks, strings.Replace(disks, ", volume-group: gold", "", 1), "UpdateVolume v2, RemoveVolumeGroup gold"},
		{"group renamed", gold + disks, strings.ReplaceAll(gold+disks, "gold", "silver"), "AddVolumeGroup silver, UpdateVolume v2, RemoveVolumeGroup gold"},
		{"sockets of volumes traded", gold + disks, gold + strings.NewReplacer("/v1", "/v2", "/v2", "/v1").Replace(disks),
			"RemoveVolume v1, RemoveVolume v2, AddVolume v1, AddVolume v2"},
		{"socket from a port", "networks: [{name: blue}]\n" + ports, "networks: [{name: blue}]\nvolumes: [{name: v1, socket: /a, source: 'nbd://a'}]\n" +
			"ports: [{name: p2, network: blue, socket: /b, mac: 52:54:00:00:00:02}]\n", "RemovePort p1, AddVolume v1"},
		{"socket for a port", "networks: [{name: blue}]\nvolumes: [{name: v1, socket: /a, source: 'nbd://a'}]\n" +
			"ports: [{name: p2, network: blue, socket: /b, mac: 52:54:00:00:00:02}]\n", "networks: [{name: blue}]\n" + ports, "RemoveVolume v1, AddPort p1"},
		{"order changed", "networks: [{name: a}, {name: b}]", "networks: [{name: b}, {name: a}]", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := &controltest.Engine{}
			c := start(e)
			if _, err := c.Apply(t.Context(), parse(t, test.was)); err != nil {
				t.Fatal(err)
			}
			e.Calls()
			if _, err := c.Apply(t.Context(), parse(t, test.want)); err != nil {
				t.Fatal(err)
			}
			if calls := strings.Join(e.Calls(), ", "); calls != test.calls {
				t.Errorf("got  %s\nwant %s", calls, test.calls)
			}
			if broken := e.Broken(); broken != nil {
				t.Error(broken)
			}
			if want := parse(t, test.want); !reflect.DeepEqual(c.Config(), want) {
				t.Errorf("runs %+v\nwant %+v", c.Config(), want)
			}
		})
	}
}

// TestFailures shows what is left when one call fails, and what the operator reads.
func TestFailures(t *testing.T) {
	const was = `
uplinks: [{name: up0, interface: eth1}]
networks: [{name: blue, uplink: up0, vni: 7}]
ports: [{name: p1, network: blue, socket: /a, mac: 52:54:00:00:00:01}]
`
	for _, test := range []struct{ name, want, fail, changes string }{
		{"new uplink", "uplinks: [{name: up0, interface: eth1}, {name: up1, interface: eth2}]\nnetworks: [{name: blue, uplink: up0, vni: 7}, {name: red, uplink: up1, vni: 7}]\n" +
			"ports: [{name: p1, network: red, socket: /a, mac: 52:54:00:00:00:01}]",
			"AddUplink up1", "up0 unchanged, up1 failed: no, blue unchanged, red failed: its uplink up1 is not there, p1 failed: its network red is not there"},
		{"uplink put back", strings.Replace(was, "eth1", "eth2", 1), "AddUplink up0 1",
			"up0 failed: no (it is as it was before), blue updated, p1 unchanged"},
		{"uplink lost", strings.Replace(was, "eth1", "eth2", 1), "AddUplink up0",
			"up0 failed: no (and what it was before could not be restored: no), " +
				"blue failed: its uplink up0 is not there (and what it was before could not be restored: its uplink up0 is not there), p1 unchanged"},
		{"port put back", strings.Replace(was, "/a", "/b", 1), "AddPort p1 1", "up0 unchanged, blue unchanged, p1 failed: no (it is as it was before)"},
		{"port stays", "", "RemovePort p1", "up0 removed, blue failed: port p1 is still in it " +
			"(and what it was before could not be restored: its uplink up0 is not there), p1 failed: no"},
		{"network not parked", strings.Replace(was, "eth1", "eth2", 1), "UpdateNetwork blue",
			"up0 failed: network blue still uses it, blue failed: no, p1 unchanged"},
	} {
		apart(t, test.name, func(t *testing.T) {
			e := &controltest.Engine{}
			c := start(e)
			if _, err := c.Apply(t.Context(), parse(t, was)); err != nil {
				t.Fatal(err)
			}
			call, once := strings.CutSuffix(test.fail, " 1")
			failed := 0
			e.Fail = func(method, name string) error {
				if method+" "+name == call && (!once || failed == 0) {
					failed++
					return errors.New("no")
				}
				return nil
			}
			changes, err := c.Apply(t.Context(), parse(t, test.want))
			var list []string
			for _, change := range changes {
				s := change.Name + " " + string(change.Action)
				if change.Error != "" {
					s += ": " + change.Error
				}
				list = append(list, s)
			}
			if got := strings.Join(list, ", "); got != test.changes {
				t.Errorf("got  %s\nwant %s", got, test.changes)
			}
			var failure *control.FailedError
			if !errors.As(err, &failure) || len(c.Status().Failed) != len(failure.Changes) {
				t.Errorf("%v, and the status tells %v", err, c.Status().Failed)
			}
			checkHeld(t, e, c.Config())

			// The next time all goes well.
			e.Fail = nil
			if _, err := c.Apply(t.Context(), parse(t, test.want)); err != nil || len(c.Status().Failed) != 0 {
				t.Errorf("again: %v", err)
			}
			checkHeld(t, e, parse(t, test.want))
		})
	}
}

// apart runs a test in a bubble of its own time, in which what failed is not tried again by itself.
func apart(t *testing.T, name string, test func(t *testing.T)) {
	t.Run(name, func(t *testing.T) { synctest.Test(t, test) })
}

// checkApart is rapid.Check for a property in such a bubble.
func checkApart(t *testing.T, property func(r *rapid.T)) {
	rapid.Check(t, func(r *rapid.T) {
		var failure any // is for rapid's goroutine
		synctest.Test(t, func(*testing.T) {
			defer func() { failure = recover() }()
			property(r)
		})
		if failure != nil {
			panic(failure)
		}
	})
}

// checkHeld compares what the engine holds with a configuration, and its complaints with none.
func checkHeld(t interface {
	Helper()
	Errorf(string, ...any)
}, e *controltest.Engine, c *config.Config) {
	t.Helper()
	uplinks, networks, ports := e.Held()
	same := len(uplinks) == len(c.Uplinks) && len(networks) == len(c.Networks) && len(ports) == len(c.Ports)
	for _, u := range c.Uplinks {
		same = same && reflect.DeepEqual(uplinks[u.Name], u)
	}
	for _, n := range c.Networks {
		same = same && reflect.DeepEqual(networks[n.Name], n)
	}
	for _, p := range c.Ports {
		same = same && reflect.DeepEqual(ports[p.Name], p)
	}
	groups, volumes := e.HeldVolumes()
	same = same && len(groups) == len(c.VolumeGroups) && len(volumes) == len(c.Volumes)
	for _, g := range c.VolumeGroups {
		same = same && groups[g.Name] == g
	}
	for _, v := range c.Volumes {
		same = same && reflect.DeepEqual(volumes[v.Name], v)
	}
	if !same {
		t.Errorf("the engine holds %v %v %v,\nnot %+v", uplinks, networks, ports, c)
	}
	if broken := e.Broken(); broken != nil {
		t.Errorf("%v", broken)
	}
}

// TestReconcile goes from one random configuration to the next, with calls that fail at random. Names, VNIs, addresses
// and sockets are few, so that objects trade them all the time.
func TestReconcile(t *testing.T) {
	checkApart(t, func(t *rapid.T) {
		e := &controltest.Engine{}
		c := start(e)
		for range rapid.IntRange(1, 6).Draw(t, "rounds") {
			was := c.Config()
			want := drawConfig(t)
			if err := config.Check(want); err != nil {
				t.Fatalf("the generator made a bad configuration: %v", err)
			}
			failures := rapid.SampledFrom([]int{0, 0, 20, 60}).Draw(t, "failures")
			e.Fail = func(method, name string) error {
				if failures > 0 && rapid.IntRange(1, 100).Draw(t, method) <= failures {
					return errors.New("no")
				}
				return nil
			}
			e.Calls()
			changes, err := c.Apply(context.Background(), want)
			var failed *control.FailedError
			if err != nil && !errors.As(err, &failed) {
				t.Fatal(err)
			}
			checkHeld(t, e, c.Config())
			if err == nil && !reflect.DeepEqual(c.Config(), want) {
				t.Fatalf("all went well, but it runs\n%+v, not\n%+v", c.Config(), want)
			}
			if failures == 0 && err != nil {
				t.Fatalf("no call failed, but: %v", err)
			}
			checkUntouched(t, e.Calls(), was, want)
			for _, change := range changes {
				if (change.Action == control.Failed) != (change.Error != "") {
					t.Fatalf("%+v", change)
				}
			}
		}
		e.Fail = nil
		if _, err := c.Apply(context.Background(), &config.Config{}); err != nil {
			t.Fatal(err)
		}
		checkHeld(t, e, &config.Config{})
	})
}

// checkUntouched asserts that no call was made for what is the same before and after.
func checkUntouched(t *rapid.T, calls []string, was, want *config.Config) {
	touched := func(what string) bool {
		return slices.ContainsFunc(calls, func(c string) bool { return strings.HasSuffix(strings.TrimSuffix(c, " for now"), what) })
	}
	changed := map[string]bool{}
	for _, u := range slices.Concat(was.Uplinks, want.Uplinks) {
		changed[u.Name] = !contains(was.Uplinks, u) || !contains(want.Uplinks, u)
		if !changed[u.Name] && touched("Uplink "+u.Name) {
			t.Fatalf("uplink %s did not change: %v", u.Name, calls)
		}
	}
	for _, n := range want.Networks {
		if contains(was.Networks, n) && !changed[n.Uplink] && touched("Network "+n.Name) {
			t.Fatalf("network %s did not change: %v", n.Name, calls)
		}
	}
	for _, g := range want.VolumeGroups {
		if contains(was.VolumeGroups, g) && touched("Group "+g.Name) {
			t.Fatalf("volume group %s did not change: %v", g.Name, calls)
		}
	}
	for _, v := range want.Volumes {
		if contains(was.Volumes, v) && touched("Volume "+v.Name) {
			t.Fatalf("volume %s did not change: %v", v.Name, calls)
		}
		i := slices.IndexFunc(was.Volumes, func(o config.Volume) bool { return o.Name == v.Name })
		if i >= 0 && !control.ReplacesVolume(was.Volumes[i], v) && touched("RemoveVolume "+v.Name) {
			t.Fatalf("volume %s did not have to reconnect: %v", v.Name, calls)
		}
	}
	for _, p := range want.Ports {
		if contains(was.Ports, p) && touched("Port "+p.Name) {
			t.Fatalf("port %s did not change: %v", p.Name, calls)
		}
		i := slices.IndexFunc(was.Ports, func(o config.Port) bool { return o.Name == p.Name })
		if i >= 0 && !control.Replaces(was.Ports[i], p) && was.Ports[i].MAC == p.MAC && touched("RemovePort "+p.Name) && was.Ports[i].Network == p.Network {
			t.Fatalf("port %s did not have to reconnect: %v", p.Name, calls)
		}
	}
}

func contains[T any](list []T, v T) bool {
	return slices.ContainsFunc(list, func(o T) bool { return reflect.DeepEqual(o, v) })
}

// drawConfig makes a configuration that keeps all rules.
func drawConfig(t *rapid.T) *config.Config {
	c := &config.Config{}
	few := rapid.IntRange(0, 3)
	distinct := func(label string) *rapid.Generator[[]int] { return rapid.Permutation([]int{0, 1, 2, 3}) }
	interfaces := rapid.Permutation([]int{0, 1, 2, 3, 4, 5}).Draw(t, "interfaces") // the first three for uplinks, the others for ports
	for i := range few.Draw(t, "uplinks") {
		c.Uplinks = append(c.Uplinks, config.Uplink{Name: fmt.Sprint("up", i), Interface: fmt.Sprint("eth", interfaces[i]),
			Mode: rapid.SampledFrom([]config.BindMode{config.BindAuto, config.BindCopy}).Draw(t, "bind"),
			XDP:  config.XDPAuto, Port: 4789})
	}
	vnis := distinct("vnis").Draw(t, "vnis")
	for i, which := range distinct("networks").Draw(t, "networks")[:few.Draw(t, "networks")] {
		n := config.Network{Name: fmt.Sprint("net", which), Learning: rapid.Bool().Draw(t, "learning")}
		if len(c.Uplinks) > 0 && rapid.Bool().Draw(t, "up") {
			n.Uplink = c.Uplinks[rapid.IntRange(0, len(c.Uplinks)-1).Draw(t, "uplink")].Name
			n.VNI = uint32(vnis[i]) // 0: flat, once
			if n.VNI != 0 && rapid.Bool().Draw(t, "flood") {
				n.Flood = []netip.Addr{netip.MustParseAddr("192.0.2.2")}
			}
		}
		c.Networks = append(c.Networks, n)
	}
	sockets, macs := rapid.Permutation([]int{0, 1, 2, 3, 4, 5}).Draw(t, "sockets"), distinct("macs").Draw(t, "macs")
	drawVolumes(t, c, sockets[3:])
	if len(c.Networks) == 0 {
		return c
	}
	for i, which := range distinct("ports").Draw(t, "ports")[:few.Draw(t, "ports")] {
		p := config.Port{Name: fmt.Sprint("p", which),
			Network: c.Networks[rapid.IntRange(0, len(c.Networks)-1).Draw(t, "network")].Name,
			MAC:     config.MAC{0x52, 0x54, 0, 0, 0, byte(macs[i])}, Queues: 2, AntiSpoof: rapid.Bool().Draw(t, "anti-spoof")}
		if rapid.Bool().Draw(t, "interface") {
			p.Interface = fmt.Sprint("eth", interfaces[3+i])
		} else {
			p.Socket, p.Role = fmt.Sprint("/run/", sockets[i]), rapid.SampledFrom([]config.Role{config.RoleServer, config.RoleClient}).Draw(t, "role")
		}
		p.Workers = rapid.SampledFrom([][]int{nil, {0}, {1, 0}}).Draw(t, "workers")
		if rapid.Bool().Draw(t, "acl") {
			p.ACL = &acl.Policy{Default: acl.Allow, Rules: make([]acl.Rule, rapid.IntRange(0, 1).Draw(t, "rules"))}
		}
		c.Ports = append(c.Ports, p)
	}
	return c
}

// drawVolumes adds volumes, on these sockets.
func drawVolumes(t *rapid.T, c *config.Config, sockets []int) {
	few := rapid.IntRange(0, 2)
	for i := range few.Draw(t, "groups") {
		c.VolumeGroups = append(c.VolumeGroups, config.VolumeGroup{Name: fmt.Sprint("g", i), Limits: config.VolumeLimits{IOPS: rapid.Uint64Range(1, 2).Draw(t, "iops")}})
	}
	for i, which := range rapid.Permutation([]int{0, 1, 2}).Draw(t, "volumes")[:few.Draw(t, "volumes")] {
		v := config.Volume{
			Name: fmt.Sprint("v", which), Socket: fmt.Sprint("/run/", sockets[i]), Source: rapid.SampledFrom([]string{"nbd://a", "nbd://b"}).Draw(t, "source"),
			OnError: rapid.SampledFrom([]config.OnError{config.OnErrorWait, config.OnErrorFail}).Draw(t, "on-error"),
		}
		if len(c.VolumeGroups) > 0 && rapid.Bool().Draw(t, "grouped") {
			v.VolumeGroup = c.VolumeGroups[rapid.IntRange(0, len(c.VolumeGroups)-1).Draw(t, "group")].Name
		}
		c.Volumes = append(c.Volumes, v)
	}
}
