package lab

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk/driver"
	"github.com/shuntio/shunt/blk/driver/verify"
	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/lab/daemon"
	"github.com/shuntio/shunt/tools/lab/peer"
	"github.com/shuntio/shunt/tools/need"
)

// shelf is a directory of images, each the disk of a volume, and of the sockets in front of them. There is no guest: the test itself is the driver.
//
//	verifying load ─ driver ─ vhost-user ─ shuntd ─┬─ io_uring ─ image
//	                                               └─ io_uring, unix socket ─ NBD server ─ image
type shelf struct {
	dir    string
	config strings.Builder
}

const shelfDisk = 32 << 20

func newShelf(t *testing.T, cpus string) *shelf {
	t.Helper()
	s := &shelf{dir: t.TempDir()}
	t.Cleanup(s.forget)
	fmt.Fprintf(&s.config, "workers: {cpus: %s, huge-pages: off}\nvolumes:\n", cpus)
	return s
}

// forget removes what daemons have left for the next one that has a disk of the shelf's.
func (s *shelf) forget() {
	for _, dir := range []string{"/run/shunt/disks", "/dev/shm/shunt/disks"} {
		entries, _ := os.ReadDir(dir) // none: nothing was left
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			if name, err := os.ReadFile(path); err == nil && strings.Contains(string(name), s.dir+"/") {
				_ = os.Remove(path)
			}
		}
	}
}

func (s *shelf) image(name string) string  { return filepath.Join(s.dir, name) }
func (s *shelf) socket(name string) string { return filepath.Join(s.dir, name+".sock") }
func (s *shelf) nbd(name string) string {
	return "nbd+unix:///?socket=" + filepath.Join(s.dir, name+".nbd")
}

// blank makes an image that is all zero.
func (s *shelf) blank(t *testing.T, name string, size int64) {
	t.Helper()
	must(t, os.WriteFile(s.image(name), nil, 0o600))
	must(t, os.Truncate(s.image(name), size))
}

// file adds a volume whose store is its image.
func (s *shelf) file(t *testing.T, name, more string) {
	t.Helper()
	s.blank(t, name, shelfDisk)
	s.volume(name, "file://"+s.image(name), more)
}

// volume adds one with a source; more are keys, each with a comma in front.
func (s *shelf) volume(name, source, more string) {
	fmt.Fprintf(&s.config, "  - {name: %s, socket: %q, source: %q%s}\n", name, s.socket(name), source, more)
}

// nbdkit and qemuNBD serve a volume, with arguments of their own.
func (s *shelf) nbdkit(t *testing.T, name string, args ...string) *peer.NBDServer {
	return s.serve(t, name, `exec nbdkit -f -U "$0" "$@"`, args...)
}

func (s *shelf) qemuNBD(t *testing.T, name string, args ...string) *peer.NBDServer {
	return s.serve(t, name, `exec qemu-nbd -t -e 8 -f raw -k "$0" "$@"`, args...)
}

// serve starts a server by a shell's command, of which $0 is its socket: what is killed leaves that behind, and not each takes it over.
func (s *shelf) serve(t *testing.T, name, command string, args ...string) *peer.NBDServer {
	t.Helper()
	return s.serveAt(t, name, s.nbd(name), command, args...)
}

// serveAt is serve where what there is has another URI.
func (s *shelf) serveAt(t *testing.T, name, uri, command string, args ...string) *peer.NBDServer {
	t.Helper()
	need.Program(t, "nbdkit", "qemu-nbd", "nbdinfo")
	socket := filepath.Join(s.dir, name+".nbd")
	server, err := peer.StartNBD(t.Context(), nil, uri, "sh", append([]string{"-c", `rm -f "$0"; ` + command, socket}, args...)...)
	must(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("server of %s, running: %v\n%s", name, server.Running(), server.Output())
		}
		server.Signal(syscall.SIGCONT)
		server.Signal(syscall.SIGTERM) // on which nbdkit takes away what its script lay in
		select {
		case <-server.Exited():
		case <-time.After(time.Second):
			server.Kill()
		}
	})
	return server
}

// dial connects a driver, as soon as the volume is in service.
func (s *shelf) dial(t *testing.T, name string, o driver.Options) *driver.Disk {
	t.Helper()
	disk, err := driver.Dial(within(t, 30*time.Second), s.socket(name), o)
	must(t, err)
	t.Cleanup(func() { must(t, disk.Close()) })
	return disk
}

// user is a verifying load on a volume, with a driver of its own.
type user struct {
	name string
	disk *driver.Disk
	load *verify.Load
	stop context.CancelFunc
	done chan struct{}
	err  error // once done
	got  *verify.Report
}

