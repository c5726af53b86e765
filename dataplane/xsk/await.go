package xsk

import (
	"errors"
	"fmt"
	"time"

	"github.com/shuntio/shunt/dataplane/frame"
	"golang.org/x/sys/unix"
)

// awaitFree waits until the kernel has let go of a queue whose socket was closed. In copy mode nothing depends on it, but in zero copy
// the device may write into frames until a work queue of the kernel has taken them from the driver, and no call tells when
// that was; except that the queue can then be bound again.
func awaitFree(d Device, queue int, limit time.Duration) error {
	memory, err := unix.Mmap(-1, 0, frame.ChunkSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	defer unix.Munmap(memory)
	fd, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return explainSocket(err)
	}
	defer unix.Close(fd)
	for _, ring := range []int{unix.XDP_TX_RING, unix.XDP_UMEM_FILL_RING, unix.XDP_UMEM_COMPLETION_RING} {
		if err := unix.SetsockoptInt(fd, unix.SOL_XDP, ring, 1); err != nil {
			return err
		}
	}
	if err := registerUMEM(fd, memory, frame.ChunkSize); err != nil {
		return err
	}
	const pause = 5 * time.Millisecond
	address := unix.SockaddrXDP{Flags: unix.XDP_COPY, Ifindex: uint32(d.Index), QueueID: uint32(queue)}
	err = unix.Bind(fd, &address)
	for waited := time.Duration(0); errors.Is(err, unix.EBUSY) && waited < limit; waited += pause {
		time.Sleep(pause)
		err = unix.Bind(fd, &address)
	}
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%s queue %d is still in the kernel's hands %v after its socket was closed", d.Name, queue, limit)
	}
	return nil // bound, or the device or queue is gone
}
