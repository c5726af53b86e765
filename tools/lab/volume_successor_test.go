package lab

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk/driver"
	"github.com/shuntio/shunt/blk/nvmetcp/nvmetcptest"
	"github.com/shuntio/shunt/tools/lab/daemon"
	"github.com/shuntio/shunt/tools/need"
)

// Two daemons, one after the other, and what the first one leaves behind at a server.

// overtaken is a disk on whose first sectors a write of a killed daemon is still to be carried out when the next daemon is there.
type overtaken struct {
	name  string
	old   *driver.Sync // of the write
	other *driver.Sync // a queue beside it
	kept  func() bool  // the server has the write, and has not carried it out
	late  func()       // carries it out
}

// TestVolumeLateWrite: a server that is alive keeps a write of a killed daemon for longer than the next one needs to start. That does the write again, and a newer one to the same
// place, only when the old one can no longer be carried out; what reads does not wait.
func TestVolumeLateWrite(t *testing.T) {
	need.Program(t, "nbdkit")
	ctx := within(t, time.Minute)
	s := newShelf(t, "[0, 1]")
	s.blank(t, "nbd", shelfDisk)
	marker, image := filepath.Join(s.dir, "late"), s.image("nbd")
	s.serve(t, "nbd", `exec nbdkit -f -U "$0" eval "$@"`, // what a script has begun it ends, whoever hangs up
		"get_size=echo 33554432", "thread_model=echo parallel", "can_write=exit 0", "can_multi_conn=exit 0",
		fmt.Sprintf(`pread=dd if=%s iflag=skip_bytes,count_bytes skip=$4 count=$3 status=none`, image),
		fmt.Sprintf(`pwrite=if mkdir %s 2>/dev/null; then while test ! -e %s/go; do sleep 0.01; done; fi
			dd of=%s oflag=seek_bytes conv=notrunc seek=$4 bs=1M iflag=fullblock status=none; touch %s/done`, marker, marker, image, marker))
	target := nvmetcptest.New(t, nvmetcptest.Options{InCapsule: 8 << 10})
	const quiesce = 1500 * time.Millisecond // longer than the next daemon is to take to be there
	s.volume("nbd", s.nbd("nbd"), fmt.Sprintf(", queues: 2, workers: [0], quiesce: %v", quiesce))
	s.volume("nvme", target.URL()+"&kato=1s", ", queues: 2, workers: [0]")
	d := start(t, nil, "shuntd", s.config.String())
	exists := func(path string) bool { _, err := os.Stat(path); return err == nil }
	disks := []*overtaken{
		{name: "nbd", kept: func() bool { return exists(marker) }, late: func() {
			must(t, os.Mkdir(filepath.Join(marker, "go"), 0o700))
			for !exists(filepath.Join(marker, "done")) && ctx.Err() == nil {
				time.Sleep(time.Millisecond)
			}
		}},
		{name: "nvme", kept: func() bool { return target.Held() == 1 }, late: target.Release},
	}
	const write = 0x01
	target.Hold(func(e []byte) bool { return e[0] == write })
	var all sync.WaitGroup
	for _, o := range disks {
		disk := s.dial(t, o.name, driver.Options{Queues: 2, Inflight: true, Reconnect: true})
		var err error
		o.old, err = disk.NewSync(0, 4096)
		must(t, err)
		o.other, err = disk.NewSync(1, 4096)
		must(t, err)
		all.Go(func() {
			if _, err := o.old.WriteAt(bytes.Repeat([]byte{1}, 4096), 0); err != nil {
				t.Errorf("volume %s: the write of a killed daemon: %v", o.name, err)
			}
			if _, err := o.old.WriteAt(bytes.Repeat([]byte{2}, 4096), 0); err != nil {
				t.Errorf("volume %s: the newer write: %v", o.name, err)
			}
		})
		awaitCondition(t, ctx, "the write to be at the server", o.kept)
	}
	d.Kill()
	killed := time.Now()
	must(t, d.Start(ctx))
	for _, o := range disks {
		got := make([]byte, 4096)
		if _, err := o.other.ReadAt(got, 1<<20); err != nil {
			t.Errorf("volume %s: a read beside it: %v", o.name, err)
		}
	}
	read := time.Since(killed)
	for _, o := range disks {
		o.late()
	}
	late := time.Since(killed)
	all.Wait()
	if t.Logf("the next daemon reads after %v, the old writes are carried out after %v, the newer ones are done after %v", read, late, time.Since(killed)); late > quiesce/2 {
		t.Logf("this machine is too slow to tell")
	}
	for _, o := range disks {
		got := make([]byte, 4096)
		if _, err := o.other.ReadAt(got, 0); err != nil || got[0] != 2 || got[4095] != 2 {
			t.Errorf("volume %s: %v, the disk has %d: the write of a killed daemon came after a newer one", o.name, err, got[0])
		}
	}
	if n := strings.Count(d.Log(), "killed with writes under way"); n != len(disks) {
		t.Errorf("%d of %d volumes say that they wait:\n%s", n, len(disks), d.Log())
	}
}

