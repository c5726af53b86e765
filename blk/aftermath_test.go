package blk_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/blk/blktest"
	"github.com/shuntio/shunt/blk/driver"
	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/virtq"
)

// tenancy is a volume on a disk, from its opening to its close, with guests whose front-ends keep no in-flight area.
type tenancy struct {
	testing.TB
	store   *blktest.Store
	volume  *blk.Volume
	device  *blk.Device
	backend *vhostuser.Backend
	path    string
	disk    *driver.Disk
	sync    *driver.Sync
	keeps   bool // the front-end keeps an in-flight area
}

func tenant(tb testing.TB, host blk.Host, source string, quiesce time.Duration) *tenancy {
	tb.Helper()
	return tenantOf(tb, host, blk.VolumeOptions{Source: source}, quiesce)
}

func tenantOf(tb testing.TB, host blk.Host, o blk.VolumeOptions, quiesce time.Duration) *tenancy {
	tb.Helper()
	n := &tenancy{TB: tb, path: filepath.Join(tb.TempDir(), "s")}
	n.volume, n.store = openVolume(tb, blktest.Options{Size: 1 << 20, Quiesce: quiesce}, o)
	var err error
	n.device, err = blk.NewDevice(blk.DeviceOptions{Volume: n.volume, Queues: []blk.Host{host}})
	check(tb, err)
	n.device.Start()
	n.backend, err = vhostuser.Listen(vhostuser.Options{Path: n.path, Log: slog.New(slog.DiscardHandler)}, n.device)
	check(tb, err)
	return n
}

// come brings a guest.
func (n *tenancy) come() {
	n.Helper()
	ctx, cancel := context.WithTimeout(n.Context(), 20*time.Second)
	defer cancel()
	var err error
	n.disk, err = driver.Dial(ctx, n.path, driver.Options{Memory: 1 << 20, Inflight: n.keeps})
	check(n, err)
	n.Cleanup(func() { n.disk.Close() })
	n.sync, err = n.disk.NewSync(0, 4096)
	check(n, err)
}

// begin has a guest ask a silent store for something.
func (n *tenancy) begin(op driver.Op) {
	n.Helper()
	n.come()
	n.store.Silence(true)
	n.submit(op)
	n.await("the store has a request", func(s *blk.VolumeStats) bool { return s.InFlight == 1 })
}

func (n *tenancy) submit(op driver.Op) {
	n.Helper()
	r := &driver.Request{Op: op}
	if op == driver.WriteZeroes {
		r.Ranges = []driver.Range{{Sectors: 8}}
	} else {
		at, err := n.disk.Alloc(4096)
		check(n, err)
		r.Data = []virtq.Buffer{at.Segment(0, 4096)}
	}
	check(n, n.disk.Queue(0).Submit(r))
	n.disk.Queue(0).Kick()
}

// leave has the guest go in the midst of that.
func (n *tenancy) leave(op driver.Op) {
	n.Helper()
	n.begin(op)
	check(n, n.disk.Close())
	n.await("the request is called back", func(s *blk.VolumeStats) bool { return s.Withdrawn == 1 })
	n.store.Silence(false)
}

func (n *tenancy) await(what string, is func(*blk.VolumeStats) bool) {
	n.Helper()
	for end := time.Now().Add(20 * time.Second); !is(n.volume.Stats()); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			n.Fatal("waited for: " + what)
		}
	}
}

func (n *tenancy) end() {
	n.Helper()
	check(n, n.backend.Close())
	check(n, n.device.Close())
	check(n, n.volume.Close())
}

// waits wants the volume to hold writes back, or not to.
func (n *tenancy) waits(when string, want bool) {
	n.Helper()
	waits := n.device.State().Waits
	if len(waits) > 0 != want || want && (waits[0].Why == "" || !waits[0].Until.After(time.Now())) {
		n.Errorf("%s: it waits: %+v", when, waits)
	}
}

// TestUnended: who opens a disk that this process closed with writes that may not have ended waits for them, whoever the guest is.
func TestUnended(t *testing.T) {
	host := blktest.Run(t, 1)[0]
	answered := func(n *tenancy) {
		n.come()
		_, err := n.sync.ReadAt(make([]byte, 512), 0)
		check(n, err)
	}
	for name, c := range map[string]struct {
		before func(*tenancy)
		next   string
		waits  bool
	}{
		"a write":                {before: func(n *tenancy) { n.leave(driver.Out) }, waits: true},
		"zeroes":                 {before: func(n *tenancy) { n.leave(driver.WriteZeroes) }, waits: true},
		"a read":                 {before: func(n *tenancy) { n.leave(driver.In) }},
		"a write, elsewhere":     {before: func(n *tenancy) { n.leave(driver.Out) }, next: "/elsewhere"},
		"all answered":           {before: answered},
		"a write, then answered": {before: func(n *tenancy) { n.leave(driver.Out); answered(n) }},
		"a write lost":           {before: func(n *tenancy) { n.begin(driver.Out); n.store.Break(context.Canceled) }, waits: true},
	} {
		source := t.TempDir() + name
		n := tenant(t, host, source, time.Hour)
		n.waits(name+", before", false)
		c.before(n)
		n.end()
		for _, turn := range []string{", next", ", the one after it"} { // as long as it waits itself, whoever comes next does
			n = tenant(t, host, source+c.next, time.Hour)
			n.waits(name+turn, c.waits)
			if c.waits { // and is gone with a write that waits
				n.come()
				n.submit(driver.Out)
				n.await("a write waits", func(s *blk.VolumeStats) bool { return s.Waiting == 1 })
			}
			n.end()
		}
	}
}

