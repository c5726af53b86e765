package shm

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// one is what Signal adds: 1 in native byte order, which is little-endian wherever shunt runs.
var one = [8]byte{1}

// Signal adds one to a non-blocking eventfd. A counter that is full already wakes its reader, so EAGAIN is no loss.
//
// Whoever shares the file can make it blocking and its counter full, and no flag of write forbids it to wait then. So the scheduler is
// told of the call: the caller hangs, but not the whole process with it at the next garbage collection.
func Signal(fd int) {
	_, _, _ = unix.Syscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&one)), 8)
}

// count is where Drain reads to: nobody looks, so all workers may share it.
var (
	count    [8]byte
	countVec = unix.Iovec{Base: &count[0], Len: 8}
)

// Drain sets an eventfd back to zero. It never waits: whoever shares the file can make it blocking and be quicker to read it, so each
// call says RWF_NOWAIT.
func Drain(fd int) {
	const here = ^uintptr(0) // the file's own position: an eventfd has none
	_, _, _ = unix.RawSyscall6(unix.SYS_PREADV2, uintptr(fd), uintptr(unsafe.Pointer(&countVec)), 1, here, here, unix.RWF_NOWAIT)
}