// TestVolumeBothKilled: a write is acknowledged and not flushed when the daemon is killed, and the server with all that it has in its cache. If the next daemon finds the server
// away, or sees it go, its first flush fails. With durability fua nothing is lost, and none fails.
func TestVolumeBothKilled(t *testing.T) {
	ctx := within(t, time.Minute)
	s := newShelf(t, "[0, 1]")
	type pair struct {
		flush, fua *driver.Sync
		restart    []func() error
	}
	both := func(what string) *pair {
		p := &pair{}
		for _, durability := range []string{"flush", "fua"} {
			name := what + "-" + durability
			s.blank(t, name, shelfDisk)
			server := s.nbdkit(t, name, "--filter=cache", "file", s.image(name), "cache=writeback")
			s.volume(name, s.nbd(name), ", quiesce: 50ms, durability: "+durability)
			p.restart = append(p.restart, func() error { server.Kill(); return nil }, func() error { return server.Start(ctx) })
		}
		return p
	}
	away, later, never := both("away"), both("later"), both("never")
	d := start(t, namespace(t, "host"), "shuntd", s.config.String())
	pairs := map[string]*pair{"away": away, "later": later, "never": never}
	for what, p := range pairs {
		for durability, to := range map[string]**driver.Sync{"flush": &p.flush, "fua": &p.fua} {
			disk := s.dial(t, what+"-"+durability, driver.Options{Inflight: true, Reconnect: true})
			var err error
			*to, err = disk.NewSync(0, 4096)
			must(t, err)
			_, err = (*to).WriteAt(bytes.Repeat([]byte{5}, 4096), 4096)
			must(t, err)
		}
	}
	d.Kill()
	must(t, away.restart[0]())
	must(t, away.restart[2]())
	must(t, d.Start(ctx))
	must(t, away.restart[1]())
	must(t, away.restart[3]())
	s.served(t, ctx, d, 6)
	for _, step := range later.restart {
		must(t, step())
	}
	for what, p := range pairs {
		if err := p.flush.Flush(); (err == nil) != (what == "never") {
			t.Errorf("server %s: the first flush: %v", what, err)
		}
		if err := p.flush.Flush(); err != nil {
			t.Errorf("server %s: the second flush: %v", what, err)
		}
		if err := p.fua.Flush(); err != nil {
			t.Errorf("server %s: the flush where every write is stable: %v", what, err)
		}
		got := make([]byte, 4096)
		if _, err := p.fua.ReadAt(got, 4096); err != nil || got[0] != 5 {
			t.Errorf("server %s: %v, a write that was stable is %d", what, err, got[0])
		}
	}
}

// served waits until so many volumes have a guest.
func (s *shelf) served(t *testing.T, ctx context.Context, d *daemon.Daemon, n int) {
	t.Helper()
	awaitCondition(t, ctx, fmt.Sprintf("%d volumes to have their guests", n), func() bool {
		status, err := d.API().Status(ctx)
		must(t, err)
		guests := 0
		for _, v := range status.Volumes {
			if v.Guest {
				guests++
			}
		}
		return guests == n
	})
}
