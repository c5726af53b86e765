package xsk

import (
	"unsafe"

	"github.com/shuntio/shunt/dataplane/shm"
	"golang.org/x/sys/unix"
)

// registerUMEM makes memory the UMEM that fd's socket brings along (XDP_UMEM_REG).
func registerUMEM(fd int, memory []byte, chunk uint32) error {
	reg := unix.XDPUmemReg{Addr: uint64(shm.Address(memory)), Len: uint64(len(memory)), Size: chunk}
	_, _, errno := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_XDP, unix.XDP_UMEM_REG,
		uintptr(unsafe.Pointer(&reg)), unsafe.Sizeof(reg), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// getsockopt reads an option of level SOL_XDP into v.
func getsockopt[T unix.XDPMmapOffsets | unix.XDPStatistics | uint32](fd, option int, v *T) error {
	size := uint32(unsafe.Sizeof(*v))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_XDP, uintptr(option),
		uintptr(unsafe.Pointer(v)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}
