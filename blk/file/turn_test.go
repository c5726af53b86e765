package file

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/dataplane/uring"
	"github.com/shuntio/shunt/tools/need"
	"golang.org/x/sys/unix"
)

// However much a guest flushes and discards, its disk has few of the threads that all disks of a worker share.
func TestFewThreads(t *testing.T) {
	path, _ := makeFile(t, t.TempDir(), 1<<20)
	s := openStore(t, path, Options{})
	u := newBed(t, uring.Options{}).open(s)
	var all []*request
	for i := range uint64(32) {
		for _, q := range []*request{newRequest(blk.OpFlush, 0, 0), newRequest(blk.OpDiscard, i<<12, 4096), newRequest(blk.OpWriteZeroes, i<<12, 4096)} {
			all = append(all, q)
			u.submit(q)
		}
	}
	l := u.lane.(*lane)
	most, back := 0, 0
	for i, q := range all {
		if i%4 > 1 { // also of those that are under way
			u.lane.Withdraw(&q.Request)
			back++
		}
	}
	u.until("all are done", func() bool {
		busy := 0 // of ours: io-wq may be nudged beside them
		for i := range l.slots {
			if l.slots[i].op.Busy() {
				busy++
			}
		}
		most = max(most, busy)
		n := 0
		for _, q := range all {
			n += q.done
		}
		return n == len(all)
	})
	if most == 0 || most > 2 {
		t.Errorf("%d operations were under way at once, that each take a thread", most)
	}
	for i, q := range all {
		if q.done != 1 || q.outcome != blk.OK && (q.outcome != blk.Withdrawn || i%4 < 2) {
			t.Errorf("%v: done %d times, outcome %d", q.Op, q.done, q.outcome)
		}
	}
	if len(l.free) != len(l.slots) || l.syncs.holder+l.fallocates.holder != 0 {
		t.Errorf("%d of %d slots are free", len(l.free), len(l.slots))
	}
	t.Logf("%d requests, %d asked back, at most %d at once; %d operations", len(all), back, most, u.ring.Stats().Operations.Load())
}

// slow is a worker that does not look at its completions.
type slow struct {
	lane *lane
	op   *uring.Op
	res  int32
}

func (s *slow) Completed(op *uring.Op, res int32, _ uint32) { s.op, s.res = op, res }

// What cannot be written back the kernel tells once. A lane that has been told, and does not know it yet, keeps no other from knowing.
func TestBothAreTold(t *testing.T) {
	need.Root(t)
	dir := t.TempDir()
	if err := unix.Mount("shunt-test", dir, "tmpfs", 0, "size=1m"); err != nil {
		need.Missing(t, "no tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	path := filepath.Join(dir, "disk.img")
	for _, c := range [][]string{{"truncate", "-s", "8M", path}, {"losetup", "--show", "-f", path}} {
		out, err := exec.Command(c[0], c[1:]...).CombinedOutput()
		if err != nil {
			need.Missing(t, "no loop device: %s", out)
		}
		path = strings.TrimSpace(path + "\n" + string(out))
		path = path[strings.LastIndex(path, "\n")+1:]
	}
	t.Cleanup(func() { _ = exec.Command("losetup", "-d", path).Run() })
	s := openStore(t, path, Options{})
	b := newBed(t, uring.Options{})
	busy, other := b.open(s), b.open(s)
	m := memory(t, 4<<20)
	random(m, 3)
	other.io(blk.OpWrite, 0, m) // more than there is room for
	l := busy.lane.(*lane)
	late := &slow{lane: l}
	for i := range l.slots {
		l.slots[i].op.Handler = late
	}
	first := newRequest(blk.OpFlush, 0, 0)
	busy.submit(first)
	busy.until("the first flush has failed", func() bool { return late.op != nil })
	if late.res >= 0 {
		t.Fatal("it has not")
	}
	if o := other.do(newRequest(blk.OpFlush, 0, 0)); o != blk.Failed {
		t.Errorf("the other lane's flush: outcome %d, and what it wrote is lost", o)
	}
	l.Completed(late.op, late.res, 0)
	if first.outcome != blk.Failed {
		t.Errorf("the first flush: outcome %d", first.outcome)
	}
}
