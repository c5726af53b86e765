package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/api"
	"github.com/shuntio/shunt/tools/control/config"
	"github.com/shuntio/shunt/tools/control/controltest"
)

var update = flag.Bool("update", false, "write the golden files anew")

const example = `
uplinks: [{name: up0, interface: eth1, address: 192.0.2.1}, {name: up1, vhost-user: /run/shunt/up1.sock}]
networks:
  - {name: blue, uplink: up0, vni: 100, mtu: 1450, flood: [192.0.2.2]}
  - {name: flat, uplink: up0, learning: false}
  - {name: local, mtu: 9000}
ports:
  - {name: vm1-eth0, network: blue, socket: /run/shunt/vm1-eth0.sock, mac: 52:54:00:00:00:01}
  - {name: vm2-eth0, network: local, socket: /run/shunt/vm2-eth0.sock, anti-spoof: false}
`

// daemon runs the API on a fake engine that reports about example, changed before it is served, and returns its socket.
func daemon(t *testing.T, with ...func(*controltest.Engine)) (*controltest.Engine, string) {
	return daemonOf(t, example, with...)
}

// daemonOf is daemon for another configuration.
func daemonOf(t *testing.T, text string, with ...func(*controltest.Engine)) (*controltest.Engine, string) {
	t.Helper()
	c, err := config.Parse("example.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	vtep, mac := netip.MustParseAddr("192.0.2.2"), config.MAC{0x52, 0x54, 0, 0, 0, 1}
	e := &controltest.Engine{
		Report: func() control.EngineStatus {
			return control.EngineStatus{
				Workers: []control.WorkerStatus{{CPU: 1, Idle: config.IdleAdaptive, Busy: 0.123, Rounds: 1234567, Sleeps: 89, Packets: 1000,
					Frames: 16384, FreeFrames: 14336}},
				Uplinks: []control.UplinkStatus{
					{Name: "up0", Interface: "eth1", State: control.StateUp, XDP: "native", Bind: "copy", Queues: 2, BusyPoll: true, MultiBuffer: true,
						Address: netip.MustParseAddr("192.0.2.1"), MTU: 1500, Neighbours: 1},
					{Name: "up1", VhostUser: "/run/shunt/up1.sock", State: control.StateDisconnected, Queues: 1, MTU: 1500},
				},
				Networks: []control.NetworkStatus{
					{Name: "blue", VNI: 100, Uplink: "up0", MTU: 1450, Learning: true, Ports: 1, Learned: 3},
					{Name: "flat", Uplink: "up0", MTU: 1500},
					{Name: "local", MTU: 9000, Learning: true, Ports: 1},
				},
				Ports: []control.PortStatus{
					{Name: "vm1-eth0", Network: "blue", Socket: "/run/shunt/vm1-eth0.sock", State: control.StateConnected, Ring: "split", Queues: 2, Workers: []int{0, 1}, MAC: mac,
						Features: []string{"VERSION_1", "MRG_RXBUF"}},
					{Name: "vm2-eth0", Network: "local", Socket: "/run/shunt/vm2-eth0.sock", State: control.StateFailed, Reason: "a memory region is not on tmpfs"},
				},
			}
		},
		Counters: func() control.Stats {
			return control.Stats{At: time.Unix(0, 0).UTC(), Reasons: map[string]string{"no-route": "The underlay has no route to the VTEP."},
				Objects: []control.ObjectStats{
					{Kind: control.KindPort, Name: "vm1-eth0", Counters: control.Counters{RxPackets: 1234567, RxBytes: 2 << 30, TxPackets: 12, TxBytes: 720,
						Drops: map[string]uint64{"no-route": 41, "spoofed-mac": 1}, More: map[string]uint64{"kicks": 5, "calls": 7000}}},
					{Kind: control.KindUplink, Name: "up0", Counters: control.Counters{TxPackets: 1000}},
					{Kind: control.KindWorker, Name: "0"},
				}}
		},
		Table: func(string) ([]control.FDBEntry, error) {
			return []control.FDBEntry{
				{MAC: mac, Origin: control.FDBPort, Port: "vm1-eth0"},
				{MAC: config.MAC{0x52, 0x54, 0, 0, 0, 2}, Origin: control.FDBStatic, VTEP: vtep, IP: netip.MustParseAddr("10.0.0.2")},
				{MAC: config.MAC{0x52, 0x54, 0, 0, 0, 3}, Origin: control.FDBLearned, VTEP: vtep, Age: 65 * time.Second},
			}, nil
		},
	}
	for _, change := range with {
		change(e)
	}
	log := slog.New(slog.DiscardHandler)
	controller := control.New(e, c, log)
	if _, err := controller.Apply(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "s")
	l, err := api.Listen(socket, "")
	if err != nil {
		t.Fatal(err)
	}
	s := api.NewServer(controller, log)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		if err := errors.Join(s.Shutdown(context.Background()), <-served); err != nil {
			t.Error(err)
		}
	})
	return e, socket
}

