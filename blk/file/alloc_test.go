package file

import (
	"testing"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/dataplane/uring"
)

func TestNothingAllocated(t *testing.T) {
	modes(t, 1<<20, func(u *user, s *Store, path string, content []byte) {
		m := memory(u, 1<<18)
		zeroes := newRequest(blk.OpWriteZeroes, 0, 8192)
		unmap := newRequest(blk.OpWriteZeroes, 0, 8192)
		unmap.Unmap = true
		for name, q := range map[string]*request{
			"read":           newRequest(blk.OpRead, 4096, 8192, m[:4096], m[8192:][:4096]),
			"write":          newRequest(blk.OpWrite, 4096, 8192, m[:4096], m[8192:][:4096]),
			"bounced read":   newRequest(blk.OpRead, 4096, 8192, m[1:][:4096], m[8192:][:4096]),
			"bounced write":  newRequest(blk.OpWrite, 4096, 8192, m[1:][:4096], m[8192:][:4096]),
			"several chunks": newRequest(blk.OpRead, 0, 1<<18-4096, m[1:][:1<<18-4096]),
			"flush":          newRequest(blk.OpFlush, 0, 0),
			"discard":        newRequest(blk.OpDiscard, 0, 8192),
			"zeroes":         zeroes,
			"unmap":          unmap,
		} {
			if n := testing.AllocsPerRun(10, func() {
				q.done = 0
				u.lane.Submit(&q.Request)
				u.lane.Flush()
				for q.done == 0 {
					u.worker.Round()
				}
			}); n != 0 {
				u.Errorf("%s: %v allocations", name, n)
			}
			if q.outcome != blk.OK {
				u.Errorf("%s: outcome %d", name, q.outcome)
			}
		}
	})
}

// A file that the page cache holds is read and written without any thread of io-wq.
func TestNoIOWorkers(t *testing.T) {
	path, _ := makeFile(t, t.TempDir(), 4<<20)
	s := openStore(t, path, Options{})
	u := newBed(t, uring.Options{}).open(s)
	l, m := u.lane.(*lane), memory(t, 4096)
	before, _, err := uring.IOWorkers()
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2000 {
		q := newRequest(blk.Op(i%2), uint64(i/2)*4096, 4096, m)
		u.submit(q)
		u.lane.Flush()
		u.until(q.Op.String(), func() bool {
			l.moves = true // where this thread has to wait, nobody is to think that the file system does
			return q.done > 0
		})
		if q.outcome != blk.OK {
			t.Fatalf("%v: outcome %d", q.Op, q.outcome)
		}
	}
	after, _, err := uring.IOWorkers()
	if err != nil || after > before {
		t.Errorf("%d io-wq threads before, %d after: %v", before, after, err)
	}
}
