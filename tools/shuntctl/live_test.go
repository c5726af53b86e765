package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	tea "charm.land/bubbletea/v2"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/controltest"
	"github.com/shuntio/shunt/tools/need"
)

// buffer is written by a command and read by its test.
type buffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// moments are two looks at a daemon, two seconds apart.
func moments() (was, is snapshot) {
	at := time.Unix(1000, 0).UTC()
	make := func(n uint64) snapshot {
		s := snapshot{
			status: control.Status{Version: "v1.2.3", PID: 7, Started: at.Add(-3*time.Hour - time.Minute), EngineStatus: control.EngineStatus{
				Workers: []control.WorkerStatus{
					{ID: 0, CPU: 1, Busy: 0.62, Rounds: 1e6 * n, Sleeps: 12 * n, Packets: 3_000_000 * n, Frames: 16384, FreeFrames: 14336},
					{ID: 1, CPU: -1, Frames: 16384, FreeFrames: 16384},
				},
				Uplinks: []control.UplinkStatus{{Name: "up0", State: control.StateUp}},
			}},
			stats: control.Stats{At: at.Add(time.Duration(n) * time.Second), Reasons: map[string]string{"no-route": "the underlay has no route to the VTEP"}},
		}
		s.stats.Objects = []control.ObjectStats{
			{Kind: control.KindWorker, Name: "0"},
			{Kind: control.KindUplink, Name: "up0", Counters: control.Counters{TxPackets: 500 * n, TxBytes: 700_000 * n, Drops: map[string]uint64{"no-route": 41 * n}}},
		}
		for i := range uint64(20) {
			name := fmt.Sprintf("vm%02d-eth0", i)
			s.status.Ports = append(s.status.Ports, control.PortStatus{Name: name, State: control.StateConnected})
			s.stats.Objects = append(s.stats.Objects, control.ObjectStats{Kind: control.KindPort, Name: name,
				Counters: control.Counters{RxPackets: i * n, RxBytes: 100 * i * n, TxPackets: (20 - i) * n, Drops: map[string]uint64{"limit": i % 3 * n}}})
		}
		return s
	}
	return make(0), make(2)
}

// TestTopPicture holds every picture to its size, and one of them to a golden file.
func TestTopPicture(t *testing.T) {
	was, is := moments()
	v := newTopView(sortDrops, time.Second)
	if text := v.text(80, 24); !strings.Contains(text, "looking") {
		t.Errorf("before anything is known:\n%s", text)
	}
	v.update(was)
	v.update(is)
	clock := is.stats.At.Local().Format(time.TimeOnly)
	compare(t, filepath.Join("testdata", "top.golden"), strings.Replace(v.text(80, 24), clock, "00:16:42", 1)+"\n")
	for _, size := range [][2]int{{80, 24}, {40, 10}, {200, 60}, {80, 5}, {1, 1}} {
		for v.scroll = range 30 {
			text := v.text(size[0], size[1])
			lines := strings.Split(text, "\n")
			for _, line := range lines {
				if utf8.RuneCountInString(line) > max(size[0], 40) {
					t.Errorf("a line of %d for %d columns: %s", utf8.RuneCountInString(line), size[0], line)
				}
			}
			if len(lines) > max(size[1], 1) {
				t.Errorf("%d lines for %d", len(lines), size[1])
			}
		}
	}
	// Counters that begin anew show no rate, and a daemon that does neither.
	is.stats.At = is.stats.At.Add(time.Second)
	is.stats.Objects[1].TxPackets = 1
	v.update(is)
	if v.objects[1].txPackets != 0 {
		t.Errorf("%v packets a second of a counter that fell", v.objects[1].txPackets)
	}
	is.status.PID = 8
	if v.update(is); !strings.Contains(v.text(80, 24), "looking") {
		t.Error("rates between two daemons")
	}
	v.problem = errors.New("no shuntd answers")
	if !strings.Contains(v.text(80, 24), "no shuntd answers") {
		t.Error("the problem is not shown")
	}
}

