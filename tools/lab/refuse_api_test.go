package lab

import (
	"errors"
	"net"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/api"
	"github.com/shuntio/shunt/tools/control/config"
	"github.com/shuntio/shunt/tools/lab/netlab"
)

// What the API refuses has a code, and the running configuration is as before.
func TestRefusedRequests(t *testing.T) {
	ctx := within(t, time.Minute)
	host, dir := namespace(t, "host"), t.TempDir()
	wire(t,
		netlab.End{Namespace: host, Name: "up", Addrs: []string{"192.0.2.1/24"}},
		netlab.End{Namespace: namespace(t, "far"), Name: "up", Addrs: []string{"192.0.2.2/24"}})
	taken := filepath.Join(dir, "taken.sock")
	listener, err := net.Listen("unix", taken)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	d := start(t, host, "shuntd", "uplinks: [{name: up, interface: up}]\nnetworks: [{name: net, vni: 7, uplink: up}]\n"+
		"ports: [{name: p, network: net, mac: \"52:54:00:00:00:01\", socket: "+dir+"/p.sock}]\n")
	c := d.API()
	before, err := c.Config(ctx)
	if err != nil {
		t.Fatal(err)
	}
	port := func(name, socket string) config.Port {
		return config.Port{Name: name, Network: "net", Socket: socket, MAC: config.MAC{0x52, 0x54, 0, 0, 0, 9}, AntiSpoof: true}
	}
	network := config.Network{Name: "net", VNI: 7, Uplink: "up"}
	for name, request := range map[string]struct {
		do   func() ([]control.Change, error)
		code api.Code
	}{
		"port on a socket in use":  {func() ([]control.Change, error) { return c.PutPort(ctx, port("q", taken)) }, api.CodeConflict},
		"port on another's socket": {func() ([]control.Change, error) { return c.PutPort(ctx, port("q", dir+"/p.sock")) }, api.CodeInvalid},
		"uplink without interface": {func() ([]control.Change, error) {
			return c.PutUplink(ctx, config.Uplink{Name: "up2", Interface: "nosuch"})
		}, api.CodeApply},
		"network of an MTU that does not fit": {func() ([]control.Change, error) {
			n := network
			n.MTU = 1451
			return c.PutNetwork(ctx, n)
		}, api.CodeApply},
		"network in use removed": {func() ([]control.Change, error) { return c.Delete(ctx, control.KindNetwork, "net") }, api.CodeConflict},
		"nothing removed":        {func() ([]control.Change, error) { return c.Delete(ctx, control.KindPort, "nosuch") }, api.CodeNotFound},
		"configuration with another control socket": {func() ([]control.Change, error) {
			changed := *before
			changed.Control.Socket = dir + "/other.sock"
			return c.Apply(ctx, &changed)
		}, api.CodeRestart},
	} {
		t.Run(name, func(t *testing.T) {
			changes, err := request.do()
			var refusal *api.Error
			if !errors.As(err, &refusal) || refusal.Code != request.code {
				t.Errorf("code %q wanted: %+v, %v", request.code, changes, err)
			}
			t.Log(err)
			if after, err := c.Config(ctx); err != nil || !reflect.DeepEqual(after, before) {
				t.Errorf("the configuration is now %+v, %v; it was %+v", after, err, before)
			}
		})
	}
}
