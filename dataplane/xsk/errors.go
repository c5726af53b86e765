package xsk

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// What opening a device or a socket fails with. The errors returned wrap one of these and say what to do.
var (
	// ErrNoDevice says that the interface does not exist in this network namespace.
	ErrNoDevice = errors.New("no such interface")
	// ErrDown says that the interface is not up.
	ErrDown = errors.New("the interface is down")
	// ErrQueue says that the interface has no queue of that number.
	ErrQueue = errors.New("no such queue")
	// ErrBusy says that another socket is bound to the queue.
	ErrBusy = errors.New("another AF_XDP socket holds the queue")
	// ErrNoZeroCopy says that zero copy was asked for and the driver refuses it.
	ErrNoZeroCopy = errors.New("the driver offers no zero copy here")
	// ErrPermission says that a capability is missing.
	ErrPermission = errors.New("permission denied")
	// ErrMemoryLock says that RLIMIT_MEMLOCK is too low for the UMEM.
	ErrMemoryLock = errors.New("the limit of locked memory is too low for the UMEM")
	// ErrNotSupported says that the kernel lacks what was asked for.
	ErrNotSupported = errors.New("this kernel does not support it")
)

// explainSocket says why socket(AF_XDP) failed.
func explainSocket(err error) error {
	switch {
	case errors.Is(err, unix.EAFNOSUPPORT):
		return fmt.Errorf("%w; it needs one built with CONFIG_XDP_SOCKETS, 6.1 or newer", ErrNotSupported)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w; run as root or with CAP_NET_RAW", ErrPermission)
	}
	return fmt.Errorf("open a socket: %w", err)
}

// explainBind says why bind failed.
func explainBind(err error, o *SocketOptions) error {
	switch {
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w; stop its program (ss --xdp -p shows which), or take another queue", ErrBusy)
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%w any more; was it removed or renamed?", ErrNoDevice)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w; run as root or with CAP_NET_RAW and CAP_NET_ADMIN", ErrPermission)
	case errors.Is(err, unix.EOPNOTSUPP) && o.Mode == ModeZeroCopy:
		return fmt.Errorf("%w; ask for mode copy or auto, or check driver, MTU and queue", ErrNoZeroCopy)
	case errors.Is(err, unix.EINVAL) && o.Mode == ModeZeroCopy:
		return fmt.Errorf("%w (%w); ask for mode copy or auto, or check driver, MTU and queue", ErrNoZeroCopy, err)
	}
	return fmt.Errorf("bind: %w", err)
}
