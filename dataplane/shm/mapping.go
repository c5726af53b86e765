package shm

import (
	"errors"
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// ErrBacking says that a file descriptor is of a kind whose pages can stall or fail at the will of another process.
var ErrBacking = errors.New("memory is not a memfd, tmpfs or hugetlbfs file")

// Mapping is a shared mapping of part of a file, or of anonymous memory.
type Mapping struct {
	bytes   []byte
	huge    bool
	revoked atomic.Bool
}

// MapOptions say what to map. FD and Length must be set; everything else may be zero.
type MapOptions struct {
	// FD is the file to map. Negative: anonymous memory.
	FD int
	// Offset in the file, in bytes; a multiple of the page size (of the huge page size on hugetlbfs).
	Offset int64
	// Length in bytes.
	Length int
	// ReadOnly maps without the right to write.
	ReadOnly bool
	// Huge asks for huge pages for anonymous memory; where there are none it becomes small ones, and Mapping.Huge tells.
	Huge bool
	// Populate touches every page now, so that a worker does not fault later.
	Populate bool
}

// PageSize is the size of the pages behind a file of memory: hugetlbfs wants lengths in multiples of it.
func PageSize(fd int) int {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil || uint32(fs.Type) != unix.HUGETLBFS_MAGIC {
		return unix.Getpagesize()
	}
	return int(fs.Bsize)
}

// Map maps memory shared with whoever else maps the same file.
// The file descriptor stays the caller's and may be closed afterwards.
func Map(o MapOptions) (*Mapping, error) {
	if o.Length <= 0 {
		return nil, fmt.Errorf("map %d bytes: length must be positive", o.Length)
	}
	prot, flags := unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED
	if o.ReadOnly {
		prot = unix.PROT_READ
	}
	if o.FD < 0 {
		flags |= unix.MAP_ANONYMOUS
	}
	if o.Populate {
		flags |= unix.MAP_POPULATE
	}
	if o.FD < 0 && o.Huge {
		if b, err := unix.Mmap(-1, 0, o.Length, prot, flags|unix.MAP_HUGETLB); err == nil {
			return &Mapping{bytes: b, huge: true}, nil
		}
	}
	b, err := unix.Mmap(o.FD, o.Offset, o.Length, prot, flags)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes at offset %d of fd %d: %w", o.Length, o.Offset, o.FD, err)
	}
	return &Mapping{bytes: b}, nil
}

// Huge tells whether anonymous memory lies in huge pages.
func (m *Mapping) Huge() bool { return m.huge }

// Bytes is the whole mapping. It may be read and written until Revoke.
func (m *Mapping) Bytes() []byte { return m.bytes }

// Revoke takes the pages away and keeps the addresses reserved: any later access faults.
func (m *Mapping) Revoke() error {
	if m.revoked.Swap(true) {
		return nil
	}
	if err := revoke(m.bytes); err != nil {
		return fmt.Errorf("revoke %d mapped bytes: %w", len(m.bytes), err)
	}
	return nil
}

// Free gives the addresses back to the process. Nobody may hold a view any more.
func (m *Mapping) Free() error {
	b := m.bytes
	m.bytes = nil
	if b == nil {
		return nil
	}
	return unix.Munmap(b)
}

// NewMemFD creates an anonymous file, the kind of memory that front-ends share. Its size is not sealed, as a hostile one's would
// not be. The caller closes the descriptor.
func NewMemFD(name string, size int64) (int, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return -1, fmt.Errorf("memfd %s: %w", name, err)
	}
	if err := unix.Ftruncate(fd, size); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("size memfd %s to %d bytes: %w", name, size, err)
	}
	return fd, nil
}

// KeepSize forbids everybody to shrink a file of memory, for good, and tells whether that is in force: a memfd can be sealed so by
// whoever may write to it; an ordinary file of tmpfs cannot, nor can a memfd whose maker forbade new seals.
func KeepSize(fd int) bool {
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err == nil && seals&unix.F_SEAL_SHRINK == 0 {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK)
	}
	return err == nil
}

// CheckBacking tells whether fd is memory by itself (memfd, tmpfs, hugetlbfs) and returns its size in bytes.
// Everything else is refused with ErrBacking: a page fault on a FUSE or network file waits for another process,
// and a worker that faults there would hang for as long as that process likes.
func CheckBacking(fd int) (size int64, err error) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return 0, fmt.Errorf("fstatfs of memory fd: %w", err)
	}
	if t := uint32(fs.Type); t != unix.TMPFS_MAGIC && t != unix.HUGETLBFS_MAGIC {
		return 0, fmt.Errorf("file system type %#x: %w", t, ErrBacking)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, fmt.Errorf("fstat of memory fd: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return 0, fmt.Errorf("mode %#o is no regular file: %w", st.Mode, ErrBacking)
	}
	return st.Size, nil
}
