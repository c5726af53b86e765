package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/shm"
	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/xsk"
	"github.com/shuntio/shunt/tools/control/api"
	"github.com/shuntio/shunt/tools/lab/netlab"
)

// machine is one that shuntd is started on again and again, in vain or without what it should have: a namespace with the uplink up0 and its peer, and a directory.
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
networks: [{name: blue, vni: 7, uplink: up0, flood: [192.0.2.2]}, {name: calm}]
ports: [{name: p1, network: blue, socket: DIR/p1.sock, mac: "52:54:00:00:00:01"}, {name: calm, network: calm, socket: DIR/calm.sock, anti-spoof: false}]
`

// attempt is a start that must be refused, or what must go on without an object.
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
	// says is the sentence, or its beginning if it ends in "..."; a number behind "process" or "id" shows as #. One that begins with an object is about that alone;
	// there can be several, each on its line.
	says string
}

// attempts makes attempts one after the other.
func (m *machine) attempts(t *testing.T, attempts []attempt) {
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
			if ofObject.MatchString(a.says) {
				m.withstood(t, ctx, cmd, strings.Split(m.fill(a.says), "\n"))
			} else {
				m.refused(t, cmd, m.fill(a.says))
			}
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
	ofObject = regexp.MustCompile(`^(uplink|network|port) \w+: `)
	logged   = regexp.MustCompile(`(?m)^time=\S+ level=(INFO|WARN) .*\n`)
	numbers  = regexp.MustCompile(`\b(process|id) \d+`)
	inLog    = regexp.MustCompile(`^time=\S+ level=ERROR msg="configuration not applied" kind=(\w+) name=(\w+) error=(".*")$`)
)

// same compares a sentence with one that was expected, or with its beginning.
func same(got, want string) bool {
	got = numbers.ReplaceAllString(got, "$1 #")
	prefix, cut := strings.CutSuffix(want, "...")
	return got == want || cut && strings.HasPrefix(got, prefix) && !strings.Contains(got, "\n")
}

// refused wants an end with one sentence, and nothing else that sounds like an error.
func (m *machine) refused(t *testing.T, cmd *exec.Cmd, says string) {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if status := exitStatus(err); status != 2 {
		t.Errorf("exit status %d (%v), want 2:\n%s", status, err, out)
	}
	if got := logged.ReplaceAllString(string(out), ""); !same(strings.TrimSuffix(got, "\n"), "shuntd: "+says) {
		t.Errorf("it says\n%swant\nshuntd: %s", got, says)
	}
}

// withstood wants a start without some objects: a sentence of each, once in the log and in the status, and everything else served until it is stopped.
func (m *machine) withstood(t *testing.T, ctx context.Context, cmd *exec.Cmd, says []string) {
	t.Helper()
	p, err := netlab.Start(cmd)
	must(t, err)
	defer p.Kill()
	client := api.NewClient(m.path("shuntd.sock"))
	defer client.Close()
	status, err := client.Status(ctx)
	for ; err != nil; status, err = client.Status(ctx) {
		if time.Sleep(time.Millisecond); ctx.Err() != nil || !p.Running() {
			t.Fatalf("it does not start: %v\n%s", err, p.Output())
		}
	}
	expect := func(where string, got []string) {
		t.Helper()
		if !slices.EqualFunc(got, says, same) {
			t.Errorf("%s says\n%s\nwant\n%s", where, strings.Join(got, "\n"), strings.Join(says, "\n"))
		}
	}
	var told []string
	for _, f := range status.Failed {
		if f.Retry == nil || f.Retry.Tries == 0 {
			t.Errorf("%s %s is not tried again", f.Kind, f.Name)
		}
		if !strings.HasSuffix(f.Error, " is not there") { // those that failed with it
			told = append(told, fmt.Sprintf("%s %s: %s", f.Kind, f.Name, f.Error))
		}
	}
	expect("the status", told)
	calm, err := vhostuser.DialWait(ctx, m.path("calm.sock"))
	must(t, err)
	must(t, calm.Close())
	p.Signal(os.Interrupt)
	if code, err := p.Result(); code != 0 {
		t.Errorf("it ended with %v", err)
	}
	var lines []string
	for line := range strings.Lines(logged.ReplaceAllString(p.Output(), "")) {
		if part := inLog.FindStringSubmatch(strings.TrimSuffix(line, "\n")); part != nil {
			sentence, err := strconv.Unquote(part[3])
			must(t, err)
			line = fmt.Sprintf("%s %s: %s", part[1], part[2], sentence)
		}
		lines = append(lines, line)
	}
	expect("the log", lines)
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

// foreignSocket binds an AF_XDP socket to the uplink's queue, until the end of the test.
func foreignSocket(t *testing.T, m *machine) { t.Cleanup(takeQueue(t, m.ns)) }

// takeQueue is foreignSocket until free is called.
func takeQueue(t *testing.T, ns *netlab.Namespace) (free func()) {
	t.Helper()
	pages, err := shm.Map(shm.MapOptions{FD: -1, Length: 64 * frame.ChunkSize})
	must(t, err)
	memory, err := frame.NewMemory(pages.Bytes())
	must(t, err)
	var socket *xsk.Socket
	must(t, ns.Do(func() error {
		device, err := xsk.LookupDevice("up0")
		if err == nil {
			socket, err = xsk.NewUMEM(memory).Open(xsk.SocketOptions{Device: device, Rx: 64, Tx: 64, Fill: 64, Completion: 64})
		}
		return err
	}))
	return sync.OnceFunc(func() {
		socket.Close()
		_ = pages.Free()
	})
}

// first runs a shuntd that is there already, until the end of the test.
func (m *machine) first(t *testing.T, control, port string) {
	t.Helper()
	file := m.path("first.yaml")
	text := m.fill(strings.NewReplacer("shuntd.sock", control, "p1.sock", port, "calm.sock", "first-calm.sock").Replace(goodConfig))
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
