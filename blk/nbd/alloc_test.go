package nbd

import (
	"io"
	"net"
	"runtime"
	"testing"

	"github.com/shuntio/shunt/blk"
)

// saying is a connection whose other end has said all that it will.
type saying struct {
	net.Conn
	rest []byte
}

func (s *saying) Read(b []byte) (int, error) {
	if len(s.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(b, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

func (s *saying) Write(b []byte) (int, error) { return len(b), nil }
func (s *saying) Close() error                { return nil }

// runner keeps requests on their way on the worker itself, until it has done so many.
type runner struct {
	u        *user
	requests []blk.Request
	left     int
	out      int
	failed   int
	done     chan struct{}
}

func (r *runner) Done(q *blk.Request, o blk.Outcome) {
	if o != blk.OK {
		r.failed++
	}
	r.out--
	if r.left > 0 {
		r.left--
		r.out++
		if !r.u.lane.Submit(q) {
			r.failed++
		}
	} else if r.out == 0 {
		close(r.done)
	}
}

// start submits all requests, on the worker.
func (r *runner) start(n int) {
	r.left, r.out, r.done = n, len(r.requests), make(chan struct{})
	for i := range r.requests {
		if !r.u.lane.Submit(&r.requests[i]) {
			r.failed++
		}
	}
}

func newRunner(u *user, op blk.Op, depth, length int) *runner {
	r := &runner{u: u, requests: make([]blk.Request, depth)}
	for i := range r.requests {
		at := (i * length) % len(u.memory)
		r.requests[i] = blk.Request{Op: op, Offset: uint64(at), Length: uint64(length), Buffers: [][]byte{u.memory[at:][:length]}, Handler: r}
	}
	return r
}

// TestAllocations: a request allocates nothing.
func TestAllocations(t *testing.T) {
	_, o := nbdkit(t, "memory", "16M")
	u := newBench(t).use(open(t, o))
	for _, c := range []struct {
		op            blk.Op
		depth, length int
	}{{blk.OpRead, 32, 4096}, {blk.OpWrite, 32, 4096}, {blk.OpRead, 8, 128 << 10}, {blk.OpWrite, 8, 128 << 10}, {blk.OpRead, 1, 4096}} {
		r := newRunner(u, c.op, c.depth, c.length)
		run := func(n int) {
			u.b.worker.Do(func() { r.start(n) })
			<-r.done
		}
		run(200) // whatever is made once
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		run(2000)
		runtime.ReadMemStats(&after)
		if n := after.Mallocs - before.Mallocs; n > 100 {
			t.Errorf("%v of %d bytes: %d allocations in 2000 requests", c.op, c.length, n)
		}
		if r.failed > 0 {
			t.Errorf("%v of %d bytes: %d failed", c.op, c.length, r.failed)
		}
	}
}

// BenchmarkLane has nbdkit's memory behind it.
func BenchmarkLane(b *testing.B) {
	_, o := nbdkit(b, "memory", "16M")
	u := newBench(b).use(open(b, o))
	for _, c := range []struct {
		name          string
		op            blk.Op
		depth, length int
	}{
		{"read/4KiB/1", blk.OpRead, 1, 4096}, {"read/4KiB/32", blk.OpRead, 32, 4096}, {"write/4KiB/32", blk.OpWrite, 32, 4096},
		{"read/128KiB/8", blk.OpRead, 8, 128 << 10}, {"write/128KiB/8", blk.OpWrite, 8, 128 << 10},
	} {
		b.Run(c.name, func(b *testing.B) {
			r := newRunner(u, c.op, c.depth, c.length)
			b.SetBytes(int64(c.length))
			b.ReportAllocs()
			stats := u.b.ring.Stats()
			operations, busy := stats.Operations.Load(), u.b.worker.Stats().BusyNanos.Load()
			b.ResetTimer()
			u.b.worker.Do(func() { r.start(b.N) })
			<-r.done
			b.StopTimer()
			b.ReportMetric(float64(stats.Operations.Load()-operations)/float64(b.N), "sqes/op")
			b.ReportMetric(float64(u.b.worker.Stats().BusyNanos.Load()-busy)/float64(b.N), "busy-ns/op")
			if r.failed > 0 {
				b.Errorf("%d failed", r.failed)
			}
		})
	}
}
