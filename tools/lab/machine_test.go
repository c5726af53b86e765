package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/shm"
	"github.com/shuntio/shunt/dataplane/xsk"
	"github.com/shuntio/shunt/tools/lab/netlab"
)

// machine is one that shuntd is started on again and again, in vain: a namespace with the uplink up0 and its peer, and a directory.
// Since nothing may be left behind, what one attempt finds is what the attempt before found.
type machine struct {
	ns  *netlab.Namespace
	dir string
}

func newMachine(t *testing.T, name string) *machine {
	t.Helper()
	m := &machine{ns: namespace(t, name)}
	var err error
	if m.dir, err = os.MkdirTemp("", "bad"); err != nil { // not t.TempDir, whose path is too long for a socket's
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(m.dir) })
	if err := os.Chmod(m.dir, 0o777); err != nil {
		t.Fatal(err)
	}
	err = netlab.Veth(netlab.End{Namespace: m.ns, Name: "up0", Addrs: []string{"192.0.2.1/24"}}, netlab.End{Namespace: m.ns, Name: "far0"}, 1)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// goodConfig works on a machine; DIR stands for its directory.
const goodConfig = `workers: {idle: interrupt}
control: {socket: DIR/shuntd.sock}
uplinks: [{name: up0, interface: up0}]
networks: [{name: blue, vni: 7, uplink: up0, flood: [192.0.2.2]}]
ports: [{name: p1, network: blue, socket: DIR/p1.sock, mac: "52:54:00:00:00:01"}]
`

// attempt is a start that must be refused.
type attempt struct {
	name string
	// before puts something in the way, until the end of the test.
	before func(t *testing.T, m *machine)
	// change are pairs of what is replaced in goodConfig, and by what.
	change []string
	// mask is SHUNT_MASK; under runs shuntd, as its last arguments; args are shuntd's, instead of --config and goodConfig.
	mask  string
	under []string
	args  []string
	// says is the sentence, or its beginning if it ends in "..."; a number behind "process" or "id" shows as #.
	says string
}

// refused makes attempts one after the other.
func (m *machine) refused(t *testing.T, attempts []attempt) {
	binary := shuntd(t)
	for _, a := range attempts {
		t.Run(a.name, func(t *testing.T) {
			ctx := within(t, 30*time.Second)
			if a.before != nil {
				a.before(t, m)
			}
			file := m.path("shunt.yaml")
			text := m.fill(strings.NewReplacer(a.change...).Replace(goodConfig))
			if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			args := a.args
			if args == nil {
				args = []string{"--config", file}
			}
			command := append(slices.Concat(a.under, []string{binary}), args...)
			for i := range command {
				command[i] = m.fill(command[i])
			}
			before := m.traces(t, ctx)
			cmd := m.ns.Command(ctx, command[0], command[1:]...)
			cmd.Env = append(os.Environ(), "SHUNT_MASK="+a.mask)
			out, err := cmd.CombinedOutput()
			if status := exitStatus(err); status != 2 {
				t.Errorf("exit status %d (%v), want 2:\n%s", status, err, out)
			}
			m.judge(t, string(out), m.fill(a.says))
			if after := m.traces(t, ctx); after != before {
				t.Errorf("before the attempt\n%s\nand behind it\n%s", before, after)
			}
		})
	}
}

func (m *machine) path(name string) string { return filepath.Join(m.dir, name) }
func (m *machine) fill(text string) string { return strings.ReplaceAll(text, "DIR", m.dir) }

// logged are the lines of facts that were logged on the way: no errors.
var (
	logged  = regexp.MustCompile(`(?m)^time=\S+ level=(INFO|WARN) .*\n`)
	numbers = regexp.MustCompile(`\b(process|id) \d+`)
)

