package api_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/api"
	"github.com/shuntio/shunt/tools/control/config"
	"github.com/shuntio/shunt/tools/control/controltest"
)

const example = `
uplinks: [{name: up0, interface: eth1, address: 192.0.2.1}]
networks: [{name: blue, uplink: up0, vni: 7, flood: [192.0.2.2]}, {name: local}]
ports: [{name: p1, network: blue, socket: /run/p1.sock, mac: 52:54:00:00:00:01, ips: [10.0.0.1]}]
`

// serve runs a daemon's controller and API on a fake engine, and returns its socket.
func serve(t *testing.T, e *controltest.Engine, text string) (*control.Controller, string) {
	t.Helper()
	c, err := config.Parse("test.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	controller := control.New(e, c, slog.New(slog.DiscardHandler))
	if _, err := controller.Apply(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "s")
	l, err := api.Listen(socket, "")
	if err != nil {
		t.Fatal(err)
	}
	s := api.NewServer(controller, slog.New(slog.DiscardHandler))
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := errors.Join(s.Shutdown(ctx), <-served); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(socket); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket is still there: %v", err)
		}
		if broken := e.Broken(); broken != nil {
			t.Error(broken)
		}
	})
	return controller, socket
}

func dial(t *testing.T, socket string) *api.Client {
	c := api.NewClient(socket)
	t.Cleanup(c.Close)
	return c
}

func TestReports(t *testing.T) {
	e := &controltest.Engine{}
	controller, socket := serve(t, e, example+exampleDisks)
	c, ctx := dial(t, socket), t.Context()

	status, err := c.Status(ctx)
	if err != nil || status.PID != os.Getpid() || len(status.Ports) != 1 || status.Ports[0].Name != "p1" || time.Since(status.Started) > time.Minute {
		t.Errorf("status: %+v %v", status, err)
	}
	running, err := c.Config(ctx)
	if err != nil || !reflect.DeepEqual(running, controller.Config()) {
		t.Errorf("config: %+v %v", running, err)
	}
	uplinks, err := c.Uplinks(ctx)
	if err != nil || len(uplinks) != 1 || uplinks[0].Config.Interface != "eth1" || uplinks[0].Status == nil || uplinks[0].Status.XDP != "generic" {
		t.Errorf("uplinks: %+v %v", uplinks, err)
	}
	networks, err := c.Networks(ctx)
	if err != nil || len(networks) != 2 || networks[1].Config.Name != "local" || networks[0].Status.Ports != 1 {
		t.Errorf("networks: %+v %v", networks, err)
	}
	port, err := c.Port(ctx, "p1")
	if err != nil || port.Config.Socket != "/run/p1.sock" || port.Status.State != control.StateDisconnected {
		t.Errorf("port: %+v %v", port, err)
	}

	e.Counters = func() control.Stats {
		return control.Stats{At: time.Unix(1, 0), Reasons: map[string]string{"no-route": "Nobody knows the way."}, Objects: []control.ObjectStats{
			{Kind: control.KindPort, Name: "p1", Counters: control.Counters{RxPackets: 1 << 63, Drops: map[string]uint64{"no-route": 3, "none": 0, "full": 1}}},
			{Kind: control.KindUplink, Name: "up0", Counters: control.Counters{TxBytes: 5, More: map[string]uint64{"kicks": 2}}},
		}}
	}
	stats, err := c.Stats(ctx, "")
	if err != nil || len(stats.Objects) != 2 || stats.Objects[0].Name != "up0" || stats.Objects[1].RxPackets != 1<<63 {
		t.Errorf("stats: %+v %v", stats, err)
	}
	if stats, err = c.Stats(ctx, "p1"); err != nil || len(stats.Objects) != 1 || stats.Objects[0].Name != "p1" {
		t.Errorf("stats of one: %+v %v", stats, err)
	}
	drops, err := c.Drops(ctx)
	want := []control.Drop{
		{Kind: control.KindPort, Name: "p1", Reason: "full", Packets: 1},
		{Kind: control.KindPort, Name: "p1", Reason: "no-route", Packets: 3, Meaning: "Nobody knows the way."},
	}
	if err != nil || !reflect.DeepEqual(drops, want) {
		t.Errorf("drops: %+v %v", drops, err)
	}

	entry := control.FDBEntry{MAC: config.MAC{2}, Origin: control.FDBLearned, VTEP: netip.MustParseAddr("192.0.2.2"), Age: time.Second}
	e.Table = func(network string) ([]control.FDBEntry, error) { return []control.FDBEntry{entry}, nil }
	fdb, err := c.FDB(ctx, "blue")
	if err != nil || !reflect.DeepEqual(fdb, []control.FDBEntry{entry}) {
		t.Errorf("fdb: %+v %v", fdb, err)
	}
}

