package file

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// ErrBusy says that the kernel has a block device in use, or that another program has claimed it.
var ErrBusy = errors.New("the device is in use: unmount it, or end what has it or a part of it (lsblk and fuser show that)")

// openFile opens what is a disk, and nothing whose opening could wait for somebody. A block device to be written to is claimed (O_EXCL): a file system that is mounted
// from it, a device mapped onto it or a daemon that has it under another name would write there, too, and flock knows of none of them.
func openFile(path string, o *Options) (int, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return -1, explain(err)
	}
	kind := st.Mode & unix.S_IFMT
	if kind != unix.S_IFREG && kind != unix.S_IFBLK {
		return -1, ErrKind
	}
	flags := unix.O_RDWR | unix.O_CLOEXEC
	if o.ReadOnly {
		flags = unix.O_RDONLY | unix.O_CLOEXEC
	}
	if o.Direct {
		flags |= unix.O_DIRECT
	}
	if kind == unix.S_IFBLK && !o.ReadOnly {
		flags |= unix.O_EXCL
	}
	fd, err := unix.Open(path, flags, 0)
	for end := time.Now().Add(o.Patience); errors.Is(err, unix.EBUSY) && time.Now().Before(end); fd, err = unix.Open(path, flags, 0) {
		time.Sleep(lockPause)
	}
	switch {
	case err == nil:
		return fd, nil
	case errors.Is(err, unix.EBUSY):
		return -1, ErrBusy
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
		return fmt.Errorf("%w: it is used as swap space; swapoff it, or name another file", err)
	case errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%w: there is no device behind it; plug it in, or correct the path", err)
	}
	return err
}
