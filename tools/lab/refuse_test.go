package lab

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shuntio/shunt/tools/lab/daemon"
	"github.com/shuntio/shunt/tools/lab/netlab"
)

// refusals is a host with an uplink, and things in the way.
type refusals struct {
	host *netlab.Namespace
	dir  string
}

func newRefusals(t *testing.T) *refusals {
	t.Helper()
	r := &refusals{host: namespace(t, "host"), dir: t.TempDir()}
	wire(t,
		netlab.End{Namespace: r.host, Name: "up", Addrs: []string{"192.0.2.1/24"}},
		netlab.End{Namespace: namespace(t, "far"), Name: "up", Addrs: []string{"192.0.2.2/24"}})
	return r
}

// Every configuration that cannot be put into force is refused at once, with
// exit status 2 and one sentence, and leaves nothing behind.
func TestRefusedConfigurations(t *testing.T) {
	ctx := within(t, 3*time.Minute)
	r := newRefusals(t)
	const uplink = "uplinks: [{name: up, interface: up}]\n"
	const network = uplink + "networks: [{name: net, vni: 7, uplink: up}]\n"
	port := func(more string) string {
		return network + "ports: [{name: p, network: net, mac: \"52:54:00:00:00:01\", " + more + "}]\n"
	}
	taken := filepath.Join(r.dir, "taken.sock")
	listener, err := net.Listen("unix", taken)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	file := filepath.Join(r.dir, "file")
	if err := os.WriteFile(file, []byte("somebody's"), 0o600); err != nil {
		t.Fatal(err)
	}
	good := filepath.Join(r.dir, "good.sock")
	for name, c := range map[string]struct {
		config string
		says   []string
	}{
		"unknown key":            {"uplinks: [{name: up, interfaces: up}]\n", []string{"interfaces"}},
		"not YAML":               {"uplinks: [\n", []string{":1:"}},
		"wrong type":             {"workers: {cpus: fast}\n", []string{"cpus"}},
		"two workers":            {"workers: {cpus: [0, 1]}\n", []string{"one"}},
		"core that is not there": {"workers: {cpus: [999]}\n" + uplink, []string{"999"}},
		"interface not there":    {"uplinks: [{name: up, interface: nosuch}]\n", []string{"nosuch"}},
		"interface twice":        {"uplinks: [{name: up, interface: up}, {name: up2, interface: up}]\n", []string{"up"}},
		"zero copy on veth":      {"uplinks: [{name: up, interface: up, mode: zerocopy}]\n", []string{"zero"}},
		"MTU that does not fit":  {uplink + "networks: [{name: net, vni: 7, uplink: up, mtu: 1500}]\n", []string{"1500", "1450"}},
		"network without uplink": {"networks: [{name: net, vni: 7, uplink: nosuch}]\n", []string{"nosuch"}},
		"VNI out of range":       {uplink + "networks: [{name: net, vni: 16777216, uplink: up}]\n", []string{"16777216"}},
		"socket path taken":      {port("socket: " + taken), []string{taken}},
		"file in the way":        {port("socket: " + file), []string{file}},
		"no directory":           {port("socket: " + file + "/p.sock"), []string{file}},
		"socket path too long":   {port("socket: " + r.dir + "/" + strings.Repeat("x", 108)), []string{"107"}},
		"no such owner":          {port("owner: nosuchuser, socket: " + good), []string{"nosuchuser"}},
		"anti-spoof without MAC": {network + "ports: [{name: p, network: net, socket: " + good + "}]\n", []string{"mac"}},
		"control socket in use":  {network + "control: {socket: " + taken + "}\n", []string{taken}},
		"control socket nowhere": {network + "control: {socket: " + file + "/c.sock}\n", []string{file}},
		"metrics not ours":       {network + "control: {socket: " + good + ", metrics: \"192.0.2.99:1\"}\n", []string{"192.0.2.99"}},
	} {
		t.Run(name, func(t *testing.T) {
			d := prepare(t, r.host, "shuntd", c.config)
			r.refused(t, ctx, d, good, c.says...)
		})
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "somebody's" {
		t.Errorf("the file in the way is now %q, %v", text, err)
	}
	if conn, err := net.Dial("unix", taken); err != nil {
		t.Errorf("the socket that was taken: %v", err)
	} else {
		conn.Close()
	}
}

// refused starts a daemon that must not come up.
func (r *refusals) refused(t *testing.T, ctx context.Context, d *daemon.Daemon, file string, says ...string) {
	t.Helper()
	exit, err := d.Refuse(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if exit.Status != 2 {
		t.Errorf("exit status %d, want 2", exit.Status)
	}
	// What the configuration itself tells comes alone; what only a try tells comes
	// as an error, after the facts that were logged until then.
	var sentences []string
	for line := range strings.Lines(exit.Log) {
		if line = strings.TrimSpace(line); line != "" && !strings.Contains(line, " level=INFO ") {
			sentences = append(sentences, line)
		}
	}
	if len(sentences) != 1 {
		t.Errorf("it says %d sentences, want 1:\n%s", len(sentences), exit.Log)
	}
	for _, word := range says {
		if !strings.Contains(strings.Join(sentences, "\n"), word) {
			t.Errorf("it does not say %q:\n%s", word, exit.Log)
		}
	}
	t.Log(strings.Join(sentences, "\n"))
	if left, err := d.Leftovers(file); err != nil || len(left) > 0 {
		t.Errorf("left behind: %s (%v)", strings.Join(left, ", "), err)
	}
}

func TestRefusedWithoutPrivilege(t *testing.T) {
	ctx := within(t, time.Minute)
	r := newRefusals(t)
	binary := shuntd(t)
	// Somebody without rights must be able to read what is his to read.
	for dir := r.dir; dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil && os.Getuid() != 0 {
			t.Fatal(err)
		}
		if filepath.Dir(dir) == os.TempDir() {
			break
		}
	}
	if err := os.Chmod(filepath.Dir(binary), 0o755); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(r.dir, "c.yaml")
	text := "uplinks: [{name: up, interface: up}]\ncontrol: {socket: " + r.dir + "/c.sock}\n"
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(r.dir, 0o777); err != nil {
		t.Fatal(err)
	}
	p, err := netlab.Start(r.host.Command(ctx, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", binary, "--config", config))
	if err != nil {
		t.Fatal(err)
	}
	status, _ := p.Result()
	if status != 2 || !strings.Contains(p.Output(), "root") && !strings.Contains(p.Output(), "CAP_") {
		t.Errorf("exit status %d:\n%s", status, p.Output())
	}
	t.Log(p.Output())
	if _, err := os.Lstat(r.dir + "/c.sock"); err == nil {
		t.Error("the control socket is left behind")
	}
}

// A second daemon finds the uplink taken, whoever is told first, and the first
// one goes on.
func TestSecondDaemonOnOneUplink(t *testing.T) {
	ctx := within(t, time.Minute)
	r := newRefusals(t)
	config := "uplinks: [{name: up, interface: up}]\nnetworks: [{name: net, vni: 7, uplink: up}]\n"
	first := start(t, r.host, "first", config)
	second := prepare(t, r.host, "second", config)
	exit, err := second.Refuse(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if exit.Status != 2 || !strings.Contains(exit.Log, "up") {
		t.Errorf("%v", exit)
	}
	t.Log(exit.Log)
	if _, err := os.Lstat(second.Socket()); err == nil {
		t.Error("the second one's control socket is left behind")
	}
	if left, err := first.Leftovers(); err != nil || !strings.Contains(strings.Join(left, " "), "XDP program") {
		t.Errorf("the first one's program is gone: has %v, %v", left, err)
	}
	if status, err := first.API().Status(ctx); err != nil || len(status.Uplinks) != 1 {
		t.Errorf("the first one: %+v, %v", status, err)
	}
}
