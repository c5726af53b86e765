// Package drivertest has peers that a driver is tried on, and that benchmarks compare with: qemu-storage-daemon, which serves a raw file
// over vhost-user-blk.
package drivertest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Options configure a StorageDaemon. Dir must be set.
type Options struct {
	// Dir is where its sockets and, unless File is set, its image are made.
	Dir string
	// File is the raw image. Empty: one of Size bytes is made in Dir.
	File string
	Size int64
	// Queues is how many it offers. Zero: 1.
	Queues int
	// ReadOnly, Direct (O_DIRECT) and Uring (aio=io_uring, else threads).
	ReadOnly, Direct, Uring bool
	// BlockSize is its logical block size. Zero: 512.
	BlockSize int
	// Log is where it writes; nil: nowhere.
	Log *os.File
}

// StorageDaemon is a running qemu-storage-daemon.
type StorageDaemon struct {
	// Socket is where front-ends connect, File its image.
	Socket, File string

	o    Options
	cmd  *exec.Cmd
	done chan struct{}
}

// Program is what must be installed.
const Program = "qemu-storage-daemon"

// Start starts one.
func Start(o Options) (*StorageDaemon, error) {
	if o.Queues == 0 {
		o.Queues = 1
	}
	if o.BlockSize == 0 {
		o.BlockSize = 512
	}
	if o.File == "" {
		o.File = filepath.Join(o.Dir, "disk.raw")
		f, err := os.Create(o.File)
		if err == nil {
			err = errors.Join(f.Truncate(o.Size), f.Close())
		}
		if err != nil {
			return nil, fmt.Errorf("make an image: %w", err)
		}
	}
	s := &StorageDaemon{Socket: filepath.Join(o.Dir, "qsd.sock"), File: o.File, o: o}
	return s, s.Restart()
}

// Restart starts it again after a Kill.
func (s *StorageDaemon) Restart() error {
	onOff := func(b bool) string {
		if b {
			return "on"
		}
		return "off"
	}
	aio := "threads"
	if s.o.Uring {
		aio = "io_uring"
	}
	if err := os.Remove(s.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	s.cmd = exec.Command(Program,
		"--blockdev", fmt.Sprintf("driver=file,node-name=disk,filename=%s,discard=unmap,cache.direct=%s,aio=%s,read-only=%s",
			s.File, onOff(s.o.Direct), aio, onOff(s.o.ReadOnly)),
		"--export", fmt.Sprintf("type=vhost-user-blk,id=disk,node-name=disk,addr.type=unix,addr.path=%s,writable=%s,num-queues=%d,logical-block-size=%d",
			s.Socket, onOff(!s.o.ReadOnly), s.o.Queues, s.o.BlockSize))
	s.cmd.Stdout, s.cmd.Stderr = s.o.Log, s.o.Log
	var err error
	if s.done, err = Launch(s.cmd); err != nil {
		return fmt.Errorf("start %s: %w", Program, err)
	}
	return nil
}

// PID is its process.
func (s *StorageDaemon) PID() int { return s.cmd.Process.Pid }

// Kill kills it, and returns when it is gone.
func (s *StorageDaemon) Kill() error {
	if s == nil || s.done == nil {
		return nil
	}
	err := s.cmd.Process.Kill()
	<-s.done
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// Gone is closed when it has ended.
func (s *StorageDaemon) Gone() <-chan struct{} { return s.done }
