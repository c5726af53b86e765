package vhostuser

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// ErrInUse says that another process, or another Backend of this one, listens on the socket.
var ErrInUse = errors.New("socket is in use")

// backlog is how many front-ends wait in the kernel to be accepted or turned away.
const backlog = 16

// maxPath is the longest path a unix socket can have, the kernel's sun_path without its final zero.
const maxPath = 107

// listen creates the socket. Nobody can connect before listen(2), and by then mode and owner are set.
func listen(o Options) (*net.UnixListener, fs.FileInfo, error) {
	if err := checkPath(o.Path); err != nil {
		return nil, nil, err
	}
	if err := clearStale(o.Path); err != nil {
		return nil, nil, err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("create unix socket: %w", err)
	}
	file := os.NewFile(uintptr(fd), o.Path)
	defer file.Close() // net.FileListener takes a duplicate; file.Fd would make the socket blocking
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: o.Path}); err != nil {
		return nil, nil, bindError(o.Path, err)
	}
	l, info, err := open(fd, file, o)
	if err != nil {
		_ = os.Remove(o.Path)
		return nil, nil, err
	}
	return l, info, nil
}

// open gives a bound socket its mode and owner, and then to the world.
func open(fd int, file *os.File, o Options) (*net.UnixListener, fs.FileInfo, error) {
	info, err := give(o.Path, o.Mode, orKeep(o.Owner), orKeep(o.Group), func(now fs.FileInfo) bool { return now.Mode().Type() == fs.ModeSocket })
	if err != nil {
		return nil, nil, err
	}
	if err := unix.Listen(fd, backlog); err != nil {
		return nil, nil, fmt.Errorf("listen on %s: %w", o.Path, err)
	}
	l, err := net.FileListener(file)
	if err != nil {
		return nil, nil, fmt.Errorf("listen on %s: %w", o.Path, err)
	}
	return l.(*net.UnixListener), info, nil
}

// Permit gives the socket that Listen made another mode and owner, by the rules of Options. Whoever is connected stays so.
func (b *Backend) Permit(mode fs.FileMode, owner, group int) error {
	if b.server == nil {
		return nil // the socket is the front-end's
	}
	if owner == 0 {
		owner = os.Geteuid()
	}
	if group == 0 {
		group = os.Getegid()
	}
	_, err := give(b.path, mode, owner, group, func(now fs.FileInfo) bool { return os.SameFile(now, b.server.identity) })
	return err
}

// give gives the socket at a path mode and owner; -1 leaves those as they are, 0 as mode is 0600.
//
// The socket's directory may be its users'. So what lies at the path now is opened, found to be ours, and changed without asking for the path again: it could
// be a link to any file by then.
func give(path string, mode fs.FileMode, owner, group int, ours func(fs.FileInfo) bool) (fs.FileInfo, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	file := os.NewFile(uintptr(fd), path)
	defer file.Close()
	now, err := file.Stat()
	if err != nil || !ours(now) {
		return nil, fmt.Errorf("socket %s is not there any more: another file is at its path; give the port another socket", path)
	}
	if mode = mode.Perm(); mode == 0 {
		mode = 0o600
	}
	if owner >= 0 || group >= 0 {
		if err := unix.Fchownat(fd, "", owner, group, unix.AT_EMPTY_PATH); err != nil {
			return nil, fmt.Errorf("give socket %s to user %d and group %d (-1: as it is): %w: run as root or with CAP_CHOWN", path, owner, group, err)
		}
	}
	if err := os.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), mode); err != nil {
		return nil, fmt.Errorf("set the mode of socket %s: %w", path, reason(err))
	}
	return now, nil
}

// reason is what the kernel said, without the call and the path.
func reason(err error) error {
	var path *fs.PathError
	var call *os.SyscallError
	switch {
	case errors.As(err, &path):
		return path.Err
	case errors.As(err, &call):
		return call.Err
	}
	return err
}

func orKeep(id int) int {
	if id == 0 {
		return -1
	}
	return id
}

func checkPath(path string) error {
	switch {
	case path == "":
		return errors.New("the vhost-user socket has no path")
	case len(path) > maxPath:
		return fmt.Errorf("socket path %s has %d bytes, the kernel takes at most %d: choose a shorter directory", path, len(path), maxPath)
	case path[0] == '@':
		return fmt.Errorf("socket path %s begins with @: abstract sockets have neither owner nor mode, use a path", path)
	}
	for i := range len(path) {
		if path[i] == 0 {
			return fmt.Errorf("socket path %q holds a zero byte", path)
		}
	}
	return nil
}

// clearStale removes a socket that nobody listens on any more, the remains of a killed daemon.
func clearStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return bindError(path, err)
	}
	if info.Mode()&fs.ModeSocket == 0 {
		return fmt.Errorf("%s exists and is no socket: remove it or choose another path", path)
	}
	if !dead(path) {
		return fmt.Errorf("%w: another process listens on %s: stop it or choose another path", ErrInUse, path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove stale socket: %w", err)
	}
	return nil
}

// dead tells whether a socket's listener is gone. Only a refused connection proves that.
func dead(path string) bool {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return unix.Connect(fd, &unix.SockaddrUnix{Name: path}) == unix.ECONNREFUSED
}

// bindError says why a socket cannot be at path.
func bindError(path string, err error) error {
	var errno unix.Errno
	if !errors.As(err, &errno) {
		return fmt.Errorf("socket %s: %w", path, err)
	}
	switch errno {
	case unix.EADDRINUSE:
		return fmt.Errorf("%w: %s was just taken by another process: choose another path", ErrInUse, path)
	case unix.ENOENT, unix.ENOTDIR:
		return fmt.Errorf("socket %s has no directory (%w): create it, or choose another path", path, errno)
	case unix.EACCES, unix.EPERM, unix.EROFS:
		return fmt.Errorf("socket %s cannot be made there (%w): run as root, or choose a directory that can be written to", path, errno)
	}
	return fmt.Errorf("socket %s: %w", path, errno)
}