// user connects one to a volume that is all zero.
func (s *shelf) user(t *testing.T, name string, d driver.Options, o verify.Options) *user {
	t.Helper()
	if o.Depth == 0 {
		o.Depth = 8
	}
	o.Fresh, o.Stall = true, 20*time.Second
	const spare = 64 << 10
	d.Memory = verify.Memory(max(d.Queues, 1), o) + spare
	u := &user{name: name, disk: s.dial(t, name, d)}
	o.Disk = u.disk
	var err error
	u.load, err = verify.New(o)
	must(t, err)
	return u
}

// begin begins the load; end ends it, and judges what was answered.
func (u *user) begin(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	u.stop, u.done = stop, make(chan struct{})
	go func() {
		defer close(u.done)
		u.got, u.err = u.load.Run(ctx, -1)
	}()
	t.Cleanup(func() { stop(); <-u.done })
}

func (u *user) end(t *testing.T) *verify.Report {
	t.Helper()
	u.stop()
	<-u.done
	if u.err != nil {
		t.Fatalf("volume %s: %v", u.name, u.err)
	}
	return u.got
}

func (u *user) completed() (n uint64) {
	for i := range u.disk.Queues() {
		n += u.disk.Queue(i).Stats().Completed
	}
	return n
}

// moves waits until so many more requests of each were answered.
func moves(ctx context.Context, n uint64, users ...*user) error {
	from := make([]uint64, len(users))
	for i, u := range users {
		from[i] = u.completed()
	}
	for i, u := range users {
		for u.completed() < from[i]+n {
			select {
			case <-u.done:
				return fmt.Errorf("volume %s: %w", u.name, u.err)
			case <-ctx.Done():
				return fmt.Errorf("volume %s answered %d requests: %w: %s", u.name, u.completed()-from[i], context.Cause(ctx), u.disk.Queue(0).Stuck())
			case <-time.After(time.Millisecond):
			}
		}
	}
	return nil
}

// check reads everything through the device; checkImage past it, and past shuntd.
func (u *user) check(t *testing.T) {
	t.Helper()
	if err := u.load.Check(t.Context()); err != nil {
		t.Errorf("volume %s: %v", u.name, err)
	}
}

func (u *user) checkImage(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	if err := u.load.CheckFile(f); err != nil {
		t.Errorf("image of %s: %v", u.name, err)
	}
}

// volumeStats are a volume's own counters.
func volumeStats(t *testing.T, d *daemon.Daemon, name string) control.VolumeStats {
	t.Helper()
	stats, err := d.API().Stats(t.Context(), name)
	must(t, err)
	for _, o := range stats.Objects {
		if o.Kind == control.KindVolume && o.Name == name && o.Volume != nil {
			return *o.Volume
		}
	}
	t.Fatalf("there are no counters of volume %s", name)
	return control.VolumeStats{}
}

// ringForms are the two.
var ringForms = map[string]driver.Options{
	"split":  {EventIdx: true, Indirect: true},
	"packed": {Packed: true, EventIdx: true, Indirect: true},
}

// TestVolumesKilled: shuntd is killed again and again under the load of four disks. What was acknowledged is there, each request is answered once, by whichever
// daemon, and no driver sees an error.
func TestVolumesKilled(t *testing.T) {
	kills := 5
	if need.Soak() {
		kills = 50
	}
	ctx := within(t, time.Minute+time.Duration(kills)*10*time.Second)
	s := newShelf(t, "[0, 1]")
	for ring := range ringForms {
		s.file(t, "file-"+ring, "")
		s.blank(t, "nbd-"+ring, shelfDisk)
		s.volume("nbd-"+ring, s.nbd("nbd-"+ring), ", quiesce: 200ms")
	}
	// nbdkit 1.32 aborts when a client vanishes while several of its threads answer it.
	s.nbdkit(t, "nbd-split", "-t", "1", "file", s.image("nbd-split"))
	s.qemuNBD(t, "nbd-packed", s.image("nbd-packed"))
	d := start(t, namespace(t, "host"), "shuntd", s.config.String())
	var users []*user
	for ring, o := range ringForms {
		o.Inflight, o.Reconnect = true, true
		for _, store := range []string{"file", "nbd"} {
			u := s.user(t, store+"-"+ring, o, verify.Options{Seed: uint64(len(users) + 1)})
			u.begin(t)
			users = append(users, u)
		}
	}
	began := time.Now()
	for range kills {
		must(t, moves(ctx, 40, users...))
		d.Kill()
		must(t, d.Start(ctx))
	}
	must(t, moves(ctx, 40, users...))
	t.Logf("%d kills, %.2f s a round", kills, time.Since(began).Seconds()/float64(kills))
	for _, u := range users {
		r := u.end(t)
		if r.Reconnects == 0 { // one that died while a driver began with it does not count
			t.Errorf("volume %s: the driver has not connected again", u.name)
		}
		t.Logf("%s: %d requests, %d reconnects", u.name, r.Requests(), r.Reconnects)
		u.check(t)
		u.checkImage(t, s.image(u.name))
	}
}

