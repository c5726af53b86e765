package lab

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk/driver"
	"github.com/shuntio/shunt/dataplane/shm"
	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/virtq"
	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/lab/daemon"
	"github.com/shuntio/shunt/tools/lab/peer"
)

// What comes later than anybody waits for: answers to memory that was given back, and writes that a server carries out after it was asked again.

// relay stands between shuntd and a server, until the end of the test.
func relay(t *testing.T, network, listen, server string) *peer.Relay {
	t.Helper()
	r, err := peer.NewRelay(network, listen, server)
	must(t, err)
	t.Cleanup(r.Close)
	return r
}

// behind adds a volume whose NBD server is reached through a relay.
func (s *shelf) behind(t *testing.T, name, more string) *peer.Relay {
	t.Helper()
	at := filepath.Join(s.dir, name+".relay")
	s.volume(name, "nbd+unix:///?socket="+at, more)
	return relay(t, "unix", at, filepath.Join(s.dir, name+".nbd"))
}

// eventually waits for a condition.
func eventually(t *testing.T, ctx context.Context, what string, holds func() bool) {
	t.Helper()
	for !holds() {
		select {
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, context.Cause(ctx))
		case <-time.After(time.Millisecond):
		}
	}
}

// takenAway has a read be answered as far as some bytes of its answer, takes its memory away, and gives the memory to somebody else. The rest of the answer must not come
// there. Behind it, on the same connection, comes the answer to the disk's next driver, so that it is known to have been dealt with.
func (s *shelf) takenAway(t *testing.T, ctx context.Context, name string, r *peer.Relay, removed *answered, passes int64) {
	t.Helper()
	const length, others = 1 << 20, 0xc5
	disk := s.dial(t, name, driver.Options{Memory: length})
	regions := disk.Regions()
	mapping, err := shm.Map(shm.MapOptions{FD: regions[1].FD, Offset: int64(regions[1].MmapOffset), Length: length}) // outlives the disk
	must(t, err)
	defer mapping.Free()
	memory := mapping.Bytes()
	fill := func() {
		for i := range memory {
			memory[i] = others
		}
	}
	fill()
	connections, way, q := r.Now().Connections(), r.Now().Answers, disk.Queue(0)
	way.Hold(passes)
	defer way.LetGo()
	must(t, q.Submit(&driver.Request{Op: driver.In, Data: []virtq.Buffer{{Addr: driver.BuffersAddr, Len: length}}}))
	q.Kick()
	eventually(t, ctx, "no answer comes", func() bool { return way.Held() > 0 })
	if passes > 1<<16 { // headers and what is received elsewhere first are less
		eventually(t, ctx, "nothing lands", func() bool { return memory[1<<12+1] != others })
	}
	removed.add(t, func() error {
		return disk.Frontend(func(f *vhostuser.Frontend) error { return f.SetMemory(regions[:1]...) })
	})
	fill()
	way.LetGo()
	must(t, disk.Close())
	next := s.dial(t, name, driver.Options{})
	y, err := next.NewSync(0, 4096)
	must(t, err)
	_, err = y.ReadAt(make([]byte, 4096), 4096)
	must(t, err)
	must(t, next.Close())
	if n := r.Now().Connections(); n != connections {
		t.Errorf("after %d bytes of an answer: a request was called back at the cost of its connection, %d instead of %d", passes, n, connections)
	}
	for i, b := range memory {
		if b != others {
			t.Fatalf("after %d bytes of an answer: byte %d of memory that was given back is %#x", passes, i, b)
		}
	}
}

// lateServer is nbdkit with a script that holds a write, if there is the file "hold", until there is "go", and says that it has carried it out by "late".
const lateServer = `export D="$1" I="$2"; exec nbdkit -f -U "$0" eval get_size='stat -c %s "$I"' thread_model='echo parallel' can_write='exit 0' can_flush='exit 0' flush='exit 0' \
	can_multi_conn='exit 3' open='exit 0' pread='dd if="$I" iflag=skip_bytes,count_bytes skip=$4 count=$3 2>/dev/null' \
	pwrite='cat >"$D/data.$$"; late=
		if mv "$D/hold" "$D/held" 2>/dev/null; then late=yes; until [ -e "$D/go" ]; do sleep 0.01; done; fi
		dd if="$D/data.$$" of="$I" oflag=seek_bytes seek=$4 conv=notrunc 2>/dev/null; rm "$D/data.$$"
		[ -z "$late" ] || touch "$D/late"'`

