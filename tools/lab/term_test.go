package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shuntio/shunt/tools/lab/netlab"
)

// TestStopWhileStarting stops daemons at different moments of their start, with an uplink, ports, and disks on servers that do not answer, for which alone a start takes
// seconds. Each ends soon, with status 0, and with nothing left.
func TestStopWhileStarting(t *testing.T) {
	t.Parallel()
	host := namespace(t, "host")
	wire(t, netlab.End{Namespace: host, Name: "up0", Addrs: []string{"192.0.2.1/24"}}, netlab.End{Namespace: namespace(t, "far"), Name: "far0"})
	dir, err := os.MkdirTemp("", "term")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	var c strings.Builder
	c.WriteString("workers: {huge-pages: off}\nuplinks: [{name: up0, interface: up0}]\nnetworks: [{name: blue, vni: 7, uplink: up0}]\nports:\n")
	var sockets []string
	for i := range 20 {
		sockets = append(sockets, filepath.Join(dir, fmt.Sprintf("p%d", i)))
		fmt.Fprintf(&c, "  - {name: p%d, network: blue, socket: %s, mac: '52:54:00:00:01:%02x'}\n", i, sockets[i], i)
	}
	c.WriteString("volumes:\n")
	for i := range 200 {
		fmt.Fprintf(&c, "  - {name: v%d, socket: %s/v%[1]d, source: 'nbd://192.0.2.%[3]d/d'}\n", i, dir, 10+i)
	}
	d := prepare(t, host, "shuntd", c.String())
	if err := d.WriteConfig(); err != nil {
		t.Fatal(err)
	}
	binary := shuntd(t)
	before := 0 // daemons that were stopped before they were ready
	for _, delay := range []time.Duration{0, 20, 50, 100, 200, 400, 800} {
		p, err := netlab.Start(host.Command(context.Background(), binary, "--config", d.ConfigFile()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Kill)
		for ctx := within(t, 20*time.Second); ctx.Err() == nil && p.Running(); time.Sleep(time.Millisecond) { // until it listens to signals
			if _, err := os.Lstat(d.Socket()); err == nil {
				break
			}
		}
		time.Sleep(delay * time.Millisecond)
		told := time.Now()
		p.Signal(syscall.SIGTERM)
		select {
		case <-p.Exited():
		case <-time.After(20 * time.Second):
			t.Fatalf("stopped %v after its control socket was there it runs on\n%s", delay*time.Millisecond, p.Output())
		}
		took := time.Since(told)
		status, err := p.Result()
		if err != nil || took > 5*time.Second {
			t.Errorf("stopped after %d ms it ends with status %d (%v) after %v\n%s", delay, status, err, took, p.Output())
		}
		if strings.Contains(p.Output(), "shuntd stops before it is ready") {
			before++
		}
		left, err := d.Leftovers(sockets...)
		if err != nil || len(left) > 0 || len(ringFiles(dir)) > 0 {
			t.Errorf("stopped after %d ms it leaves %v %v (%v)\n%s", delay, left, ringFiles(dir), err, p.Output())
		}
		if files, err := os.ReadDir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) || len(files) > 0 {
			t.Errorf("stopped after %d ms it leaves %v (%v)", delay, files, err)
		}
		t.Logf("%d ms after its control socket was there: ended within %v", delay, took.Round(time.Millisecond))
	}
	if before < 3 {
		t.Errorf("only %d were still starting: the test shows nothing", before)
	}
}