// TestTopKeys presses every key.
func TestTopKeys(t *testing.T) {
	was, is := moments()
	m := &topModel{topView: newTopView(sortName, time.Second), ctx: t.Context(), width: 80, height: 24}
	press := func(key rune) tea.Cmd {
		k := tea.Key{Code: key, Text: string(key)}
		if key < ' ' || key > '~' {
			k.Text = ""
		}
		_, cmd := m.Update(tea.KeyPressMsg(k))
		return cmd
	}
	m.Update(arrived{snapshot: was})
	if _, cmd := m.Update(arrived{snapshot: is}); cmd == nil {
		t.Error("nothing waits for the next look")
	}
	first := func() string {
		lines := strings.Split(m.text(80, 24), "\n")
		for i, line := range lines {
			if strings.HasPrefix(line, "PORT OR UPLINK") {
				name, _, _ := strings.Cut(lines[i+1], " ")
				return name
			}
		}
		return ""
	}
	for key, want := range map[rune]string{'n': "up0", 'r': "vm19-eth0", 't': "up0", 'b': "up0", 'd': "up0"} {
		if press(key); first() != want {
			t.Errorf("%c: %s is first, want %s", key, first(), want)
		}
	}
	press('n')
	press(tea.KeyDown)
	if press('j'); first() != "vm01-eth0" {
		t.Errorf("two down: %s", first())
	}
	for range 5 {
		press(tea.KeyPgDown)
	}
	last := first()
	if press(tea.KeyDown); first() != last {
		t.Error("scrolled beyond the end")
	}
	if press(tea.KeyHome); first() != "up0" {
		t.Error("not at the beginning")
	}
	if press('?'); !strings.Contains(m.text(120, 24), "scroll") {
		t.Error("no help")
	}
	press(tea.KeySpace)
	was.status.PID = 9
	if m.Update(arrived{snapshot: was}); m.last.status.PID != 7 || !strings.Contains(m.text(80, 24), "paused") {
		t.Error("a paused picture changed")
	}
	if press('+') == nil || m.every != 500*time.Millisecond || m.turn != 1 {
		t.Errorf("faster: every %v", m.every)
	}
	if _, cmd := m.Update(due{turn: 0}); cmd != nil {
		t.Error("an old timer asks, too")
	}
	if _, cmd := m.Update(due{turn: 1}); cmd == nil {
		t.Error("the timer does not ask")
	}
	m.Update(tea.WindowSizeMsg{Width: 100, Height: 30})
	if v := m.View(); strings.Count(v.Content, "\n") != 29 || !v.AltScreen {
		t.Error("the window's size is not minded")
	}
	if cmd := press('q'); cmd == nil || cmd() != tea.Quit() {
		t.Error("q does not quit")
	}
}

// growing makes the fake daemon's counters grow: so many packets and bytes of 1000 bits a look.
func growing(t *testing.T) string {
	var looks atomic.Uint64
	counters := func() control.Stats {
		n := looks.Add(1)
		return control.Stats{At: time.Unix(int64(n), 0).UTC(), Objects: []control.ObjectStats{
			{Kind: control.KindPort, Name: "vm1-eth0", Counters: control.Counters{RxPackets: 1234 * n, RxBytes: 125_000 * n, Drops: map[string]uint64{"limit": 3 * n},
				More: map[string]uint64{"calls": 7 * n}}},
		}}
	}
	_, socket := daemon(t, func(e *controltest.Engine) { e.Counters = counters })
	return socket
}