// TestVolumeWriteLate: a server has a write that it has not carried out when its connection breaks, and carries it out later. Within the quiesce time the write is
// done again only after that, so what is written then stays; also where it was shuntd that was killed, and the next one does the write again. A server that
// holds it for longer has the older data on its disk in the end: that is what NBD leaves open, and it shows that the test sees it. The same where it was the guest that left,
// without an in-flight area, and another one comes, to the same volume, to one that was removed and added again, or to that of the next daemon, after a stop.
func TestVolumeWriteLate(t *testing.T) {
	ctx := within(t, time.Minute)
	s := newShelf(t, "[1]")
	const quiesce, held = time.Second, 300 * time.Millisecond
	volumes := []string{"within", "beyond", "killed", "left", "removed", "stopped"}
	relays := map[string]*peer.Relay{}
	for _, name := range volumes {
		s.blank(t, name, 1<<20)
		must(t, os.Mkdir(s.image(name+".d"), 0o700))
		s.serve(t, name, lateServer, s.image(name+".d"), s.image(name))
		relays[name] = s.behind(t, name, fmt.Sprintf(", quiesce: %v", quiesce))
	}
	d := start(t, namespace(t, "host"), "shuntd", s.config.String())
	for _, name := range volumes[:3] {
		l := &lateWrite{disk: s.dial(t, name, driver.Options{Inflight: true, Reconnect: true}), dir: s.image(name + ".d"), image: s.image(name)}
		lose := func() { relays[name].Cut().End() }
		if name == "killed" {
			lose = func() {
				d.Kill()
				must(t, d.Start(ctx))
			}
		}
		want := byte('B')
		if name != "beyond" {
			l.held = held
		} else {
			want = 'A'
		}
		l.judge(t, name, want, quiesce, func() []byte { return l.run(t, ctx, lose) })
		if stats := volumeStats(t, d, name); name != "killed" && (stats.Retries == 0 || stats.Reconnects == 0) {
			t.Errorf("%s: %d retries, %d reconnects", name, stats.Retries, stats.Reconnects)
		}
	}
	for _, name := range volumes[3:] {
		l := &lateWrite{dir: s.image(name + ".d"), image: s.image(name), held: held}
		l.judge(t, name, 'B', quiesce, func() []byte {
			l.disk = s.dial(t, name, driver.Options{})
			return l.leave(t, ctx, func() *driver.Disk {
				switch name {
				case "removed":
					addAgain(t, ctx, d, name)
				case "stopped":
					must(t, d.Stop(ctx))
					must(t, d.Start(ctx))
					holdsBack(t, ctx, d, name)
				}
				return s.dial(t, name, driver.Options{})
			})
		})
	}
}

// judge wants the disk to hold one of the writes at the end. Where the server should have carried out the first one within the quiesce time, and a busy machine let it do so
// only later, that tells nothing, and is done again.
func (l *lateWrite) judge(t *testing.T, name string, want byte, quiesce time.Duration, write func() []byte) {
	t.Helper()
	const tries = 3
	for n := 1; ; n++ {
		got := write()
		info, err := os.Stat(l.file("late"))
		must(t, err)
		late := info.ModTime().Sub(l.lost)
		t.Logf("%s: the first write was carried out %v after it was lost, it or the next guest's was acknowledged after %v, the disk has %q at the end",
			name, late.Round(time.Millisecond), l.took.Round(time.Millisecond), got[:1])
		if bytes.Equal(got, bytes.Repeat([]byte{want}, 4096)) {
			return
		}
		if late < quiesce || l.held == 0 || n == tries {
			t.Fatalf("%s: the disk has %q at the end, want %q", name, got[:8], want)
		}
		for _, file := range []string{"held", "go", "late"} {
			must(t, os.Remove(l.file(file)))
		}
	}
}

