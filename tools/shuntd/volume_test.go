package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/blk/driver"
	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/config"
	"github.com/shuntio/shunt/tools/need"
)

// runningEngine is one whose worker runs.
func runningEngine(t *testing.T) *engine {
	t.Helper()
	e, err := newEngine(config.Workers{CPUs: someCPUs(t, 1), Idle: config.IdleAdaptive, HugePages: config.ToggleOff}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return e
}

// testVolume is a volume of a file of some bytes, not past the page cache, since the file may be on a tmpfs.
func testVolume(t *testing.T, dir, name string, size int64) config.Volume {
	t.Helper()
	path := filepath.Join(dir, name+".img")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return volumeOf(t, dir, name, "file://"+path)
}

func volumeOf(t *testing.T, dir, name, source string) config.Volume {
	t.Helper()
	c := &config.Config{Volumes: []config.Volume{{Name: name, Socket: filepath.Join(dir, name), Source: source}}}
	if config.Scheme(source) == config.SchemeFile {
		c.Volumes[0].Direct = new(bool)
	}
	if err := config.Check(c); err != nil {
		t.Fatal(err)
	}
	return c.Volumes[0]
}

// attach is a guest at a volume.
func attachDisk(t *testing.T, socket string) (*driver.Disk, *driver.Sync) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	d, err := driver.Dial(ctx, socket, driver.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	s, err := d.NewSync(0, 64<<10)
	if err != nil {
		t.Fatal(err)
	}
	return d, s
}

func removeVolume(ctx context.Context, e *engine, name string) error {
	return e.RemoveVolumes(ctx, []string{name})[0]
}

func volumeState(e *engine, name string) (v control.VolumeStatus) {
	for _, v := range e.Status().Volumes {
		if v.Name == name {
			return v
		}
	}
	return v
}

// A guest writes to a volume and reads; what it did is counted; its disk grows; it is limited while it works; and nothing is left of it.
func TestVolumeServesAGuest(t *testing.T) {
	dir, e, ctx := t.TempDir(), runningEngine(t), t.Context()
	c := testVolume(t, dir, "v1", 1<<20)
	if err := e.AddVolume(ctx, c); err != nil {
		t.Fatal(err)
	}
	if s := volumeState(e, "v1"); s.State != control.StateDisconnected || s.Store == nil || s.Store.Size != 1<<20 || s.Guest {
		t.Errorf("before a guest came: %+v", s)
	}
	d, s := attachDisk(t, c.Socket)
	pattern := bytes.Repeat([]byte("shunt"), 4096)[:16384]
	if _, err := s.WriteAt(pattern, 8192); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(pattern))
	if _, err := s.ReadAt(got, 8192); err != nil || !bytes.Equal(got, pattern) {
		t.Fatalf("read back: %v", err)
	}
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	if id, err := s.ID(); err != nil || id != "v1" {
		t.Errorf("serial %q %v", id, err)
	}
	if s := volumeState(e, "v1"); s.State != control.StateConnected || !s.Guest || s.Queues != 1 || len(s.Features) == 0 {
		t.Errorf("with a guest: %+v", s)
	}

	var stats *control.VolumeStats
	for _, o := range e.Stats().Objects {
		if o.Kind == control.KindVolume {
			stats = o.Volume
		}
	}
	count := map[string]uint64{}
	for _, o := range stats.Operations {
		count[o.Operation], count[o.Operation+" bytes"] = o.Requests, o.Bytes
		if o.Total.Count != o.Requests || o.Requests > 0 && (o.Total.Mean() <= 0 || o.Total.Quantile(1) <= 0) {
			t.Errorf("%s: %+v", o.Operation, o.Total)
		}
	}
	if count["write"] == 0 || count["write bytes"] != 16384 || count["read bytes"] != 16384 || count["flush"] != 1 || stats.Unflushed != 0 {
		t.Errorf("%v, %d unflushed", count, stats.Unflushed)
	}

	// It grows.
	if err := os.Truncate(filepath.Join(dir, "v1.img"), 4<<20); err != nil {
		t.Fatal(err)
	}
	if err := e.ResizeVolume(ctx, "v1"); err != nil {
		t.Fatal(err)
	}
	await(t, "the guest to hear that its disk has grown", func() bool { return d.Size() == 4<<20 })
	if r, err := e.CheckVolume(ctx, c.From()); err != nil || r.Store.Size != 4<<20 || len(r.Notes) == 0 {
		t.Errorf("check of an open volume: %+v %v", r, err)
	}

	// Its policy and socket change under it, by itself and by its group.
	if err := e.AddVolumeGroup(ctx, config.VolumeGroup{Name: "gold", Limits: config.VolumeLimits{IOPS: 1000}}); err != nil {
		t.Fatal(err)
	}
	c.Mode, c.OnError, c.Timeout, c.VolumeGroup = 0o640, config.OnErrorFail, config.Duration(time.Minute), "gold"
	if err := e.UpdateVolume(ctx, c); err != nil {
		t.Fatal(err)
	}
	if err := e.UpdateVolumeGroup(ctx, config.VolumeGroup{Name: "gold", Limits: config.VolumeLimits{IOPS: 5, Burst: config.Duration(200 * time.Millisecond)}}); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(c.Socket); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("the socket: %v %v", info, err)
	}
	began := time.Now()
	for range 3 {
		if _, err := s.ReadAt(got[:512], 0); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(began); took < 350*time.Millisecond {
		t.Errorf("three reads of a group that may do 5 a second took %v", took)
	}

	if err := removeVolume(ctx, e, "v1"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(c.Socket); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket of a volume that was removed: %v", err)
	}
	if err := removeVolume(ctx, e, "v1"); !errors.Is(err, control.ErrNotFound) {
		t.Errorf("removed twice: %v", err)
	}
	if err := e.RemoveVolumeGroup(ctx, "gold"); err != nil {
		t.Error(err)
	}
	file, err := os.ReadFile(filepath.Join(dir, "v1.img"))
	if err != nil || !bytes.Equal(file[8192:8192+16384], pattern) {
		t.Errorf("what the guest wrote is not in the file: %v", err)
	}
}