// changing is what differs from run to run.
var changing = regexp.MustCompile(`(?m) \d+ +\d+s +\d+s |shuntd \S+, process \d+, up \S+|"(version|shuntctl|shuntd)": "[^"]*"|"pid": \d+|"started": "[^"]*"|^shunt(ctl|d)  .*$|^answered in  .*$`)

// TestGolden compares what every command prints with its golden file. Commands run in order on one daemon.
func TestGolden(t *testing.T) {
	e, socket := daemon(t)
	next := filepath.Join(t.TempDir(), "next.yaml")
	text := strings.Replace(example, "mtu: 1450", "mtu: 1400", 1) + "  - {name: vm3-eth0, network: blue, socket: /run/shunt/vm3-eth0.sock, mac: 52:54:00:00:00:03}\n"
	text = strings.Replace(text, "  - {name: vm2-eth0, network: local, socket: /run/shunt/vm2-eth0.sock, anti-spoof: false}\n", "", 1)
	if err := os.WriteFile(next, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	e.Fail = func(method, name string) error {
		if name == "vm3-eth0" {
			return errors.New("the directory /run/shunt does not exist: create it")
		}
		return nil
	}
	for _, test := range []struct {
		golden string
		status int
		args   []string
	}{
		{"status", 0, []string{"status"}},
		{"status.json", 0, []string{"status", "-o", "json"}},
		{"uplinks", 0, []string{"get", "uplinks"}},
		{"uplink.json", 0, []string{"get", "uplink", "up0", "-o", "json"}},
		{"networks", 0, []string{"get", "networks"}},
		{"networks.json", 0, []string{"get", "networks", "--output=json"}},
		{"ports", 0, []string{"get", "ports"}},
		{"port", 0, []string{"get", "port", "vm1-eth0"}},
		{"port.json", 0, []string{"get", "ports", "vm1-eth0", "-o", "json"}},
		{"stats", 0, []string{"stats"}},
		{"stats-one", 0, []string{"stats", "vm1-eth0"}},
		{"stats.json", 0, []string{"stats", "up0", "-o", "json"}},
		{"drops", 0, []string{"drops"}},
		{"drops.json", 0, []string{"drops", "-o", "json"}},
		{"fdb", 0, []string{"fdb", "blue"}},
		{"fdb.json", 0, []string{"fdb", "blue", "-o", "json"}},
		{"version", 0, []string{"version"}},
		{"version.json", 0, []string{"version", "-o", "json"}},
		{"apply", 1, []string{"apply", "-f", next}},
		{"apply.json", 1, []string{"apply", "-f", next, "-o", "json"}},
		{"status-failed", 0, []string{"status"}},
		{"ports-failed", 0, []string{"get", "ports"}},
		{"port-failed", 1, []string{"get", "port", "vm3-eth0"}},
		{"delete", 0, []string{"delete", "port", "vm1-eth0"}},
		{"delete-used", 1, []string{"delete", "uplink", "up0"}},
		{"delete-unknown", 1, []string{"delete", "network", "green"}},
		{"get-unknown", 1, []string{"get", "port", "vm9"}},
	} {
		t.Run(test.golden, func(t *testing.T) {
			var out, errs bytes.Buffer
			status := run(t.Context(), append(test.args, "--socket", socket), strings.NewReader(""), &out, &errs)
			if status != test.status {
				t.Errorf("status %d, want %d", status, test.status)
			}
			got := steady(out.String())
			if errs.Len() > 0 {
				got += "stderr: " + errs.String()
			}
			compare(t, filepath.Join("testdata", test.golden+".golden"), got)
		})
	}
}

// steady is output without what differs from run to run.
func steady(out string) string {
	return changing.ReplaceAllStringFunc(out, func(s string) string {
		return strings.TrimRight(regexp.MustCompile(`\S*\d\S*|\(devel\)|unknown`).ReplaceAllString(s, "#"), " ")
	})
}

func compare(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s: want -, got +, or run go test -update:\n%s", file, diff)
	}
}

