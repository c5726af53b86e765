package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/api"
	"github.com/shuntio/shunt/tools/control/config"
	"github.com/shuntio/shunt/tools/control/controltest"
)

func TestFlags(t *testing.T) {
	dir := t.TempDir()
	good, wrong := filepath.Join(dir, "good.yaml"), filepath.Join(dir, "wrong.yaml")
	write(t, good, "networks: [{name: blue}]\n")
	write(t, wrong, "networks:\n  - name: Blue\n    vni: 7\n")
	for _, test := range []struct {
		args           []string
		status         int
		stdout, stderr string
	}{
		{[]string{"--check", "--config", good}, 0, good + ": the configuration is good\n", ""},
		{[]string{"--check", "--config", wrong}, 2, "", wrong + `:2:11: networks[0].name: "Blue" is not a name: use up to 63 lower-case letters, digits, dots and dashes, the first a letter or digit
` + wrong + ":3:10: networks[0].vni: 7 needs an uplink to be sent on: name one, or remove the vni to keep the network on this host\n"},
		{[]string{"--config", wrong}, 2, "", wrong + ":2:11: networks[0].name: "},
		{[]string{"--check", "--config", dir + "/none"}, 2, "", "shuntd: read the configuration " + dir + "/none: no such file or directory: create it, or name another file\n"},
		{[]string{"--check", "--config", dir}, 2, "", "shuntd: read the configuration " + dir + ": is a directory: name a file that can be read\n"},
		{[]string{"--check", "--config", "/dev/zero"}, 2, "", "/dev/zero: the document is larger than 4 MiB, the most that is read: shorten it\n"},
		{[]string{"--chekc"}, 2, "", "shuntd: unknown flag: --chekc\nRun shuntd --help for the flags.\n"},
		{[]string{"start"}, 2, "", "unknown command \"start\" for \"shuntd\""},
		{[]string{"--log-level", "loud"}, 2, "", "shuntd: invalid argument \"loud\" for \"--log-level\" flag: choose debug, info, warn or error\nRun"},
		{[]string{"--version"}, 0, "shuntd " + control.Version() + "\n", ""},
		{[]string{"--help"}, 0, "--log-level", ""},
	} {
		var stdout, stderr bytes.Buffer
		status := Main(Options{Args: test.args, Stdout: &stdout, Stderr: &stderr})
		if status != test.status || !strings.Contains(stdout.String(), test.stdout) || !strings.Contains(stderr.String(), test.stderr) ||
			(test.stderr == "") != (stderr.Len() == 0) {
			t.Errorf("%q: status %d, %q, %q\nwant %d %q %q", test.args, status, stdout.String(), stderr.String(), test.status, test.stdout, test.stderr)
		}
	}
}