// TestVolumeServersKilled: NBD servers that keep what was not flushed in a cache of their own, and are killed with it. With durability fua nothing is lost. Without it,
// the flush after a reconnect fails if writes were acknowledged since the one before, which is what excuses their loss, and nothing else does.
func TestVolumeServersKilled(t *testing.T) {
	kills := 3
	if need.Soak() {
		kills = 30
	}
	ctx := within(t, time.Minute+time.Duration(kills)*10*time.Second)
	s := newShelf(t, "[0, 1]")
	servers := make(map[string]*peer.NBDServer)
	for ring := range ringForms {
		for _, durability := range []string{"flush", "fua"} {
			name := durability + "-" + ring
			s.blank(t, name, shelfDisk)
			servers[name] = s.nbdkit(t, name, "--filter=cache", "file", s.image(name), "cache=writeback")
			s.volume(name, s.nbd(name), ", quiesce: 50ms, durability: "+durability)
		}
	}
	d := start(t, namespace(t, "host"), "shuntd", s.config.String())
	var all sync.WaitGroup
	users := make(map[string]*user)
	for ring, o := range ringForms {
		for _, durability := range []string{"flush", "fua"} {
			u := s.user(t, durability+"-"+ring, o, verify.Options{MaxBytes: 256 << 10})
			users[u.name] = u
		}
	}
	for name, u := range users {
		s.lostOnce(t, ctx, u, servers[name], strings.HasPrefix(name, "fua"))
	}
	began := time.Now()
	for name, u := range users {
		if strings.HasPrefix(name, "fua") {
			u.load.Assume(false)
		}
		u.begin(t)
		all.Go(func() {
			if err := crashes(ctx, u, servers[name], kills); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	t.Logf("%d kills of each of %d servers, %.2f s a round", kills, len(servers), time.Since(began).Seconds()/float64(kills))
	for name, u := range users {
		r, stats := u.end(t), volumeStats(t, d, name)
		for i, c := range r.Ops {
			const flushes = 2 // in the order of verify.Mix
			if c.Errors > 0 && (i != flushes || strings.HasPrefix(name, "fua")) {
				t.Errorf("volume %s: %d requests failed:\n%v", name, c.Errors, r)
			}
		}
		if stats.Reconnects < uint64(kills) || strings.HasPrefix(name, "fua") != (stats.LostFlushes == 0) {
			t.Errorf("volume %s: %d reconnects, %d flushes failed, after %d kills", name, stats.Reconnects, stats.LostFlushes, kills)
		}
		t.Logf("%s: %d requests; %d retries, %d flushes failed", name, r.Requests(), stats.Retries, stats.LostFlushes)
		u.check(t)
	}
}

// crashes kills a server again and again under its load.
func crashes(ctx context.Context, u *user, server *peer.NBDServer, kills int) error {
	for range kills {
		if err := moves(ctx, 60, u); err != nil {
			return err
		}
		if err := u.load.ServerCrash(func() error { server.Kill(); return server.Start(ctx) }); err != nil {
			return err
		}
	}
	return moves(ctx, 60, u)
}

// lostOnce kills a server between a write and its flush: the write is lost and the flush fails, or with durability fua neither is so.
func (s *shelf) lostOnce(t *testing.T, ctx context.Context, u *user, server *peer.NBDServer, fua bool) {
	t.Helper()
	y, err := u.disk.NewSync(0, 4096)
	must(t, err)
	wrote, read := bytes.Repeat([]byte("lost"), 1024), make([]byte, 4096)
	_, err = y.WriteAt(wrote, 0)
	must(t, err)
	server.Kill()
	must(t, server.Start(ctx))
	if err := y.Flush(); (err == nil) != fua {
		t.Errorf("volume %s: the flush after a server was killed: %v", u.name, err)
	}
	_, err = y.ReadAt(read, 0)
	must(t, err)
	if bytes.Equal(read, wrote) != fua {
		t.Errorf("volume %s: the write before a server was killed is %q", u.name, read[:4])
	}
	_, err = y.WriteAt(make([]byte, 4096), 0) // as the load will find it
	must(t, err)
	if err := y.Flush(); err != nil {
		t.Errorf("volume %s: the second flush: %v", u.name, err)
	}
}
