package uring

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Nothing is allocated for any operation, from push to completion.
func TestNothingAllocated(t *testing.T) {
	r := newRing(t, Options{})
	f := memoryFile(t, r, 1<<16)
	a, b := socketPair(t, r)
	memory := newMemory(t, 1<<16)
	if err := r.RegisterMemory(memory[1<<15:]); err != nil {
		t.Fatal(err)
	}
	buffers, err := r.Provide(8, 64)
	if err != nil {
		t.Fatal(err)
	}
	d, other := newResult(), newResult()
	x, y := socketPair(t, r)
	received := 0
	other.then = func() {
		received += int(max(other.res, 0))
		buffers.Return(other.flags)
	}
	run := func(push func() bool) {
		if !push() {
			t.Fatal("no room")
		}
		for d.op.Busy() {
			r.Flush()
			r.Poll()
		}
	}
	two := func(at int) *Vector {
		v := r.Vector(2)
		v.Add(memory[at:][:512])
		v.Add(memory[at+1024:][:512])
		return v
	}
	for name, fn := range map[string]func(){
		"nop": func() { run(func() bool { return r.Nop(&d.op) }) },
		"read, write": func() {
			v := two(0)
			run(func() bool { return r.Readv(&d.op, f, v, 0) })
			run(func() bool { return r.Writev(&d.op, f, v, 4096, unix.RWF_DSYNC) })
			r.Free(v)
		},
		"read, write, fixed": func() {
			v := two(1 << 15)
			run(func() bool { return r.Readv(&d.op, f, v, 0) })
			v.Advance(512)
			run(func() bool { return r.Writev(&d.op, f, v, 4096, 0) })
			r.Free(v)
		},
		"fsync":     func() { run(func() bool { return r.Fsync(&d.op, f, true) }) },
		"fallocate": func() { run(func() bool { return r.Fallocate(&d.op, f, 0, 0, 4096) }) },
		"send, recv": func() {
			v := two(0)
			run(func() bool { return r.Send(&d.op, a.file, v, 0) })
			run(func() bool { return r.Recv(&d.op, b.file, v, unix.MSG_WAITALL) })
			r.Free(v)
		},
		"cancel": func() {
			run(func() bool { return r.PollAdd(&d.op, b.file, unix.POLLPRI) && r.Cancel(&d.op) })
		},
		"multishot": func() {
			v := two(0)
			received = 0
			run(func() bool { return r.Send(&d.op, x.file, v, 0) })
			for received < 1024 {
				if !other.op.Busy() {
					r.RecvMulti(&other.op, y.file, buffers)
				}
				r.Flush()
				r.Poll()
			}
			r.Free(v)
		},
	} {
		if n := testing.AllocsPerRun(50, fn); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
	if d.res < 0 && d.res != -int32(unix.ECANCELED) {
		t.Error(unix.Errno(-d.res))
	}
}

// benchmark keeps depth operations under way, as a worker under load does.
func benchmark(b *testing.B, r *Ring, depth int, push func(op *Op, i int) bool) {
	all := make([]result, depth)
	for i := range all {
		all[i].op = Op{Handler: &all[i], Tag: i}
	}
	b.ReportAllocs()
	enters := r.Stats().Enters.Load()
	b.ResetTimer()
	for done := 0; done < b.N; {
		for i := range all {
			if !all[i].op.Busy() && !push(&all[i].op, done+i) {
				b.Fatal("no room")
			}
		}
		r.Flush()
		done += r.Poll()
	}
	b.StopTimer()
	r.publish()
	b.ReportMetric(float64(r.Stats().Enters.Load()-enters)/float64(b.N), "enters/op")
	for r.Busy() > 0 {
		r.Flush()
		r.Poll()
	}
}

func BenchmarkNop(b *testing.B) {
	for _, depth := range []int{1, 32} {
		b.Run(map[int]string{1: "depth-1", 32: "depth-32"}[depth], func(b *testing.B) {
			r := newRing(b, Options{})
			benchmark(b, r, depth, func(op *Op, _ int) bool { return r.Nop(op) })
		})
	}
}

// BenchmarkRead4K reads 4 KiB from the page cache, beside what the same kernel does for pread in the same loop.
func BenchmarkRead4K(b *testing.B) {
	const size = 64 << 20
	name := filepath.Join(b.TempDir(), "file")
	if err := os.WriteFile(name, make([]byte, size), 0o600); err != nil {
		b.Fatal(err)
	}
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Close(fd)
	memory := newMemory(b, 32*4096)
	for _, depth := range []int{1, 32} {
		for _, fixed := range []bool{false, true} {
			name := map[int]string{1: "depth-1", 32: "depth-32"}[depth]
			if fixed {
				name += "-registered"
			}
			b.Run(name, func(b *testing.B) {
				r := newRing(b, Options{})
				f := registerFD(b, r, fd)
				if fixed {
					if err := r.RegisterMemory(memory); err != nil {
						b.Fatal(err)
					}
				}
				vectors := make([]*Vector, depth)
				for i := range vectors {
					vectors[i] = r.Vector(1)
					vectors[i].Add(memory[i*4096:][:4096])
				}
				benchmark(b, r, depth, func(op *Op, i int) bool {
					return r.Readv(op, f, vectors[op.Tag], int64(i*7919%(size/4096))*4096)
				})
			})
		}
	}
	b.Run("pread", func(b *testing.B) {
		for i := range b.N {
			if n, err := unix.Pread(fd, memory[:4096], int64(i*7919%(size/4096))*4096); n != 4096 {
				b.Fatal(n, err)
			}
		}
	})
}
