package nvmetcp

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/blk/nvmetcp/nvmetcptest"
)

// hangingQuiesce is longer than what a controller gets that says nothing.
const hangingQuiesce = testKATO + time.Second

// hanging is a target whose disk hangs with a command in it, which the host has given up: the controller was disabled, and the store says that it waits for a write. It returns the
// command's request, which was lost. Where the machine pauses for so long that a timeout of the target's, or of the store's, takes that for the other's silence, it begins anew.
func hanging(t *testing.T, opcode byte, quiesce time.Duration) (*nvmetcptest.Target, *Store, *client, *job) {
	t.Helper()
	for try := 0; ; try++ {
		target := nvmetcptest.New(t, nvmetcptest.Options{InCapsule: 8 << 10, Lingers: true})
		o := options(target)
		o.CommandTimeout, o.Quiesce = 100*time.Millisecond, quiesce
		s := connect(t, o)
		c := newWorkbench(t).open(t, s)
		c.awaitUp()
		fillRandom(c.memory[:8192], 6)
		target.Hold(only(opcode))
		j := c.job(map[byte]blk.Op{0x01: blk.OpWrite, 0x02: blk.OpRead}[opcode], 0, 4096, 0)
		c.submit(j)
		if o := c.end(j); o != blk.Lost {
			t.Fatalf("outcome %d, want Lost", o)
		}
		target.Hold(nil)
		told := opcode == 0x02
		for end := time.Now().Add(2 * silence); !told && time.Now().Before(end); time.Sleep(time.Millisecond) {
			told = s.says("has not ended the writes")
		}
		if told && target.Expired.Load() == 0 {
			return target, s, c, j
		}
		if t.Logf("attempt %d: %+v", try, s.State()); try == 5 {
			t.Fatal("nobody is told of the disk that hangs")
		}
		c.close()
		s.Close()
		target.Close()
	}
}

func (s *Store) says(what string) bool {
	why := s.State().Why
	return why != nil && strings.Contains(why.Error(), what)
}

// A disk hangs for longer than all other bounds, and goes on within Quiesce. Nothing is written until it has ended the write it had, and the operator is told so.
func TestDiskHangs(t *testing.T) {
	t.Parallel()
	target, s, c, old := hanging(t, 0x01, time.Minute)
	c.await("it is told of", func() bool {
		return s.says("has not ended the writes of 1 IO queues: its disk may hang, which is waited for, at most 1m0s")
	})
	time.Sleep(testKATO + 500*time.Millisecond) // longer than KATO and CommandTimeout
	if len(c.kept) != 1 {
		t.Fatal("the lane is up while an older write may still be executed")
	}
	target.Release()
	c.await("the lane is up again", func() bool { return len(c.kept) == 2 })
	if st := s.State(); !c.kept[1] || st.Up && st.Why != nil {
		t.Errorf("kept %v; %+v", c.kept, st)
	}
	c.must(old)
	c.must(c.job(blk.OpWrite, 0, 4096, 4096))
	target.Do(func() {
		if !bytes.Equal(target.Disk()[:4096], c.memory[4096:8192]) {
			t.Error("the old write was executed after the newer one")
		}
	})
}

// A controller hangs up on everything, its admin queue too, as one does whose keep-alive timeout has run out: that does not say that its disk has ended what it had.
func TestDiskHangsAndTargetGoes(t *testing.T) {
	t.Parallel()
	target, _, c, _ := hanging(t, 0x01, hangingQuiesce)
	gone := time.Now()
	target.Break(true)
	c.await("the lane is up again", func() bool { return len(c.kept) == 2 })
	if d := time.Since(gone); d < hangingQuiesce {
		t.Errorf("the lane is up %v after the controller went away with a write in it", d)
	}
}

// One that hangs for longer is told of for as long as the store is open.
func TestDiskHangsForLong(t *testing.T) {
	t.Parallel()
	_, s, c, j := hanging(t, 0x01, hangingQuiesce)
	c.await("the lane is up again", func() bool { return len(c.kept) == 2 })
	if d := time.Since(j.at); d < hangingQuiesce {
		t.Errorf("the lane is up after %v", d)
	}
	c.await("the store is", func() bool { return s.State().Up })
	if want := "did not end the writes of 1 IO queues within 4s (quiesce): they may yet be carried out, over newer ones"; !s.says(want) {
		t.Errorf("%+v has no %q", s.State(), want)
	}
}

// Reads change nothing, so nobody waits for theirs.
func TestDiskHangsWithRead(t *testing.T) {
	t.Parallel()
	_, s, c, read := hanging(t, 0x02, time.Minute)
	c.await("the lane is up again", func() bool { return len(c.kept) == 2 })
	if d := time.Since(read.at); d > 15*time.Second {
		t.Errorf("the lane is up after %v", d)
	}
	c.must(read)
	if st := s.State(); st.Up && st.Why != nil {
		t.Error(st.Why)
	}
}
