package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/config"
	"github.com/shuntio/shunt/tools/lab/netlab"
)

// request is one that the API must refuse.
type request struct {
	name, method, path, body string
	status                   int
	code                     string
	says                     string // the message, or its beginning if it ends in "..."
}

// answer is an error as it is on the wire.
type answer struct {
	Error    struct{ Code, Message string }
	Problems []config.Problem
	Changes  []control.Change
}

// TestRefusedRequest asks a daemon in service for what cannot be. It says why, keeps what it has, and its traffic goes on.
func TestRefusedRequest(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	ctx := within(t, time.Minute)
	if err := netlab.Veth(netlab.End{Namespace: s.host, Name: "other0"}, netlab.End{Namespace: s.host, Name: "other1"}, 1); err != nil {
		t.Fatal(err)
	}
	foreignProgram(t, s.host, "other0")
	taken, err := net.Listen("unix", filepath.Join(s.dir, "taken"))
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	if err := os.WriteFile(filepath.Join(s.dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	const mac = `"mac": "52:54:00:00:00:03"`
	port := func(more string) string { return `{"network": "blue", ` + mac + `, ` + more + `}` }
	if status, a := s.send(t, ctx, "PUT", "/v1/ports/p3", port(`"socket": "DIR/p3.sock"`)); status != http.StatusOK {
		t.Fatalf("%d %+v", status, a)
	}
	before, err := s.d.API().Config(ctx)
	if err != nil {
		t.Fatal(err)
	}
	const asBefore = " (it is as it was before)"
	for _, r := range []request{
		{"not JSON", "PUT", "/v1/config", "networks: []", 400, "invalid-config", "1:1: this is not JSON: ..."},
		{"no body", "PUT", "/v1/config", "", 400, "bad-request", "the request has no body"},
		{"large", "PUT", "/v1/config", strings.Repeat(" ", 5<<20), 413, "too-large", "the body is larger than 4 MiB"},
		{"unknown key", "PUT", "/v1/config", `{"network": []}`, 400, "invalid-config",
			`1:2: unknown key "network": the keys here are workers, control, uplinks, networks, ports, volume-groups, volumes`},
		{"another worker", "PUT", "/v1/config", `{"workers": {"idle": "poll"}}`, 409, "restart-required", "..."},
		{"wrong value", "PUT", "/v1/ports/p1", `{"network": "blue", "socket": "/run/p1", "mac": "1:2"}`, 400, "invalid-config",
			`1:49: mac: "1:2" is not a MAC address: write it as 52:54:00:00:00:01`},
		{"another name", "PUT", "/v1/ports/p1", port(`"socket": "/run/p1", "name": "p9"`), 400, "invalid-config", `1:78: name: "p9" is not the name in the request's path, "p1"`},
		{"no such network", "PUT", "/v1/ports/p4", `{"network": "red", "socket": "/run/p4", "anti-spoof": false}`, 400, "invalid-config",
			`1:13: network: there is no network "red": name one that stands under networks`},
		{"another's socket", "PUT", "/v1/ports/p4", `{"network": "blue", "socket": "DIR/p1.sock", "anti-spoof": false}`, 400, "invalid-config", "..."},
		{"socket taken", "PUT", "/v1/ports/p4", `{"network": "blue", "socket": "DIR/taken", "anti-spoof": false}`, 409, "conflict",
			"port p4: socket is in use: another process listens on DIR/taken: stop it or choose another path"},
		{"socket taken, of a port", "PUT", "/v1/ports/p3", port(`"socket": "DIR/taken"`), 409, "conflict",
			"port p3: socket is in use: another process listens on DIR/taken: stop it or choose another path" + asBefore},
		{"file in the way", "PUT", "/v1/ports/p3", port(`"socket": "DIR/file"`), 422, "apply-failed",
			"port p3: DIR/file exists and is no socket: remove it or choose another path" + asBefore},
		{"no directory", "PUT", "/v1/ports/p3", port(`"socket": "DIR/none/p3"`), 422, "apply-failed",
			"port p3: socket DIR/none/p3 has no directory (no such file or directory): create it, or choose another path" + asBefore},
		{"no such owner", "PUT", "/v1/ports/p4", `{"network": "blue", "socket": "DIR/p4.sock", "anti-spoof": false, "owner": "nosuchuser"}`, 422, "apply-failed",
			"port p4: owner: this host has no nosuchuser: create it, name another, or give a number"},
		{"MTU", "PUT", "/v1/networks/blue", `{"vni": 7, "uplink": "up0", "mtu": 1451}`, 422, "apply-failed",
			"network blue: MTU 1451 with 50 bytes of encapsulation does not fit uplink up0 of MTU 1500: set the network's to 1450 or less"},
		{"VNI taken", "PUT", "/v1/networks/red", `{"vni": 7, "uplink": "up0"}`, 400, "invalid-config", "1:9: vni: 7 is also that of networks[0] on uplink up0: give each its own"},
		{"no such interface", "PUT", "/v1/uplinks/up1", `{"interface": "up9"}`, 422, "apply-failed",
			"uplink up1: interface up9: no such interface: create it, or name one that ip link shows"},
		{"foreign program", "PUT", "/v1/uplinks/up1", `{"interface": "other0"}`, 409, "conflict", "uplink up1: interface other0 runs XDP program stranger ..."},
		{"zero copy", "PUT", "/v1/uplinks/up1", `{"interface": "other1", "mode": "zerocopy"}`, 422, "apply-failed",
			"uplink up1: AF_XDP on other1 queue 0: the driver offers no zero copy here; ask for mode copy or auto, or check driver, MTU and queue"},
		{"no such interface, of an uplink", "PUT", "/v1/uplinks/up0", `{"interface": "up9"}`, 422, "apply-failed",
			"uplink up0: interface up9: no such interface: create it, or name one that ip link shows" + asBefore},
		{"network in use", "DELETE", "/v1/networks/blue", "", 409, "conflict", "network blue is in use by port p1, delete that first"},
		{"uplink in use", "DELETE", "/v1/uplinks/up0", "", 409, "conflict", "uplink up0 is in use by network blue, delete that first"},
		{"nothing to delete", "DELETE", "/v1/ports/p9", "", 404, "not-found", `there is no port "p9"`},
		{"no such path", "GET", "/v2/status", "", 404, "not-found", "there is no /v2/status here: the API begins at /v1/status"},
		{"no such method", "POST", "/v1/status", "", 405, "method-not-allowed", "POST is not for /v1/status: use GET"},
	} {
		t.Run(r.name, func(t *testing.T) {
			status, a := s.send(t, ctx, r.method, r.path, r.body)
			says := strings.ReplaceAll(r.says, "DIR", s.dir)
			prefix, cut := strings.CutSuffix(says, "...")
			if status != r.status || a.Error.Code != r.code || a.Error.Message != says && !(cut && strings.HasPrefix(a.Error.Message, prefix)) {
				t.Errorf("HTTP status %d, code %s, %q, want %d %s %q", status, a.Error.Code, a.Error.Message, r.status, r.code, says)
			}
			if r.code == "invalid-config" && (len(a.Problems) != 1 || a.Problems[0].Line == 0 || a.Problems[0].Reason == "") {
				t.Errorf("problems %+v, want one that says where", a.Problems)
			}
			after, err := s.d.API().Config(ctx)
			if err != nil || !reflect.DeepEqual(before, after) {
				t.Errorf("the running configuration was %+v, is %+v (%v)", before, after, err)
			}
			s.goesOn(t)
		})
	}
	if _, err := os.Lstat(filepath.Join(s.dir, "p3.sock")); err != nil {
		t.Errorf("a port that was to be moved in vain: %v", err)
	}
}

// send sends a request and returns the HTTP status, and the error if there is one. DIR in the body is the site's directory.
func (s *site) send(t *testing.T, ctx context.Context, method, path, body string) (int, answer) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", s.d.Socket())
	}}}
	r, err := http.NewRequestWithContext(ctx, method, "http://shuntd"+path, strings.NewReader(strings.ReplaceAll(body, "DIR", s.dir)))
	if err != nil {
		t.Fatal(err)
	}
	response, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	var a answer
	if err := json.Unmarshal(text, &a); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return response.StatusCode, a
}