func TestChanges(t *testing.T) {
	e := &controltest.Engine{}
	controller, socket := serve(t, e, example)
	c, ctx := dial(t, socket), t.Context()
	e.Calls()
	step := func(changes []control.Change, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		var list []string
		for _, change := range changes {
			if change.Action != control.Unchanged {
				list = append(list, fmt.Sprintf("%s %s %s", change.Kind, change.Name, change.Action))
			}
		}
		return strings.Join(list, ", ") + " | " + strings.Join(e.Calls(), ", ")
	}
	for _, test := range []struct{ got, want string }{
		{step(c.PutPort(ctx, config.Port{Name: "p2", Network: "local", Socket: "/run/p2.sock"})), "port p2 created | AddPort p2"},
		{step(c.PutPort(ctx, config.Port{Name: "p2", Network: "blue", Socket: "/run/p2.sock"})), "port p2 updated | UpdatePort p2"},
		{step(c.PutPort(ctx, config.Port{Name: "p2", Network: "blue", Socket: "/run/p2.sock"})), " | "},
		{step(c.PutPort(ctx, config.Port{Name: "p2", Network: "blue", Socket: "/run/p3.sock"})), "port p2 replaced | RemovePort p2, AddPort p2"},
		{step(c.PutUplink(ctx, config.Uplink{Name: "up1", Interface: "eth2"})), "uplink up1 created | AddUplink up1"},
		{step(c.PutNetwork(ctx, config.Network{Name: "red", Uplink: "up1", VNI: 9})), "network red created | AddNetwork red"},
		{step(c.Delete(ctx, control.KindNetwork, "red")), "network red removed | RemoveNetwork red"},
		{step(c.Delete(ctx, control.KindUplink, "up1")), "uplink up1 removed | RemoveUplink up1"},
		{step(c.Delete(ctx, control.KindPort, "p2")), "port p2 removed | RemovePort p2"},
	} {
		if test.got != test.want {
			t.Errorf("got %s, want %s", test.got, test.want)
		}
	}
	whole, err := config.Parse("test.yaml", []byte(example))
	if err != nil {
		t.Fatal(err)
	}
	if got := step(c.Apply(ctx, whole)); got != " | " {
		t.Errorf("apply of what runs: %s", got)
	}
	if got := step(c.Apply(ctx, &config.Config{})); got != "uplink up0 removed, network blue removed, network local removed, port p1 removed | "+
		"RemovePort p1, RemoveNetwork blue, RemoveNetwork local, RemoveUplink up0" {
		t.Errorf("apply of nothing: %s", got)
	}
	if err := controller.Close(ctx); err != nil || !e.Closed() {
		t.Error(err)
	}
	var stopping *api.Error
	if _, err := c.Apply(ctx, whole); !errors.As(err, &stopping) || stopping.Code != api.CodeStopping {
		t.Errorf("after the end: %v", err)
	}
}

