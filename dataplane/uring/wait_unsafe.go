package uring

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// WriteWaiting writes to a file at an offset, on the calling thread and without a ring: it returns when the kernel has taken the bytes, however long that has to wait
// for a disk. flags are those of pwritev2. The result is as a completion's. The vector stays where it is; nobody may change it meanwhile.
func (v *Vector) WriteWaiting(fd int, offset int64, flags int32) int32 {
	for {
		// Kernels put the offset together from two halves, of which the first has all of it on 64-bit machines.
		n, _, errno := unix.Syscall6(unix.SYS_PWRITEV2, uintptr(fd), uintptr(v.address()), uintptr(v.last-v.first), uintptr(offset), 0, uintptr(flags))
		switch errno {
		case 0:
			return int32(n)
		case unix.EINTR:
		default:
			return -int32(errno)
		}
	}
}

// MayWait tells whether the kernel cannot read a regular file or a block device without being prepared for waiting (it has no RWF_NOWAIT): the case with FUSE, NFS and
// other file systems that somebody else serves, and with a few local ones. Before io_uring gives an operation on such a file to io-wq, it asks whether the file can be polled
// (vfs_poll), on the thread that entered; FUSE passes the question on to its server and waits for the answer. So a worker must not let it come to that: Apart. Nothing is read: where it
// would go no memory is. A socket or pipe must not be asked: it would lose what was read.
func MayWait(fd int) bool { return withoutWaiting(unix.SYS_PREADV2, fd) == unix.EOPNOTSUPP }

// WritesWait tells whether a write through the page cache of the file always has to be prepared for waiting: its file system then has no RWF_NOWAIT for it, and a ring
// gives every one to io-wq. XFS has it; ext4 has not, nor have most others. Nothing is written: what is offered lies where no memory is.
func WritesWait(fd int) bool { return withoutWaiting(unix.SYS_PWRITEV2, fd) == unix.EOPNOTSUPP }

// withoutWaiting reads or writes nothing, without waiting.
func withoutWaiting(call uintptr, fd int) unix.Errno {
	nowhere := iovec{len: 1}
	_, _, errno := unix.Syscall6(call, uintptr(fd), uintptr(unsafe.Pointer(&nowhere)), 1, 0, 0, unix.RWF_NOWAIT)
	return errno
}
