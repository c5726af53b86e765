package api

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/tools/control/config"
)

// ErrTaken says that another daemon answers on the control socket.
var ErrTaken = errors.New("another shuntd is running")

// Listener is the control socket. It removes its file, and the directory if it made that, when it is closed.
type Listener struct {
	*net.UnixListener
	path    string
	file    fs.FileInfo // that we bound
	madeDir string
	once    sync.Once
	err     error
}

// Listen opens the control socket: mode 0600, or 0660 and group when there is one. A socket file that a dead daemon
// left is replaced; one where a daemon answers is ErrTaken.
func Listen(path string, group config.Account) (*Listener, error) {
	gid, err := lookupGroup(group)
	if err != nil {
		return nil, err
	}
	l := &Listener{path: path}
	if err := l.makeDir(); err != nil {
		return nil, err
	}
	if err := l.open(gid); err != nil {
		l.removeDir()
		return nil, err
	}
	return l, nil
}

// open binds the socket, while no other daemon looks for a stale one. A gid below zero is none.
func (l *Listener) open(gid int) error {
	unlock, err := lock(l.path)
	if err != nil {
		return err
	}
	defer unlock()
	if err := clearStale(l.path); err != nil {
		return err
	}
	// The kernel gives the file the mode that the unbound socket has, so there is no moment with a wider one.
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var chmod error
		if err := c.Control(func(fd uintptr) { chmod = unix.Fchmod(int(fd), 0o600) }); err != nil {
			return err
		}
		return chmod
	}}
	bound, err := lc.Listen(context.Background(), "unix", l.path)
	if err != nil {
		return impossible(l.path, err)
	}
	l.UnixListener = bound.(*net.UnixListener)
	l.SetUnlinkOnClose(false) // Close does it, and only if the file is still ours
	if err := l.give(gid); err != nil {
		_ = l.Close()
		return err
	}
	return nil
}

// give notes which file the socket is, and gives it to a group.
//
// The socket's directory may be others'. So what lies at the path now is opened, found to be ours, and changed without asking for the path again: it
// could be a link to any file by then.
func (l *Listener) give(gid int) error {
	fd, err := unix.Open(l.path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return impossible(l.path, err)
	}
	file := os.NewFile(uintptr(fd), l.path)
	defer file.Close()
	now, err := file.Stat()
	if err != nil || !justMade(now) {
		return fmt.Errorf("the control socket %s is not there any more: another file is at its path: choose a directory with control.socket that is root's", l.path)
	}
	if l.file = now; gid < 0 {
		return nil
	}
	if err = unix.Fchownat(fd, "", -1, gid, unix.AT_EMPTY_PATH); err == nil {
		err = os.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), 0o660)
	}
	if err != nil {
		return fmt.Errorf("control.group: the control socket %s cannot be given to group %d (%w): run as root, or remove the key", l.path, gid, cause(err))
	}
	return nil
}

// justMade tells whether a file can be the socket that open has bound: no other has this mode and owner, and one name.
func justMade(file fs.FileInfo) bool {
	st, is := file.Sys().(*syscall.Stat_t)
	return is && file.Mode() == fs.ModeSocket|0o600 && int(st.Uid) == os.Geteuid() && st.Nlink == 1
}

// Close stops listening and removes the socket's file. It may be called twice; http.Server does.
func (l *Listener) Close() error {
	l.once.Do(func() {
		if now, err := os.Lstat(l.path); err == nil && l.file != nil && os.SameFile(now, l.file) {
			l.err = os.Remove(l.path)
		}
		l.err = errors.Join(l.err, l.UnixListener.Close())
		l.removeDir()
	})
	return l.err
}

func (l *Listener) makeDir() error {
	dir := filepath.Dir(l.path)
	switch err := os.Mkdir(dir, 0o755); {
	case err == nil:
		l.madeDir = dir
	case !errors.Is(err, fs.ErrExist):
		return impossible(l.path, err)
	}
	return nil
}

func (l *Listener) removeDir() {
	if l.madeDir != "" {
		_ = os.Remove(l.madeDir) // fails while something else is in it, and then it stays
	}
}

// lock holds off other daemons that are about to look for a stale socket at the same path. The lock is on a file beside it that is ours alone: on the
// directory, whoever may read that could have it, and keep every daemon from starting. It goes with the process.
func lock(path string) (unlock func(), err error) {
	name := path + ".lock"
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, impossible(path, err)
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			if sameFile(f, name) {
				return func() { _ = errors.Join(os.Remove(name), f.Close()) }, nil
			}
			err = unix.EWOULDBLOCK // who had it took the file along
		}
		_ = f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) || time.Now().After(deadline) {
			return nil, fmt.Errorf("another program holds the lock %s of the control socket (%w): stop it, or choose another path with control.socket", name, cause(err))
		}
	}
}

// sameFile tells whether a file is still at its path: who had the lock before removes it.
func sameFile(f *os.File, path string) bool {
	had, err := f.Stat()
	is, err2 := os.Lstat(path)
	return err == nil && err2 == nil && os.SameFile(had, is)
}

// clearStale removes the socket that a dead daemon left.
func clearStale(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return impossible(path, err)
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s is not a socket: remove it, or choose another path with control.socket", path)
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		_ = c.Close()
	}
	if !errors.Is(err, unix.ECONNREFUSED) { // only that proves that nobody listens
		return fmt.Errorf("%w: it answers on %s: stop it, or choose another path with control.socket", ErrTaken, path)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("the control socket %s that a dead daemon left cannot be removed (%w): remove it, or choose another path with control.socket",
			path, cause(err))
	}
	return nil
}

// impossible says that there can be no control socket at path.
func impossible(path string, err error) error {
	advice := "choose another path with control.socket"
	switch {
	case errors.Is(err, fs.ErrNotExist):
		advice = "create the directory, or " + advice
	case errors.Is(err, fs.ErrPermission):
		advice = "run as root, or " + advice
	}
	return fmt.Errorf("the control socket %s cannot be made (%w): %s", path, cause(err), advice)
}

// cause is what the kernel said, without the calls that it went through.
func cause(err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}

func lookupGroup(group config.Account) (int, error) {
	if group == "" {
		return -1, nil
	}
	if gid, err := strconv.Atoi(string(group)); err == nil {
		return gid, nil
	}
	g, err := user.LookupGroup(string(group))
	if err != nil {
		return 0, fmt.Errorf("control.group: this host has no group %s: create it, or name another", group)
	}
	return strconv.Atoi(g.Gid)
}
