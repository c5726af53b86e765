package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"github.com/pawelgaczynski/giouring"
	"golang.org/x/sys/unix"
)

// nopJob goes into the kernel and back: the ring alone. Ours comes with dataplane/uring.
var nopJob = job{"io_uring: no-op, 32 at a time", []contender{
	{"giouring 2023-08-26", false, openNop},
}}

// readJob reads blocks at random from a file in the page cache. Ours comes with
// dataplane/uring; a system call for each is what a ring has to beat.
var readJob = job{"io_uring: 4 KiB read, 32 at a time", []contender{
	{"giouring 2023-08-26, readv", false, openReadv},
	{"no ring, pread", false, openPread},
}}

const (
	depth     = 32
	blockSize = 4096
	blocks    = 4096
)

// ringWorker keeps depth entries going on a ring.
type ringWorker struct {
	ring    *giouring.Ring
	prepare func(slot int, sqe *giouring.SubmissionQueueEntry)
	check   func(slot int, result int32) error
	close   func() error
}

func openNop() (worker, error) {
	ring, err := giouring.CreateRing(depth)
	if err != nil {
		return nil, fmt.Errorf("set up a ring: %w", err)
	}
	return &ringWorker{
		ring:    ring,
		prepare: func(_ int, sqe *giouring.SubmissionQueueEntry) { sqe.PrepareNop() },
		check:   func(_ int, result int32) error { return resultError(result) },
		close:   func() error { return nil },
	}, nil
}

func (w *ringWorker) Do(n int) (done int, err error) {
	for done < n && err == nil {
		for slot := range depth {
			sqe := w.ring.GetSQE()
			if sqe == nil {
				return done, errors.New("the ring has no free entry")
			}
			w.prepare(slot, sqe)
			sqe.SetData64(uint64(slot))
		}
		if _, err := w.ring.SubmitAndWait(depth); err != nil {
			return done, fmt.Errorf("submit: %w", err)
		}
		// PeekBatchCQE fills past what is ready.
		seen := uint32(0)
		w.ring.ForEachCQE(func(cqe *giouring.CompletionQueueEvent) {
			err = errors.Join(err, w.check(int(cqe.UserData), cqe.Res))
			seen++
		})
		w.ring.CQAdvance(seen)
		done += int(seen)
	}
	return done, err
}

func (w *ringWorker) Close() error {
	w.ring.QueueExit()
	return w.close()
}

func resultError(result int32) error {
	if result < 0 {
		return unix.Errno(-result)
	}
	return nil
}

// blockFile is a file whose blocks begin with their number.
type blockFile struct {
	*os.File
	random *rand.Rand
	slots  [depth]struct {
		block  uint64
		vector syscall.Iovec
		data   []byte
	}
}

func newBlockFile() (*blockFile, error) {
	file, err := os.CreateTemp("", "shunt-baseline-")
	if err != nil {
		return nil, err
	}
	f := &blockFile{File: file, random: rand.New(rand.NewPCG(1, 2))}
	block := make([]byte, blockSize)
	for i := range blocks {
		binary.LittleEndian.PutUint64(block, uint64(i))
		if _, err := f.Write(block); err != nil {
			return nil, errors.Join(err, f.remove())
		}
	}
	for i := range f.slots {
		s := &f.slots[i]
		s.data = make([]byte, blockSize)
		s.vector = syscall.Iovec{Base: &s.data[0], Len: blockSize}
	}
	return f, nil
}

func (f *blockFile) remove() error { return errors.Join(os.Remove(f.Name()), f.File.Close()) }

// next chooses the block a slot reads now.
func (f *blockFile) next(slot int) (offset int64) {
	f.slots[slot].block = f.random.Uint64N(blocks)
	return int64(f.slots[slot].block) * blockSize
}

func (f *blockFile) check(slot int, result int32) error {
	s := &f.slots[slot]
	if err := resultError(result); err != nil {
		return fmt.Errorf("read block %d: %w", s.block, err)
	}
	if got := binary.LittleEndian.Uint64(s.data); result != blockSize || got != s.block {
		return fmt.Errorf("read %d bytes of block %d, want %d of %d", result, got, blockSize, s.block)
	}
	return nil
}

func openReadv() (worker, error) {
	ring, err := giouring.CreateRing(depth)
	if err != nil {
		return nil, fmt.Errorf("set up a ring: %w", err)
	}
	f, err := newBlockFile()
	if err != nil {
		ring.QueueExit()
		return nil, err
	}
	fd := int(f.Fd())
	return &ringWorker{
		ring: ring,
		prepare: func(slot int, sqe *giouring.SubmissionQueueEntry) {
			// The heap does not move, and f is kept until Close.
			sqe.PrepareReadv(fd, uintptr(unsafe.Pointer(&f.slots[slot].vector)), 1, uint64(f.next(slot)))
		},
		check: f.check,
		close: func() error {
			runtime.KeepAlive(f)
			return f.remove()
		},
	}, nil
}

type preader struct{ *blockFile }

func openPread() (worker, error) {
	f, err := newBlockFile()
	if err != nil {
		return nil, err
	}
	return preader{f}, nil
}

func (p preader) Do(n int) (int, error) {
	fd := int(p.Fd())
	for range n {
		offset := p.next(0)
		got, err := unix.Pread(fd, p.slots[0].data, offset)
		if err == nil {
			err = p.check(0, int32(got))
		}
		if err != nil {
			return 0, err
		}
	}
	return n, nil
}

func (p preader) Close() error { return p.remove() }