func TestStatsWatch(t *testing.T) {
	socket := growing(t)
	for _, test := range []struct{ args, want string }{
		{"stats -w -i 0.1", "vm1-eth0  1.2 k   1.0 M     0       0         3"},
		{"stats vm1-eth0 --watch --interval 100ms", "calls                 7"},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		out := &buffer{}
		done := make(chan int, 1)
		go func() {
			done <- run(ctx, append(strings.Fields(test.args), "--socket", socket), strings.NewReader(""), out, io.Discard)
		}()
		await(t, "two tables", func() bool { return strings.Count(out.String(), test.want) >= 2 })
		cancel()
		if status := <-done; status != 0 {
			t.Errorf("%s: status %d", test.args, status)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	out := &buffer{}
	done := make(chan int, 1)
	go func() {
		done <- run(ctx, []string{"stats", "-w", "-i", "0.1", "-o", "json", "--socket", socket}, nil, out, io.Discard)
	}()
	await(t, "three lines", func() bool { return strings.Count(out.String(), "\n") >= 3 })
	cancel()
	<-done
	for line := range strings.Lines(out.String()) {
		var s control.Stats
		if err := json.Unmarshal([]byte(line), &s); err != nil || len(s.Objects) == 0 {
			t.Errorf("%v in %s", err, line)
		}
	}
}

func TestTopWithoutTerminal(t *testing.T) {
	socket := growing(t)
	ctx, cancel := context.WithCancel(t.Context())
	out := &buffer{}
	done := make(chan int, 1)
	go func() {
		done <- run(ctx, []string{"top", "-i", "0.1", "--sort", "rx", "--socket", socket}, nil, out, io.Discard)
	}()
	await(t, "two pictures", func() bool { return strings.Count(out.String(), "vm1-eth0         connected") >= 2 })
	cancel()
	if status := <-done; status != 0 || strings.Contains(out.String(), "\x1b") {
		t.Errorf("status %d, or escapes in %q", status, out.String())
	}
}

// TestTopOnTerminal runs the program in a terminal of 80 by 24, presses keys, and looks at the screen.
func TestTopOnTerminal(t *testing.T) {
	need.Program(t, "tmux")
	socket := growing(t)
	dir := t.TempDir()
	program := filepath.Join(dir, "shuntctl")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	tmux := func(args ...string) string {
		cmd := exec.Command("tmux", append([]string{"-S", filepath.Join(dir, "tmux"), "-f", "/dev/null"}, args...)...)
		cmd.Env = append(os.Environ(), "TERM=screen-256color", "LC_ALL=C.UTF-8", "TMUX=")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("tmux %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	tmux("-u", "new-session", "-d", "-x", "80", "-y", "24", program+" top -i 0.2 --socket "+socket+"; echo left with $?; sleep 100")
	t.Cleanup(func() { tmux("kill-server") })
	screen := func() string { return tmux("capture-pane", "-p") }
	shows := func(what ...string) func() bool {
		return func() bool {
			text := screen()
			for _, w := range what {
				if !strings.Contains(text, w) {
					return false
				}
			}
			return true
		}
	}
	defer func() {
		if t.Failed() {
			t.Logf("the screen:\n%s", screen())
		}
	}()
	await(t, "the picture", shows("shuntd ", "WORKER", "12.3 %", "vm1-eth0", "connected", "1.2 k", "limit", "sorted by name", "q: quit"))
	tmux("send-keys", "d")
	await(t, "the sorting", shows("sorted by drops"))
	tmux("resize-window", "-x", "60", "-y", "16")
	await(t, "the smaller picture", shows("sorted by drops", "vm1-eth0"))
	tmux("send-keys", "q")
	await(t, "the end", shows("left with 0"))
	if text := screen(); strings.Contains(text, "WORKER") {
		t.Errorf("the terminal is not as it was:\n%s", text)
	}
}

// scripted is a capture of a fake engine.
type scripted struct {
	run      func(ctx context.Context, out io.Writer) error
	counters control.CaptureCounters
}

func (s *scripted) Run(ctx context.Context, out io.Writer) error { return s.run(ctx, out) }
func (s *scripted) Counters() control.CaptureCounters            { return s.counters }

func TestCapture(t *testing.T) {
	var asked atomic.Pointer[control.CaptureOptions]
	begun := make(chan struct{}, 1)
	capturer := func(o control.CaptureOptions) (control.Capture, error) {
		asked.Store(&o)
		if o.Filter == "banana" {
			return nil, fmt.Errorf("%w: filter, column 1: banana", control.ErrRequest)
		}
		return &scripted{counters: control.CaptureCounters{Packets: 1234, Missed: 5}, run: func(ctx context.Context, out io.Writer) error {
			if _, err := io.WriteString(out, "packets "); err != nil {
				return err
			}
			begun <- struct{}{}
			if o.Count == 0 {
				<-ctx.Done()
			}
			if o.Count == 2 {
				return errors.New("the ring burst")
			}
			_, err := io.WriteString(out, "statistics")
			return err
		}}, nil
	}
	_, socket := daemon(t, func(e *controltest.Engine) { e.Capturer = capturer })
	file := filepath.Join(t.TempDir(), "out.pcapng")
	var out, errs bytes.Buffer
	args := strings.Fields("capture vm1-eth0 up0 --count 1 --snaplen 96 --direction in --drops no-route,spoofed-mac --socket " + socket + " -w " + file)
	status := run(t.Context(), append(args, "--filter", "tcp port 80"), nil, &out, &errs)
	if want := "1 234 packets captured, 5 missed, 18 B written\n"; status != 0 || errs.String() != want {
		t.Errorf("status %d, %q, want %q", status, errs.String(), want)
	}
	<-begun
	if text, err := os.ReadFile(file); err != nil || string(text) != "packets statistics" {
		t.Errorf("the file has %q %v", text, err)
	}
	want := control.CaptureOptions{Names: []string{"vm1-eth0", "up0"}, Direction: "in", Drops: []string{"no-route", "spoofed-mac"}, Filter: "tcp port 80", Snaplen: 96, Count: 1}
	if got := fmt.Sprintf("%+v", *asked.Load()); got != fmt.Sprintf("%+v", want) {
		t.Errorf("asked for %s", got)
	}

	// Ctrl-C: what comes at the end is still there.
	ctx, cancel := context.WithCancel(t.Context())
	piped := &buffer{}
	var ended bytes.Buffer
	done := make(chan int, 1)
	go func() {
		done <- run(ctx, strings.Fields("capture -w - --socket "+socket), nil, piped, &ended)
	}()
	<-begun
	var list bytes.Buffer
	if status := run(t.Context(), strings.Fields("capture --list --socket "+socket), nil, &list, io.Discard); status != 0 || !strings.Contains(list.String(), "1 234") {
		t.Errorf("list: %d %s", status, list.String())
	}
	cancel()
	if status := <-done; status != 0 || piped.String() != "packets statistics" || !strings.HasPrefix(ended.String(), "1 234 packets captured") {
		t.Errorf("ended: %d %q %q", status, piped.String(), ended.String())
	}

	// Another one ends it.
	go func() {
		done <- run(t.Context(), strings.Fields("capture -w - --socket "+socket), nil, io.Discard, io.Discard)
	}()
	<-begun
	if status := run(t.Context(), strings.Fields("capture --end 3 --socket "+socket), nil, io.Discard, io.Discard); status != 0 {
		t.Errorf("end: %d", status)
	}
	if status := <-done; status != 0 {
		t.Errorf("ended by another: %d", status)
	}

	for _, test := range []struct {
		args, want string
		status     int
	}{
		{"capture", "shuntctl: capture to which file? name it with -w", 2},
		{"capture -w " + file + " --filter banana", "shuntctl: bad request: filter, column 1: banana", 2},
		{"capture -w " + file + " --direction up", `shuntctl: direction "up" is not in, out, both or none`, 2},
		{"capture -w " + file + " --direction none", "shuntctl: neither packets that pass nor packets that are dropped", 2},
		{"capture -w /no/such/dir/f --count 1", "shuntctl: open /no/such/dir/f: no such file", 2},
		{"capture -w " + file + " --count 2", "shuntctl: the capture broke off after 8 B", 1},
		{"capture --end 99", "shuntctl: there is no capture 99", 1},
		{"top -o json", "shuntctl: top is for people", 2},
		{"top --sort size", `shuntctl: invalid argument "size" for "--sort" flag: sort by name, rx, tx, bits or drops`, 2},
		{"stats -w -i 1ms", `shuntctl: invalid argument "1ms" for "-i, --interval" flag: 1ms is not between 100ms and 1h0m0s`, 2},
	} {
		var errs bytes.Buffer
		status := run(t.Context(), append(strings.Fields(test.args), "--socket", socket), nil, io.Discard, &errs)
		if status != test.status || !strings.HasPrefix(errs.String(), test.want) {
			t.Errorf("%s: status %d, %q; want %d, %q", test.args, status, errs.String(), test.status, test.want)
		}
		select {
		case <-begun:
		default:
		}
	}
}

// TestCaptureIntoBrokenPipe runs the program before a reader that goes away: that is an end, not a crash.
func TestCaptureIntoBrokenPipe(t *testing.T) {
	left := make(chan error, 1)
	capturer := func(control.CaptureOptions) (control.Capture, error) {
		return &scripted{run: func(ctx context.Context, out io.Writer) error {
			var err error
			for err == nil && ctx.Err() == nil {
				_, err = out.Write(make([]byte, 1000))
				time.Sleep(time.Millisecond)
			}
			left <- err
			return err
		}}, nil
	}
	_, socket := daemon(t, func(e *controltest.Engine) { e.Capturer = capturer })
	program := filepath.Join(t.TempDir(), "shuntctl")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-c", program+" capture -w - --socket "+socket+" | head -c 3000 >/dev/null; echo done")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "whoever read the capture went away") || !strings.Contains(string(out), "done") {
		t.Errorf("%v: %s", err, out)
	}
	select {
	case <-left:
	case <-time.After(20 * time.Second):
		t.Error("the daemon goes on capturing")
	}
}