func TestBadInput(t *testing.T) {
	dir := t.TempDir()
	socket, wrong := filepath.Join(dir, "s"), filepath.Join(dir, "wrong.yaml")
	if err := os.WriteFile(wrong, []byte("ports: 7\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		args   string
		status int
		want   string
	}{
		{"frobnicate", 2, `shuntctl: unknown command "frobnicate" for "shuntctl": see shuntctl --help`},
		{"status now", 2, "shuntctl: too many or too few arguments: write shuntctl status"},
		{"status --wide", 2, "shuntctl: unknown flag: --wide: see shuntctl status --help"},
		{"status -o xml", 2, `shuntctl: output "xml" is neither table nor json`},
		{"get", 2, "shuntctl: get what? uplinks, networks, ports, volumes or volume-groups"},
		{"get rdma", 2, `shuntctl: unknown command "rdma" for "shuntctl get": see shuntctl get --help`},
		{"volume", 2, "shuntctl: do what with a volume? resize, check or exports"},
		{"volume check iscsi://h", 2, `shuntctl: "iscsi://h" has the scheme "iscsi", which is none of file,`},
		{"volume check /var/lib/v1", 2, "shuntctl: \"/var/lib/v1\" has no scheme: write file:///var/lib/v1"},
		{"volume exports nbd:", 2, `shuntctl: "nbd:" has no // behind its scheme`},
		{"delete", 2, "shuntctl: delete what? uplink, network, port, volume or volume-group, and its name"},
		{"delete port", 2, "shuntctl: too many or too few arguments: write shuntctl delete port NAME"},
		{"get ports a b", 2, "shuntctl: too many or too few arguments: write shuntctl get ports [NAME]"},
		{"move p1", 2, "shuntctl: too many or too few arguments: write shuntctl move PORT WORKER[,WORKER ...]|auto"},
		{"fdb", 2, "shuntctl: too many or too few arguments: write shuntctl fdb NETWORK"},
		{"apply", 2, "shuntctl: apply which file? name it with -f"},
		{"apply -f " + dir + "/none", 2, "shuntctl: read the configuration " + dir + "/none: no such file or directory: create it, or name another file"},
		{"apply -f " + wrong, 2, wrong + ":1:8: ports: this is a number: it must be a list"},
		{"apply -f -", 2, "stdin:1:8: ports: this is a string: it must be a list"},
		{"status", 1, "shuntctl: no shuntd answers on " + socket + ": start it, or name its socket with --socket"},
		{"version", 0, ""},
		{"completion bash", 0, ""},
		{"--help", 0, ""},
	} {
		var out, errs bytes.Buffer
		args := append([]string{"--socket", socket}, strings.Fields(test.args)...)
		status := run(t.Context(), args, strings.NewReader("ports: x"), &out, &errs)
		if status != test.status || !strings.HasPrefix(errs.String(), test.want) || (test.want == "") != (errs.Len() == 0) {
			t.Errorf("%s: status %d, %q; want %d, %q", test.args, status, errs.String(), test.status, test.want)
		}
	}
}

func TestUnits(t *testing.T) {
	for _, test := range []struct{ got, want string }{
		{count(0), "0"}, {count(999), "999"}, {count(1000), "1 000"}, {count(1<<64 - 1), "18 446 744 073 709 551 615"},
		{size(0), "0 B"}, {size(1023), "1023 B"}, {size(1024), "1.0 KiB"}, {size(1<<20 - 1), "1.0 MiB"}, {size(1<<64 - 1), "16.0 EiB"},
		{span(0), "0s"}, {span(59 * time.Second), "59s"}, {span(61 * time.Second), "1m1s"}, {span(25 * time.Hour), "1d1h"}, {span(90 * time.Minute), "1h30m"},
	} {
		if test.got != test.want {
			t.Errorf("got %s, want %s", test.got, test.want)
		}
	}
}

func TestCompletion(t *testing.T) {
	_, socket := daemon(t)
	for _, test := range []struct{ line, want string }{
		{"delete port", "vm1-eth0\nvm2-eth0\n:4\n"},
		{"stats", "up0\nup1\nvm1-eth0\nvm2-eth0\n:4\n"},
	} {
		var out, errs bytes.Buffer
		args := append([]string{"__complete", "--socket", socket}, strings.Fields(test.line)...)
		if status := run(t.Context(), append(args, ""), strings.NewReader(""), &out, &errs); status != 0 || out.String() != test.want {
			t.Errorf("%s: %d %s %s", test.line, status, out.String(), errs.String())
		}
	}
}
