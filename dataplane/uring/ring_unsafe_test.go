package uring

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// repeat maps the first n bytes of a file over and over into a reserved range.
func repeat(into []byte, fd, n int) error {
	for at := 0; at < len(into); at += n {
		length := min(n, len(into)-at)
		if _, err := unix.MmapPtr(fd, 0, unsafe.Pointer(&into[at]), uintptr(length), unix.PROT_READ|unix.PROT_WRITE,
			unix.MAP_SHARED|unix.MAP_FIXED); err != nil {
			return err
		}
	}
	return nil
}
