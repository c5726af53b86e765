package xsk

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Feature is something that not every kernel from our floor on has.
type Feature struct {
	// Name masks the feature when it stands in SHUNT_MASK.
	Name string
	// Since is the kernel that brought it.
	Since string

	probe func(fd int) error
}

// The optional features of AF_XDP.
var (
	// MultiBuffer is frames of several descriptors, XDP_USE_SG.
	MultiBuffer = Feature{Name: "xsk-multi-buffer", Since: "6.6", probe: probeMultiBuffer}
	// TxBudget is more than 32 descriptors to a system call in copy mode, XDP_MAX_TX_SKB_BUDGET.
	TxBudget = Feature{Name: "xsk-tx-budget", Since: "6.17", probe: probeTxBudget}
	// BusyPolling is the driver's receiving on our own thread, SO_PREFER_BUSY_POLL. All kernels from our floor on have
	// it, unless built without.
	BusyPolling = Feature{Name: "xsk-busy-poll", Since: "5.11 and CONFIG_NET_RX_BUSY_POLL", probe: probeBusyPoll}
)

// Masked tells whether the environment variable SHUNT_MASK hides an optional feature, so that what happens without it
// can be tested on a kernel that has it. It lists names, separated by commas; "all" hides every one.
func Masked(name string) bool {
	for _, m := range strings.Split(os.Getenv("SHUNT_MASK"), ",") {
		if m = strings.TrimSpace(m); m == "all" || m == name {
			return true
		}
	}
	return false
}

// Check returns nil if this kernel has the feature, else an error that wraps ErrNotSupported.
func (f *Feature) Check() error {
	if Masked(f.Name) {
		return fmt.Errorf("%s: %w (masked by SHUNT_MASK)", f.Name, ErrNotSupported)
	}
	fd, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return explainSocket(err)
	}
	defer unix.Close(fd)
	if err := f.probe(fd); err != nil {
		return fmt.Errorf("%s: %w; it came with %s", f.Name, err, f.Since)
	}
	return nil
}

// probeMultiBuffer binds to no device: flags are judged before the device is looked for.
func probeMultiBuffer(fd int) error {
	err := unix.Bind(fd, &unix.SockaddrXDP{Flags: unix.XDP_USE_SG})
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return ErrNotSupported
}

// probeTxBudget sets it on a socket without tx ring: EACCES from who knows the option, ENOPROTOOPT from who does not.
func probeTxBudget(fd int) error {
	err := unix.SetsockoptInt(fd, unix.SOL_XDP, unix.XDP_MAX_TX_SKB_BUDGET, kernelBudget)
	if errors.Is(err, unix.EACCES) || err == nil {
		return nil
	}
	return ErrNotSupported
}

// probeBusyPoll asks for it. EPERM is from who knows the option.
func probeBusyPoll(fd int) error {
	err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PREFER_BUSY_POLL, 1)
	if err == nil || errors.Is(err, unix.EPERM) {
		return nil
	}
	return ErrNotSupported
}
