package lab

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk/driver"
	"github.com/shuntio/shunt/blk/driver/verify"
	"github.com/shuntio/shunt/blk/file/filetest"
	"github.com/shuntio/shunt/dataplane/virtq"
	"github.com/shuntio/shunt/tools/control/config"
	"github.com/shuntio/shunt/tools/lab/daemon"
	"github.com/shuntio/shunt/tools/need"
)

// TestVolumeHung: the file system below two volumes stops answering, with requests of all kinds under way. Their front-ends are answered at once all the same, and so is
// who asks about them; others on the same worker, through the page cache and past it, go on as if nothing were. The daemon stops in its time.
//
//	well, cached ─────────┬─ worker 0 ─┬─ the machine's disk
//	hung, hung-direct ────┘            └─ FUSE, whose server does not answer
func TestVolumeHung(t *testing.T) {
	need.Time(t, "is end to end")
	ctx := within(t, time.Minute)
	fs := filetest.Mount(t)
	s := newShelf(t, "[1]")
	s.file(t, "well", "")
	s.file(t, "cached", ", direct: false")
	names := []string{"hung", "hung-direct"}
	s.volume(names[0], "file://"+fs.Disk(0), ", direct: false, queues: 2")
	s.volume(names[1], "file://"+fs.Disk(1), ", queues: 2")
	d := start(t, namespace(t, "host"), "shuntd", s.config.String())
	var well []*user
	for _, name := range []string{"well", "cached"} {
		u := s.user(t, name, driver.Options{Clock: true}, verify.Options{MaxBytes: 64 << 10})
		well = append(well, u)
		u.begin(t)
	}
	var hung []*driver.Disk
	for _, name := range names {
		hung = append(hung, s.dial(t, name, driver.Options{Queues: 2}))
	}
	must(t, moves(ctx, 50, well...))

	slowestFlush, queued := flushes(t, s.image("beside")), queuedTime(t, d.PID(), os.Getpid())
	fs.Unread()
	for _, disk := range hung {
		for i := range disk.Queues() {
			everything(t, disk, i)
		}
	}
	asked := make(chan error, 2)
	go func() {
		_, err := d.API().ResizeVolume(ctx, names[0])
		asked <- err
	}()
	go func() {
		_, err := d.API().CheckVolume(ctx, config.VolumeSource{Source: "file://" + fs.Disk(2)})
		asked <- err
	}()
	stop, status := &answered{name: "GET_VRING_BASE"}, &answered{name: "the status"}
	for range 3 {
		must(t, moves(ctx, 200, well...))
		status.add(t, func() error {
			_, err := d.API().Status(ctx)
			return err
		})
		for _, disk := range hung {
			stop.add(t, disk.Stop)
			must(t, disk.Start())
		}
	}
	stop.judge(t)
	status.judge(t)
	for range cap(asked) {
		if err := <-asked; err == nil || !strings.Contains(err.Error(), "its file system does not answer") {
			t.Errorf("whoever looks at a file there is told: %v", err)
		}
	}
	worst := time.Duration(0)
	for _, u := range well {
		for _, c := range u.end(t).Ops {
			worst = max(worst, c.Latency.Max())
		}
		u.check(t)
		must(t, u.disk.Close())
		u.checkImage(t, s.image(u.name))
	}
	slowest := slowestFlush()
	machine := time.Second + slowest + queuedTime(t, d.PID(), os.Getpid()) - queued // the file system would have delayed them for as long as it hangs
	if worst > machine {
		t.Errorf("meanwhile a request of the others took %v, a write of this process's own to their disk %v", worst, slowest)
	}
	s.stopsHung(t, ctx, d, fs)
	t.Logf("meanwhile no request of the others took longer than %v, no write of this process's own to their disk %v", worst.Round(time.Microsecond), slowest.Round(time.Microsecond))
}

// flushes writes to a file and flushes it again and again, as the others' guests do, until it is asked how long the slowest of that took: the machine's disk is not ours alone.
func flushes(t *testing.T, path string) (slowest func() time.Duration) {
	t.Helper()
	f, err := os.Create(path)
	must(t, err)
	quit, ended := make(chan struct{}), make(chan time.Duration, 1)
	go func() {
		defer f.Close()
		most, b := time.Duration(0), make([]byte, 64<<10)
		for {
			select {
			case <-quit:
				ended <- most
				return
			case <-time.After(5 * time.Millisecond):
			}
			began := time.Now()
			if _, err := f.WriteAt(b, 0); err != nil {
				t.Error(err)
			}
			if err := f.Sync(); err != nil {
				t.Error(err)
			}
			most = max(most, time.Since(began))
		}
	}()
	slowest = sync.OnceValue(func() time.Duration {
		close(quit)
		return <-ended
	})
	t.Cleanup(func() { slowest() })
	return slowest
}

// stopsHung stops a daemon that has requests in the kernel which that gives up to nobody, and says so in the end. Its process is there until the kernel has closed
// its files, and for that FUSE asks once more whoever serves them.
func (s *shelf) stopsHung(t *testing.T, ctx context.Context, d *daemon.Daemon, fs *filetest.FS) {
	t.Helper()
	began, stopped := time.Now(), make(chan error, 1)
	go func() { stopped <- d.Stop(ctx) }()
	eventually(t, ctx, "the daemon does not stop", func() bool { return strings.Contains(d.Log(), "shuntd did not stop cleanly") })
	took := time.Since(began)
	for _, socket := range []string{d.Socket(), s.socket("well"), s.socket("hung")} {
		if _, err := os.Lstat(socket); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left behind: %v", socket, err)
		}
	}
	fs.GoOn()
	err := <-stopped
	if exit := (*daemon.ExitError)(nil); !errors.As(err, &exit) || exit.Status != 1 || !strings.Contains(exit.Log, "requests are still under way, which the store does not end") {
		t.Errorf("the daemon: %v", err)
	}
	if took > 10*time.Second {
		t.Errorf("the daemon stopped after %v", took)
	}
	t.Logf("the daemon stopped within %v", took.Round(time.Millisecond))
}

// everything submits requests of each kind, several where there may be.
func everything(t *testing.T, disk *driver.Disk, queue int) {
	t.Helper()
	const length = 64 << 10
	q := disk.Queue(queue)
	for i := range 8 {
		b, err := disk.Alloc(length)
		must(t, err)
		for _, op := range []driver.Op{driver.In, driver.Out} {
			must(t, q.Submit(&driver.Request{Op: op, Sector: uint64(i) * length / driver.SectorSize, Data: []virtq.Buffer{b.Segment(0, length)}}))
		}
		must(t, q.Submit(&driver.Request{Op: driver.Flush}))
		must(t, q.Submit(&driver.Request{Op: driver.Discard, Ranges: []driver.Range{{Sector: uint64(i) * length / driver.SectorSize, Sectors: 8}}}))
	}
	q.Kick()
}