var buildShuntctl = sync.OnceValues(func() (string, error) {
	path := filepath.Join(buildDir, "shuntctl")
	out, err := exec.Command("go", "build", "-o", path, "github.com/shuntio/shunt/tools/shuntctl").CombinedOutput()
	if err != nil {
		return string(out), err
	}
	return path, nil
})

// TestRefusedCommand gives shuntctl files that cannot be applied, at all or in part.
func TestRefusedCommand(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	ctx := within(t, time.Minute)
	shuntctl, err := buildShuntctl()
	if err != nil {
		t.Fatal(err, shuntctl)
	}
	file := filepath.Join(s.dir, "new.yaml")
	settings := "control: {socket: " + s.d.Socket() + "}\n" + s.config
	for _, c := range []struct {
		name, text   string
		args         []string
		status       int
		stdout, says string // of standard error; FILE stands for the file
	}{
		{"no file", "", []string{"apply"}, 2, "", "shuntctl: apply which file? name it with -f\n"},
		{"no such file", "", []string{"apply", "-f", s.dir + "/none"}, 2, "", "shuntctl: read the configuration " + s.dir + "/none: no such file or directory: create it, or name another file\n"},
		{"no such flag", "", []string{"apply", "--frobnicate"}, 2, "", "shuntctl: unknown flag: --frobnicate: see shuntctl apply --help\n"},
		{"no daemon", "", []string{"--socket", s.dir + "/none", "status"}, 1, "", "shuntctl: no shuntd answers on " + s.dir + "/none: start it, or name its socket with --socket\n"},
		{"nothing of that name", "", []string{"delete", "port", "p9"}, 1, "", "shuntctl: there is no port \"p9\"\n"},
		{"in use", "", []string{"delete", "uplink", "up0"}, 1, "", "shuntctl: uplink up0 is in use by network blue, delete that first\n"},
		{"wrong value", settings + "  - {name: P3, network: blue, socket: /run/p3, mac: \"52:54:00:00:00:03\"}\n", []string{"apply", "-f", file}, 2, "",
			"FILE:10:12: ports[2].name: \"P3\" is not a name: use up to 63 lower-case letters, digits, dots and dashes, the first a letter or digit\n"},
		{"unchanged", settings, []string{"apply", "-f", file}, 0, "5 unchanged\n", ""},
		{"in part", strings.Replace(settings, "networks:", "networks:\n  - {name: red}\n  - {name: big, vni: 8, uplink: up0, mtu: 9000}", 1), []string{"apply", "-f", file}, 1,
			"OBJECT   NAME  ACTION   ERROR\n" +
				"network  red   created  -\n" +
				"network  big   failed   MTU 9000 with 50 bytes of encapsulation does not fit uplink up0 of MTU 1500: set the network's to 1450 or less\n" +
				"5 unchanged\n", "shuntctl: 1 of 7 objects are not as configured\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			args := c.args
			if args[0] != "--socket" {
				args = append([]string{"--socket", s.d.Socket()}, args...)
			}
			var stdout, stderr bytes.Buffer
			cmd := exec.CommandContext(ctx, shuntctl, args...)
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			status := exitStatus(cmd.Run())
			if says := strings.ReplaceAll(c.says, "FILE", file); status != c.status || stdout.String() != c.stdout || stderr.String() != says {
				t.Errorf("exit status %d\n%s%swant %d\n%s%s", status, stdout.String(), stderr.String(), c.status, c.stdout, says)
			}
			s.goesOn(t)
		})
	}
	status, err := s.d.API().Status(ctx)
	if err != nil || len(status.Networks) != 3 || len(status.Failed) != 1 || status.Failed[0].Name != "big" {
		t.Errorf("behind a change in part: %+v %v", status, err)
	}
}

