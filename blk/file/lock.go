package file

import (
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"
)

// Two kinds of locks say that a file is in use, both on the open file description: flock, among ourselves, and locks of single bytes, by which QEMU and its tools tell one another what
// each does with an image and what it bears from others. Whoever does something locks a byte for that, whoever does not bear it another one, each to read, so that
// many can; and it is refused if somebody else has the byte that contradicts.

// QEMU's bytes: what is done (doing), and not borne (alone).
const (
	doing = 100
	alone = 200

	reading = 0 // and counting on what is read
	writing = 1
)

// qemuLocks are the bytes that we lock, and those that nobody else may have. That the file is made longer we bear.
func qemuLocks(shared bool) (ours, theirs []int64) {
	if shared {
		return []int64{doing + reading, alone + writing}, []int64{alone + reading, doing + writing}
	}
	return []int64{doing + reading, doing + writing, alone + writing}, []int64{alone + reading, alone + writing, doing + writing}
}

// lockPause is how long one waits before one looks again whether whoever has the file has let go of it.
const lockPause = 10 * time.Millisecond

// lock locks a file: alone to write, together with others to read. It waits, since a daemon that was killed keeps its locks until its last write has ended.
func lock(fd int, shared bool, patience time.Duration) error {
	for end := time.Now().Add(patience); ; time.Sleep(lockPause) {
		err := tryLock(fd, shared)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
		case !errors.Is(err, unix.EWOULDBLOCK):
			return fmt.Errorf("lock it: %w", err)
		case time.Now().After(end):
			if patience < 0 {
				return ErrLocked
			}
			return fmt.Errorf("waited %v for its lock: %w", patience, ErrLocked)
		}
	}
}

// tryLock takes both kinds, or none with EWOULDBLOCK.
func tryLock(fd int, shared bool) error {
	how := unix.LOCK_EX
	if shared {
		how = unix.LOCK_SH
	}
	if err := unix.Flock(fd, how|unix.LOCK_NB); err != nil {
		return err
	}
	if !lockBytes(fd, shared) {
		_ = unlock(fd)
		return unix.EWOULDBLOCK
	}
	return nil
}

// lockBytes is for who asks as QEMU does; false: somebody contradicts. Ours come first, so that of two who try at the same time at least one sees the other. A file
// system without such locks has nobody who could.
func lockBytes(fd int, shared bool) bool {
	ours, theirs := qemuLocks(shared)
	for _, at := range ours {
		l := byteLock(unix.F_RDLCK, at)
		if errors.Is(unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &l), unix.EAGAIN) {
			return false
		}
	}
	for _, at := range theirs {
		l := byteLock(unix.F_WRLCK, at)
		if unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &l) == nil && l.Type != unix.F_UNLCK {
			return false
		}
	}
	return true
}

func byteLock(kind int16, at int64) unix.Flock_t {
	return unix.Flock_t{Type: kind, Whence: io.SeekStart, Start: at, Len: 1}
}

// unlock gives all locks back.
func unlock(fd int) error {
	all := unix.Flock_t{Type: unix.F_UNLCK, Whence: io.SeekStart} // to the end of all
	_ = unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &all)
	return unix.Flock(fd, unix.LOCK_UN)
}
