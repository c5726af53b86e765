package uring

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// File is a slot of the ring's registered files.
type File int32

// ErrFiles says that there is no slot for another file.
var ErrFiles = errors.New("all slots for files of the io_uring are in use")

// file is what the ring knows of a slot. One that is given back is freed when nothing is under way on it: the kernel may look a file up only when an io-wq
// thread comes to the operation, and must not find another one.
type file struct {
	used, leaving bool
	how           uint8 // flags of operations on it
	busy          int   // operations under way
}

// Register gives the ring a file. The kernel keeps a reference of its own, so that fd may be closed at once.
func (r *Ring) Register(fd int) (File, error) {
	at := slices.IndexFunc(r.files, func(f file) bool { return !f.used })
	if at < 0 {
		return -1, fmt.Errorf("%w: there are %d (Options.Files)", ErrFiles, len(r.files))
	}
	err := updateFile(r.fd, uint32(at), int32(fd))
	if errors.Is(err, unix.EEXIST) {
		return -1, ErrThread
	}
	if err != nil {
		return -1, fmt.Errorf("register file descriptor %d with the io_uring: %w", fd, err)
	}
	r.files[at].used = true
	return File(at), nil
}

// Apart has the kernel give each operation on the file to io-wq, and not try it on the worker's thread first: for one that MayWait.
func (r *Ring) Apart(f File) { r.files[f].how = sqeAsync }

// Unregister takes a file back; nothing more may be pushed on it. What is under way goes on, and when it has ended the file is closed; by kernels
// before 6.4 only when all that was under way on the ring has.
func (r *Ring) Unregister(f File) error {
	if f < 0 || int(f) >= len(r.files) || !r.files[f].used || r.files[f].leaving {
		return fmt.Errorf("file %d is not registered with the io_uring", f)
	}
	if r.files[f].busy > 0 {
		r.files[f].leaving = true
		return nil
	}
	return r.vacate(f)
}

// leave counts the end of an operation on a file.
func (r *Ring) leave(f File) {
	at := &r.files[f]
	if at.busy--; at.busy == 0 && at.leaving {
		_ = r.vacate(f)
	}
}

func (r *Ring) vacate(f File) error {
	err := updateFile(r.fd, uint32(f), -1)
	if errors.Is(err, unix.EEXIST) {
		return ErrThread
	}
	if err != nil {
		return fmt.Errorf("unregister file %d of the io_uring: %w", f, err)
	}
	r.files[f] = file{}
	return nil
}
