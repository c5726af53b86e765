package file

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// openFile opens what is a disk, and nothing whose opening could wait for somebody.
func openFile(path string, o *Options) (int, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return -1, explain(err)
	}
	if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFREG && kind != unix.S_IFBLK {
		return -1, ErrKind
	}
	flags := unix.O_RDWR | unix.O_CLOEXEC
	if o.ReadOnly {
		flags = unix.O_RDONLY | unix.O_CLOEXEC
	}
	if o.Direct {
		flags |= unix.O_DIRECT
	}
	fd, err := unix.Open(path, flags, 0)
	switch {
	case err == nil:
		return fd, nil
	case o.Direct && errors.Is(err, unix.EINVAL):
		return -1, ErrDirect
	case !o.ReadOnly && (errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM)):
		return -1, fmt.Errorf("%w (%w)", ErrReadOnly, err)
	}
	return -1, explain(err)
}

func explain(err error) error {
	switch {
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("%w: make it (truncate -s SIZE), or correct the path", err)
	case errors.Is(err, unix.ETXTBSY):
		return fmt.Errorf("%w: it is used as swap space", err)
	case errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%w: there is no device behind it", err)
	}
	return err
}

// lock takes the lock on the open file description: alone to write, together with others to read. It waits, since a daemon that was killed keeps the lock
// until its last write has ended.
func lock(fd int, shared bool, patience time.Duration) error {
	how := unix.LOCK_EX
	if shared {
		how = unix.LOCK_SH
	}
	const pause = 10 * time.Millisecond
	for end := time.Now().Add(patience); ; time.Sleep(pause) {
		err := unix.Flock(fd, how|unix.LOCK_NB)
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