// addAgain removes a volume and adds it, which then says that writes wait.
func addAgain(t *testing.T, ctx context.Context, d *daemon.Daemon, name string) {
	t.Helper()
	v, err := d.API().Volume(ctx, name)
	must(t, err)
	_, err = d.API().Delete(ctx, control.KindVolume, name)
	must(t, err)
	_, err = d.API().PutVolume(ctx, v.Config)
	must(t, err)
	holdsBack(t, ctx, d, name)
}

// holdsBack wants a volume to say that its writes wait.
func holdsBack(t *testing.T, ctx context.Context, d *daemon.Daemon, name string) {
	t.Helper()
	eventually(t, ctx, name+" does not say that writes wait", func() bool {
		v, err := d.API().Volume(ctx, name)
		must(t, err)
		return v.Status != nil && len(v.Status.Waits) == 1 && v.Status.Waits[0].Until.After(time.Now())
	})
}

// lateWrite writes A, loses the connection while the server holds it, waits until it is acknowledged, and writes B.
type lateWrite struct {
	disk       *driver.Disk
	dir, image string
	held       time.Duration // that long from the loss of the connection on; 0: until B is written
	took       time.Duration // until A was acknowledged
	lost       time.Time     // since when nobody waits for A any more
}

func (l *lateWrite) file(name string) string { return filepath.Join(l.dir, name) }

func (l *lateWrite) there(name string) func() bool {
	return func() bool {
		_, err := os.Stat(l.file(name))
		return err == nil
	}
}

// leave has the guest leave while the server holds A, and the next one write B.
func (l *lateWrite) leave(t *testing.T, ctx context.Context, next func() *driver.Disk) []byte {
	t.Helper()
	must(t, os.WriteFile(l.file("hold"), nil, 0o600))
	a, err := l.disk.Alloc(4096)
	must(t, err)
	copy(a.Bytes, bytes.Repeat([]byte{'A'}, 4096))
	must(t, l.disk.Queue(0).Submit(&driver.Request{Op: driver.Out, Data: []virtq.Buffer{a.Segment(0, 4096)}}))
	l.disk.Queue(0).Kick()
	eventually(t, ctx, "the server does not hold the write", l.there("held"))
	l.lost = time.Now()
	must(t, l.disk.Close())
	y, err := next().NewSync(0, 4096)
	must(t, err)
	began := time.Now()
	defer time.AfterFunc(l.held, func() { _ = os.WriteFile(l.file("go"), nil, 0o600) }).Stop()
	_, err = y.WriteAt(bytes.Repeat([]byte{'B'}, 4096), 0)
	must(t, err)
	must(t, y.Flush())
	l.took = time.Since(began)
	eventually(t, ctx, "the server forgets the write", l.there("late"))
	b, err := os.ReadFile(l.image)
	must(t, err)
	return b[:4096]
}

func (l *lateWrite) run(t *testing.T, ctx context.Context, lose func()) []byte {
	t.Helper()
	must(t, os.WriteFile(l.file("hold"), nil, 0o600))
	y, err := l.disk.NewSync(0, 4096)
	must(t, err)
	began, acked := time.Now(), make(chan error, 1)
	go func() {
		_, err := y.WriteAt(bytes.Repeat([]byte{'A'}, 4096), 0)
		acked <- err
	}()
	eventually(t, ctx, "the server does not hold the write", l.there("held"))
	goOn := func() { _ = os.WriteFile(l.file("go"), nil, 0o600) }
	if l.held > 0 {
		defer time.AfterFunc(l.held, goOn).Stop()
	}
	l.lost = time.Now()
	lose()
	must(t, <-acked)
	l.took = time.Since(began)
	_, err = y.WriteAt(bytes.Repeat([]byte{'B'}, 4096), 0)
	must(t, err)
	must(t, y.Flush())
	if l.held == 0 {
		goOn()
	}
	eventually(t, ctx, "the server forgets the write", l.there("late"))
	b, err := os.ReadFile(l.image)
	must(t, err)
	return b[:4096]
}
