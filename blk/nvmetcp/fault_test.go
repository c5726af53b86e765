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

// A guest rewrites its buffers all the time. What goes out has the digest of what goes out (the target looks), and what comes in fails no digest.
func TestRewritten(t *testing.T) {
	target := nvmetcptest.New(t, nvmetcptest.Options{InCapsule: 8 << 10})
	o := options(target)
	o.DataDigest = true
	c := newWorkbench(t).open(t, connect(t, o))
	c.awaitUp()
	stop, stopped := make(chan bool), make(chan bool)
	go func() {
		defer close(stopped)
		for i := byte(0); ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			for at := 0; at < 256<<10; at += 61 {
				c.memory[at] = i
			}
		}
	}()
	defer func() { close(stop); <-stopped }()
	for range 50 {
		for _, size := range []uint64{4096, 256 << 10} {
			c.must(c.job(blk.OpWrite, 0, size, 0))
			before := target.Commands[0x02].Load()
			c.must(c.job(blk.OpRead, 0, size, 0))
			if n := target.Commands[0x02].Load() - before; n != 1 {
				t.Fatalf("a read took %d commands", n)
			}
		}
	}
	if len(c.downs) != 0 {
		t.Errorf("the lane went down: %v", c.downs)
	}
}
