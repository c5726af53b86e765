package lab

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk/driver"
	"github.com/shuntio/shunt/blk/driver/verify"
	"github.com/shuntio/shunt/dataplane/virtq"
	"github.com/shuntio/shunt/tools/lab/daemon"
	"github.com/shuntio/shunt/tools/need"
)

// rewriter is a driver that goes on writing to its buffers while the device has them, as any guest may. Each word of a buffer says which word of the disk it is for, and
// in its low byte how often it was rewritten: what arrives may be any mixture of what was there, and nothing else.
type rewriter struct {
	disk          *driver.Disk
	writes, reads []rewritten
}

// rewritten is one buffer with the place on the disk that it is for.
type rewritten struct {
	buffer driver.Buffer
	at     int
}

// rewriterSizes are those of requests under way at once: some that go with their command, some that come in many pieces.
var rewriterSizes = []int{4 << 10, 64 << 10, 256 << 10, 4 << 10, 64 << 10, 256 << 10}

const (
	rewriterMemory = 2 << 20
	rewriterReads  = 3 << 20 // on the disk, where nobody writes
)

func newRewriter(t *testing.T, disk *driver.Disk) *rewriter {
	t.Helper()
	w := &rewriter{disk: disk}
	at := 0
	for _, size := range rewriterSizes {
		for to, all := range map[int]*[]rewritten{at: &w.writes, rewriterReads + at: &w.reads} {
			b, err := disk.Alloc(size)
			must(t, err)
			*all = append(*all, rewritten{b, to})
		}
		at += size
	}
	return w
}

// rewrite is one go over all buffers.
func (w *rewriter) rewrite(times byte) {
	for _, all := range [][]rewritten{w.writes, w.reads} {
		for _, j := range all {
			for i := 0; i < len(j.buffer.Bytes); i += 8 {
				binary.LittleEndian.PutUint64(j.buffer.Bytes[i:], uint64(j.at+i)<<8|uint64(times))
			}
		}
	}
}

// run has all buffers written to the disk, or read into, at once, round after round, while they change.
func (w *rewriter) run(t *testing.T, ctx context.Context, rounds int) {
	t.Helper()
	stop, passes := make(chan struct{}), byte(0)
	var changes sync.WaitGroup
	w.rewrite(0)
	changes.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				passes++
				w.rewrite(passes)
			}
		}
	})
	done := make([]*driver.Request, len(rewriterSizes))
	q := w.disk.Queue(0)
	for round := range rounds {
		op, all := driver.Out, w.writes
		if round%3 == 1 {
			op, all = driver.In, w.reads
		}
		for _, j := range all {
			must(t, q.Submit(&driver.Request{Op: op, Sector: uint64(j.at) / driver.SectorSize, Data: []virtq.Buffer{j.buffer.Segment(0, len(j.buffer.Bytes))}}))
		}
		for n := 0; n < len(all); {
			if !q.Wait(20*time.Second) || ctx.Err() != nil {
				t.Fatalf("buffers that change: %s", q.Stuck())
			}
			k, err := q.Poll(done)
			must(t, err)
			for _, r := range done[:k] {
				if r.Status != driver.OK {
					t.Errorf("%v of a buffer that changes ended with %v", r.Op, r.Status)
				}
			}
			n += k
		}
	}
	close(stop)
	changes.Wait()
}

// check reads what came of it: each word is one of this very place.
func (w *rewriter) check(t *testing.T) {
	t.Helper()
	y, err := w.disk.NewSync(0, 64<<10)
	must(t, err)
	mixed := 0
	for _, j := range w.writes {
		b := make([]byte, len(j.buffer.Bytes))
		_, err := y.ReadAt(b, int64(j.at))
		must(t, err)
		for i := 0; i < len(b); i += 8 {
			if word := binary.LittleEndian.Uint64(b[i:]); word>>8 != uint64(j.at+i) {
				t.Fatalf("word %#x of the disk has one of %#x: %#x", j.at+i, word>>8, word)
			}
		}
		if b[0] != b[len(b)-8] {
			mixed++
		}
	}
	must(t, y.Flush())
	t.Logf("%d of %d buffers changed while they were taken", mixed, len(w.writes))
}

// unnoticed looks that a volume has seen nothing of all this: no connection broke, nothing was submitted again.
func unnoticed(t *testing.T, d *daemon.Daemon, volume string) {
	t.Helper()
	stats := volumeStats(t, d, volume)
	if stats.Reconnects > 0 || stats.Retries > 0 {
		t.Errorf("volume %s: %d reconnects, %d retries", volume, stats.Reconnects, stats.Retries)
	}
	if w := warnings(d, volume); w != "" {
		t.Errorf("the log has\n%s", w)
	}
}

// TestVolumeRewritten: a driver rewrites its buffers while they are sent through TLS, which is computed over them, and received; see TestNVMeTarget for digests. No
// connection breaks, what arrives was in the buffer, and another disk of the same server is as its driver wrote it.
func TestVolumeRewritten(t *testing.T) {
	need.Program(t, "nbdkit", "openssl")
	rounds := 60
	if need.Soak() {
		rounds = 3000
	}
	ctx := within(t, time.Minute+time.Duration(rounds)*50*time.Millisecond)
	s := newShelf(t, "[1]")
	pki := s.pki(t)
	exports := filepath.Join(s.dir, "exports")
	must(t, os.Mkdir(exports, 0o700))
	for _, name := range []string{"rewritten", "neighbour"} {
		s.blank(t, filepath.Join("exports", name), shelfDisk)
		s.volume(name, fmt.Sprintf("nbds+unix:///%s?socket=%s&tls-hostname=localhost", name, s.image("both.nbd")),
			fmt.Sprintf(", quiesce: 100ms, tls: {ca: %q}", filepath.Join(pki, "ca-cert.pem")))
	}
	s.serveAt(t, "both", "nbds+unix:///neighbour?socket="+s.image("both.nbd")+"&tls-certificates="+pki,
		`exec nbdkit -f -U "$0" "$@"`, "--tls=require", "--tls-certificates="+pki, "file", "dir="+exports)
	d := start(t, namespace(t, "host"), "shuntd", s.config.String())
	neighbour := s.user(t, "neighbour", ringForms["split"], verify.Options{MaxBytes: 256 << 10})
	neighbour.begin(t)
	w := newRewriter(t, s.dial(t, "rewritten", driver.Options{Memory: rewriterMemory}))
	w.run(t, ctx, rounds)
	w.check(t)
	must(t, moves(ctx, 1, neighbour))
	neighbour.end(t)
	neighbour.check(t)
	neighbour.checkImage(t, filepath.Join(exports, "neighbour"))
	unnoticed(t, d, "rewritten")
	unnoticed(t, d, "neighbour")
}
