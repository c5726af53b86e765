package lab

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk/driver"
	"github.com/shuntio/shunt/blk/driver/verify"
	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/lab/daemon"
)

// TestStartWithout: when a killed daemon is started again, the uplink's interface and the file of one disk are not there. The other disk is served at once. When
// they are back so are the guests behind them, without anybody's doing: what the disk had under way is done. The interface's queue is taken then, so that the uplink fails once
// more, and the program that the killed daemon left keeps its frames from the kernel all the while.
//
//	10.0.0.1 ─ p1 ─ blue, VNI 7 ─ up0 ═ far0 ─ vx7 10.0.0.2
//	driver ─ lost ─ image, away     driver ─ neighbour ─ image
func TestStartWithout(t *testing.T) {
	ctx := within(t, 2*time.Minute)
	host := &site{host: namespace(t, "host"), far: namespace(t, "far")}
	host.join(t, "up0")
	s := newShelf(t, "[0, 1]")
	s.file(t, "neighbour", "")
	s.file(t, "lost", ", limits: {iops: 1000}") // so that there is always something under way
	fmt.Fprintf(&s.config, `uplinks: [{name: up0, interface: up0}]
networks: [{name: blue, vni: 7, uplink: up0, flood: [192.0.2.2]}]
ports: [{name: p1, network: blue, socket: %q, mac: "52:54:00:00:00:01"}]
`, s.socket("p1"))
	d := start(t, host.host, "shuntd", s.config.String())
	ask := func() {
		t.Helper()
		must(t, connect(t, s.socket("p1"), "52:54:00:00:00:01", "10.0.0.1", "10.0.0.2").ask(ctx, 0))
	}
	ask()
	o := driver.Options{EventIdx: true, Indirect: true, Inflight: true, Reconnect: true}
	neighbour, lost := s.user(t, "neighbour", o, verify.Options{Seed: 1}), s.user(t, "lost", o, verify.Options{Seed: 2, MaxBytes: 64 << 10})
	neighbour.begin(t)
	lost.begin(t)
	must(t, moves(ctx, 40, neighbour, lost))

	d.Kill()
	free := takeQueue(t, host.host)
	defer free()
	away := s.image("lost") + ".away"
	must(t, os.Rename(s.image("lost"), away))
	run(t, host.host, "ip", "link", "set", "up0", "down")
	run(t, host.host, "ip", "link", "set", "up0", "name", "away0")
	began := time.Now()
	part := (*daemon.PartError)(nil)
	if err := d.Start(ctx); !errors.As(err, &part) || len(part.Failed) != 4 {
		t.Fatalf("started without a file and an interface: %v", err)
	}
	must(t, moves(ctx, 40, neighbour))
	t.Logf("the neighbour's disk is served %v after the start, while there is neither\n%v", time.Since(began), part)
	rings := url.PathEscape(s.socket("p1"))
	if _, err := os.Stat(filepath.Join("/run/shunt/rings", rings)); err != nil {
		if _, err := os.Stat(filepath.Join("/dev/shm/shunt/rings", rings)); err != nil {
			t.Errorf("where the rings of a port that is still to come stood is forgotten: %v", err)
		}
	}

	began = time.Now()
	must(t, os.Rename(away, s.image("lost")))
	run(t, host.host, "ip", "link", "set", "away0", "name", "up0")
	run(t, host.host, "ip", "link", "set", "up0", "up")
	must(t, moves(ctx, 40, lost))
	t.Logf("the file's guest is served %v after it is back", time.Since(began))
	failed := func() string {
		status, err := d.API().Status(ctx)
		must(t, err)
		return fmt.Sprint(status.Failed)
	}
	awaitCondition(t, ctx, "the uplink to find its queue taken", func() bool { return strings.Contains(failed(), "another AF_XDP socket holds the queue") })
	if out := run(t, host.host, "ip", "link", "show", "up0"); !strings.Contains(out, "xdp") {
		t.Errorf("the killed daemon's program is gone, and the kernel gets its frames: %s", out)
	}
	free()
	awaitCondition(t, ctx, "everything to be as configured", func() bool { return failed() == "[]" })
	ask()
	t.Logf("the interface's %v after", time.Since(began))
	c, err := d.Counters(ctx, control.KindVolume, "lost")
	must(t, err)
	if c.More["resumed"] == 0 {
		t.Errorf("nothing that was under way was done again: %v", c.More)
	}
	for _, u := range []*user{neighbour, lost} {
		if r := u.end(t); r.Reconnects == 0 {
			t.Errorf("volume %s: the driver has not connected again", u.name)
		}
		u.check(t)
		u.checkImage(t, s.image(u.name))
	}
}