// A volume whose guest's memory is registered, with queues on two workers, past the page cache, and one that is read-only.
func TestVolumeKinds(t *testing.T) {
	cpus := someCPUs(t, 2)
	e, err := newEngine(config.Workers{CPUs: cpus, Idle: config.IdleAdaptive, HugePages: config.ToggleOff}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := e.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	dir, err := os.MkdirTemp(".", "volume") // where the working tree is there is O_DIRECT; on a tmpfs there may be none
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if dir, err = filepath.Abs(dir); err != nil {
		t.Fatal(err)
	}
	sockets := t.TempDir()
	direct := true
	spread := []int{0}
	if len(cpus) > 1 {
		spread = []int{1, 0}
	}
	for name, change := range map[string]func(c *config.Volume){
		"registered": func(c *config.Volume) { c.RegisteredBuffers = true },
		"spread":     func(c *config.Volume) { c.Queues, c.Workers = 3, spread },
		"direct":     func(c *config.Volume) { c.Direct = &direct },
		"fua":        func(c *config.Volume) { c.Durability = config.DurabilityFUA },
	} {
		c := testVolume(t, dir, name, 1<<20)
		c.Socket = filepath.Join(sockets, name)
		change(&c)
		if err := e.AddVolume(t.Context(), c); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		d, err := driver.Dial(t.Context(), c.Socket, driver.Options{Queues: c.Queues})
		if err != nil {
			t.Fatal(err)
		}
		for q := range c.Queues {
			s, err := d.NewSync(q, 64<<10)
			if err != nil {
				t.Fatal(err)
			}
			pattern := bytes.Repeat([]byte{byte(q + 1)}, 32<<10)
			got := make([]byte, len(pattern))
			if _, err = s.WriteAt(pattern, int64(q)<<16); err == nil {
				_, err = s.ReadAt(got, int64(q)<<16)
			}
			if err != nil || !bytes.Equal(got, pattern) {
				t.Errorf("%s, queue %d: %v", name, q, err)
			}
		}
		s := volumeState(e, name)
		if s.Queues != c.Queues || len(s.Workers) != c.Queues || name == "spread" && !slices.Equal(s.Workers[:len(spread)], spread) {
			t.Errorf("%s: %+v", name, s)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if err := removeVolume(t.Context(), e, name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	c := testVolume(t, dir, "ro", 1<<20)
	c.Socket, c.ReadOnly = filepath.Join(sockets, "ro"), true
	if err := e.AddVolume(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	_, s := attachDisk(t, c.Socket)
	if _, err := s.WriteAt(make([]byte, 512), 0); err == nil {
		t.Error("a guest has written to a read-only disk")
	}
	if status := volumeState(e, "ro"); !status.Store.ReadOnly || !slices.Contains(status.Features, "RO") {
		t.Errorf("%+v", status)
	}
	for _, w := range e.Status().Workers {
		if w.IOUring == "" {
			t.Errorf("worker %d has no io_uring", w.ID)
		}
	}
}

// What is wrong with a configuration, or at this host, is refused in a sentence, and leaves nothing behind.
func TestVolumeRefused(t *testing.T) {
	dir, e, ctx := t.TempDir(), runningEngine(t), t.Context()
	good := testVolume(t, dir, "good", 1<<20)
	if err := e.AddVolume(ctx, good); err != nil {
		t.Fatal(err)
	}
	odd := testVolume(t, dir, "odd", 1<<20+1)
	taken := testVolume(t, dir, "taken", 1<<20)
	taken.Socket = filepath.Join(dir, "busy")
	l, err := net.Listen("unix", taken.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	group := testVolume(t, dir, "group", 1<<20)
	group.Group = "no-such-group"
	workers := testVolume(t, dir, "workers", 1<<20)
	workers.Workers = []int{7}
	files := openFiles(t)
	for name, test := range map[string]struct {
		volume config.Volume
		want   string
	}{
		"no file":      {volumeOf(t, dir, "none", "file://"+dir+"/none.img"), "no such file or directory"},
		"a directory":  {volumeOf(t, dir, "dir", "file://"+dir), "neither a regular file nor a block device"},
		"odd size":     {odd, "not a multiple"},
		"socket taken": {taken, "busy"},
		"group":        {group, "group: this host has no no-such-group"},
		"workers":      {workers, "workers: 7 is not one of the 1 there are"},
		"bad nbd":      {volumeOf(t, dir, "nbd", "nbd://192.0.2.9/v1?x=1"), "x=1 is not understood"},
		"bad nvme":     {volumeOf(t, dir, "nvme", "nvme+tcp://192.0.2.9/nqn.2014-08.org.example:a?nsid=0"), `nsid "0" is no number of a namespace`},
	} {
		err := e.AddVolume(ctx, test.volume)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %s", name, err, test.want)
			continue
		}
		if strings.Contains(err.Error(), "\n") || strings.HasPrefix(err.Error(), "volume") {
			t.Errorf("%s is no sentence behind the volume's name: %v", name, err)
		}
		if name == "socket taken" && !errors.Is(err, control.ErrConflict) {
			t.Errorf("%s: %v is no conflict", name, err)
		}
		if volumeState(e, test.volume.Name).Name != "" {
			t.Errorf("%s: the engine has the volume", name)
		}
	}
	await(t, "files to be closed", func() bool { return openFiles(t) <= files })
	// A read-only look at a file that a guest may write to, and one that is not there.
	if _, err := e.CheckVolume(ctx, config.VolumeSource{Source: "file://" + dir + "/none.img"}); !errors.Is(err, control.ErrStore) {
		t.Errorf("check of nothing: %v", err)
	}
	if _, err := e.VolumeExports(ctx, good.From()); !errors.Is(err, control.ErrStore) {
		t.Errorf("exports of a file: %v", err)
	}
}

// A volume whose server is not there waits, says so in a sentence, and is in service when the server is. One whose file somebody else has locked does the same.
func TestVolumeWaits(t *testing.T) {
	need.Program(t, "nbdkit")
	dir, e, ctx := t.TempDir(), runningEngine(t), t.Context()
	server := filepath.Join(dir, "server")
	c := volumeOf(t, dir, "v1", "nbd+unix:///?socket="+server)
	if err := e.AddVolume(ctx, c); err != nil {
		t.Fatal(err)
	}
	s := volumeState(e, "v1")
	if s.State != control.StateWaiting || !strings.Contains(s.Reason, "no such file or directory") || strings.Contains(s.Reason, "\n") || s.Store != nil {
		t.Errorf("without a server: %+v", s)
	}
	t.Log(s.Reason)
	if err := e.ResizeVolume(ctx, "v1"); !errors.Is(err, control.ErrStore) || !strings.Contains(err.Error(), "the volume waits for its store") {
		t.Errorf("resize: %v", err)
	}
	if _, err := e.CheckVolume(ctx, c.From()); !errors.Is(err, control.ErrStore) {
		t.Errorf("check: %v", err)
	}
	c.Limits.IOPS, c.Mode = 100000, 0o600 // a change meanwhile
	if err := e.UpdateVolume(ctx, c); err != nil {
		t.Fatal(err)
	}
	nbdkit := exec.CommandContext(t.Context(), "nbdkit", "--foreground", "--exit-with-parent", "-U", server, "memory", "1M")
	if err := nbdkit.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nbdkit.Process.Kill(); _ = nbdkit.Wait() })
	await(t, "the volume to be in service", func() bool { return volumeState(e, "v1").State == control.StateDisconnected })
	await(t, "the socket to have its mode", func() bool {
		info, err := os.Stat(c.Socket)
		return err == nil && info.Mode().Perm() == 0o600
	})
	_, disk := attachDisk(t, c.Socket)
	if _, err := disk.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	if list, err := e.VolumeExports(ctx, c.From()); err != nil || len(list) != 1 || !strings.HasPrefix(list[0].Source, "nbd+unix:///") {
		t.Errorf("exports: %v %v", list, err)
	}
	if r, err := e.CheckVolume(ctx, config.VolumeSource{Source: c.Source + "&tls-verify-peer=1"}); err != nil || r.Store.Size != 1<<20 {
		t.Errorf("a check of its own: %+v %v", r, err)
	}

	locked := testVolume(t, dir, "locked", 1<<20)
	f, err := os.Open(filepath.Join(dir, "locked.img"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	hold := exec.CommandContext(t.Context(), "flock", "--close", "--exclusive", f.Name(), "sleep", "60")
	need.Program(t, "flock")
	if err := hold.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = hold.Process.Kill(); _ = hold.Wait() })
	await(t, "the lock", func() bool {
		return exec.CommandContext(ctx, "flock", "--nonblock", "--exclusive", f.Name(), "true").Run() != nil
	})
	if err := e.AddVolume(ctx, locked); err != nil {
		t.Fatal(err)
	}
	if s := volumeState(e, "locked"); s.State != control.StateWaiting || !strings.Contains(s.Reason, "it is in use") {
		t.Errorf("of a locked file: %+v", s)
	}
	_ = hold.Process.Kill()
	await(t, "the volume to be in service", func() bool { return volumeState(e, "locked").State == control.StateDisconnected })
	if err := removeVolume(ctx, e, "v1"); err != nil {
		t.Error(err)
	}
}

// A volume that is removed, or an engine that ends, while a server does not answer, does not wait for it.
func TestVolumeEndsWhileItsServerIsSilent(t *testing.T) {
	dir, e := t.TempDir(), runningEngine(t)
	server := filepath.Join(dir, "server")
	l, err := net.Listen("unix", server) // that never accepts
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const volumes = 8
	began := time.Now()
	for i := range volumes {
		if err := e.AddVolume(t.Context(), volumeOf(t, dir, fmt.Sprint("v", i), "nbd+unix:///?socket="+server)); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(began); took > volumes*firstTry/2 {
		t.Errorf("adding %d took %v", volumes, took)
	}
	if s := volumeState(e, "v0"); s.State != control.StateWaiting || s.Reason != errOpening.Error() {
		t.Errorf("%+v", s)
	}
	began = time.Now()
	if err := removeVolume(t.Context(), e, "v0"); err != nil {
		t.Error(err)
	}
	for _, err := range e.removeAll(t.Context()) {
		if err != nil {
			t.Error(err)
		}
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("it took %v", took)
	}
}

// A file system that hangs in the kernel holds up nobody who removes the volume. What is opened all the same in the end is closed.
func TestVolumeEndsWhileItsFileHangs(t *testing.T) {
	dir, e := t.TempDir(), runningEngine(t)
	hang := make(chan struct{})
	e.stores = func(ctx context.Context, o storeOptions) (blk.Store, error) {
		<-hang
		return openStore(ctx, o)
	}
	c := testVolume(t, dir, "v1", 1<<20)
	if err := e.AddVolume(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	e.mu.Lock()
	v := e.volumes["v1"]
	e.mu.Unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := removeVolume(ctx, e, "v1"); err != nil {
		t.Error(err)
	}
	close(hang)
	select {
	case <-v.done:
	case <-time.After(10 * time.Second):
		t.Fatal("the opener does not end")
	}
	if _, err := os.Stat(c.Socket); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket of a volume that was removed while it was opened: %v", err)
	}
	if err := e.AddVolume(t.Context(), c); err != nil || volumeState(e, "v1").State != control.StateDisconnected {
		t.Errorf("again: %v, %+v", err, volumeState(e, "v1"))
	}
}
