package shm

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// one is what Signal adds: 1 in native byte order, which is little-endian wherever shunt runs.
var one = [8]byte{1}

// Signal adds one to a non-blocking eventfd. A counter that is full already wakes its reader, so EAGAIN is no loss.
// The call is short and bounded, so it does not tell the scheduler (RawSyscall).
func Signal(fd int) {
	_, _, _ = unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&one)), 8)
}

// Drain sets a non-blocking eventfd back to zero.
func Drain(fd int) {
	var count [8]byte
	_, _, _ = unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&count)), 8)
}
