package nvmetcp

import (
	"testing"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/blk/nvmetcp/nvmetcptest"
	"github.com/shuntio/shunt/dataplane/shm"
	"golang.org/x/sys/unix"
)

// A guest takes its memory away under a request: that request fails, and others go on.
func TestHoles(t *testing.T) {
	for _, digest := range []bool{false, true} {
		target := nvmetcptest.New(t, nvmetcptest.Options{InCapsule: 8 << 10})
		o := options(target)
		o.DataDigest = digest
		s := connect(t, o)
		c := newWorkbench(t).open(t, s)
		const size = 256 << 10
		fd, err := shm.NewMemFD("hole", size)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		m, err := shm.Map(shm.MapOptions{FD: fd, Length: size})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { m.Free() })
		if err := unix.Ftruncate(fd, 8192); err != nil {
			t.Fatal(err)
		}
		for _, op := range []blk.Op{blk.OpRead, blk.OpWrite} {
			for _, at := range []int{0, 4096, 16384} {
				for _, length := range []int{16 << 10, 128 << 10, 4096} {
					if at+length <= 8192 {
						continue
					}
					c.awaitUp()
					j := c.job(op, 0, uint64(length), 0)
					j.Buffers = [][]byte{m.Bytes()[at:][:length]}
					good := c.job(blk.OpWrite, 1<<20, 64<<10, 0)
					c.bench.worker.Do(func() { // in one vector
						if !c.lane.Submit(&j.Request) || !c.lane.Submit(&good.Request) {
							t.Error("refused")
						}
					})
					if o := c.end(j); o != blk.Failed {
						t.Errorf("digest %v, %v of %d bytes at %d: outcome %d, want Failed", digest, op, length, at, o)
					}
					if o := c.end(good); o == blk.Lost {
						c.must(good)
					} else if o != blk.OK {
						t.Errorf("digest %v, beside a %v of %d bytes at %d: outcome %d", digest, op, length, at, o)
					}
				}
			}
		}
	}
}