// --check asks who makes the engine, too.
func TestCheckOfTheEngine(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.yaml")
	write(t, file, "networks: [{name: blue}]\n")
	var stdout, stderr bytes.Buffer
	status := Main(Options{Args: []string{"--check", "--config", file}, Stdout: &stdout, Stderr: &stderr, Check: func(c *config.Config) []error {
		return []error{errors.New(c.Networks[0].Name + " is too blue: lighten it"), errors.New("and more")}
	}})
	if want := file + ": blue is too blue: lighten it\n" + file + ": and more\n"; status != ExitUsage || stderr.String() != want || stdout.Len() > 0 {
		t.Errorf("status %d, %q, %q", status, stdout.String(), stderr.String())
	}
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// node is a daemon under test, in this process and with a fake engine.
type node struct {
	dir, file, socket string
	engine            *controltest.Engine
	signals           chan os.Signal
	status            chan int
	log               lockedBuffer
	systemd           *net.UnixConn
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// newNode makes ready a daemon whose configuration is text behind a control section.
func newNode(t *testing.T, text string) *node {
	n := &node{dir: t.TempDir(), engine: &controltest.Engine{}, signals: make(chan os.Signal, 4), status: make(chan int, 1)}
	n.file, n.socket = filepath.Join(n.dir, "shunt.yaml"), filepath.Join(n.dir, "run", "s")
	n.configure(t, text)
	path := filepath.Join(n.dir, "notify")
	var err error
	if n.systemd, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	t.Setenv("NOTIFY_SOCKET", path)
	procs := runtime.GOMAXPROCS(0)
	t.Cleanup(func() {
		n.systemd.Close()
		runtime.GOMAXPROCS(procs)
		if broken := n.engine.Broken(); broken != nil {
			t.Error(broken)
		}
	})
	return n
}

func (n *node) configure(t *testing.T, text string) {
	t.Helper()
	write(t, n.file, "control: {socket: "+n.socket+"}\n"+text)
}

func (n *node) options(engine control.Engine, err error) Options {
	return Options{Args: []string{"--config", n.file}, Stdout: io.Discard, Stderr: &n.log, Signals: n.signals,
		NewEngine: func(*config.Config, *slog.Logger) (control.Engine, error) { return engine, err }}
}

func (n *node) start(t *testing.T) {
	t.Helper()
	go func() { n.status <- Main(n.options(n.engine, nil)) }()
	t.Cleanup(func() {
		select {
		case n.signals <- unix.SIGTERM: // if it still runs
		default:
		}
	})
	n.expect(t, "READY=1")
}

// expect waits for what systemd is told next.
func (n *node) expect(t *testing.T, prefix string) {
	t.Helper()
	if err := n.systemd.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1024)
	size, err := n.systemd.Read(b)
	if err != nil || !strings.HasPrefix(string(b[:size]), prefix) {
		t.Fatalf("systemd was told %q %v, want %q\n%s", b[:size], err, prefix, n.log.String())
	}
}

func (n *node) ends(t *testing.T, want int) {
	t.Helper()
	select {
	case status := <-n.status:
		if status != want {
			t.Errorf("status %d, want %d\n%s", status, want, n.log.String())
		}
	case <-time.After(30 * time.Second):
		t.Fatalf("the daemon does not end\n%s", n.log.String())
	}
	if !n.engine.Closed() {
		t.Error("the engine was not closed")
	}
	n.cleaned(t)
}

func (n *node) cleaned(t *testing.T) {
	t.Helper()
	if _, err := os.Lstat(filepath.Dir(n.socket)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket's directory was left behind: %v", err)
	}
}

func (n *node) logged(t *testing.T, want string) {
	t.Helper()
	if !strings.Contains(n.log.String(), want) {
		t.Errorf("the log has no %q:\n%s", want, n.log.String())
	}
}

const blue = "networks: [{name: blue}]\nports: [{name: p1, network: blue, socket: /run/p1, anti-spoof: false}]\n"

func TestLife(t *testing.T) {
	n := newNode(t, blue)
	n.start(t)
	if procs := runtime.GOMAXPROCS(0); procs != 3 {
		t.Errorf("GOMAXPROCS is %d, want 3", procs)
	}
	c := api.NewClient(n.socket)
	defer c.Close()
	if s, err := c.Status(t.Context()); err != nil || len(s.Ports) != 1 {
		t.Errorf("%+v %v", s, err)
	}

	// A second daemon on the same socket goes away, and the first doesn't notice.
	var log bytes.Buffer
	second := n.options(nil, errors.New("not reached"))
	second.Stderr = &log
	if status := Main(second); status != 2 || !strings.Contains(log.String(), "another shuntd is running: it answers on "+n.socket) {
		t.Errorf("a second daemon: %d %s", status, log.String())
	}

	// Reload: good, refused, good in part.
	n.engine.Calls()
	n.configure(t, blue+"uplinks: [{name: up0, interface: eth1}]\n")
	n.signals <- unix.SIGHUP
	n.expect(t, "RELOADING=1\nMONOTONIC_USEC=")
	n.expect(t, "READY=1")
	if calls := n.engine.Calls(); fmt.Sprint(calls) != "[AddUplink up0]" {
		t.Errorf("a reload called %q", calls)
	}
	n.logged(t, `msg="the configuration was read again" created=1 updated=0 replaced=0 removed=0 unchanged=2 failed=0`)
	for _, text := range []string{"ports: 7\n", "workers: {idle: poll}\n"} {
		n.configure(t, text)
		n.signals <- unix.SIGHUP
		n.expect(t, "RELOADING=1")
		n.expect(t, "READY=1")
		if calls := n.engine.Calls(); calls != nil {
			t.Errorf("%q called %q", text, calls)
		}
	}
	n.logged(t, "shunt.yaml:2:8: ports: this is a number: it must be a list")
	n.logged(t, "workers.idle is adaptive in the running daemon and poll in the new configuration")
	n.engine.Fail = func(method, name string) error {
		if name == "up1" {
			return errors.New("there is no interface eth2: create it")
		}
		return nil
	}
	n.configure(t, blue+"uplinks: [{name: up1, interface: eth2}]\n")
	n.signals <- unix.SIGHUP
	n.expect(t, "RELOADING=1")
	n.expect(t, "READY=1")
	n.logged(t, `msg="configuration not applied" kind=uplink name=up1 error="there is no interface eth2: create it"`)
	n.logged(t, "removed=1 unchanged=2 failed=1")

	n.signals <- unix.SIGTERM
	n.signals <- unix.SIGTERM // as from timeout(1)
	n.expect(t, "STOPPING=1")
	n.ends(t, 0)
}

func TestStartRefused(t *testing.T) {
	t.Run("engine", func(t *testing.T) {
		n := newNode(t, blue)
		if status := Main(n.options(nil, errors.New("no permission: run shuntd as root"))); status != 2 {
			t.Errorf("status %d", status)
		}
		n.logged(t, "shuntd: no permission: run shuntd as root\n")
		n.cleaned(t)
	})
	t.Run("metrics", func(t *testing.T) {
		taken, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer taken.Close()
		n := newNode(t, "")
		write(t, n.file, fmt.Sprintf("control: {socket: %s, metrics: %q}\n", n.socket, taken.Addr()))
		if status := Main(n.options(nil, errors.New("not reached"))); status != 2 {
			t.Errorf("status %d", status)
		}
		n.logged(t, fmt.Sprintf("control.metrics: nothing can listen on %s: address already in use: choose another address", taken.Addr()))
		n.cleaned(t)
	})
}

// TestStartWithout starts with objects that fail: each has its line in the log, systemd knows how many they are, and they come when they can, sooner when the
// engine has news of the host.
func TestStartWithout(t *testing.T) {
	n := newNode(t, `uplinks: [{name: up0, interface: eth1}, {name: up1, interface: eth2}]
networks: [{name: blue, uplink: up0, vni: 7}, {name: red, uplink: up1, vni: 7}]
ports: [{name: p1, network: red, socket: /run/p1, anti-spoof: false}]
`)
	var there atomic.Bool
	n.engine.Fail = func(method, name string) error {
		if method == "AddUplink" && name == "up1" && !there.Load() {
			return errors.New("no such interface: create it")
		}
		return nil
	}
	w := watching{n.engine, make(chan struct{})}
	go func() { n.status <- Main(n.options(w, nil)) }()
	n.expect(t, "READY=1\nSTATUS=3 objects are not as configured: see shuntctl status")
	n.logged(t, `level=ERROR msg="configuration not applied" kind=uplink name=up1 error="no such interface: create it"`)
	n.logged(t, `level=WARN msg="configuration not applied" kind=port name=p1 error="its network red is not there"`)
	n.logged(t, `msg="shuntd is ready"`)
	n.logged(t, "uplinks=2 networks=2 ports=1 volumes=0 failed=3")
	c := api.NewClient(n.socket)
	defer c.Close()
	s, err := c.Status(t.Context())
	if err != nil || len(s.Failed) != 3 || s.Failed[0].Name != "up1" || s.Failed[0].Retry == nil || len(s.Networks) != 1 {
		t.Errorf("the status is %+v, %v", s, err)
	}
	there.Store(true)
	w.news <- struct{}{}
	n.expect(t, "STATUS=everything is as configured")
	if s, err := c.Status(t.Context()); err != nil || len(s.Failed) != 0 || len(s.Ports) != 1 {
		t.Errorf("at last the status is %+v, %v", s, err)
	}
	n.logged(t, `msg="configuration applied" kind=port name=p1 action=created`)
	n.signals <- unix.SIGTERM
	n.expect(t, "STOPPING=1")
	n.ends(t, 0)
	if errs := strings.Count(n.log.String(), "level=ERROR"); errs != 1 {
		t.Errorf("%d errors were logged:\n%s", errs, n.log.String())
	}
}

// watching is an engine with news.
type watching struct {
	*controltest.Engine
	news chan struct{}
}

func (w watching) News() <-chan struct{} { return w.news }

// TestStop counts signals that come together as one, and lets a later one end a stop that hangs.
func TestStop(t *testing.T) {
	stop := func(t *testing.T, takes time.Duration, at ...time.Duration) (err error) {
		synctest.Test(t, func(t *testing.T) {
			signals := make(chan os.Signal)
			c := control.New(slow{takes: takes}, &config.Config{}, slog.New(slog.DiscardHandler))
			d := &daemon{Options: Options{Signals: signals}, log: slog.New(slog.DiscardHandler)}
			done := make(chan struct{})
			go func() {
				err = d.stop(&running{controller: c})
				close(done)
			}()
			for _, delay := range at {
				select {
				case <-time.After(delay):
					signals <- unix.SIGTERM
				case <-done:
				}
			}
			<-done
			time.Sleep(takes) // the goroutine that is left behind must end within the test
		})
		return err
	}
	if err := stop(t, time.Second, 0, 0, time.Millisecond, 900*time.Millisecond); err != nil {
		t.Error(err)
	}
	if err := stop(t, 8*time.Second, 0, oneSignal); err == nil || !strings.Contains(err.Error(), "a second signal ended the stop before it was done (terminated)") {
		t.Errorf("%v", err)
	}
}

// hangs is an engine that would wait for a volume's server for long.
type hangs struct {
	*controltest.Engine
	waits chan struct{}
}

func (h hangs) AddVolume(ctx context.Context, v config.Volume) error {
	err := h.Engine.AddVolume(ctx, v)
	close(h.waits)
	<-ctx.Done()
	return err
}

const disks = blue + "volumes: [{name: v1, socket: /run/v1, source: 'nbd://192.0.2.9/a'}, {name: v2, socket: /run/v2, source: 'nbd://192.0.2.9/b'}]\n"

// TestStopWhileStarting ends a start at what it waits for, and undoes what there is.
func TestStopWhileStarting(t *testing.T) {
	n := newNode(t, disks)
	h := hangs{n.engine, make(chan struct{})}
	go func() { n.status <- Main(n.options(h, nil)) }()
	<-h.waits
	n.signals <- unix.SIGHUP // changes nothing
	n.signals <- unix.SIGTERM
	n.expect(t, "STOPPING=1") // and nothing before
	n.ends(t, 0)
	if calls := fmt.Sprint(n.engine.Calls()); calls != "[AddNetwork blue AddPort p1 AddVolume v1]" {
		t.Errorf("the start went on: %s", calls)
	}
}

// TestReloadWhileStarting reads a file again that has changed since it was read first.
func TestReloadWhileStarting(t *testing.T) {
	n := newNode(t, blue)
	n.engine.Fail = func(method, _ string) error {
		if method == "AddPort" {
			n.configure(t, blue+"uplinks: [{name: up0, interface: eth1}]\n")
			n.signals <- unix.SIGHUP
			for len(n.signals) > 0 { // until it was taken
				time.Sleep(time.Millisecond)
			}
		}
		return nil
	}
	n.start(t)
	n.expect(t, "RELOADING=1")
	n.expect(t, "READY=1")
	if calls := fmt.Sprint(n.engine.Calls()); calls != "[AddNetwork blue AddPort p1 AddUplink up0]" {
		t.Errorf("it called %s", calls)
	}
	n.signals <- unix.SIGTERM
	n.ends(t, 0)
}

// slow is an engine that takes its time to close.
type slow struct {
	*controltest.Engine
	takes time.Duration
}

func (s slow) Close(context.Context) error {
	time.Sleep(s.takes)
	return nil
}

// mortal is an engine that ends by itself.
type mortal struct {
	*controltest.Engine
	ended chan error
}

func (m mortal) Ended() <-chan error { return m.ended }

func TestEngineEnds(t *testing.T) {
	n := newNode(t, blue)
	m := mortal{n.engine, make(chan error, 1)}
	go func() { n.status <- Main(n.options(m, nil)) }()
	n.expect(t, "READY=1")
	m.ended <- errors.New("a worker met a fault of ours")
	n.expect(t, "STOPPING=1")
	n.ends(t, 1)
	n.logged(t, `msg="shuntd failed" error="the engine ended: a worker met a fault of ours"`)
}

func TestWatchdog(t *testing.T) {
	t.Setenv("WATCHDOG_USEC", "20000")
	n := newNode(t, "")
	n.start(t)
	n.expect(t, "WATCHDOG=1")
	n.expect(t, "WATCHDOG=1")
	n.signals <- unix.SIGINT
	n.ends(t, 0)
}

func TestMetrics(t *testing.T) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	free.Close()
	n := newNode(t, "")
	write(t, n.file, fmt.Sprintf("control: {socket: %s, metrics: %q}\n%s", n.socket, address, blue))
	n.engine.Counters = func() control.Stats {
		return control.Stats{Objects: []control.ObjectStats{
			{Kind: control.KindPort, Name: "p1", Counters: control.Counters{RxPackets: 1, RxBytes: 2, TxPackets: 3, TxBytes: 4,
				Drops: map[string]uint64{"no-route": 5}, More: map[string]uint64{"kicks": 6}},
				Queues: []control.QueueStats{{Queue: 1, Worker: 2, Counters: control.Counters{RxPackets: 8}}}},
			{Kind: control.KindWorker, Name: "0", Counters: control.Counters{More: map[string]uint64{"busy-ns": 1_500_000_000}}},
			{Kind: control.KindUplink, Name: "up0", Counters: control.Counters{TxPackets: 7}},
		}}
	}
	n.start(t)
	response, err := http.Get("http://" + address + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(response.Body)
	response.Body.Close()
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatal(response.Status, err)
	}
	for _, line := range []string{
		`shunt_port_receive_packets_total{port="p1"} 1`, `shunt_port_receive_bytes_total{port="p1"} 2`,
		`shunt_port_transmit_packets_total{port="p1"} 3`, `shunt_port_transmit_bytes_total{port="p1"} 4`,
		`shunt_drops_total{kind="port",object="p1",reason="no-route"} 5`, `shunt_events_total{event="kicks",kind="port",object="p1"} 6`,
		`shunt_queue_receive_packets_total{kind="port",object="p1",queue="1",worker="2"} 8`,
		`shunt_worker_busy_seconds_total{worker="0"} 1.5`, `shunt_captures 0`,
		`shunt_uplink_transmit_packets_total{uplink="up0"} 7`, `shunt_port_connected{network="blue",port="p1"} 0`,
		`shunt_network_fdb_entries{network="blue",origin="learned"} 0`, `shunt_worker_busy_ratio{worker="0"} 0`,
		`shunt_config_failed_objects 0`, `shunt_build_info{version="` + control.Version() + `"} 1`, `go_goroutines `,
	} {
		if !strings.Contains(string(text), "\n"+line) {
			t.Errorf("no line %s", line)
		}
	}
	n.signals <- unix.SIGTERM
	n.ends(t, 0)
}

func TestJournal(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(newJournal(&out, slog.LevelDebug)).With("port", "p1")
	log.Debug("d")
	log.Info("i", "time", "kept in groups only")
	log.Warn("w")
	log.WithGroup("g").Error("e", "time", 5)
	want := "<7>msg=d port=p1\n<6>msg=i port=p1\n<4>msg=w port=p1\n<3>msg=e port=p1 g.time=5\n"
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	if stream := fmt.Sprintf("%d:%d", st.Dev, st.Ino); !isJournal(f, stream) || isJournal(f, stream+"1") || isJournal(f, "") {
		t.Error("the journal is not told from other outputs")
	}
}
