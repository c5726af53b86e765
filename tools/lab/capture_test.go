package lab

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/lab/daemon"
	"github.com/shuntio/shunt/tools/lab/netlab"
	"github.com/shuntio/shunt/tools/lab/peer"
	"github.com/shuntio/shunt/tools/need"
)

// shuntctl builds the operator's command.
func shuntctl(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "shuntctl")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", path, "github.com/shuntio/shunt/tools/shuntctl").CombinedOutput(); err != nil {
		t.Fatalf("build shuntctl: %v\n%s", err, out)
	}
	return path
}

// capturing is a shuntctl capture that runs.
type capturing struct {
	cmd  *exec.Cmd
	errs bytes.Buffer
}

// beginCapture starts one into a file, and returns when it sees what passes: that is when the file begins.
func beginCapture(t *testing.T, ctx context.Context, d *daemon.Daemon, program, file string, args ...string) *capturing {
	t.Helper()
	c := &capturing{cmd: exec.CommandContext(ctx, program, append([]string{"capture", "--socket", d.Socket(), "-w", file}, args...)...)}
	c.cmd.Stderr = &c.errs
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	awaitCondition(t, ctx, "the capture", func() bool {
		info, err := os.Stat(file)
		return err == nil && info.Size() > 0
	})
	return c
}

