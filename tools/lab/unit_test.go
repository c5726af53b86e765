package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/api"
	"github.com/shuntio/shunt/tools/lab/netlab"
	"github.com/shuntio/shunt/tools/lab/peer"
	"github.com/shuntio/shunt/tools/lab/systemd"
	"github.com/shuntio/shunt/tools/need"
)

const unitFile = "../../docs/systemd/shuntd.service"

// tryUnit is what a test changes of the unit: where the log goes, less waiting, and no other units, of which this machine has none.
const tryUnit = `[Unit]
DefaultDependencies=no
[Service]
StandardOutput=append:/run/shuntd.log
StandardError=append:/run/shuntd.log
RestartSec=100ms
WatchdogSec=3s
`

const unitConfig = `
workers: {cpus: [1]}
control: {group: "0", metrics: "127.0.0.1:9464"}
uplinks: [{name: up0, interface: up0, address: 192.0.2.1}]
networks: [{name: blue, vni: 100, uplink: up0, flood: [192.0.2.2]}]
ports: [{name: vm1, network: blue, socket: /run/shunt/vm1.sock, mac: "52:54:00:00:00:01", ips: [10.0.0.1], owner: nobody, group: nogroup, mode: 0666}]
`

// The unit file of docs/systemd, by systemd itself: the daemon works with everything that it forbids, for a guest that pings through VXLAN, through a
// reload, a crash, a daemon that hangs, and a stop that leaves nothing but what the next daemon goes by.
func TestUnit(t *testing.T) {
	need.Program(t, systemd.Init, "systemctl", "systemd-analyze", "dpdk-testpmd")
	ctx := within(t, 3*time.Minute)
	unit, err := os.ReadFile(unitFile)
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(shuntd(t))
	if err != nil {
		t.Fatal(err)
	}
	host, far := namespace(t, "host"), namespace(t, "far")
	wire(t, netlab.End{Namespace: host, Name: "up0", Addrs: []string{"192.0.2.1/24"}}, netlab.End{Namespace: far, Name: "up0", Addrs: []string{"192.0.2.2/24"}})
	err = peer.KernelVXLAN(ctx, far, peer.VXLAN{Name: "vx0", VNI: 100, Device: "up0", Local: "192.0.2.2", Remote: "192.0.2.1", MTU: 1450, Addrs: []string{"10.0.0.2/24"}})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	m, err := systemd.Start(ctx, systemd.Options{Namespace: host, Run: dir, Files: map[string][]byte{
		"/etc/systemd/system/shuntd.service": unit, "/etc/systemd/system/shuntd.service.d/try.conf": []byte(tryUnit),
		"/etc/shunt/shunt.yaml": []byte(unitConfig), "/usr/local/sbin/shuntd": program,
	}})
	if errors.Is(err, systemd.ErrNoCgroup) {
		need.Missing(t, "%v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	log := func() string {
		text, _ := os.ReadFile(filepath.Join(dir, "shuntd.log"))
		return string(text)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("systemd wrote:\n%s\nshuntd wrote:\n%s", m.Log(), log())
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	ctl := func(args ...string) {
		t.Helper()
		if _, err := m.Run(ctx, "systemctl", args...); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := m.Run(ctx, "systemd-analyze", "verify", "/etc/systemd/system/shuntd.service"); err != nil || strings.Contains(out, "shuntd.service:") {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	ctl("start", "shuntd")
	client := api.NewClient(filepath.Join(dir, "shunt", "shuntd.sock"))
	defer client.Close()
	guest := pmd(t, peer.TestpmdOptions{Name: "vm1", MemoryMiB: 64, Args: []string{"--total-num-mbufs=8192"}, Mode: "icmpecho",
		Devices: []string{peer.VirtioUser{Path: filepath.Join(dir, "shunt", "vm1.sock"), MAC: "52:54:00:00:00:01"}.String()}})
	if err := guest.Start(ctx); err != nil {
		t.Fatal(err)
	}
	pid := func() int {
		t.Helper()
		n, err := m.PID(ctx, "shuntd")
		if err != nil || n == 0 {
			t.Fatalf("the daemon's process is %d, %v", n, err)
		}
		return n
	}
	reach(t, ctx, far, "10.0.0.1")
	pings(t, ctx, far, "10.0.0.1", 56, 1400)

	t.Run("restrictions", func(t *testing.T) { restricted(t, string(unit), pid()) })
	t.Run("socket", func(t *testing.T) {
		var st syscall.Stat_t
		if err := syscall.Stat(filepath.Join(dir, "shunt", "vm1.sock"), &st); err != nil || st.Uid != 65534 || st.Gid != 65534 || st.Mode&0o777 != 0o666 {
			t.Errorf("%+v %v", st, err)
		}
	})
	t.Run("capture", func(t *testing.T) {
		stream, err := client.Capture(ctx, control.CaptureOptions{Count: 2, Filter: "inner icmp"})
		if err != nil {
			t.Fatal(err)
		}
		defer stream.Close()
		pings(t, ctx, far, "10.0.0.1", 56)
		if _, err := stream.Read(make([]byte, 1)); err != nil {
			t.Error(err)
		}
	})
	t.Run("reload", func(t *testing.T) {
		before := pid()
		// The file is seen inside only.
		if _, err := m.Run(ctx, "sed", "-i", "s/^networks: \\[/networks: [{name: more}, /", "/etc/shunt/shunt.yaml"); err != nil {
			t.Fatal(err)
		}
		ctl("reload", "shuntd")
		awaitCondition(t, ctx, "the new network", func() bool {
			s, err := client.Status(ctx)
			return err == nil && len(s.Networks) == 2
		})
		if pid() != before {
			t.Error("a reload restarted the daemon")
		}
		pings(t, ctx, far, "10.0.0.1", 56)
	})
	t.Run("crash", func(t *testing.T) {
		before := pid()
		if err := syscall.Kill(before, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		awaitCondition(t, ctx, "another process", func() bool {
			n, err := m.PID(ctx, "shuntd")
			return err == nil && n != 0 && n != before
		})
	})
	t.Run("hang", func(t *testing.T) {
		before := pid()
		// Not only in service, but known to be: until then systemd waits for as long as the unit lets a daemon start.
		awaitCondition(t, ctx, "systemd to know the daemon in service", func() bool { _, err := m.Run(ctx, "systemctl", "is-active", "shuntd"); return err == nil })
		if err := syscall.Kill(before, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		awaitCondition(t, ctx, "another process, by the watchdog", func() bool {
			n, err := m.PID(ctx, "shuntd")
			return err == nil && n != 0 && n != before
		})
		awaitCondition(t, ctx, "a daemon in service", func() bool { _, err := client.Status(ctx); return err == nil })
	})
	t.Run("stop", func(t *testing.T) {
		ctl("stop", "shuntd")
		if out, err := m.Run(ctx, "systemctl", "show", "--property", "Result", "--value", "shuntd"); err != nil || strings.TrimSpace(out) != "success" {
			t.Errorf("it ended with %s %v", out, err)
		}
		entries, err := os.ReadDir(filepath.Join(dir, "shunt"))
		if err != nil {
			t.Error(err)
		}
		for _, e := range entries {
			if e.Name() != "rings" && e.Name() != "disks" { // which the next daemon goes by
				t.Errorf("/run/shunt/%s is still there", e.Name())
			}
		}
		if out := run(t, host, "ip", "link", "show", "up0"); strings.Contains(out, "xdp") {
			t.Errorf("an XDP program is still there: %s", out)
		}
		if !strings.Contains(log(), "shuntd stopped") {
			t.Error("the daemon did not stop by itself")
		}
	})
}

func awaitCondition(t *testing.T, ctx context.Context, what string, done func() bool) {
	t.Helper()
	for !done() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited in vain for %s", what)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// restricted shows that what the unit says is in force for a process: so the rest of the test is about that.
func restricted(t *testing.T, unit string, pid int) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	field := func(name string) string {
		for line := range strings.Lines(string(text)) {
			if value, is := strings.CutPrefix(line, name+":"); is {
				return strings.TrimSpace(value)
			}
		}
		return ""
	}
	want := uint64(0)
	for _, name := range strings.Fields(regexp.MustCompile(`(?m)^CapabilityBoundingSet=(.*)$`).FindStringSubmatch(unit)[1]) {
		n, known := capabilities[name]
		if !known {
			t.Fatalf("what number is %s?", name)
		}
		want |= 1 << n
	}
	for _, set := range []string{"CapPrm", "CapEff", "CapBnd"} {
		if got, err := strconv.ParseUint(field(set), 16, 64); err != nil || got != want {
			t.Errorf("%s is %x, the unit says %x (%v)", set, got, want, err)
		}
	}
	if field("NoNewPrivs") != "1" || field("Seccomp") != "2" {
		t.Errorf("no new privileges: %s, seccomp: %s", field("NoNewPrivs"), field("Seccomp"))
	}
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mounts", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, mount := range []string{`(?m)^\S+ / \S+ ro[ ,]`, `(?m)^\S+ /proc/sys \S+ ro[ ,]`, `(?m)^\S+ /sys \S+ ro[ ,]`, `(?m)^\S+ /sys/fs/bpf bpf rw[ ,]`, `(?m)^\S+ /root `, `(?m)^\S+ /tmp `} {
		if !regexp.MustCompile(mount).Match(mounts) {
			t.Errorf("no mount is %s in\n%s", mount, mounts)
		}
	}
}

// capabilities are their numbers, capability.h.
var capabilities = map[string]uint{
	"CAP_CHOWN": 0, "CAP_DAC_OVERRIDE": 1, "CAP_FOWNER": 3, "CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13, "CAP_IPC_LOCK": 14, "CAP_SYS_ADMIN": 21,
	"CAP_PERFMON": 38, "CAP_BPF": 39,
}

// What systemd itself makes of the unit is no worse than when it was written.
func TestUnitExposure(t *testing.T) {
	need.Program(t, "systemd-analyze")
	out, err := exec.CommandContext(t.Context(), "systemd-analyze", "security", "--offline=true", "--threshold=36", unitFile).CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