// judge wants one sentence, and nothing else that sounds like an error.
func (m *machine) judge(t *testing.T, out, says string) {
	t.Helper()
	out = numbers.ReplaceAllString(logged.ReplaceAllString(out, ""), "$1 #")
	prefix, cut := strings.CutSuffix(says, "...")
	if cut && strings.HasPrefix(out, "shuntd: "+prefix) && strings.Count(out, "\n") == 1 || out == "shuntd: "+says+"\n" {
		return
	}
	t.Errorf("it says\n%swant\nshuntd: %s", out, says)
}

// traces are what a daemon could leave on the machine.
func (m *machine) traces(t *testing.T, ctx context.Context) string {
	t.Helper()
	// What the kernel does by itself some time after a device was set up does not count: its carrier, link-local addresses.
	out, err := m.ns.Run(ctx, "sh", "-c", `(ip -o link; ip -o addr; ip rule; ip route) |
		sed 's/NO-CARRIER,//; s/,LOWER_UP//; s/ state [A-Z]*//; s/ linkdown//; / fe80::/d'
		find /sys/fs/bpf "$0" | grep -v '\.debug$' | sort`, m.dir)
	if err != nil {
		t.Fatal(err)
	}
	pids, err := exec.CommandContext(ctx, "ip", "netns", "pids", m.ns.Name).Output()
	if err != nil {
		t.Fatal(err)
	}
	return out + "processes: " + string(pids)
}

func (m *machine) ip(t *testing.T, args ...string) {
	t.Helper()
	if _, err := m.ns.Run(context.Background(), "ip", args...); err != nil { // also at the end of the test
		t.Fatal(err)
	}
}

// setMTU changes both ends of the wire, until the end of the test.
func (m *machine) setMTU(t *testing.T, mtu int) {
	set := func(mtu int) {
		for _, device := range []string{"up0", "far0"} {
			m.ip(t, "link", "set", device, "mtu", fmt.Sprint(mtu))
		}
	}
	set(mtu)
	t.Cleanup(func() { set(1500) })
}

// foreignProgram puts an XDP program on a device that has nothing to do with shunt, until the end of the test.
func foreignProgram(t *testing.T, ns *netlab.Namespace, device string) {
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "stranger", Type: ebpf.XDP, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	err = ns.Do(func() error {
		on, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		l, err := link.AttachXDP(link.XDPOptions{Program: program, Interface: on.Attrs().Index, Flags: link.XDPDriverMode})
		if err == nil {
			t.Cleanup(func() { l.Close() })
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// foreignSocket binds an AF_XDP socket to the uplink's queue.
func foreignSocket(t *testing.T, m *machine) {
	pages, err := shm.Map(shm.MapOptions{FD: -1, Length: 64 * frame.ChunkSize})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pages.Free() })
	memory, err := frame.NewMemory(pages.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	err = m.ns.Do(func() error {
		device, err := xsk.LookupDevice("up0")
		if err != nil {
			return err
		}
		socket, err := xsk.NewUMEM(memory).Open(xsk.SocketOptions{Device: device, Rx: 64, Tx: 64, Fill: 64, Completion: 64})
		if err == nil {
			t.Cleanup(func() { socket.Close() })
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// first runs a shuntd that is there already, until the end of the test.
func (m *machine) first(t *testing.T, control, port string) {
	t.Helper()
	file := m.path("first.yaml")
	text := m.fill(strings.NewReplacer("shuntd.sock", control, "p1.sock", port).Replace(goodConfig))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := netlab.Start(m.ns.Command(context.Background(), shuntd(t), "--config", file))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Signal(os.Interrupt)
		if status, err := p.Result(); status != 0 {
			t.Errorf("the first daemon ended with %v:\n%s", err, p.Output())
		}
	})
	for ctx := within(t, 20*time.Second); !strings.Contains(p.Output(), "shuntd is ready"); time.Sleep(time.Millisecond) {
		if ctx.Err() != nil || !p.Running() {
			t.Fatalf("the first daemon does not start: %s", p.Output())
		}
	}
}
