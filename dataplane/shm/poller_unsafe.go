package shm

import (
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Poller is a set of files that a thread sleeps on (epoll). What a sleep costs does not grow with their number, unlike with poll(2).
type Poller struct {
	fd      int
	timeout unix.Timespec // of the current sleep; here, so that it is not allocated
	ready   [64]unix.EpollEvent
}

// NewPoller makes an empty set.
func NewPoller() (*Poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	return &Poller{fd: fd}, nil
}

// FD is the set as a file for poll(2): ready as long as Wait would find something.
func (p *Poller) FD() int { return p.fd }

// Add adds a file, which must not be in the set: events as in poll(2). It ends one Wait for each time that something happens to it, however long it stays ready (EPOLLET): an
// eventfd then need not be read.
func (p *Poller) Add(fd int, events int16) error {
	e := unix.EpollEvent{Events: uint32(uint16(events)) | unix.EPOLLET, Fd: int32(fd)}
	return unix.EpollCtl(p.fd, unix.EPOLL_CTL_ADD, fd, &e)
}

// Remove takes a file out, which must still be open.
func (p *Poller) Remove(fd int) error { return unix.EpollCtl(p.fd, unix.EPOLL_CTL_DEL, fd, nil) }

// Wait sleeps until a file is ready, or for the limit; below zero: without end. It tells how many are ready, or an error: EINTR, the runtime's preemption signal.
func (p *Poller) Wait(limit time.Duration) (int, error) {
	var timeout *unix.Timespec
	if limit >= 0 {
		p.timeout = unix.NsecToTimespec(int64(limit))
		timeout = &p.timeout
	}
	n, _, errno := unix.Syscall6(unix.SYS_EPOLL_PWAIT2, uintptr(p.fd), uintptr(unsafe.Pointer(&p.ready)), uintptr(len(p.ready)),
		uintptr(unsafe.Pointer(timeout)), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// Close frees the set, not its files. It may be called again.
func (p *Poller) Close() error {
	fd := p.fd
	if p.fd = -1; fd < 0 {
		return nil
	}
	return unix.Close(fd)
}