// unended is a disk that was left with a write and opened again, while the write may not have ended: however long the machine takes for that, it waits a while from then.
func unended(t *testing.T, host blk.Host, o blk.VolumeOptions, between func()) (n *tenancy, quiesce time.Duration) {
	t.Helper()
	for quiesce = 400 * time.Millisecond; ; quiesce *= 2 {
		n = tenantOf(t, host, o, quiesce)
		n.leave(driver.Out)
		n.end()
		left := time.Now()
		between()
		n = tenantOf(t, host, o, quiesce)
		waits := n.device.State().Waits
		switch late := time.Since(left) > quiesce/2; {
		case len(waits) == 1 && !late:
			return n, quiesce
		case !late || quiesce > 10*time.Second:
			t.Fatalf("opened again after %v, it waits: %+v", time.Since(left), waits)
		}
		n.end()
	}
}

// TestUnendedEnds: writes wait until that is over, reads do not, and nobody waits for it twice.
func TestUnendedEnds(t *testing.T) {
	source := t.TempDir() // that nobody has had
	host := blktest.Run(t, 1)[0]
	n, quiesce := unended(t, host, blk.VolumeOptions{Source: source}, func() {})
	until := n.device.State().Waits[0].Until
	n.come()
	_, err := n.sync.ReadAt(make([]byte, 512), 0)
	check(t, err)
	read := time.Now()
	_, err = n.sync.WriteAt(make([]byte, 512), 0)
	check(t, err)
	if early := time.Until(until); early > time.Millisecond {
		t.Errorf("a write is done %v before it may be", early)
	}
	t.Logf("a read is answered %v before the write", time.Since(read))
	n.waits("when it is over", false)
	n.end()
	n = tenant(t, host, source, quiesce)
	n.waits("the one after it", false)
	n.end()
}

// TestUnendedTold: the next process is told of what this one leaves, where no in-flight area does: of a disk that is closed with writes that may not have ended, and of one in use when it is killed.
func TestUnendedTold(t *testing.T) {
	host := blktest.Run(t, 1)[0]
	for name, c := range map[string]struct {
		keeps, waits bool
		before       func(*tenancy)
	}{
		"a write":                     {before: func(n *tenancy) { n.leave(driver.Out); n.end() }, waits: true},
		"a write, in an area":         {before: func(n *tenancy) { n.leave(driver.Out); n.end() }, waits: true, keeps: true}, // which goes with its guest
		"a read":                      {before: func(n *tenancy) { n.leave(driver.In); n.end() }},
		"killed":                      {before: (*tenancy).come, waits: true},
		"killed, and an area is kept": {before: (*tenancy).come, keeps: true},
	} {
		o := blk.VolumeOptions{Source: t.TempDir(), Unended: filepath.Join(t.TempDir(), "disks")}
		n := tenantOf(t, host, o, time.Hour)
		n.keeps = c.keeps
		n.waits(name+", before", false)
		c.before(n)
		blk.ForgetUnended()
		elsewhere := o
		elsewhere.Unended = t.TempDir()
		next := tenantOf(t, host, elsewhere, time.Hour)
		next.waits(name+", told nothing", false)
		next.end()
		next = tenantOf(t, host, o, time.Hour)
		next.waits(name+", next process", c.waits)
		next.end()
		blk.ForgetUnended()
		next = tenantOf(t, host, o, time.Hour)
		next.waits(name+", the one after it", c.waits) // the last one has not waited to the end
		next.end()
	}
}

// TestUnendedToldOnce: whoever has waited tells nobody.
func TestUnendedToldOnce(t *testing.T) {
	host := blktest.Run(t, 1)[0]
	o := blk.VolumeOptions{Source: t.TempDir(), Unended: filepath.Join(t.TempDir(), "disks")}
	n, _ := unended(t, host, o, blk.ForgetUnended)
	n.come()
	_, err := n.sync.WriteAt(make([]byte, 512), 0)
	check(t, err)
	n.end()
	left, err := os.ReadDir(o.Unended)
	if err != nil || len(left) != 0 {
		t.Errorf("%d files are left, %v", len(left), err)
	}
}

// TestUnendedUntold: that the next process cannot be told is said.
func TestUnendedUntold(t *testing.T) {
	host := blktest.Run(t, 1)[0]
	o := blk.VolumeOptions{Source: t.TempDir(), Unended: "/proc/disks"}
	n := tenantOf(t, host, o, time.Hour)
	n.waits("nobody has told of it", false)
	n.leave(driver.Out)
	check(t, n.backend.Close())
	check(t, n.device.Close())
	if err := n.volume.Close(); err == nil || !strings.Contains(err.Error(), "cannot be told") {
		t.Errorf("it is closed: %v", err)
	}
}
