package vhostuser

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/dataplane/shm"
)

// ErrNotEventfd says that a kick, call or error descriptor is something else, which could block whoever signals it.
var ErrNotEventfd = errors.New("descriptor is not an eventfd")

// CheckEventfd tells whether fd is an eventfd and makes it non-blocking. What a descriptor is, is read from its name in
// /proc, which only the kernel chooses and no file system is asked for: fstat on a FUSE file waits for its server.
func CheckEventfd(fd int) error {
	name, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return fmt.Errorf("look at descriptor: %w", err)
	}
	if name != "anon_inode:[eventfd]" {
		return fmt.Errorf("%w but %s", ErrNotEventfd, strconv.QuoteToASCII(name))
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return fmt.Errorf("make eventfd non-blocking: %w", err)
	}
	return nil
}

// checkMemory tells the size of a memory descriptor. F_GET_SEALS works on tmpfs (a memfd is that) and hugetlbfs only, and is
// answered by the kernel itself; so it comes before fstatfs and fstat, for which a FUSE server could let us wait.
func checkMemory(fd int) (file fileID, size uint64, err error) {
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0); err != nil {
		return fileID{}, 0, shm.ErrBacking
	}
	n, err := shm.CheckBacking(fd)
	if err != nil {
		return fileID{}, 0, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fileID{}, 0, fmt.Errorf("fstat of memory fd: %w", err)
	}
	return fileID{st.Dev, st.Ino}, uint64(max(n, 0)), nil
}

// fileID tells two descriptors of one file from those of two.
type fileID struct{ dev, ino uint64 }

func closeFD(fd int) {
	if fd >= 0 {
		_ = unix.Close(fd)
	}
}