// end waits for the capture, after a Ctrl-C if it has no count, and returns what it said.
func (c *capturing) end(t *testing.T, interrupt bool) string {
	t.Helper()
	if interrupt {
		if err := c.cmd.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.cmd.Wait(); err != nil {
		t.Errorf("capture: %v: %s", err, c.errs.String())
	}
	return c.errs.String()
}

// shows lets tshark tell interface, direction, comment and the outermost and innermost addresses of each packet.
func shows(t *testing.T, ctx context.Context, file string) (rows [][]string) {
	t.Helper()
	rows, err := peer.Decode(ctx, file, "", "frame.interface_name", "frame.packet_flags_direction", "frame.comment", "vxlan.vni", "ip.src", "frame.protocols")
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

// Captures of a daemon in service, with the operator's command, judged by Wireshark's: a guest's port, the uplink with its outer headers, what is dropped,
// filters, counts, pipes, and an end by Ctrl-C.
func TestCaptures(t *testing.T) {
	need.Program(t, "tshark", "capinfos", "dpdk-testpmd")
	ctx := within(t, 3*time.Minute)
	host, far := namespace(t, "host"), namespace(t, "far")
	wire(t, netlab.End{Namespace: host, Name: "up0", Addrs: []string{"192.0.2.1/24"}}, netlab.End{Namespace: far, Name: "up0", Addrs: []string{"192.0.2.2/24"}})
	err := peer.KernelVXLAN(ctx, far, peer.VXLAN{Name: "vx0", VNI: 100, Device: "up0", Local: "192.0.2.2", Remote: "192.0.2.1", MTU: 1450, Addrs: []string{"10.0.0.2/24"}})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	d := start(t, host, "shuntd", fmt.Sprintf(`
workers: {cpus: [1]}
uplinks: [{name: up0, interface: up0, address: 192.0.2.1}]
networks: [{name: blue, vni: 100, uplink: up0, flood: [192.0.2.2]}]
ports: [{name: vm1, network: blue, socket: %s/vm1.sock, mac: "52:54:00:00:00:01", ips: [10.0.0.1]}]
`, dir))
	guest := pmd(t, peer.TestpmdOptions{Name: "vm1", MemoryMiB: 64, Args: []string{"--total-num-mbufs=8192"}, Mode: "icmpecho",
		Devices: []string{peer.VirtioUser{Path: filepath.Join(dir, "vm1.sock"), MAC: "52:54:00:00:00:01"}.String()}})
	if err := guest.Start(ctx); err != nil {
		t.Fatal(err)
	}
	reach(t, ctx, far, "10.0.0.1")
	program := shuntctl(t)

	t.Run("port and uplink", func(t *testing.T) {
		file := filepath.Join(dir, "all.pcapng")
		c := beginCapture(t, ctx, d, program, file, "vm1", "up0", "--filter", "icmp or inner icmp")
		pings(t, ctx, far, "10.0.0.1", 56, 1400)
		said := c.end(t, true)
		rows := shows(t, ctx, file)
		if !strings.HasPrefix(said, fmt.Sprintf("%d packets captured, 0 missed", len(rows))) {
			t.Errorf("it said %q of %d packets", said, len(rows))
		}
		// A request comes in by the uplink, in its tunnel, and goes out to the guest; the answer the other way round.
		seen := map[string]int{}
		for _, r := range rows {
			seen[strings.Join(append(slices.Clone(r[:2]), r[3:5]...), " ")]++
		}
		const in, out = "0x00000001", "0x00000002"
		each := len(rows) / 4
		want := map[string]int{"up0 " + in + " 100 192.0.2.2": each, "vm1 " + out + "  10.0.0.2": each, "vm1 " + in + "  10.0.0.1": each, "up0 " + out + " 100 192.0.2.1": each}
		if fmt.Sprint(seen) != fmt.Sprint(want) || each < 2 {
			t.Errorf("tshark shows %v, want %v", seen, want)
		}
		goodPackets(t, ctx, file)
		info, err := exec.CommandContext(ctx, "capinfos", file).CombinedOutput()
		if err != nil || !strings.Contains(string(info), "Name = vm1") || !strings.Contains(string(info), "Description = uplink on up0") {
			t.Errorf("capinfos: %v\n%s", err, info)
		}
	})
	t.Run("count and snaplen", func(t *testing.T) {
		file := filepath.Join(dir, "count.pcapng")
		c := beginCapture(t, ctx, d, program, file, "vm1", "--count", "3", "--snaplen", "60", "--direction", "in")
		pings(t, ctx, far, "10.0.0.1", 1000)
		if said := c.end(t, false); !strings.HasPrefix(said, "3 packets captured") {
			t.Errorf("it said %q", said)
		}
		rows, err := peer.Decode(ctx, file, "frame.cap_len == 60 && frame.len > 1000", "frame.number")
		if err != nil || len(rows) != 3 {
			t.Errorf("%d packets of 60 bytes out of 1000, %v", len(rows), err)
		}
	})
	t.Run("drops", func(t *testing.T) {
		file := filepath.Join(dir, "drops.pcapng")
		c := beginCapture(t, ctx, d, program, file, "--drops", "any")
		// A station that is nowhere: with learning it would be flooded back to where it came from.
		before := counters(t, d, control.KindUplink, "up0").Dropped()
		run(t, far, "ip", "neigh", "replace", "10.0.0.77", "lladdr", "52:54:00:00:00:77", "dev", "vx0")
		silence(t, ctx, far, "10.0.0.77")
		dropped := counters(t, d, control.KindUplink, "up0")
		c.end(t, true)
		if dropped.Dropped() == before {
			t.Fatal("nothing was dropped, so nothing is shown")
		}
		for _, r := range shows(t, ctx, file) {
			reason, _, _ := strings.Cut(strings.TrimPrefix(r[2], "dropped: "), ":")
			if r[0] != "up0" && r[0] != "vm1" || !strings.HasPrefix(r[2], "dropped: ") || dropped.Drops[reason] == 0 && r[0] == "up0" {
				t.Errorf("%q, the daemon counts %v", r, dropped.Drops)
			}
		}
	})
	t.Run("pipe", func(t *testing.T) {
		// As wireshark -k -i - reads it, while it grows.
		c := exec.CommandContext(ctx, "sh", "-c", program+" capture up0 -w - --socket "+d.Socket()+" | tshark -l -n -r - -c 2 -T fields -e frame.interface_name")
		var out, errs bytes.Buffer
		c.Stdout, c.Stderr = &out, &errs
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- c.Wait() }()
		for {
			pings(t, ctx, far, "10.0.0.1", 56)
			select {
			case err := <-ended:
				if err != nil || out.String() != "up0\nup0\n" {
					t.Errorf("%v: %q %q", err, out.String(), errs.String())
				}
				return
			case <-ctx.Done():
				t.Fatal("the pipe never ends")
			default:
			}
		}
	})
	awaitCondition(t, ctx, "the end of all captures", func() bool {
		list, err := d.API().Captures(ctx)
		return err == nil && len(list) == 0
	})
	t.Run("killed", func(t *testing.T) {
		c := beginCapture(t, ctx, d, program, filepath.Join(dir, "killed.pcapng"))
		if err := c.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = c.cmd.Wait()
		awaitCondition(t, ctx, "its end in the daemon", func() bool {
			list, err := d.API().Captures(ctx)
			return err == nil && len(list) == 0
		})
		if info, err := os.Stat(filepath.Join(dir, "killed.pcapng")); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v %v", info.Mode(), err)
		}
		pings(t, ctx, far, "10.0.0.1", 56)
	})
}