// TestErrors goes through what can be wrong with a request, as bytes on the socket.
func TestErrors(t *testing.T) {
	e := &controltest.Engine{}
	_, socket := serve(t, e, example)
	e.Calls()
	e.Fail = func(method, name string) error {
		switch {
		case name == "taken":
			return fmt.Errorf("another process listens on its socket, stop that: %w", control.ErrConflict)
		case name == "broken":
			return errors.New("there is no interface eth9: create it")
		}
		return nil
	}
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	defer client.CloseIdleConnections()
	for _, test := range []struct {
		request, body string
		status        int
		code, message string
	}{
		{"GET /", "", 404, "not-found", "there is no / here: the API begins at /v1/status"},
		{"GET /v2/status", "", 404, "not-found", "there is no /v2/status here"},
		{"POST /v1/status", "{}", 405, "method-not-allowed", "POST is not for /v1/status: use GET"},
		{"PATCH /v1/ports/p1", "{}", 405, "method-not-allowed", "use GET or PUT or DELETE"},
		{"GET /v1/ports/p9", "", 404, "not-found", `there is no port "p9"`},
		{"GET /v1/uplinks/..%2f..", "", 404, "not-found", "there is no uplink"},
		{"DELETE /v1/ports/p9", "", 404, "not-found", `there is no port "p9"`},
		{"DELETE /v1/networks/blue", "", 409, "conflict", "network blue is in use by port p1, delete that first"},
		{"DELETE /v1/uplinks/up0", "", 409, "conflict", "uplink up0 is in use by network blue, delete that first"},
		{"GET /v1/fdb", "", 400, "bad-request", "name a network: /v1/fdb?network=NAME"},
		{"GET /v1/fdb?network=green", "", 404, "not-found", `there is no network "green"`},
		{"GET /v1/stats?name=green", "", 404, "not-found", `nothing named "green" counts anything`},
		{"PUT /v1/config", "", 400, "bad-request", "the request has no body"},
		{"PUT /v1/config", "{", 400, "invalid-config", "1:2: this is not JSON: unexpected EOF"},
		{"PUT /v1/config", `{"ports": [{"name": "p1"}]} `, 400, "invalid-config", "1:12: ports[0]: the port leads nowhere"},
		{"PUT /v1/config", `{"portz": []}`, 400, "invalid-config", `1:2: unknown key "portz"`},
		{"PUT /v1/config", strings.Repeat(" ", config.MaxDocument+1), 413, "too-large", "the body is larger than 4 MiB"},
		{"PUT /v1/config", `{"workers": {"idle": "poll"}}`, 409, "restart-required", "workers.idle is adaptive in the running daemon and poll in the new configuration: restart shuntd to change it"},
		{"PUT /v1/config", `{"workers": {"cpus": [3]}}`, 409, "restart-required", "workers.cpus is auto in the running daemon and [3]"},
		{"PUT /v1/config", `{"control": {"metrics": "127.0.0.1:1"}}`, 409, "restart-required", "control.metrics is absent in the running daemon"},
		{"PUT /v1/ports/p2", `{"network": "blue", "socket": "/run/p1.sock"}`, 400, "invalid-config", "1:31: socket: /run/p1.sock is also ports[0].socket"},
		{"PUT /v1/ports/p2", `{"name": "p3"}`, 400, "invalid-config", `1:10: name: "p3" is not the name in the request's path, "p2"`},
		{"PUT /v1/ports/P2", `{"network": "blue", "socket": "/run/p2.sock"}`, 400, "invalid-config", `"P2" is not a name`},
		{"PUT /v1/ports/taken", `{"network": "blue", "socket": "/run/p2.sock", "anti-spoof": false}`, 409, "conflict", "port taken: another process listens on its socket, stop that: conflict"},
		{"GET /v1/ports/p1/acl", "", 404, "not-found", "port p1 has no ACL: everything may pass"},
		{"GET /v1/ports/p9/acl", "", 404, "not-found", `there is no port "p9"`},
		{"PUT /v1/ports/p9/acl", "{}", 404, "not-found", `there is no port "p9"`},
		{"DELETE /v1/ports/p9/acl", "", 404, "not-found", `there is no port "p9"`},
		{"PUT /v1/ports/p1/acl", "", 400, "bad-request", "the request has no body"},
		{"PUT /v1/ports/p1/acl", `{"rules": ["allow it"]}`, 400, "invalid-config", `1:12: rules[0]: at character 7: "it" is none of in, out`},
		{"POST /v1/ports/p1/acl", "{}", 405, "method-not-allowed", "POST is not for /v1/ports/p1/acl: use GET or PUT or DELETE"},
		{"GET /v1/ports/p1/acl/test?packet=arp", "", 400, "bad-request", `direction: "" is no direction: give in (to the guest) or out (from it)`},
		{"GET /v1/ports/p1/acl/test?direction=in&packet=frog", "", 400, "bad-request", `packet: at character 1: "frog" is none of`},
		{"GET /v1/ports/p9/acl/test?direction=in&packet=arp", "", 404, "not-found", `there is no port "p9"`},
		{"PUT /v1/ports/p9/workers", "[0]", 404, "not-found", `there is no port "p9"`},
		{"PUT /v1/ports/p1/workers", "{}", 400, "invalid-config", "1:1: this is a mapping: it must be a list"},
		{"PUT /v1/ports/p1/workers", "[0, 1]", 400, "invalid-config", "ports[0].workers: 2 workers are named for 1 of queues"},
		{"PUT /v1/uplinks/broken", `{"interface": "eth9"}`, 422, "apply-failed", "uplink broken: there is no interface eth9: create it"},
	} {
		method, path, _ := strings.Cut(test.request, " ")
		r, err := http.NewRequestWithContext(t.Context(), method, "http://shuntd"+path, strings.NewReader(test.body))
		if err != nil {
			t.Fatal(err)
		}
		response, err := client.Do(r)
		if err != nil {
			t.Errorf("%s: %v", test.request, err)
			continue
		}
		text, err := io.ReadAll(response.Body)
		response.Body.Close()
		var body struct {
			Error struct{ Code, Message string }
		}
		if err := errors.Join(err, json.Unmarshal(text, &body)); err != nil {
			t.Errorf("%s: %v: %s", test.request, err, text)
			continue
		}
		if response.StatusCode != test.status || body.Error.Code != test.code || !strings.Contains(body.Error.Message, test.message) ||
			response.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: got %d %s\nwant %d %s %s", test.request, response.StatusCode, text, test.status, test.code, test.message)
		}
	}
	for _, call := range e.Calls() {
		if !strings.HasSuffix(call, "taken") && !strings.HasSuffix(call, "broken") {
			t.Errorf("a refused request reached the engine: %s", call)
		}
	}
	c := dial(t, socket)
	status, err := c.Status(t.Context())
	want := []control.Failure{ // none is tried again: who asked for it was told
		{Change: control.Change{Kind: "uplink", Name: "broken", Action: "failed", Error: "there is no interface eth9: create it"}},
		{Change: control.Change{Kind: "port", Name: "taken", Action: "failed", Error: "another process listens on its socket, stop that: conflict"}},
	}
	if diff := cmp.Diff(want, status.Failed); err != nil || diff != "" {
		t.Errorf("failed: %v %s", err, diff)
	}
	if _, err := c.Port(t.Context(), "taken"); err == nil || !strings.Contains(err.Error(), "port taken is not there: another process listens on its socket") {
		t.Errorf("get what failed: %v", err)
	}
	if _, err := c.Delete(t.Context(), control.KindPort, "taken"); err != nil {
		t.Errorf("delete what failed: %v", err)
	}
	if status, err = c.Status(t.Context()); err != nil || len(status.Failed) != 1 {
		t.Errorf("failed: %v %v", status.Failed, err)
	}
}

// TestOneAtATime lets many clients change things at once: the fake engine complains if the controller mixes them up.
func TestOneAtATime(t *testing.T) {
	e := &controltest.Engine{}
	controller, socket := serve(t, e, example)
	done := make(chan error)
	const clients = 8
	for i := range clients {
		go func() {
			c := api.NewClient(socket)
			defer c.Close()
			var err error
			for n := range 20 {
				port := config.Port{Name: fmt.Sprint("q", i), Network: "blue", Socket: fmt.Sprintf("/run/q%d-%d", i, n)}
				_, e1 := c.PutPort(context.Background(), port)
				_, e2 := c.Ports(context.Background())
				_, e3 := c.Status(context.Background())
				err = errors.Join(err, e1, e2, e3)
			}
			_, e4 := c.Delete(context.Background(), control.KindPort, fmt.Sprint("q", i))
			done <- errors.Join(err, e4)
		}()
	}
	for range clients {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if ports := controller.Config().Ports; len(ports) != 1 {
		t.Errorf("left over: %v", ports)
	}
}