// TestRefusedReload sends SIGHUP with files that cannot be applied, at all or in part.
func TestRefusedReload(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	reload := func(text, logs string) {
		t.Helper()
		s.d.SetConfig(text)
		if err := s.d.Reload(); err != nil {
			t.Fatal(err)
		}
		s.logs(t, logs)
		s.goesOn(t)
	}
	const kept = `msg="the configuration is refused and the running one kept" error=`
	reload("networks: [{name: Blue}]\n", kept+`"`+s.d.ConfigFile()+`:1:19: networks[0].name: \"Blue\" is not a name`)
	reload("networks: [", kept+`"`+s.d.ConfigFile()+":")
	reload(strings.Replace(s.config, "interrupt", "poll", 1), kept+`"workers.idle is interrupt in the running daemon and poll in the new configuration: restart shuntd to change it"`)
	reload(strings.Replace(s.config, "networks:", "networks:\n  - {name: red}\n  - {name: big, vni: 8, uplink: up0, mtu: 9000}", 1),
		`msg="the configuration was read again" created=1 updated=0 replaced=0 removed=0 unchanged=5 failed=1`)
	status, err := s.d.API().Status(t.Context())
	if err != nil || len(status.Networks) != 3 || len(status.Failed) != 1 || status.Failed[0].Name != "big" {
		t.Errorf("behind a reload in part: %+v %v", status, err)
	}
	if err := os.Remove(s.d.ConfigFile()); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(s.d.PID(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	s.logs(t, kept+`"read the configuration `+s.d.ConfigFile()+`: no such file or directory`)
	s.goesOn(t)
	reload(s.config, `msg="the configuration was read again" created=0 updated=0 replaced=0 removed=1 unchanged=5 failed=0`)
}

// TestTwoSignals stops it as timeout(1) does, which signals its child and then its whole process group.
func TestTwoSignals(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	if err := syscall.Kill(s.d.PID(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s.logs(t, `msg="shuntd stops"`)
	if err := s.d.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	left, err := s.d.Leftovers(filepath.Join(s.dir, "p1.sock"), filepath.Join(s.dir, "p2.sock"))
	if err != nil || len(left) > 0 || !strings.Contains(s.d.Log(), `msg="shuntd stopped"`) {
		t.Errorf("left behind: %v %v\n%s", left, err, s.d.Log())
	}
}

// TestStaleSockets starts it where a killed one left its sockets, its program and its pin.
func TestStaleSockets(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.d.Kill()
	for _, path := range []string{s.d.Socket(), filepath.Join(s.dir, "p1.sock"), filepath.Join(s.dir, "p2.sock")} {
		if _, err := os.Lstat(path); err != nil {
			t.Fatalf("a killed daemon left no %v", err)
		}
	}
	if err := s.d.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.tunnelled = connect(t, filepath.Join(s.dir, "p1.sock"), "52:54:00:00:00:01", "10.0.0.1", "10.0.0.2")
	s.untagged = connect(t, filepath.Join(s.dir, "p2.sock"), "52:54:00:00:00:02", "192.0.2.9", "192.0.2.2")
	s.goesOn(t)
	if err := s.d.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	left, err := s.d.Leftovers(filepath.Join(s.dir, "p1.sock"), filepath.Join(s.dir, "p2.sock"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

// TestMaskedFeatures runs it with every optional feature hidden: a slower way, which is reported and not kept silent.
func TestMaskedFeatures(t *testing.T) {
	t.Setenv("SHUNT_MASK", "all")
	s := newSite(t)
	s.status(t, "masked", func(u control.UplinkStatus, _ control.NetworkStatus) bool {
		return u.State == control.StateUp && u.XDP == "generic" && u.Bind == "copy"
	})
	s.logs(t, `level=WARN msg="uplink has a generic XDP program, which is slower" uplink=up0 reason="native XDP is masked by SHUNT_MASK`)
}
