package file

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/dataplane/uring"
	"golang.org/x/sys/unix"
)

// sector is the smallest block that virtio-blk knows.
const sector = 512

// shape is what does not change as long as the file is open.
type shape struct {
	info   blk.Info // but for its size
	device bool     // a block device
	direct bool
	remote bool // whatever is done may wait, for who serves the file system
	waits  bool // writes wait for the disk, and are left to a thread that may
	cached bool // reads are of the page cache, and what it has not waits for the disk
	// What O_DIRECT wants addresses, and offsets and lengths, to be multiples of, less one.
	memoryMask, offsetMask uint64
}

// inspect asks the kernel what the file is and can do.
func inspect(fd int, o *Options) (s shape, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return s, err
	}
	s.device = st.Mode&unix.S_IFMT == unix.S_IFBLK
	if s.device || !inMemory(fd) {
		s.remote = uring.MayWait(fd)
		s.cached = !o.Direct && !s.remote && uring.TellsCached(fd)
	}
	s.info = blk.Info{BlockSize: sector, ReadOnly: o.ReadOnly, Flush: true, FUA: true, WriteZeroes: !o.ReadOnly}
	number := st.Dev
	if s.device {
		number = st.Rdev
		err = s.inspectDevice(fd, o)
	} else {
		s.inspectFile(fd, &st, o)
	}
	if err != nil {
		return s, err
	}
	queue := queueOf(number)
	s.info.Rotational = attribute(queue, "rotational") == 1
	if s.device {
		granularity := attribute(queue, "discard_granularity")
		s.info.Discard = !o.ReadOnly && attribute(queue, "discard_max_bytes") > 0
		s.info.DiscardGranularity = block(uint32(granularity), s.info.BlockSize)
	}
	if o.Direct {
		err = s.inspectDirect(fd)
	}
	s.describe()
	return s, err
}

// inspectFile: what a file system writes whole, and whether it punches holes. It is asked to punch one behind the end, where there is nothing.
func (s *shape) inspectFile(fd int, st *unix.Stat_t, o *Options) {
	s.info.PhysicalBlock = block(uint32(st.Blksize), sector)
	s.info.DiscardGranularity = s.info.PhysicalBlock
	if !o.ReadOnly {
		s.waits = !o.Direct && uring.WritesWait(fd)
		size := int64(st.Blksize)
		behind := (st.Size + size - 1) / size * size
		s.info.Discard = unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, behind, size) == nil
	}
}

// inMemory tells whether the file system is this machine's memory, which does not hang. A device's is: that of its name.
func inMemory(fd int) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(fd, &st) == nil && (st.Type == unix.TMPFS_MAGIC || st.Type == unix.RAMFS_MAGIC)
}

// inspectDevice: its own blocks, and whether it may be written at all, which opening it does not tell.
func (s *shape) inspectDevice(fd int, o *Options) error {
	if readOnly, err := unix.IoctlGetInt(fd, unix.BLKROGET); err == nil && readOnly&1 != 0 && !o.ReadOnly {
		return ErrReadOnly
	}
	logical, err := unix.IoctlGetInt(fd, unix.BLKSSZGET)
	if err != nil {
		return fmt.Errorf("ask for its blocks: %w", err)
	}
	s.info.BlockSize = block(uint32(logical), sector)
	if physical, err := unix.IoctlGetUint32(fd, unix.BLKPBSZGET); err == nil {
		s.info.PhysicalBlock = block(physical, s.info.BlockSize)
	}
	if optimal, err := unix.IoctlGetUint32(fd, unix.BLKIOOPT); err == nil && optimal != 0 {
		s.info.OptimalIO = block(optimal, s.info.BlockSize)
	}
	return nil
}

// inspectDirect asks for the alignment of O_DIRECT (6.1). Where the file system does not say, pages are right for all of them.
func (s *shape) inspectDirect(fd int) error {
	var x unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &x); err != nil {
		return fmt.Errorf("ask for the alignment of O_DIRECT: %w", err)
	}
	memory, offset := uint32(unix.Getpagesize()), uint32(unix.Getpagesize())
	if x.Mask&unix.STATX_DIOALIGN != 0 {
		memory, offset = x.Dio_mem_align, x.Dio_offset_align
	}
	if offset == 0 || memory == 0 {
		return ErrDirect
	}
	s.direct = true
	s.info.BlockSize = block(offset, s.info.BlockSize)
	s.info.PhysicalBlock = max(s.info.PhysicalBlock, s.info.BlockSize)
	s.info.DiscardGranularity = max(s.info.DiscardGranularity, s.info.BlockSize)
	s.memoryMask, s.offsetMask = uint64(memory)-1, uint64(offset)-1
	return nil
}

func (s *shape) describe() {
	kind, way := "regular file", "through the page cache"
	if s.device {
		kind = "block device"
	}
	if s.direct {
		way = fmt.Sprintf("with O_DIRECT (memory aligned to %d, offsets to %d)", s.memoryMask+1, s.offsetMask+1)
	}
	if s.remote {
		way += ", read into private memory (its file system has no RWF_NOWAIT)"
	}
	s.info.Describe = kind + " " + way
}

// block is a size of blocks if it can be one: a power of two from least on.
func block(size, least uint32) uint32 {
	if size < least || size&(size-1) != 0 {
		return least
	}
	return size
}

// queueOf finds what sysfs has of the disk with a device number, or of the disk that it is a partition of; "": nothing.
func queueOf(device uint64) string {
	link := fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(device), unix.Minor(device))
	dir, err := filepath.EvalSymlinks(link)
	if err != nil {
		return ""
	}
	for _, d := range []string{dir, filepath.Dir(dir)} {
		queue := filepath.Join(d, "queue")
		if _, err := os.Stat(queue); !errors.Is(err, os.ErrNotExist) {
			return queue
		}
	}
	return ""
}

// attribute is a number of sysfs; 0: it is not there.
func attribute(dir, name string) uint64 {
	if dir == "" {
		return 0
	}
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	return n
}
